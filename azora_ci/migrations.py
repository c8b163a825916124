"""Migrations as Prisma keeps them: what a database has, what a release brings, and whether the one may follow the other. Pure.

``_prisma_migrations`` has one row per attempt. A row with neither ``finished_at`` nor ``rolled_back_at`` is a failed attempt and
stops every later ``migrate deploy`` (P3009). Its ``checksum`` is the SHA-256 of ``migration.sql``; ``migrate deploy`` looks neither at
an edited file nor at a deleted folder, so this module does. Table: prisma-engines, ``sql_schema_connector`` and ``checksum.rs``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

LOCK = 72707369  # the advisory lock that Prisma takes while it migrates


@dataclass(frozen=True)
class Migration:
    """A migration of the release: name of its folder and the bytes of its migration.sql."""

    name: str
    sql: bytes

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of its file, as Prisma records it."""
        return hashlib.sha256(self.sql).hexdigest()

    @property
    def text(self) -> str:
        """Return its SQL for people."""
        return self.sql.decode("utf-8", errors="replace")

    def has_checksum(self, checksum: str) -> bool:
        """Say whether a recorded checksum is this file's; other line ends are no edit, for Prisma neither."""
        unix = self.sql.replace(b"\r\n", b"\n")
        forms = (self.sql, unix, unix.replace(b"\n", b"\r\n"))
        return checksum in {hashlib.sha256(form).hexdigest() for form in forms}


@dataclass(frozen=True)
class Row:
    """One row of ``_prisma_migrations``. Times have a time zone; ``logs`` is the error text of a failed attempt."""

    name: str
    checksum: str
    started_at: datetime
    finished_at: datetime | None
    rolled_back_at: datetime | None
    steps: int
    logs: str | None = None

    @property
    def applied(self) -> bool:
        """Say whether the migration is in effect."""
        return self.finished_at is not None and self.rolled_back_at is None

    @property
    def failed(self) -> bool:
        """Say whether the attempt began, did not finish, and was not resolved."""
        return self.finished_at is None and self.rolled_back_at is None

    @property
    def seconds(self) -> float:
        """Return how long it took; 0 where that is not recorded."""
        return max(0.0, (self.finished_at - self.started_at).total_seconds()) if self.finished_at else 0.0


@dataclass(frozen=True)
class Plan:
    """How a release's migrations relate to a database's; every tuple is in order of names.

    ``late``: pending ones that sort before an applied one. ``ahead``: applied ones newer than everything in the release (an older
    release is deployed). ``deleted``: applied ones that the release lacks although it has newer ones.
    """

    applied: tuple[Row, ...]
    pending: tuple[Migration, ...]
    failed: tuple[Row, ...]
    edited: tuple[tuple[Row, Migration], ...]
    deleted: tuple[Row, ...]
    ahead: tuple[Row, ...]
    late: tuple[Migration, ...]

    @property
    def diverged(self) -> bool:
        """Say whether both sides have migrations that the other lacks."""
        return bool(self.pending and self.ahead)


def plan(folder: Iterable[Migration], rows: Iterable[Row]) -> Plan:
    """Return how the migrations of a release relate to the rows of a database."""
    release = {one.name: one for one in sorted(folder, key=lambda one: one.name)}
    listed = sorted(rows, key=lambda row: (row.name, row.started_at))
    applied = {row.name: row for row in listed if row.applied}
    failed = tuple(row for row in listed if row.failed)
    begun = {row.name for row in failed}
    newest = max(release, default="")
    unknown = [row for name, row in applied.items() if name not in release]
    pending = tuple(one for name, one in release.items() if name not in applied and name not in begun)
    last = max(applied, default="")
    return Plan(
        applied=tuple(applied.values()),
        pending=pending,
        failed=failed,
        edited=tuple((row, release[name]) for name, row in applied.items() if _edited(row, release.get(name))),
        deleted=tuple(row for row in unknown if row.name < newest),
        ahead=tuple(row for row in unknown if row.name > newest),
        late=tuple(one for one in pending if one.name < last),
    )


def _edited(row: Row, migration: Migration | None) -> bool:
    return migration is not None and not migration.has_checksum(row.checksum)


@dataclass(frozen=True)
class Refusal:
    """Why a plan must not be carried out, and what to do."""

    title: str
    what: str
    next_step: str


