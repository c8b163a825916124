"""What follows from the evidence of a rollout, its smoke tests and its backup: until when, and whether, it can be taken back; and until
when an emergency is to be reviewed. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

REVIEW_MINUTES = 24 * 60  # from the end of an emergency deployment until a person must have reviewed it


def review_due(timestamp: str) -> str:
    """Return until when an emergency deployment that ended at this time is to be reviewed, as RFC 3339 in UTC."""
    return rollback_deadline(timestamp, REVIEW_MINUTES)


def rollback_deadline(timestamp: str, window_minutes: float) -> str:
    """Return when the window closes, ``timestamp`` plus the window, as RFC 3339 in UTC. Raises ValueError without a time zone."""
    moment = datetime.fromisoformat(timestamp)
    if moment.tzinfo is None:
        raise ValueError(f"{timestamp!r} has no time zone")
    closes_at = moment.astimezone(UTC) + timedelta(minutes=window_minutes)
    return closes_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def warm_until(rollout: Mapping[str, Any], deadline: str | None) -> str | None:
    """Return until when the previous version runs on, from the evidence of gradual-rollout; None where that is until the deadline."""
    warm: str | None = rollout.get("warm_until")
    earlier = warm and deadline and datetime.fromisoformat(warm) < datetime.fromisoformat(deadline)
    return warm if earlier else None


def can_go_back(rollout: Mapping[str, Any], smoke: Mapping[str, Any] | None = None) -> bool:
    """Say whether there is a previous version to roll back to, from the evidence of gradual-rollout and of smoke-tests.

    The rollout must be completed, name the previous version and keep it, and failed smoke tests must not have returned to it already.
    """
    kept = rollout.get("rollout_status") == "completed" and rollout.get("previous") and rollout.get("rollback_available")
    return bool(kept and not went_back(smoke or {}))


def went_back(smoke: Mapping[str, Any]) -> bool:
    """Say whether failed smoke tests returned the traffic to the previous version."""
    return bool((smoke.get("rollback") or {}).get("to"))


def is_proven(backup: Mapping[str, Any]) -> bool:
    """Say whether a backup was restored, or at least its rows counted, after it was stored."""
    return (backup.get("proof") or {}).get("depth") in {"full", "counts"}
