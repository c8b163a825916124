"""The health log: every single health check with its response time, a line of JSON each (schema ``health-check``). Pure."""

from __future__ import annotations

from typing import Any

from azora_ci.health.answers import ProbeResult

FILE_NAME = "health.jsonl"


def check_line(phase: str, finding: ProbeResult) -> dict[str, Any]:
    """Return the line of a probe. ``phase``: the stage of the rollout, or the job, in which it was made."""
    return {
        "phase": phase,
        "service": finding.endpoint.service,
        "endpoint": finding.endpoint.name,
        "side": finding.endpoint.side,
        "outcome": finding.outcome,
        "status": finding.status,
        "version": finding.version,
        "milliseconds": round(finding.milliseconds, 1),
        "detail": finding.detail,
    }
