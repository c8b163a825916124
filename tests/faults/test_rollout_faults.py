"""Drives ``rollout_table.ROWS``: every fault of a rollout on real hosts, and the end state that its row requires."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.pipeline import STAGES
from tests.faults.rollout_hosts import host_of_kind
from tests.faults.rollout_table import BEFORE, ROWS, Failed, Row, Runs
from tests.faults.rollout_users import Users
from tests.faults.rollout_world import Scene, configured
from tests.support.docker_world import Lan, World, lan
from tests.support.waiting import until

STAGE_AT = {percent: name for name, percent in STAGES}
SERVICES = ("api_gateway",)  # of two instances per host


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    with lan(tmp_path_factory.mktemp("lan")) as hosts_network:
        yield hosts_network


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=[] if row.sampled else pytest.mark.faults) for row in ROWS])
def test_fault(network: Lan, tmp_path: Path, row: Row) -> None:
    world = World(network, tmp_path, row.hosts, services=SERVICES)
    try:
        with host_of_kind(row.host, world), configured(world, lease=row.lease, rollout=dict(row.rollout)):
            world.deploy_old()
            world.built()
            with Users(world, row.users, keep=row.kept) as users:
                scene = Scene(world, users, dict(row.settings))
                try:
                    check_row(scene, row)
                finally:
                    scene.mend()
    finally:
        world.close()


def check_row(scene: Scene, row: Row) -> None:
    world, users = scene.world, scene.users
    before_run = routes_and_containers(scene)
    output, code = run(scene, row)
    ended = time.monotonic()
    assert code == row.end.code, output
    for words in row.logged:
        assert words in output, f"{words!r} was not logged:\n{output}"
    until(lambda: users.versions(world.machines) == row.end.users, f"users get {set(row.end.users)}", world.lease + 5)
    assert instances_run(scene, row.end.runs), world.running()
    if row.end.status is None and row.end.code > 0:
        assert routes_and_containers(scene) == before_run
    if row.end.code >= 0:
        evidence = world.fragment().evidence
        assert evidence.get("rollout_status") == row.end.status, evidence
        check_evidence(evidence, row)
    check_failed_requests(scene, row)
    if row.back_within is not None:
        lost = world.machines[-1] if row.hosts > 1 else None
        for host in world.machines:
            limit = world.lease + 5 if host is lost else row.back_within
            assert users.last_of_new(host) - scene.broke <= limit, f"{host.address}: {users.last_of_new(host) - scene.broke:.1f} s"
        assert ended - scene.broke <= row.back_within + world.lease + 5, f"the run ended {ended - scene.broke:.1f} s after the break"
    scene.mend()
    if row.end.rerun:
        code, output = world.finish(world.start(attempt=2))
        assert code == 0, output
        assert users.versions(world.machines) == {"1.1.0"}
        assert instances_run(scene, Runs.BOTH), world.running()


def run(scene: Scene, row: Row) -> tuple[str, int]:
    """Run the step and apply the row's cause at its moment; return its output and exit code."""
    world = scene.world
    if row.when == BEFORE:
        scene.broke = time.monotonic()
        row.broken(scene)
    scene.step = world.start(**scene.settings)
    if row.when != BEFORE:
        world.wait_for_weight(row.when, scene.step)
        if not row.moving:
            first_tick = re.compile(rf" {STAGE_AT[row.when]} .* probes [0-9]+/")
            until(lambda: first_tick.search(scene.log()), "the stage is being watched")
        scene.broke = time.monotonic()
        row.broken(scene)
    code, output = world.finish(scene.step)
    return output, code


def routes_and_containers(scene: Scene) -> list[tuple[object, set[str]]]:
    """Return every host's routes and containers, which a refused run must leave as they are."""
    return [
        (scene.world.edge_state(host), {container.id for container in host.client.containers.list(all=True)})
        for host in scene.world.machines
    ]


def instances_run(scene: Scene, runs: Runs) -> bool:
    """Say whether those instances run."""
    running, per_version = scene.world.running(), scene.world.instances
    if runs is Runs.OLD_AND_LEFT:
        return running["v1.0.0"] == per_version
    old, new = (per_version - 1 if runs is Runs.BOTH_BUT_ONE else per_version), (0 if runs is Runs.OLD else per_version)
    return running == +Counter({"v1.0.0": old, "v1.1.0": new})


def check_evidence(evidence: dict[str, object], row: Row) -> None:
    """Check that the evidence has every decision with its test, and of an abort the reason, the seconds, and whether it is proved."""
    if row.end.status is None:
        return
    assert "99%" in str(evidence["test"])
    if row.failed is Failed.WHILE_THE_EDGE_IS_DOWN:  # reported as what it is
        assert min(stage["availability"] for stage in evidence["stages"]) < 1  # type: ignore[attr-defined] # a JSON document
    for stage in evidence["stages"]:  # type: ignore[attr-defined] # a JSON document
        assert len(stage["decisions"]) == stage["ticks"]
        assert all(decision["reason"] for decision in stage["decisions"])
    abort = evidence["abort"]
    assert (abort is None) == (row.end.status == "completed")
    if isinstance(abort, dict):
        assert abort["reason"]
        assert abort["proved"] is ("NOT proved" not in row.logged and row.end.status != "failed"), abort
        assert row.end.status == "failed" or abort["seconds_to_safe"] < 5, abort


def check_failed_requests(scene: Scene, row: Row) -> None:
    """Check that only those GETs of users failed that may fail."""
    failed = scene.users.failed()
    allowed = {
        Failed.NONE: lambda answer: False,
        Failed.OF_NEW: lambda answer: answer.release == "1764000100-bbbbbb",
        Failed.OF_BOTH: lambda answer: answer.release != "",
        Failed.WHILE_THE_EDGE_IS_DOWN: lambda answer: answer.status in {0, 503},
    }[row.failed]
    wrong = [answer for answer in failed if not allowed(answer)]
    assert wrong == [], f"{len(wrong)} of {len(scene.users.answers)} GETs failed that may not: {wrong[:5]}"
