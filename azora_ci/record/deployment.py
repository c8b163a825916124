"""Assemble the deployment record from the jobs' fragments. Pure.

The record holds every field of the production deployment guide under the guide's name, and in further fields the evidence for them.
It is archived as canonical JSON; the next record names the SHA-256 of those bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci.core import schemas
from azora_ci.core.pipeline import APPLICATION_JOBS, CONNECTING_JOBS, EVIDENCE_JOBS
from azora_ci.record.chain import Document, pick, sha256
from azora_ci.record.evidence import can_go_back, review_due, rollback_deadline, warm_until, went_back
from azora_ci.record.fragments import Fragment
from azora_ci.record.run import Circumstances

SCHEMA_VERSION = 1
SCHEMA = "deployment-record"


@dataclass(frozen=True)
class Failure:
    """How a deployment that did not succeed ended: which jobs failed and why, what was not run, the state of production."""

    failed_jobs: Sequence[Document]
    not_run: Sequence[str]
    production_state: Sequence[str]
    unverified: Sequence[str] = ()  # jobs with a fragment that no output names; nothing of it is in the record


def assemble(
    fragments: Mapping[str, Fragment], facts: Circumstances, *, status: str, timestamp: str | None = None, failure: Failure | None = None
) -> Document:
    """Return the record that these fragments support; a job without a fragment leaves its fields null or empty.

    ``status`` is success, failed, rolled_back or cancelled. The record's time is the end of its last job, so that a second assembly
    gives the same bytes; only without any fragment it is ``timestamp``. Raises ValueError when both are missing.
    """
    evidence = {job: fragments[job].evidence if job in fragments else {} for job in EVIDENCE_JOBS}
    ended_at = finished_at(fragments) or timestamp
    if ended_at is None:
        raise ValueError("a record without fragments needs a timestamp")
    rollout, smoke = evidence["gradual-rollout"], evidence["smoke-tests"]
    available = can_go_back(rollout, smoke)
    deadline = rollback_deadline(ended_at, facts.rollback_window_minutes) if status == "success" or available else None
    serves = rollout.get("rollout_status") == "completed" and not went_back(smoke)
    return {
        "schema_version": SCHEMA_VERSION,
        "timestamp": ended_at,
        "deployment_id": facts.deployment_id,
        "version": facts.version,
        "environment": facts.run.environment,
        "status": status,
        "git_sha": facts.git_sha,
        "git_ref": f"refs/tags/{facts.version}" if facts.version else None,
        "triggered_by": facts.run.actor,
        "services_deployed": sorted(rollout.get("services") or {}) if serves else [],
        "database_backup": _backup(fragments.get("database-backup")),
        "migrations_applied": evidence["database-migrations"].get("migrations_applied"),
        "rollout_stages": [_stage(stage) for stage in rollout.get("stages", [])],
        "health_checks": _health(smoke),
        "rollback_available": available,
        "rollback_window_minutes": facts.rollback_window_minutes,
        "rollback_deadline": deadline,
        **({"rollback_warm_until": warm} if available and (warm := warm_until(rollout, deadline)) else {}),
        **_beyond_the_guide(fragments, evidence, facts),
        **_entry(evidence["pre-deployment-validation"], ended_at),
        "failure": _failure(failure),
    }


def _beyond_the_guide(fragments: Mapping[str, Fragment], evidence: Mapping[str, Document], facts: Circumstances) -> Document:
    release, build, validation = evidence["validate-release"], evidence["build-and-push"], evidence["pre-deployment-validation"]
    previous = evidence["gradual-rollout"].get("previous") or {}
    return {
        "trigger": release.get("trigger"),
        "commit_time": release.get("commit_time"),
        "repository": facts.run.repository,
        "run_id": facts.run.id,
        "run_url": facts.run.url,
        "run_attempt": facts.run.attempt,
        "previous_deployment_id": previous.get("deployment_id") or facts.previous.deployment_id,
        "previous_version": previous.get("version") or facts.previous.version,
        "previous_record_sha256": facts.previous.record_sha256,
        **({"previous_record_location": facts.previous.record_location} if facts.previous.record_location else {}),
        "signed_by": facts.signed_by,
        "artifact_kind": build.get("kind"),
        "build_isolation": build.get("isolation"),
        "image_digests": {name: image["digest"] for name, image in (build.get("services") or {}).items() if "digest" in image},
        "checks": [pick(check, "name", "source", "kind", "conclusion", "passed", "url") for check in validation.get("checks", [])],
        "approval": _approval(validation.get("approval")),
        "audit": validation.get("audit"),
        "commands": [pick(command, "purpose", "argv", "exit_code", "seconds", "source") for command in validation.get("commands", [])],
        "migration_tool": evidence["database-migrations"].get("tool"),
        "migrations": [pick(migration, "name", "checksum", "seconds") for migration in evidence["database-migrations"].get("applied", [])],
        "smoke_tests": [
            pick(test, "name", "kind", "url", "passed", "status", "version", "milliseconds", "detail")
            for test in evidence["smoke-tests"].get("tests", [])
        ],
        "rollout": _rollout(evidence["gradual-rollout"], evidence["smoke-tests"]),
        **({"code_rollback_safe": safe} if (safe := evidence["database-backup"].get("code_rollback_safe")) else {}),
        **({"version_proof": proof} if (proof := _version_proof(evidence["gradual-rollout"])) else {}),
        "host_keys": _host_keys(evidence),
        "metrics": _metrics(fragments, evidence),
        "override_reasons": _override_reasons(evidence),
        "evidence": {job: _source(fragment) for job, fragment in fragments.items() if job in EVIDENCE_JOBS},
        "artifacts_location": facts.artifacts_location,
        **({"set_aside": list(facts.previous.set_aside)} if facts.previous.set_aside else {}),
    }


def _entry(validation: Document, ended_at: str) -> Document:
    """Return why the release might enter production when it did: calendar, staging, or an emergency, which a person reviews later."""
    emergency, staging = validation.get("emergency"), validation.get("staging") or {}
    asked = {"calendar": validation.get("calendar"), "staging": staging.get("record")}
    return {
        **{name: fact for name, fact in asked.items() if fact is not None},
        "emergency": {**pick(emergency, "reason", "by"), "review_due": review_due(ended_at)} if emergency else None,
    }


def _approval(approval: Document | None) -> Document | None:
    """Return who agreed to the release; its pull requests only where the gate asked for them."""
    listed = [name for name in ("pull_requests",) if name in (approval or {})]
    return pick(approval, "enforced", "reason", "distinct_person", *listed) if approval else None


def _version_proof(rollout: Document) -> Document:
    """Return service -> how its version was proved in the last stage: of instances, and in public."""
    stages = rollout.get("stages") or [{}]
    return {service: pick(proofs, "instances", "public") for service, proofs in (stages[-1].get("version_proof") or {}).items()}


def _host_keys(evidence: Mapping[str, Document]) -> list[Document]:
    """Return the host keys that the jobs saw, without those an earlier job saw. Of one job, hosts that share a key have an entry each."""
    host_keys: list[Document] = []
    for job in CONNECTING_JOBS:
        fingerprints = {host_key["fingerprint"] for host_key in host_keys}
        keys_of_job = (pick(entry, "fingerprint", "key_type", "known_hosts", "source") for entry in evidence[job].get("host_keys", []))
        host_keys += [host_key for host_key in keys_of_job if host_key["fingerprint"] not in fingerprints]
    return host_keys


def _backup(fragment: Fragment | None) -> Document | None:
    if fragment is None or "location" not in fragment.evidence:
        return None
    names = ("backup_id", "location", "timestamp", "version_id", "sha256", "size_bytes", "tables", "rows", "server_version")
    backup = pick(fragment.evidence, *names, "manifest_key", "manifest_sha256", "lock_until")
    proof = fragment.evidence.get("proof")
    backup["proof"] = pick(proof, "depth", "restore_seconds", "verified_at", "reason") if proof else None
    return backup


def _stage(stage: Mapping[str, Any]) -> Document:
    guide = pick(stage, "stage", "traffic_percentage", "duration_minutes", "status")
    beyond = pick(stage, "started_at", "ended_at", "planned_minutes", "reason", "weights", "availability", "requests", "error_rate")
    probes = stage.get("probes")
    return {**guide, **beyond, "probes": pick(probes, "total", "failed") if probes else None}


def _health(smoke: Document) -> Document:
    return {**(smoke.get("health") or {}), "smoke_tests": smoke.get("smoke_status") or "not_run"}


def _rollout(rollout: Document, smoke: Document) -> Document | None:
    if not rollout:
        return None
    abort, back = rollout.get("abort"), smoke.get("rollback")
    return {
        **pick(rollout, "target", "rollout_status"),
        "abort": pick(abort, "stage", "reason", "seconds_to_safe", "proved", "detail") if abort else None,
        "smoke_rollback": pick(back, "to", "seconds_to_safe", "proved", "detail") if back else None,
        "notes": list(rollout.get("notes") or []),
        "jobs": [
            pick(job, "service", "when", "host", "state", "exit_code", "seconds", "reason", "log", "passed", "summary")
            for job in rollout.get("jobs") or []
        ],
    }


def _failure(failure: Failure | None) -> Document | None:
    if failure is None:
        return None
    return {
        "failed_jobs": [pick(job, "job", "result", "title", "what") for job in failure.failed_jobs],
        "not_run": list(failure.not_run),
        "production_state": list(failure.production_state),
        "unverified": list(failure.unverified),
    }


def _source(fragment: Fragment) -> Document:
    """Return status, attempt, times and SHA-256 of a fragment, so that the archived artifact can be checked against the record.

    ``source``: "reported" by a job that ran code of the application, which could have written anything, or "observed" by this project.
    """
    return {
        "source": "reported" if fragment.job in APPLICATION_JOBS else "observed",
        "status": fragment.status,
        "run_attempt": fragment.run_attempt,
        "started_at": fragment.started_at,
        "ended_at": fragment.ended_at,
        "fragment_sha256": sha256(schemas.canonical(fragment.document())),
    }


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one RFC 3339 time to another, rounded to milliseconds."""
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), 3)


