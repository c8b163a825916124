"""May we go back, until when, and how. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """Whether going back is supported now, why or why not, and until when (RFC 3339; None without a completed rollout)."""

    allowed: bool
    reason: str
    deadline: str | None
    minutes_left: float


@dataclass(frozen=True)
class Way:
    """How to go back: to which version, and whether the database has something to be restored for.

    ``restore_useful`` is False when this deployment changed nothing in the schema: then traffic alone goes back and no write is lost.
    """

    version: str | None
    deployment_id: str | None
    restore_useful: bool
    restore_possible: bool


def deadline(timestamp: str, window_minutes: float) -> str:
    """Return the moment at which the window closes: the record's timestamp plus the window, RFC 3339 in UTC."""
    moment = datetime.fromisoformat(timestamp)
    if moment.tzinfo is None:
        raise ValueError(f"{timestamp!r} has no time zone")
    closes = moment.astimezone(UTC) + timedelta(minutes=window_minutes)
    return closes.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def available(rollout: Mapping[str, Any], smoke: Mapping[str, Any] | None = None) -> bool:
    """Say whether there is a previous version to go back to, from the evidence of gradual-rollout and of smoke-tests.

    The rollout completed, names the version before and keeps it, and failed smoke tests have not gone back to it already.
    """
    kept = rollout.get("rollout_status") == "completed" and rollout.get("previous") and rollout.get("rollback_available")
    return bool(kept and not went_back(smoke or {}))


def went_back(smoke: Mapping[str, Any]) -> bool:
    """Say whether failed smoke tests took traffic back to the version before."""
    return bool((smoke.get("rollback") or {}).get("to"))


def may_we(record: Mapping[str, Any], now: datetime) -> Verdict:
    """Return whether the deployment of this record may be taken back at this moment (with a time zone)."""
    closes = record.get("rollback_deadline")
    left = (datetime.fromisoformat(closes) - now).total_seconds() / 60 if closes else 0.0
    if not record.get("rollback_available"):
        return Verdict(False, "there is no previous version kept to go back to", closes, max(0.0, left))
    if not closes:
        return Verdict(False, "the record names no deadline", None, 0.0)
    if left <= 0:
        return Verdict(False, f"the window closed at {closes}, {-left:.0f} minutes ago", closes, 0.0)
    return Verdict(True, f"the window is open until {closes}, {left:.0f} minutes from now", closes, left)


def way(record: Mapping[str, Any]) -> Way:
    """Return how the deployment of this record is taken back."""
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
