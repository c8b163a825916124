"""Derive from the evidence alone what failed, what was not run, and what state production is in. Pure.

Every sentence is based on a job's result or on its fragment; where neither shows a fact, the sentence says that it is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.core.pipeline import NEEDS, PIPELINE
from azora_ci.record.evidence import can_go_back, is_proven, went_back
from azora_ci.record.fragments import Fragment

# The guide's troubleshooting cases, per job.
ADVICE: dict[str, str] = {
    "validate-release": "correct the tag or the input version and start again; nothing was touched",
    "audit": "check that the lock files can be read and the registry of packages answers, then re-run the failed jobs; nothing was touched",
    "build": "look at what the build could not do without production's secrets, or why its runner ended; nothing was touched",
    "pre-deployment-validation": "look at the named checks of the commit, correct them, and re-run the failed jobs; nothing was touched",
    "database-backup": "check that the database answers, that the role may write to the bucket, and that there is room; "
    "then re-run the failed jobs",
    "database-migrations": "read in the job's log what is left in the database; resolve a failed migration first (prisma migrate resolve); "
    "restore the backup only when data is damaged",
    "images": "read the log of the production build and of the named images; correct it in a new release",
    "build-and-push": "re-run the failed jobs when the registry was down; images are handed over for one day, after that re-run all jobs",
    "gradual-rollout": "read the logs of the new instances and the named reason; check that migrations and configuration fit",
    "smoke-tests": "look at the named services now: the new version has the traffic; if users are affected go back, "
    "ROLLBACK-INSTRUCTIONS.md says how",
    "deployment-record": "production is not affected; re-run the failed jobs so that the record is written and archived",
    "manual-rollback": "production is not affected; re-run the failed jobs so that the rollback instructions are written",
}


@dataclass(frozen=True)
class FailedJob:
    """A job that failed or was cancelled. ``result`` is failure or cancelled."""

    job: str
    result: str
    title: str
    what: str
    where: str
    next_step: str

    def document(self) -> dict[str, str]:
        """Return the job as the report's JSON."""
        return {
            "job": self.job, "result": self.result, "title": self.title, "what": self.what, "where": self.where, "next": self.next_step,
        }  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """The whole result. ``status`` is failed, rolled_back or cancelled; ``production`` holds one sentence for each fact."""

    status: str
    failed: tuple[FailedJob, ...]
    succeeded: tuple[str, ...]
    not_run: tuple[str, ...]
    unknown: tuple[str, ...]
    production: tuple[str, ...]
    next_steps: tuple[str, ...]


@dataclass(frozen=True)
class JobOutcome:
    """One job: its result (success, failure, cancelled, skipped or unknown) and its fragment, or None when it left no fragment."""

    job: str
    result: str
    fragment: Fragment | None

    @property
    def evidence(self) -> dict[str, Any]:
        """Return the evidence in the job's fragment; {} without a fragment."""
        return self.fragment.evidence if self.fragment else {}


def outcomes(needs: Mapping[str, str], fragments: Mapping[str, Fragment]) -> dict[str, JobOutcome]:
    """Return the outcome of every job, from the results that GitHub reports (``needs``) and the fragments."""
    result_of_status = {"ok": "success", "failed": "failure", "cancelled": "cancelled"}
    by_job: dict[str, JobOutcome] = {}
    for job in PIPELINE:
        fragment = fragments.get(job)
        result = needs.get(job) or (result_of_status[fragment.status] if fragment else "unknown")
        # GitHub reports jobs of a cancelled run as "cancelled" even when they never started.
        if fragment is None and result in {"cancelled", "unknown"} and any(by_job[need].result != "success" for need in NEEDS[job]):
            result = "skipped" if result == "cancelled" or _cannot_have_started(by_job, job) else "unknown"
        by_job[job] = JobOutcome(job, result, fragment)
    return by_job


