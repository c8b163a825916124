"""deployment-failure-handler reports all evidence that there is, keeps the backup, notifies people, and never fails silently."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from azora_ci.core import schemas
from azora_ci.record import deployment, fragments
from azora_ci.record.audit import verify_record
from azora_ci.record.pages import failure
from azora_ci.rehearsal.standins.slack import ANSWERS, SlackReceiver
from tests.clients.slack.test_messages import FAILURE
from tests.core.test_markdown import PARSER
from tests.support import fragments_builder as build
from tests.support import record_world

JOB = "deployment-failure-handler"
KEY = f"records/production/{build.DEPLOYMENT_ID}/1.json"
WITH_BACKUP = FAILURE.replace("1234567890-abc123", build.DEPLOYMENT_ID)
WITHOUT_BACKUP = WITH_BACKUP.replace("Database backup available for rollback\n", "")
ORDER = list(build.ARTIFACTS)
BACKUP = ORDER.index("database-backup")


@pytest.fixture
def world(tmp_path, s3_server):
    with SlackReceiver(tmp_path / "slack.jsonl") as slack:
        yield record_world.world(tmp_path, s3_server, slack)


def failed_at(world, job, *, result="failure", backup=True, **changes):
    """Write the artifacts of a run whose ``job`` failed, and return the run's ``toJSON(needs)``."""
    at = ORDER.index(job)
    stored = world.put_backup() if backup and at > BACKUP else {}
    left = [build.fragment(earlier, **(stored if earlier == "database-backup" else {})) for earlier in ORDER[:at]]
    status = "failed" if result == "failure" else "cancelled"
    build.receive(world.received, *left, build.fragment(job, status, **changes))
    results = {later.replace("-", "_"): "skipped" for later in ORDER[at + 1 :]}
    return build.needs(world.received, **{job.replace("-", "_"): result}, **results)


def report_of(outcome):
    report = outcome.document("deployment-failure-report.json")
    assert schemas.problems(report, failure.SCHEMA) == []
    return report


# --- each stage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ORDER[: BACKUP + 6])
def test_the_failed_stage_is_reported_with_its_error_whatever_it_is(world, job):
    outcome = world.run(JOB, NEEDS=failed_at(world, job, evidence={}))
    assert outcome.code == 0
    report = report_of(outcome)
    assert [failed_job["job"] for failed_job in report["failed_jobs"]] == [job]
    assert report["failed_jobs"][0]["what"] == "exit code 7 after 3 of 5"
    assert report["not_run"] == ORDER[ORDER.index(job) + 1 :]
    page = (outcome.logs / "deployment-failure-report.md").read_text()
    assert f"### {job} (failure): It broke\n\n```text\nexit code 7 after 3 of 5\n```" in page
    assert page.strip() in outcome.summary
    assert world.slack.texts() == [WITH_BACKUP if ORDER.index(job) > BACKUP else WITHOUT_BACKUP]


def test_a_record_of_the_failure_is_archived_with_the_artifacts(world):
    outcome = world.run(JOB, NEEDS=failed_at(world, "database-migrations", evidence={"applied": []}))
    data = world.records()[KEY]
    assert outcome.evidence["record_sha256"] == hashlib.sha256(data).hexdigest()
    assert outcome.evidence["record_location"] == f"s3://{world.bucket}/{KEY}"
    assert (outcome.logs / "deployment-record.json").read_bytes() == data
    assert (outcome.logs / "verify_record.py").read_bytes() == Path(verify_record.__file__).read_bytes()
    document = json.loads(data)
    assert schemas.problems(document, deployment.SCHEMA) == []
    assert document["status"] == "failed"
    assert document["failure"]["failed_jobs"][0]["job"] == "database-migrations"
    assert document["failure"]["not_run"] == ORDER[BACKUP + 2 :]
    assert document["timestamp"] == build.moment(185.2)  # the end of its last job
    report = f"artifacts/production/{build.DEPLOYMENT_ID}/1/deployment-failure-report-{build.DEPLOYMENT_ID}/deployment-failure-report.json"
    assert world.objects("artifacts/")[report] == (outcome.logs / "deployment-failure-report.json").read_bytes()
    page = outcome.logs / f"deployment-report-{build.DEPLOYMENT_ID}.html"
    assert world.objects("artifacts/")[f"{report.rpartition('/')[0]}/{page.name}"] == page.read_bytes()
    assert f"The deployment of {build.VERSION} failed" in page.read_text() and outcome.evidence["record_sha256"] in page.read_text()
    assert f"artifacts/production/{build.DEPLOYMENT_ID}/1/migration-logs-{build.DEPLOYMENT_ID}/database-migrations.log" in world.objects("")


