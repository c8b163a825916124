"""One module per job; each offers ``Settings`` and ``run(job)`` and reads as the story of that job."""
