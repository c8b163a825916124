"""Whether a deployment may be rolled back, until when, and how. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci.record.evidence import is_proven


@dataclass(frozen=True)
class WindowCheck:
    """Whether a rollback is allowed now, the reason, and the deadline (RFC 3339; None without a completed rollout)."""

    allowed: bool
    reason: str
    deadline: str | None


@dataclass(frozen=True)
class RollbackPlan:
    """How to roll back: to which version, and whether restoring the database is useful and possible.

    ``restore_useful`` is False when this deployment applied no migration: then only the traffic goes back and no write is lost.
    """

    version: str | None
    deployment_id: str | None
    restore_useful: bool
    restore_possible: bool


def check(record: Mapping[str, Any], now: datetime) -> WindowCheck:
    """Return whether the deployment of this record may be rolled back at the time ``now`` (with a time zone)."""
    closes_at = record.get("rollback_deadline")
    if not record.get("rollback_available"):
        return WindowCheck(False, "there is no previous version kept to go back to", closes_at)
    if not closes_at:
        return WindowCheck(False, "the record names no deadline", None)
    minutes_left = (datetime.fromisoformat(closes_at) - now).total_seconds() / 60
    if minutes_left <= 0:
        return WindowCheck(False, f"the window closed at {closes_at}, {-minutes_left:.0f} minutes ago", closes_at)
    return WindowCheck(True, f"the window is open until {closes_at}, {minutes_left:.0f} minutes from now", closes_at)


def plan(record: Mapping[str, Any]) -> RollbackPlan:
    """Return how the deployment of this record is rolled back."""
    backup = record.get("database_backup") or {}
    kept = bool(record.get("rollback_available"))
    return RollbackPlan(
        version=record.get("previous_version") if kept else None,
        deployment_id=record.get("previous_deployment_id") if kept else None,
        restore_useful=record.get("migrations_applied") != 0,
        restore_possible=bool(backup.get("location") and is_proven(backup)),
    )