def _cannot_have_started(by_job: Mapping[str, JobOutcome], job: str) -> bool:
    """Say whether a job cannot have started because one of its needs is known not to have succeeded."""
    return any(by_job[need].result in {"failure", "cancelled", "skipped"} for need in NEEDS[job])


def diagnose(needs: Mapping[str, str], fragments: Mapping[str, Fragment], version: str | None) -> Diagnosis:
    """Return the diagnosis. ``needs`` maps jobs to success, failure, cancelled or skipped; it may be empty."""
    by_job = outcomes(needs, fragments)
    failed = tuple(_failed(outcome) for outcome in by_job.values() if outcome.result in {"failure", "cancelled"})
    jobs = {
        result: tuple(job for job, outcome in by_job.items() if outcome.result == result) for result in ("success", "skipped", "unknown")
    }
    return Diagnosis(
        status=_status(by_job, failed),
        failed=failed,
        succeeded=jobs["success"],
        not_run=jobs["skipped"],
        unknown=jobs["unknown"],
        production=(
            traffic(by_job, version),
            *_jobs(by_job),
            *_smoke(by_job),
            schema(by_job),
            *_old_code_on_new_schema(by_job),
            *_kept_version(by_job),
        ),
        next_steps=_next_steps(failed, by_job),
    )


def _status(by_job: Mapping[str, JobOutcome], failed: tuple[FailedJob, ...]) -> str:
    if by_job["gradual-rollout"].evidence.get("rollout_status") == "rolled_back" or went_back(by_job["smoke-tests"].evidence):
        return "rolled_back"
    return "cancelled" if failed and all(job.result == "cancelled" for job in failed) else "failed"


def _failed(outcome: JobOutcome) -> FailedJob:
    job, result, fragment = outcome.job, outcome.result, outcome.fragment
    if fragment is not None and fragment.error is not None:
        error = fragment.error
        return FailedJob(job, result, error["title"], error["what"], error["where"], error["next"])
    if fragment is not None:
        reason = f"its own work ended well (attempt {fragment.run_attempt}), the job did not: a step before or after it, or a time limit"
    elif result == "cancelled":
        reason = "it was cancelled before it could leave evidence, or never started"
    else:
        reason = "it left no evidence: it was ended before it could write, or its artifact was not kept"
    return FailedJob(job, result, f"{job}: {result}", reason, "the job's log in this run", ADVICE[job])


# --- the state of production -------------------------------------------------------------------------------------------


def traffic(by_job: Mapping[str, JobOutcome], version: str | None) -> str:
    """Return a sentence that says which version has the traffic, as far as the evidence shows."""
    outcome, new_version = by_job["gradual-rollout"], version or "the new version"
    result, rollout = outcome.result, outcome.evidence
    if result == "skipped":
        return "Code and traffic: unchanged. The rollout did not run; the version that was in production keeps all traffic."
    if outcome.fragment is None:
        return f"Code and traffic: unknown. gradual-rollout ({result}) left no evidence; look at the edge's routes and the instances."
    status, abort = rollout.get("rollout_status"), rollout.get("abort")
    if status == "completed":
        return _after_completion(by_job["smoke-tests"].evidence.get("rollback"), new_version)
    if abort and abort.get("seconds_to_safe") is not None:
        return _went_back(abort, (rollout.get("previous") or {}).get("version"), new_version)
    if status in {None, "planned"} and not rollout.get("stages") and not abort:
        return f"Code and traffic: unchanged by this attempt. gradual-rollout ended ({result}) before it moved anything."
    failed_abort = f" Taking traffic back did not finish: {abort.get('detail')}." if abort else ""
    notes = "".join(f" {note}." for note in rollout.get("notes") or [])
    return (
        f"Code and traffic: half done ({status or result}).{failed_abort} {_last_stage(rollout)}{notes} "
        "Read the routes at the edge before anything else."
    )


def _after_completion(reversal: Mapping[str, Any] | None, new_version: str) -> str:
    if reversal and (old_version := reversal.get("to")):
        return f"Code and traffic: {old_version} has all traffic again, because smoke tests of {new_version} failed; {_proof(reversal)}."
    return f"Code and traffic: {new_version} has all traffic; the rollout completed."


