"""database-backup: back production up, then restore the backup and compare it before any other job may rely on it.

A proven backup of the same deployment from an earlier attempt is reused. An earlier attempt's unproven backup is proven now; if
that fails, its object stays in the bucket, and a new backup is written under the next attempt's key.

The copy that proved it is there: the pending migrations are tried on it, isolated and without a network, before production sees them;
and where the configuration asks for it the version in production, before and behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.markdown import code, escaped, listed, table
from azora_ci.core.settings import Aws, DatabaseAccess, Deployment, DockerDaemon, ImagePull, Isolated, Kubeconfig, ProofPlace
from azora_ci.core.variables import number, one_of, truth, variable, whole_number
from azora_ci.gates.migrations import Policy
from azora_ci.steps.job import Job, application_tree, isolation_for, production_database

if TYPE_CHECKING:
    from azora_ci.clients.s3.bucket import Bucket
    from azora_ci.database.backup.manifest import Attempt, Manifest, Names
    from azora_ci.database.backup.setup import BackupContext
    from azora_ci.database.migrations.trial.run import Trial
    from azora_ci.database.postgres import DatabaseUrl
    from azora_ci.database.server import ServerFacts
    from azora_ci.gates.old_version import OldVersion

GIB = 1024**3
DEAD_AFTER = timedelta(hours=6)  # no job runs longer, so an unfinished upload of another deployment this old belongs to a dead run
CLOCKS_DIFFER = timedelta(minutes=10)  # the store's clock may be ahead of ours: an upload dated in our future still counts as begun


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Aws, DatabaseAccess, ImagePull, Kubeconfig, ProofPlace, Isolated, DockerDaemon, Policy):
    """What database-backup reads."""

    proof: str | None = variable(
        "BACKUP_PROOF", "how the backup is proven: full (restored, rows counted and hashed), counts, none; unset: by size", example="full",
        parse=one_of("full", "counts", "none"), required=False,
    )  # fmt: skip
    full_proof_max_gib: float = variable(
        "BACKUP_FULL_PROOF_MAX_GIB", "largest database in GiB that is proven in full unless BACKUP_PROOF says so", example="10",
        parse=number(), default="10",
    )  # fmt: skip
    proof_reason: str | None = variable(
        "BACKUP_PROOF_REASON", "why the proof is less than full; lands in the record", example="incident 4711", required=False
    )
    snapshot_max_minutes: float = variable(
        "BACKUP_SNAPSHOT_MAX_MINUTES", "longest time in minutes that the dump may hold production's snapshot", example="180",
        parse=number(0.01, 10080), default="180",
    )  # fmt: skip
    compression: int = variable(
        "BACKUP_COMPRESSION", "ISA-L compression level, 1 fast to 3 small", example="2", parse=whole_number(0, 3), default="2"
    )
    trial: bool = variable(
        "MIGRATIONS_TRIAL", "false: pending migrations are not tried on the restored copy before they run in production", example="true",
        parse=truth, default="true",
    )  # fmt: skip
    trial_reason: str | None = variable(
        "MIGRATIONS_TRIAL_REASON", "why MIGRATIONS_TRIAL is false; lands in the record", example="no rows of production on runners",
        required=False,
    )  # fmt: skip


def run(job: Job[Settings]) -> None:
    """Make sure that the bucket holds a proven backup of this deployment, output its id and location, and try the migrations on it."""
    from azora_ci.clients.s3.bucket import open_bucket
    from azora_ci.clients.s3.trial import require_uploads
    from azora_ci.database.backup import manifest
    from azora_ci.database.postgres import DatabaseUrl
    from azora_ci.gates.entry.emergency import require_still_open
    from azora_ci.gates.old_version import OldVersion

    settings, backup = job.settings, job.config.backup
    _require_reason(settings)
    fragment = job.fragments.find("pre-deployment-validation")
    validation = fragment.evidence if fragment else {}
    require_still_open(validation, job.clock.now())
    trial, old_version = _trial(job), _old_version(job, validation)
    if trial is not None and isinstance(old_version, OldVersion):
        trial.companion = old_version
    DatabaseUrl.parse(settings.database_url.reveal())  # a bad URL is reported before any other step
    checksums = backup.checksums == "full-object"
    bucket = open_bucket(settings, backup.bucket, clock=job.clock, say=job.say, checksums=checksums)
    facts = (*bucket.facts().lines(), require_uploads(bucket, backup.key("trial")))
    job.evidence["bucket"] = list(facts)
    for line in facts:
        job.say(f"bucket {bucket.name}, {line}")
    _remove_dead_uploads(job, bucket)
    attempts = manifest.attempts(bucket, backup, settings.deployment_id)
    complete = next((attempt for attempt in reversed(attempts) if attempt.has_manifest), None)
    proven = _read_earlier(job, bucket, complete.names) if complete else None
    if proven is not None:
        _report(job, bucket, proven, reused=True)
        if trial is not None:
            _restore_for(job, bucket, proven, trial)
    else:
        with production_database(job, job.evidence) as url:
            _report(job, bucket, _prove_or_take(job, bucket, url, attempts, trial), reused=False)
    if trial is not None:
        if not trial.evidence and trial.failure is None:
            _try_on_schema(job, trial)
        _conclude_trial(job, trial)
    _conclude_code_rollback(job, old_version, validation)
    require_still_open(validation, job.clock.now())  # a dump may take hours, and what is begun behind this job is finished


def _read_earlier(job: Job[Settings], bucket: Bucket, names: Names) -> Manifest | None:
    """Return an earlier attempt's manifest after checking its object; None when it was never restored and the settings ask for that."""
    from azora_ci.database.backup import manifest

    backup_manifest = manifest.read(bucket, names)
    manifest.require_object(bucket, backup_manifest)
    if backup_manifest.depth == "none" and job.settings.proof != "none":
        job.say(f"backup {backup_manifest.backup_id} of an earlier attempt was never restored; now BACKUP_PROOF asks for more")
        return None
    proven = "was never restored" if backup_manifest.depth == "none" else f"is proven ({backup_manifest.depth})"
    job.tick(f"backup {backup_manifest.backup_id} of an earlier attempt {proven} and is unchanged in the bucket: nothing to do")
    return backup_manifest


