"""What a rehearsal started ends with it, and what a killed one left behind ends with the next."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, birth, is_alive
from azora_ci.database.cluster import Cluster
from azora_ci.rehearsal.runs import DATABASE, Run, end_leftovers, publish

CLOCK = Clock()
SLEEPER = "import time\nprint('ready', flush=True)\ntime.sleep(600)"
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(600)"


def until(condition: Callable[[], bool]) -> None:
    deadline = CLOCK.monotonic() + 30
    while not condition():
        assert CLOCK.monotonic() < deadline, "nothing happened within 30 s"
        CLOCK.sleep(0.02)


@pytest.fixture
def detached(tmp_path: Path) -> Callable[..., int]:
    processes = Processes(JobLog(Actions(stream=io.StringIO()), CLOCK))

    def start(cwd: Path, program: str = SLEEPER) -> int:
        log = tmp_path / f"{len(list(tmp_path.glob('*.out')))}.out"
        pid = processes.start_detached([sys.executable, "-c", program], env=dict(os.environ), log=log, cwd=cwd)
        until(lambda: "ready" in log.read_text(encoding="utf-8"))
        return pid

    return start


def abandoned(base: Path) -> Run:
    """Return a run whose harness no longer runs."""
    run = Run.begin(base, CLOCK)
    state = run.state()
    state["harness"]["birth"] = "1"
    run._write(state)
    return run


def test_everything_ends_with_the_run(tmp_path: Path, detached: Callable[..., int]) -> None:
    run = Run.begin(tmp_path / "base", CLOCK)
    noted, below = detached(tmp_path), detached(run.path("production/x").parent)
    other = detached(tmp_path)
    run.note("noted", noted)
    assert {process.pid for process in run.living()} == {noted, below}
    assert run.end(CLOCK) == []
    until(lambda: not is_alive(noted) and not is_alive(below))
    assert is_alive(other)
    os.kill(other, 9)


def test_what_ignores_the_request_is_killed_and_named(tmp_path: Path, detached: Callable[..., int]) -> None:
    run = Run.begin(tmp_path / "base", CLOCK)
    pid = detached(tmp_path, STUBBORN)
    run.note("stubborn", pid)
    assert run.end(CLOCK, grace=0.3) == ["stubborn"]
    until(lambda: not is_alive(pid))


def test_a_reused_process_id_is_left_alone(tmp_path: Path, detached: Callable[..., int]) -> None:
    run = Run.begin(tmp_path / "base", CLOCK)
    stranger = detached(tmp_path)
    run.note("ours", stranger)
    state = run.state()
    state["processes"][0]["birth"] = "1"  # ours was another one with the same number
    run._write(state)
    assert run.living() == []
    run.end(CLOCK)
    assert is_alive(stranger)
    os.kill(stranger, 9)


def test_leftovers_of_a_killed_rehearsal_are_ended_and_others_not(tmp_path: Path, detached: Callable[..., int]) -> None:
    base = tmp_path / "base"
    left, kept, driven = abandoned(base), abandoned(base), Run.begin(base, CLOCK)
    pids = {name: detached(run.folder) for name, run in (("left", left), ("kept", kept), ("driven", driven))}
    kept.keep()
    assert end_leftovers(base, CLOCK) == [left.folder.name]
    until(lambda: not is_alive(pids["left"]))
    assert not left.folder.exists() and is_alive(pids["kept"]) and is_alive(pids["driven"])
    assert end_leftovers(base, CLOCK, kept=True) == [kept.folder.name]
    until(lambda: not is_alive(pids["kept"]))
    assert is_alive(pids["driven"]) and driven.driven
    driven.end(CLOCK)


def test_the_database_of_a_killed_rehearsal_ends_with_its_files(tmp_path: Path) -> None:
    base = tmp_path / "base"
    run = abandoned(base)
    processes = Processes(JobLog(Actions(stream=io.StringIO()), CLOCK))
    cluster = Cluster.start(run.folder / DATABASE, processes=processes, detached=True)
    born = birth(cluster.pid)
    places = [cluster.data, cluster.sockets]
    assert born is not None and all(place.exists() for place in places)
    end_leftovers(base, CLOCK)
    until(lambda: birth(cluster.pid) != born)
    assert not any(place.exists() for place in places)


def test_the_s3_server_of_a_killed_rehearsal_ends_with_its_folder(tmp_path: Path) -> None:
    base = tmp_path / "base"
    run, ready = abandoned(base), tmp_path / "ready.json"
    processes = Processes(JobLog(Actions(stream=io.StringIO()), CLOCK))
    argv = [sys.executable, "-m", "azora_ci.rehearsal.standins.s3", str(run.folder / "s3"), "--ready-file", str(ready)]
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
    pid = processes.start_detached(argv, env={**os.environ, **keys}, log=tmp_path / "s3.log", cwd=run.folder)
    run.note("standins-s3", pid)
    until(ready.exists)
    living = run.living()
    assert {"standins-s3", "process in /s3"} <= {process.name for process in living}
    begun = CLOCK.monotonic()
    assert end_leftovers(base, CLOCK) == [run.folder.name]
    assert CLOCK.monotonic() - begun < 5  # SeaweedFS by itself takes 25 s
    until(lambda: not any(birth(process.pid) == process.birth for process in living))
    assert not run.folder.exists()


def test_runs_that_begin_together_have_folders_of_their_own(tmp_path: Path) -> None:
    runs = [Run.begin(tmp_path / "base", CLOCK) for _ in range(5)]
    assert len({run.folder for run in runs}) == 5


def test_the_newest_result_replaces_the_one_before(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (tmp_path / "first" / "logs-1").mkdir(parents=True)
    (tmp_path / "result").write_text("1", encoding="utf-8")
    publish(base, {"artifacts": tmp_path / "first", "result.json": tmp_path / "result"})
    assert (base / "artifacts" / "logs-1").is_dir() and (base / "result.json").read_text(encoding="utf-8") == "1"
    publish(base, {"artifacts": tmp_path / "none"})
    assert not (base / "artifacts").exists() and not (base / "result.json").exists()
