"""One module per job; each offers ``Settings`` and ``run(job)``."""