def test_a_rollback_is_recorded_as_one(world):
    abort = {
        "stage": "canary",
        "reason": "api_gateway failed 5 of 5 probes",
        "seconds_to_safe": 0.2,
        "proved": True,
        "detail": "0 requests",
    }
    needs = failed_at(world, "gradual-rollout", rollout_status="rolled_back", abort=abort, rollback_available=False)
    outcome = world.run(JOB, NEEDS=needs)
    assert json.loads(world.records()[KEY])["status"] == "rolled_back"
    assert "v1.2.2 has all traffic again within 0.2 s; this was verified" in outcome.evidence["production_state"]
    assert "# 🚨 Deployment of v1.2.3 was rolled back" in outcome.summary


@pytest.mark.parametrize("job", ORDER[1 : BACKUP + 6])
def test_a_run_that_was_cancelled_in_any_job_is_recorded_as_one(world, job):
    outcome = world.run(JOB, NEEDS=failed_at(world, job, result="cancelled", evidence={}))
    assert outcome.code == 0
    assert outcome.evidence["status"] == "cancelled"
    assert outcome.evidence["failed_jobs"] == [job]
    assert report_of(outcome)["not_run"] == ORDER[ORDER.index(job) + 1 :]
    assert json.loads(world.records()[KEY])["status"] == "cancelled"
    assert world.slack.texts() == [WITH_BACKUP if ORDER.index(job) > BACKUP else WITHOUT_BACKUP]


def test_failed_smoke_tests_leave_the_new_version_and_say_so(world):
    tests = build.evidence("smoke-tests")["tests"]
    tests[0] |= {"passed": False, "status": 500, "detail": "HTTP 500"}
    outcome = world.run(JOB, NEEDS=failed_at(world, "smoke-tests", tests=tests, smoke_status="failed"))
    assert "v1.2.3 has all traffic" in outcome.evidence["production_state"]
    assert "1 of 4 smoke tests failed: api_gateway (HTTP 500)" in outcome.evidence["production_state"]


def test_a_record_of_success_is_not_contradicted_by_what_fails_after_it(world):
    stored = world.put_backup()
    build.receive(world.received, *build.complete(backup=build.fragment("database-backup", **stored)).values())
    success = world.run("deployment-record")
    success.logs.rename(world.received / f"deployment-record-{build.DEPLOYMENT_ID}")
    build.receive(world.received, build.fragment("manual-rollback", "failed", evidence={}))
    outcome = world.run(JOB, NEEDS=build.needs(world.received, manual_rollback="failure"))
    assert outcome.code == 0
    assert outcome.evidence["record_sha256"] == success.outputs["record-sha256"]
    assert [json.loads(data)["status"] for data in world.records().values()] == ["success"]
    assert outcome.evidence["notes"] == []


# --- the backup --------------------------------------------------------------------------------------------------------


def test_the_very_object_that_was_proven_is_looked_for(world):
    needs = failed_at(world, "database-migrations", evidence={})
    outcome = world.run(JOB, NEEDS=needs)
    backup = outcome.evidence["backup"]
    assert backup["verified"] is True
    assert backup["backup_id"] == build.BACKUP
    assert "4 bytes" in backup["detail"]
    assert f"prod/{build.BACKUP}.sql.gz" in world.objects("prod/"), "the backup was not preserved"


