"""The order of the steps that make and prove a backup, or prove a stored backup again; other modules hold the details."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from azora_ci.clients.s3.objects import AlreadyThereError
from azora_ci.core.clock import rfc3339
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.database.backup import catalog, proof
from azora_ci.database.backup import manifest as documents
from azora_ci.database.backup.copy_stream import TableData
from azora_ci.database.backup.dump import Dumped, DumpPlan, dump
from azora_ci.database.backup.progress import Meter
from azora_ci.database.backup.restore import Account, Restore
from azora_ci.database.backup.setup import Background, BackupContext, Followers, ScratchSpace, follow, workbench
from azora_ci.database.backup.source import Counter, Snapshot
from azora_ci.database.postgres import DatabaseUrl, version_text
from azora_ci.database.scratch import carry_properties
from azora_ci.database.server import ServerFacts, facts_of_document

if TYPE_CHECKING:
    from azora_ci.clients.s3.objects import StoredObject
    from azora_ci.clients.s3.upload import MultipartUpload

PART_BYTES = 5 * 1024 * 1024  # the smallest that S3 accepts: three of them are most of this process's memory
SNAPSHOT_WAIT_SECONDS = 300.0  # for a safe snapshot; long serializable transactions that write delay it


class ForeignObjectError(NotTrueError):
    """The object under the backup's key is not the object that its documents describe."""


# --- a new backup -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """The database to back up and the pg_dump program to use."""

    url: DatabaseUrl
    server: ServerFacts
    pg_dump: Path


def take(context: BackupContext, names: documents.Names, origin: Origin, stored_hook: Callable[[str], None]) -> documents.Manifest:
    """Dump, upload, restore and compare; return the manifest. ``stored_hook`` is called with the location of the complete object.

    Raises the errors of each step. Until the upload is completed nothing is visible in the bucket; if a later step fails, an
    unproven backup stays there without a manifest.
    """
    with workbench(context, origin.server, names.backup_id) as bench, follow(context, bench, account=context.depth == "full") as followers:
        spool_path = Path(os.devnull) if context.depth == "none" else bench.spool  # nobody follows it then
        with _new_upload(context, names) as upload, spool_path.open("r+b", buffering=0) as spool:
            pending, expected = _dump_database(context, names, origin, (upload, spool), followers)
            with context.phase("complete"):
                upload.finish()
                _write_pending(context, names, pending)
                stored = upload.complete()
        stored_hook(pending["location"])
        proven = _prove_new(context, names, bench, followers, (pending, expected, stored))
        _lend_copy(context, bench, origin.server)
        return proven


def _new_upload(context: BackupContext, names: documents.Names) -> MultipartUpload:
    backup = context.backup
    return context.bucket.multipart(
        names.key,
        content_type=documents.GZIP_TYPE,
        lock_days=backup.lock_days,
        lock_mode=backup.lock_mode,
        part_size=PART_BYTES,
        in_flight=2,
    )


@dataclass(frozen=True)
class ExpectedContent:
    """The expected state of the restored database: row counts (and hashes) of the dump, the snapshot's catalog."""

    tables: tuple[TableData, ...]
    catalog: catalog.Catalog


def _dump_database(
    context: BackupContext, names: documents.Names, origin: Origin, sinks: tuple[MultipartUpload, IO[bytes]], followers: Followers
) -> tuple[dict[str, Any], ExpectedContent]:
    """Return the pending document and the state that a restore must match. Releases production's snapshot at the end."""
    server = origin.server
    with ExitStack() as stack:
        with context.phase("snapshot"):
            snapshot = stack.enter_context(Snapshot(origin.url, wait_seconds=SNAPSHOT_WAIT_SECONDS))
        counter = Counter(snapshot, origin.url, timeout_seconds=context.limit_seconds)
        stack.callback(counter.cancel)
        if context.depth != "none":
            counter.start()
        plan = DumpPlan(origin.pg_dump, origin.url, server.encoding, snapshot.id, context.level, context.limit_seconds)
        meter = Meter("dump", clock=context.clock, expected=server.size_bytes, tables=len(snapshot.catalog.tables))
        with context.phase("dump"), context.progress(meter), _disk_errors(followers):
            dumped = dump(plan, context.processes, *sinks, meter)
        with context.phase("counts"):
            counts = counter.result()
    objects = None
    if followers.accountant is not None:
        with context.phase("account"):
            account = followers.accountant.finish(dumped.size_bytes)
        dumped, objects = replace(dumped, tables=account.tables), account.objects
    if context.depth != "none":
        proof.require_none(proof.count_findings(dumped.tables, counts, server.encoding))
    pending = _pending_document(context, names, origin, snapshot, dumped)
    pending["compressed"]["crc32"] = sinks[0].checksum
    pending["large_objects_hash"] = objects
    return pending, ExpectedContent(dumped.tables, snapshot.catalog)


