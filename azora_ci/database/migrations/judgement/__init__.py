"""The judgement of migrations: what each statement locks and rewrites, and whether the version that runs still works after it. Pure."""
