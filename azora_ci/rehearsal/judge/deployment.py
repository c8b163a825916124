"""Judge a rehearsed deployment: compare the evidence that was gathered outside the pipeline with what the scenario demands.

The module imports none of the steps and decisions that it judges. Every finding is a sentence with the evidence and the demand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci.rehearsal.judge.evidence import Evidence
from azora_ci.rehearsal.judge.load import NO_VERSION, LoadAnswer, counts

JOBS = (
    "validate-release",
    "audit",
    "build",
    "pre-deployment-validation",
    "database-backup",
    "database-migrations",
    "images",
    "build-and-push",
    "gradual-rollout",
    "smoke-tests",
    "deployment-record",
    "manual-rollback",
    "deployment-failure-handler",
)
ARTIFACTS = dict(
    zip(
        JOBS,
        (
            "release-logs",
            "audit-logs",
            "application-build-logs",
            "validation-logs",
            "backup-logs",
            "migration-logs",
            "application-image-logs",
            "build-logs",
            "rollout-logs",
            "smoke-test-logs",
            "deployment-record",
            "rollback-instructions",
            "deployment-failure-report",
        ),
        strict=True,
    )
)
# Lowest and highest share of answers from the new version in a stage (5 %, 50 %, 100 % with room for chance and for probes).
SHARES = {"canary": (0.0, 0.30), "progressive": (0.25, 0.75), "full": (0.97, 1.0)}
SETTLE_SECONDS = 0.5  # before and after a change of weights; requests in flight then may have used the other weights


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a scenario demands. Versions are bare (1.1.0); ``stages``: (stage, status) in order; ``record``: the record's status.

    ``failing_paths``: where users may see errors (None: nowhere, empty: anywhere, but from the new version only). ``rerun_jobs``:
    the jobs that ran in attempt ``attempt`` when it is not the first. ``lost_job``: a job whose machine vanished; production may
    take ``settle_seconds`` from then on (without such a job: after the failed one) until the old version serves everything.
    ``silence_seconds``: within which the run must say that nothing moves traffic any more. ``services``: ids of the deployed services;
    ``old_migrations``: those that production had; ``tree``: whether jobs hand over the application's tree; ``migrations_counted``:
    whether the record says how many migrations were applied; ``versioned_paths``: paths whose answers name a version (None: all do);
    ``fewest_rows`` that the backup must hold.
    """

    old: str
    new: str
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    serving: str
    migrations: Mapping[str, bool]
    backup: bool
    stages: tuple[tuple[str, str], ...] = ()
    record: str
    failing_paths: tuple[str, ...] | None = None
    attempt: int = 1
    rerun_jobs: tuple[str, ...] = ()
    lost_job: str | None = None
    settle_seconds: float = 0.0
    silence_seconds: float | None = None
    services: tuple[str, ...]
    old_migrations: tuple[str, ...] = ()
    tree: bool = True
    migrations_counted: bool = True
    versioned_paths: tuple[str, ...] | None = None
    fewest_rows: int = 0

    def versioned(self, answers: Iterable[LoadAnswer]) -> list[LoadAnswer]:
        """Return the answers that name a version."""
        return [answer for answer in answers if self.versioned_paths is None or answer.path in self.versioned_paths]

    @property
    def handed_over(self) -> tuple[str, ...]:
        """Return the artifacts that jobs which run the application's code hand over, beside their evidence."""
        images = ("image-archives",) if self.result("images") == "success" else ()
        return ("application-tree", *images) if self.tree else images

    @property
    def succeeded(self) -> bool:
        """Say whether the deployment must have succeeded."""
        return not self.failed

    @property
    def unattended(self) -> bool:
        """Say whether traffic goes back without a run that still lives or still can: nobody puts the old template back then."""
        return self.lost_job is not None or self.silence_seconds is not None

    def result(self, job: str) -> str:
        """Return the result that a job must have: failure, skipped or success."""
        if job in self.failed:
            return "failure"
        return "skipped" if job in self.skipped else "success"


def findings(evidence: Evidence, demand: Demand, public_url: str) -> list[str]:
    """Return a sentence for every contradiction between evidence and demand; empty when the rehearsal went well."""
    release = evidence.fragment("validate-release")
    if release is None or not release.get("deployment_id"):
        return [*_jobs(evidence, demand), "validate-release left no fragment with a deployment id in its artifact"]
    own_id = str(release["deployment_id"])
    return [
        *_jobs(evidence, demand),
        *_artifacts(evidence, demand, own_id),
        *_serving(evidence, demand, own_id),
        *_requests(evidence, demand),
        *_stages(evidence, demand),
        *_silence(evidence, demand),
        *_summaries(evidence, demand),
        *_database(evidence, demand),
        *_backup(evidence, demand, own_id),
        *_message(evidence, demand, own_id, public_url),
        *_github(evidence, demand, own_id),
        *_record(evidence, demand, own_id),
        *(f"a secret can be read: {place}" for place in evidence.leaks),
    ]


