"""How a person restores a backup: the shell scripts of a database rollback, and what puts a backup's values into them.

How a job restores a backup to prove it stands in ``database.backup``.
"""
