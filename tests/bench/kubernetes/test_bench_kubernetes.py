from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError
from tests.bench.kubernetes import audit, command, fleet, scenes, seen
from tests.bench.rollout import kills as rollout_kills

BENCH = [sys.executable, "-m", "tests.bench", "kubernetes", "--json"]
QUICK = ("load", "shares", "verdict", "fleet", "overhead")


def bench(folder: Path, names: tuple[str, ...], *words: str, seconds: float) -> dict:
    """Play scenes and return the file that they leave; the bench ends its cluster itself, also when it takes too long."""
    output = folder / "out.json"
    argv = [*BENCH, *(word for name in names for word in ("--scene", name)), *words, "--output", str(output)]
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME") if name in os.environ}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        printed, progress = process.communicate(timeout=seconds)
    finally:
        process.terminate()
        process.wait(60)
    document = json.loads(output.read_text())
    assert document["broken"] == {}, progress[-3000:]
    assert document == json.loads(printed)
    assert process.returncode == (0 if all(figure["holds"] for figure in document["figures"].values()) else 1)
    return document


@pytest.mark.kubernetes
@pytest.mark.faults  # of minutes
@pytest.mark.timeout(600)
def test_every_scene_is_measured_on_a_real_cluster(tmp_path):
    document = bench(tmp_path, QUICK, "--small", seconds=540)
    figures, told = document["figures"], document["scenes"]
    assert set(figures) == {name for name, bound in command.BOUNDS.items() if bound.scene in QUICK}
    values = {name: figure["value"] for name, figure in figures.items()}
    assert values["failed"] == 0
    assert figures["requests"]["holds"] is False  # so little proves nothing
    assert told["load"]["answered"] == told["load"]["requests"] + told["load"]["posts"] >= 300
    assert {name.partition(":")[0] for name in told["load"]["outcomes"]} == {"back from 5 %", "killed at 5 %", "up to 100 %"}
    assert 0 < values["share_at_5"] < 18
    assert 30 < values["share_at_50"] < 70
    assert set(told["verdict"]["by_stage"]) == {"5 %", "50 %", "100 %"}
    assert 0 < values["verdict_seconds"] < 20
    assert 0 < values["overhead_seconds"] < 60
    assert min(told["overhead"]["cluster_seconds"]) > 0
    assert 0 < values["cpu_share"] < 1
    assert told["fleet"]["by_kind"]["get pods/proxy"] >= 4 * 3  # each pod is probed at each stage
    assert told["fleet"]["requests_per_second_without_probes"] < values["requests_per_second"]


@pytest.mark.kubernetes
@pytest.mark.faults
@pytest.mark.timeout(2400)
def test_a_runner_is_killed_in_every_phase_and_all_traffic_comes_back(tmp_path):
    document = bench(tmp_path, ("kills",), seconds=2340)
    figures, kills = document["figures"], document["scenes"]["kills"]
    assert figures["kills_before_promotion"]["holds"], figures
    assert figures["worst_recovery_seconds"]["value"] <= kills["lease_seconds"] + 5
    planned = {moment["planned"] for moment in kills["moments"]}
    assert planned >= {phase.name for phase in rollout_kills.PHASES[:-1]} | set(scenes.POINTS)
    assert kills["moments_promoted"] >= 1
    assert kills["kill_requests_failed"]["GET"] == 0
    assert figures["kills_left_unnoted"]["holds"], figures


