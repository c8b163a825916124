"""database-backup: a backup of production that is restored and compared before anyone may rely on it.

An earlier attempt's proven backup of the same deployment is recognised; an unproven one of our own is proven now; what cannot
be proven stays where it is, and the next attempt is written beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from azora_ci import database_tunnel
from azora_ci.errors import BadInputError, NotTrueError
from azora_ci.job import Job
from azora_ci.markdown import code, table
from azora_ci.settings import Aws, DatabaseAccess, Deployment, ProofPlace, SshAccess, number, one_of, variable, whole_number

if TYPE_CHECKING:
    from azora_ci.backup.manifest import Attempt, Manifest, Names
    from azora_ci.backup.source import ServerFacts
    from azora_ci.backup.workshop import Wiring
    from azora_ci.postgres import DatabaseUrl
    from azora_ci.s3 import Bucket

GIB = 1024**3
DEAD_AFTER = timedelta(hours=6)  # no job runs longer, so an unfinished upload of another deployment this old belongs to a dead run
CLOCKS_DIFFER = timedelta(minutes=10)  # an upload that the store dates in our future is still one of the past


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Aws, DatabaseAccess, SshAccess, ProofPlace):
    """What database-backup reads."""

    proof: str | None = variable(
        "BACKUP_PROOF",
        "how the backup is proven: full (restored, rows counted and hashed), counts, none; unset: by size",
        example="full",
        parse=one_of("full", "counts", "none"),
        required=False,
    )
    full_proof_max_gib: float = variable(
        "BACKUP_FULL_PROOF_MAX_GIB",
        "largest database in GiB that is proven in full unless BACKUP_PROOF says so",
        example="10",
        parse=number(),
        default="10",
    )
    proof_reason: str | None = variable(
        "BACKUP_PROOF_REASON", "why the proof is less than full; lands in the record", example="incident 4711", required=False
    )
    snapshot_max_minutes: float = variable(
        "BACKUP_SNAPSHOT_MAX_MINUTES",
        "longest time in minutes that the dump may hold production's snapshot",
        example="180",
        parse=number(0.01, 10080),
        default="180",
    )
    compression: int = variable(
        "BACKUP_COMPRESSION", "ISA-L compression level, 1 fast to 3 small", example="2", parse=whole_number(0, 3), default="2"
    )


def run(job: Job[Settings]) -> None:
    """Make sure that a proven backup of this deployment is in the bucket, and say where."""
    from azora_ci import s3
    from azora_ci.backup import manifest
    from azora_ci.postgres import DatabaseUrl

    settings, backup = job.settings, job.config.backup
    _require_reason(settings)
    DatabaseUrl.parse(settings.database_url.reveal())  # said before anything is done
    bucket = s3.bucket(settings, backup.bucket, clock=job.clock, say=job.say)
    facts = bucket.facts().lines()
    job.evidence["bucket"] = list(facts)
    for line in facts:
        job.say(f"bucket {bucket.name}, {line}")
    _sweep(job, bucket)
    existing = manifest.attempts(bucket, backup, settings.deployment_id)
    done = next((attempt for attempt in reversed(existing) if attempt.has_manifest), None)
    found = _earlier(job, bucket, done.names) if done else None
    if found is not None:
        _report(job, found, reused=True)
        return
    with database_tunnel.reached(job, job.evidence) as url:
        _report(job, _make(job, bucket, url, existing), reused=False)


def _earlier(job: Job[Settings], bucket: Bucket, names: Names) -> Manifest | None:
    """Return an earlier attempt's manifest, its object unchanged; None when it was made without the proof that is wanted now."""
    from azora_ci.backup import manifest

    found = manifest.read(bucket, names)
    manifest.require_object(bucket, found)
    if found.depth == "none" and job.settings.proof != "none":
        job.say(f"backup {found.backup_id} of an earlier attempt was never restored; now BACKUP_PROOF asks for more")
        return None
    proven = "was never restored" if found.depth == "none" else f"is proven ({found.depth})"
    job.tick(f"backup {found.backup_id} of an earlier attempt {proven} and is unchanged in the bucket: nothing to do")
    return found


