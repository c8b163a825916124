"""Apply the application's migrations behind a verified backup. The evidence is what the database reports before and after.

Prisma's migrations are read, planned and compared with Prisma's table; of another tool's (``[migrations] command``) the exit code counts,
and what it changed in the catalogue is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from azora_ci.clients.github import GitHub
from azora_ci.core import settings
from azora_ci.core.clock import parse_rfc3339
from azora_ci.core.config import Command
from azora_ci.core.errors import Explained, NotTrueError, UnreachableError
from azora_ci.core.job_log import secrets_of_url
from azora_ci.core.markdown import code, listed, table
from azora_ci.core.process.isolation import Isolation
from azora_ci.core.variables import Secret, number, variable, whole_number
from azora_ci.database.migrations import aftermath, catalogue, guard, history, prisma, variables
from azora_ci.database.migrations.aftermath import Before, Database
from azora_ci.database.migrations.backup import VerifiedBackup
from azora_ci.database.migrations.catalogue import Change
from azora_ci.database.migrations.guard import Timeouts, Watch
from azora_ci.database.migrations.history import Migration, Plan, Row
from azora_ci.database.migrations.judgement.judge import risks_of
from azora_ci.database.migrations.prisma import MigrateResult
from azora_ci.database.migrations.trial import gate
from azora_ci.database.migrations.trial.gate import Tried
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.gates.later.build_jobs import PATIENCE_SECONDS, BuildJobs
from azora_ci.steps.job import Job, application_tree, production_database

LOCK_ATTEMPTS = 3  # Prisma itself waits 10 s for its lock each time
LOCK_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Deployment, settings.DatabaseAccess, settings.SshAccess, settings.Kubeconfig, settings.Isolated):
    """What database-migrations reads."""

    backup_max_age: int = variable(
        "BACKUP_MAX_AGE_MINUTES", "minutes after which a backup's snapshot is too old to migrate behind", example="120",
        parse=whole_number(1, 10080), default="120",
    )  # fmt: skip
    lock_timeout: float = variable(
        "MIGRATIONS_LOCK_TIMEOUT_SECONDS", "seconds that a statement of a migration waits for a lock, with users behind it; 0: no limit",
        example="5", parse=number(0, 3600), default="5",
    )  # fmt: skip
    statement_timeout: float = variable(
        "MIGRATIONS_STATEMENT_TIMEOUT_SECONDS", "seconds that a statement of a migration may take; 0: no limit", example="1800",
        parse=number(0, 86400), default="1800",
    )  # fmt: skip
    github_token: Secret | None = variable(
        "GITHUB_TOKEN", "token that reads the jobs of this run; unset: whether the build has failed meanwhile is not asked",
        example="ghs_…", required=False, secret=True,
    )  # fmt: skip


def run(job: Job[Settings]) -> None:
    """Apply the pending migrations. Raises NotTrueError when the gate is closed or a migration failed."""
    started = job.clock.monotonic()
    database = job.config.database
    job.evidence["tool"] = database.tool
    release = prisma.read_folder(database.migrations_dir) if database.command is None else []
    backup = require_verified_backup(job)
    with production_database(job, job.evidence) as url:
        backup.require_of(url)
        with guard.deployment_lock(url, f"azora-ci deployment {job.settings.deployment_id}", job.actions.warning):
            _migrate(job, release, backup, url)
    job.evidence["seconds"] = round(job.clock.monotonic() - started, 3)


def _migrate(job: Job[Settings], release: list[Migration], backup: VerifiedBackup, url: DatabaseUrl) -> None:
    database = job.config.database
    if database.command is None:
        migrate(job, release, backup, Database(url, prisma.schema_of(url, database.schema)))
    elif database.command:
        migrate_by_command(job, database.command, backup, url)
    else:
        _conclude_without(job, backup)


def migrate(job: Job[Settings], release: list[Migration], backup: VerifiedBackup, database: Database) -> None:
    """Apply the pending migrations of a release behind this backup."""
    _warn_of_pooler(job, database.url)
    plan = history.plan(release, database.rows())
    _show_plan(job, plan)
    _refuse_unsafe(job, plan)
    if plan.pending:
        _refuse_old(job, backup, f"{len(plan.pending)} migrations are pending")
        tried = _require_tried(job, plan.pending)
        _log_sql(job, plan.pending)
        before = Before(plan, catalogue.read(database.url), backup.snapshot, backup.describe())
        with application_tree(job, database.url.ca_file) as isolation:
            _require_build(job)
            _apply(job, database, before, isolation, tried)
        whole = len(tried.evidence["files"]) == len(plan.pending)
        _compare(job, tried.differences(before.catalogue, catalogue.read(database.url), whole=whole), ran=tried.ran)
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


def _warn_of_pooler(job: Job[Settings], url: DatabaseUrl) -> None:
    if url.pooler_hint:
        job.actions.warning(
            "Migrations through a connection pooler",
            f"{url.pooler_hint}: Prisma's lock may not hold there.\nUse the direct address of the database in PROD_DATABASE_URL",
        )


def _show_plan(job: Job[Settings], plan: Plan) -> None:
    """Record and print the plan before anything is changed."""
    risks = list(risks_of(plan.pending))
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


def _refuse_unsafe(job: Job[Settings], plan: Plan) -> None:
    reason = history.refusal(plan)
    if reason is not None:
        where = f"{job.config.database.migrations_dir} and {prisma.TABLE} of the production database"
        raise NotTrueError(reason.title, what=f"{reason.what}\nnothing was applied", where=where, next_step=reason.next_step)


def _refuse_old(job: Job[Settings], backup: VerifiedBackup, waiting: str) -> None:
    limit = job.settings.backup_max_age
    if backup.age_minutes > limit:
        raise NotTrueError(
            "The backup is too old",
            what=f"its snapshot was taken {backup.age_minutes:.0f} minutes ago, the limit is {limit}: what was written since would be "
            f"lost in a restore; {waiting} and nothing was applied",
            where=f"{backup.id}, BACKUP_MAX_AGE_MINUTES",
            next_step="re-run all jobs (not only the failed ones), so that a new backup is made",
        )


def _require_tried(job: Job[Settings], pending: tuple[Migration, ...]) -> Tried:
    """Return the trial of exactly these migrations, and say what is to be expected. Raises NotTrueError."""
    packed = job.fragments.require("build").evidence.get("tree") or {}
    tried = gate.require(job.fragments.require("database-backup").evidence.get("trial"), pending, packed.get("sha256"))
    job.evidence["trial"] = tried.summary()
    for line in tried.expectations():
        job.say(line)
    return tried


def _require_build(job: Job[Settings]) -> None:
    """Raise NotTrueError when the build of this run has failed meanwhile: it is asked right before the command runs."""
    settings, token = job.settings, job.settings.github_token
    github = None
    if token is not None and settings.repository is not None and settings.run_id != "0":
        github = GitHub(settings.api_url, settings.repository, token, clock=job.clock, say=job.say)
        github.patience = PATIENCE_SECONDS
    BuildJobs(github, settings.run_id, settings.run_attempt, job.actions, job.say).require(job.evidence)


def _compare(job: Job[Settings], differences: list[str], *, ran: bool) -> None:
    """Record in what production differs from the copy after the trial, and warn of it."""
    if not ran:
        return
    job.evidence["differs"] = differences[: catalogue.MOST]
    if differences:
        job.actions.warning("Production is not what the copy became", "\n".join(differences[:20]))
        return
    job.tick("production defines exactly what the copy did after the trial")


# --- applying -------------------------------------------------------------------------------------------------------------


def _log_sql(job: Job[Settings], pending: tuple[Migration, ...]) -> None:
    """Keep the SQL of every pending migration in the log: Prisma does not print it."""
    for migration in pending:
        job.log.write(f"--- {migration.name}, SHA-256 {migration.checksum}")
        for line in migration.text.splitlines():
            job.log.write(f"    {line}")
    job.say(f"the SQL of {len(pending)} pending migrations is in {job.name}.log")


def _timeouts(job: Job[Settings], url: DatabaseUrl) -> Timeouts | None:
    """Return the timeouts for the command's sessions, None where the server cannot be given any; what does not reach it is said."""
    timeouts = Timeouts(job.settings.lock_timeout, job.settings.statement_timeout)
    missing = refused = timeouts.refused_at(url)
    if refused is None and variables.WITH_PARAMETERS.isdisjoint(job.config.database.variables.values()):
        missing = f"the command gets no connection string ({', '.join(job.config.database.variables)}): only a driver that reads PGOPTIONS,"
        missing += " as libpq does, has them"
    job.evidence["timeouts"] = {"lock_seconds": timeouts.lock, "statement_seconds": timeouts.statement, "missing": missing}
    if missing is not None:
        job.actions.warning("Timeouts may not reach the server", f"lock_timeout and statement_timeout of the migrations: {missing}")
    return None if refused is not None else timeouts


