"""Prisma's migrations: compares those of a database with those of a release and decides whether the release may be applied. Pure.

``_prisma_migrations`` has one row per attempt. A row with neither ``finished_at`` nor ``rolled_back_at`` is a failed attempt and
stops every later ``migrate deploy`` (P3009). Its ``checksum`` is the SHA-256 of ``migration.sql``; ``migrate deploy`` checks neither
for edited files nor for deleted folders, so this module does. Table: prisma-engines, ``sql_schema_connector`` and ``checksum.rs``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
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
        """Return the SHA-256 of migration.sql, as Prisma records it."""
        return hashlib.sha256(self.sql).hexdigest()

    @property
    def text(self) -> str:
        """Return the SQL as text without a byte order mark; invalid UTF-8 is replaced."""
        return self.sql.decode("utf-8-sig", errors="replace")

    def has_checksum(self, checksum: str) -> bool:
        """Return whether a recorded checksum is this file's; like Prisma, ignore whether lines end with LF or CRLF."""
        with_lf = self.sql.replace(b"\r\n", b"\n")
        variants = (self.sql, with_lf, with_lf.replace(b"\n", b"\r\n"))
        return checksum in {hashlib.sha256(variant).hexdigest() for variant in variants}


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
        """Return whether the migration is in effect."""
        return self.finished_at is not None and self.rolled_back_at is None

    @property
    def failed(self) -> bool:
        """Return whether the attempt began, did not finish, and was not resolved."""
        return self.finished_at is None and self.rolled_back_at is None

    @property
    def seconds(self) -> float:
        """Return how long the attempt took; 0 if its end is not recorded."""
        return max(0.0, (self.finished_at - self.started_at).total_seconds()) if self.finished_at else 0.0


@dataclass(frozen=True)
class Plan:
    """A release's migrations compared with a database's; every tuple is in order of names.

    ``late``: pending migrations that sort before an applied one. ``ahead``: applied migrations newer than all of the release (an
    older release is deployed). ``deleted``: applied migrations that the release lacks although it has newer ones.
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
        """Return whether release and database each have migrations that the other lacks."""
        return bool(self.pending and self.ahead)


def plan(folder: Iterable[Migration], rows: Iterable[Row]) -> Plan:
    """Compare the migrations of a release with the rows of a database and return the result."""
    release = {migration.name: migration for migration in sorted(folder, key=lambda migration: migration.name)}
    sorted_rows = sorted(rows, key=lambda row: (row.name, row.started_at))
    applied = {row.name: row for row in sorted_rows if row.applied}
    failed = tuple(row for row in sorted_rows if row.failed)
    failed_names = {row.name for row in failed}
    newest_in_release = max(release, default="")
    unknown = [row for name, row in applied.items() if name not in release]
    pending = tuple(migration for name, migration in release.items() if name not in applied and name not in failed_names)
    last_applied = max(applied, default="")
    return Plan(
        applied=tuple(applied.values()),
        pending=pending,
        failed=failed,
        edited=tuple((row, release[name]) for name, row in applied.items() if _edited(row, release.get(name))),
        deleted=tuple(row for row in unknown if row.name < newest_in_release),
        ahead=tuple(row for row in unknown if row.name > newest_in_release),
        late=tuple(migration for migration in pending if migration.name < last_applied),
    )


def _edited(row: Row, migration: Migration | None) -> bool:
    return migration is not None and not migration.has_checksum(row.checksum)


@dataclass(frozen=True)
class Refusal:
    """Why a plan must not be carried out, and what to do."""

    title: str
    what: str
    next_step: str


def refusal(result: Plan) -> Refusal | None:
    """Return why nothing may be applied, or None; of several reasons the one that a person must deal with first."""
    if result.failed:
        return Refusal(
            "A failed migration blocks the database",
            "\n".join(describe_failed(row) for row in result.failed),
            "bring the database to a known state by hand, then mark the migration: npx prisma migrate resolve --rolled-back NAME "
            "(or --applied NAME); until then Prisma refuses every migration (P3009)",
        )
    if result.edited:
        return Refusal(
            "Applied migrations were edited",
            "\n".join(f"{row.name}: applied with SHA-256 {row.checksum[:12]}…, now {file.checksum[:12]}…" for row, file in result.edited),
            "restore the files as they were applied (git log -- <folder>) and put the change into a new migration",
        )
    if result.deleted:
        return Refusal(
            "Applied migrations are gone from the release",
            f"applied in the database but no folder: {', '.join(row.name for row in result.deleted)}",
            "restore the folders from git; a squashed history needs npx prisma migrate resolve --applied first",
        )
    if result.diverged:
        ahead, pending = ", ".join(row.name for row in result.ahead), ", ".join(migration.name for migration in result.pending)
        return Refusal(
            "Release and database have diverged",
            f"only the database has: {ahead}\nonly the release has: {pending}",
            "merge the branch that holds the missing migrations into the release",
        )
    return None


def describe_failed(row: Row) -> str:
    """Return a failed attempt as text: migration, start, and the first 500 characters of its error."""
    lines = [line.strip() for line in (row.logs or "").splitlines() if line.strip() and not re.match(r"\s*(\d+: |at |with )", line)]
    reason = " ".join(lines)[:500] or "no error was recorded: the command was ended in the middle"
    return f"{row.name}: began {row.started_at:%Y-%m-%d %H:%M:%S %Z} and did not finish: {reason}"


def applied_since(rows: Iterable[Row], moment: datetime, earlier: Iterable[Row] = ()) -> tuple[Row, ...]:
    """Return the migrations finished after a moment or not applied in ``earlier``, in the order in which they were applied.

    Their times come from the migrating machine, the moment may come from the database: ``earlier`` corrects for clock differences.
    """
    names = {row.name for row in earlier if row.applied}
    newer = [row for row in rows if row.applied and row.finished_at is not None and (row.finished_at > moment or row.name not in names)]
    return tuple(sorted(newer, key=lambda row: (row.started_at, row.name)))


# --- expected migrations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedMigrations:
    """Migrations that a database must have: at least ``count``, ``names`` among them; ``source`` says where that is recorded."""

    source: str
    count: int
    names: tuple[str, ...] = ()


# Where Prisma migrates, every release has migrations (database-migrations refuses one without): an empty table is an error.
AT_LEAST_ONE = ExpectedMigrations("every release has at least", 1)


@dataclass(frozen=True)
class Standing:
    """Whether a database has the expected migrations, with the numbers as text."""

    passed: bool
    detail: str


def compare_with_expected(rows: Iterable[Row], expected: ExpectedMigrations) -> Standing:
    """Compare a table with the expected migrations. Failed attempts are errors; further migrations are not: a later release adds some."""
    table = list(rows)
    applied = {row.name for row in table if row.applied}
    failed = sorted({row.name for row in table if row.failed})
    missing = sorted(set(expected.names) - applied)
    parts = [f"{len(applied)} migrations applied, {expected.source} {expected.count}"]
    parts += [f"not there: {', '.join(missing)}"] if missing else []
    parts += [f"begun and not finished: {', '.join(failed)}"] if failed else []
    parts += [f"the newest is {max(applied)}"] if applied else []
    return Standing(len(applied) >= expected.count and not missing and not failed, "; ".join(parts))