def finished_at(fragments: Mapping[str, Fragment]) -> str | None:
    """Return the time (RFC 3339) at which the last of the EVIDENCE_JOBS ended, or None without a fragment."""
    ends = [fragments[job].ended_at for job in EVIDENCE_JOBS if job in fragments]
    return max(ends, key=datetime.fromisoformat, default=None)


def _metrics(fragments: Mapping[str, Fragment], evidence: Mapping[str, Document]) -> Document:
    stages = evidence["gradual-rollout"].get("stages", [])
    probes = [stage.get("probes") or {} for stage in stages]
    total, failed = (sum(counts.get(name, 0) for counts in probes) for name in ("total", "failed"))
    # A runner's clock may be set back while a job runs.
    times = {job: (fragment.started_at, fragment.ended_at) for job, fragment in fragments.items() if job in EVIDENCE_JOBS}
    job_seconds = {job: max(0.0, seconds_between(*start_and_end)) for job, start_and_end in times.items()}
    start = min((started_at for started_at, _ in times.values()), key=datetime.fromisoformat, default=None)
    end, commit_time = finished_at(fragments), evidence["validate-release"].get("commit_time")
    return {
        "duration_seconds": max(0.0, seconds_between(start, end)) if start and end else None,
        "job_seconds": job_seconds,
        "lead_time_seconds": seconds_between(commit_time, end) if commit_time and end else None,
        "health_probes": {"total": total, "failed": failed},
        "health_check_success_rate": round(1 - failed / total, 6) if total else None,
        "requests": sum(sum((stage.get("requests") or {}).values()) for stage in stages),
        "migration_seconds": job_seconds.get("database-migrations"),
    }


