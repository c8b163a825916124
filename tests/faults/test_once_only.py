"""The runner is killed (SIGKILL) between each two steps of a job and of a singleton's exchange, on real processes; the rerun finishes.

A job has started once then. At no moment two instances of the scheduler run: each writes its process id when it starts, and all of them
are looked at a few hundred times a second meanwhile.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.edge_world import NEW, OLD, World
from tests.support.waiting import until

KILLER = ROOT / "tests/support/killer"
TARGET = "azora_ci.targets.local_processes.target"
JOURNAL, RUNNER = f"{TARGET}:LockedJournal.add", f"{TARGET}:LocalRunner"
JOB_POINTS = {  # of the job {}
    "before its intention": f"before {JOURNAL} 'job' 'intended' '{{}}'",
    "after its intention": f"after {JOURNAL} 'job' 'intended' '{{}}'",
    "created, and not noted": f"after {RUNNER}.create_job id='{{}}'",
    "noted, and not started": f"after {JOURNAL} 'job' 'created' '{{}}'",
    "started": f"after {RUNNER}.start_job id='{{}}'",
    "ended, and not noted": f"before {JOURNAL} 'job' 'ended' '{{}}'",
    "its end noted": f"after {JOURNAL} 'job' 'ended' '{{}}'",
}
EXCHANGE_POINTS = {
    "promotion noted": f"after {JOURNAL} 'promote'",
    "the old one's rest noted": f"after {JOURNAL} 'rest' 'scheduler'",
    "the old one stopped": f"after {RUNNER}.stop 'scheduler'",
    "the new one about to start": f"before {RUNNER}.start id='scheduler'",
    "the new one started, and not noted": f"after {RUNNER}.start id='scheduler'",
    "the new one noted": f"after {JOURNAL} 'instance' 'scheduler'",
    "the new one healthy": f"after {TARGET}:LocalProcesses.run_once ('scheduler',",
}
RETURN_POINTS = {
    "its intention noted": f"after {JOURNAL} 'going-back'",
    "going back noted": f"after {JOURNAL} 'abort'",
    "the new one stopped, and not noted": f"before {JOURNAL} 'stopped' 'scheduler'",
    "the new one's end noted": f"after {JOURNAL} 'stopped' 'scheduler'",
    "the old one started, and not noted": f"before {JOURNAL} 'resume' 'scheduler'",
    "the old one noted": f"after {JOURNAL} 'resume' 'scheduler'",
}


def points(table: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("point", [pytest.param(point, id=name.replace(" ", "-")) for name, point in table.items()])


class Schedulers:
    """Looks at the instances of the scheduler that run, from start to end."""

    def __init__(self, world: World) -> None:
        self._stamps, self._over, self.most = world.flags / "scheduler.stamps", threading.Event(), 0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def running(self) -> list[str]:
        """Return the versions of the instances that run now."""
        lines = [line.split() for line in self._stamps.read_text().splitlines()] if self._stamps.exists() else []
        return [version for event, version, pid, _ in lines if event == "start" and runs(pid)]

    def _look(self) -> None:
        while not self._over.is_set():
            self.most = max(self.most, len(self.running()))
            time.sleep(0.003)

    def __enter__(self) -> Schedulers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def runs(pid: str) -> bool:
    try:
        return b"once.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    once = {"command": ["once.py"], "stop_grace_seconds": 2, "secrets": []}
    beside = {
        "seed": {**once, "kind": "job"},
        "warm": {**once, "kind": "job", "when": "after-rollout"},
        "scheduler": {**once, "singleton": True},
    }
    world = World(tmp_path, instances=1, workers=beside)
    try:
        world.deploy_old()
        world.built()
        yield world
    finally:
        world.close()


def killed_rollout(world: World, point: str) -> None:
    """Run a rollout that kills itself at a point."""
    code, output = world.finish(world.start("gradual_rollout", PYTHONPATH=f"{KILLER}:{ROOT}", KILL_AT=point))
    assert code == -signal.SIGKILL, output


def take_back(world: World, point: str = "") -> tuple[int, str]:
    """Take 1.1.0 back in a process, which kills itself at a point."""
    environ = world.environ(9, PYTHONPATH=f"{KILLER}:{ROOT}", KILL_AT=point)
    command = [sys.executable, str(KILLER / "take_back.py"), str(world.config_path), str(world.folder)]
    completed = subprocess.run(command, env=environ, cwd=world.folder, capture_output=True, text=True, timeout=60, check=False)
    return completed.returncode, completed.stdout + completed.stderr


def starts(world: World, service: str) -> list[str]:
    lines = [line.split() for line in (world.flags / f"{service}.stamps").read_text().splitlines()]
    return [version for event, version, *_ in lines if event == "start"]


@points(JOB_POINTS)
@pytest.mark.parametrize("service", ["seed", "warm"])
def test_a_job_starts_once(world, service, point):
    killed_rollout(world, point.format(service))
    code, output = world.finish(world.start("gradual_rollout", attempt=2))
    assert code == 0, output
    assert (starts(world, "seed"), starts(world, "warm")) == (["1.1.0"], ["1.1.0"])
    assert [job["passed"] for job in world.fragment(attempt=2).evidence["jobs"]] == [True, True]
    assert world.versions_now(5) == {"1.1.0"}


@points(EXCHANGE_POINTS)
def test_two_schedulers_never_run_while_they_are_exchanged(world, point):
    with Schedulers(world) as schedulers:
        killed_rollout(world, point)
        code, output = world.finish(world.start("gradual_rollout", attempt=2))
        assert code == 0, output
        assert schedulers.running() == ["1.1.0"]
    assert schedulers.most == 1
    assert [instance.service for instance in world.target().instances(NEW)].count("scheduler") == 1


@points(EXCHANGE_POINTS)
def test_going_back_from_half_an_exchange(world, point):
    with Schedulers(world) as schedulers:
        killed_rollout(world, point)
        code, output = take_back(world)
        assert code == 0, output
        assert schedulers.running() == ["1.0.0"]
    assert schedulers.most == 1
    assert world.versions_now(5) == {"1.0.0"}
    assert world.target().current().serving == OLD


@points(RETURN_POINTS)
def test_two_schedulers_never_run_while_a_deployment_is_taken_back(world, point):
    with Schedulers(world) as schedulers:
        code, output = world.finish(world.start("gradual_rollout"))
        assert code == 0, output
        code, output = take_back(world, point)
        assert code == -signal.SIGKILL, output
        code, output = take_back(world)
        assert code == 0, output
        assert schedulers.running() == ["1.0.0"]
    assert schedulers.most == 1
    assert world.versions_now(5) == {"1.0.0"}


def test_a_new_scheduler_that_is_not_healthy_gives_way_to_the_old_one(world):
    world.flag("1.1.0.scheduler.fail")
    with Schedulers(world) as schedulers:
        code, output = world.finish(world.start("gradual_rollout"))
        assert code == 1, output
        assert "scheduler was not exchanged" in output
        assert "its workers run again: scheduler#" in output
        assert schedulers.running() == ["1.0.0"]
        fragment = world.fragment()
        assert (fragment.status, fragment.evidence["rollout_status"]) == ("failed", "completed")
        assert [job["service"] for job in fragment.evidence["jobs"]] == ["seed"]  # what comes after it was not begun
        assert world.versions_now(5) == {"1.1.0"}
        world.unflag("1.1.0.scheduler.fail")
        code, output = world.finish(world.start("gradual_rollout", attempt=2))
        assert code == 0, output
        assert schedulers.running() == ["1.1.0"]
    assert schedulers.most == 1


def test_a_run_that_is_cancelled_while_it_exchanges_leaves_the_old_one_running(world):
    with Schedulers(world) as schedulers:
        step = world.start("gradual_rollout", HEALTH_CHECK_TIMEOUT="20")
        while "1.1.0" not in schedulers.running():
            assert step.poll() is None, step.communicate()[0]
            time.sleep(0.01)
        step.send_signal(signal.SIGTERM)
        code, output = world.finish(step)
        assert code == 1, output
        assert schedulers.running() == ["1.0.0"]
    assert schedulers.most == 1
    assert world.fragment().status == "cancelled"
    assert any("v1.1.0 is promoted and keeps 100 % of traffic" in note for note in world.fragment().evidence["notes"])


def test_a_run_that_is_cancelled_while_the_old_one_takes_its_time_has_it_started_again(world):
    world.workers["scheduler"]["stop_grace_seconds"] = 60
    world.configure_edge()
    world.flag("1.0.0.scheduler.deaf")
    with Schedulers(world) as schedulers:
        step = world.start("gradual_rollout")
        until(lambda: any(each.resting for each in world.target().instances(OLD)), "the old one is told to end", 60)
        step.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        code, output = world.finish(step)
        assert code == 1, output
        assert time.monotonic() - begun < 8  # GitHub kills a cancelled job after 10 s
        assert schedulers.running() == ["1.0.0"]
    assert schedulers.most == 1
