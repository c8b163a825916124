"""``--kubernetes``: the same workflow and the same judge, with a production in a real control plane with Argo Rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.rehearsal.judge.deployment import JOBS
from tests.rehearsal.test_scenarios import command, living, read_line, rehearse, results, start

pytestmark = [pytest.mark.rehearsal, pytest.mark.kubernetes, pytest.mark.timeout(600)]


def test_a_tag_reaches_rollouts_and_the_button_takes_it_back_and_no_user_notices(tmp_path: Path) -> None:
    rehearsal = rehearse(tmp_path, ("--kubernetes", "--rollback"))
    result = rehearsal.well("rollback")
    assert results(result) == {"success": {*JOBS[:-1], "rollback"}, "skipped": {"deployment-failure-handler"}}
    assert result["scenario"] == "success+rollback+kubernetes" and result["failed_requests"] == 0
    rollout = rehearsal.json("rollout-logs-*/record/gradual-rollout.json")["evidence"]
    assert (rollout["target"], rollout["previous"]["version"]) == ("kubernetes", "v1.0.0")
    assert living(tmp_path) == []


FAILURES = {  # --fail -> the job that fails, the record's status
    "canary": ("gradual-rollout", "rolled_back"),
    "progressive": ("gradual-rollout", "rolled_back"),
    "full": ("gradual-rollout", "rolled_back"),
    "smoke": ("smoke-tests", "failed"),
    "runner": ("gradual-rollout", "failed"),
    "controller": ("gradual-rollout", "failed"),
}
SHORT = ("runner", "controller")  # what only this world has; the others are taken by scripts/test --all


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.faults) for name in FAILURES])
def test_what_breaks_is_taken_back_or_said(tmp_path: Path, name: str) -> None:
    rehearsal = rehearse(tmp_path, ("--kubernetes", "--fail", name))
    job, status = FAILURES[name]
    assert results(rehearsal.well())["failure"] == {job}
    assert rehearsal.json("deployment-failure-report-*/deployment-record.json")["status"] == status
    assert living(tmp_path) == []


def test_a_killed_one_leaves_nothing_once_it_is_ended(tmp_path: Path) -> None:
    killed = start(tmp_path, "--kubernetes", "--fail", "checks")
    read_line(killed, "it runs after")
    killed.kill()
    killed.wait(30)
    assert any("cluster" in line for line in living(tmp_path))
    assert next(tmp_path.glob("runs/*")).name in command(tmp_path, "--end").stdout
    assert living(tmp_path) == []
