"""Services of a release, started on this machine to try them: apart from production and from everything but a copy of its database."""
