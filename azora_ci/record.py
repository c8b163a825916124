"""Fragments -> deployment record, and the chain of hashes that ties each record to the one before. Pure.

The record holds every field of the production deployment guide under the guide's name, and beyond them the evidence each field
rests on. Its archived form is canonical JSON; ``sha256`` of those bytes is what the next record names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci import rollback, schemas
from azora_ci.fragments import Fragment

SCHEMA_VERSION = 1
SCHEMA = "deployment-record"
EVIDENCE_JOBS = (
    "validate-release",
    "pre-deployment-validation",
    "database-backup",
    "database-migrations",
    "build-and-push",
    "gradual-rollout",
    "smoke-tests",
)
CONNECTING_JOBS = ("gradual-rollout", "database-migrations", "database-backup")  # over SSH, the one that sees most hosts first
Document = dict[str, Any]


@dataclass(frozen=True)
class Previous:
    """What the archive knows of earlier records: hash of the newest one, and the last deployment that succeeded."""

    record_sha256: str | None = None
    deployment_id: str | None = None
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the record holds beyond the fragments. ``previous`` comes from the archive; the rest from the run's settings."""

    deployment_id: str
    version: str | None
    git_sha: str | None
    environment: str
    triggered_by: str
    repository: str | None
    run_id: str
    run_url: str
    run_attempt: int
    rollback_window_minutes: int
    artifacts_location: str | None
    previous: Previous = Previous()


@dataclass(frozen=True)
class Failure:
    """How a deployment that did not succeed ended: which jobs failed and why, what was not run, the state of production."""

    failed_jobs: Sequence[Document]
    not_run: Sequence[str]
    production_state: Sequence[str]


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def archived_bytes(record: Document) -> bytes:
    """Return the one form in which a record is written, hashed and archived."""
    return schemas.canonical(record)


def assemble(
    found: Mapping[str, Fragment], facts: Circumstances, *, status: str, timestamp: str | None = None, failure: Failure | None = None
) -> Document:
    """Return the record that these fragments support; a job without a fragment leaves its fields null or empty.

    ``status`` is success, failed, rolled_back or cancelled. ``timestamp`` is used only where there is no fragment at all: the
    record is dated by the end of its last job, so that assembling it again gives the same bytes.
    """
    evidence = {job: found[job].evidence if job in found else {} for job in EVIDENCE_JOBS}
    ended = finished_at(found) or timestamp
    if ended is None:
        raise ValueError("a record without fragments needs a timestamp")
    rollout, smoke = evidence["gradual-rollout"], evidence["smoke-tests"]
    available = rollback.available(rollout, smoke)
    serves = rollout.get("rollout_status") == "completed" and not rollback.went_back(smoke)
    return {
        "schema_version": SCHEMA_VERSION,
        "timestamp": ended,
        "deployment_id": facts.deployment_id,
        "version": facts.version,
        "environment": facts.environment,
        "status": status,
        "git_sha": facts.git_sha,
        "git_ref": f"refs/tags/{facts.version}" if facts.version else None,
        "triggered_by": facts.triggered_by,
        "services_deployed": sorted(rollout.get("services") or {}) if serves else [],
        "database_backup": _backup(found.get("database-backup")),
        "migrations_applied": evidence["database-migrations"].get("migrations_applied"),
        "rollout_stages": [_stage(one) for one in rollout.get("stages", [])],
        "health_checks": _health(smoke),
        "rollback_available": available,
        "rollback_window_minutes": facts.rollback_window_minutes,
        "rollback_deadline": rollback.deadline(ended, facts.rollback_window_minutes) if status == "success" or available else None,
        **_beyond_the_guide(found, evidence, facts),
        "failure": _failure(failure),
    }