def _jobs(evidence: Evidence, demand: Demand) -> Iterable[str]:
    if set(evidence.jobs) != set(JOBS):
        yield f"the workflow has the jobs {sorted(evidence.jobs)}, not those of the design"
    for job in JOBS:
        result = evidence.jobs[job].result if job in evidence.jobs else "missing"
        if result != demand.result(job):
            yield f"job {job}: {result}, demanded {demand.result(job)}"


def _artifacts(evidence: Evidence, demand: Demand, own_id: str) -> Iterable[str]:
    for job in JOBS:
        ran = demand.result(job) != "skipped"
        suffix = f"-attempt-{demand.attempt}" if job in demand.rerun_jobs else ""
        expected_name = f"{ARTIFACTS[job]}-{own_id}{suffix}"
        names = [name for name in evidence.artifacts if name.startswith(f"{ARTIFACTS[job]}-{own_id}")]
        if (expected_name in names) != ran:
            yield f"artifacts of {job}: {names or 'none'}, demanded {expected_name if ran else 'none'}"
        fragment = evidence.fragment(job)
        expected_status = "failed" if job in demand.failed else "ok"
        if job == demand.lost_job:
            if fragment is not None:
                yield f"fragment of {job}: status {fragment['status']}, demanded none: its machine vanished"
        elif ran and (fragment is None or fragment["status"] != expected_status or fragment["deployment_id"] != own_id):
            stated = "no fragment" if fragment is None else f"status {fragment['status']} of {fragment['deployment_id']}"
            yield f"fragment of {job}: {stated}, demanded status {expected_status} of {own_id}"
    unidentified = {name for name in evidence.artifacts if own_id not in name}
    if {name.partition("-attempt-")[0] for name in unidentified} != set(demand.handed_over):
        yield f"artifacts handed over: {sorted(unidentified)}, demanded {sorted(demand.handed_over)}"
    archived = [key for key in evidence.objects if any(f"/{name}" in key for name in unidentified)]
    if archived:
        yield f"what jobs hand over is archived: {archived}"


def _serving(evidence: Evidence, demand: Demand, own_id: str) -> Iterable[str]:
    if not evidence.fresh:
        yield "no health endpoint was asked after the run"
    for path, answers in evidence.fresh.items():
        version = demand.serving if demand.versioned_paths is None or path in demand.versioned_paths else NO_VERSION
        if set(answers) != {f"200 {version}"}:
            yield f"{path} answers {answers} after the run, demanded 200 and version {version} only"
    others = [name for name, requests in evidence.serving.items() if requests and not name.endswith(own_id)]
    if demand.succeeded and (others or not any(evidence.serving.values())):
        yield f"requests after the run were answered by {evidence.serving}, demanded by instances of {own_id} only"


def _requests(evidence: Evidence, demand: Demand) -> Iterable[str]:
    unknown = set(counts(demand.versioned(evidence.answers))) - {demand.old, demand.new}
    if unknown:
        yield f"answers of unknown versions: {sorted(unknown)}"
    if len(evidence.answers) < 50:
        yield f"only {len(evidence.answers)} requests were sent through the edge"
    failed = [answer for answer in evidence.answers if answer.failed]
    if demand.failing_paths is None:
        if failed:
            yield f"{len(failed)} of {len(evidence.answers)} requests failed, demanded none; the first: {failed[0]}"
    else:
        if not failed and not evidence.fault_observed:
            yield "no request failed: the fault never reached a user, so nothing was tried"
        paths = demand.failing_paths or {answer.path for answer in failed}
        wrong = [answer for answer in failed if answer.version != demand.new or answer.path not in paths]
        if wrong:
            yield f"{len(wrong)} requests failed that the fault did not touch; the first: {wrong[0]}"
    job = "gradual-rollout" if "gradual-rollout" in demand.failed else "smoke-tests"  # the job that took traffic back, if any did
    job_run = evidence.jobs.get(job)
    if demand.lost_job is not None and evidence.lost_at is None:
        yield f"the machine of {demand.lost_job} never vanished, so that nothing was tried"
    if job in demand.failed and demand.serving == demand.old and job_run and job_run.ended:
        moment, event = (job_run.ended, f"the end of {job}") if evidence.lost_at is None else (evidence.lost_at, "the loss of its machine")
        later = [answer for answer in evidence.answers if answer.at > moment + demand.settle_seconds]
        wrong = [answer for answer in later if answer.failed or answer.version != demand.old]
        if wrong or not later:
            subject = f"{len(wrong)} of {len(later)} requests more than {demand.settle_seconds:g} s after {event}"
            yield f"{subject} were not answered well by {demand.old}; the first: {wrong[:1]}"
    if "gradual-rollout" in demand.skipped and any(answer.version == demand.new for answer in evidence.answers):
        yield f"version {demand.new} got traffic without a rollout"