def _require_reason(settings: Settings) -> None:
    if settings.proof == "none" and not settings.proof_reason:
        raise BadInputError(
            "A backup without proof needs a reason",
            what="BACKUP_PROOF is none and BACKUP_PROOF_REASON is empty",
            where="BACKUP_PROOF_REASON",
            next_step="say why in BACKUP_PROOF_REASON (it lands in the record), or let the backup be proven",
        )


def _sweep(job: Job[Settings], bucket: Bucket) -> None:
    """Remove unfinished uploads of dead runs: of this deployment at once (jobs of one do not overlap), of others when they are old."""
    from azora_ci.backup.manifest import Names

    prefix, own = job.config.backup.key("backup-"), Names(job.config.backup, job.settings.deployment_id).backup_id
    left = (*bucket.sweep(job.config.backup.key(own), -CLOCKS_DIFFER), *bucket.sweep(prefix, DEAD_AFTER))
    for pending in left:
        job.say(f"removed an unfinished upload of a dead run: {pending.key}, begun {pending.initiated.isoformat()}")
    if left:
        job.evidence["swept_uploads"] = [pending.key for pending in left]


def _make(job: Job[Settings], bucket: Bucket, url: DatabaseUrl, existing: list[Attempt]) -> Manifest:
    """Prove what an earlier attempt left, or take a new backup."""
    from azora_ci.backup.manifest import Names

    last = existing[-1] if existing else None
    if last is None:
        return _take(job, bucket, url, Names(job.config.backup, job.settings.deployment_id))
    if last.has_backup and not last.has_pending:
        stored = bucket.require(last.names.key)
        raise NotTrueError(
            "Another object is under the backup's key",
            what=f"this job writes {last.names.pending_key} before a backup, and there is none; the object is {stored.describe()}",
            where=bucket.url(last.names.key),
            next_step="nothing was overwritten; find out who wrote it (bucket logs), then deploy with a new tag or dispatch",
        )
    if last.has_backup and not last.has_manifest:
        found = _prove_leftover(job, bucket, last.names)
        if found is not None:
            return found
    elif not last.has_backup:
        job.say(f"an earlier attempt stopped before its upload was complete: {last.names.key} was never published")
    following = Names(job.config.backup, job.settings.deployment_id, last.names.attempt + 1)
    job.say(f"the next attempt is written beside it: {following.key}")
    return _take(job, bucket, url, following)


def _prove_leftover(job: Job[Settings], bucket: Bucket, names: Names) -> Manifest | None:
    """Return the manifest of a backup that an earlier attempt stored but did not prove; None when it cannot be proven."""
    from azora_ci.backup import engine, manifest

    pending = manifest.read_pending(bucket, names)
    stored = bucket.require(names.key)
    job.say(f"an earlier attempt stored {names.key} but did not prove it: proving it now")
    it = _wiring(job, bucket, pending["server"]["size_bytes"])
    try:
        seconds = engine.prove_stored(it, pending, stored)
    except engine.ForeignObjectError:
        raise
    except NotTrueError as error:
        job.actions.warning("An earlier backup cannot be proven", f"{names.key} stays where it is: {error.what}")
        job.say(f"{names.key} cannot be proven: {error.what}")
        return None
    return engine.conclude(it, names, pending, stored, seconds)


def _take(job: Job[Settings], bucket: Bucket, url: DatabaseUrl, names: Names) -> Manifest:
    from azora_ci.backup import engine
    from azora_ci.postgres import find_binary

    server = _preflight(job, url)
    it = _wiring(job, bucket, server.size_bytes)

    def stored(location: str) -> None:
        job.evidence["unproven"] = location
        job.say(f"stored {location}, not proven yet")

    return engine.take(it, names, engine.Origin(url, server, find_binary("pg_dump", server.major)), stored)


