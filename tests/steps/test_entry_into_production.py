"""pre-deployment-validation asks the calendar and the archive of staging; an emergency passes both, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core.clock import Clock
from azora_ci.database.backup.manifest import HANDED_OVER
from azora_ci.record.archive import Archive
from azora_ci.steps.runner import execute
from tests.conftest import DatabaseMaker
from tests.core.test_markdown import cells
from tests.gates.entry.test_emergency import keep
from tests.steps.test_pre_deployment_validation import SHA, World, branch_configuration, edge, site, world
from tests.support import fragments_builder
from tests.support.backup_world import ID, SIMPLE, BackupWorld
from tests.support.stores import Stores

__all__ = ["edge", "site", "world"]  # fixtures
REASON = "the login | fails for <b>everybody</b> ::error::4711"
AUDIT = {"audit": {"level": "none", "reason": "a test without packages"}}
STAGING = {"validation": {**AUDIT, "require_staging": True}}


def frozen_now() -> dict[str, Any]:
    """Return a calendar that is frozen from yesterday to tomorrow."""
    day = datetime.now(UTC).date()
    window = {"from": str(day - timedelta(days=1)), "to": str(day + timedelta(days=1)), "why": "the fair"}
    return {"calendar": {"timezone": "Europe/Berlin", "frozen": [window]}}


def summary_row(world: World, gate: str) -> str:
    """Return the last cell of a gate's row on the newest page, as a browser shows it."""
    shown = cells("| Gate |" + (world.folder / "summary").read_text().rpartition("| Gate |")[2].partition("\n\n")[0])
    return shown[shown.index(gate) + 2]


def test_a_frozen_calendar_closes_the_gate_and_checks_are_not_waited_for(world: World) -> None:
    world.on_branch = branch_configuration(world, **frozen_now())  # the tag has no calendar: that of the branch counts
    world.api.write(check_runs=[{"name": "test", "status": "in_progress"}], runs={"77": 5})
    world.gates = {"wait_minutes": 60}
    assert world.run() == 1
    assert world.status_requests() == 1
    places = {problem["where"] for problem in world.evidence["problems"]}
    assert "[calendar] of the default branch" in places
    assert len(places) == 2  # the pending check, too: all that is closed is said at once
    assert "(the fair)" in world.error
    assert {"key": "calendar.timezone", "branch": '"Europe/Berlin"', "tag": None} in world.evidence["gates"]["differences"]
    assert world.evidence["calendar"]["open"] is False
    assert (world.evidence["emergency"], world.evidence["staging"]) == (None, None)
    assert "✗ it is frozen" in summary_row(world, "calendar")


def test_an_emergency_passes_calendar_and_staging_and_no_other_gate(world: World) -> None:
    world.sections = frozen_now() | STAGING
    assert world.run() == 1
    assert {problem["where"].split("[")[-1] for problem in world.evidence["problems"]} == {
        "calendar] of the default branch",
        "validation] require_staging of the default branch",
    }
    assert world.run(EMERGENCY_REASON=f"  {REASON} ", GITHUB_ACTOR="ada") == 0, world.error
    assert world.evidence["emergency"] == {"reason": REASON, "by": "ada", "passed": ["calendar", "staging"]}
    passed = "passed: calendar and staging; a person reviews it within 24 hours of the deployment"
    assert summary_row(world, "emergency") == f"{REASON}\n{passed}"
    world.api.write(check_runs=[{"name": "test", "conclusion": "failure"}], runs={"77": 5})
    assert world.run(EMERGENCY_REASON=REASON) == 1
    (problem,) = world.evidence["problems"]
    assert "failed: test (failure)" in problem["what"]


