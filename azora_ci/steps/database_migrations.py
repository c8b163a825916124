"""Apply the application's migrations behind a verified backup. The evidence is what the database reports before and after."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from azora_ci.core import settings
from azora_ci.core.clock import parse_rfc3339
from azora_ci.core.errors import AzoraError, BadInputError, Explained, NotTrueError, UnreachableError
from azora_ci.core.job_log import secrets_of_url
from azora_ci.core.markdown import code, table
from azora_ci.core.process import ending
from azora_ci.core.process.isolation import Isolation
from azora_ci.core.variables import Secret, variable, whole_number
from azora_ci.database.migrations import history, prisma, tree
from azora_ci.database.migrations.history import Migration, Plan, Row
from azora_ci.database.migrations.prisma import MigrateResult
from azora_ci.database.migrations.risks import risks_of
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.steps.job import Job, isolation_for, production_database

LOCK_ATTEMPTS = 3  # Prisma itself waits 10 s for its lock each time
LOCK_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Deployment, settings.DatabaseAccess, settings.SshAccess, settings.Isolated):
    """What database-migrations reads."""

    backup_max_age: int = variable(
        "BACKUP_MAX_AGE_MINUTES", "minutes after which a backup's snapshot is too old to migrate behind", example="120",
        parse=whole_number(1, 10080), default="120",
    )  # fmt: skip


@dataclass(frozen=True)
class VerifiedBackup:
    """The verified backup of this deployment: id, time and age of its snapshot, depth of its proof, and the database it was taken of."""

    id: str
    snapshot: datetime
    age_minutes: float
    depth: str
    database: str
    system_identifier: str | None


@dataclass(frozen=True)
class PrismaDatabase:
    """The production database: parsed connection string, schema that holds Prisma's table, connection string for Prisma."""

    url: DatabaseUrl
    schema: str
    prisma_url: Secret

    def rows(self) -> list[Row]:
        """Return the rows of Prisma's table."""
        return prisma.read_table(self.url, self.schema)

    def objects(self) -> frozenset[str]:
        """Return the columns, indexes and constraints of the schema."""
        return prisma.objects(self.url, self.schema)


def run(job: Job[Settings]) -> None:
    """Apply the pending migrations. Raises NotTrueError when the gate is closed or a migration failed."""
    started = job.clock.monotonic()
    release = prisma.read_folder(job.config.database.migrations_dir)
    backup = require_verified_backup(job)
    with production_database(job, job.evidence) as url:
        migrate(job, release, backup, _make_database(job, url))
    job.evidence["seconds"] = round(job.clock.monotonic() - started, 3)


def migrate(job: Job[Settings], release: list[Migration], backup: VerifiedBackup, database: PrismaDatabase) -> None:
    """Apply the pending migrations of a release behind this backup."""
    _require_same_database(database, backup)
    plan = history.plan(release, database.rows())
    _show_plan(job, plan)
    _refuse_unsafe(job, plan, backup)
    if plan.pending:
        _log_sql(job, plan.pending)
        with application_tree(job, database.url.ca_file) as isolation:
            _apply(job, database, backup, plan, isolation)
    outcome = history.plan(release, database.rows())
    _require_all_applied(outcome)
    applied = history.applied_since(outcome.applied, backup.snapshot, plan.applied)
    _conclude(job, backup, outcome, applied)


# --- the gate -------------------------------------------------------------------------------------------------------------


def require_verified_backup(job: Job[Settings]) -> VerifiedBackup:
    """Return the verified backup of this deployment, as database-backup handed its manifest over. Raises NotTrueError for another one.

    This job has no access to the bucket: it runs code of the application.
    """
    from azora_ci.database.backup import manifest

    evidence = job.fragments.require("database-backup").evidence
    backup_manifest = manifest.read_handed_over(job.fragments.folder("database-backup"), evidence["manifest_sha256"])
    snapshot = parse_rfc3339(backup_manifest.snapshot_time)
    age = (job.clock.now() - snapshot).total_seconds() / 60
    job.evidence |= {
        "backup_id": backup_manifest.backup_id,
        "manifest_sha256": backup_manifest.sha256,
        "backup_age_minutes": round(age, 3),
        "proof_depth": backup_manifest.depth,
    }
    job.tick(f"the manifest of {backup_manifest.backup_id} is the verified one (proof: {backup_manifest.depth}), {age:.1f} minutes old")
    server = backup_manifest.document["server"]
    return VerifiedBackup(backup_manifest.backup_id, snapshot, age, backup_manifest.depth, server["database"], server["system_identifier"])