def test_scripts_that_restore_a_verified_backup_lie_beside_the_report(world):
    outcome = world.run(JOB, NEEDS=failed_at(world, "database-migrations", evidence={}))
    assert outcome.evidence["backup"]["scripts"] == ["restore-database.sh", "swap-database.sh"]
    script = (outcome.logs / "restore-database.sh").read_text()
    assert f"\nbucket={world.bucket}\nkey=prod/{build.BACKUP}.sql.gz\nversion_id=" in script
    assert "`bash restore-database.sh`, beside this report" in outcome.summary
    assert any(key.endswith("/restore-database.sh") for key in world.objects("artifacts/"))


def test_a_backup_that_is_gone_is_not_promised(world):
    outcome = world.run(JOB, NEEDS=failed_at(world, "database-migrations", backup=False, evidence={}))
    assert outcome.code == 0
    assert outcome.evidence["backup"]["verified"] is False
    assert not (outcome.logs / "restore-database.sh").exists()
    assert any("the backup could not be looked at" in note for note in outcome.evidence["notes"])
    assert world.slack.texts() == [WITHOUT_BACKUP]


def test_another_object_in_its_place_is_not_promised(world):
    failed_at(world, "database-migrations", evidence={})
    path = next(world.received.glob("**/record/database-backup.json"))
    path.write_text(path.read_text().replace('"size_bytes": 4', '"size_bytes": 5'))
    outcome = world.run(JOB, NEEDS=build.needs(world.received, database_migrations="failure"))
    assert any("has 4 bytes, the verified backup has 5" in note for note in outcome.evidence["notes"])
    assert world.slack.texts() == [WITHOUT_BACKUP]


def test_an_unproven_backup_is_kept_but_not_promised(world):
    stored = world.put_backup()
    proof = {"depth": "none", "restore_seconds": None, "verified_at": build.moment(170), "reason": "4 TB"}
    left = [build.fragment(earlier) for earlier in ORDER[:2]] + [build.fragment("database-backup", proof=proof, **stored)]
    build.receive(world.received, *left, build.fragment("database-migrations", "failed", evidence={}))
    outcome = world.run(JOB, NEEDS=build.needs(world.received, database_migrations="failure", gradual_rollout="skipped"))
    assert "never proven" in outcome.evidence["backup"]["detail"]
    assert world.slack.texts() == [WITHOUT_BACKUP]


# --- when almost everything is missing -----------------------------------------------------------------------------------

UNSET = dict.fromkeys(["DEPLOYMENT_ID", "VERSION", "GIT_SHA", "NEEDS", "SLACK_WEBHOOK", "GITHUB_REPOSITORY"])


def test_a_run_that_failed_before_it_had_an_id(world):
    outcome = world.run(JOB, NEEDS=build.needs(world.received, validate_release="failure"), DEPLOYMENT_ID="", VERSION="", GIT_SHA="")
    assert outcome.code == 0
    assert outcome.fragment["status"] == "ok"
    report = report_of(outcome)
    assert report["deployment_id"] is None
    assert report["failed_jobs"][0]["job"] == "validate-release"
    assert world.records() == {}
    assert world.slack.texts() == [WITHOUT_BACKUP.replace("v1.2.3", "unknown").replace(build.DEPLOYMENT_ID, "none was assigned")]


def test_nothing_at_all(world):
    outcome = world.run(JOB, DEPLOY_CONFIG="/nowhere/deploy.toml", **UNSET)
    assert outcome.code == 0
    report = report_of(outcome)
    assert report["unknown"] == ORDER
    assert any("NEEDS is not set" in note for note in report["notes"])
    assert "unknown" in (outcome.logs / "deployment-failure-report.md").read_text()
    assert "Slack was not told" in report["notification"] or "SLACK_WEBHOOK is not set" in report["notification"]


def test_without_configuration_the_report_and_the_record_are_written(world):
    needs = failed_at(world, "database-migrations", evidence={})
    outcome = world.run(JOB, NEEDS=needs, DEPLOY_CONFIG="/nowhere/deploy.toml")
    assert outcome.code == 0
    assert any("the record was not archived: No deployment configuration" in note for note in report_of(outcome)["notes"])
    assert schemas.problems(outcome.document("deployment-record.json"), deployment.SCHEMA) == []
    assert outcome.evidence["record_location"] is None
    assert world.slack.texts() == [WITH_BACKUP]