def test_a_freeze_that_begins_while_checks_are_waited_for_closes_the_gate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sections = {"calendar": {"timezone": "UTC", "frozen": [{"days": ["fri"], "from": "14:00"}]}}
    world.gates = {"wait_minutes": 1}
    friday = datetime(2026, 12, 4, 13, 59, tzinfo=UTC)
    monkeypatch.setattr(Clock, "now", lambda _: friday + timedelta(minutes=2 * (world.status_requests() > 0)))
    assert world.run() == 1
    assert "it is Fri 2026-12-04 14:01 in UTC" in world.error
    log = world.log
    assert log.index("✓ the calendar is open until Fri 2026-12-04 14:00") < log.index("✓ test (success) of")


def test_the_same_commit_in_staging_opens_the_gate_and_staging_itself_needs_none(world: World, s3_server: Stores) -> None:
    world.sections = STAGING
    archive = Archive(s3_server.open(world.bucket), "staging")
    keep(archive, 1763900000)
    assert world.run() == 1
    assert f"no successful deployment of {SHA} to staging is recorded" in world.error
    assert "of other commits: 1763900000-abc123" in world.error
    assert world.run(DEPLOY_ENVIRONMENT="staging") == 0, world.error
    assert world.evidence["staging"] is None
    location = keep(archive, 1764000000, deployment_id="1764000000-012345", git_sha=SHA)
    assert world.run() == 0, world.error
    assert world.evidence["staging"]["record"]["location"] == location
    assert summary_row(world, "staging") == "✓ 1764000000-012345, v1.2.3"
    assert world.run(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="") in {1, 2, 3}  # nobody looked
    assert world.evidence["staging"] is None


@pytest.mark.parametrize("begins", ["before it", "while it is made"])
def test_a_freeze_that_began_before_the_backup_was_done_stops_the_run(
    tmp_path: Path, s3_server: Stores, postgres_cluster: DatabaseMaker, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """Production is as it was then; behind the backup a deployment is finished."""
    backups, friday = BackupWorld(tmp_path, s3_server), datetime(2026, 12, 4, 14, 0, tzinfo=UTC)
    moments = {"open_until": "2026-12-04T14:00:00.000Z", "next_open": "2026-12-05T00:00:00.000Z"}
    facts = {"timezone": "UTC", "open": True, "reason": None, **moments}
    validation = fragments_builder.fragment("pre-deployment-validation", calendar=facts)
    fragments_builder.receive(tmp_path / "received", replace(validation, deployment_id=ID, run_id="1", git_sha="0" * 40))
    given = {"RECEIVED_ARTIFACTS_DIR": str(tmp_path / "received"), "NEEDS": fragments_builder.needs_of(tmp_path / "received", ID)}

    def now(_clock: Clock) -> datetime:
        is_late = begins == "before it" or (backups.logs / HANDED_OVER).exists()  # written behind the proof
        return friday + timedelta(minutes=5 if is_late else -5)

    monkeypatch.setattr(Clock, "now", now)
    assert execute("database-backup", backups.environ(postgres_cluster.fresh(SIMPLE), **given)) == 1
    error = json.loads((backups.logs / "record" / "database-backup.json").read_text())["error"]
    assert bool(backups.listing()) == (begins == "while it is made")
    assert error["title"] == "No deployment begins now"
    assert "it is Fri 2026-12-04 14:05 in UTC" in error["what"]
    assert error["next"].startswith("re-run all jobs from Sat 2026-12-05 00:00 in UTC")


def test_calendar_and_staging_of_a_tag_do_not_count(world: World) -> None:
    world.on_branch = branch_configuration(world)
    world.sections = frozen_now() | STAGING
    assert world.run() == 0, world.error
    assert (world.evidence["calendar"], world.evidence["staging"]) == (None, None)
    keys = {difference["key"] for difference in world.evidence["gates"]["differences"]}
    assert {"calendar.frozen", "validation.require_staging"} <= keys


def test_a_time_zone_that_is_not_known_is_named(world: World) -> None:
    world.sections = {"calendar": {"timezone": "Europe/Atlantis", "frozen": [{"days": ["fri"]}]}}
    assert world.run() in {1, 2}
    assert "calendar.timezone: Europe/Atlantis is no time zone" in world.error