def _make_database(job: Job[Settings], url: DatabaseUrl) -> PrismaDatabase:
    if url.pooler_hint:
        job.actions.warning(
            "Migrations through a connection pooler",
            f"{url.pooler_hint}: Prisma's lock may not hold there.\nUse the direct address of the database in PROD_DATABASE_URL",
        )
    connection = prisma.address(job.settings.database_url.reveal(), url)
    for secret in secrets_of_url(connection):
        job.log.add_secret(secret)
    return PrismaDatabase(url, prisma.schema_of(url, job.config.database.schema), Secret(connection))


def _require_same_database(database: PrismaDatabase, backup: VerifiedBackup) -> None:
    """Raise NotTrueError when the backup is of another database. The identifiers of the clusters are compared when both are known."""
    from azora_ci.database.server import server_facts

    facts = server_facts(database.url)
    identifiers = {backup.system_identifier, facts.system_identifier} - {None}
    if facts.database != backup.database or len(identifiers) > 1:
        raise NotTrueError(
            "The backup is of another database",
            what=f"{backup.id} holds {backup.database} of cluster {backup.system_identifier}, "
            f"PROD_DATABASE_URL names {facts.database} of cluster {facts.system_identifier}",
            where=f"PROD_DATABASE_URL ({database.url.location})",
            next_step="give both jobs the same PROD_DATABASE_URL, then re-run all jobs",
        )


def _show_plan(job: Job[Settings], plan: Plan) -> None:
    """Record and print the plan before anything is changed."""
    risks = [risk for migration in plan.pending for risk in risks_of(migration)]
    job.evidence |= {
        "pending": [migration.name for migration in plan.pending],
        "already_applied": len(plan.applied),
        "database_ahead": [row.name for row in plan.ahead],
        "risks": [vars(risk) for risk in risks],
    }
    job.say(f"{len(plan.applied)} migrations are applied, {len(plan.pending)} pending{_names(plan.pending)}")
    if plan.ahead:
        names = ", ".join(row.name for row in plan.ahead)
        job.actions.warning("The database is ahead of this release", f"an older release is deployed; only the database has: {names}")
    if plan.late:
        names = ", ".join(migration.name for migration in plan.late)
        job.actions.warning("Migrations come late", f"they sort before applied ones and are applied after them: {names}")
    for risk in risks:
        job.actions.warning(f"{risk.migration}: look twice", f"{risk.statement}\n{risk.why}")


def _names(pending: tuple[Migration, ...]) -> str:
    return f": {', '.join(migration.name for migration in pending)}" if pending else ""


def _refuse_unsafe(job: Job[Settings], plan: Plan, backup: VerifiedBackup) -> None:
    reason = history.refusal(plan)
    if reason is not None:
        where = f"{job.config.database.migrations_dir} and {prisma.TABLE} of the production database"
        raise NotTrueError(reason.title, what=f"{reason.what}\nnothing was applied", where=where, next_step=reason.next_step)
    limit = job.settings.backup_max_age
    if plan.pending and backup.age_minutes > limit:
        raise NotTrueError(
            "The backup is too old",
            what=f"its snapshot was taken {backup.age_minutes:.0f} minutes ago, the limit is {limit}: what was written since would be "
            f"lost in a restore; {len(plan.pending)} migrations are pending and nothing was applied",
            where=f"{backup.id}, BACKUP_MAX_AGE_MINUTES",
            next_step="re-run all jobs (not only the failed ones), so that a new backup is made",
        )


# --- applying -------------------------------------------------------------------------------------------------------------


def _log_sql(job: Job[Settings], pending: tuple[Migration, ...]) -> None:
    """Keep the SQL of every pending migration in the log: Prisma does not print it."""
    for migration in pending:
        job.log.write(f"--- {migration.name}, SHA-256 {migration.checksum}")
        for line in migration.text.splitlines():
            job.log.write(f"    {line}")
    job.say(f"the SQL of {len(pending)} pending migrations is in {job.name}.log")