def _require_reason(settings: Settings) -> None:
    if settings.proof == "none" and not settings.proof_reason:
        raise BadInputError(
            "A backup without proof needs a reason",
            what="BACKUP_PROOF is none and BACKUP_PROOF_REASON is empty",
            where="BACKUP_PROOF_REASON",
            next_step="say why in BACKUP_PROOF_REASON (it lands in the record), or let the backup be proven",
        )


def _remove_dead_uploads(job: Job[Settings], bucket: Bucket) -> None:
    """Remove unfinished uploads of dead runs: this deployment's at once (its jobs do not overlap), others' after DEAD_AFTER."""
    from azora_ci.database.backup.manifest import Names

    prefix, own_id = job.config.backup.key("backup-"), Names(job.config.backup, job.settings.deployment_id).backup_id
    removed = (*bucket.sweep(job.config.backup.key(own_id), -CLOCKS_DIFFER), *bucket.sweep(prefix, DEAD_AFTER))
    for upload in removed:
        job.say(f"removed an unfinished upload of a dead run: {upload.key}, begun {upload.initiated.isoformat()}")
    if removed:
        job.evidence["swept_uploads"] = [upload.key for upload in removed]


def _prove_or_take(job: Job[Settings], bucket: Bucket, url: DatabaseUrl, attempts: list[Attempt], trial: Trial | None) -> Manifest:
    """Prove the backup that an earlier attempt stored, or take a new one. Raises NotTrueError for an object of somebody else."""
    from azora_ci.database.backup.manifest import Names

    last = attempts[-1] if attempts else None
    if last is None:
        return _take_backup(job, bucket, url, Names(job.config.backup, job.settings.deployment_id), trial)
    if last.has_backup and not last.has_pending:
        stored = bucket.require(last.names.key)
        raise NotTrueError(
            "Another object is under the backup's key",
            what=f"this job writes {last.names.pending_key} before a backup, and there is none; the object is {stored.describe()}",
            where=bucket.url(last.names.key),
            next_step="nothing was overwritten; find out who wrote it (bucket logs), then deploy with a new tag or dispatch",
        )
    if last.has_backup and not last.has_manifest:
        proven = _prove_leftover(job, bucket, last.names, trial)
        if proven is not None:
            return proven
    elif not last.has_backup:
        job.say(f"an earlier attempt stopped before its upload was complete: {last.names.key} was never published")
    next_names = Names(job.config.backup, job.settings.deployment_id, last.names.attempt + 1)
    job.say(f"the next attempt is written beside it: {next_names.key}")
    return _take_backup(job, bucket, url, next_names, trial)


