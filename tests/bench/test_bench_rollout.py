from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from azora_ci.clock import rfc3339
from azora_ci.errors import BadInputError
from azora_ci.rehearsal.bench import rollout
from azora_ci.rehearsal.bench.rollout_scenes import Size, furthest, share
from azora_ci.rehearsal.bench.rollout_world import seconds_of_starts


@pytest.fixture(scope="module")
def measured() -> tuple[dict, str]:
    argv = [sys.executable, "-m", "azora_ci.rehearsal.bench", "rollout", "--small", "--place", "local", "--json"]
    known = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, env=known, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def test_the_local_scenes_are_measured_with_real_processes(measured):
    found, _ = measured
    assert tuple(found) == rollout.KEYS
    assert found["failed"] == 0
    assert found["requests"] >= 300
    assert 30 < found["share_at_50"] < 70
    assert 0 < found["share_at_5"] < 18
    assert 0 < found["abort_seconds_one_host"] < 10
    assert 0 <= found["tick_drift_ms"] < 2000
    assert 0 < found["probe_cpu_share"] < 1
    assert 0 < found["overhead_seconds"] < 60


def test_what_was_not_measured_is_null(measured):
    found, _ = measured
    assert {key for key, value in found.items() if value is None} == {
        "abort_seconds_fifty_hosts",  # of three stand-ins only
        *("kill_moments", "worst_recovery_seconds", "lease_seconds"),  # without hosts
    }


def test_what_happened_is_told_scene_by_scene(measured):
    _, log = measured
    told = {line.split("] ", 1)[1].split(" took ")[0]: line for line in log.splitlines() if " took " in line}
    assert set(told) == {f"{name} (local)" for name in ("load", "shares", "abort", "fifty", "probes", "overhead")}
    load = json.loads(told["load (local)"].partition(": ")[2])
    assert len(load["versions"]) >= 3  # what served, and what climbed twice
    assert load["posts"] > 0
    fifty = json.loads(told["fifty (local)"].partition(": ")[2])
    assert fifty["hosts"] == 3
    assert fifty["last_host_seconds"] > 2 * fifty["latency_seconds"]


def test_several_places_count_together_and_the_worse_figure_counts():
    results = rollout.Results(
        {
            "load (local)": {"requests": 10, "failed": 1, "share_at_5": 5.2, "overhead_seconds": 1.0},
            "load (docker)": {"requests": 20, "failed": 2, "share_at_5": 4.1, "overhead_seconds": 3.0},
        }
    )
    found = results.document()
    assert (found["requests"], found["failed"], found["share_at_5"], found["overhead_seconds"]) == (30, 3, 4.1, 3.0)
    assert found["kill_moments"] is None


def test_shares_are_of_all_answers():
    assert share([{"1.0.0": 90, "1.1.0": 10}, {"1.0.0": 100}], "1.1.0") == 5.0
    assert furthest([4.8, 5.5, 5.1], 5) == 5.5


def test_the_wait_for_instances_is_from_the_first_start_to_the_last_healthy_answer(tmp_path):
    zero = datetime(2026, 11, 24, 11, 0, tzinfo=UTC)

    def at(seconds: float) -> datetime:
        return zero + timedelta(seconds=seconds)

    log = tmp_path / "gradual-rollout.log"
    healthy = [(1.5, "web#1"), (1.5, "web#2"), (9.0, "web#1"), (9.0, "web#2"), (9.0, "web#3")]
    log.write_text("".join(f"{rfc3339(at(one))} ✓ {name} v1 (127.0.0.1:1) answers healthy, version 1\n" for one, name in healthy))
    assert seconds_of_starts(log, [at(0.5), at(0.6), at(8.0)]) == pytest.approx(2.0)
    assert seconds_of_starts(log, []) == 0


@pytest.mark.parametrize("change", ["nothing", "colour=1", "rate=fast"])
def test_a_change_that_changes_nothing_is_refused(change):
    with pytest.raises(BadInputError):
        rollout.size_of([change], small=False)


def test_what_is_measured_can_be_changed():
    assert rollout.size_of(["requests=5", "stage=0.5"], small=False) == Size(requests=5, stage=0.5)
    with pytest.raises(BadInputError):
        rollout.chosen(["nonsense"])
    assert rollout.chosen([]) == rollout.SCENES
