"""The values of the judgement: locks, actions with their verdicts, and what is known of production. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Lock(IntEnum):
    """PostgreSQL's lock modes of a table, with its own numbers (``lockdefs.h``). The greater one is the stronger, in the main."""

    ACCESS_SHARE = 1
    ROW_SHARE = 2
    ROW_EXCLUSIVE = 3
    SHARE_UPDATE_EXCLUSIVE = 4
    SHARE = 5
    SHARE_ROW_EXCLUSIVE = 6
    EXCLUSIVE = 7
    ACCESS_EXCLUSIVE = 8

    def __str__(self) -> str:
        return self.name.replace("_", " ")

    @property
    def stops(self) -> str:
        """Return whom the lock makes wait, in words; empty where queries and writes go on."""
        if self == Lock.ACCESS_EXCLUSIVE:
            return "nobody can read or write"
        return "nobody can write" if self >= Lock.SHARE else ""


class Verdict(StrEnum):
    """Whether the version that runs still works after a statement."""

    COMPATIBLE = "compatible"
    UNKNOWN = "unknown"
    INCOMPATIBLE = "incompatible"

    @property
    def rank(self) -> int:
        """Return a number that is greater for the worse verdict."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Action:
    """What a statement does to one thing: an action of ALTER TABLE, or a whole statement of another kind.

    ``reason`` explains the verdict and ``instead`` what to do, in plain words. ``locks``: relation -> the lock it takes. ``rewrites``:
    relations whose rows are all written again; ``scans``: relations of which every row is read under the lock. ``loses``: rows are gone.
    Relations are named as in the statement, without ``public``; those that the release itself made are left out of all three.
    """

    what: str
    verdict: Verdict
    reason: str
    instead: str = ""
    locks: Mapping[str, Lock] = field(default_factory=dict)
    rewrites: frozenset[str] = frozenset()
    scans: frozenset[str] = frozenset()
    loses: bool = False

    @property
    def blocked(self) -> dict[str, Lock]:
        """Return the relations that users wait for as long as this takes: their size counts."""
        return {name: lock for name, lock in self.locks.items() if lock.stops and name in self.rewrites | self.scans}


@dataclass(frozen=True)
class Statement:
    """A statement of a migration: its file, its lines (1 is the first), its text on one line, and its actions in order."""

    file: str
    line: int
    last_line: int
    text: str
    actions: tuple[Action, ...]

    @property
    def worst(self) -> Action:
        """Return the action that decides: of equally bad ones the first."""
        return max(self.actions, key=lambda action: (action.verdict.rank, action.loses, bool(action.blocked)))

    @property
    def verdict(self) -> Verdict:
        """Return the verdict of the worst action."""
        return self.worst.verdict

    @property
    def locks(self) -> dict[str, Lock]:
        """Return relation -> the strongest lock that the statement takes."""
        locks: dict[str, Lock] = {}
        for action in self.actions:
            for name, lock in action.locks.items():
                locks[name] = max(lock, locks.get(name, lock))
        return locks

    @property
    def rewrites(self) -> frozenset[str]:
        """Return the relations that are written again as a whole."""
        return frozenset().union(*(action.rewrites for action in self.actions))

    @property
    def blocked(self) -> dict[str, Lock]:
        """Return the relations that users wait for as long as the statement takes."""
        scanned = self.rewrites.union(*(action.scans for action in self.actions))
        return {name: lock for name, lock in self.locks.items() if lock.stops and name in scanned}


# --- what is known of production ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """A relation of production: kind as in ``pg_class.relkind``, estimated rows (None: never counted), bytes with indexes."""

    kind: str
    rows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class KnownConstraint:
    """A constraint of production: kind as in ``pg_constraint.contype``, its columns, and for foreign keys the table it points to."""

    table: str
    name: str
    kind: str
    columns: tuple[str, ...] = ()
    references: str = ""


@dataclass(frozen=True)
class Facts:
    """What production's catalogue says. Names as in ``Action``. ``known`` is False at a desk without a database: nothing is known then.

    ``types``: (table, column) -> type as PostgreSQL writes it; ``indexes``: index -> its table; ``children``: table -> partitions and
    tables that inherit from it; ``domains``: domain -> whether it constrains its values.
    """

    known: bool = False
    relations: Mapping[str, Relation] = field(default_factory=dict)
    types: Mapping[tuple[str, str], str] = field(default_factory=dict)
    constraints: tuple[KnownConstraint, ...] = ()
    indexes: Mapping[str, str] = field(default_factory=dict)
    children: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    domains: Mapping[str, bool] = field(default_factory=dict)

    def constraint(self, table: str, name: str) -> KnownConstraint | None:
        """Return a constraint of a table by its name."""
        return next((known for known in self.constraints if (known.table, known.name) == (table, name)), None)

    def size(self, name: str) -> str:
        """Return how big a table is in production, as text; empty where that is not known."""
        relation = self.relations.get(name)
        if relation is None or relation.bytes is None:
            return ""
        rows = "rows never counted" if relation.rows is None else f"about {relation.rows:,} rows"
        return f"{rows}, {_size(relation.bytes)}"


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}"


def worst(statements: Iterable[Statement]) -> Verdict:
    """Return the worst verdict of several statements; of none: compatible."""
    return max((statement.verdict for statement in statements), key=lambda verdict: verdict.rank, default=Verdict.COMPATIBLE)
