"""Did the pipeline do what the scenario demands? Judged from what was seen outside; see ``evidence``.

Imports nothing of the steps or decisions that are judged. Every finding is one sentence with what was seen and what was demanded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci.rehearsal.evidence import Seen
from azora_ci.rehearsal.load import Answer, counts

JOBS = (
    "validate-release",
    "pre-deployment-validation",
    "database-backup",
    "database-migrations",
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
            "validation-logs",
            "backup-logs",
            "migration-logs",
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
# Share of traffic that the new version may have had in a stage: 5 %, 50 %, 100 % with room for chance and for probes' own requests.
SHARES = {"canary": (0.0, 0.30), "progressive": (0.25, 0.75), "full": (0.97, 1.0)}
SETTLE_SECONDS = 0.5  # around a change of weights, in which requests on their way still count for the other side
FEWEST_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a scenario demands. Versions are bare (1.1.0); ``stages``: (stage, status) in order; ``record``: its status.

    ``failing_paths``: where users may see errors (None: nowhere, empty: anywhere, but only from the new version). ``again``: the
    jobs that ran in attempt ``attempt`` when it is not the first. ``lost``: a job whose machine vanished; production may take
    ``settle`` seconds after its end until it is on the old version.
    """

    old: str
    new: str
    failed: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    serving: str
    migrations: Mapping[str, bool]
    backup: bool
    stages: tuple[tuple[str, str], ...] = ()
    record: str
    failing_paths: tuple[str, ...] | None = None
    attempt: int = 1
    again: tuple[str, ...] = ()
    lost: str | None = None
    settle: float = 0.0

    @property
    def succeeded(self) -> bool:
        """Say whether the deployment must have succeeded."""
        return not self.failed

    def result(self, job: str) -> str:
        """Return the result that a job must have."""
        if job in self.failed:
            return "failure"
        return "skipped" if job in self.not_run else "success"


def findings(seen: Seen, demand: Demand, public_url: str) -> list[str]:
    """Return everything that is not as demanded; empty when the rehearsal went well."""
    release = seen.fragment("validate-release")
    if release is None or not release.get("deployment_id"):
        return [*_jobs(seen, demand), "validate-release left no fragment with a deployment id in its artifact"]
    own_id = str(release["deployment_id"])
    return [
        *_jobs(seen, demand),
        *_artifacts(seen, demand, own_id),
        *_serving(seen, demand),
        *_requests(seen, demand),
        *_stages(seen, demand),
        *_summaries(seen, demand),
        *_database(seen, demand),
        *_backup(seen, demand, own_id),
        *_message(seen, demand, own_id, public_url),
        *_record(seen, demand, own_id),
        *(f"a secret can be read: {place}" for place in seen.leaks),
    ]


def _jobs(seen: Seen, demand: Demand) -> Iterable[str]:
    if set(seen.jobs) != set(JOBS):
        yield f"the workflow has the jobs {sorted(seen.jobs)}, not the ten of the design"
    for job in JOBS:
        found = seen.jobs[job].result if job in seen.jobs else "missing"
        if found != demand.result(job):
            yield f"job {job}: {found}, demanded {demand.result(job)}"


def _artifacts(seen: Seen, demand: Demand, own_id: str) -> Iterable[str]:
    for job in JOBS:
        ran = demand.result(job) != "skipped"
        suffix = f"-attempt-{demand.attempt}" if job in demand.again else ""
        wanted_name = f"{ARTIFACTS[job]}-{own_id}{suffix}"
        there = [name for name in seen.artifacts if name.startswith(f"{ARTIFACTS[job]}-{own_id}")]
        if (wanted_name in there) != ran:
            yield f"artifacts of {job}: {there or 'none'}, demanded {wanted_name if ran else 'none'}"
        fragment = seen.fragment(job)
        wanted = "failed" if job in demand.failed else "ok"
        if job == demand.lost:
            if fragment is not None:
                yield f"fragment of {job}: status {fragment['status']}, demanded none: its machine vanished"
        elif ran and (fragment is None or fragment["status"] != wanted or fragment["deployment_id"] != own_id):
            stated = "no fragment" if fragment is None else f"status {fragment['status']} of {fragment['deployment_id']}"
            yield f"fragment of {job}: {stated}, demanded status {wanted} of {own_id}"
    strangers = [name for name in seen.artifacts if own_id not in name]
    if strangers:
        yield f"artifacts without the deployment id: {', '.join(strangers)}"


