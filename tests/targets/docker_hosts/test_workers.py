"""Workers on production hosts: with their image's HEALTHCHECK, an entrypoint and command of their own, on one host and on two."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.rollback import previous_version
from azora_ci.targets.base import Owner
from tests.support.docker_world import NEW, OLD, Lan, Load, World
from tests.support.waiting import until

OWNER = Owner(NEW, "https://runs.example/2", "tests")
MAILER = {"instances": 4, "entrypoint": ["python3", "-S"], "command": ["/app/worker.py", "--queue", "mail"], "talks_to": ["api_gateway"]}


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[World]:
    docker_world = World(network, tmp_path, services=("api_gateway",), workers={"mailer": MAILER})
    docker_world.built()
    yield docker_world
    docker_world.close()


@pytest.fixture
def two_hosts(network: Lan, tmp_path: Path) -> Iterator[World]:
    docker_world = World(network, tmp_path, 2, services=("api_gateway",), workers={"mailer": MAILER | {"instances": 2}})
    docker_world.built()
    yield docker_world
    docker_world.close()


def events(world: World) -> list[str]:
    """Return what the workers noted, oldest first: "starts 1.0.0", "ends 1.0.0"."""
    return [line.rpartition(" ")[0] for line in (world.flags / "mailer.log").read_text().splitlines()]


def resting(world: World, release: str) -> int:
    return sum(instance.resting for instance in world.target().instances(release))


def nothing_but_the_old_version_runs(world: World) -> None:
    assert "ends 1.0.0" not in events(world)
    assert (world.running_workers(), world.running()) == ({"v1.0.0": 4}, {"v1.0.0": 2})
    assert world.versions_now() == {"1.0.0"}


def test_from_an_empty_host_to_100_percent_and_back(world):
    world.deploy_old()
    with Load(world) as load:
        code, output = world.finish(world.start())
        assert code == 0, output
    assert load.failed == []
    evidence = world.fragment().evidence
    counts = [sum(name.startswith("mailer#") for name in stage["instances"]) for stage in evidence["stages"]]
    assert counts == [1, 2, 4]
    assert "✓ mailer#2 v1.1.0 (host-1) runs, its HEALTHCHECK says healthy" in output
    assert events(world) == ["starts 1.0.0"] * 4 + ["starts 1.1.0"] * 4 + ["ends 1.0.0"] * 4
    assert (world.running_workers(), world.running()) == ({"v1.1.0": 4}, {"v1.0.0": 2, "v1.1.0": 2})
    (first, *_) = [container for container in world.machines[0].containers(NEW) if "mailer" in container.name]
    assert first.logs().decode().strip() == "mailer 1.1.0 starts with ['--queue', 'mail']"
    people_see_them(world)
    it_goes_back(world)


def people_see_them(world: World) -> None:
    shown = {}
    for words in (("edge", "status"), ("doctor",)):
        argv = [sys.executable, "-m", "azora_ci", *words, "--config", str(world.config_path)]
        completed = subprocess.run(argv, env=world.environ(3), cwd=world.folder, capture_output=True, text=True, timeout=120, check=False)
        shown[words[0]] = completed.stdout
    assert f"v1.0.0 ({OLD}, rollback target): 6 instances, 4 of them workers at rest" in shown["edge"]
    assert f"✓ instances: v1.1.0 ({NEW}) serves, every instance runs" in shown["doctor"]
    world.flag("1.1.0.mailer.unhealthy")
    until(lambda: "mailer#3 v1.1.0 (host-1): its HEALTHCHECK says unhealthy" in doctor(world), "the doctor names the worker", 60)
    world.unflag("1.1.0.mailer.unhealthy")


def doctor(world: World) -> str:
    argv = [sys.executable, "-m", "azora_ci", "doctor", "--config", str(world.config_path)]
    return subprocess.run(argv, env=world.environ(4), cwd=world.folder, capture_output=True, text=True, timeout=120, check=False).stdout


def it_goes_back(world: World) -> None:
    target = world.target()
    with target.locked(OWNER):
        before = target.current().releases[OLD]
        looked = previous_version.look(target, world.config, world.clock, before=before, leaving=NEW)
        assert (looked.sick, looked.resting, looked.healthy) == ((), 4, 2)
        returned = target.abort(world.release("1.1.0", NEW), "a test")
    assert returned.proved, returned.detail
    assert "its workers run again: mailer#3 v1.0.0 on host-1" in returned.detail
    assert events(world)[-8:] == ["ends 1.1.0"] * 4 + ["starts 1.0.0"] * 4
    assert (world.running_workers(), world.running()) == ({"v1.0.0": 4}, {"v1.0.0": 2})
    assert resting(world, OLD) == 0


def test_workers_that_do_not_hold_take_the_release_back(world):
    world.deploy_old()
    world.flag("1.1.0.mailer.ends")
    code, output = world.finish(world.start(HEALTH_CHECK_TIMEOUT="20"))
    assert code == 1, output
    assert "A new worker did not become healthy" in output
    assert "exit code 3" in output or "was started again" in output  # whether it is seen between two starts or after one
    nothing_but_the_old_version_runs(world)
    world.unflag("1.1.0.mailer.ends")
    one_that_turns_unhealthy_at_50_percent(world)
    one_that_restarts_in_a_loop(world)
    a_cancelled_run(world)


def one_that_turns_unhealthy_at_50_percent(world: World) -> None:
    step = world.start(attempt=2, PROGRESSIVE_MINUTES="2")
    world.wait_for_weight(50, step)
    world.flag("1.1.0.mailer.unhealthy")
    code, output = world.finish(step)
    assert code == 1, output
    assert "worker mailer not healthy" in output
    evidence = world.fragment(2).evidence
    assert "its HEALTHCHECK says unhealthy" in evidence["abort"]["reason"]
    assert (evidence["rollout_status"], evidence["abort"]["proved"]) == ("rolled_back", True)
    world.unflag("1.1.0.mailer.unhealthy")
    nothing_but_the_old_version_runs(world)


def one_that_restarts_in_a_loop(world: World) -> None:
    step, before = world.start(attempt=3, PROGRESSIVE_MINUTES="2"), events(world).count("ends by itself 1.1.0")
    world.wait_for_weight(50, step)
    world.flag("1.1.0.mailer.ends")
    until(lambda: events(world).count("ends by itself 1.1.0") > before, "it ended", 30)
    world.unflag("1.1.0.mailer.ends")  # so that it runs again after its restarts, which count nevertheless
    code, output = world.finish(step)
    assert code == 1, output
    assert "worker mailer not healthy" in output
    assert "was started again" in world.fragment(3).evidence["abort"]["reason"]
    nothing_but_the_old_version_runs(world)


def a_cancelled_run(world: World) -> None:
    step = world.start(attempt=4, PROGRESSIVE_MINUTES="2")
    world.wait_for_weight(50, step)
    step.send_signal(signal.SIGTERM)
    code, output = world.finish(step)
    assert code == 1, output
    assert world.fragment(4).status == "cancelled"
    nothing_but_the_old_version_runs(world)


def test_a_runner_that_is_killed_leaves_no_worker_behind_once_it_is_rerun(two_hosts):
    world = two_hosts
    world.deploy_old()
    step = world.start(PROGRESSIVE_MINUTES="2")
    world.wait_for_weight(50, step)
    step.kill()
    world.finish(step)
    until(lambda: all(world.edge_state(machine)["percent"] == 0 for machine in world.machines), "the guards went back", 60)
    assert world.running_workers() == {"v1.0.0": 4, "v1.1.0": 2}  # a guard stops nothing: the old workers never stopped
    code, output = world.finish(world.start(attempt=2))
    assert code == 0, output
    assert events(world)[4:] == [*["starts 1.1.0"] * 2, *["ends 1.1.0"] * 2, *["starts 1.1.0"] * 4, *["ends 1.0.0"] * 4]
    assert (world.running_workers(), resting(world, OLD)) == ({"v1.1.0": 4}, 4)
    one_whose_container_is_gone(world)


def one_whose_container_is_gone(world: World) -> None:
    (gone, *_) = world.machines[1].client.containers.list(all=True, filters={"name": f"azora-mailer-{OLD}"})
    gone.remove()
    target = world.target()
    with target.locked(OWNER):
        before = target.current().releases[OLD]
        looked = previous_version.look(target, world.config, world.clock, before=before, leaving=NEW)
        assert len(looked.sick) == 1
        assert "it cannot be started again, its container is gone" in looked.sick[0]
        returned = target.abort(world.release("1.1.0", NEW), "a test")
    assert not returned.proved
    assert "does not start again: its container" in returned.detail
    assert (world.running_workers(), world.versions_now()) == ({"v1.0.0": 3}, {"1.0.0"})
