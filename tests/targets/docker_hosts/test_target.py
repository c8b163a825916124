"""Production hosts with real dockerd, sshd, Envoy and guard: up, back, and what happens when something dies on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from azora_ci.core import config
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from azora_ci.targets.base import FencedError, Owner
from azora_ci.targets.release import Release
from tests.support import load
from tests.support.docker_world import HTTP_PORT, NEW, OLD, Lan, Load, World, get
from tests.support.rollback_world import MIGRATIONS, Surroundings
from tests.support.rollback_world import evidence as rollback_evidence
from tests.support.sshd import keygen
from tests.support.waiting import until

THIRD = "1764000200-cccccc"
SMALL = ("api_gateway",)  # where one service is enough


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[World]:
    docker_world = World(network, tmp_path)
    docker_world.built()
    yield docker_world
    docker_world.close()


def test_from_an_empty_host_to_100_percent_without_a_failed_request_and_back(world, s3_server, postgres_cluster):
    world.deploy_old()
    first_deployment_installed_everything(world)
    with Load(world) as load:
        code, output = world.finish(world.start())
        assert code == 0, output
        assert world.versions_now() == {"1.1.0"}
    assert load.failed == []
    assert load.versions["1.0.0"] > 10
    assert load.versions["1.1.0"] > 10
    assert world.running() == {"v1.0.0": world.instances, "v1.1.0": world.instances}  # the old version is kept as the rollback target
    evidence = world.fragment().evidence
    assert evidence["rollout_status"] == "completed"
    assert evidence["target"] == "docker_hosts"
    assert evidence["previous"] == {"version": "v1.0.0", "deployment_id": OLD}
    shares = [(stage["stage"], stage["traffic_percentage"], len(stage["instances"]), stage["status"]) for stage in evidence["stages"]]
    assert shares == [("canary", 5, 2, "healthy"), ("progressive", 50, 2, "healthy"), ("full", 100, 3, "healthy")]
    assert evidence["stages"][0]["weights"]["/api"] == {f"api_gateway-{OLD}": 95, f"api_gateway-{NEW}": 5}
    by_digest = {container.labels["world.azora.image"] for container in world.machines[0].containers(NEW)}
    assert by_digest == {f"{world.lan.registry}/{name}@{digest}" for name, digest in world.lan.digests["1.1.0"].items()}
    assert json.loads(get(world.machines[0].address, "/api/work")[2])["secret_length"] == len("not-to-be-seen")
    output_and_logs = output + "".join(path.read_text() for path in (world.folder / "job-1").rglob("*") if path.is_file())
    assert "not-to-be-seen" not in output_and_logs
    assert "PRIVATE KEY" not in output_and_logs
    rerun_recognises_it(world)
    people_can_look(world)
    surroundings = Surroundings(world.folder, s3_server, postgres_cluster.fresh(MIGRATIONS))
    try:
        it_is_taken_back_by_hand_within_its_window(world, surroundings)
    finally:
        surroundings.close()


def people_can_look(world: World) -> None:
    for words in (("edge", "log"), ("edge", "status"), ("lock", "status"), ("doctor",)):
        argv = [sys.executable, "-m", "azora_ci", *words, "--config", str(world.config_path)]
        completed = subprocess.run(argv, env=world.environ(3), cwd=world.folder, capture_output=True, text=True, timeout=120, check=False)
        # The doctor looks at the repository, too, and the folder of a test is none.
        assert completed.returncode == (1 if words == ("doctor",) else 0), completed.stdout + completed.stderr
        assert "v1.1.0" in completed.stdout or words in {("edge", "log"), ("lock", "status")}
    host = world.machines[0].alias
    for name in ("connection", "host key", "AllowTcpForwarding", "AllowStreamLocalForwarding", "Docker", "clock", "memory and disk"):
        assert f"✓ {host}: {name}: " in completed.stdout, completed.stdout
    assert f"✓ {host}: guard: runs and answers" in completed.stdout
    assert f"✓ {host}: edge: runs, " in completed.stdout


def it_is_taken_back_by_hand_within_its_window(world: World, surroundings: Surroundings) -> None:
    world.backup = surroundings.backup
    world.configure()
    kept_record = surroundings.keep()
    with Load(world) as load:
        code, output = world.finish(world.start("rollback", 8, **surroundings.variables))
        assert code == 0, output
        back_on_old(world)
    assert load.failed == []
    evidence = rollback_evidence(world.folder, 8)
    assert (evidence["to"], evidence["proved"], evidence["requests_after"]) == ({"version": "v1.0.0", "deployment_id": OLD}, True, 0)
    assert (evidence["smoke_status"], evidence["already_back"], len(evidence["instances"])) == ("passed", False, world.instances)
    (rollback_record,) = surroundings.rollback_records()
    assert (rollback_record["status"], rollback_record["deployment_record"]["sha256"]) == ("completed", kept_record.sha256)
    assert surroundings.slack.texts()[0].startswith("↩️ Production rolled back\nVersion: v1.1.0 → v1.0.0")
    assert world.target().current().serving == OLD
    printed_lines = [line for line in output.splitlines() if not line.startswith("::add-mask::")]
    file_texts = [path.read_text() for path in (world.folder / "job-8").rglob("*") if path.is_file()]
    assert not [text for text in (*printed_lines, *file_texts) if "PRIVATE KEY" in text or "not-to-be-seen" in text]


def first_deployment_installed_everything(world: World) -> None:
    assert world.versions_now() == {"1.0.0"}
    assert world.running() == {"v1.0.0": 3}
    names = {container.name for container in world.machines[0].client.containers.list()}
    assert {"azora-edge", "azora-guard"} <= names
    subnet = world.machines[0].client.networks.get("azora-to-api_gateway").attrs["Containers"].values()
    assert "azora-guard" not in {member["Name"] for member in subnet}  # guard and admin port are on a network that no instance joins


def rerun_recognises_it(world: World) -> None:
    before = world.edge_state(world.machines[0])
    code, output = world.finish(world.start(attempt=2))
    assert code == 0, output
    assert "already promoted" in output
    assert world.fragment(attempt=2).evidence["rollout_status"] == "completed"
    assert world.edge_state(world.machines[0]) == before
    assert world.running() == {"v1.0.0": world.instances, "v1.1.0": world.instances}


def back_on_old(world: World) -> None:
    """Users get the old version only, and nothing of the new one runs."""
    assert world.versions_now() == {"1.0.0"}
    assert world.running() == {"v1.0.0": world.instances}


def test_whatever_ends_a_rollout_takes_all_traffic_back(world):
    world.deploy_old()
    with Load(world) as load:
        step = world.start(PROGRESSIVE_MINUTES="2")
        world.wait_for_weight(50, step)
        world.flag("1.1.0.api_gateway.sick")
        code, output = world.finish(step)
        assert code == 1, output
        back_on_old(world)
    assert load.failed == []
    evidence = world.fragment().evidence
    assert evidence["rollout_status"] == "rolled_back"
    assert evidence["abort"]["proved"] is True, evidence["abort"]
    assert evidence["abort"]["seconds_to_safe"] < 5
    cause = evidence["abort"]["cause"]
    assert (cause["kind"], cause["service"], cause["log_problem"]) == ("health", "api_gateway", None)
    assert "GET /api/health: 500, the service answered so" in cause["examples"][0]  # read from the edge's container
    log_names = [path.name for path in (world.folder / "job-1" / "instances").iterdir()]
    assert any(f"{NEW}-api_gateway-" in name for name in log_names)
    stopped = world.machines[0].client.containers.list(all=True, filters={"label": f"world.azora.deployment-id={NEW}"})
    assert {container.status for container in stopped} == {"exited"}  # kept, for whoever looks for the cause
    world.unflag("1.1.0.api_gateway.sick")
    a_second_deployment_is_refused_and_changes_nothing(world)
    a_cancelled_run_takes_traffic_back_within_five_seconds(world)


def a_second_deployment_is_refused_and_changes_nothing(world: World) -> None:
    target = world.target()
    other_id = "1764000200-cccccc"
    with target.locked(Owner(other_id, "https://runs.example/7", "somebody")):
        code, output = world.finish(world.start(attempt=2))
    assert code == 1, output
    assert "somebody" in output
    assert "https://runs.example/7" in output
    back_on_old(world)
    assert target.holder() is None
    with target.locked(Owner(other_id, "https://runs.example/7", "somebody")):
        assert world.target().holder().owner.actor == "somebody"
        assert world.target().unlock("its machine is gone", "alice").owner.deployment_id == other_id
        with pytest.raises(FencedError, match="superseded"):
            target.finish_stage(world.release("1.1.0", NEW), {})
        until(lambda: refused(target), "its lock is known to be lost")


def refused(target) -> bool:
    try:
        target.renew()
    except FencedError:
        return True
    return False


def a_cancelled_run_takes_traffic_back_within_five_seconds(world: World) -> None:
    world.flag("1.1.0.deaf")  # and nothing of the new version ends by itself
    step = world.start(attempt=3, PROGRESSIVE_MINUTES="5")
    world.wait_for_weight(50, step)
    step.send_signal(signal.SIGTERM)
    until(lambda: world.edge_state(world.machines[0])["percent"] == 0, "old weights", 5)
    code, output = world.finish(step)
    assert code == 1, output
    world.unflag("1.1.0.deaf")
    back_on_old(world)
    fragment = world.fragment(attempt=3)
    assert (fragment.status, fragment.evidence["rollout_status"]) == ("cancelled", "cancelled")
    assert fragment.evidence["abort"]["proved"] is True


# --- several hosts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_hosts(network: Lan, tmp_path: Path) -> Iterator[World]:
    docker_world = World(network, tmp_path, 2, services=SMALL)
    docker_world.built()
    yield docker_world
    for machine in docker_world.machines:
        machine.sshd.start()
    docker_world.close()


def test_two_hosts_move_together_and_go_back_together(two_hosts):
    world = two_hosts
    near, far = world.machines
    world.deploy_old()
    far.sshd.stop()
    code, output = world.finish(world.start(attempt=1))  # one is out of reach before: nothing starts
    assert code == 3, output
    assert far.alias in output
    assert far.address not in output
    back_on_old(world)
    far.sshd.start()
    with Load(world) as load:
        step = world.start(attempt=2, PROGRESSIVE_MINUTES="5")
        world.wait_for_weight(50, step)
        far.sshd.stop()  # out of reach during a stage: all go back, this one by its lease
        code, output = world.finish(step)
        assert code in {1, 3}, output
        assert world.versions_now(near) == {"1.0.0"}
        until(lambda: world.edge_state(far)["percent"] == 0, "the guard goes back by itself", world.lease + 5)
        assert world.versions_now(far) == {"1.0.0"}
        abort = world.fragment(attempt=2).evidence["abort"]
        assert abort["proved"] is False
        assert f"{far.alias}: not reached" in abort["detail"]
        far.sshd.start()
        code, output = world.finish(world.start(attempt=3))
        assert code == 0, output
        assert world.versions_now() == {"1.1.0"}
    assert load.failed == []
    assert load.versions["1.1.0"] > 10
    assert world.running() == {"v1.0.0": world.instances, "v1.1.0": world.instances}
    stages = world.fragment(attempt=3).evidence["stages"]
    assert [len(stage["instances"]) for stage in stages] == [2, 2, 4]  # every host has its share


@pytest.mark.faults
def test_a_path_that_fails_on_one_instance_is_named_with_it(network, tmp_path):
    world = World(network, tmp_path, services=SMALL)
    world.built()
    try:
        world.deploy_old()
        (machine,) = world.machines
        with load.Load([(machine.address, HTTP_PORT)], ("/api/work", "/api/orders?token=geheim"), pause=0.005, threads=2):
            step = world.start(FULL_MINUTES="2")
            world.wait_for_weight(100, step)
            (sick,) = [container for container in machine.containers(NEW) if container.name.endswith("-2")]
            world.flag(f"1.1.0.orders.{sick.id[:12]}")
            code, output = world.finish(step)
        assert code == 1, output
        back_on_old(world)
        cause = world.fragment().evidence["abort"]["cause"]
        assert cause["kind"] == "errors"
        assert cause["instance"].startswith("api_gateway#2 v1.1.0 (")
        assert [row["path"] for row in cause["paths"]] == ["GET /api/orders"]
        assert cause["instance"] in cause["examples"][0]
        argv = [sys.executable, "-m", "azora_ci", "edge", "log", "--version", "v1.1.0", "--config", str(world.config_path)]
        completed = subprocess.run(argv, env=world.environ(3), cwd=world.folder, capture_output=True, text=True, timeout=120, check=True)
        assert "the service answered so" in completed.stdout
        assert "geheim" not in completed.stdout + output
        log_config = machine.client.containers.get("azora-edge").attrs["HostConfig"]["LogConfig"]
        assert log_config == {"Type": "json-file", "Config": {"max-size": "20m", "max-file": "3"}}
    finally:
        world.close()


# --- refused before anything moves -----------------------------------------------------------------------------------------


class WrongClock(Clock):
    """A runner whose clock is an hour ahead, or a host whose clock is an hour behind."""

    def now(self):
        return super().now() + timedelta(hours=1)


def test_what_is_refused_before_anything_moves(world):
    stranger = keygen(world.folder / "stranger").with_suffix(".pub").read_text().split()[:2]
    machine = world.machines[0]
    with pytest.raises(NotTrueError, match="ost key"):
        world.target(PROD_KNOWN_HOSTS=f"{machine.address} {' '.join(stranger)}\n").current()
    with pytest.raises(BadInputError, match="refuses the key"):
        world.target(PROD_KEY=(world.folder / "stranger").read_text()).current()
    with pytest.raises(BadInputError, match="No host key is pinned"):
        world.target(PROD_KNOWN_HOSTS=None).current()
    assert world.target(PROD_KNOWN_HOSTS=None, accept_new=True).current().releases == {}
    assert machine.sshd.known_hosts.split()[2] in (world.folder / "target.log").read_text()  # to be pinned from now on
    assert machine.client.containers.list(all=True) == []
    world.clock = WrongClock()
    with pytest.raises(NotTrueError, match="clock is off"), world.target().locked(Owner(OLD, "https://runs.example/1", "tests")):
        pass
    world.clock = Clock()
    services = tuple(replace(service, memory="4096g") for service in world.config.services)
    world.config, config_before = replace(world.config, services=services), world.config
    greedy = world.target()
    with pytest.raises(NotTrueError, match="too little memory"), greedy.locked(Owner(OLD, "https://runs.example/1", "tests")):
        greedy.deploy(world.release("1.0.0", OLD), 100)
    world.config = config_before
    target = world.target()
    missing = Release(NEW, "v1.1.0", dict.fromkeys(world.lan.digests["1.1.0"], "sha256:" + "0" * 64))
    with target.locked(Owner(NEW, "https://runs.example/1", "tests")):
        with pytest.raises(NotTrueError, match="image cannot be pulled"):
            target.deploy(missing, 100)
        assert target.abort(missing, "no image").to is None
    assert world.running() == {}


def test_access_that_is_not_set_is_named(world):
    code, output = world.finish(world.start(PROD_HOST="", PROD_KEY=""))
    assert code == 2, output
    assert "PROD_HOST, PROD_KEY" in output


# --- hosts that differ (what breaks on the way is in tests/faults/rollout_table.py) -----------------------------------------


@pytest.mark.faults
def test_a_promotion_that_reached_one_host_only_is_finished_by_a_rerun(two_hosts):
    world = two_hosts
    near, far = world.machines
    world.deploy_old()
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(Owner(NEW, "https://runs.example/1", "tests")):
        for percent in (5, 50, 100):
            target.deploy(release, percent)
            target.set_weight(release, percent)
        new_addresses = {instance.address for instance in target.instances(NEW) if instance.host == far.alias}
        assert len(new_addresses) == 2
        far.sshd.stop()
        with pytest.raises(UnreachableError):
            target.promote(release)
        assert target.current().serving == NEW
    until(lambda: world.edge_state(far)["percent"] == 0, "the guard goes back by itself", world.lease + 5)
    assert (world.versions_now(near), world.versions_now(far)) == ({"1.1.0"}, {"1.0.0"})
    far.sshd.start()
    code, output = world.finish(world.start())
    assert code == 0, output
    assert "already promoted" in output
    assert world.versions_now() == {"1.1.0"}
    (far_release,) = (edge_release for edge_release in world.edge_state(far)["releases"] if edge_release["id"] == NEW)
    assert set(far_release["endpoints"]["api_gateway"]) == new_addresses  # its guard had gone back to what it knew at the first stage
    another_one_that_was_left_is_taken_back_first(world)


def another_one_that_was_left_is_taken_back_first(world: World) -> None:
    target = world.target()
    with target.locked(Owner(THIRD, "https://runs.example/2", "tests")):
        target.deploy(world.release("1.1.0", THIRD), 5)
    code, output = world.finish(world.start(attempt=2))
    assert code == 0, output
    assert f"({THIRD}) was left at 0 %" in output
    assert "already promoted" in output
    assert world.versions_now() == {"1.1.0"}


@pytest.mark.faults
def test_a_host_that_is_behind_and_has_an_old_guard_is_brought_up_first(two_hosts):
    world = two_hosts
    near, far = world.machines
    world.deploy_old()
    far.reset()
    world.lease = 7.0  # the guards are configured anew: they are replaced
    world.config = config.load(world.configure())
    code, output = world.finish(world.start())
    assert code == 0, output
    assert f"{far.alias} is behind: it is brought to v1.0.0" in output
    assert world.versions_now() == {"1.1.0"}
    assert world.running() == {"v1.0.0": world.instances, "v1.1.0": world.instances}
    command = near.client.containers.get("azora-guard").attrs["Config"]["Cmd"]
    assert command[-2:] == ["--lease-seconds", "7"]