def _beyond_the_guide(found: Mapping[str, Fragment], evidence: Mapping[str, Document], facts: Circumstances) -> Document:
    release, build = evidence["validate-release"], evidence["build-and-push"]
    before = evidence["gradual-rollout"].get("previous") or {}
    return {
        "trigger": release.get("trigger"),
        "commit_time": release.get("commit_time"),
        "repository": facts.repository,
        "run_id": facts.run_id,
        "run_url": facts.run_url,
        "run_attempt": facts.run_attempt,
        "previous_deployment_id": before.get("deployment_id") or facts.previous.deployment_id,
        "previous_version": before.get("version") or facts.previous.version,
        "previous_record_sha256": facts.previous.record_sha256,
        "artifact_kind": build.get("kind"),
        "image_digests": {name: one["digest"] for name, one in (build.get("services") or {}).items() if "digest" in one},
        "checks": [pick(one, "name", "source", "kind", "conclusion", "passed", "url") for one in _checks(evidence)],
        "commands": [
            pick(one, "purpose", "argv", "exit_code", "seconds") for one in evidence["pre-deployment-validation"].get("commands", [])
        ],
        "migrations": [pick(one, "name", "checksum", "seconds") for one in evidence["database-migrations"].get("applied", [])],
        "smoke_tests": [
            pick(one, "name", "kind", "url", "passed", "status", "version", "milliseconds", "detail")
            for one in evidence["smoke-tests"].get("tests", [])
        ],
        "rollout": _rollout(evidence["gradual-rollout"], evidence["smoke-tests"]),
        "host_keys": _host_keys(evidence),
        "metrics": _metrics(found, evidence),
        "override_reasons": _override_reasons(evidence),
        "evidence": {job: _source(one) for job, one in found.items() if job in EVIDENCE_JOBS},
        "artifacts_location": facts.artifacts_location,
    }


def pick(document: Mapping[str, Any], *names: str) -> Document:
    """Return these keys of a document; a missing one becomes null."""
    return {name: document.get(name) for name in names}


def _host_keys(evidence: Mapping[str, Document]) -> list[Document]:
    """Return the host keys that the jobs saw; of one job those that none before it saw. Hosts that share a key have a line each."""
    found: list[Document] = []
    for job in CONNECTING_JOBS:
        known = {one["fingerprint"] for one in found}
        seen = (pick(one, "fingerprint", "key_type", "known_hosts", "source") for one in evidence[job].get("host_keys", []))
        found += [one for one in seen if one["fingerprint"] not in known]
    return found


def _checks(evidence: Mapping[str, Document]) -> Iterable[Document]:
    checks: list[Document] = evidence["pre-deployment-validation"].get("checks", [])
    return checks


def _backup(fragment: Fragment | None) -> Document | None:
    if fragment is None or "location" not in fragment.evidence:
        return None
    names = ("backup_id", "location", "timestamp", "version_id", "sha256", "size_bytes", "tables", "rows", "server_version")
    kept = pick(fragment.evidence, *names, "manifest_key", "manifest_sha256", "lock_until")
    proof = fragment.evidence.get("proof")
    kept["proof"] = pick(proof, "depth", "restore_seconds", "verified_at", "reason") if proof else None
    return kept


def _stage(one: Mapping[str, Any]) -> Document:
    guide = pick(one, "stage", "traffic_percentage", "duration_minutes", "status")
    beyond = pick(one, "started_at", "ended_at", "planned_minutes", "reason", "weights", "availability", "requests", "error_rate")
    probes = one.get("probes")
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
    }


def _failure(failure: Failure | None) -> Document | None:
    if failure is None:
        return None
    return {
        "failed_jobs": [pick(one, "job", "result", "title", "what") for one in failure.failed_jobs],
        "not_run": list(failure.not_run),
        "production_state": list(failure.production_state),
    }


