"""The finding says what the evidence shows, and that the rest is unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from azora_ci.core.pipeline import EVIDENCE_JOBS, PIPELINE
from azora_ci.record import diagnosis
from tests.support import fragments_builder as build


def needs(until=None, result="failure", **more):
    """Return results: success before ``until``, ``result`` for it, skipped after it."""
    results, word = {}, "success"
    for job in PIPELINE:
        results[job] = result if job == until else word
        if job == until:
            word = "skipped"
    return results | {job.replace("_", "-"): text for job, text in more.items()}


def fragments_of(*ok, **changed):
    """Return the fragments of these jobs."""
    return {job: build.fragment(job) for job in ok} | {fragment.job: fragment for fragment in changed.values()}


def diagnose(results, fragments):
    return diagnosis.diagnose(results, fragments, build.VERSION)


BEFORE_BACKUP = PIPELINE[: PIPELINE.index("database-backup")]
BEFORE_MIGRATIONS = PIPELINE[: PIPELINE.index("database-migrations")]
BEFORE_SMOKE_TESTS = EVIDENCE_JOBS[:-1]
BEFORE_ROLLOUT = PIPELINE[: PIPELINE.index("gradual-rollout")]


def test_a_red_check_touches_nothing():
    results = needs("pre-deployment-validation")
    finding = diagnose(results, fragments_of("validate-release", gate=build.fragment("pre-deployment-validation", "failed")))
    assert finding.status == "failed"
    assert [failure.job for failure in finding.failed] == ["pre-deployment-validation"]
    assert finding.failed[0].what == "exit code 7 after 3 of 5"
    assert finding.not_run == PIPELINE[len(BEFORE_BACKUP) :]
    assert finding.production == (
        "Code and traffic: unchanged. The rollout did not run; the version that was in production keeps all traffic.",
        "Schema: unchanged. The migrations did not run.",
    )
    assert finding.next_steps[0] == "pre-deployment-validation: mend it"


def test_old_code_on_the_new_schema_is_said():
    results = needs("build-and-push", database_migrations="success")
    finding = diagnose(results, fragments_of(*BEFORE_ROLLOUT[:-1], build=build.fragment("build-and-push", "failed", evidence={})))
    code, schema, both = finding.production
    assert "unchanged" in code
    assert schema == "Schema: migrated, 2 applied since the backup (20261120000000_add_courses, 20261121000000_index_orders)."
    assert both.startswith("Old code runs on the new schema")


def test_nothing_pending_means_that_the_schema_is_unchanged():
    results = needs("build-and-push", database_migrations="success")
    migrations = build.fragment("database-migrations", migrations_applied=0, applied=[])
    assert diagnose(results, fragments_of(*BEFORE_MIGRATIONS, m=migrations)).production[1:] == ("Schema: unchanged, nothing was pending.",)


def test_a_failed_migration_is_never_called_rolled_back():
    applied = build.evidence("database-migrations")["applied"][:1]
    migrations = build.fragment("database-migrations", "failed", evidence={"applied": applied})
    _, schema, both = diagnose(needs("database-migrations"), fragments_of(*BEFORE_MIGRATIONS, m=migrations)).production
    assert "1 applied (20261120000000_add_courses)" in schema
    assert "can have stayed" in schema
    assert both.startswith("Old code runs on the new schema")


@pytest.mark.parametrize(
    ("gained", "lost", "sentence"),
    [
        ([], [], "the schema is unchanged; rows may not be"),
        (["column orders.total integer"], [], "the schema gained column orders.total integer."),
        (["table a"], ["table b"], "the schema gained table a and lost table b."),
    ],
)
def test_the_comparison_of_schemas_is_told(gained, lost, sentence):
    evidence = {"applied": [], "failed": ["20261122080000_order_totals"], "schema_gained": gained, "schema_lost": lost}
    finding = diagnose(
        needs("database-migrations"), fragments_of(*BEFORE_MIGRATIONS, m=build.fragment("database-migrations", "failed", evidence=evidence))
    )
    assert "none recorded as applied, failed: 20261122080000_order_totals." in finding.production[1]
    assert sentence in finding.production[1]


CHANGED = {"schema_gained": ["table billing.invoices"], "schema_lost": []}


@pytest.mark.parametrize(
    ("status", "evidence", "sentence"),
    [
        (
            "ok",
            {"exit_code": 0, **CHANGED},
            "exit code 0. Compared before and after, the schema gained table billing.invoices.",
        ),
        (
            "failed",
            {"exit_code": 1, "schema_gained": [], "schema_lost": []},
            "ended as failed, exit code 1. Compared before and after,",
        ),
        ("cancelled", {}, "the migrate command ended as cancelled. What it changed is unknown: look at the database."),
    ],
)
def test_another_tools_migrations_are_told_by_what_they_changed(status, evidence, sentence):
    complete = {**build.evidence("database-migrations"), "applied": [], "migrations_applied": None} if status == "ok" else {}
    migrations = build.fragment("database-migrations", status, evidence={**complete, "tool": "command", **evidence})
    results = needs("build-and-push", database_migrations="success" if status == "ok" else "failure")
    production = diagnose(results, fragments_of(*BEFORE_MIGRATIONS, m=migrations)).production
    assert sentence in production[1]
    assert any("Old code runs on the new schema" in line for line in production) == bool(evidence.get("schema_gained"))


def test_an_application_without_migrations_has_an_unchanged_schema():
    migrations = build.fragment("database-migrations", tool="none", migrations_applied=0, applied=[])
    production = diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_MIGRATIONS, m=migrations)).production
    assert "Schema: unchanged. The application has no migrations." in production


def test_a_known_risk_for_the_old_version_is_named():
    risk = {"migration": "m1", "kind": "old-version", "statement": "DROP COLUMN x", "why": "v1.2.2 may read it"}
    migrations = build.fragment("database-migrations", risks=[risk])
    finding = diagnose(needs("build-and-push", database_migrations="success"), fragments_of(*BEFORE_MIGRATIONS, m=migrations))
    assert finding.production[2] == "Old code runs on the new schema, which may break it: m1: DROP COLUMN x (v1.2.2 may read it)."


@pytest.mark.parametrize(("value", "word"), [(True, "it does"), (False, "it does not")])
def test_what_was_tried_on_a_copy_is_said_of_old_code_on_the_new_schema(value, word):
    safe = {"value": value, "how": "tested", "reasons": ["GET /api of api_gateway: HTTP 500"]}
    backup = build.fragment("database-backup", code_rollback_safe=safe)
    results = needs("build-and-push", database_migrations="success")
    parts = fragments_of(*BEFORE_MIGRATIONS, b=backup, m=build.fragment("database-migrations"))
    tried = f"{word}, it was tried on a migrated copy: GET /api of api_gateway: HTTP 500."
    assert diagnose(results, parts).production[2] == f"Old code runs on the new schema; whether it works there: {tried}"


def test_migrations_without_evidence_are_unknown():
    production = diagnose(needs("database-migrations"), fragments_of(*BEFORE_MIGRATIONS)).production
    assert production[1] == "Schema: unknown. database-migrations (failure) left no evidence; read _prisma_migrations."


def aborted(proved=True, outcome="rolled_back", **more):
    reason = "api_gateway: 4 of 30 probes failed (13 %), limit 5 %"
    abort = {"stage": "canary", "reason": reason, "seconds_to_safe": 1.5, "proved": proved, "detail": "0 requests in 3 s"}
    return build.fragment("gradual-rollout", "failed", rollout_status=outcome, abort=abort, **more)


def test_a_job_that_failed_after_the_promotion_is_named_beside_the_traffic():
    rollout = build.fragment("gradual-rollout", "failed", jobs=[build.JOB])
    finding = diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_ROLLOUT, rollout=rollout))
    assert finding.status == "failed"
    assert finding.production[0] == f"Code and traffic: {build.VERSION} has all traffic; the rollout completed."
    assert finding.production[1] == f"Jobs of the release: {build.JOB['summary']}. What they did stays, nothing undoes it."
    assert any(line.startswith("Rollback: v1.2.2 is kept") for line in finding.production)


def test_a_rollback_names_stage_reason_and_proof():
    finding = diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_ROLLOUT, r=aborted()))
    assert finding.status == "rolled_back"
    assert finding.production[0] == (
        "Code and traffic: v1.2.2 has all traffic again within 1.5 s; this was verified (0 requests in 3 s). "
        "Aborted in stage canary: api_gateway: 4 of 30 probes failed (13 %), limit 5 %."
    )


def test_an_unproved_rollback_is_said():
    finding = diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_ROLLOUT, r=aborted(proved=False)))
    assert "NOT verified" in finding.production[0]
    assert "before anything else" in finding.next_steps[0]


def test_a_cancelled_rollout_that_went_back_is_cancelled_and_safe():
    finding = diagnose(needs("gradual-rollout", "cancelled"), fragments_of(*BEFORE_ROLLOUT, r=aborted(outcome="cancelled")))
    assert finding.status == "cancelled"
    assert "v1.2.2 has all traffic again" in finding.production[0]


def test_a_first_deployment_that_went_back_leaves_no_version():
    rollout = aborted(outcome="failed", previous=None)
    assert "no version has traffic" in diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_ROLLOUT, r=rollout)).production[0]


def test_going_back_that_did_not_finish_is_alarming():
    rollout = aborted(outcome="failed")
    rollout.evidence["abort"] |= {"seconds_to_safe": None, "proved": False, "detail": "Edge: no answer"}
    finding = diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_ROLLOUT, r=rollout))
    assert "half done (failed). Taking traffic back did not finish: Edge: no answer." in finding.production[0]
    assert "before anything else" in finding.next_steps[0]


def test_a_rollout_that_ended_before_it_moved_anything():
    rollout = build.fragment("gradual-rollout", "failed", evidence={"stages": [], "abort": None})
    finding = diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_ROLLOUT, r=rollout))
    assert finding.production[0] == "Code and traffic: unchanged by this attempt. gradual-rollout ended (failure) before it moved anything."


def test_smoke_tests_that_took_traffic_back():
    back = {"to": "v1.2.2", "seconds_to_safe": 0.1, "proved": True, "detail": "0 requests in 3 s"}
    smoke = build.fragment("smoke-tests", "failed", smoke_status="failed", rollback=back)
    finding = diagnose(needs("smoke-tests", manual_rollback="success"), fragments_of(*BEFORE_SMOKE_TESTS, s=smoke))
    assert finding.status == "rolled_back"
    assert finding.production[0] == (
        "Code and traffic: v1.2.2 has all traffic again, because smoke tests of v1.2.3 failed; this was verified (0 requests in 3 s)."
    )


@pytest.mark.parametrize("outcome", ["failed", "cancelled", None])
def test_a_half_done_rollout_is_never_called_safe(outcome):
    stages = build.evidence("gradual-rollout")["stages"][:2]
    stages[1]["status"] = "cancelled"
    rollout = build.fragment(
        "gradual-rollout", "cancelled", evidence={"stages": stages, "rollout_status": outcome} if outcome else {"stages": stages}
    )
    finding = diagnose(needs("gradual-rollout", "cancelled"), fragments_of(*BEFORE_ROLLOUT, r=rollout))
    assert finding.status == "cancelled"
    assert "half done" in finding.production[0]
    assert "Last recorded stage: progressive (50 %), cancelled." in finding.production[0]
    assert "before anything else" in finding.next_steps[0]


def test_a_rollout_without_evidence_is_unknown():
    finding = diagnose(needs("gradual-rollout"), fragments_of(*BEFORE_ROLLOUT))
    assert finding.production[0].startswith("Code and traffic: unknown. gradual-rollout (failure) left no evidence")


def test_failed_smoke_tests_leave_the_new_version_and_name_the_service():
    tests = build.evidence("smoke-tests")["tests"]
    tests[1] |= {"passed": False, "status": 500, "detail": "answered 500"}
    smoke = build.fragment("smoke-tests", "failed", tests=tests, smoke_status="failed")
    finding = diagnose(needs("smoke-tests", manual_rollback="success"), fragments_of(*BEFORE_SMOKE_TESTS, s=smoke))
    assert finding.status == "failed"
    assert finding.production[0] == "Code and traffic: v1.2.3 has all traffic; the rollout completed."
    assert finding.production[1] == "Services: 1 of 4 smoke tests failed: auth_service (answered 500)."
    assert finding.production[-1] == "Rollback: v1.2.2 is kept; the artifact rollback-instructions says how to go back and until when."
    assert "ROLLBACK-INSTRUCTIONS.md" in " ".join(finding.next_steps)


def test_a_failed_record_does_not_alarm_about_production():
    finding = diagnose(
        needs("deployment-record"), fragments_of(*EVIDENCE_JOBS, r=build.fragment("deployment-record", "failed", evidence={}))
    )
    assert finding.production[:2] == (
        "Code and traffic: v1.2.3 has all traffic; the rollout completed.",
        "Services: all 4 smoke tests passed.",
    )
    assert any("production is not affected" in step for step in finding.next_steps)


# --- cancellation and missing evidence ---------------------------------------------------------------------------------


def test_jobs_that_a_cancelled_run_never_started_were_not_run():
    results = {job: "success" if job in BEFORE_BACKUP else "cancelled" for job in PIPELINE}
    backup = build.fragment("database-backup", "cancelled", evidence={})
    finding = diagnose(results, fragments_of(*BEFORE_BACKUP, b=backup))
    assert finding.status == "cancelled"
    assert "gradual-rollout" in finding.not_run
    assert finding.production[0].startswith("Code and traffic: unchanged.")
    assert finding.production[1].startswith("Schema: unchanged.")


def test_a_failure_beside_a_cancellation_is_a_failure():
    results = needs("database-migrations", build_and_push="cancelled")
    assert diagnose(results, fragments_of(*BEFORE_MIGRATIONS)).status == "failed"


def test_without_results_the_fragments_speak():
    finding = diagnose({}, fragments_of("validate-release", gate=build.fragment("pre-deployment-validation", "failed")))
    assert [failure.job for failure in finding.failed] == ["pre-deployment-validation"]
    assert finding.succeeded == ("validate-release",)
    assert "gradual-rollout" in finding.not_run  # it waits for the failed job


def test_without_anything_all_is_unknown():
    finding = diagnose({}, {})
    assert finding.unknown == PIPELINE
    assert finding.status == "failed"
    assert all("unknown" in sentence for sentence in finding.production)
    assert finding.next_steps[0].startswith("before anything else: read the routes at the edge")
    assert finding.next_steps[-1] == "no failed job was named: open the run and look for the job that is red"


def test_a_job_that_failed_around_its_step_is_not_blamed_on_the_step():
    results = needs("database-backup")
    (failed,) = diagnose(results, fragments_of(*BEFORE_MIGRATIONS)).failed
    assert "its own work ended well (attempt 1), the job did not" in failed.what


def test_a_job_that_left_nothing_says_so():
    (failed,) = diagnose(needs("database-backup"), fragments_of(*BEFORE_BACKUP)).failed
    assert "left no evidence" in failed.what
    assert failed.title == "database-backup: failure"


# --- the backup --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backup", "verified"),
    [
        (build.fragment("database-backup"), True),
        (build.fragment("database-backup", proof={"depth": "counts", "reason": "large"}), True),
        (build.fragment("database-backup", proof={"depth": "none", "reason": "huge"}), False),
        (replace(build.fragment("database-backup"), status="failed"), False),
        (replace(build.fragment("database-backup", trial={"passed": False}), status="failed"), True),
        (replace(build.fragment("database-backup", code_rollback_safe={"value": False}), status="failed"), True),
        (build.fragment("database-backup", evidence={}), False),
    ],
)
def test_a_backup_is_verified_only_by_proof(backup, verified):
    assert (diagnosis.verified_backup({"database-backup": backup}) is not None) is verified


def test_no_backup_is_no_verified_backup():
    assert diagnosis.verified_backup({}) is None
