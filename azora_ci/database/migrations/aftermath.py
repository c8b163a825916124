"""What a failed migrate command left in the database, as evidence, as text for people, and as the error of the job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.core.process import Completed, ending
from azora_ci.database.migrations import catalogue, history, prisma
from azora_ci.database.migrations.catalogue import Change
from azora_ci.database.migrations.history import Plan, Row
from azora_ci.database.migrations.prisma import MigrateResult
from azora_ci.database.postgres import DatabaseUrl


@dataclass(frozen=True)
class Database:
    """The production database: parsed connection string, and the schema that holds Prisma's table."""

    url: DatabaseUrl
    schema: str

    def rows(self) -> list[Row]:
        """Return the rows of Prisma's table."""
        return prisma.read_table(self.url, self.schema)


@dataclass(frozen=True)
class Before:
    """What was known before the command began: Prisma's plan, the catalogue, time and description of the backup's snapshot."""

    plan: Plan
    catalogue: frozenset[str]
    snapshot: datetime
    backup: str


@dataclass(frozen=True)
class Aftermath:
    """The state of the database after a failure: a description for people, the evidence, and the rows of the migrations that failed."""

    text: str
    evidence: dict[str, Any]
    failed: tuple[Row, ...]


def of_prisma(database: Database, before: Before) -> Aftermath:
    """Read the database again and describe it. Nothing is assumed to have been rolled back. Raises UnreachableError."""
    rows = database.rows()
    applied = history.applied_since(rows, before.snapshot, before.plan.applied)
    failed = tuple(row for row in rows if row.failed)
    change = Change.between(before.catalogue, catalogue.read(database.url))
    new = {row.name for row in rows if row.applied} - {row.name for row in before.plan.applied}
    lines = [f"applied by this attempt: {', '.join(sorted(new)) or 'none'}", *map(history.describe_failed, failed), change.describe()]
    if failed:
        lines.append("statements before the failing one may stay applied; Prisma refuses every migration until it is resolved (P3009)")
    running = prisma.lock_holders(database.url)
    if running:
        lines.append(f"Prisma's lock is still held, the server may still be at work: {', '.join(running)}")
    evidence = {
        "applied": describe_applied(applied),
        "migrations_applied": len(applied),
        "failed": [row.name for row in failed],
        **change.evidence(),
    }
    return Aftermath("\n".join([*lines, before.backup]), evidence, failed)


def describe_applied(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return applied migrations as evidence."""
    return [{"name": row.name, "checksum": row.checksum, "seconds": round(row.seconds, 3)} for row in rows]


_UNREACHABLE = frozenset({"P1001", "P1002", "P1003", "P1008", "P1011", "P1017"})
_REFUSED = frozenset({"P1000", "P1010"})


def error_of_prisma(deployed: MigrateResult, aftermath: Aftermath, attempts: int, log: str) -> AzoraError:
    """Return the error for a migrate command that failed; the state of the database and Prisma's error code decide which."""
    where = f"{prisma.TABLE} of the production database; {log}"
    ended = how_it_ended(deployed)
    if deployed.lock_timeout:
        return NotTrueError(
            "Another migration holds Prisma's lock",
            what=f"{ended} in each of {attempts} attempts: advisory lock {history.LOCK}\n{aftermath.text}",
            where=where,
            next_step="let that migration end, or end its session (pg_terminate_backend), then re-run the failed jobs",
        )
    if aftermath.failed:
        return NotTrueError(
            f"Migration {aftermath.failed[0].name} failed",
            what=f"{ended}\n{aftermath.text}",
            where=where,
            next_step=advise_resolve(aftermath),
        )
    last = last_words(deployed.completed)
    error_class = UnreachableError if deployed.code in _UNREACHABLE else BadInputError if deployed.code in _REFUSED else NotTrueError
    return error_class(
        "The migrate command failed", what=f"{ended}\n{last}\n{aftermath.text}", where=where, next_step=_advice(deployed, last)
    )


def how_it_ended(deployed: MigrateResult) -> str:
    """Return the command, how it ended, and Prisma's error code."""
    code = f", {deployed.code}" if deployed.code else ""
    return f"{' '.join(deployed.completed.argv)}: {ending(deployed.completed.returncode)}{code}"


def last_words(completed: Completed) -> str:
    """Return the end of what a command printed."""
    return (completed.stderr.strip() or completed.stdout.strip())[-1500:]


def advise_resolve(aftermath: Aftermath) -> str:
    """Return what to do about a failed migration of Prisma's."""
    return (
        f"bring the schema to a known state by hand, then npx prisma migrate resolve --rolled-back {aftermath.failed[0].name} "
        "(or --applied), correct the migration and release again; or restore the backup"
    )


def _advice(deployed: MigrateResult, last: str) -> str:
    if deployed.code == "P3005":
        return "the database has tables but no history: mark what is there with npx prisma migrate resolve --applied NAME"
    if "canceled due to missing packages" in last:
        return "Prisma is not installed: correct database.prepare in the deployment configuration (npm ci)"
    return "read the output above; nothing needs to be undone when nothing was applied"


# --- another tool's migrations ----------------------------------------------------------------------------------------------


def of_command(change: Change, backup: str) -> str:
    """Return the state of the database after another tool's command did not succeed, as text for people."""
    undone = "the tool's own history says which of its migrations count as applied; statements of the last one may stay applied"
    return "\n".join([change.describe(), *([undone] if change else []), backup])


def error_of_command(completed: Completed, state: str, log: str) -> NotTrueError:
    """Return the error for another tool's command that failed; ``state`` is the text of the aftermath."""
    return NotTrueError(
        "The migrate command failed",
        what=f"{' '.join(completed.argv)}: {ending(completed.returncode)}\n{last_words(completed)}\n{state}",
        where=f"the production database; {log}",
        next_step="read the output above; bring the database to a known state with the tool's own means, correct the migration and release "
        "again; or restore the backup",
    )
