"""The judge: right evidence has no findings, and each kind of wrong evidence has one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from azora_ci.rehearsal.judge.deployment import ARTIFACTS, JOBS, Demand, expected_message, findings
from azora_ci.rehearsal.judge.evidence import Dump, Evidence, JobResult, artifacts, leaks, read_dump
from azora_ci.rehearsal.judge.load import LoadAnswer
from azora_ci.rehearsal.judge.report import RehearsalOutcome, periods, render
from azora_ci.rehearsal.scenarios import SCENARIOS, after_rerun, with_version

OWN_ID = "1764000100-abc123"
URL = "http://127.0.0.1:8080"
START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC).timestamp()
STAGE_SECONDS = {"canary": 10, "progressive": 10, "full": 10}
PERCENT = {"canary": 5, "progressive": 50, "full": 100}
ERROR = {"title": "It broke", "what": "4 of 30 probes failed\nlimit 5 %"}


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(START + seconds, UTC).isoformat()


def evidence_of_stages(demand: Demand) -> list[dict[str, Any]]:
    return [
        {
            "stage": name,
            "status": status,
            "traffic_percentage": PERCENT[name],
            "started_at": moment(10 * number),
            "ended_at": moment(10 * number + 10),
        }
        for number, (name, status) in enumerate(demand.stages)
    ]


def traffic(demand: Demand) -> list[LoadAnswer]:
    """Return twenty answers a second: before the rollout, in each stage with its share, and after it."""
    load = [LoadAnswer(START - 5 + n / 20, "/api/health", 200, demand.old, 30.0) for n in range(90)]
    for number, (name, status) in enumerate(demand.stages):
        for n in range(200):
            new = n % 100 < PERCENT[name]
            bad = new and status == "aborted" and demand.failing_paths is not None
            version = demand.new if new else demand.old
            load.append(LoadAnswer(START + 10 * number + n / 20, "/api/education/courses", 500 if bad else 200, version, 30.0))
    end = START + 10 * len(demand.stages) + 2 + demand.settle_seconds
    if demand.failing_paths and demand.serving == demand.old:  # until the rollback
        load.append(LoadAnswer(START + 29.9, demand.failing_paths[0], 500, demand.new, 30.0))
    code = 500 if demand.failing_paths and demand.serving == demand.new else 200
    load += [LoadAnswer(end + n / 20, "/api/education/courses", code, demand.serving, 30.0) for n in range(40)]
    return load


def summaries_of(demand: Demand) -> dict[str, str]:
    """Return the plan, a line for each stage, and the error of each job that failed."""
    errors = dict.fromkeys(demand.failed, f"### ✗ {ERROR['title']}\n\n{ERROR['what']}\n")
    plan = f"Plan: v{demand.old} -> v{demand.new}\n" + "".join(f"**{name}**: 5 %\n" for name, _ in demand.stages)
    return {**errors, "gradual-rollout": plan + errors.get("gradual-rollout", "")}


def right_evidence(demand: Demand) -> Evidence:
    """Return evidence that meets every point of the demand."""
    jobs = {name: JobResult(demand.result(name), 1.0, START, START + 30) for name in JOBS}
    jobs["gradual-rollout"] = replace(jobs["gradual-rollout"], ended=START + 10 * len(demand.stages) + 1)
    handed_over = demand.handed_over
    files: dict[str, list[str]] = {name: ["part.tar.zst"] for name in handed_over}
    documents: dict[str, Any] = {}
    for job in JOBS:
        if demand.result(job) == "skipped":
            continue
        suffix = f"-attempt-{demand.attempt}" if job in demand.rerun_jobs else ""
        name = f"{ARTIFACTS[job]}-{OWN_ID}{suffix}"
        files[name] = [f"record/{job}.json"]
        status = "failed" if job in demand.failed else "ok"
        attempt = demand.attempt if job in demand.rerun_jobs else 1
        fragment = {"job": job, "status": status, "deployment_id": OWN_ID, "run_attempt": attempt, "ended_at": moment(40), "evidence": {}}
        documents[f"{name}/record/{job}.json"] = fragment
        if status == "failed":
            fragment["error"] = ERROR
        if job == demand.lost_job:
            del documents[f"{name}/record/{job}.json"]
        if job == "gradual-rollout":
            fragment["evidence"] = {"stages": evidence_of_stages(demand)}
    last = "deployment-record" if demand.succeeded else "deployment-failure-handler"
    suffix = f"-attempt-{demand.attempt}" if last in demand.rerun_jobs else ""
    record = record_of(demand)
    archived = json.dumps(record).encode()
    documents[f"{ARTIFACTS[last]}-{OWN_ID}{suffix}/deployment-record.json"] = record
    fragment = documents[f"{ARTIFACTS[last]}-{OWN_ID}{suffix}/record/{last}.json"]
    fragment["evidence"] = {"record_sha256": hashlib.sha256(archived).hexdigest()}
    key = f"prod/backup-{OWN_ID}.sql.gz"
    return Evidence(
        jobs=jobs,
        answers=traffic(demand),
        fresh={path: {f"200 {demand.serving}": 12} for path in ("/api/health", "/auth/health")},
        serving={f"auth_service-{OWN_ID}": 24, "auth_service-1764000000-01d01d": 0},
        deployments={
            "1764000000-01d01d": ["success", "inactive"] if demand.serving == demand.new else ["success"],
            OWN_ID: ["failure"] * (demand.attempt - 1) + ["success" if demand.succeeded else "failure"],
        },
        messages=["the first attempt's"] * (demand.attempt - 1) + [expected_message(demand, OWN_ID, URL)],
        artifacts=files,
        documents=documents,
        objects={f"records/production/{OWN_ID}/{demand.attempt}.json": archived, **({key: b""} if demand.backup else {})},
        dumps={key: Dump(True, {"users": 60_000, "orders": 60_000})} if demand.backup else {},
        migrations=dict(demand.migrations),
        rows_before=120_000,
        summaries=summaries_of(demand),
        lost_at=jobs["gradual-rollout"].ended if demand.lost_job else None,
        silence_noticed=9.0 if demand.silence_seconds else None,
    )


def record_of(demand: Demand) -> dict[str, Any]:
    location = f"s3://azora-backups/prod/backup-{OWN_ID}.sql.gz"
    return {
        "deployment_id": OWN_ID,
        "version": f"v{demand.new}",
        "status": demand.record,
        "environment": "production",
        "git_ref": f"refs/tags/v{demand.new}",
        "rollback_window_minutes": 60,
        "migrations_applied": 2,
        "rollback_available": True,
        "previous_version": f"v{demand.old}",
        "services_deployed": ["a", "b", "c", "d"] if demand.succeeded else [],
        "database_backup": {"location": location} if demand.backup else None,
        "rollout_stages": [{"stage": name, "status": status} for name, status in demand.stages],
    }


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_right_evidence_has_no_findings(name: str) -> None:
    demand = SCENARIOS[name].demand
    assert findings(right_evidence(demand), demand, URL) == []


def test_right_evidence_of_a_re_run_has_no_findings() -> None:
    again = tuple(job for job in JOBS[JOBS.index("gradual-rollout") :])
    demand = replace(after_rerun(SCENARIOS["smoke"]), rerun_jobs=again)
    assert findings(right_evidence(demand), demand, URL) == []


def test_no_evidence_at_all_is_no_success() -> None:
    problems = findings(Evidence(jobs={}), SCENARIOS["success"].demand, URL)
    assert len(problems) == 15 and "no fragment" in problems[-1]
    assert not RehearsalOutcome("success", "nothing").ok


Damage = Callable[[Evidence], Evidence]


def documents(original: Evidence, ending: str, **changes: Any) -> Evidence:
    """Return the original evidence with changes to the document whose path ends so."""
    name = next(path for path in original.documents if path.endswith(ending))
    return replace(original, documents={**original.documents, name: {**original.documents[name], **changes}})


def answers(original: Evidence, change: Callable[[LoadAnswer], LoadAnswer]) -> Evidence:
    return replace(original, answers=[change(answer) for answer in original.answers])


def in_stage(answer: LoadAnswer, number: int) -> bool:
    return START + 10 * number <= answer.at < START + 10 * number + 10


def always(version: str, number: int) -> Damage:
    return lambda evidence: answers(evidence, lambda answer: replace(answer, version=version) if in_stage(answer, number) else answer)


KEY = f"prod/backup-{OWN_ID}.sql.gz"
RECORD_FILE = f"{OWN_ID}/deployment-record.json"
RECORD = f"records/production/{OWN_ID}/1.json"
WRONG: dict[str, tuple[str, Damage, str]] = {
    "a job failed": ("success", lambda s: replace(s, jobs={**s.jobs, "smoke-tests": JobResult("failure")}), "job smoke-tests: failure"),
    "a job was skipped": ("success", lambda s: replace(s, jobs={**s.jobs, "database-backup": JobResult("skipped")}), "job database-backup"),
    "a job ran that must not": (
        "checks",
        lambda s: replace(s, jobs={**s.jobs, "database-migrations": JobResult("success")}),
        "job database-",
    ),
    "an eleventh job": ("success", lambda s: replace(s, jobs={**s.jobs, "extra": JobResult("success")}), "not those of the design"),
    "an artifact is missing": (
        "success",
        lambda s: replace(s, artifacts={name: files for name, files in s.artifacts.items() if "build" not in name}),
        "artifacts of build-and-push: none",
    ),
    "an artifact of somebody else": ("success", lambda s: replace(s, artifacts={**s.artifacts, "logs": []}), "artifacts handed over: "),
    "a fragment says failed": ("success", lambda s: documents(s, "/record/smoke-tests.json", status="failed"), "fragment of smoke-tests"),
    "a fragment of another deployment": (
        "success",
        lambda s: documents(s, "/record/smoke-tests.json", deployment_id="1764000000-ffffff"),
        "fragment of smoke-tests",
    ),
    "old instances answer after all": (
        "success",
        lambda s: replace(s, serving={**s.serving, "auth_service-1764000000-01d01d": 1}),
        "requests after the run were answered by ",
    ),
    "no instance answered": ("success", lambda s: replace(s, serving={}), "requests after the run were answered by {}"),
    "the old version still serves": ("success", lambda s: replace(s, fresh={"/api/health": {"200 1.0.0": 12}}), "/api/health answers"),
    "both versions serve": ("canary", lambda s: replace(s, fresh={"/x": {"200 1.0.0": 11, "200 1.1.0": 1}}), "/x answers"),
    "an unhealthy answer": ("success", lambda s: replace(s, fresh={"/x": {"200 1.1.0": 11, "503 1.1.0": 1}}), "/x answers"),
    "nothing was asked": ("success", lambda s: replace(s, fresh={}), "no health endpoint was asked"),
    "a request failed": (
        "success",
        lambda s: replace(s, answers=[*s.answers, LoadAnswer(START, "/auth/users", 503, "1.0.0", 1.0)]),
        "1 of 731 requests failed",
    ),
    "an answer of a stranger": (
        "success",
        lambda s: replace(s, answers=[*s.answers, LoadAnswer(START, "/", 200, "9.9.9", 1.0)]),
        "unknown versions",
    ),
    "hardly any load": ("success", lambda s: replace(s, answers=s.answers[:20]), "only 20 requests"),
    "all traffic to the canary": ("success", always("1.1.0", 0), "stage canary: 100%"),
    "nothing moved at 50 %": ("success", always("1.0.0", 1), "stage progressive: 0%"),
    "the old version at 100 %": ("success", always("1.0.0", 2), "stage full: 0%"),
    "the machine did not vanish": ("runner", lambda s: replace(s, lost_at=None), "never vanished"),
    "a silent controller is noticed late": ("controller", lambda s: replace(s, silence_noticed=40.0), "was said after 40.0 s, demanded"),
    "a silent controller is never noticed": ("controller", lambda s: replace(s, silence_noticed=None), "was said never"),
    "a stage is missing": (
        "success",
        lambda s: documents(s, "/record/gradual-rollout.json", evidence={"stages": []}),
        "stages in the evidence",
    ),
    "new traffic after the abort": (
        "canary",
        lambda s: answers(s, lambda answer: replace(answer, version="1.1.0") if answer.at > START + 12 else answer),
        "s after the end of gradual-rollout were not answered well",
    ),
    "the old version failed too": (
        "canary",
        lambda s: answers(s, lambda answer: replace(answer, status=503) if in_stage(answer, 0) else answer),
        "that the fault did not touch",
    ),
    "the fault never struck": ("canary", lambda s: answers(s, lambda answer: replace(answer, status=200)), "never reached a user"),
    "another path failed": (
        "smoke",
        lambda s: answers(s, lambda answer: replace(answer, path="/auth/users")),
        "that the fault did not touch",
    ),
    "traffic without a rollout": (
        "build",
        lambda s: answers(s, lambda answer: replace(answer, version="1.1.0")),
        "got traffic without a rollout",
    ),
    "a migration is pending": (
        "success",
        lambda s: replace(s, migrations=dict(list(s.migrations.items())[:-1])),
        "migrations in the database",
    ),
    "the failing migration finished": (
        "migration-late",
        lambda s: replace(s, migrations=dict.fromkeys(s.migrations, True)),
        "migrations in the",
    ),
    "migrations ran behind a closed gate": ("checks", lambda s: replace(s, migrations={**s.migrations, "new": True}), "migrations in the"),
    "no backup": ("success", lambda s: replace(s, dumps={}), "demanded prod/backup"),
    "a backup that must not be": ("backup", lambda s: replace(s, dumps={KEY: Dump(True, {"users": 120_000})}), "demanded no backup"),
    "a truncated backup": ("success", lambda s: replace(s, dumps={KEY: Dump(False, {"users": 120_000})}), "does not end"),
    "half a backup": ("success", lambda s: replace(s, dumps={KEY: Dump(True, {"users": 60_000})}), "holds 60000 rows"),
    "too small a database": (
        "success",
        lambda s: replace(s, dumps={KEY: Dump(True, {"users": 10})}, rows_before=10),
        "at least 100000",
    ),
    "GitHub was not told": ("success", lambda s: replace(s, deployments={}), "GitHub's deployment of"),
    "GitHub calls a failure a success": (
        "canary",
        lambda s: replace(s, deployments={**s.deployments, OWN_ID: ["success"]}),
        "got the states ['success']",
    ),
    "the version before stays active on GitHub": (
        "success",
        lambda s: replace(s, deployments={**s.deployments, "1764000000-01d01d": ["success"]}),
        "GitHub's deployment of 1.0.0 is ['success'], while 1.1.0 serves",
    ),
    "blocks were refused": ("success", lambda s: replace(s, plain_messages=1), "Slack refused the blocks of 1"),
    "no message": ("success", lambda s: replace(s, messages=[]), "Slack received []"),
    "two messages": ("success", lambda s: replace(s, messages=s.messages * 2), "Slack received"),
    "success is said of a failure": (
        "canary",
        lambda s: replace(s, messages=[expected_message(SCENARIOS["success"].demand, OWN_ID, URL)]),
        "Slack received",
    ),
    "a backup is promised that is not there": (
        "backup",
        lambda s: replace(s, messages=[expected_message(SCENARIOS["build"].demand, OWN_ID, URL)]),
        "Slack received",
    ),
    "no record": (
        "success",
        lambda s: replace(
            s, documents={name: document for name, document in s.documents.items() if not name.endswith("deployment-record.json")}
        ),
        "no deployment-record-",
    ),
    "the record says success": ("canary", lambda s: documents(s, RECORD_FILE, status="success"), "record: status is 'success'"),
    "the record has another version": ("success", lambda s: documents(s, RECORD_FILE, version="v1.0.0"), "record: version"),
    "the record counts otherwise": ("success", lambda s: documents(s, RECORD_FILE, migrations_applied=0), "migrations_applied is 0"),
    "the record names three services": (
        "success",
        lambda s: documents(s, RECORD_FILE, services_deployed=["a", "b", "c"]),
        "demanded 4 services",
    ),
    "the record names another backup": (
        "success",
        lambda s: documents(s, RECORD_FILE, database_backup={"location": "s3://azora-backups/prod/other"}),
        "database_backup.location",
    ),
    "the record has other stages": ("success", lambda s: documents(s, RECORD_FILE, rollout_stages=[]), "rollout_stages"),
    "the record is not archived": ("success", lambda s: replace(s, objects={}), "not archived"),
    "the archived record was changed": (
        "success",
        lambda s: replace(s, objects={**s.objects, RECORD: b"{}"}),
        "the archived record has SHA-256",
    ),
    "the summary has no plan": ("success", lambda s: replace(s, summaries={}), "does not show 'Plan: v1.0.0 -> v1.1.0'"),
    "the summary lacks a stage": (
        "success",
        lambda s: replace(s, summaries={"gradual-rollout": s.summaries["gradual-rollout"].replace("**full**", "")}),
        "does not show '**full**: '",
    ),
    "the summary hides what failed": (
        "build",
        lambda s: replace(s, summaries={"images": "### ✗ It broke\n\n4 of 30 probes failed"}),
        "the summary of images does not say 'limit 5 %'",
    ),
    "a lost runner said goodbye": (
        "runner",
        lambda s: replace(s, documents={**s.documents, "x/record/gradual-rollout.json": {"status": "failed", "evidence": {"stages": []}}}),
        "demanded none: its machine vanished",
    ),
    "the guard took too long": (
        "runner",
        lambda s: answers(s, lambda answer: replace(answer, version="1.1.0") if answer.at > START + 26.5 else answer),
        "more than 25 s after the loss of its machine",
    ),
    "nobody asked after the lease": (
        "runner",
        lambda s: replace(s, answers=[*s.answers[:90], *(replace(answer, at=START) for answer in s.answers[90:])]),
        "0 of 0 requests more than 25 s after",
    ),
    "failed smoke tests left the new version": (
        "smoke-rollback",
        lambda s: answers(s, lambda answer: replace(answer, version="1.1.0") if answer.at > START + 31 else answer),
        "after the end of smoke-tests were not answered well by 1.0.0",
    ),
    "a secret leaked": ("success", lambda s: replace(s, leaks=["the database password in x.log"]), "a secret can be read"),
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_wrong_evidence_has_a_finding(wrong: str) -> None:
    name, damage, expected = WRONG[wrong]
    demand = SCENARIOS[name].demand
    problems = findings(damage(right_evidence(demand)), demand, URL)
    assert any(expected in problem for problem in problems), problems


def test_the_second_attempt_must_leave_artifacts_of_its_own() -> None:
    demand = replace(after_rerun(SCENARIOS["smoke"]), rerun_jobs=("smoke-tests", "deployment-record", "manual-rollback"))
    evidence = right_evidence(demand)
    renamed = {name.replace("-attempt-2", ""): files for name, files in evidence.artifacts.items()}
    problems = findings(replace(evidence, artifacts=renamed), demand, URL)
    assert any(f"demanded smoke-test-logs-{OWN_ID}-attempt-2" in problem for problem in problems), problems


def test_a_demand_for_another_version() -> None:
    demand = with_version(SCENARIOS["canary"].demand, "2.0.0-rc1")
    assert (demand.new, demand.serving) == ("2.0.0-rc1", "1.0.0")
    assert with_version(SCENARIOS["success"].demand, "2.0.0-rc1").serving == "2.0.0-rc1"


# --- reading -----------------------------------------------------------------------------------------------------------

DUMP = b"""--
CREATE TABLE public.users (id integer);
COPY public.users (id) FROM stdin;
1
COPY that is data
\\.