@contextlib.contextmanager
def application_tree(job: Job[Settings], ca_file: str | None) -> Iterator[Isolation]:
    """Yield how the migrate command runs, on the application's files with all that it needs: those that the job build packed.

    They lie in a folder of this block. ``ca_file`` is shown as it is here, wherever it lies. Raises NotTrueError for a tree that is not
    the one that was built, or whose migrations are not those of the commit.
    """
    with tempfile.TemporaryDirectory(dir=job.settings.runner_temp, prefix="azora-ci-", ignore_cleanup_errors=True) as folder:
        unpacked = Path(folder) / "tree"
        tree.unpack(job.settings.received_dir, job.fragments.require("build").evidence.get("tree"), unpacked)
        migrations_dir = job.config.database.migrations_dir
        count = tree.require_same_migrations(migrations_dir, unpacked / migrations_dir)
        job.tick(f"the tree is the one that build packed, and its {count} files of migrations are those of the commit")
        yield isolation_for(job, unpacked, owned=True, shown=(Path(ca_file),) if ca_file else ())


def _apply(job: Job[Settings], database: PrismaDatabase, backup: VerifiedBackup, plan: Plan, isolation: Isolation) -> None:
    """Run the migrate command. Every error that ends it describes the database as it is afterwards."""
    objects = database.objects()
    try:
        deployed = _deploy(job, database, isolation)
    except Explained as error:  # a cancellation, too: the server may still run its statement
        with contextlib.suppress(UnreachableError):
            aftermath = _read_aftermath(job, database, backup, plan, objects)
            error.what += f"\n{aftermath.text}"
            error.next_step = _advise_resolve(aftermath) if aftermath.failed else error.next_step
        raise
    if not deployed.ok:
        raise _migration_error(job, deployed, lambda: _read_aftermath(job, database, backup, plan, objects))


def _deploy(job: Job[Settings], database: PrismaDatabase, isolation: Isolation) -> MigrateResult:
    """Run the migrate command. Repeat it when another session held Prisma's lock: such an attempt changed nothing."""
    for attempt in job.clock.attempts(LOCK_ATTEMPTS, LOCK_PAUSE_SECONDS, growth=1):
        job.evidence["attempts"] = attempt.number
        with job.actions.group(" ".join(job.config.database.migrate)):
            deployed = prisma.deploy(job.processes, job.config.database.migrate, database.prisma_url.reveal(), isolation)
        if not deployed.lock_timeout:
            break
        holders = prisma.lock_holders(database.url)
        job.evidence["lock_holders"] = holders
        job.say(f"{attempt}: Prisma's lock {history.LOCK} is held by {', '.join(holders) or 'nobody any more'}")
    return deployed


# --- after a failure --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aftermath:
    """The state of the database after a failure: a description for people, and the rows of the migrations that failed."""

    text: str
    failed: tuple[Row, ...]


def _read_aftermath(
    job: Job[Settings], database: PrismaDatabase, backup: VerifiedBackup, plan: Plan, earlier_objects: frozenset[str]
) -> Aftermath:
    """Read the database again, record its state as evidence, and describe it. Nothing is assumed to have been rolled back."""
    rows = database.rows()
    applied = history.applied_since(rows, backup.snapshot, plan.applied)
    failed = tuple(row for row in rows if row.failed)
    objects = database.objects()
    gained, lost = sorted(objects - earlier_objects), sorted(earlier_objects - objects)
    job.evidence |= {
        "applied": _describe_applied(applied),
        "migrations_applied": len(applied),
        "failed": [row.name for row in failed],
        "schema_gained": gained[:100],
        "schema_lost": lost[:100],
    }
    new = {row.name for row in rows if row.applied} - {row.name for row in plan.applied}
    lines = [f"applied by this attempt: {', '.join(sorted(new)) or 'none'}", *map(history.describe_failed, failed)]
    if gained or lost:
        lines.append(f"since this attempt began the schema gained: {_join_some(gained)}; and lost: {_join_some(lost)}")
    else:
        lines.append("columns, indexes and constraints are as before; rows may have changed")
    if failed:
        lines.append("statements before the failing one may stay applied; Prisma refuses every migration until it is resolved (P3009)")
    running = prisma.lock_holders(database.url)
    if running:
        lines.append(f"Prisma's lock is still held, the server may still be at work: {', '.join(running)}")
    proof = "was never restored to prove it" if backup.depth == "none" else f"is proven ({backup.depth}) and can be restored"
    lines.append(f"{backup.id} (snapshot {backup.snapshot:%Y-%m-%d %H:%M:%S %Z}) {proof}")
    return Aftermath("\n".join(lines), failed)