def _went_back(abort: Mapping[str, Any], old_version: str | None, new_version: str) -> str:
    why = f" Aborted in stage {abort.get('stage')}: {abort.get('reason')}."
    if old_version is None:
        return f"Code and traffic: no version has traffic. {new_version} was the first deployment and was taken out; {_proof(abort)}.{why}"
    return f"Code and traffic: {old_version} has all traffic again within {abort['seconds_to_safe']:g} s; {_proof(abort)}.{why}"


def _proof(reversal: Mapping[str, Any]) -> str:
    detail = f" ({reversal['detail']})" if reversal.get("detail") else ""
    return f"this was verified{detail}" if reversal.get("proved") else f"this was NOT verified{detail}: read the routes at the edge"


def _last_stage(rollout: Mapping[str, Any]) -> str:
    stages = rollout.get("stages") or []
    if not stages:
        return "No stage was recorded."
    last = stages[-1]
    return f"Last recorded stage: {last.get('stage')} ({last.get('traffic_percentage')} %), {last.get('status')}."


def _jobs(by_job: Mapping[str, JobOutcome]) -> tuple[str, ...]:
    """Return a sentence about the jobs of the release, whose work stays whichever version has the traffic."""
    jobs = by_job["gradual-rollout"].evidence.get("jobs") or []
    return (f"Jobs of the release: {'; '.join(job['summary'] for job in jobs)}. What they did stays, nothing undoes it.",) if jobs else ()


def _smoke(by_job: Mapping[str, JobOutcome]) -> tuple[str, ...]:
    outcome = by_job["smoke-tests"]
    tests = outcome.evidence.get("tests") or []
    broken = [f"{test.get('name')} ({test.get('detail') or test.get('status')})" for test in tests if not test.get("passed")]
    if broken:
        return (f"Services: {len(broken)} of {len(tests)} smoke tests failed: {'; '.join(broken)}.",)
    if outcome.result == "success":
        return (f"Services: all {len(tests)} smoke tests passed.",)
    if by_job["gradual-rollout"].evidence.get("rollout_status") == "completed":
        return ("Services: not confirmed by smoke tests.",)
    return ()


def schema(by_job: Mapping[str, JobOutcome]) -> str:
    """Return a sentence that says what happened to the database schema, as far as the evidence shows."""
    outcome = by_job["database-migrations"]
    fragment, evidence = outcome.fragment, outcome.evidence
    if outcome.result == "skipped":
        return "Schema: unchanged. The migrations did not run."
    if fragment is None:
        return f"Schema: unknown. database-migrations ({outcome.result}) left no evidence; read _prisma_migrations."
    if evidence.get("tool") == "none":
        return "Schema: unchanged. The application has no migrations."
    if evidence.get("tool") == "command":
        return _migrated_by_command(fragment)
    count, names = evidence.get("migrations_applied"), [str(migration.get("name")) for migration in evidence.get("applied") or []]
    listed = f" ({', '.join(names)})" if names else ""
    if fragment.status == "ok":
        return f"Schema: migrated, {count} applied since the backup{listed}." if count else "Schema: unchanged, nothing was pending."
    return _half_migrated(fragment, f"{len(names)} applied{listed}" if names else "none recorded as applied")


def _migrated_by_command(fragment: Fragment) -> str:
    """Return what another tool's command changed, as the catalogues before and after it show."""
    code = fragment.evidence.get("exit_code")
    ended = f"the migrate command ended as {fragment.status}{'' if code is None else f', exit code {code}'}"
    return f"Schema: {ended}. {_comparison(fragment.evidence) or 'What it changed is unknown: look at the database.'}"