def test_a_store_that_refuses_ends_neither_report_nor_message(world):
    needs = failed_at(world, "database-migrations", evidence={})
    world.stores.fault("error", "*", status=403, code="AccessDenied", times=None)
    outcome = world.run(JOB, NEEDS=needs)
    assert outcome.code == 0
    notes = report_of(outcome)["notes"]
    assert any("the backup could not be looked at" in note for note in notes)
    assert any("the record was not archived" in note for note in notes)
    assert world.slack.texts() == [WITHOUT_BACKUP]
    assert "What this report could not do" in outcome.summary


def test_a_store_that_nobody_answers_at(world):
    needs = failed_at(world, "database-migrations", evidence={})
    outcome = world.run(JOB, NEEDS=needs, AWS_ENDPOINT_URL_S3="http://127.0.0.1:1")
    assert outcome.code == 0
    assert world.slack.texts() == [WITHOUT_BACKUP]
    assert outcome.evidence["record_sha256"] is not None


def test_a_fragment_that_cannot_be_read_is_left_out_and_named(world):
    needs = failed_at(world, "database-migrations", evidence={})
    path = next(world.received.glob("**/record/pre-deployment-validation.json"))
    path.write_text("{cut off")
    outcome = world.run(JOB, NEEDS=needs)
    assert outcome.code == 0
    assert any(
        "pre-deployment-validation.json was left out: " in note and "a bracket is not closed" in note
        for note in report_of(outcome)["notes"]
    )
    assert any("what pre-deployment-validation left is not used: No evidence of" in note for note in report_of(outcome)["notes"])


@pytest.mark.parametrize("needs", ["no json", "[]", '{"database-backup": null}', '{"database-backup": "failure"}'])
def test_results_that_make_no_sense_are_noted(world, needs):
    failed_at(world, "database-migrations", evidence={})
    outcome = world.run(JOB, NEEDS=needs)
    assert outcome.code == 0
    report = report_of(outcome)
    assert any(note.startswith("no fragment can be verified: NEEDS is not the result of jobs") for note in report["notes"])
    assert [part["job"] for part in report["unverified"]] == ORDER[: BACKUP + 2]
    assert report["failed_jobs"] == []


# --- what no output names ---------------------------------------------------------------------------------------------


def without_output(needs: str, job: str) -> str:
    """Return ``toJSON(needs)`` in which a job gave no outputs: it was killed, or GitHub dropped what looked like a secret."""
    document = json.loads(needs)
    document[job]["outputs"] = {}
    return json.dumps(document)


def test_a_job_that_was_killed_is_shown_unverified_and_nothing_rests_on_it(world):
    needs = failed_at(world, "gradual-rollout", rollout_status="completed")
    outcome = world.run(JOB, NEEDS=without_output(needs, "gradual-rollout"))
    assert outcome.code == 0
    report = report_of(outcome)
    (shown,) = report["unverified"]
    assert (shown["job"], shown["status"], shown["what"]) == ("gradual-rollout", "failed", "exit code 7 after 3 of 5")
    assert report["notes"] == []
    assert "Code and traffic: unknown. gradual-rollout (failure) left no evidence" in outcome.evidence["production_state"]
    assert "left no evidence" in report["failed_jobs"][0]["what"]
    page = (outcome.logs / "deployment-failure-report.md").read_text()
    assert "## Unverified" in page
    assert "| gradual-rollout | unverified: failed | exit code 7 after 3 of 5 |" in page
    assert "a short secret such as ec2 can mask hex digits" in page
    document = json.loads(world.records()[KEY])
    assert document["failure"]["unverified"] == ["gradual-rollout"]
    assert (document["rollout"], document["services_deployed"], document["rollout_stages"]) == (None, [], [])
    assert "gradual-rollout" not in document["evidence"]