def _prove_leftover(job: Job[Settings], bucket: Bucket, names: Names, trial: Trial | None) -> Manifest | None:
    """Return the manifest of a backup that an earlier attempt stored but did not prove; None when it cannot be proven."""
    from azora_ci.database.backup import manifest, pipeline

    pending = manifest.read_pending(bucket, names)
    stored = bucket.require(names.key)
    job.say(f"an earlier attempt stored {names.key} but did not prove it: proving it now")
    context = _wire(job, bucket, pending["server"]["size_bytes"], trial)
    try:
        seconds = pipeline.prove_stored(context, pending, stored)
    except pipeline.ForeignObjectError:
        raise
    except NotTrueError as error:
        job.actions.warning("An earlier backup cannot be proven", f"{names.key} stays where it is: {error.what}")
        job.say(f"{names.key} cannot be proven: {error.what}")
        return None
    return pipeline.conclude(context, names, pending, stored, seconds)


def _take_backup(job: Job[Settings], bucket: Bucket, url: DatabaseUrl, names: Names, trial: Trial | None) -> Manifest:
    from azora_ci.database.backup import pipeline
    from azora_ci.database.postgres import find_binary

    server = _check_server(job, url)
    context = _wire(job, bucket, server.size_bytes, trial)

    def note_stored(location: str) -> None:
        job.evidence["unproven"] = location
        job.say(f"stored {location}, not proven yet")

    return pipeline.take(context, names, pipeline.Origin(url, server, find_binary("pg_dump", server.major)), note_stored)


def _check_server(job: Job[Settings], url: DatabaseUrl) -> ServerFacts:
    """Return the production server's facts. Raises BadInputError where sessions cannot share a snapshot, before anything is dumped."""
    from azora_ci.database.postgres import find_binary
    from azora_ci.database.server import server_facts
    from azora_ci.database.session import require_shared_snapshots

    if url.ignored:
        job.say(f"PROD_DATABASE_URL: libpq does not know {', '.join(url.ignored)}: left out")
    require_shared_snapshots(url)
    job.tick("sessions at this address share a snapshot")
    server = server_facts(url)
    job.say(f"{url.location}: PostgreSQL {server.version}, {server.encoding}, {server.size_bytes / GIB:.3f} GiB")
    job.say(f"using {find_binary('pg_dump', server.major)} and {find_binary('psql', server.major)}")
    return server


def _wire(job: Job[Settings], bucket: Bucket, size_bytes: int, trial: Trial | None) -> BackupContext:
    from azora_ci.database.backup.setup import BackupContext, verify_server

    settings = job.settings
    depth, reason = _choose_depth(settings, size_bytes)
    job.say(f"proof: {depth}" + (f" ({reason})" if reason else ""))
    return BackupContext(
        bucket=bucket, backup=job.config.backup, processes=job.processes, clock=job.clock,
        identity={
            "deployment_id": settings.deployment_id,
            "version": settings.version,
            "git_sha": settings.git_sha,
            "environment": settings.deploy_environment,
        },
        depth=depth, reason=reason, level=settings.compression, limit_seconds=settings.snapshot_max_minutes * 60,
        verify_url=verify_server(settings, job.processes), scratch_dir=settings.scratch_dir, use_copy=trial,
    )  # fmt: skip


