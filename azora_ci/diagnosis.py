"""What broke, what was not run, and what state production is in, derived from the evidence alone. Pure.

Every sentence rests on a job's result or on its fragment; where neither shows a fact, the sentence says that it is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci import rollback
from azora_ci.fragments import Fragment
from azora_ci.record import EVIDENCE_JOBS

PIPELINE = (*EVIDENCE_JOBS, "deployment-record", "manual-rollback")
# The guide's troubleshooting cases, per job.
ADVICE: dict[str, str] = {
    "validate-release": "correct the tag or the input version and start again; nothing was touched",
    "pre-deployment-validation": "look at the named checks of the commit, correct them, and re-run the failed jobs; nothing was touched",
    "database-backup": "check that the database answers, that the role may write to the bucket, and that there is room; "
    "then re-run the failed jobs",
    "database-migrations": "read _prisma_migrations in the job's log; resolve a failed migration with prisma migrate resolve first; "
    "restore the backup only when data is damaged",
    "build-and-push": "read the build log; correct it in a new release, or re-run the failed jobs when the registry was down",
    "gradual-rollout": "read the logs of the new instances and the named reason; check that migrations and configuration fit",
    "smoke-tests": "look at the named services now: the new version has the traffic; if users are affected go back, "
    "ROLLBACK-INSTRUCTIONS.md says how",
    "deployment-record": "production is not affected; re-run the failed jobs so that the record is written and archived",
    "manual-rollback": "production is not affected; re-run the failed jobs so that the rollback instructions are written",
}
# What a job waits for; one whose needs did not succeed cannot have started.
NEEDS: dict[str, tuple[str, ...]] = {
    "validate-release": (),
    "pre-deployment-validation": ("validate-release",),
    "database-backup": ("validate-release", "pre-deployment-validation"),
    "database-migrations": ("database-backup",),
    "build-and-push": ("pre-deployment-validation",),
    "gradual-rollout": ("database-migrations", "build-and-push"),
    "smoke-tests": ("gradual-rollout",),
    "deployment-record": ("smoke-tests",),
    "manual-rollback": ("gradual-rollout",),
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
        """Return it as the report's JSON."""
        return {
            "job": self.job, "result": self.result, "title": self.title, "what": self.what, "where": self.where, "next": self.next_step,
        }  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """The whole finding. ``status`` is failed, rolled_back or cancelled; ``production`` holds one sentence a fact."""

    status: str
    failed: tuple[FailedJob, ...]
    succeeded: tuple[str, ...]
    not_run: tuple[str, ...]
    unknown: tuple[str, ...]
    production: tuple[str, ...]
    next_steps: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What is known of one job: its result (success, failure, cancelled, skipped or unknown) and its fragment, if it left one."""

    job: str
    result: str
    fragment: Fragment | None

    @property
    def evidence(self) -> dict[str, Any]:
        """Return the evidence it left."""
        return self.fragment.evidence if self.fragment else {}


def outcomes(needs: Mapping[str, str], found: Mapping[str, Fragment]) -> dict[str, Outcome]:
    """Return what is known of every job, from the results GitHub gives and the fragments found."""
    of_status = {"ok": "success", "failed": "failure", "cancelled": "cancelled"}
    known: dict[str, Outcome] = {}
    for job in PIPELINE:
        fragment = found.get(job)
        result = needs.get(job) or (of_status[fragment.status] if fragment else "unknown")
        # A cancelled run names jobs "cancelled" that never started.
        if fragment is None and result in {"cancelled", "unknown"} and any(known[need].result != "success" for need in NEEDS[job]):
            result = "skipped" if result == "cancelled" or _certain(known, job) else "unknown"
        known[job] = Outcome(job, result, fragment)
    return known


def _certain(known: Mapping[str, Outcome], job: str) -> bool:
    """Say whether a job is known not to have started: one of its needs is known to have ended otherwise than well."""
    return any(known[need].result in {"failure", "cancelled", "skipped"} for need in NEEDS[job])


def diagnose(needs: Mapping[str, str], found: Mapping[str, Fragment], version: str | None) -> Diagnosis:
    """Return the finding. ``needs`` maps jobs to success, failure, cancelled or skipped; it may be empty."""
    known = outcomes(needs, found)
    failed = tuple(_failed(one) for one in known.values() if one.result in {"failure", "cancelled"})
    named = {result: tuple(one.job for one in known.values() if one.result == result) for result in ("success", "skipped", "unknown")}
    return Diagnosis(
        status=_status(known, failed),
        failed=failed,
        succeeded=named["success"],
        not_run=named["skipped"],
        unknown=named["unknown"],
        production=(traffic(known, version), *_smoke(known), schema(known), *_old_code_on_new_schema(known), *_way_back(known)),
        next_steps=_next_steps(failed, known),
    )


def _status(known: Mapping[str, Outcome], failed: tuple[FailedJob, ...]) -> str:
    if known["gradual-rollout"].evidence.get("rollout_status") == "rolled_back" or rollback.went_back(known["smoke-tests"].evidence):
        return "rolled_back"
    return "cancelled" if failed and all(one.result == "cancelled" for one in failed) else "failed"


def _failed(one: Outcome) -> FailedJob:
    if one.fragment is not None and one.fragment.error is not None:
        error = one.fragment.error
        return FailedJob(one.job, one.result, error["title"], error["what"], error["where"], error["next"])
    if one.fragment is not None:
        what = f"its own work ended well (attempt {one.fragment.run_attempt}), the job did not: a step before or after it, or a time limit"
    elif one.result == "cancelled":
        what = "it was cancelled before it could leave evidence, or never started"
    else:
        what = "it left no evidence: it was ended before it could write, or its artifact was not kept"
    return FailedJob(one.job, one.result, f"{one.job}: {one.result}", what, "the job's log in this run", ADVICE[one.job])


# --- the state of production -------------------------------------------------------------------------------------------


def traffic(known: Mapping[str, Outcome], version: str | None) -> str:
    """Return which version has the traffic, as far as the evidence shows it."""
    one = known["gradual-rollout"]
    rollout, new = one.evidence, version or "the new version"
    if one.result == "skipped":
        return "Code and traffic: unchanged. The rollout did not run; the version that was in production keeps all traffic."
    if one.fragment is None:
        return f"Code and traffic: unknown. gradual-rollout ({one.result}) left no evidence; look at the edge's routes and the instances."
    outcome, abort = rollout.get("rollout_status"), rollout.get("abort")
    if outcome == "completed":
        return _after_completion(known["smoke-tests"].evidence.get("rollback"), new)
    if abort and abort.get("seconds_to_safe") is not None:
        return _went_back(abort, (rollout.get("previous") or {}).get("version"), new)
    if outcome in {None, "planned"} and not rollout.get("stages") and not abort:
        return f"Code and traffic: unchanged by this attempt. gradual-rollout ended ({one.result}) before it moved anything."
    unsafe = f" Taking traffic back did not finish: {abort.get('detail')}." if abort else ""
    noted = "".join(f" {note}." for note in rollout.get("notes") or [])
    return (
        f"Code and traffic: half done ({outcome or one.result}).{unsafe} {_last_stage(rollout)}{noted} "
        "Read the routes at the edge before anything else."
    )


def _after_completion(back: Mapping[str, Any] | None, new: str) -> str:
    if back and back.get("to"):
        return f"Code and traffic: {back['to']} has all traffic again, because smoke tests of {new} failed; {_proof(back)}."
    return f"Code and traffic: {new} has all traffic; the rollout completed."


def _went_back(abort: Mapping[str, Any], old: str | None, new: str) -> str:
    why = f" Aborted in stage {abort.get('stage')}: {abort.get('reason')}."
    if old is None:
        return f"Code and traffic: no version has traffic. {new} was the first deployment and was taken out; {_proof(abort)}.{why}"
    return f"Code and traffic: {old} has all traffic again within {abort['seconds_to_safe']:g} s; {_proof(abort)}.{why}"


def _proof(back: Mapping[str, Any]) -> str:
    detail = f" ({back['detail']})" if back.get("detail") else ""
    return f"this was verified{detail}" if back.get("proved") else f"this was NOT verified{detail}: read the routes at the edge"


def _last_stage(rollout: Mapping[str, Any]) -> str:
    stages = rollout.get("stages") or []
    if not stages:
        return "No stage was recorded."
    last = stages[-1]
    return f"Last recorded stage: {last.get('stage')} ({last.get('traffic_percentage')} %), {last.get('status')}."


def _smoke(known: Mapping[str, Outcome]) -> tuple[str, ...]:
    one = known["smoke-tests"]
    tests = one.evidence.get("tests") or []
    broken = [f"{test.get('name')} ({test.get('detail') or test.get('status')})" for test in tests if not test.get("passed")]
    if broken:
        return (f"Services: {len(broken)} of {len(tests)} smoke tests failed: {'; '.join(broken)}.",)
    if one.result == "success":
        return (f"Services: all {len(tests)} smoke tests passed.",)
    if known["gradual-rollout"].evidence.get("rollout_status") == "completed":
        return ("Services: not confirmed by smoke tests.",)
    return ()


def schema(known: Mapping[str, Outcome]) -> str:
    """Return what happened to the database schema, as far as the evidence shows it."""
    one = known["database-migrations"]
    if one.result == "skipped":
        return "Schema: unchanged. The migrations did not run."
    if one.fragment is None:
        return f"Schema: unknown. database-migrations ({one.result}) left no evidence; read _prisma_migrations."
    count, names = one.evidence.get("migrations_applied"), [str(step.get("name")) for step in one.evidence.get("applied") or []]
    listed = f" ({', '.join(names)})" if names else ""
    if one.fragment.status == "ok":
        return f"Schema: migrated, {count} applied since the backup{listed}." if count else "Schema: unchanged, nothing was pending."
    return _half_migrated(one, f"{len(names)} applied{listed}" if names else "none recorded as applied")


def _half_migrated(one: Outcome, applied: str) -> str:
    """Return what migrations that did not end well left, from the comparison of the schema before and after where there is one."""
    evidence = one.evidence
    broken = f", failed: {', '.join(evidence['failed'])}" if evidence.get("failed") else ""
    said = f"Schema: the migrations ended as {one.fragment.status if one.fragment else one.result}, {applied}{broken}."
    if "schema_gained" not in evidence or "schema_lost" not in evidence:
        return f"{said} Statements of an unfinished migration can have stayed: compare the database with its migration.sql."
    gained, lost = evidence["schema_gained"], evidence["schema_lost"]
    if not gained and not lost:
        return f"{said} Compared before and after, the schema is unchanged; rows may not be."
    changes = [f"gained {'; '.join(gained)}"] * bool(gained) + [f"lost {'; '.join(lost)}"] * bool(lost)
    return f"{said} Compared before and after, the schema {' and '.join(changes)}."


def _old_code_on_new_schema(known: Mapping[str, Outcome]) -> tuple[str, ...]:
    migrations, rollout = known["database-migrations"], known["gradual-rollout"]
    changed = bool(migrations.evidence.get("migrations_applied") or migrations.evidence.get("applied"))
    back = rollout.evidence.get("rollout_status") == "rolled_back" or rollback.went_back(known["smoke-tests"].evidence)
    if not changed or not (rollout.result == "skipped" or back):
        return ()
    risks = [
        f"{one['migration']}: {one['statement']} ({one['why']})"
        for one in migrations.evidence.get("risks") or []
        if one.get("kind") == "old-version"
    ]
    if risks:
        return (f"Old code runs on the new schema, which may break it: {'; '.join(risks)}.",)
    return ("Old code runs on the new schema: safe as long as the migrations are compatible with it (they add, they do not take away).",)


def _way_back(known: Mapping[str, Outcome]) -> tuple[str, ...]:
    rollout = known["gradual-rollout"].evidence
    if not rollback.available(rollout, known["smoke-tests"].evidence):
        return ()
    old = rollout["previous"].get("version")
    return (f"Rollback: {old} is kept; the artifact rollback-instructions says how to go back and until when.",)


def _next_steps(failed: tuple[FailedJob, ...], known: Mapping[str, Outcome]) -> tuple[str, ...]:
    steps: list[str] = []
    for one in failed:
        for text in (f"{one.job}: {one.next_step}", f"{one.job}: {ADVICE[one.job]}"):
            if text not in steps and one.next_step:
                steps.append(text)
    if any(word in traffic(known, None) for word in ("half done", "NOT verified", "unknown. gradual-rollout (")):
        steps.insert(0, "before anything else: read the routes at the edge and make sure that one healthy version has all traffic")
    if not failed:
        steps.append("no failed job was named: open the run and look for the job that is red")
    return tuple(steps)


def verified_backup(found: Mapping[str, Fragment]) -> dict[str, Any] | None:
    """Return the evidence of the backup when its job succeeded and the stored object was proven by a restore, else None."""
    one = found.get("database-backup")
    if one is None or one.status != "ok" or not rollback.is_proven(one.evidence):
        return None
    return one.evidence
