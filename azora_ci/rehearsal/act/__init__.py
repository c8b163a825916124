"""GitHub Actions on this machine: act, the store of artifacts, the workflow's text; ``../actions`` holds the local actions themselves."""
