"""Whether a deployment may be rolled back, until when, and how. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any


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


def deadline(timestamp: str, window_minutes: float) -> str:
    """Return when the window closes, ``timestamp`` plus the window, as RFC 3339 in UTC. Raises ValueError without a time zone."""
    moment = datetime.fromisoformat(timestamp)
    if moment.tzinfo is None:
        raise ValueError(f"{timestamp!r} has no time zone")
    closes_at = moment.astimezone(UTC) + timedelta(minutes=window_minutes)
    return closes_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def available(rollout: Mapping[str, Any], smoke: Mapping[str, Any] | None = None) -> bool:
    """Say whether there is a previous version to roll back to, from the evidence of gradual-rollout and of smoke-tests.

    The rollout must be completed, name the previous version and keep it, and failed smoke tests must not have returned to it already.
    """
    kept = rollout.get("rollout_status") == "completed" and rollout.get("previous") and rollout.get("rollback_available")
    return bool(kept and not went_back(smoke or {}))


def went_back(smoke: Mapping[str, Any]) -> bool:
    """Say whether failed smoke tests returned the traffic to the previous version."""
    return bool((smoke.get("rollback") or {}).get("to"))


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


def is_proven(backup: Mapping[str, Any]) -> bool:
    """Say whether a backup was restored, or at least its rows counted, after it was stored."""
    return (backup.get("proof") or {}).get("depth") in {"full", "counts"}