def _source(fragment: Fragment) -> Document:
    """Say which fragment a part of the record rests on, and its hash, so that the archived artifact can be checked against it."""
    return {
        "status": fragment.status,
        "run_attempt": fragment.run_attempt,
        "started_at": fragment.started_at,
        "ended_at": fragment.ended_at,
        "fragment_sha256": sha256(schemas.canonical(fragment.document())),
    }


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one RFC 3339 moment to another, to the millisecond."""
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), 3)


def finished_at(found: Mapping[str, Fragment]) -> str | None:
    """Return the moment at which the last of the jobs of evidence ended."""
    ends = [found[job].ended_at for job in EVIDENCE_JOBS if job in found]
    return max(ends, key=datetime.fromisoformat, default=None)


def _metrics(found: Mapping[str, Fragment], evidence: Mapping[str, Document]) -> Document:
    stages = evidence["gradual-rollout"].get("stages", [])
    probes = [stage.get("probes") or {} for stage in stages]
    total, failed = (sum(one.get(name, 0) for one in probes) for name in ("total", "failed"))
    # A runner's clock may be set back while a job runs.
    jobs = {job: max(0.0, seconds_between(one.started_at, one.ended_at)) for job, one in found.items() if job in EVIDENCE_JOBS}
    starts = [one.started_at for job, one in found.items() if job in EVIDENCE_JOBS]
    end, commit_time = finished_at(found), evidence["validate-release"].get("commit_time")
    first = min(starts, key=datetime.fromisoformat, default=None)
    return {
        "duration_seconds": max(0.0, seconds_between(first, end)) if first and end else None,
        "job_seconds": jobs,
        "lead_time_seconds": seconds_between(commit_time, end) if commit_time and end else None,
        "health_probes": {"total": total, "failed": failed},
        "health_check_success_rate": round(1 - failed / total, 6) if total else None,
        "requests": sum(sum((stage.get("requests") or {}).values()) for stage in stages),
        "migration_seconds": jobs.get("database-migrations"),
    }


def _override_reasons(evidence: Mapping[str, Document]) -> list[str]:
    """Return the reasons people gave for proving or watching less than the guide asks."""
    reasons = [f"{job}: {one['override_reason']}" for job, one in evidence.items() if one.get("override_reason")]
    proof = evidence["database-backup"].get("proof") or {}
    if proof.get("depth") in {"none", "counts"} and proof.get("reason"):
        reasons.append(f"database-backup: proof {proof['depth']}: {proof['reason']}")
    return reasons


# --- does the evidence agree with itself -------------------------------------------------------------------------------


def contradictions(found: Mapping[str, Fragment], facts: Circumstances) -> list[str]:
    """Return where the evidence of a successful deployment contradicts itself; empty when every part tells the same story."""
    said = [
        f"{job} was about {name} {getattr(one, name)}, this record is about {getattr(facts, name)}"
        for job, one in found.items()
        for name in ("deployment_id", "version", "git_sha")
        if getattr(one, name) != getattr(facts, name)
    ]
    evidence = {job: one.evidence for job, one in found.items()}
    backup, migrations = evidence["database-backup"].get("backup_id"), evidence["database-migrations"].get("backup_id")
    if backup != migrations:
        said.append(f"the migrations ran behind {migrations}, the backup of this deployment is {backup}")
    built = {name: one.get("digest") for name, one in (evidence["build-and-push"].get("services") or {}).items()}
    running = evidence["gradual-rollout"].get("services") or {}
    said += [
        f"{name}: {built.get(name, 'nothing')} was built, {running.get(name, 'nothing')} was rolled out"
        for name in sorted(built.keys() | running.keys())
        if built.get(name) != running.get(name)
    ]
    if not running:
        said.append("gradual-rollout names no service")
    if evidence["gradual-rollout"].get("rollout_status") != "completed":
        said.append(f"the rollout is {evidence['gradual-rollout'].get('rollout_status')}, not completed")
    if evidence["smoke-tests"].get("smoke_status") != "passed":
        said.append(f"the smoke tests are {evidence['smoke-tests'].get('smoke_status')}, not passed")
    return said


# --- the chain of records ----------------------------------------------------------------------------------------------


def with_keys_of(record: Document, archived: bytes, *names: str) -> Document | None:
    """Return the record with these keys taken from an archived one, when its bytes are then the archived ones; else None."""
    try:
        other = json.loads(archived)
    except ValueError:
        return None
    if not isinstance(other, dict):
        return None
    merged = {**record, **{name: other.get(name) for name in names}}
    return merged if archived_bytes(merged) == archived else None


def broken_links(archived: Sequence[bytes]) -> list[str]:
    """Return what is wrong with a chain of archived records, oldest first: bytes that are not canonical, links that do not fit."""
    said: list[str] = []
    before: str | None = None
    for number, data in enumerate(archived):
        document = json.loads(data)
        name = f"record {number} ({document.get('deployment_id')})"
        if archived_bytes(document) != data:
            said.append(f"{name} is not canonical JSON")
        link = document.get("previous_record_sha256")
        if number and link != before:
            said.append(f"{name} names {link} as the record before it, which is {before}")
        before = sha256(data)
    return said


def doubts(archived: Sequence[bytes], place: int) -> list[str]:
    """Return what speaks against the record at this place of a chain (oldest first): its form, its link, and links behind it.

    A link must name some record before it, not always the last: two runs may end at the same time. Bytes behind it that are no
    record are passed over; they say nothing about this one.
    """
    said: list[str] = []
    if not _is_canonical(archived[place]):
        said.append("its bytes are not canonical JSON")
    hashes = [sha256(data) for data in archived]
    for number in range(place, len(archived)):
        document = _json(archived[number])
        link = document.get("previous_record_sha256")
        if link is not None and number and link not in hashes[:number]:
            name = "it" if number == place else f"the record {number - place} behind it ({document.get('deployment_id')})"
            said.append(f"{name} names {link} as a record before it, and there is none with that SHA-256")
    return said


def _json(data: bytes) -> Document:
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_canonical(data: bytes) -> bool:
    document = _json(data)
    return bool(document) and archived_bytes(document) == data