def _hand_over(job: Job[Settings], address: str, url: DatabaseUrl) -> Mapping[str, str]:
    """Return the variables that name the database to the command; their values never reach a log."""
    for secret in secrets_of_url(address):
        job.log.add_secret(secret)
    return variables.environment(job.config.database.variables, address, url)


def _in_environment(timeouts: Timeouts | None, url: DatabaseUrl) -> dict[str, str]:
    """Return the timeouts as variables of libpq, for a command that makes its address out of host and port."""
    return {name: value for name, value in timeouts.of(url).libpq_env().items() if name in {"PGOPTIONS", "PGAPPNAME"}} if timeouts else {}


def _apply(job: Job[Settings], database: Database, before: Before, isolation: Isolation, tried: Tried) -> None:
    """Run the migrate command. Every error that ends it describes the database as it is afterwards."""
    try:
        deployed = _deploy(job, database, before, isolation)
    except Explained as error:  # a cancellation, too: the server may still run its statement
        with contextlib.suppress(UnreachableError):
            state = aftermath.of_prisma(database, before)
            job.evidence |= state.evidence
            error.what += f"\n{state.text}"
            error.next_step = aftermath.advise_resolve(state) if state.failed else error.next_step
        raise
    if not deployed.ok:
        job.evidence["code"] = deployed.code
        try:
            state = aftermath.of_prisma(database, before)
        except UnreachableError as error:
            raise _left_unknown(f"{aftermath.how_it_ended(deployed)}\n{aftermath.last_words(deployed.completed)}", error) from error
        job.evidence |= state.evidence
        failure = aftermath.error_of_prisma(deployed, state, LOCK_ATTEMPTS, f"{job.name}.log")
        if state.failed:
            lines = gate.halfway(tried, before.catalogue, catalogue.read(database.url), state.failed[0].name)
            failure.what += "".join(f"\n{line}" for line in lines)
        raise failure


