from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.bench.edge import command
from tests.bench.edge.scenes import SCENES

FIELDS = {
    "overload": {"served_share_before", "served_share_in_spike", "capacity_share", "recovery_seconds", "abandoned_work", "bound"},
    "canary": {"canary_share", "served_share"},
    "hung": {"error_seconds", "failed", "canary_share"},
    "kills": {"requests", "failed"},
    "slow_connections": {
        *("connections", "failed", "median_get_ms", "slowest_get_ms", "route_change_seconds", "admin_read_seconds"),
    },
    "upgrade": {"requests", "failed", "change_seconds"},
}


@pytest.fixture(scope="module")
def figures() -> dict:
    argv = [sys.executable, "-m", "tests.bench", "edge", "--small", "--json"]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    completed = subprocess.run(argv, capture_output=True, text=True, timeout=240, env=environ, check=False)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(completed.stdout)


def test_every_scene_is_measured(figures):
    assert {name: set(figures[name]) for name in SCENES} == FIELDS
    assert figures["small"] is True


def test_users_are_served_where_nothing_is_wrong(figures):
    assert figures["overload"]["served_share_before"] == 1.0
    assert figures["kills"]["requests"] > 400
    assert figures["kills"]["failed"] == figures["slow_connections"]["failed"] == figures["upgrade"]["failed"] == 0
    assert figures["hung"]["failed"] > 0, "it hangs"


def test_bounds_are_given_as_in_the_configuration():
    assert command.bounds_of(("max_connections=7", "max_pending_requests=0")) == {"max_connections": 7, "max_pending_requests": 0}
