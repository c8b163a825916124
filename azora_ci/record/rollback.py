"""The record of a rollback. It is archived next to the deployment's record, in the same chain of hashes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.record.chain import Document, pick
from azora_ci.record.run import WorkflowRun

SCHEMA_VERSION = 1
SCHEMA = "rollback-record"
FILE_NAME = "rollback-record.json"
COMPLETED, UNVERIFIED = "completed", "unverified"


@dataclass(frozen=True, kw_only=True)
class RollbackCircumstances:
    """Facts of the record that the step did not observe: time, run, SHA-256 and URL of the previous record, who signs."""

    timestamp: str
    run: WorkflowRun
    previous_record_sha256: str | None
    previous_record_location: str | None
    signed_by: str = "none"


def status(evidence: Mapping[str, Any]) -> str:
    """Return ``completed`` when the traffic's return is proved and the smoke tests passed, else ``unverified``."""
    return COMPLETED if evidence["proved"] and evidence["smoke_status"] == "passed" else UNVERIFIED


def assemble(evidence: Mapping[str, Any], deployed: Mapping[str, Any], facts: RollbackCircumstances) -> Document:
    """Return the record of a rollback from the step's evidence and the record of the deployment that was rolled back."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "rollback",
        "timestamp": facts.timestamp,
        "deployment_id": deployed["deployment_id"],
        "version": deployed["version"],
        "environment": facts.run.environment,
        "status": status(evidence),
        "reason": evidence["reason"],
        "triggered_by": facts.run.actor,
        "repository": facts.run.repository,
        "run_id": facts.run.id,
        "run_url": facts.run.url,
        "run_attempt": facts.run.attempt,
        **pick(evidence, "to", "rollback_deadline", "after_deadline", "already_back", "fenced", "instances"),
        **pick(evidence, "seconds_to_safe", "proved", "requests_after", "detail"),
        "smoke_status": evidence["smoke_status"],
        "smoke_tests": [
            pick(test, "name", "kind", "url", "passed", "status", "version", "milliseconds", "detail") for test in evidence["tests"]
        ],
        "health_checks": dict(evidence["health"]),
        "database_restored": False,  # the code goes back, the data stays
        "migrations_applied": deployed["migrations_applied"],
        "deployment_record": dict(evidence["record"]),
        "previous_record_sha256": facts.previous_record_sha256,
        **({"previous_record_location": facts.previous_record_location} if facts.previous_record_location else {}),
        "signed_by": facts.signed_by,
        "notes": list(evidence["notes"]),
    }