@contextmanager
def _disk_errors(followers: Followers) -> Iterator[None]:
    """Turn the OSError of a full disk into BadInputError, and stop the followers."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        followers.abandon()
        raise BadInputError(
            "The disk for the spool is full",
            what=str(error),
            where="BACKUP_SCRATCH_DIR",
            next_step="use a larger disk, or set BACKUP_VERIFY_DATABASE_URL; nothing was published",
        ) from error


def _pending_document(context: BackupContext, names: documents.Names, origin: Origin, snapshot: Snapshot, dumped: Dumped) -> dict[str, Any]:
    encoding = origin.server.encoding
    return {
        "schema_version": documents.SCHEMA_VERSION,
        "backup_id": names.backup_id,
        **context.identity,
        "signed_by": context.backup.signing,
        "server": documents.server_document(origin.server),
        "client_version": version_text(origin.pg_dump),
        "snapshot": {"time": snapshot.time, "lsn": snapshot.lsn, "isolation": snapshot.isolation},
        "catalog": documents.catalog_document(snapshot.catalog),
        "tables": [
            {"name": catalog.display_name(proof.text_name(table, encoding)), "rows": table.rows, "hash": table.hash}
            for table in dumped.tables
        ],
        "rows": dumped.rows,
        "raw": {"bytes": dumped.raw_bytes, "sha256": dumped.raw_sha256},
        "compressed": {"bytes": dumped.size_bytes, "sha256": dumped.sha256},
        "key": names.key,
        "location": context.bucket.url(names.key),
    }


def _write_pending(context: BackupContext, names: documents.Names, pending: dict[str, Any]) -> None:
    """Write the pending document, which also reserves this attempt's key. Raises NotTrueError when another run reserved it."""
    try:
        documents.write_once(context.bucket, names.pending_key, pending, "backup-pending", context.backup, lock=False)
    except AlreadyThereError as error:
        raise NotTrueError(
            "Another run is making this backup",
            what=f"{names.pending_key} appeared while this run was dumping: {error.existing.describe()}",
            where=context.bucket.url(names.pending_key),
            next_step="wait for the other run to end, then re-run this job: it recognises the proven backup",
        ) from None


def _prove_new(
    context: BackupContext,
    names: documents.Names,
    bench: ScratchSpace,
    followers: Followers,
    results: tuple[dict[str, Any], ExpectedContent, StoredObject],
) -> documents.Manifest:
    pending, expected, stored = results
    size, sha256 = pending["compressed"]["bytes"], pending["compressed"]["sha256"]
    restore_seconds = None
    if followers.restore is not None and bench.database is not None:
        download = Background(lambda: _read_back(context, stored, sha256))
        restore_seconds = _finish_restore(context, followers.restore, size)
        restored_catalog = _compare_tables(context, bench.database, pending, expected.tables)
        proof.require_none(catalog.differences(expected.catalog, restored_catalog))
        _carry_properties(context, bench, pending)
        download.result()
    elif not context.bucket.checksums:
        _read_back(context, stored, sha256)  # nobody else has checked what the store keeps
    return conclude(context, names, pending, stored, restore_seconds)


def _read_back(context: BackupContext, stored: StoredObject, sha256: str) -> None:
    with context.phase("read_back"):
        proof.read_back(context.bucket, stored, sha256)


def _finish_restore(context: BackupContext, restore: Restore, size: int) -> float:
    with context.phase("restore_after_dump"):
        seconds = restore.finish(size)
    context.seconds["restore"] = round(seconds, 3)
    context.processes.log.say(f"restored in {seconds:.1f} s")
    return seconds


def _compare_tables(
    context: BackupContext, database: DatabaseUrl, document: Mapping[str, Any], tables: tuple[TableData, ...]
) -> catalog.Catalog:
    """Compare every restored table with the dump's and return the restored catalog. Raises NotTrueError."""
    encoding = document["server"]["encoding"]
    meter = Meter("compare", clock=context.clock, expected=document["raw"]["bytes"] if context.depth == "full" else 0, tables=len(tables))
    with context.phase("compare"), context.progress(meter):
        restored_catalog, restored = proof.restored_tables(database, encoding, tables, meter)
    by_name = {(table.schema, table.name): table for table in restored}
    findings = proof.table_findings(tables, by_name, encoding)
    for line in findings:
        context.processes.log.say(f"✗ {line}")
    if document["large_objects_hash"] is not None and context.depth == "full":
        objects = proof.restored_objects(database)
        if objects != document["large_objects_hash"]:
            findings.append(f"large objects: the content differs ({document['large_objects_hash']} in the dump, {objects} restored)")
    proof.require_none(findings)
    return restored_catalog


def _carry_properties(context: BackupContext, bench: ScratchSpace, document: Mapping[str, Any]) -> None:
    """Give the restored database what no dump holds of it, and say what cannot be reproduced there: it is proven for nothing then."""
    assert bench.scratch is not None and bench.database is not None  # noqa: S101 - the callers restored into it
    production = facts_of_document(dict(document["server"]))
    with context.phase("properties"):
        context.unreproduced = carry_properties(bench.scratch, bench.database.database, production)
    if context.unreproduced:
        lines = "\n".join(context.unreproduced)
        context.processes.log.annotate("The scratch server is not like production", f"The rows are proven. Not reproduced there:\n{lines}")


