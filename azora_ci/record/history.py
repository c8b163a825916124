"""The list of an environment's deployments and rollbacks, newest first, as a document and as text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from azora_ci.core import schemas
from azora_ci.record import deployment, rollback
from azora_ci.record.chain import Document
from azora_ci.record.evidence import is_proven, went_back
from azora_ci.record.pages.deployment import duration

SCHEMA_VERSION = 1
SCHEMA = "history"
HEAD = ("time", "id", "version", "status", "who", "took", "backup", "rolled back")


def kind_of(record: Document) -> str:
    """Return the schema that a record must fit, by what it says it is."""
    return rollback.SCHEMA if record.get("kind") == "rollback" else deployment.SCHEMA


def schema_flaw(record: Document) -> str | None:
    """Return the first reason why a record does not fit its schema, or None."""
    return next(iter(schemas.problems(record, kind_of(record))), None)


def entries(records: Iterable[tuple[str, str, Document]]) -> list[Document]:
    """Return an entry for each (URL, SHA-256, valid record), newest first; the records come oldest first."""
    taken_back: set[str] = set()
    listed = []
    for location, sha256, record in reversed(list(records)):
        is_rollback = kind_of(record) == rollback.SCHEMA
        entry = _of_rollback(record) if is_rollback else _of_deployment(record, record["deployment_id"] in taken_back)
        if is_rollback:
            taken_back.add(record["deployment_id"])
        common = ("timestamp", "deployment_id", "version", "status", "triggered_by", "run_url")
        listed.append({**{name: record[name] for name in common}, **entry, "location": location, "sha256": sha256})
    return listed


def _of_deployment(record: Document, is_taken_back: bool) -> Document:
    backup, parts = record["database_backup"], record["rollout"] or {}
    by = "rollout" if parts.get("abort") else "smoke-tests" if went_back({"rollback": parts.get("smoke_rollback")}) else None
    return {
        "kind": "deployment",
        "duration_seconds": record["metrics"]["duration_seconds"],
        "backup_proven": is_proven(backup) if backup else None,
        "rolled_back_by": "rollback" if is_taken_back else by,
    }


def _of_rollback(record: Document) -> Document:
    return {"kind": "rollback", "duration_seconds": record["seconds_to_safe"], "backup_proven": None, "rolled_back_by": None}


def document(
    environment: str, location: str, archived: int, listed: Sequence[Document], set_aside: Sequence[str], verification: Document | None
) -> Document:
    """Return the history as a document; ``archived``: how many records there are, of which the newest are listed."""
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment,
        "location": location,
        "archived": archived,
        "entries": list(listed),
        "set_aside": list(set_aside),
        "verification": verification,
    }


def rows(listed: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of a table of entries, without its head. What people wrote is on one line, without control characters."""
    return [tuple(map(_plain, _cells(entry))) for entry in listed]


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    is_rollback = entry["kind"] == "rollback"
    backup = {True: "proven", False: "not proven", None: "–"}[entry["backup_proven"]]
    status = f"rollback {entry['status']}" if is_rollback else entry["status"]
    back = {None: "–" if is_rollback else "no", "rollback": "yes", "rollout": "by the rollout", "smoke-tests": "by the smoke tests"}
    facts = (entry["timestamp"][:19] + "Z", entry["deployment_id"], entry["version"] or "–", status, entry["triggered_by"])
    return (*facts, duration(entry["duration_seconds"]), backup, back[entry["rolled_back_by"]])


def _plain(cell: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in cell)
