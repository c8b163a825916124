"""Whether the version before works on the database as a deployment left it, by the deployment's record. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SchemaCheck:
    """``breaks``: the version before was tried on the migrated schema and does not work there; ``text`` says what is known."""

    breaks: bool
    text: str


def check(record: Mapping[str, Any]) -> SchemaCheck:
    """Return what the record of a deployment says about going back without touching the database."""
    previous = record.get("previous_version") or "the version before"
    found = record.get("code_rollback_safe")
    if record.get("migrations_applied") == 0 and (found is None or found["value"] is True):
        return SchemaCheck(False, f"no migration was applied: the schema is the one that {previous} knows")
    found = found or {"value": None, "how": "unknown", "reasons": ["the record does not say it"]}
    facts = {
        ("tested", True): f"{previous} was tried on a migrated copy of the database, and works there",
        ("tested", False): f"{previous} was tried on a migrated copy of the database, and does not work there",
        ("classified", True): f"{previous} was not tried on the migrated schema; by the judgement of the migrations it works there",
        ("classified", False): f"{previous} was not tried on the migrated schema; by the judgement of the migrations it breaks there",
    }
    fact = facts.get((found["how"], found["value"]), f"it is not known whether {previous} works on the migrated schema")
    breaks = found["how"] == "tested" and found["value"] is False
    return SchemaCheck(breaks, f"{fact}: {'; '.join(found['reasons'])}")