def _preflight(job: Job[Settings], url: DatabaseUrl) -> ServerFacts:
    """Return what the production server says, or refuse before the first byte."""
    from azora_ci.backup import source
    from azora_ci.postgres import find_binary

    if url.ignored:
        job.say(f"PROD_DATABASE_URL: libpq does not know {', '.join(url.ignored)}: left out")
    server = source.facts(url)
    why = url.pooler_hint or ("the session's process id is not the server's" if server.through_pooler else None)
    if why is not None:
        raise BadInputError(
            "PROD_DATABASE_URL leads to a connection pooler",
            what=f"{why}; a snapshot cannot be shared between sessions there",
            where="PROD_DATABASE_URL",
            next_step="use the server's direct address (Prisma calls it directUrl)",
        )
    job.say(f"{url.location}: PostgreSQL {server.version}, {server.encoding}, {server.size_bytes / GIB:.3f} GiB")
    job.say(f"using {find_binary('pg_dump', server.major)} and {find_binary('psql', server.major)}")
    return server


def _wiring(job: Job[Settings], bucket: Bucket, size_bytes: int) -> Wiring:
    from azora_ci.backup.workshop import Wiring, verify_server

    settings = job.settings
    depth, reason = _depth(settings, size_bytes)
    job.say(f"proof: {depth}" + (f" ({reason})" if reason else ""))
    return Wiring(
        bucket=bucket,
        backup=job.config.backup,
        processes=job.processes,
        clock=job.clock,
        identity={
            "deployment_id": settings.deployment_id,
            "version": settings.version,
            "git_sha": settings.git_sha,
            "environment": settings.deploy_environment,
        },
        depth=depth,
        reason=reason,
        level=settings.compression,
        limit_seconds=settings.snapshot_max_minutes * 60,
        verify_url=verify_server(settings, job.processes),
        scratch_dir=settings.scratch_dir,
    )


def _depth(settings: Settings, size_bytes: int) -> tuple[str, str | None]:
    """Return how deep the proof goes, and why when it is less than full."""
    if settings.proof is not None:
        return settings.proof, settings.proof_reason
    if size_bytes <= settings.full_proof_max_gib * GIB:
        return "full", settings.proof_reason
    why = f"the database has {size_bytes / GIB:.1f} GiB, above BACKUP_FULL_PROOF_MAX_GIB ({settings.full_proof_max_gib:g})"
    return "counts", settings.proof_reason or why


def _report(job: Job[Settings], found: Manifest, *, reused: bool) -> None:
    """Leave the evidence, the outputs and the summary. ``found`` was read from, or just written to, the bucket."""
    job.evidence.pop("unproven", None)
    job.evidence.update(found.evidence())
    job.evidence["reused"] = reused
    it, proof = job.evidence, job.evidence["proof"]
    if not reused and proof["depth"] != "none":
        compared = "row by row" if proof["depth"] == "full" else "by row counts"
        job.tick(
            f"backup restored and compared {compared}: {it['tables']} tables, {it['rows']:,} rows, in {proof['restore_seconds']:.1f} s"
        )
        job.tick(f"stored object read back, SHA-256 {it['sha256']}")
    job.actions.output("backup-id", it["backup_id"])
    job.actions.output("location", it["location"])
    restored = f"restored in {proof['restore_seconds']:.1f} s" if proof["restore_seconds"] is not None else "not restored"
    reason = f", {proof['reason']}" if proof["reason"] else ""
    rows = [
        ("Location", code(it["location"])),
        ("Version", code(it["version_id"])),
        ("Snapshot", it["timestamp"]),
        ("Size", f"{it['size_bytes']:,} bytes ({it['raw_bytes']:,} of SQL)"),
        ("Tables, rows", f"{it['tables']}, {it['rows']:,}"),
        ("SHA-256", code(it["sha256"])),
        ("Proof", f"{proof['depth']}, {restored}{reason}"),
        ("Locked until", it["lock_until"] or "no Object Lock"),
    ]
    job.actions.summary(f"### Backup {it['backup_id']}{' (recognised)' if reused else ''}\n\n{table(('', ''), rows)}")