def _stages(evidence: Evidence, demand: Demand) -> Iterable[str]:
    fragment = evidence.fragment("gradual-rollout")
    stages: list[dict[str, Any]] = fragment["evidence"].get("stages", []) if fragment else []
    reported = tuple((stage["stage"], stage["status"]) for stage in stages)
    if reported != demand.stages:
        yield f"stages in the evidence: {reported or 'none'}, demanded {demand.stages or 'none'}"
    for stage in stages:
        answers = demand.versioned(within(evidence.answers, stage))
        if demand.versioned_paths == ():
            continue  # no answer says which version gave it
        if stage["status"] != "healthy" or len(answers) < 40:
            if stage["status"] == "healthy":
                yield f"stage {stage['stage']}: only {len(answers)} requests, too few to judge its traffic"
            continue
        share = sum(answer.version == demand.new for answer in answers) / len(answers)
        low, high = SHARES[stage["stage"]]
        if not low <= share <= high:
            yield f"stage {stage['stage']}: {share:.0%} of {len(answers)} requests came from {demand.new}, demanded {low:.0%} to {high:.0%}"
    if (
        stages
        and demand.versioned_paths != ()
        and not evidence.fault_observed
        and not any(answer.version == demand.new for answer in evidence.answers)
    ):
        yield f"stages are in the evidence, but no request was answered by {demand.new}"


def _silence(evidence: Evidence, demand: Demand) -> Iterable[str]:
    """Check how soon the run said that what moves traffic does nothing."""
    limit, noticed = demand.silence_seconds, evidence.silence_noticed
    if limit is not None and (noticed is None or noticed > limit):
        said = "never" if noticed is None else f"after {noticed:.1f} s"
        yield f"that the controller does nothing was said {said}, demanded within {limit:g} s"


def _summaries(evidence: Evidence, demand: Demand) -> Iterable[str]:
    """Check the run's page: the rollout's plan, a table for each stage, and the literal error text of every failed job."""
    rollout = evidence.summaries.get("gradual-rollout", "")
    expected_lines = [f"Plan: v{demand.old} -> v{demand.new}", *(f"**{stage}**: " for stage, _ in demand.stages)] if demand.stages else []
    for line in expected_lines:
        if line not in rollout:
            yield f"the summary of gradual-rollout does not show {line!r}: {rollout[:300] or '(empty)'}"
    for job in set(demand.failed) - {demand.lost_job}:
        error = (evidence.fragment(job) or {}).get("error") or {}
        error_lines = [error.get("title") or "its error", *str(error.get("what") or "").splitlines()]
        missing_lines = [line for line in error_lines if line.strip() not in evidence.summaries.get(job, "")]
        if missing_lines:
            yield f"the summary of {job} does not say {missing_lines[0]!r}: {evidence.summaries.get(job, '')[:300] or '(empty)'}"


def within(answers: Iterable[LoadAnswer], stage: Mapping[str, Any]) -> list[LoadAnswer]:
    """Return the answers to requests that were due while a stage's weights were in force, without its first and last 0.5 s."""
    start = datetime.fromisoformat(stage["started_at"]).timestamp() + SETTLE_SECONDS
    end = datetime.fromisoformat(stage["ended_at"]).timestamp() - SETTLE_SECONDS
    return [answer for answer in answers if start <= answer.at <= end]


def _database(evidence: Evidence, demand: Demand) -> Iterable[str]:
    if dict(evidence.migrations) != dict(demand.migrations):
        yield f"migrations in the database (name: finished): {evidence.migrations}, demanded {dict(demand.migrations)}"


def _backup(evidence: Evidence, demand: Demand, own_id: str) -> Iterable[str]:
    key = f"prod/backup-{own_id}.sql.gz"
    if not demand.backup:
        if evidence.dumps:
            yield f"the bucket holds {sorted(evidence.dumps)}, demanded no backup"
        return
    dump = evidence.dumps.get(key)
    if dump is None:
        yield f"the bucket holds {sorted(evidence.dumps) or 'no backup'}, demanded {key}"
        return
    if not dump.complete:
        yield f"{key} does not end as pg_dump ends a dump"
    total, rows_before = sum(dump.rows.values()), evidence.rows_before
    if total != rows_before or total < demand.fewest_rows:
        yield f"{key} holds {total} rows; the database had {rows_before} before the deployment (at least {demand.fewest_rows} are demanded)"