def _choose_depth(settings: Settings, size_bytes: int) -> tuple[str, str | None]:
    """Return the depth of the proof (full, counts or none) and the reason when it is less than full."""
    if settings.proof is not None:
        return settings.proof, settings.proof_reason
    if size_bytes <= settings.full_proof_max_gib * GIB:
        return "full", settings.proof_reason
    reason = f"the database has {size_bytes / GIB:.1f} GiB, above BACKUP_FULL_PROOF_MAX_GIB ({settings.full_proof_max_gib:g})"
    return "counts", settings.proof_reason or reason


def _report(job: Job[Settings], bucket: Bucket, backup_manifest: Manifest, *, reused: bool) -> None:
    """Write the evidence, the outputs and the summary. The manifest was read from, or just written to, the bucket."""
    from azora_ci.database.backup import manifest

    manifest.hand_over(bucket, backup_manifest, job.log_dir)
    job.evidence.pop("unproven", None)
    job.evidence.update(backup_manifest.evidence())
    job.evidence["reused"] = reused
    evidence, proof = job.evidence, job.evidence["proof"]
    if not reused and proof["depth"] != "none":
        compared = "row by row" if proof["depth"] == "full" else "by row counts"
        job.tick(
            f"backup restored and compared {compared}: {evidence['tables']} tables, {evidence['rows']:,} rows, "
            f"in {proof['restore_seconds']:.1f} s"
        )
        job.tick(f"stored object read back, SHA-256 {evidence['sha256']}")
    job.actions.output("backup-id", evidence["backup_id"])
    job.actions.output("location", evidence["location"])
    restored = f"restored in {proof['restore_seconds']:.1f} s" if proof["restore_seconds"] is not None else "not restored"
    reason = f", {proof['reason']}" if proof["reason"] else ""
    rows = [
        ("Location", code(evidence["location"])),
        ("Version", code(evidence["version_id"])),
        ("Snapshot", evidence["timestamp"]),
        ("Size", f"{evidence['size_bytes']:,} bytes ({evidence['raw_bytes']:,} of SQL)"),
        ("Tables, rows", f"{evidence['tables']}, {evidence['rows']:,}"),
        ("SHA-256", code(evidence["sha256"])),
        ("Proof", f"{proof['depth']}, {restored}{reason}"),
        ("Locked until", evidence["lock_until"] or "no Object Lock"),
    ]
    job.actions.summary(f"### Backup {evidence['backup_id']}{' (recognised)' if reused else ''}\n\n{table(('', ''), rows)}")


# --- the migrations on the copy --------------------------------------------------------------------------------------------


def _trial(job: Job[Settings]) -> Trial | None:
    """Return the trial of the release's migrations, None where there is none to make. Raises BadInputError for one without a reason."""
    from azora_ci.database.migrations import prisma
    from azora_ci.database.migrations.trial.run import OFF, Trial

    settings, database = job.settings, job.config.database
    if database.command == ():
        return None
    if not settings.trial:
        if not settings.trial_reason:
            raise BadInputError(
                "Migrations without a trial need a reason",
                what="MIGRATIONS_TRIAL is false and MIGRATIONS_TRIAL_REASON is empty",
                where="MIGRATIONS_TRIAL_REASON",
                next_step="say why in MIGRATIONS_TRIAL_REASON (it lands in the record), or let the migrations be tried",
            )
        job.evidence["trial"] = {"how": OFF, "reason": settings.trial_reason, "files": []}
        job.actions.warning("Migrations are not tried", f"MIGRATIONS_TRIAL is false: {settings.trial_reason}")
        return None
    release = () if database.command else tuple(prisma.read_folder(database.migrations_dir))
    return Trial(
        processes=job.processes, clock=job.clock, settings=database, command=database.command or database.migrate, release=release,
        connection_string=settings.database_url.reveal(),
        tree=lambda: application_tree(job, None), tree_sha256=_tree_sha256(job),
    )  # fmt: skip


def _tree_sha256(job: Job[Settings]) -> str | None:
    packed = job.fragments.require("build").evidence.get("tree")
    return packed["sha256"] if packed else None


