"""One file a job, which reads as the story of that job: ``Settings`` and ``run(job)``. How a thing is done stands in rooms below."""