def _half_migrated(fragment: Fragment, applied: str) -> str:
    """Return what unfinished migrations changed in the schema, where the schema before and after them was compared."""
    evidence = fragment.evidence
    broken = f", failed: {', '.join(evidence['failed'])}" if evidence.get("failed") else ""
    ending = f"Schema: the migrations ended as {fragment.status}, {applied}{broken}."
    comparison = _comparison(evidence)
    if comparison is None:
        return f"{ending} Statements of an unfinished migration can have stayed: compare the database with its migration.sql."
    return f"{ending} {comparison}"


def _comparison(evidence: Mapping[str, Any]) -> str | None:
    """Return how the schema differs from before, or None where it was not compared."""
    if "schema_gained" not in evidence or "schema_lost" not in evidence:
        return None
    gained, lost = evidence["schema_gained"], evidence["schema_lost"]
    if not gained and not lost:
        return "Compared before and after, the schema is unchanged; rows may not be."
    changes = [f"gained {'; '.join(gained)}"] * bool(gained) + [f"lost {'; '.join(lost)}"] * bool(lost)
    return f"Compared before and after, the schema {' and '.join(changes)}."


def _old_code_on_new_schema(by_job: Mapping[str, JobOutcome]) -> tuple[str, ...]:
    migrations, rollout = by_job["database-migrations"], by_job["gradual-rollout"]
    changed = any(migrations.evidence.get(name) for name in ("migrations_applied", "applied", "schema_gained", "schema_lost"))
    is_back = rollout.evidence.get("rollout_status") == "rolled_back" or went_back(by_job["smoke-tests"].evidence)
    if not changed or not (rollout.result == "skipped" or is_back):
        return ()
    found = by_job["database-backup"].evidence.get("code_rollback_safe") or {}
    if found.get("how") == "tested":
        works = "does, it was tried on a migrated copy" if found["value"] else "does not, it was tried on a migrated copy"
        return (f"Old code runs on the new schema; whether it works there: it {works}: {'; '.join(found['reasons'])}.",)
    risks = [
        f"{risk['migration']}: {risk['statement']} ({risk['why']})"
        for risk in migrations.evidence.get("risks") or []
        if risk.get("kind") == "old-version"
    ]
    if risks:
        return (f"Old code runs on the new schema, which may break it: {'; '.join(risks)}.",)
    return ("Old code runs on the new schema: safe as long as the migrations are compatible with it (they add, they do not take away).",)


def _kept_version(by_job: Mapping[str, JobOutcome]) -> tuple[str, ...]:
    rollout = by_job["gradual-rollout"].evidence
    if not can_go_back(rollout, by_job["smoke-tests"].evidence):
        return ()
    previous_version = rollout["previous"].get("version")
    return (f"Rollback: {previous_version} is kept; the artifact rollback-instructions says how to go back and until when.",)


def _next_steps(failed: tuple[FailedJob, ...], by_job: Mapping[str, JobOutcome]) -> tuple[str, ...]:
    steps: list[str] = []
    for failed_job in failed:
        for text in (f"{failed_job.job}: {failed_job.next_step}", f"{failed_job.job}: {ADVICE[failed_job.job]}"):
            if text not in steps and failed_job.next_step:
                steps.append(text)
    if any(phrase in traffic(by_job, None) for phrase in ("half done", "NOT verified", "unknown. gradual-rollout (")):
        steps.insert(0, "before anything else: read the routes at the edge and make sure that one healthy version has all traffic")
    if not failed:
        steps.append("no failed job was named: open the run and look for the job that is red")
    return tuple(steps)


def verified_backup(fragments: Mapping[str, Fragment]) -> dict[str, Any] | None:
    """Return the evidence of the backup when its job succeeded and the stored object was proven by a restore, else None.

    A job that failed for the trial of the migrations, or for that of the version in production, succeeded as far as the backup is
    concerned: both come after the proof.
    """
    fragment = fragments.get("database-backup")
    if fragment is None or not is_proven(fragment.evidence):
        return None
    tried = (fragment.evidence.get("trial") or {}).get("passed") is False or "code_rollback_safe" in fragment.evidence
    if fragment.status != "ok" and not tried:
        return None
    return fragment.evidence
