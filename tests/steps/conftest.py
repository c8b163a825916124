"""Fixtures that several tests of steps share."""

from tests.support.migration_world import production  # noqa: F401 - a deployment whose database is at v1.0.0
