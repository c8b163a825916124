"""Jobs and singletons on production hosts: one container over all of them, whatever happens to the runner."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.targets.base import Owner
from tests.support import ROOT
from tests.support.docker_world import NEW, Lan, Machine, World
from tests.support.waiting import until

KILLER = ROOT / "tests/support/killer"
JOURNAL, RUNNER = "azora_ci.targets.guard.client:GuardedJournal.add", "azora_ci.targets.docker_hosts.containers:Containers"
POINTS = {
    "job-created-and-not-noted": f"after {RUNNER}.create_job id='seed'",
    "job-noted-and-not-started": f"after {JOURNAL} 'job' 'created' 'seed'",
    "job-started": f"after {RUNNER}.start_job id='seed'",
    "job-ended-and-not-noted": f"before {JOURNAL} 'job' 'ended' 'seed'",
    "old-scheduler-stopped": f"after {RUNNER}.stop 'scheduler'",
    "new-scheduler-started-and-not-noted": f"after {RUNNER}.start id='scheduler'",
}


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[World]:
    once = {"entrypoint": ["python3", "-S"], "command": ["/app/once.py"]}
    beside = {"seed": {**once, "kind": "job"}, "scheduler": {**once, "singleton": True}}
    world = World(network, tmp_path, 2, services=("api_gateway",), workers=beside)
    world.built()
    world.deploy_old()
    target = world.target()
    with target.locked(Owner("1764000000-aaaaaa", "https://runs.example/1", "tests")):
        target.run_once("scheduler", world.release("1.0.0", "1764000000-aaaaaa"))
    yield world
    world.close()


class Schedulers:
    """Looks at the containers of the scheduler that run on any host."""

    def __init__(self, world: World) -> None:
        self._machines, self._over = world.machines, threading.Event()
        self.most, self.together = 0, ""  # the largest number at once, and what they were
        self._thread = threading.Thread(target=self._look, daemon=True)

    def running(self) -> list[tuple[Machine, str]]:
        """Return host and version of those that run now."""
        filters = {"label": "world.azora.service=scheduler"}
        return [
            (host, container["Labels"]["world.azora.version"])
            for host in self._machines
            for container in host.client.api.containers(filters=filters)
        ]

    def _look(self) -> None:
        while not self._over.is_set():
            running = self.running()
            if len(running) > self.most:
                self.most, self.together = len(running), str([(time.time(), host.alias, version) for host, version in running])
            time.sleep(0.01)

    def __enter__(self) -> Schedulers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def starts(world: World, service: str) -> list[str]:
    lines = [line.split() for line in (world.flags / f"{service}.stamps").read_text().splitlines()]
    return [version for event, version, *_ in lines if event == "start"]


def test_a_job_and_a_scheduler_run_on_one_of_two_hosts_and_going_back_brings_the_old_one(world):
    near = world.machines[0]
    with Schedulers(world) as schedulers:
        assert schedulers.running() == [(near, "v1.0.0")]
        code, output = world.finish(world.start())
        assert code == 0, output
        assert schedulers.running() == [(near, "v1.1.0")]
        assert starts(world, "seed") == ["1.1.0"]
        (job,) = world.fragment().evidence["jobs"]
        assert (job["exit_code"], job["passed"], job["host"], job["seconds"] > 0) == (0, True, near.alias, True)
        assert "secret has 14 characters" in (world.folder / "job-1" / job["log"]).read_text()
        assert near.client.containers.get(f"azora-job-seed-{NEW}").attrs["State"]["ExitCode"] == 0
        code, output = world.finish(world.start(attempt=2))
        assert code == 0, output
        assert starts(world, "seed") == ["1.1.0"]
        target = world.target()
        with target.locked(Owner(NEW, "https://runs.example/3", "tests", fence="a test")):
            returned = target.abort(world.release("1.1.0", NEW), "a test")
        assert returned.proved, returned.detail
        assert schedulers.running() == [(near, "v1.0.0")]
    assert schedulers.most == 1, schedulers.together


@pytest.mark.parametrize("point", [pytest.param(point, id=name) for name, point in POINTS.items()])
def test_a_later_run_finishes_what_a_killed_one_left(world, point):
    with Schedulers(world) as schedulers:
        code, output = world.finish(world.start(PYTHONPATH=f"{KILLER}:{ROOT}", KILL_AT=point))
        assert code == -signal.SIGKILL, output
        until(lambda: world.target().holder() is None, "the lock expires", 2 * world.lease + 10)
        code, output = world.finish(world.start(attempt=2))
        assert code == 0, output
        assert schedulers.running() == [(world.machines[0], "v1.1.0")]
    assert schedulers.most == 1, schedulers.together
    assert starts(world, "seed") == ["1.1.0"]
    assert world.versions_now() == {"1.1.0"}


def test_a_cancelled_run_ends_its_job(world):
    world.flag("1.1.0.seed.wait")
    step = world.start()
    until((world.flags / "seed.stamps").exists, "the job runs", 60)
    step.send_signal(signal.SIGTERM)
    code, output = world.finish(step)
    assert code == 1, output
    assert world.fragment().evidence["rollout_status"] == "cancelled"
    assert "it still ran when its release was taken back, and was ended" in world.fragment().evidence["abort"]["detail"]
    assert not world.machines[0].client.containers.list(filters={"label": "world.azora.service=seed"})
