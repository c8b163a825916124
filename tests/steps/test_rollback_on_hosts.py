"""These tests run the rollback step on production hosts with real dockerd, sshd, Envoy and guard, and lose hosts on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import schemas
from azora_ci.record import rollback
from azora_ci.targets.base import Owner
from tests.conftest import DatabaseMaker
from tests.faults.rollout_world import lose
from tests.support.chain import broken_links
from tests.support.docker_world import NEW, OLD, Lan, Load, World, lan
from tests.support.rollback_world import MIGRATIONS, Surroundings, evidence
from tests.support.stores import Stores
from tests.support.waiting import until

pytestmark = pytest.mark.faults
SMALL = ("api_gateway",)
THIRD = "1764000200-cccccc"


@dataclass
class Production:
    """1.1.0 is in production after 1.0.0 on some hosts, and its record is archived."""

    world: World
    around: Surroundings
    attempt: int = 20

    def start(self, **more: str) -> Any:
        self.attempt += 1
        return self.world.start("rollback", self.attempt, **{**self.around.variables, **more})

    def back(self, **more: str) -> tuple[int, str]:
        return self.world.finish(self.start(**more))

    def look(self, *words: str) -> tuple[int, str]:
        """Run a command as a person at a keyboard does and return its exit code and output."""
        argv = [sys.executable, "-m", "azora_ci", *words, "--config", str(self.world.config_path)]
        environ, folder = self.world.environ(1), self.world.folder
        completed = subprocess.run(argv, env=environ, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        return completed.returncode, completed.stdout + completed.stderr

    def evidence(self) -> dict[str, Any]:
        return evidence(self.world.folder, self.attempt)

    def untouched(self) -> bool:
        """Return whether 1.1.0 serves everywhere, nobody holds the lock, and the step journalled and archived nothing."""
        target, world = self.world.target(), self.world
        journal = target.current()
        states = [world.edge_state(machine) for machine in world.machines]
        same = all((state["stable"], state["canary"]) == (NEW, None) for state in states)
        journalled = (journal.serving, journal.releases[NEW].going_back, target.holder()) == (NEW, False, None)
        return same and journalled and world.versions_now() == {"1.1.0"} and not self.around.rollback_records()

    def refused(self, *words: str, **more: str) -> None:
        code, output = self.back(**more)
        assert code == 1, output
        for word in words:
            assert word in output, output
        assert self.untouched()
        assert self.around.slack.texts() == []


def put_up(world: World, version: str, deployment_id: str) -> None:
    target, release = world.target(), world.release(version, deployment_id)
    with target.locked(Owner(deployment_id, "https://runs.example/2", "tests")):
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    with lan(tmp_path_factory.mktemp("lan")) as network:
        yield network


@pytest.fixture(scope="module")
def database(postgres_cluster: DatabaseMaker) -> str:
    return postgres_cluster.fresh(MIGRATIONS)


def production_on(network: Lan, folder: Path, stores: Stores, database: str, hosts: int) -> Iterator[Production]:
    around = Surroundings(folder, stores, database)
    world = World(network, folder, hosts, services=SMALL, backup=around.backup)
    world.deploy_old()
    put_up(world, "1.1.0", NEW)
    try:
        yield Production(world, around)
    finally:
        for machine in world.machines:
            machine.sshd.start()
        world.close()
        around.close()


@pytest.fixture
def one_host(network: Lan, tmp_path: Path, s3_server: Stores, database: str) -> Iterator[Production]:
    yield from production_on(network, tmp_path, s3_server, database, 1)


@pytest.fixture
def two_hosts(network: Lan, tmp_path: Path, s3_server: Stores, database: str) -> Iterator[Production]:
    yield from production_on(network, tmp_path, s3_server, database, 2)


def test_what_is_refused_changes_nothing_and_a_second_press_is_recognised(one_host):
    production, world = one_host, one_host.world
    production.around.keep(minutes_ago=61)
    production.refused("::error title=After the deadline%3A manual intervention required", "1 minutes ago", "--after-deadline")
    world.flag("1.0.0.api_gateway.sick")
    production.refused("The version before is not there any more", "0 of 2 instances of v1.0.0 are healthy", ROLLBACK_AFTER_DEADLINE="true")
    world.unflag("1.0.0.api_gateway.sick")
    gone = world.machines[0].containers(OLD)[0]
    gone.stop(timeout=1)
    production.refused("1 of 2 instances of v1.0.0 are healthy", "nothing was changed", ROLLBACK_AFTER_DEADLINE="true")
    gone.start()
    with Load(world) as load:
        code, output = production.back(ROLLBACK_AFTER_DEADLINE="true")
        assert code == 0, output
        assert world.versions_now() == {"1.0.0"}
        assert (production.evidence()["after_deadline"], production.evidence()["already_back"]) == (True, False)
        code, output = production.back(DEPLOYMENT_ID=NEW, ROLLBACK_AFTER_DEADLINE="true")
        assert code == 0, output
    assert load.failed == []
    assert production.evidence()["already_back"] is True
    assert world.running() == {"v1.0.0": world.instances}
    chain = production.around.chain()
    assert [link.key.rsplit("/", 1)[1] for link in chain] == ["1.json", "rollback-1.json", "rollback-2.json"]
    assert broken_links([link.data for link in chain]) == []
    for link in chain[1:]:
        schemas.validate(link.document, rollback.SCHEMA, where=link.key)


def test_a_rollout_under_way_is_fenced_and_changes_nothing_any_more(one_host):
    production, world = one_host, one_host.world
    production.around.keep()
    built(world, THIRD)
    rollout = world.start(attempt=2, DEPLOYMENT_ID=THIRD, VERSION="v1.0.0", CANARY_MINUTES="5", HEALTH_CHECK_RETRIES="1000")
    until(lambda: rollout.poll() is not None or world.edge_state(world.machines[0])["percent"] == 5, "5 % for the third", 60)
    assert rollout.poll() is None, rollout.communicate()[0]
    with Load(world) as load:
        code, output = production.back()
        assert code == 0, output
        rollout_code, rollout_output = world.finish(rollout)
        assert world.versions_now() == {"1.0.0"}
    assert load.failed == []
    assert rollout_code == 1, rollout_output
    assert f"took over the lock of {THIRD}" in output
    assert production.evidence()["fenced"] == THIRD
    assert world.target().current().serving == OLD
    assert world.machines[0].containers(THIRD) == world.machines[0].containers(NEW) == []
    assert len(world.machines[0].containers(OLD)) == world.instances


def built(world: World, deployment_id: str) -> None:
    """Write the fragment of a build that gives another deployment the oldest images."""
    world.built()
    path = world.folder / "received" / f"build-logs-{NEW}"
    text = (path / "record" / "build-and-push.json").read_text().replace(NEW, deployment_id).replace("v1.1.0", "v1.0.0")
    for name, digest in world.digests("1.1.0").items():
        text = text.replace(digest, world.digests("1.0.0")[name])
    path = path.rename(path.with_name(f"build-logs-{deployment_id}"))
    (path / "record" / "build-and-push.json").write_text(text)


def test_a_host_out_of_reach_is_left_out_said_and_finished_by_a_second_press(two_hosts):
    production, (near, far) = two_hosts, two_hosts.world.machines
    production.around.keep()
    far.sshd.stop()
    code, output = production.back()
    assert code == 1, output
    assert (production.world.versions_now(near), production.world.versions_now(far)) == ({"1.0.0"}, {"1.1.0"})
    assert "Not every production host was taken back" in output
    assert f"{far.alias}: not reached" in output
    assert "the new version still serves there" in output
    assert "run the same rollback again" in output
    (first,) = production.around.rollback_records()
    assert (first["status"], first["proved"], first["already_back"]) == ("unverified", False, False)
    assert any(far.alias in note for note in first["notes"])
    code, output = production.look("edge", "status")
    assert (code, f"{far.alias}: Production host cannot be reached" in output) == (3, True), output
    assert "v1.0.0" in output  # the command still prints what the other host reports
    assert production.look("lock", "status")[0] == 3
    code, output = production.look("doctor")
    assert (code, f"✗ {far.alias}" in output, "✓ hosts: the others answer" in output) == (1, True, True), output
    assert "needs attention" in production.around.slack.texts()[0]
    far.sshd.start()
    code, output = production.look("edge", "status")
    assert (code, f"/api on {far.alias}" in output, "Run the same rollback again" in output) == (0, True, True), output
    assert "✗ rollout: v1.1.0" in production.look("doctor")[1]
    with Load(production.world) as load:
        code, output = production.back()
        assert code == 0, output
        assert production.world.versions_now() == {"1.0.0"}
    assert load.failed == []
    assert [record["status"] for record in production.around.rollback_records()] == ["unverified", "completed"]
    assert production.world.running() == {"v1.0.0": production.world.instances}


def begun(production: Production) -> subprocess.Popen[str]:
    """Start a rollback and return its process when every host's files hold the old weights and the step still proves that."""
    step, world = production.start(), production.world
    until(lambda: all(world.edge_state(host)["stable"] == OLD for host in world.machines) or step.poll() is not None, "old weights", 60)
    assert step.poll() is None, step.communicate()[0]
    return step