def _serving(seen: Seen, demand: Demand) -> Iterable[str]:
    if not seen.fresh:
        yield "no health endpoint was asked after the run"
    for path, found in seen.fresh.items():
        if set(found) != {f"200 {demand.serving}"}:
            yield f"{path} answers {found} after the run, demanded 200 and version {demand.serving} only"


def _requests(seen: Seen, demand: Demand) -> Iterable[str]:
    strangers = set(counts(seen.answers)) - {demand.old, demand.new}
    if strangers:
        yield f"answers of unknown versions: {sorted(strangers)}"
    if len(seen.answers) < 50:
        yield f"only {len(seen.answers)} requests were sent through the edge"
    failed = [one for one in seen.answers if one.failed]
    if demand.failing_paths is None:
        if failed:
            yield f"{len(failed)} of {len(seen.answers)} requests failed, demanded none; the first: {failed[0]}"
    else:
        if not failed and not seen.struck:
            yield "no request failed: the fault never reached a user, so nothing was tried"
        wrong = [one for one in failed if one.version != demand.new or (demand.failing_paths and one.path not in demand.failing_paths)]
        if wrong:
            yield f"{len(wrong)} requests failed that the fault did not touch; the first: {wrong[0]}"
    by = "gradual-rollout" if "gradual-rollout" in demand.failed else "smoke-tests"  # who took traffic back, if it went back
    back = seen.jobs.get(by)
    if by in demand.failed and demand.serving == demand.old and back and back.ended:
        after = [one for one in seen.answers if one.at > back.ended + demand.settle]
        late = [one for one in after if one.failed or one.version != demand.old]
        if late or not after:
            where = f"{len(late)} of {len(after)} requests more than {demand.settle:g} s after the end of {by}"
            yield f"{where} were not answered well by {demand.old}; the first: {late[:1]}"
    if "gradual-rollout" in demand.not_run and any(one.version == demand.new for one in seen.answers):
        yield f"version {demand.new} got traffic without a rollout"


def _stages(seen: Seen, demand: Demand) -> Iterable[str]:
    fragment = seen.fragment("gradual-rollout")
    stages: list[dict[str, Any]] = fragment["evidence"].get("stages", []) if fragment else []
    stated = tuple((one["stage"], one["status"]) for one in stages)
    if stated != demand.stages:
        yield f"stages in the evidence: {stated or 'none'}, demanded {demand.stages or 'none'}"
    for one in stages:
        inside = within(seen.answers, one)
        if one["status"] != "healthy" or len(inside) < 40:
            if one["status"] == "healthy":
                yield f"stage {one['stage']}: only {len(inside)} requests, too few to judge its traffic"
            continue
        share = sum(answer.version == demand.new for answer in inside) / len(inside)
        low, high = SHARES[one["stage"]]
        if not low <= share <= high:
            yield f"stage {one['stage']}: {share:.0%} of {len(inside)} requests came from {demand.new}, demanded {low:.0%} to {high:.0%}"
    if stages and not seen.struck and not any(answer.version == demand.new for answer in seen.answers):
        yield f"stages are in the evidence, but no request was answered by {demand.new}"


def _summaries(seen: Seen, demand: Demand) -> Iterable[str]:
    """What the run's page shows: the plan and a table for each stage, and what every failure says, word for word."""
    rollout = seen.summaries.get("gradual-rollout", "")
    wanted = [f"Plan: v{demand.old} -> v{demand.new}", *(f"**{stage}**: " for stage, _ in demand.stages)] if demand.stages else []
    for one in wanted:
        if one not in rollout:
            yield f"the summary of gradual-rollout does not show {one!r}: {rollout[:300] or '(empty)'}"
    for job in set(demand.failed) - {demand.lost}:
        error = (seen.fragment(job) or {}).get("error") or {}
        said = [error.get("title") or "its error", *str(error.get("what") or "").splitlines()]
        lacking = [line for line in said if line.strip() not in seen.summaries.get(job, "")]
        if lacking:
            yield f"the summary of {job} does not say {lacking[0]!r}: {seen.summaries.get(job, '')[:300] or '(empty)'}"


def within(answers: Iterable[Answer], stage: Mapping[str, Any]) -> list[Answer]:
    """Return the answers to requests that were due while a stage's weights were in force."""
    start = datetime.fromisoformat(stage["started_at"]).timestamp() + SETTLE_SECONDS
    end = datetime.fromisoformat(stage["ended_at"]).timestamp() - SETTLE_SECONDS
    return [one for one in answers if start <= one.at <= end]


