"""Measurements against what a user would pick instead, on the same machine, with the same database and the same store."""
