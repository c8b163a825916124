"""This deployment beside the one before it, measure by measure. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from azora_ci.record.chain import Document
from azora_ci.record.pages.deployment import duration
from azora_ci.record.pages.html import count, share, size


@dataclass(frozen=True)
class Row:
    """A measure: its name, its value before and now as texts, and by how much it changed."""

    name: str
    before: str
    now: str
    change: str


def compare(before: Document, now: Document) -> list[Row]:
    """Return the rows of the comparison. A measure that neither record has is left out."""
    rows = []
    for name, value, form in _MEASURES:
        old, new = value(before), value(now)
        if old is not None or new is not None:
            rows.append(Row(name, form(old), form(new), _change(old, new)))
    digests, earlier = now["image_digests"], before["image_digests"]
    changed = sorted(name for name in {*digests, *earlier} if digests.get(name) != earlier.get(name))
    return [*rows, Row("Services with other bytes", "", ", ".join(changed) or "none", "")]


def _change(old: float | None, new: float | None) -> str:
    if old is None or new is None or not old or new == old:
        return "same" if old == new else ""
    return f"{(new - old) / old:+.0%}".replace("-", "\N{MINUS SIGN}")


def _of(*path: str) -> Callable[[Document], float | None]:
    def value(record: Document) -> float | None:
        inner: Any = record
        for name in path:
            inner = (inner or {}).get(name)
        return inner if isinstance(inner, int | float) and not isinstance(inner, bool) else None

    return value


def _failed_share(record: Document) -> float | None:
    version, failed, total = record["version"], 0.0, 0
    for stage in record["rollout_stages"]:
        requests = (stage["requests"] or {}).get(version, 0)
        failed, total = failed + ((stage["error_rate"] or {}).get(version) or 0) * requests, total + requests
    return round(failed / total, 6) if total else None


_MEASURES: tuple[tuple[str, Callable[[Document], float | None], Callable[[float | None], str]], ...] = (
    ("Took", _of("metrics", "duration_seconds"), duration),
    ("From commit to production", _of("metrics", "lead_time_seconds"), duration),
    ("Users' requests while watched", _of("metrics", "requests"), count),
    ("Failed requests of the new version", _failed_share, share),
    ("Healthy probes", _of("metrics", "health_check_success_rate"), share),
    ("Migrations", _of("migrations_applied"), count),
    ("Migrations took", _of("metrics", "migration_seconds"), duration),
    ("Backup", _of("database_backup", "size_bytes"), size),
    ("Rows in it", _of("database_backup", "rows"), count),
    ("Restored in", _of("database_backup", "proof", "restore_seconds"), duration),
)