def _database(seen: Seen, demand: Demand) -> Iterable[str]:
    if dict(seen.migrations) != dict(demand.migrations):
        yield f"migrations in the database (name: finished): {seen.migrations}, demanded {dict(demand.migrations)}"


def _backup(seen: Seen, demand: Demand, own_id: str) -> Iterable[str]:
    key = f"prod/backup-{own_id}.sql.gz"
    if not demand.backup:
        if seen.dumps:
            yield f"the bucket holds {sorted(seen.dumps)}, demanded no backup"
        return
    dump = seen.dumps.get(key)
    if dump is None:
        yield f"the bucket holds {sorted(seen.dumps) or 'no backup'}, demanded {key}"
        return
    if not dump.complete:
        yield f"{key} does not end as pg_dump ends a dump"
    total = sum(dump.rows.values())
    if total != seen.rows_before or total < FEWEST_ROWS:
        yield f"{key} holds {total} rows; the database had {seen.rows_before} before the deployment (at least {FEWEST_ROWS} are demanded)"


def expected_message(demand: Demand, own_id: str, public_url: str) -> str:
    """Return the guide's text for this outcome."""
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


def _message(seen: Seen, demand: Demand, own_id: str, public_url: str) -> Iterable[str]:
    wanted = expected_message(demand, own_id, public_url)
    new = seen.messages[demand.attempt - 1 :]  # every attempt sends one
    if new != [wanted]:
        yield f"Slack received {seen.messages}, demanded as message {demand.attempt}: {wanted!r}"


def _record(seen: Seen, demand: Demand, own_id: str) -> Iterable[str]:
    key = f"records/production/{own_id}/{demand.attempt}.json"
    artifact = ARTIFACTS["deployment-record" if demand.succeeded else "deployment-failure-handler"]
    suffix = f"-attempt-{demand.attempt}" if demand.attempt > 1 else ""
    name = f"{artifact}-{own_id}{suffix}/deployment-record.json"
    record = seen.documents.get(name)
    if record is None:
        yield f"there is no {name}"
        return
    yield from _record_fields(record, demand, own_id)
    if key not in seen.objects:
        yield f"the record is not archived at {key}; the bucket holds {sorted(seen.objects)}"
        return
    stated = (seen.fragment("deployment-record" if demand.succeeded else "deployment-failure-handler") or {}).get("evidence", {})
    sha256 = hashlib.sha256(seen.objects[key]).hexdigest()
    if sha256 != stated.get("record_sha256"):
        yield f"the archived record has SHA-256 {sha256}, the evidence says {stated.get('record_sha256')}"


def _record_fields(record: Mapping[str, Any], demand: Demand, own_id: str) -> Iterable[str]:
    backup = record.get("database_backup") or {}
    wanted: dict[str, object] = {
        "deployment_id": own_id,
        "version": f"v{demand.new}",
        "status": demand.record,
        "environment": "production",
        "git_ref": f"refs/tags/v{demand.new}",
        "rollback_window_minutes": 60,
    }
    if demand.succeeded:
        applied = sum(finished for finished in demand.migrations.values()) - _migrations_before(demand)
        wanted |= {"migrations_applied": applied, "rollback_available": True, "previous_version": f"v{demand.old}"}
        services = record.get("services_deployed")
        if not isinstance(services, list) or len(services) != 4:
            yield f"record: services_deployed is {services}, demanded four services"
    for name, value in wanted.items():
        if record.get(name) != value:
            yield f"record: {name} is {record.get(name)!r}, demanded {value!r}"
    location = f"s3://azora-backups/prod/backup-{own_id}.sql.gz"
    if demand.backup and backup.get("location") != location:
        yield f"record: database_backup.location is {backup.get('location')!r}, demanded {location!r}"
    stages = tuple((one.get("stage"), one.get("status")) for one in record.get("rollout_stages", []))
    if stages != demand.stages:
        yield f"record: rollout_stages are {stages}, demanded {demand.stages}"


def _migrations_before(demand: Demand) -> int:
    return sum(name in OLD_MIGRATIONS for name in demand.migrations)


OLD_MIGRATIONS = ("20260901080000_accounts", "20260915080000_education", "20261001080000_marketplace")
