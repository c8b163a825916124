"""What lets a release enter production, asked of a calendar and of the staging records in a real S3 server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from azora_ci.clients.signing.signatures import Signatures
from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import GateSettings, StagingSettings
from azora_ci.core.config.calendar import calendar_settings
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.variables import load
from azora_ci.gates.entry.emergency import Emergency, Entry, require_still_open
from azora_ci.record.archive import LOOK_BACK, Archive
from tests.record.test_archive import document
from tests.support import fragments_builder as build
from tests.support.signing import KeyFileSigner

FRIDAY = datetime(2026, 12, 4, 13, 30, tzinfo=UTC)
THURSDAY = FRIDAY - timedelta(days=1)
FROZEN = {"days": ["fri"], "from": "14:00", "why": "nobody is on call"}
STAGING = StagingSettings()
OTHER = "def456" + "0" * 34


class At(Clock):
    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment


class Asked:
    """The gates at a moment, with what they leave as evidence and print."""

    def __init__(self, moment: datetime = THURSDAY, reason: str | None = None, archive: Archive | None = None) -> None:
        self.evidence: dict[str, Any] = {}
        self.lines: list[str] = []
        self.archive = archive
        self.entry = Entry(
            emergency=Emergency(emergency_reason=reason), actor="octocat", evidence=self.evidence, actions=Actions(), clock=At(moment),
            say=self.lines.append,
        )  # fmt: skip
        self.entry.begin()

    def calendar(self, *frozen: dict[str, Any]) -> None:
        gates = config.gates.gates_of({"checks": {"required": ["test"]}}, {})
        calendar = calendar_settings({"timezone": "Europe/Berlin", "frozen": list(frozen)}) if frozen else None
        self.entry.ask_calendar(GateSettings(**{**vars(gates), "calendar": calendar}), "v1.2.3")

    def staging(self, demanded: StagingSettings | None = STAGING, commit: str = build.GIT_SHA) -> None:
        self.entry.ask_staging(demanded, lambda _environment: self.archive, "v1.2.3", commit)


# --- the calendar -----------------------------------------------------------------------------------------------------------


def test_a_refusal_names_the_next_open_moment_and_how_to_pass():
    asked = Asked(FRIDAY)
    with pytest.raises(NotTrueError) as caught:
        asked.calendar(FROZEN, {"days": ["sat", "sun"]})
    assert "it is frozen, fri 14:00–24:00 (nobody is on call)" in caught.value.what
    assert "it is Fri 2026-12-04 14:30 in Europe/Berlin (2026-12-04T13:30Z) now" in caught.value.what
    assert "open from Mon 2026-12-07 00:00 in Europe/Berlin (2026-12-06T23:00Z) on" in caught.value.what
    assert "gh workflow run deploy-production.yml --ref v1.2.3 -f version=v1.2.3 -f emergency_reason=" in caught.value.next_step
    assert "a pushed tag cannot carry" in caught.value.next_step
    assert asked.evidence["calendar"] == {
        "timezone": "Europe/Berlin",
        "open": False,
        "reason": "it is frozen, fri 14:00–24:00 (nobody is on call)",
        "next_open": "2026-12-06T23:00:00.000Z",
        "open_until": None,
    }
    assert not any(line.startswith("✓") for line in asked.lines)


def test_an_open_calendar_says_until_when():
    asked = Asked()
    asked.calendar(FROZEN)
    assert asked.lines == ["✓ the calendar is open until Fri 2026-12-04 14:00 in Europe/Berlin (2026-12-04T13:00Z)"]
    moments = asked.evidence["calendar"]["open_until"], asked.evidence["calendar"]["next_open"]
    assert moments == ("2026-12-04T13:00:00.000Z", "2026-12-04T23:00:00.000Z")
    assert (asked.evidence["staging"], asked.evidence["emergency"]) == (None, None)
    without = Asked()
    without.calendar()
    assert (without.evidence["calendar"], without.lines) == (None, [])


def test_a_calendar_that_never_opens_is_a_mistake_in_the_configuration():
    with pytest.raises(BadInputError, match="within 366 days there is no moment"):
        Asked().calendar({"days": ["mon", "tue", "wed", "thu"]}, {"days": ["fri", "sat", "sun"]})


def test_an_emergency_passes_what_is_closed_and_is_noted_also_when_nothing_is():
    hostile = "::error::the login | fails <img src=x> for everybody"
    asked = Asked(FRIDAY, hostile)
    asked.calendar(FROZEN)
    asked.calendar(FROZEN)  # asked again behind the checks
    assert asked.evidence["emergency"] == {"reason": hostile, "by": "octocat", "passed": ["calendar"]}
    assert asked.evidence["calendar"]["open"] is False
    assert not any(line.startswith("✓") for line in asked.lines)
    needless = Asked(THURSDAY, "the login fails")
    needless.calendar(FROZEN)
    assert needless.evidence["emergency"]["passed"] == []


def test_a_freeze_that_begins_before_the_backup_is_done_stops_the_run_and_an_emergency_goes_on():
    asked = Asked()
    asked.calendar(FROZEN)
    require_still_open(asked.evidence, FRIDAY - timedelta(minutes=31))
    with pytest.raises(NotTrueError, match="was open until Fri 2026-12-04 14:00 in Europe/Berlin") as caught:
        require_still_open(asked.evidence, FRIDAY)
    assert caught.value.next_step.startswith(
        "re-run all jobs from Sat 2026-12-05 00:00 in Europe/Berlin (2026-12-04T23:00Z) on; an emergency"
    )
    declared = Asked(THURSDAY, "the login fails")
    declared.calendar(FROZEN)
    for evidence in (declared.evidence, Asked().evidence, {}):
        require_still_open(evidence, FRIDAY)


@pytest.mark.parametrize("reason", ["   ", "two\nlines", "a\u202etext that runs the other way", "x" * 501, "\x1b[2J", "tab\there"])
def test_a_reason_is_one_visible_line_that_says_something(reason: str):
    with pytest.raises(BadInputError, match="EMERGENCY_REASON"):
        load(Emergency, {"EMERGENCY_REASON": reason})


def test_a_reason_is_taken_without_blanks_around_it_and_none_is_none():
    assert load(Emergency, {"EMERGENCY_REASON": "  the login fails "}).emergency_reason == "the login fails"
    assert load(Emergency, {"EMERGENCY_REASON": ""}).emergency_reason is None


# --- staging ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(s3_server: Any) -> Archive:
    return Archive(s3_server.open(s3_server.make_bucket(object_lock=True)), "staging")


def keep(archive: Archive, seconds: int, **changes: Any) -> str:
    """Archive a deployment to staging that names the record before it, as a run of ours does."""
    before = archive.newest()
    link = {"previous_record_sha256": before.sha256, "previous_record_location": archive.bucket.url(before.key)} if before else {}
    record = document(seconds, attempt=changes.pop("run_attempt", 1), status=changes.pop("status", "success"))
    return archive.keep_record({**record, "environment": archive.environment, **link, **changes}).location


def keep_other(archive: Archive, seconds: int, **changes: Any) -> str:
    return keep(archive, seconds, deployment_id=f"{seconds}-def456", git_sha=OTHER, version="v1.2.2", **changes)


def refused(archive: Archive, demanded: StagingSettings = STAGING, **more: Any) -> NotTrueError:
    asked = Asked(archive=archive, **more)
    with pytest.raises(NotTrueError) as caught:
        asked.staging(demanded)
    assert asked.evidence["staging"]["record"] is None
    assert not any(line.startswith("✓") for line in asked.lines)
    return caught.value


def test_the_record_of_the_same_commit_opens_the_gate(archive: Archive):
    for number in range(LOOK_BACK + 1):  # more than are read before it
        keep_other(archive, 1763900000 + number)
    location = keep(archive, 1764000000)
    keep_other(archive, 1764000100)
    asked = Asked(archive=archive)
    asked.staging()
    staging = asked.evidence["staging"]
    assert (staging["environment"], staging["location"]) == ("staging", archive.bucket.url("records/staging/"))
    assert staging["record"]["location"] == location
    assert staging["record"]["deployment_id"] == "1764000000-abc123"
    assert (
        asked.lines == [line for line in asked.lines if line.startswith("✓ this commit was deployed to staging: 1764000000-abc123")] != []
    )


def test_a_refusal_says_what_was_looked_for_and_what_was_found(archive: Archive):
    error = refused(archive)
    assert f"no successful deployment of {build.GIT_SHA} to staging is recorded\nno other deployment is recorded" in error.what
    keep_other(archive, 1763900000)
    keep(archive, 1764000000, status="failed")
    error = refused(archive)
    assert "1764000000-abc123, v1.2.3 of abc123012345, failed" in error.what
    assert "it did not succeed" in error.what
    assert "of other commits: 1763900000-def456, v1.2.2 of def456000000, success" in error.what
    assert error.where == f"{archive.bucket.url('records/staging/')}, [validation] require_staging of the default branch"
    assert error.next_step.startswith("deploy v1.2.3 to staging, then re-run failed jobs; when production cannot wait")
    assert "emergency_reason" in error.next_step
    keep(archive, 1764000000, run_attempt=2)  # its second attempt
    Asked(archive=archive).staging()


def test_a_commit_that_only_begins_alike_does_not_count(archive: Archive):
    keep(archive, 1764000000, git_sha="abc123" + "f" * 34)
    assert "of other commits: 1764000000-abc123, v1.2.3 of abc123ffffff" in refused(archive).what


def test_a_deployment_that_was_taken_back_does_not_count_until_the_next_one(archive: Archive):
    keep(archive, 1764000000)
    archive.keep_rollback({"kind": "rollback", "deployment_id": "1764000000-abc123", "version": "v1.2.3", "status": "completed"})
    assert "it was taken back" in refused(archive).what
    keep(archive, 1764000500)
    Asked(archive=archive).staging()


def test_an_old_deployment_counts_unless_a_limit_is_set(archive: Archive):
    keep(archive, 1764000000)  # of 24 November 2025
    Asked(archive=archive).staging()
    assert "it is older than 14 days" in refused(archive, StagingSettings(max_age=timedelta(days=14))).what
    Asked(archive=archive).staging(StagingSettings(max_age=timedelta(days=400)))


def test_a_changed_record_is_not_believed(archive: Archive, s3_server: Any):
    location = keep(archive, 1764000000, status="failed")
    keep_other(archive, 1764000100)
    key = location.split("/", 3)[3]
    data = archive.bucket.read(key).replace(b'"status":"failed"', b'"status":"success"')
    s3_server.boto3().put_object(Bucket=archive.bucket.name, Key=key, Body=data)
    error = refused(archive)
    assert f"{location} is not believed: " in error.what
    assert "1764000100-def456" in error.what  # which names another SHA-256


def test_the_record_of_production_does_not_count_in_the_place_of_one_of_staging(archive: Archive, s3_server: Any):
    production = Archive(archive.bucket, "production")
    data = archive.bucket.read(keep(production, 1764000000).split("/", 3)[3])
    s3_server.boto3().put_object(Bucket=archive.bucket.name, Key="records/staging/1764000000-abc123/1.json", Body=data)
    assert "it is the record of environment production" in refused(archive).what
    s3_server.boto3().put_object(Bucket=archive.bucket.name, Key="records/staging/1764000001-abc123/1.json", Body=b'{"status": "success"}')
    assert "records/staging/1764000001-abc123/1.json is not believed" in refused(archive).what


def test_with_signing_only_a_signed_record_counts(archive: Archive, tmp_path: Path):
    signed = Archive(archive.bucket, "staging", "GOVERNANCE", Signatures(archive.bucket, KeyFileSigner(tmp_path / "key.pem")))
    keep(archive, 1764000000)  # by somebody who can write the bucket, or from before signing was turned on
    assert "is not signed" in refused(signed).what
    keep(Archive(archive.bucket, "staging", "GOVERNANCE", Signatures(archive.bucket, KeyFileSigner(tmp_path / "mallory.pem"))), 1764000100)
    assert refused(signed).what.count("is not believed") == 2
    location = keep(signed, 1764000200)
    Asked(archive=signed).staging()
    keep(archive, 1764000300, previous_record_sha256="0" * 64, previous_record_location=location)  # an unsigned one accuses it
    asked = Asked(archive=signed)
    asked.staging()
    assert asked.evidence["staging"]["record"]["location"] == location


def test_an_emergency_passes_without_staging_and_leaves_a_note(archive: Archive):
    asked = Asked(FRIDAY, "the login fails", archive)
    asked.calendar(FROZEN)
    asked.staging()
    assert asked.evidence["emergency"] == {"reason": "the login fails", "by": "octocat", "passed": ["calendar", "staging"]}
    assert asked.evidence["staging"]["record"] is None


def test_nothing_is_read_where_staging_is_not_demanded():
    asked = Asked()
    asked.staging(None)
    assert asked.evidence["staging"] is None