def refusal(found: Plan) -> Refusal | None:
    """Return why nothing may be applied, or None. The first that a person must deal with comes first."""
    if found.failed:
        return Refusal(
            "A failed migration blocks the database",
            "\n".join(describe_failed(row) for row in found.failed),
            "bring the database to a known state by hand, then mark the migration: npx prisma migrate resolve --rolled-back NAME "
            "(or --applied NAME); until then Prisma refuses every migration (P3009)",
        )
    if found.edited:
        return Refusal(
            "Applied migrations were edited",
            "\n".join(f"{row.name}: applied with SHA-256 {row.checksum[:12]}…, now {one.checksum[:12]}…" for row, one in found.edited),
            "restore the files as they were applied (git log -- <folder>) and put the change into a new migration",
        )
    if found.deleted:
        return Refusal(
            "Applied migrations are gone from the release",
            f"applied in the database but no folder: {', '.join(row.name for row in found.deleted)}",
            "restore the folders from git; a squashed history needs npx prisma migrate resolve --applied first",
        )
    if found.diverged:
        ahead, pending = ", ".join(row.name for row in found.ahead), ", ".join(one.name for one in found.pending)
        return Refusal(
            "Release and database have diverged",
            f"only the database has: {ahead}\nonly the release has: {pending}",
            "merge the branch that holds the missing migrations into the release",
        )
    return None


def describe_failed(row: Row) -> str:
    """Return one failed attempt for people: which, since when, and the first lines of its error."""
    lines = [line.strip() for line in (row.logs or "").splitlines() if line.strip() and not re.match(r"\s*(\d+: |at |with )", line)]
    reason = " ".join(lines)[:500] or "no error was recorded: the command was ended in the middle"
    return f"{row.name}: began {row.started_at:%Y-%m-%d %H:%M:%S %Z} and did not finish: {reason}"


def applied_since(rows: Iterable[Row], moment: datetime, before: Iterable[Row] = ()) -> tuple[Row, ...]:
    """Return the migrations that were finished after a moment or are not among ``before``, in the order in which they were applied.

    Their times are the migrating machine's, the moment may be the database's: ``before`` makes up for clocks that differ.
    """
    known = {row.name for row in before if row.applied}
    found = [row for row in rows if row.applied and row.finished_at is not None and (row.finished_at > moment or row.name not in known)]
    return tuple(sorted(found, key=lambda row: (row.started_at, row.name)))


# --- what must be there ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """Migrations that a database must have: at least so many, these among them; ``source`` says who knows."""

    source: str
    count: int
    names: tuple[str, ...] = ()


# Every release has migrations (database-migrations refuses one without), so an empty table is never right.
AT_LEAST_ONE = Expected("every release has at least", 1)


@dataclass(frozen=True)
class Standing:
    """Whether a database has what was expected, with the numbers for people."""

    passed: bool
    detail: str


def standing(rows: Iterable[Row], expected: Expected) -> Standing:
    """Compare a table with what was expected of it. A failed attempt is wrong; more than expected is not: somebody may have gone on."""
    listed = list(rows)
    found = {row.name for row in listed if row.applied}
    failed = sorted({row.name for row in listed if row.failed})
    missing = sorted(set(expected.names) - found)
    parts = [f"{len(found)} migrations applied, {expected.source} {expected.count}"]
    parts += [f"not there: {', '.join(missing)}"] if missing else []
    parts += [f"begun and not finished: {', '.join(failed)}"] if failed else []
    parts += [f"the newest is {max(found)}"] if found else []
    return Standing(len(found) >= expected.count and not missing and not failed, "; ".join(parts))


# --- what deserves a second look ------------------------------------------------------------------------------------------


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


def risks(migration: Migration) -> Iterator[Risk]:
    """Yield what deserves a second look before it is applied. A warning, no verdict: texts are compared, nothing is executed."""
    statements = list(_statements(migration.text))
    created = {match[1] for one in statements if (match := re.match(rf"CREATE\s+TABLE\s+{_NAME}", one, re.IGNORECASE))}
    for statement in statements:
        if _table(statement) in created:
            continue  # nobody uses a table yet that this very migration makes
        for kind, pattern, why in _RULES:
            if re.search(pattern, statement, re.IGNORECASE | re.DOTALL):
                yield Risk(migration.name, kind, " ".join(statement.split())[:200], why)
                break


def _table(statement: str) -> str | None:
    found = re.match(
        rf"(?:ALTER\s+TABLE\s+(?:ONLY\s+)?|CREATE\s+(?:UNIQUE\s+)?INDEX\b.*?\bON\s+){_NAME}", statement, re.IGNORECASE | re.DOTALL
    )
    return found[1] if found else None


_QUIET = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)


def _statements(sql: str) -> Iterator[str]:
    """Yield statements without comments, texts emptied, so that a word inside them is no statement."""
    quiet = _QUIET.sub(lambda found: "''" if found[0][0] in "'$" else " ", sql)
    yield from (one.strip() for one in quiet.split(";") if one.strip())
