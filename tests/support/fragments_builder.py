"""Complete, valid evidence of every job, as a successful deployment leaves it. Change what a test is about, nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azora_ci.core import pipeline
from azora_ci.core.clock import rfc3339
from azora_ci.record import fragments
from azora_ci.record.fragments import Fragment, Fragments
from azora_ci.record.needs import parse_needs

DEPLOYMENT_ID = "1764000000-abc123"
VERSION = "v1.2.3"
RUN_ID = "1234567890"
GIT_SHA = "abc1230123456789abcdef0123456789abcdef01"
PREVIOUS_ID = "1763000000-0f0f0f"
START = datetime(2025, 11, 24, 11, 0, tzinfo=UTC)
SERVICES = ("api_gateway", "auth_service", "education_service", "marketplace_service")
BACKUP = f"backup-{DEPLOYMENT_ID}"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ARTIFACTS = {job: name for job, name in pipeline.ARTIFACTS.items() if job in pipeline.PIPELINE}
# (start, end) of each job in seconds after START
TIMES = {
    "validate-release": (0, 8.5),
    "audit": (9, 12),
    "build": (9, 50),
    "pre-deployment-validation": (51, 60),
    "database-backup": (61, 180.25),
    "database-migrations": (181, 185.2),
    "images": (61, 200),
    "build-and-push": (201, 300),
    "gradual-rollout": (301, 2150),
    "smoke-tests": (2151, 2160.125),
}


def moment(seconds: float) -> str:
    """Return RFC 3339 for so many seconds after the start of the run."""
    return rfc3339(START + timedelta(seconds=seconds))


def digest(service: str) -> str:
    return "sha256:" + service.encode().hex().ljust(64, "0")[:64]


def _stage(name: str, percent: int, start: float, minutes: float) -> dict[str, Any]:
    shares = {VERSION: percent, "v1.2.2": 100 - percent}
    traffic = {
        version: {
            "weight": share,
            "requests": 60 * share,
            "errors_5xx": 0,
            "failover": 0,
            "given_up": 0,
            "resets": 0,
            "not_found": 0,
            "ours": 0,
            "ours_failed": 0,
            "connect_failures": 0,
            "failed": 0,
            "error_rate": 0.0,
            "p50_ms": 40.0,
            "p95_ms": 80.0,
        }
        for version, share in shares.items()
    }
    return {
        "stage": name,
        "traffic_percentage": percent,
        "started_at": moment(start),
        "ended_at": moment(start + minutes * 60),
        "duration_minutes": minutes,
        "planned_minutes": round(minutes),
        "status": "healthy",
        "reason": "healthy",
        "weights": {"/api": {f"api_gateway-{PREVIOUS_ID}": 100 - percent, f"api_gateway-{DEPLOYMENT_ID}": percent}},
        "instances": [f"api_gateway#1 {VERSION} (127.0.0.1:40001)"],
        "probes": {"total": 240, "failed": 1 if name == "canary" else 0},
        "ticks": 30,
        "decisions": [],
        "last_failures": {},
        "availability": 1.0,
        "requests": {version: 60 * share for version, share in shares.items()},
        "error_rate": {VERSION: 0.0, "v1.2.2": 0.001 if percent < 100 else 0.0},
        "traffic": traffic,
        "synthetic_requests": 0,
    }


def evidence(job: str) -> dict[str, Any]:
    """Return the evidence that a job leaves when all is well; a fresh copy to change."""
    return copy.deepcopy(_EVIDENCE[job])


_EVIDENCE: dict[str, dict[str, Any]] = {
    "validate-release": {
        "trigger": "push",
        "requested": None,
        "version": VERSION,
        "git_ref": f"refs/tags/{VERSION}",
        "origin_checked": True,
        "git_sha": GIT_SHA,
        "tag_type": "annotated",
        "commit_time": "2025-11-24T09:00:00.000Z",
        "deployment_id": DEPLOYMENT_ID,
    },
    "audit": {
        "registry": "https://npm.azora.example",
        "lock_files": [{"path": "package-lock.json", "manager": "npm", "packages": 212, "left_out": []}],
        "findings": [],
    },
    "build": {
        "commands": [{"purpose": "build", "argv": ["npm", "run", "build"], "exit_code": 0, "seconds": 20.1}],
        "dockerfiles": [],
        "tree": {"sha256": SHA256, "bytes": 1048576, "entries": 31000},
    },
    "pre-deployment-validation": {
        "checks": [
            {
                "name": "test",
                "source": "configuration",
                "kind": "check_run",
                "conclusion": "success",
                "passed": True,
                "url": "https://github.com/azora/azora/runs/1",
            }
        ],
        "audit": {
            "source": "reported",
            "level": "high",
            "reason": None,
            "exceptions": [],
            "registry": "https://npm.azora.example",
            "lock_files": [{"path": "package-lock.json", "manager": "npm", "packages": 212, "left_out": []}],
            "findings": [],
        },
        "commands": [{"purpose": "build", "argv": ["npm", "run", "build"], "exit_code": 0, "seconds": 20.1, "source": "reported"}],
        "not_checked": [],
        "waited_seconds": 0.0,
        "calendar": None,
        "staging": None,
        "emergency": None,
    },
    "database-backup": {
        "backup_id": BACKUP,
        "location": f"s3://azora-backups/prod/{BACKUP}.sql.gz",
        "key": f"prod/{BACKUP}.sql.gz",
        "version_id": None,
        "timestamp": moment(62),
        "manifest_key": f"prod/{BACKUP}.manifest.json",
        "manifest_sha256": SHA256,
        "sha256": SHA256,
        "size_bytes": 1048576,
        "raw_bytes": 9048576,
        "tables": 5,
        "rows": 120000,
        "proof": {"depth": "full", "restore_seconds": 41.5, "verified_at": moment(170), "reason": None},
        "reused": False,
        "lock_until": None,
        "seconds": {"dump": 60.0, "restore": 41.5},
        "server_version": "18.1",
    },
    "database-migrations": {
        "tool": "prisma",
        "backup_id": BACKUP,
        "manifest_sha256": SHA256,
        "backup_age_minutes": 2.0,
        "migrations_applied": 2,
        "applied": [
            {"name": "20261120000000_add_courses", "checksum": SHA256, "seconds": 0.4},
            {"name": "20261121000000_index_orders", "checksum": SHA256, "seconds": 1.1},
        ],
        "already_applied": 7,
        "pending": ["20261120000000_add_courses", "20261121000000_index_orders"],
        "seconds": 3.9,
    },
    "images": {
        "kind": "archives",
        "isolation": "job",
        "builder": None,
        "services": {name: {"sha256": digest(name), "bytes": 1000, "image_id": None, "tag": None, "seconds": 2.0} for name in SERVICES},
        "commands": [{"purpose": "production", "argv": ["npm", "run", "build"], "exit_code": 0, "seconds": 20.1}],
    },
    "build-and-push": {
        "kind": "archives",
        "isolation": "job",
        "builder": None,
        "services": {
            name: {"digest": digest(name), "reference": f"{name}.tar.gz", "size_bytes": 1000, "seconds": 2.0, "reused": False}
            for name in SERVICES
        },
        "commands": [],
        "seconds": 98.0,
    },
    "gradual-rollout": {
        "target": "local_processes",
        "previous": {"version": "v1.2.2", "deployment_id": PREVIOUS_ID},
        "stages": [_stage("canary", 5, 310, 5.01), _stage("progressive", 50, 620, 10.0), _stage("full", 100, 1230, 15.0)],
        "rollout_status": "completed",
        "abort": None,
        "jobs": [],
        "services": {name: digest(name) for name in SERVICES},
        "rollback_available": True,
        "instances": [f"api_gateway#1 {VERSION} (127.0.0.1:40001)"],
        "override_reason": None,
        "notes": [],
        "host_keys": [],
        "test": "one-sided, 99 %, exact bounds",
    },
    "smoke-tests": {
        "tests": [
            {
                "name": name,
                "kind": "health",
                "url": f"https://azora.example/{name}/health",
                "passed": True,
                "status": 200,
                "version": "1.2.3",
                "milliseconds": 23.5,
                "attempts": 1,
                "detail": "version 1.2.3",
            }
            for name in SERVICES
        ],
        "smoke_status": "passed",
        "health": {**dict.fromkeys(SERVICES, "healthy"), "database": "healthy"},
        "rollback": None,
    },
}
JOB = {  # of the release, which has run
    "service": "seed", "when": "after-rollout", "host": "", "state": "ended", "exit_code": 3, "seconds": 1.5, "reason": None,
    "log": "jobs/seed.log", "log_tail": "half of it", "passed": False,
    "summary": "job seed (after-rollout) ended after 1.5 s with exit code 3",
}  # fmt: skip
ERROR = {"exit_code": 1, "title": "It broke", "what": "exit code 7 after 3 of 5", "where": "the broken part", "next": "mend it"}


def fragment(
    job: str,
    status: str = "ok",
    *,
    attempt: int = 1,
    error: dict[str, Any] | None = None,
    evidence: dict[str, Any] | None = None,
    **changes: Any,
) -> Fragment:
    """Return the fragment of a job. ``changes`` replace keys of its complete evidence, ``evidence`` replaces all of it."""
    start, end = TIMES.get(job, (2200, 2210))
    return Fragment(
        job=job,
        deployment_id=DEPLOYMENT_ID,
        version=VERSION,
        git_sha=GIT_SHA,
        run_id=RUN_ID,
        run_attempt=attempt,
        status=status,
        started_at=moment(start),
        ended_at=moment(end),
        evidence=(copy.deepcopy(_EVIDENCE[job]) | changes) if evidence is None else evidence,
        error=None if status == "ok" else error or ERROR,
    )


def complete(**changed: Fragment) -> dict[str, Fragment]:
    """Return the fragments of a successful deployment; ``changed`` (job with underscores) replace some."""
    return {job: fragment(job) for job in _EVIDENCE} | {replacement.job: replacement for replacement in changed.values()}


def receive(folder: Path, *received: Fragment) -> None:
    """Write fragments as the artifacts of their jobs, validated, each with a log beside it."""
    for part in received:
        attempt = f"-attempt-{part.run_attempt}" if part.run_attempt > 1 else ""
        artifact = folder / f"{ARTIFACTS[part.job]}-{part.deployment_id}{attempt}"
        fragments.write(part, artifact)
        (artifact / f"{part.job}.log").write_text(f"log of {part.job}\n")


def received(folder: Path, *, attempt: int = 1, needs: str | None = None) -> Fragments:
    """Return the fragments in a folder as a later job of the run finds them; ``needs``: the variable NEEDS, else that of an honest run."""
    jobs = parse_needs(needs_of(folder) if needs is None else needs)
    return Fragments(folder, jobs, deployment_id=DEPLOYMENT_ID, run_id=RUN_ID, run_attempt=attempt)


def needs_of(received: Path, deployment_id: str = DEPLOYMENT_ID, **results: str) -> str:
    """Return ``toJSON(needs)`` as GitHub gives it to a job that received these artifacts of an honest run, whose latest attempts count.

    A job's result is that of its fragment (``results``, job with underscores, gives another); a job without one is left out.
    """
    document: dict[str, Any] = {job.replace("_", "-"): {"result": result, "outputs": {}} for job, result in results.items()}
    for job, prefix in ARTIFACTS.items():
        folders = [received / f"{prefix}-{deployment_id}", *sorted(received.glob(f"{prefix}-{deployment_id}-attempt-*"))]
        paths = [path for folder in folders if (path := folder / "record" / f"{job}.json").exists()]
        if paths:
            outputs = {"artifact-id": str(len(paths)), fragments.OUTPUT: hashlib.sha256(paths[-1].read_bytes()).hexdigest()}
            status = re.search(r'"status": "(ok|failed|cancelled)",\s+"started_at"', paths[-1].read_text())
            result = {"ok": "success", "failed": "failure"}.get(status[1] if status else "ok", "cancelled")
            document[job] = {"result": results.get(job.replace("-", "_"), result), "outputs": outputs}
    return json.dumps(document, indent=2)


def needs(received: Path, deployment_id: str = DEPLOYMENT_ID, **results: str) -> str:
    """Return ``toJSON(needs)`` as GitHub gives it to the failure handler: everything succeeded but for these (job with underscores)."""
    named = {job.replace("-", "_"): "success" for job in ARTIFACTS} | results
    return needs_of(received, deployment_id, **named)
