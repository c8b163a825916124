"""Statements of a migration to review before it is applied: lost data, a broken old version, long locks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from azora_ci.database.migrations.history import Migration


@dataclass(frozen=True)
class Risk:
    """A statement that may lose data, break the version that still runs, or hold a lock for long."""

    migration: str
    kind: str  # data | old-version | lock
    statement: str
    why: str


_OLD = "; the version that still runs"
_RULES: Sequence[tuple[str, str, str]] = (
    ("data", r"\bDROP\s+(TABLE|SCHEMA|DATABASE)\b", f"the data is gone{_OLD} may use it"),
    ("data", r"\bDROP\s+COLUMN\b", f"the data is gone{_OLD} may use it"),
    ("data", r"^TRUNCATE\b", "every row is gone"),
    ("data", r"^DELETE\s+FROM\s+\S+\s*$", "every row is gone: there is no WHERE"),
    ("old-version", r"\bRENAME\s+(COLUMN\b|TO\b|\S+\s+TO\b)", f"another name{_OLD} knows the old one"),
    ("old-version", r"\bSET\s+NOT\s+NULL\b", f"fails on rows without a value{_OLD} may write such rows"),
    ("old-version", r"\bADD\s+COLUMN\b(?!.*\bDEFAULT\b).*\bNOT\s+NULL\b", f"fails on a table with rows{_OLD} leaves it out"),
    ("lock", r"\bALTER\s+COLUMN\s+\S+\s+(SET\s+DATA\s+)?TYPE\b", "may rewrite the table while nobody can use it"),
    ("lock", r"^CREATE\s+(UNIQUE\s+)?INDEX\s+(?!CONCURRENTLY\b)", "nobody can write to the table until the index is built"),
    ("lock", r"\bADD\s+CONSTRAINT\b.*\b(FOREIGN\s+KEY|CHECK)\b(?!.*\bNOT\s+VALID\b)", "checks every row while others cannot write"),
    ("lock", r"^(LOCK\s+TABLE|VACUUM\s+FULL|CLUSTER|REINDEX\s+(?!.*CONCURRENTLY))\b", "nobody can use the table meanwhile"),
)
_NAME = r'(?:IF\s+NOT\s+EXISTS\s+)?((?:"[^"]+"|\w+)(?:\.(?:"[^"]+"|\w+))?)'
_COMMENT_OR_TEXT = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)


def risks_of(migration: Migration) -> Iterator[Risk]:
    """Yield statements to review before they are applied. Warnings only: the text is matched, nothing is executed."""
    statements = list(_statements(migration.text))
    created = {matched[1] for statement in statements if (matched := re.match(rf"CREATE\s+TABLE\s+{_NAME}", statement, re.IGNORECASE))}
    for statement in statements:
        if _table_name(statement) in created:
            continue  # this migration creates the table, so nothing uses it yet
        for kind, pattern, why in _RULES:
            if re.search(pattern, statement, re.IGNORECASE | re.DOTALL):
                yield Risk(migration.name, kind, " ".join(statement.split())[:200], why)
                break


def _table_name(statement: str) -> str | None:
    matched = re.match(
        rf"(?:ALTER\s+TABLE\s+(?:ONLY\s+)?|CREATE\s+(?:UNIQUE\s+)?INDEX\b.*?\bON\s+){_NAME}", statement, re.IGNORECASE | re.DOTALL
    )
    return matched[1] if matched else None


def _statements(sql: str) -> Iterator[str]:
    """Yield the statements without comments and with empty text literals, so that a word inside these is not matched."""
    code = _COMMENT_OR_TEXT.sub(lambda matched: "''" if matched[0][0] in "'$" else " ", sql)
    yield from (statement.strip() for statement in code.split(";") if statement.strip())