def _left_unknown(ended: str, error: UnreachableError) -> UnreachableError:
    return UnreachableError(
        "The database cannot be asked what the migration left", what=f"{ended}\n{error.what}", where=error.where,
        next_step="reach the database, then read what its migrations left (_prisma_migrations) before anything else",
    )  # fmt: skip


def _deploy(job: Job[Settings], database: Database, before: Before, isolation: Isolation) -> MigrateResult:
    """Run the migrate command. Repeat it when a lock could not be had and nothing was applied."""
    address, timeouts = prisma.address(job.settings.database_url.reveal(), database.url), _timeouts(job, database.url)
    names = {**_in_environment(timeouts, database.url), **_hand_over(job, timeouts.within(address) if timeouts else address, database.url)}
    with Watch(database.url, before.plan.pending, job.say) as watch:
        for attempt in job.clock.attempts(LOCK_ATTEMPTS, LOCK_PAUSE_SECONDS, growth=1):
            job.evidence["attempts"] = attempt.number
            with job.actions.group(" ".join(job.config.database.migrate)):
                deployed = prisma.deploy(job.processes, job.config.database.migrate, names, isolation)
            job.evidence["observed"] = watch.statements
            timed_out = not deployed.ok and guard.TIMED_OUT.search(deployed.completed.stdout + deployed.completed.stderr)
            if not deployed.lock_timeout and not timed_out:
                break
            holders = prisma.lock_holders(database.url) or watch.holders
            job.evidence["lock_holders"] = holders
            held = ", ".join(holders) or "nobody any more"
            job.say(f"{attempt}: {f'lock {history.LOCK} of Prisma' if deployed.lock_timeout else 'a lock'} is held by {held}")
            if timed_out and not guard.nothing_applied(database, before, job.say):
                break
    return deployed


