"""deployment-record writes one record once to a real S3 server and tells a Slack receiver nothing that is not so."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci.core import pipeline, schemas
from azora_ci.core.config import RegistrySettings
from azora_ci.record import chain, deployment, fragments
from azora_ci.record import report as record_report
from azora_ci.rehearsal.standins.slack import ANSWERS, SlackReceiver
from azora_ci.steps import deployment_record
from tests.clients.slack.test_messages import SUCCESS
from tests.support import fragments_builder as build
from tests.support import record_world
from tests.support.chain import broken_links

KEY = f"records/production/{build.DEPLOYMENT_ID}/1.json"
MESSAGE = SUCCESS.replace("1234567890-abc123", build.DEPLOYMENT_ID).replace("https://azora.world", "https://azora.example")


@pytest.fixture
def world(tmp_path, s3_server):
    with SlackReceiver(tmp_path / "slack.jsonl") as slack:
        yield record_world.world(tmp_path, s3_server, slack)


@pytest.fixture
def ready(world):
    build.receive(world.received, *build.complete().values())
    return world


def test_record_is_written_archived_locked_and_announced(ready):
    outcome = ready.run("deployment-record")
    assert outcome.code == 0
    data = (outcome.logs / "deployment-record.json").read_bytes()
    assert ready.records() == {KEY: data}
    sha256 = hashlib.sha256(data).hexdigest()
    fragment = (outcome.logs / "record" / "deployment-record.json").read_bytes()
    assert outcome.outputs == {"record-sha256": sha256, "fragment-sha256": hashlib.sha256(fragment).hexdigest()}
    assert document_signed_by(data) == "none"
    assert (outcome.logs / deployment_record.SUBJECTS_NAME).read_text() == f"{sha256}  deployment-record.json\n"  # archives, no images
    assert outcome.evidence["record_sha256"] == sha256
    assert outcome.evidence["record_location"] == f"s3://{ready.bucket}/{KEY}"
    assert outcome.evidence["previous_record_sha256"] is None
    assert outcome.evidence["rollback_deadline"] == "2025-11-24T12:36:00.125Z"
    assert outcome.evidence["notified"] is True
    document = json.loads(data)
    assert schemas.problems(document, deployment.SCHEMA) == []
    assert document["triggered_by"] == "octocat"
    assert document["artifacts_location"] == f"s3://{ready.bucket}/artifacts/production/{build.DEPLOYMENT_ID}/1/"
    assert ready.slack.texts() == [MESSAGE]
    stored = ready.store.head(KEY)
    assert stored.lock_mode == "GOVERNANCE"
    assert (stored.lock_until - stored.modified).days in {364, 365}


def test_the_artifact_verifies_itself_without_our_package(ready):
    outcome = ready.run("deployment-record")
    for damage, code, words in (
        (b"", 0, "✓ deployment-record.json: it has a SHA-256 that you gave"),
        (b" ", 1, "✗ deployment-record.json"),
    ):
        record = outcome.logs / "deployment-record.json"
        record.write_bytes(record.read_bytes() + damage)
        argv = [sys.executable, "-I", "-S", "verify_record.py", record.name, "--sha256", outcome.outputs["record-sha256"]]
        completed = subprocess.run(argv, cwd=outcome.logs, env={}, capture_output=True, text=True, check=False, timeout=60)
        assert (completed.returncode, completed.stdout.startswith(words)) == (code, True), completed.stdout + completed.stderr


def document_signed_by(data: bytes) -> str:
    return str(json.loads(data)["signed_by"])


def test_images_are_attested_by_the_digest_that_the_registry_has():
    document = {"artifact_kind": "images", "image_digests": {"auth_service": build.digest("auth_service")}}
    lines = deployment_record.subjects(document, RegistrySettings("registry.example/azora", False)).splitlines()
    assert lines[1:] == [f"{build.digest('auth_service').removeprefix('sha256:')}  registry.example/azora/auth_service"]
    assert len(deployment_record.subjects(document, None).splitlines()) == 1


def test_summary_tells_what_runs_where_and_until_when(ready):
    summary = ready.run("deployment-record").summary
    gantt = summary.split("```mermaid\n")[1].split("```")[0]
    seconds = {job: (int(end) - int(start)) / 1000 for job, start, end in re.findall(r"^  (\S+) :done, (\d+), (\d+)$", gantt, re.MULTILINE)}
    assert seconds == {job: round(end - start, 3) for job, (start, end) in build.TIMES.items()}
    assert f"deployment-report-{build.DEPLOYMENT_ID}.html, in this job's artifact" in summary
    for part in (
        "## ✅ v1.2.3 is in production",
        "to v1.2.2 until **2025-11-24T12:36:00.125Z**",
        "| canary | 5 % | 5 min 1 s | 1 of 240 |",
        f"`s3://{ready.bucket}/{KEY}`",
        build.digest("auth_service"),
        "| database-backup | 1 min 59 s |",
        '"rollback_window_minutes": 60',
    ):
        assert part in summary, part


def test_artifacts_of_every_job_are_archived(ready):
    outcome = ready.run("deployment-record")
    archived = ready.objects("artifacts/")
    prefix = f"artifacts/production/{build.DEPLOYMENT_ID}/1/"
    assert archived[f"{prefix}backup-logs-{build.DEPLOYMENT_ID}/database-backup.log"] == b"log of database-backup\n"
    page = archived.pop(f"{prefix}deployment-record-{build.DEPLOYMENT_ID}/deployment-report-{build.DEPLOYMENT_ID}.html")
    assert page == (outcome.logs / f"deployment-report-{build.DEPLOYMENT_ID}.html").read_bytes()
    assert outcome.evidence["record_sha256"].encode() in page
    assert len(archived) == outcome.evidence["artifacts"]["files"] == 2 * len(pipeline.EVIDENCE_JOBS)
    fragment = json.loads(archived[f"{prefix}smoke-test-logs-{build.DEPLOYMENT_ID}/record/smoke-tests.json"])
    recorded = json.loads(ready.records()[KEY])["evidence"]["smoke-tests"]["fragment_sha256"]
    assert chain.sha256(schemas.canonical(fragment)) == recorded


def test_the_report_shows_sql_that_was_applied_and_compares_with_the_deployment_before(ready, monkeypatch):
    ready.run("deployment-record")
    sql = "CREATE TABLE courses (id int);\n"
    monkeypatch.chdir(ready.folder)
    for name, text in (("20261120000000_add_courses", sql), ("20261121000000_index_orders", "DROP TABLE orders;\n")):
        (ready.folder / "prisma" / "migrations" / name).mkdir(parents=True)
        (ready.folder / "prisma" / "migrations" / name / "migration.sql").write_text(text)
    applied = build.evidence("database-migrations")["applied"]
    applied[0]["checksum"] = hashlib.sha256(sql.encode()).hexdigest()
    later = {**build.complete(database_migrations=build.fragment("database-migrations", applied=applied))}
    own_id, before = "1764099999-fedcba", {"version": build.VERSION, "deployment_id": build.DEPLOYMENT_ID}
    later["gradual-rollout"].evidence["previous"] = before
    build.receive(ready.folder / "later", *(replace(part, deployment_id=own_id) for part in later.values()))
    outcome = ready.run("deployment-record", RECEIVED_ARTIFACTS_DIR=str(ready.folder / "later"), DEPLOYMENT_ID=own_id)
    assert outcome.code == 0
    page = (outcome.logs / f"deployment-report-{own_id}.html").read_text()
    assert "CREATE TABLE courses" in page and "DROP TABLE" not in page, "only what has the SHA-256 that was applied"
    assert f"Source: the record of {build.DEPLOYMENT_ID}" in page


def test_a_report_that_cannot_be_made_stops_nothing(ready, capfd, monkeypatch):
    monkeypatch.setattr(record_report, "verified_sql", lambda *_: Path("/dev/full").write_text("a full disk"))
    outcome = ready.run("deployment-record")
    assert outcome.code == 0 and outcome.evidence["notified"] is True and list(ready.records()) == [KEY]
    assert "the report with every tick" not in outcome.summary
    warning = "could not be made: OSError.*The record is complete without it"
    assert re.search(warning, (outcome.logs / "deployment-record.log").read_text()) and "title=No HTML report" in capfd.readouterr().out


def test_bucket_without_object_lock_is_said(tmp_path, s3_server):
    with SlackReceiver(tmp_path / "slack.jsonl") as slack:
        world = record_world.world(tmp_path, s3_server, slack, object_lock=False)
        build.receive(world.received, *build.complete().values())
        outcome = world.run("deployment-record")
    assert outcome.code == 0
    assert outcome.evidence["lock_until"] is None
    assert "not locked: the bucket has no Object Lock" in (outcome.logs / "deployment-record.log").read_text()


# --- again -------------------------------------------------------------------------------------------------------------


def test_writing_again_gives_the_same_bytes_and_is_recognised(ready):
    first = ready.run("deployment-record")
    rerun = ready.run("deployment-record")
    assert rerun.code == 0
    assert rerun.outputs["record-sha256"] == first.outputs["record-sha256"]
    assert len(ready.records()) == 1


def test_a_second_attempt_recognises_the_record_and_believes_no_artifact_that_slack_was_told(ready):
    first = ready.run("deployment-record")
    first.logs.rename(ready.received / f"deployment-record-{build.DEPLOYMENT_ID}")
    rerun = ready.run("deployment-record", GITHUB_RUN_ATTEMPT="2")
    assert rerun.code == 0
    assert rerun.outputs["record-sha256"] == first.outputs["record-sha256"]
    assert list(ready.records()) == [KEY]
    assert ready.slack.texts() == [MESSAGE, MESSAGE]


def test_a_second_attempt_after_other_evidence_writes_its_own_record(ready):
    ready.run("deployment-record")
    later_fragment = replace(build.fragment("smoke-tests", attempt=2), ended_at=build.moment(9000))
    build.receive(ready.received, later_fragment)
    rerun = ready.run("deployment-record", GITHUB_RUN_ATTEMPT="2")
    assert rerun.code == 0
    first, second = sorted(ready.records().items())
    assert second[0].endswith("/2.json")
    document = json.loads(second[1])
    assert document["previous_record_sha256"] == hashlib.sha256(first[1]).hexdigest()
    assert document["previous_record_location"] == ready.store.url(first[0])


def test_another_record_under_the_key_is_refused_and_named(ready):
    ready.store.put_once(KEY, b'{"status": "failed", "deployment_id": "x"}\n', content_type="application/json")
    outcome = ready.run("deployment-record")
    assert outcome.code == 1
    assert KEY in outcome.error
    assert ready.slack.texts() == []
    assert ready.records()[KEY].startswith(b'{"status": "failed"')


def test_each_record_names_the_one_before(ready):
    ready.run("deployment-record")
    other_id = "1764009999-abc123"
    left = [
        replace(fragment, deployment_id=other_id, evidence=json.loads(json.dumps(fragment.evidence).replace(build.DEPLOYMENT_ID, other_id)))
        for fragment in build.complete().values()
    ]
    build.receive(ready.folder / "received-2", *left)
    outcome = ready.run("deployment-record", DEPLOYMENT_ID=other_id, RECEIVED_ARTIFACTS_DIR=str(ready.folder / "received-2"))
    assert outcome.code == 0
    records = [data for _, data in sorted(ready.records().items())]
    assert len(records) == 2
    assert broken_links(records) == []
    assert outcome.evidence["previous_record_sha256"] == hashlib.sha256(records[0]).hexdigest()


# --- bad days ----------------------------------------------------------------------------------------------------------


def nothing_was_published(world) -> bool:
    return world.records() == {} and world.slack.texts() == []


@pytest.mark.parametrize("job", pipeline.EVIDENCE_JOBS)
def test_missing_evidence_is_no_success(world, job):
    left = build.complete()
    del left[job]
    build.receive(world.received, *left.values())
    outcome = world.run("deployment-record")
    assert outcome.code == 1
    assert outcome.error.startswith(f"No evidence of {job}")
    assert nothing_was_published(world)


def test_planted_backups_are_no_part_of_the_record(ready):
    """The attack: a fragment in another job's artifact, of a late attempt, names the attacker's bucket."""
    evil = build.fragment("database-backup", attempt=99, location="s3://evil/prod/dump.sql.gz")
    needs = build.needs_of(ready.received)
    for place in (f"validation-logs-{build.DEPLOYMENT_ID}", f"backup-logs-{build.DEPLOYMENT_ID}-attempt-99"):
        fragments.write(evil, ready.received / place)
        fragments.write(evil, ready.received / place / "deployment-logs")
    assert ready.run("deployment-record", NEEDS=needs).code == 0
    (record,) = ready.records().values()
    assert b"s3://evil" not in record
    assert json.loads(record)["database_backup"]["location"] == build.evidence("database-backup")["location"]


@pytest.mark.parametrize("job", pipeline.EVIDENCE_JOBS)
def test_a_job_without_the_output_closes_the_gate(ready, job):
    needs = json.loads(build.needs_of(ready.received))
    del needs[job]["outputs"]["fragment-sha256"]
    outcome = ready.run("deployment-record", NEEDS=json.dumps(needs))
    assert outcome.code == 1
    assert outcome.error.startswith(f"No evidence of {job}: the job (success) gave no output")
    assert "such as ec2 can mask" in outcome.fragment["error"]["next"]
    assert nothing_was_published(ready)


def test_a_failed_job_is_no_success(world):
    build.receive(world.received, *build.complete(smoke=build.fragment("smoke-tests", "failed")).values())
    outcome = world.run("deployment-record")
    assert outcome.code == 1
    assert "smoke-tests did not succeed" in outcome.error
    assert nothing_was_published(world)


def test_a_fragment_that_does_not_fit_its_schema_is_not_read(ready):
    path = next(ready.received.glob("**/record/database-backup.json"))
    path.write_text(path.read_text().replace('"rows": 120000', '"rows": "$(wc -l)"'))
    outcome = ready.run("deployment-record")
    assert outcome.code == 2
    assert "evidence.rows" in outcome.error
    assert nothing_was_published(ready)


def test_other_digests_than_built_are_no_success(world):
    rollout = build.fragment("gradual-rollout", services=dict.fromkeys(build.SERVICES, "sha256:" + "0" * 64))
    build.receive(world.received, *build.complete(rollout=rollout).values())
    outcome = world.run("deployment-record")
    assert outcome.code == 1
    assert "The evidence contradicts itself" in outcome.error
    assert "auth_service: sha256:" in outcome.error
    assert nothing_was_published(world)


def test_a_bucket_that_refuses_is_no_archive_and_no_message(ready):
    ready.stores.fault("error", "PutObject", key="records/*", status=403, code="AccessDenied", times=None)
    outcome = ready.run("deployment-record")
    assert outcome.code in {2, 3}
    assert ready.slack.texts() == []
    assert (outcome.logs / "deployment-record.json").exists(), "the record is lost"
    ready.stores.faults.clear()
    assert ready.run("deployment-record").code == 0


def test_a_failure_to_notify_does_not_change_the_verdict(ready):
    ready.slack.answer_next(ANSWERS["404"])
    outcome = ready.run("deployment-record")
    assert outcome.code == 0
    assert outcome.evidence["notified"] is False
    assert "404 'no_service'" in outcome.evidence["notification"]
    assert "404 'no_service'" in outcome.summary


def test_slack_takes_the_blocks_beside_the_text(ready):
    outcome = ready.run("deployment-record")
    assert (outcome.evidence["notification"], ready.slack.refusals) == ("Slack answered ok", [])
    payload = json.loads(ready.slack.messages.read_text().splitlines()[0])["payload"]
    assert "2025-11-24T12:36:00.125Z" in json.dumps(payload["blocks"]), "until when going back is possible"


def test_without_a_webhook_nobody_is_told(ready):
    outcome = ready.run("deployment-record", SLACK_WEBHOOK=None)
    assert outcome.code == 0
    assert outcome.evidence["notified"] is False
    assert ready.slack.requests == 0


def test_first_deployment_promises_no_rollback(world):
    rollout = build.fragment("gradual-rollout", previous=None, rollback_available=False)
    build.receive(world.received, *build.complete(rollout=rollout).values())
    assert world.run("deployment-record").code == 0
    assert world.slack.texts() == [MESSAGE.removesuffix("\nRollback available for 60 minutes")]