def _restore_for(job: Job[Settings], bucket: Bucket, proven: Manifest, trial: Trial) -> None:
    """Restore a backup that an earlier attempt proved once more, for the trial alone."""
    from azora_ci.database.backup import manifest, pipeline

    job.say("the migrations were not tried on it in this attempt: it is restored again for that")
    context = _wire(job, bucket, proven.document["server"]["size_bytes"], trial)
    pipeline.prove_stored(context, proven.document, manifest.require_object(bucket, proven))


def _try_on_schema(job: Job[Settings], trial: Trial) -> None:
    """Try the migrations on production's schema alone: the backup was not restored on this machine."""
    from azora_ci.database.migrations import prisma
    from azora_ci.database.migrations.trial.run import OFF, SCHEMA_ONLY
    from azora_ci.database.migrations.trial.schema_copy import schema_copy
    from azora_ci.database.server import server_facts

    proof = job.evidence["proof"]
    trial.how = SCHEMA_ONLY
    trial.reason = "the backup was not restored" if proof["depth"] == "none" else f"it was restored on {proof['where']}"
    with production_database(job, job.evidence) as url:
        schema = prisma.schema_of(url, job.config.database.schema)
        try:
            with schema_copy(url, server_facts(url), schema, job.settings.scratch_dir, job.processes) as (scratch, database):
                trial(scratch, database, server_facts(url))
        except BadInputError as error:  # no server to start on this machine
            trial.evidence = {"how": OFF, "reason": f"{trial.reason}, and no server starts here: {error.what}", "files": []}
            job.actions.warning("Migrations are not tried", trial.evidence["reason"])


def _conclude_trial(job: Job[Settings], trial: Trial) -> None:
    """Record the trial. Raises its failure: production is untouched then."""
    from azora_ci.database.migrations.trial.run import describe

    if trial.evidence:
        job.evidence["trial"] = trial.evidence
    if trial.failure is not None:
        raise trial.failure
    how = trial.evidence["how"]
    tried = f"{' '.join(trial.command)} passed on a copy of production ({how})" if "passed" in trial.evidence else how
    job.tick(f"migrations: {tried}")
    job.actions.summary(f"Migrations: {escaped(tried)}\n\n{listed(describe(trial.evidence) if 'passed' in trial.evidence else ())}")


def _old_version(job: Job[Settings], validation: Mapping[str, Any]) -> OldVersion | str | None:
    """Return the version in production, to be tried beside the migrations; why that cannot be; or None where nobody asks for it."""
    if job.config.database.old_version is None:
        return None
    from azora_ci.gates.old_version import of_production
    from azora_ci.targets.trial.base import Means

    settings = job.settings
    isolated = partial(isolation_for, job, owned=True)
    means = Means(job.config, job.processes, job.clock, isolated, settings.docker_host, settings.registry_login)
    return of_production(means, validation.get("serving"))


def _conclude_code_rollback(job: Job[Settings], old_version: OldVersion | str | None, validation: Mapping[str, Any]) -> None:
    """Record whether code can go back without the database. Raises NotTrueError where it cannot, and that closes the gate."""
    from azora_ci.gates.old_version import OldVersion, decide, require_compatible, with_earlier

    found = decide(job.config.database, job.evidence.get("trial") or {}, old_version, validation)
    if isinstance(old_version, OldVersion):
        job.evidence["old_version"] = old_version.document()
    whole = with_earlier(found, validation)
    job.evidence["code_rollback_safe"] = whole.document()
    job.say(f"{'✓' if whole.value else '-'} {whole}")
    job.actions.summary(f"{escaped(whole.headline)}\n\n{listed(whole.reasons)}")
    reason, title = require_compatible(found, job.settings), "The version in production does not work on the migrated schema"
    if reason:
        job.evidence["override_reason"] = "; ".join(filter(None, (job.evidence.get("override_reason"), f"{title}: {reason}")))
    elif found.breaks:
        job.actions.warning(title, "\n".join(found.reasons))
