"""The judgement of migrations, compared with what they did on the copy. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from azora_ci.database.migrations.judgement.model import Lock, Statement
from azora_ci.database.migrations.trial.copy import Relation
from azora_ci.database.migrations.trial.server_log import NOBODY_READS

_TABLES = "rpm"  # kinds as in pg_class whose locks and files both sides know
# Event triggers do not know these (https://www.postgresql.org/docs/current/event-trigger-matrix.html): the copy tells of no lock of theirs.
_UNSEEN = ("TRUNCATE", "LOCK", "CLUSTER", "VACUUM", "REINDEX")
_NOBODY = "nobody waits"


def surprises(
    judged: Iterable[Statement], earlier: Mapping[int, Relation], blocked: Sequence[Mapping[str, Any]], rewritten: Collection[str]
) -> list[str]:
    """Return where the judgement and the copy disagree about tables of before, a line each: who waits for them, and which are rewritten.

    ``blocked`` and ``rewritten``: what the copy showed, with names as PostgreSQL writes them.
    """
    tables = {_plain(relation.name) for relation in earlier.values() if relation.kind in _TABLES}
    statements = [statement for statement in judged if not statement.text.upper().startswith(_UNSEEN)]
    expected: dict[str, Lock] = {}
    for statement in statements:
        for name, lock in statement.locks.items():
            expected[name] = max(lock, expected.get(name, lock))
    waits = {name: lock.stops for name, lock in expected.items() if lock.stops and name in tables}
    seen = {_plain(entry["table"]): _lock(entry["mode"]).stops for entry in blocked}
    lines = [
        f"{name}: expected that {waits.get(name, _NOBODY)}, on the copy {seen.get(name, _NOBODY)}"
        for name in sorted(waits.keys() | seen.keys())
        if waits.get(name) != seen.get(name)
    ]
    foreseen = frozenset().union(*(statement.rewrites for statement in statements)) & tables
    found = {_plain(name) for name in rewritten} & tables
    lines += [f"{name}: its rewriting was not expected" for name in sorted(found - foreseen)]
    return lines + [f"{name}: expected to be rewritten, and is not" for name in sorted(foreseen - found)]


def _plain(name: str) -> str:
    return name.replace('"', "")


def _lock(mode: str) -> Lock:
    return Lock.ACCESS_EXCLUSIVE if mode == NOBODY_READS else Lock.SHARE