# --- another tool's migrations ----------------------------------------------------------------------------------------------


def migrate_by_command(job: Job[Settings], command: Command, backup: VerifiedBackup, url: DatabaseUrl) -> None:
    """Run another tool's command behind this backup, and compare the catalogue before and after. Raises NotTrueError when it fails."""
    _refuse_old(job, backup, f"{' '.join(command)} was not started")
    tried = _require_tried(job, ())
    address = prisma.through_tunnel(variables.address(url), url.tunnel_port)
    timeouts = _timeouts(job, url)
    limited = timeouts.of(url) if timeouts else url
    names = {**prisma.QUIET, **limited.libpq_env(), **_hand_over(job, timeouts.within(address) if timeouts else address, url)}
    earlier = catalogue.read(url)
    job.evidence |= {"applied": [], "migrations_applied": None, "attempts": 1}
    with application_tree(job, url.ca_file) as isolation:
        _require_build(job)
        try:
            with job.actions.group(" ".join(command)), Watch(url, (), job.say) as watch:
                completed = job.processes.run_isolated(command, isolation, env=names, timeout=prisma.DEPLOY_SECONDS, check=False)
        except Explained as error:  # a cancellation, too
            with contextlib.suppress(UnreachableError):
                error.what += f"\n{aftermath.of_command(_note_change(job, earlier, url), backup.describe())}"
            raise
    job.evidence |= {"exit_code": completed.returncode, "lock_holders": watch.holders}
    try:
        change = _note_change(job, earlier, url)
    except UnreachableError as error:
        raise _left_unknown(aftermath.how_it_ended(MigrateResult(completed, None)), error) from error
    if completed.returncode != 0:
        raise aftermath.error_of_command(completed, aftermath.of_command(change, backup.describe()), f"{job.name}.log")
    _compare(job, tried.differences(earlier, catalogue.read(url), whole=job.settings.run_attempt == 1), ran=tried.ran)
    _conclude_command(job, command, backup, change)


def _note_change(job: Job[Settings], earlier: frozenset[str], url: DatabaseUrl) -> Change:
    """Record what the database gained and lost since ``earlier``. An attempt before this one may have applied migrations, too."""
    change = Change.between(earlier, catalogue.read(url))
    job.evidence |= {**change.evidence(), "migrations_applied": change.applied if job.settings.run_attempt == 1 else None}
    return change


def _conclude_command(job: Job[Settings], command: Command, backup: VerifiedBackup, change: Change) -> None:
    count = job.evidence["migrations_applied"]
    job.actions.output("migrations-applied", "unknown" if count is None else count)
    job.tick(f"{' '.join(command)} ended with exit code 0 behind {backup.id}")
    job.tick(change.describe())
    lines = [*(f"+ {line}" for line in change.gained), *(f"- {line}" for line in change.lost)][: catalogue.MOST]
    changes = f"\n\n{listed(map(code, lines))}" if lines else "; the database defines what it did before"
    job.actions.summary(f"### ✓ database-migrations: {code(' '.join(command))} behind {backup.id}{changes}")


def _conclude_without(job: Job[Settings], backup: VerifiedBackup) -> None:
    job.evidence |= {"applied": [], "migrations_applied": 0}
    job.actions.output("migrations-applied", 0)
    job.say("- no migrations: migrations.command is empty in the deployment configuration")
    job.actions.summary(f"### database-migrations: the application has none ({backup.id} was made all the same)")


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


def _conclude(job: Job[Settings], backup: VerifiedBackup, plan: Plan, applied: tuple[Row, ...]) -> None:
    job.evidence |= {
        "applied": aftermath.describe_applied(applied),
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