def document(status: dict, release: str = "1-a") -> dict:
    meta = {"name": "web", "generation": 3}
    template = {"metadata": {"annotations": {seen.RELEASE: release}}}
    return {"metadata": meta, "spec": {"template": template}, "status": {"observedGeneration": "3", **status}}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Healthy", "stableRS": "a", "currentPodHash": "a"}, (100, True)),
        ({"stableRS": "a", "currentPodHash": "b", "canary": {"weights": {"canary": {"weight": 5}}}}, (5, False)),
        (
            {
                "pauseConditions": [{"reason": "CanaryPauseStep"}],
                "stableRS": "a",
                "currentPodHash": "b",
                "canary": {"weights": {"canary": {"weight": 50}}},
            },
            (50, True),
        ),
        ({"abort": True, "stableRS": "a", "currentPodHash": "b"}, (0, False)),  # asked, and not done
        ({"abort": True, "abortedAt": "now", "stableRS": "a", "currentPodHash": "b"}, (0, True)),
        (
            {"abort": True, "abortedAt": "now", "stableRS": "a", "currentPodHash": "b", "canary": {"weights": {"canary": {"weight": 5}}}},
            (5, False),
        ),
        ({"phase": "Healthy", "stableRS": "a", "currentPodHash": "a", "observedGeneration": "2"}, (0, False)),
    ],
)
def test_what_a_rollout_says_from_outside(status, expected):
    told = seen.rollout(document(status))
    assert (told.percent, told.resting) == expected


class Replayed(seen.Seen):
    """A follower that is told its changes."""

    def __init__(self, changes: list[tuple[float, str, bool]]) -> None:
        told = [(moment, seen.Rollout(name, "1-a", False, 5, resting)) for moment, name, resting in changes]
        self.changes, self._lock, self._clock = told, threading.Lock(), Clock()


def test_the_cluster_is_at_work_while_one_rollout_is_not_at_rest():
    changes = [
        (0.0, "a", True),
        (0.0, "b", True),
        (1.0, "a", False),
        (2.0, "b", False),
        (3.0, "a", True),
        (4.5, "b", True),
        (9.0, "a", True),
    ]
    assert Replayed(changes).moving_seconds() == pytest.approx(3.5)


def test_requests_are_those_of_one_account(tmp_path):
    log = tmp_path / "audit.log"
    about = {"resource": "pods", "subresource": "proxy"}
    events = [
        ("us", "get", about, "2026-11-24T11:00:12.000000Z"),
        ("us", "list", {"resource": "rollouts"}, "2026-11-24T11:00:01.000000Z"),
        ("argo", "list", {"resource": "rollouts"}, "2026-11-24T11:00:01.000000Z"),
    ]
    log.write_text(
        "".join(
            json.dumps({"user": {"username": user}, "verb": verb, "objectRef": where, "requestURI": "/", "requestReceivedTimestamp": at})
            + "\n"
            for user, verb, where, at in events
        )
    )
    ours = audit.requests_of(log, "us")
    assert [(request.kind, request.probe) for request in ours] == [("list rollouts", False), ("get pods/proxy", True)]
    assert fleet.busiest(ours) == 0.1  # they are 11 s apart
    assert fleet.busiest([*ours, *ours[1:]]) == 0.2


def test_a_bound_holds_only_where_its_scene_was_measured_to_the_end():
    results = command.Results(
        None, {"kills": {"kills_before_promotion": 16, "worst_recovery_seconds": 11.2, "lease_seconds": 6, "kills_left_unnoted": 0}}
    )
    figures = results.figures()
    assert (figures["kills_before_promotion"]["holds"], figures["worst_recovery_seconds"]["holds"]) == (True, False)
    assert set(figures) == {"kills_before_promotion", "worst_recovery_seconds", "kills_left_unnoted"}
    results.scenes["kills"]["worst_recovery_seconds"] = 10.9
    assert results.hold
    results.broken["kills"] = "killed at 3 s: it did not come back"
    assert not results.hold
    assert not results.figures()["worst_recovery_seconds"]["holds"]
    missing = command.Results(None, {}, {"load": "no cluster"})
    assert missing.figures()["failed"] == {"value": None, "bound": "0", "holds": False}


def test_what_is_measured_can_be_chosen_and_changed():
    assert command.size_of(["rollouts=7", "fleet_stage=2"], small=False) == scenes.Size(rollouts=7, fleet_stage=2.0)
    for wrong in (lambda: command.size_of(["colour=1"], small=True), lambda: command.chosen(["nonsense"])):
        with pytest.raises(BadInputError):
            wrong()
    assert command.chosen([]) == tuple(command.WORK)