def _join_some(lines: list[str], most: int = 10) -> str:
    return "; ".join(lines[:most]) + (f" and {len(lines) - most} more" if len(lines) > most else "") or "nothing"


_UNREACHABLE = frozenset({"P1001", "P1002", "P1003", "P1008", "P1011", "P1017"})
_REFUSED = frozenset({"P1000", "P1010"})


def _migration_error(job: Job[Settings], deployed: MigrateResult, read_aftermath: Callable[[], Aftermath]) -> AzoraError:
    """Return the error for a migrate command that failed; the state of the database and Prisma's error code decide which."""
    command = " ".join(deployed.completed.argv)
    last = (deployed.completed.stderr.strip() or deployed.completed.stdout.strip())[-1500:]
    ended = f"{command}: {ending(deployed.completed.returncode)}{f', {deployed.code}' if deployed.code else ''}"
    job.evidence["code"] = deployed.code
    try:
        aftermath = read_aftermath()
    except UnreachableError as error:
        return UnreachableError(
            "The database cannot be asked what the migration left", what=f"{ended}\n{last}\n{error.what}", where=error.where,
            next_step="reach the database, then read _prisma_migrations before anything else",
        )  # fmt: skip
    where = f"{prisma.TABLE} of the production database; {job.name}.log"
    if deployed.lock_timeout:
        return NotTrueError(
            "Another migration holds Prisma's lock",
            what=f"{ended} in each of {LOCK_ATTEMPTS} attempts: advisory lock {history.LOCK}\n{aftermath.text}",
            where=where,
            next_step="let that migration end, or end its session (pg_terminate_backend), then re-run the failed jobs",
        )
    if aftermath.failed:
        return NotTrueError(
            f"Migration {aftermath.failed[0].name} failed",
            what=f"{ended}\n{aftermath.text}",
            where=where,
            next_step=_advise_resolve(aftermath),
        )
    error_class = UnreachableError if deployed.code in _UNREACHABLE else BadInputError if deployed.code in _REFUSED else NotTrueError
    return error_class(
        "The migrate command failed", what=f"{ended}\n{last}\n{aftermath.text}", where=where, next_step=_advice(deployed, last)
    )


def _advise_resolve(aftermath: Aftermath) -> str:
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


# --- the end ----------------------------------------------------------------------------------------------------------------


def _require_all_applied(plan: Plan) -> None:
    reason = history.refusal(plan)
    if reason is None and not plan.pending:
        return
    names = ", ".join(migration.name for migration in plan.pending)
    raise NotTrueError(
        "The migrate command succeeded, the database disagrees",
        what=reason.what if reason else f"still pending: {names}",
        where=f"{prisma.TABLE} of the production database, database.migrate in the deployment configuration",
        next_step="check that the command migrates the database named by DATABASE_URL, from database.migrations_dir",
    )


def _describe_applied(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    return [{"name": row.name, "checksum": row.checksum, "seconds": round(row.seconds, 3)} for row in rows]


def _conclude(job: Job[Settings], backup: VerifiedBackup, plan: Plan, applied: tuple[Row, ...]) -> None:
    job.evidence |= {
        "applied": _describe_applied(applied),
        "migrations_applied": len(applied),
        "already_applied": len(plan.applied) - len(applied),
    }
    job.actions.output("migrations-applied", len(applied))
    for row in applied:
        job.tick(f"{row.name} is applied ({row.seconds:.2f} s, SHA-256 {row.checksum[:12]}…)")
    job.tick(f"nothing is pending: {len(plan.applied)} migrations are applied, {len(applied)} of them since {backup.id}")
    rows = [(code(row.name), f"{row.seconds:.2f} s", code(row.checksum[:12])) for row in applied]
    applied_table = f"\n\n{table(('Migration', 'Time', 'SHA-256'), rows)}" if applied else ""
    job.actions.summary(f"### ✓ database-migrations: {len(applied)} applied behind {backup.id}{applied_table}")