def test_a_backup_that_no_output_names_gets_no_script_and_no_promise(world):
    needs = failed_at(world, "database-migrations", evidence={})
    outcome = world.run(JOB, NEEDS=without_output(needs, "database-backup"))
    assert outcome.evidence["backup"] is None
    assert any("what database-backup left is not used: No evidence of database-backup" in note for note in outcome.evidence["notes"])
    assert [part["job"] for part in outcome.evidence["unverified"]] == ["database-backup"]
    assert not (outcome.logs / "restore-database.sh").exists()
    assert json.loads(world.records()[KEY])["database_backup"] is None
    assert world.slack.texts() == [WITHOUT_BACKUP]


def test_a_planted_backup_is_no_part_of_report_and_record(world):
    """The attack: another job's artifact brings a backup fragment, of a late attempt, that names the attacker's bucket."""
    needs = failed_at(world, "database-migrations", evidence={})
    evil = build.fragment("database-backup", attempt=99, location="s3://evil/prod/dump.sql.gz")
    for place in ("validation-logs", "backup-logs"):
        fragments.write(evil, world.received / f"{place}-{build.DEPLOYMENT_ID}-attempt-99")
        fragments.write(evil, world.received / f"{place}-{build.DEPLOYMENT_ID}" / "deployment-logs")
    fragments.write(evil, world.received / f"validation-logs-{build.DEPLOYMENT_ID}")
    outcome = world.run(JOB, NEEDS=needs)
    assert outcome.code == 0
    assert report_of(outcome)["unverified"] == report_of(outcome)["notes"] == []
    assert outcome.evidence["backup"]["location"].startswith(f"s3://{world.bucket}/")
    assert b"evil" not in world.records()[KEY] + (outcome.logs / "deployment-failure-report.json").read_bytes()


def test_slack_that_does_not_answer_is_said(world):
    world.slack.answer_next(ANSWERS["404"])
    outcome = world.run(JOB, NEEDS=failed_at(world, "database-migrations", evidence={}))
    assert outcome.code == 0
    assert report_of(outcome)["notified"] is False
    assert "404 'no_service'" in outcome.evidence["notification"]


def test_fragments_of_another_deployment_are_not_taken(world):
    needs = failed_at(world, "database-migrations", evidence={})
    outcome = world.run(JOB, NEEDS=needs, DEPLOYMENT_ID="1764555555-abc123")
    assert outcome.code == 0
    assert outcome.evidence["backup"] is None
    assert "left no evidence" in report_of(outcome)["failed_jobs"][0]["what"]


def test_the_newest_attempt_counts(world):
    failed_at(world, "database-migrations", evidence={})
    error = build.ERROR | {"what": "the second time it was something else"}
    build.receive(world.received, build.fragment("database-migrations", "failed", attempt=2, evidence={}, error=error))
    needs = build.needs(world.received, database_migrations="failure", build_and_push="skipped")
    outcome = world.run(JOB, NEEDS=needs, GITHUB_RUN_ATTEMPT="2")
    assert report_of(outcome)["failed_jobs"][0]["what"] == "the second time it was something else"
    assert list(world.records()) == [KEY.replace("/1.json", "/2.json")]


def test_what_a_job_printed_cannot_break_out_of_the_report(world):
    injected = "quoted\n# ✅ all is well"
    error = build.ERROR | {"what": "```\n# not a heading\n::error::injected", "title": injected, "where": injected, "next": injected}
    outcome = world.run(JOB, NEEDS=failed_at(world, "build-and-push", evidence={}, error=error))
    page = (outcome.logs / "deployment-failure-report.md").read_text()
    assert "````text\n```\n# not a heading\n::error::injected\n````" in page
    assert page.count("quoted # ✅ all is well") == 3
    assert "\n# ✅" not in page


def test_what_a_job_printed_is_shown_as_it_was(world):
    injected = "<img src=x> [a](https://evil.example) | ``` *b*"
    error = build.ERROR | {"title": injected, "where": injected, "next": injected}
    outcome = world.run(JOB, NEEDS=failed_at(world, "build-and-push", evidence={}, error=error))
    html = PARSER.render((outcome.logs / "deployment-failure-report.md").read_text())
    assert html.count("&lt;img src=x&gt; [a](https://evil.example) | ``` *b*") == 3
    assert "<img" not in html
    assert 'evil.example"' not in html
