"""Whether a deployment may be rolled back, until when, and how. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci.record.evidence import is_proven


@dataclass(frozen=True)
class Verdict:
    """Whether a rollback is allowed now, the reason, and the deadline (RFC 3339; None without a completed rollout)."""

    allowed: bool
    reason: str
    deadline: str | None
    minutes_left: float


@dataclass(frozen=True)
class Way:
    """How to roll back: to which version, and whether restoring the database is useful and possible.

    ``restore_useful`` is False when this deployment applied no migration: then only the traffic goes back and no write is lost.
    """

    version: str | None
    deployment_id: str | None
    restore_useful: bool
    restore_possible: bool


def assess(record: Mapping[str, Any], now: datetime) -> Verdict:
    """Return whether the deployment of this record may be rolled back at the time ``now`` (with a time zone)."""
    closes_at = record.get("rollback_deadline")
    minutes_left = (datetime.fromisoformat(closes_at) - now).total_seconds() / 60 if closes_at else 0.0
    if not record.get("rollback_available"):
        return Verdict(False, "there is no previous version kept to go back to", closes_at, max(0.0, minutes_left))
    if not closes_at:
        return Verdict(False, "the record names no deadline", None, 0.0)
    if minutes_left <= 0:
        return Verdict(False, f"the window closed at {closes_at}, {-minutes_left:.0f} minutes ago", closes_at, 0.0)
    return Verdict(True, f"the window is open until {closes_at}, {minutes_left:.0f} minutes from now", closes_at, minutes_left)


def plan(record: Mapping[str, Any]) -> Way:
    """Return how the deployment of this record is rolled back."""
    backup = record.get("database_backup") or {}
    kept = bool(record.get("rollback_available"))
    return Way(
        version=record.get("previous_version") if kept else None,
        deployment_id=record.get("previous_deployment_id") if kept else None,
        restore_useful=record.get("migrations_applied") != 0,
        restore_possible=bool(backup.get("location") and is_proven(backup)),
    )
