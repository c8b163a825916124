"""``--docker``: the same workflow and the same judge, with a production host made of a real sshd and a real dockerd."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import pytest

from azora_ci.rehearsal.judge.deployment import JOBS
from tests.rehearsal.test_scenarios import Rehearsed, command, living, read_line, rehearse, results, start

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(600)]


def short_folder(log: str) -> str:
    """Return the folder of the daemons' sockets, as a log names it."""
    match = re.search(r"--exec-root=(/\S+/azr-[^/ ]+)/", log)
    assert match, log[-3000:]
    return match[1]


def daemons(log: str) -> list[str]:
    """Return the running commands that name the sockets' folder: daemons, their containerd, the shims of containers."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in commands if short_folder(log) in line]


def nothing_left(base: Path, log: str) -> None:
    """Assert that no process is left, nor the namespace that a log names, its cable or the daemons' folder."""
    assert living(base) == []
    name = re.search(r"netns add (azr[0-9a-f]+)", log)
    assert name, log[-3000:]
    assert not Path("/run/netns", name[1]).exists() and not Path("/sys/class/net", f"{name[1]}o").exists()
    assert not Path(short_folder(log)).exists() and daemons(log) == []


def rehearsed(base: Path, *options: str) -> Rehearsed:
    rehearsal = rehearse(base, ("--docker", *options))
    nothing_left(base, (base / "logs" / "harness.log").read_text(encoding="utf-8"))
    return rehearsal


def test_a_tag_reaches_containers_on_a_host_and_the_button_takes_it_back_and_no_user_notices(tmp_path: Path) -> None:
    rehearsal = rehearsed(tmp_path, "--rollback")
    result = rehearsal.well("rollback")
    assert results(result) == {"success": {*JOBS[:-1], "rollback"}, "skipped": {"deployment-failure-handler"}}
    assert result["scenario"] == "success+rollback+docker" and result["failed_requests"] == 0
    assert set(result["traffic"]) == {"1.0.0", "1.1.0"}
    built = rehearsal.json("build-logs-*/record/build-and-push.json")["evidence"]
    rollout = rehearsal.json("rollout-logs-*/record/gradual-rollout.json")["evidence"]
    assert built["kind"] == "images" and len(built["services"]) == 4
    assert rollout["target"] == "docker_hosts" and rollout["previous"]["version"] == "v1.0.0"
    assert rehearsal.json("rollback-logs-*/rollback-record.json")["status"] == "completed"
    assert rollout["services"] == {name: service["digest"] for name, service in built["services"].items()}


def test_a_canary_that_fails_is_taken_back_on_the_host(tmp_path: Path) -> None:
    rehearsal = rehearsed(tmp_path, "--fail", "canary")
    result = rehearsal.well()
    assert results(result)["failure"] == {"gradual-rollout"}
    assert result["traffic"].get("1.1.0", 0) < result["traffic"]["1.0.0"]
    evidence = rehearsal.json("rollout-logs-*/record/gradual-rollout.json")["evidence"]
    assert evidence["rollout_status"] == "rolled_back" and evidence["abort"]["proved"] is True


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["progressive", "full"])
def test_a_version_that_fails_in_a_stage_is_taken_back_on_the_host(tmp_path: Path, stage: str) -> None:
    rehearsal = rehearsed(tmp_path, "--fail", stage)
    assert results(rehearsal.well())["failure"] == {"gradual-rollout"}
    assert rehearsal.json("rollout-logs-*/record/gradual-rollout.json")["evidence"]["abort"]["proved"] is True


@pytest.mark.faults
@pytest.mark.parametrize(("name", "serving"), [("smoke", "1.1.0"), ("smoke-rollback", "1.0.0")])
def test_an_endpoint_that_fails_after_the_rollout_on_the_host(tmp_path: Path, name: str, serving: str) -> None:
    rehearsal = rehearsed(tmp_path, "--fail", name)
    assert results(rehearsal.well())["failure"] == {"smoke-tests"}
    record = rehearsal.json("deployment-failure-report-*/deployment-record.json")
    assert record["status"] == ("failed" if serving == "1.1.0" else "rolled_back")


@pytest.mark.faults
def test_when_the_machine_that_deploys_vanishes_the_guard_takes_traffic_back(tmp_path: Path) -> None:
    rehearsal = rehearsed(tmp_path, "--fail", "runner")
    result = rehearsal.well()
    assert results(result)["failure"] == {"gradual-rollout"} and result["failed_requests"] == 0
    assert result["traffic"]["1.1.0"] > 0


def test_a_killed_one_leaves_nothing_once_it_is_ended(tmp_path: Path) -> None:
    killed = start(tmp_path, "--docker", "--fail", "checks")
    read_line(killed, "it runs after")
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    log = next(tmp_path.glob("runs/*/logs/harness.log")).read_text(encoding="utf-8")
    assert len(daemons(log)) > 8 and living(tmp_path) != []
    assert next(tmp_path.glob("runs/*")).name in command(tmp_path, "--end").stdout
    nothing_left(tmp_path, log)