def test_a_rollback_that_was_cancelled_or_killed_leaves_the_old_version_and_is_finished_by_the_next(two_hosts):
    production, world = two_hosts, two_hosts.world
    production.around.keep()
    step = begun(production)
    step.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, output = world.finish(step)
    assert (code, time.monotonic() - began < 10) == (1, True), output
    assert world.versions_now() == {"1.0.0"}
    assert production.around.rollback_records() == []
    put_up(world, "1.1.0", THIRD)  # the second rollback loses its runner
    previous = {"previous_deployment_id": OLD, "previous_version": "v1.0.0"}
    production.around.keep(THIRD, **previous)
    step = begun(production)
    lose(step)
    assert world.versions_now() == {"1.0.0"}
    code, output = production.back()
    assert code == 1, output
    assert "a rollback by octocat is running: checkout fails" in output
    assert "it holds the lock until" in output
    until(lambda: world.target().holder() is None, "the lock of the dead has expired", 60)
    with Load(world) as load:
        code, output = production.back()
        assert code == 0, output
    assert load.failed == []
    assert [record["status"] for record in production.around.rollback_records()] == ["completed"]
    assert world.running() == {"v1.0.0": world.instances}


def test_with_no_host_in_reach_or_one_that_lost_the_version_before_nothing_is_changed(two_hosts):
    production, (near, far) = two_hosts, two_hosts.world.machines
    production.around.keep()
    for machine in (near, far):
        machine.sshd.stop()
    code, output = production.back()
    assert code == 3, output
    assert "Production host cannot be reached" in output
    for machine in (near, far):
        machine.sshd.start()
    assert production.untouched()
    for container in far.containers(OLD):
        container.stop(timeout=1)
    production.refused(f"2 of {production.world.instances} instances of v1.0.0 are healthy", f"on {far.alias}")
