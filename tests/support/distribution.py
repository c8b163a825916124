"""The PostgreSQL of the distribution's packages, beside which the tests otherwise use that of a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest


def newest_of_the_distribution() -> Path:
    """Return the folder of its newest programs. A machine without it fails: nothing else shows that a runner's PostgreSQL works."""
    folders = [server.parent for server in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not folders:
        pytest.fail("no PostgreSQL in /usr/lib/postgresql: install the package postgresql (.ci/run does)")
    return max(folders, key=lambda folder: int(folder.parent.name))
