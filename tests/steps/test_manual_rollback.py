"""manual-rollback writes instructions for one deployment from its record or, without a record, from the fragments."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from azora_ci.core.clock import rfc3339
from azora_ci.rehearsal.standins.slack import SlackReceiver
from tests.support import fragments_builder as build
from tests.support import record_world

NAME = "ROLLBACK-INSTRUCTIONS.md"


@pytest.fixture
def world(tmp_path, s3_server):
    with SlackReceiver(tmp_path / "slack.jsonl") as slack:
        yield record_world.world(tmp_path, s3_server, slack)


def recorded(world, *changed):
    """Write the artifacts of a successful run up to and including deployment-record, and return the record's artifact."""
    fragments = build.complete(**{fragment.job.replace("-", "_"): fragment for fragment in changed})
    build.receive(world.received, *fragments.values())
    outcome = world.run("deployment-record")
    assert outcome.code == 0
    artifact = world.received / f"deployment-record-{build.DEPLOYMENT_ID}"
    outcome.logs.rename(artifact)
    return artifact


def ended(minutes_ago: float):
    """Return the fragment of smoke tests that ended the deployment so many minutes ago."""
    end = rfc3339(datetime.now(UTC) - timedelta(minutes=minutes_ago))
    return replace(build.fragment("smoke-tests"), started_at=end, ended_at=end)


def test_instructions_come_from_the_record(world):
    recorded(world)
    outcome = world.run("manual-rollback")
    assert outcome.code == 0
    text = (outcome.logs / NAME).read_text()
    assert "# Rollback instructions: v1.2.3" in text
    assert "**Deadline: 2025-11-24T12:36:00.125Z**" in text
    assert "curl -fsS --max-time 10 https://azora.example/auth_service/health   # Auth Service" in text
    assert "On-call team of azora: **#azora-on-call (Slack)**" in text
    assert f"s3://azora-backups/prod/{build.BACKUP}.sql.gz" in text
    assert outcome.evidence["instructions_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert outcome.evidence["source"] == "record"
    assert outcome.evidence["rollback_deadline"] == "2025-11-24T12:36:00.125Z"
    assert text.strip() in outcome.summary


def test_scripts_lie_beside_the_instructions_and_are_those_printed(world):
    recorded(world)
    outcome = world.run("manual-rollback")
    text = (outcome.logs / NAME).read_text()
    assert set(outcome.evidence["scripts"]) == {"restore-database.sh", "swap-database.sh"}
    for name, sha256 in outcome.evidence["scripts"].items():
        script = (outcome.logs / name).read_bytes()
        assert hashlib.sha256(script).hexdigest() == sha256
        assert script.decode().strip() in text


def test_the_open_window_is_known(world):
    recorded(world, ended(minutes_ago=5))
    assert world.run("manual-rollback").evidence["still_open"] is True


def test_the_closed_window_is_known(world):
    recorded(world, ended(minutes_ago=61))
    assert world.run("manual-rollback").evidence["still_open"] is False


def test_another_window_moves_the_deadline(world):
    world.environ["ROLLBACK_WINDOW_MINUTES"] = "90"
    recorded(world)
    outcome = world.run("manual-rollback")
    assert outcome.evidence["rollback_deadline"] == "2025-11-24T13:06:00.125Z"
    assert "90 minutes from completion" in (outcome.logs / NAME).read_text()


def test_a_record_that_was_changed_on_the_way_is_refused(world):
    path = recorded(world) / "deployment-record.json"
    path.write_bytes(path.read_bytes().replace(b"v1.2.2", b"v0.0.1"))
    outcome = world.run("manual-rollback")
    assert outcome.code == 1
    assert outcome.error.startswith("The record is missing: no deployment-record.json with SHA-256")
    assert not (outcome.logs / NAME).exists()


def test_failed_smoke_tests_are_when_instructions_are_needed(world):
    tests = build.evidence("smoke-tests")["tests"]
    tests[1] |= {"passed": False, "status": 503, "detail": "HTTP 503"}
    smoke = build.fragment("smoke-tests", "failed", tests=tests, smoke_status="failed")
    build.receive(world.received, *build.complete(smoke=smoke).values())
    outcome = world.run("manual-rollback")
    assert outcome.code == 0
    assert outcome.evidence["source"] == "fragments"
    assert outcome.evidence["previous_version"] == "v1.2.2"
    text = (outcome.logs / NAME).read_text()
    assert "- **auth_service**: HTTP 503" in text
    assert "-f version=v1.2.2" in text
    assert (outcome.logs / "restore-database.sh").exists()


def test_traffic_that_went_back_already_is_said(world):
    back = {"to": "v1.2.2", "seconds_to_safe": 0.1, "proved": True, "detail": "0 requests"}
    smoke = build.fragment("smoke-tests", "failed", smoke_status="failed", rollback=back)
    build.receive(world.received, *build.complete(smoke=smoke).values())
    outcome = world.run("manual-rollback")
    text = (outcome.logs / NAME).read_text()
    assert "**Traffic has gone back already.**" in text
    assert "Done: v1.2.2 has all traffic." in text
    assert outcome.evidence["still_open"] is False


def test_a_failed_record_does_not_take_the_instructions_away(world):
    failed = build.fragment("deployment-record", "failed", evidence={})
    build.receive(world.received, *build.complete().values(), failed)
    assert '"failure"' in build.needs_of(world.received)
    outcome = world.run("manual-rollback")
    assert outcome.code == 0
    assert "-f version=v1.2.2" in (outcome.logs / NAME).read_text()


def test_nothing_known_is_an_error_that_says_what_to_do(world):
    outcome = world.run("manual-rollback")
    assert outcome.code == 1
    assert "Nothing is known of the rollout" in outcome.error
    assert "RECEIVED_ARTIFACTS_DIR" in outcome.fragment["error"]["next"]


def test_an_unproven_backup_gets_no_restore_script(world):
    proof = {"depth": "none", "restore_seconds": None, "verified_at": build.moment(170), "reason": "4 TB"}
    recorded(world, build.fragment("database-backup", proof=proof))
    outcome = world.run("manual-rollback")
    assert outcome.code == 0
    assert outcome.evidence["scripts"] == {}
    assert not (outcome.logs / "restore-database.sh").exists()