def expected_message(demand: Demand, own_id: str, public_url: str) -> str:
    """Return the Slack message that the guide prescribes for the demanded outcome."""
    if demand.succeeded:
        return (
            f"✅ Production deployment successful\nVersion: v{demand.new}\nDeployment ID: {own_id}\nEnvironment: {public_url}\n"
            "All services healthy and operational\nRollback available for 60 minutes"
        )
    backup = "Database backup available for rollback\n" if demand.backup else ""
    return (
        f"🚨 Production deployment FAILED\nVersion: v{demand.new}\nDeployment ID: {own_id}\n\n"
        f"⚠️ ACTION REQUIRED: Manual investigation needed\n{backup}Check workflow logs for failure details"
    )


def _message(evidence: Evidence, demand: Demand, own_id: str, public_url: str) -> Iterable[str]:
    expected = expected_message(demand, own_id, public_url)
    messages = evidence.messages[demand.attempt - 1 :]  # every attempt sends one
    if evidence.plain_messages:
        yield f"Slack refused the blocks of {evidence.plain_messages} messages"
    if messages != [expected]:
        yield f"Slack received {evidence.messages}, demanded as message {demand.attempt}: {expected!r}"


def _github(evidence: Evidence, demand: Demand, own_id: str) -> Iterable[str]:
    """Check which deployment GitHub shows as active: the one whose version serves, and nothing else as a success."""
    states = evidence.deployments.get(own_id, [])
    if states[-1:] != ["success" if demand.succeeded else "failure"] or len(states) != demand.attempt:
        yield f"GitHub's deployment of {own_id} got the states {states}, one demanded of each of {demand.attempt} attempts"
    before = [given[-1] for name, given in evidence.deployments.items() if name != own_id]
    if before != ["inactive" if demand.serving == demand.new else "success"]:
        yield f"GitHub's deployment of {demand.old} is {before}, while {demand.serving} serves"


def _record(evidence: Evidence, demand: Demand, own_id: str) -> Iterable[str]:
    key = f"records/production/{own_id}/{demand.attempt}.json"
    artifact = ARTIFACTS["deployment-record" if demand.succeeded else "deployment-failure-handler"]
    suffix = f"-attempt-{demand.attempt}" if demand.attempt > 1 else ""
    name = f"{artifact}-{own_id}{suffix}/deployment-record.json"
    record = evidence.documents.get(name)
    if record is None:
        yield f"there is no {name}"
        return
    yield from _record_fields(record, demand, own_id)
    if key not in evidence.objects:
        yield f"the record is not archived at {key}; the bucket holds {sorted(evidence.objects)}"
        return
    recorded = (evidence.fragment("deployment-record" if demand.succeeded else "deployment-failure-handler") or {}).get("evidence", {})
    sha256 = hashlib.sha256(evidence.objects[key]).hexdigest()
    if sha256 != recorded.get("record_sha256"):
        yield f"the archived record has SHA-256 {sha256}, the evidence says {recorded.get('record_sha256')}"


def _record_fields(record: Mapping[str, Any], demand: Demand, own_id: str) -> Iterable[str]:
    backup = record.get("database_backup") or {}
    expected: dict[str, object] = {
        "deployment_id": own_id,
        "version": f"v{demand.new}",
        "status": demand.record,
        "environment": "production",
        "git_ref": f"refs/tags/v{demand.new}",
        "rollback_window_minutes": 60,
    }
    if demand.succeeded:
        applied = sum(finished for name, finished in demand.migrations.items() if name not in demand.old_migrations)
        expected |= {"rollback_available": True, "previous_version": f"v{demand.old}"}
        expected |= {"migrations_applied": applied} if demand.migrations_counted else {}
        services = record.get("services_deployed")
        if not isinstance(services, list) or len(services) != len(demand.services):
            yield f"record: services_deployed is {services}, demanded {len(demand.services)} services"
    for name, value in expected.items():
        if record.get(name) != value:
            yield f"record: {name} is {record.get(name)!r}, demanded {value!r}"
    location = f"s3://azora-backups/prod/backup-{own_id}.sql.gz"
    if demand.backup and backup.get("location") != location:
        yield f"record: database_backup.location is {backup.get('location')!r}, demanded {location!r}"
    stages = tuple((stage.get("stage"), stage.get("status")) for stage in record.get("rollout_stages", []))
    if stages != demand.stages:
        yield f"record: rollout_stages are {stages}, demanded {demand.stages}"