COPY public.empty (id) FROM stdin;
\\.
-- PostgreSQL database dump complete
\\unrestrict x
"""


def test_a_dump_is_read_to_its_end() -> None:
    assert read_dump(io.BytesIO(DUMP)) == Dump(True, {"users": 2, "empty": 0})
    assert read_dump(io.BytesIO(DUMP[: DUMP.index(b"COPY that")])) == Dump(False, {"users": 1})


def test_a_dump_that_was_cut_is_an_error() -> None:
    data = gzip.compress(DUMP)
    with pytest.raises(EOFError), gzip.open(io.BytesIO(data[:-12])) as lines:
        read_dump(lines)


def test_secrets_are_found_in_files_and_objects(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_bytes(b"connecting with \xff s3cret!")
    leaked = leaks({"the password": "s3cret!"}, [tmp_path], {"records/1.json": b'{"x": "s3cret!"}', "fine": b""})
    assert leaked == [f"the password in {tmp_path}/logs/a.log", "the password in object records/1.json"]
    assert leaks({"the password": "other"}, [tmp_path / "logs" / "a.log"], {}) == []


def test_artifacts_are_read_with_their_documents(tmp_path: Path) -> None:
    (tmp_path / "logs-1" / "record").mkdir(parents=True)
    (tmp_path / "logs-1" / "record" / "x.json").write_text('{"a": 1}', encoding="utf-8")
    (tmp_path / "logs-1" / "x.log").write_text("", encoding="utf-8")
    assert artifacts(tmp_path) == ({"logs-1": ["record/x.json", "x.log"]}, {"logs-1/record/x.json": {"a": 1}})
    assert artifacts(tmp_path / "none") == ({}, {})


# --- the report --------------------------------------------------------------------------------------------------------


def test_the_report_shows_traffic_by_version_and_stage() -> None:
    demand = SCENARIOS["success"].demand
    outcome = RehearsalOutcome("success", "nothing", 41.26, right_evidence(demand).jobs, right_evidence(demand))
    assert {name: len(period) for name, period in periods(right_evidence(demand)).items()} == {
        "before the rollout": 90,
        "canary (5 %)": 181,
        "progressive (50 %)": 181,
        "full (100 %)": 181,
        "after the rollout": 40,
    }
    document = outcome.document()
    assert set(document) == {"scenario", "ok", "seconds", "jobs", "requests", "failed_requests", "traffic", "findings"}
    assert (document["ok"], document["seconds"], document["requests"], document["failed_requests"]) == (True, 41.3, 730, 0)
    assert document["traffic"] == {"1.0.0": 90 + 190 + 100, "1.1.0": 10 + 100 + 200 + 40}
    assert document["jobs"]["deployment-failure-handler"] == {"result": "skipped", "seconds": 1.0}
    text = render(outcome, {"actions/checkout@0123456789": Path("/x/checkout")}, [("artifacts", Path("/a"))])
    assert "actions/checkout@0123456 -> checkout" in text and "✓ success: the pipeline did what it must" in text


def test_the_report_shows_findings() -> None:
    outcome = RehearsalOutcome("canary", "something", 1.0, {}, None, ["it is wrong"])
    assert outcome.document()["ok"] is False
    assert "FINDING: it is wrong" in render(outcome, {}, []) and "✗ canary: 1 findings" in render(outcome, {}, [])


def without_versions(demand: Demand) -> Evidence:
    """Return evidence of an application whose answers name no version."""
    right = right_evidence(demand)
    answers = [replace(answer, version="none") for answer in right.answers]
    return replace(right, answers=answers, fresh={"/health": {"200 none": 12}})


def test_an_application_without_versions_is_judged_by_what_the_edge_counted() -> None:
    demand = replace(SCENARIOS["success"].demand, versioned_paths=())
    right = without_versions(demand)
    assert findings(right, demand, URL) == []
    assert findings(replace(right, serving={"web-1764000000-01d01d": 12}), demand, URL) != []
    assert findings(right, SCENARIOS["success"].demand, URL) != [], "the sample names them"


def test_only_health_endpoints_must_name_a_version() -> None:
    demand = replace(SCENARIOS["success"].demand, versioned_paths=("/auth/health",))
    right = right_evidence(demand)
    other = [replace(answer, version="none") if answer.path == "/api/education/courses" else answer for answer in right.answers]
    health = [replace(answer, path="/auth/health") for answer in right.answers]
    fresh = {"/auth/health": {f"200 {demand.serving}": 12}}
    assert findings(replace(right, answers=[*other, *health], fresh=fresh), demand, URL) == []
    assert findings(replace(right, answers=[*other, replace(health[0], version="9.9.9"), *health], fresh=fresh), demand, URL) != []