def _override_reasons(evidence: Mapping[str, Document]) -> list[str]:
    """Return the reasons that people gave for verifying or watching less than the guide asks."""
    reasons = [f"{job}: {document['override_reason']}" for job, document in evidence.items() if document.get("override_reason")]
    plain = [job for job, document in evidence.items() if document.get("database_transport") == "plain"]
    reasons += [f"{job}: TLS to the database was not demanded (PROD_DATABASE_PLAIN=true)" for job in plain]
    emergency = evidence["pre-deployment-validation"].get("emergency") or {}
    reasons += [
        f"pre-deployment-validation: {gate} was closed, passed as an emergency: {emergency['reason']}"
        for gate in emergency.get("passed", [])
    ]
    proof = evidence["database-backup"].get("proof") or {}
    if proof.get("depth") in {"none", "counts"} and proof.get("reason"):
        reasons.append(f"database-backup: proof {proof['depth']}: {proof['reason']}")
    trial = evidence["database-backup"].get("trial") or {}
    if trial.get("reason"):
        reasons.append(f"database-backup: trial of the migrations {trial['how']}: {trial['reason']}")
    return reasons


# --- contradictions in the evidence ------------------------------------------------------------------------------------


def contradictions(fragments: Mapping[str, Fragment], facts: Circumstances) -> list[str]:
    """Return a sentence for each contradiction in the evidence of a successful deployment; empty when all parts agree."""
    problems = [
        f"{job} was about {name} {getattr(fragment, name)}, this record is about {getattr(facts, name)}"
        for job, fragment in fragments.items()
        for name in ("deployment_id", "version", "git_sha")
        if getattr(fragment, name) != getattr(facts, name)
    ]
    evidence = {job: fragment.evidence for job, fragment in fragments.items()}
    backup, migrations = evidence["database-backup"].get("backup_id"), evidence["database-migrations"].get("backup_id")
    if backup != migrations:
        problems.append(f"the migrations ran behind {migrations}, the backup of this deployment is {backup}")
    built = {name: image.get("digest") for name, image in (evidence["build-and-push"].get("services") or {}).items()}
    running = evidence["gradual-rollout"].get("services") or {}
    problems += [
        f"{name}: {built.get(name, 'nothing')} was built, {running.get(name, 'nothing')} was rolled out"
        for name in sorted(built.keys() | running.keys())
        if built.get(name) != running.get(name)
    ]
    if not running:
        problems.append("gradual-rollout names no service")
    if evidence["gradual-rollout"].get("rollout_status") != "completed":
        problems.append(f"the rollout is {evidence['gradual-rollout'].get('rollout_status')}, not completed")
    if evidence["smoke-tests"].get("smoke_status") != "passed":
        problems.append(f"the smoke tests are {evidence['smoke-tests'].get('smoke_status')}, not passed")
    return problems
