"""The population of changes in a period, and a sample of it that anybody can draw again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from azora_ci.record.audit.elements import elements_of
from azora_ci.record.audit.journals import day_of
from azora_ci.record.chain import Document, sha256
from azora_ci.record.history import entries

SCHEMA_VERSION = 1
SCHEMA = "audit"
Valid = tuple[str, str, Document]  # URL, SHA-256, record


def drawn(locations: Sequence[str], size: int, seed: str) -> set[str]:
    """Return so many URLs: those with the lowest SHA-256 of ``<seed> <URL>``. Nobody can choose them but by choosing the seed."""
    return set(sorted(locations, key=lambda location: sha256(f"{seed} {location}".encode()))[:size])


def document(
    records: Sequence[Valid], period: tuple[date, date], draw: tuple[int, str], verification: Document, set_aside: Sequence[str],
    hosts: Document,
) -> Document:  # fmt: skip
    """Return the audit of a period, both days included (UTC). ``records``: all of the archive, oldest first; ``draw``: size and seed;
    ``hosts``: what ``journals.document`` returns."""
    first, last = period
    population = [entry for entry in entries(records) if first <= day_of(entry["timestamp"]) <= last]
    sample = drawn([entry["location"] for entry in population], *draw)
    by_location = {location: record for location, _, record in records}
    rollbacks: dict[str, list[str]] = {}
    for location, _, record in records:
        if record.get("kind") == "rollback":
            rollbacks.setdefault(record["deployment_id"], []).append(location)
    changes: list[dict[str, Any]] = []
    for entry in population:
        record, chosen = by_location[entry["location"]], entry["location"] in sample
        found = elements_of(record, rollbacks.get(entry["deployment_id"], [])) if chosen else None
        changes.append({**entry, "emergency": record.get("emergency"), "sampled": chosen, "elements": found})
    return {
        "schema_version": SCHEMA_VERSION,
        "from": first.isoformat(),
        "to": last.isoformat(),
        "seed": draw[1],
        "sampled": len(sample),
        "changes": changes,
        "hosts": hosts,
        "verification": verification,
        "set_aside": list(set_aside),
    }


def file_of(location: str) -> str:
    """Return the name, without its end, of the files about a record beside the audit: records/<deployment-id>-<number>."""
    return "records/" + "-".join(location.rsplit("/", 2)[1:]).removesuffix(".json")