def _lend_copy(context: BackupContext, bench: ScratchSpace, production: ServerFacts) -> None:
    """Let the caller use the proven copy: whatever happens to it then says nothing of the backup."""
    if context.use_copy is not None and bench.scratch is not None and bench.scratch.private and bench.database is not None:
        context.use_copy(bench.scratch, bench.database, production)


def conclude(
    context: BackupContext, names: documents.Names, pending: dict[str, Any], stored: StoredObject, restore_seconds: float | None
) -> documents.Manifest:
    """Write the manifest, the last document of a proven backup, and return it. Raises AlreadyThereError."""
    verified_at = rfc3339(context.clock.now())
    document = {
        **pending,
        "version_id": stored.version_id,
        "lock_until": rfc3339(stored.lock_until) if stored.lock_until else None,
        "encryption": stored.encryption,
        "proof": {
            "depth": context.depth,
            "restore_seconds": None if restore_seconds is None else round(restore_seconds, 3),
            "verified_at": verified_at,
            "reason": context.reason,
            "where": context.where,
            "unreproduced": list(context.unreproduced),
        },
        "seconds": dict(context.seconds),
        "created_at": verified_at,
    }
    sha256 = documents.write_once(context.bucket, names.manifest_key, document, "backup-manifest", context.backup, lock=True)
    return documents.Manifest(document, names.manifest_key, sha256)


# --- a stored backup ----------------------------------------------------------------------------------------------------


def prove_stored(context: BackupContext, document: Mapping[str, Any], stored: StoredObject, *, overlapping: bool = True) -> float | None:
    """Restore a stored backup and compare it with its document; return the seconds of the restore (None: depth none).

    ``overlapping`` False does download, count and restore one after another, so that a benchmark can measure the difference.
    Raises ForeignObjectError when the object's SHA-256 is not the document's, NotTrueError when the restored database differs
    from the document.
    """
    server = facts_of_document(dict(document["server"]))
    with workbench(context, server, f"drill-{document['backup_id']}") as bench, ExitStack() as stack:
        if overlapping:
            followers = stack.enter_context(follow(context, bench, account=True))
        bench.spool.touch(mode=0o600)
        with context.phase("read_back"):
            _download(context, document, stored, bench.spool)
        if not overlapping:
            with follow(context, replace(bench, scratch=None), account=True) as counters:
                account = _require_recorded_rows(counters, document, stored)
            followers = stack.enter_context(follow(context, bench, account=False))
        else:
            account = _require_recorded_rows(followers, document, stored)
        if followers.restore is None or bench.database is None:
            return None
        seconds = _finish_restore(context, followers.restore, stored.size)
        restored_catalog = _compare_tables(context, bench.database, document, account.tables)
        proof.require_none(documents.catalog_findings(document["catalog"], restored_catalog))
        _carry_properties(context, bench, document)
        _lend_copy(context, bench, server)
        return seconds


def _require_recorded_rows(followers: Followers, document: Mapping[str, Any], stored: StoredObject) -> Account:
    """Return the account of the spool. Raises NotTrueError when it differs from the document."""
    assert followers.accountant is not None  # noqa: S101 - the callers start an accountant
    account = followers.accountant.finish(stored.size)
    recorded = {table["name"]: table for table in document["tables"]}
    encoding, sha256 = document["server"]["encoding"], document["raw"]["sha256"]
    proof.require_none(proof.account_findings(recorded, account.tables, encoding, sha256, account.raw_sha256))
    return account


def _download(context: BackupContext, document: Mapping[str, Any], stored: StoredObject, spool: Path) -> None:
    import hashlib

    digest = hashlib.sha256()
    meter = Meter("read", clock=context.clock, expected=stored.size)
    with spool.open("r+b", buffering=0) as file, context.progress(meter):
        for piece in context.bucket.stream(stored.key, stored.version_id):
            file.write(piece)
            digest.update(piece)
            meter.done += len(piece)
    if digest.hexdigest() != document["compressed"]["sha256"]:
        from azora_ci.clients.s3.upload import TOKEN

        is_own = TOKEN in dict(stored.metadata)  # a run of this job wrote it, so the store damaged it
        error_class = NotTrueError if is_own else ForeignObjectError
        raise error_class(
            "The stored backup is damaged" if is_own else "Another object is under the backup's key",
            what=f"its SHA-256 is {digest.hexdigest()}, the document written before it says {document['compressed']['sha256']}; it is "
            f"{stored.describe()}",
            where=context.bucket.url(stored.key),
            next_step="nothing was overwritten; check the store and its logs, then re-run the job (a foreign object: deploy anew)",
        )
