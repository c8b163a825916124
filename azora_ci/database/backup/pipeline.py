"""The order of the steps that make and prove a backup, or prove a stored backup again; other modules hold the details."""

from __future__ import annotations

import errno
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
from azora_ci.database.backup.setup import Background, Bench, Followers, Wiring, follow, workbench
from azora_ci.database.backup.source import Counter, ServerFacts, Snapshot, facts_of
from azora_ci.database.postgres import DatabaseUrl, version_text

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


def take(wiring: Wiring, names: documents.Names, origin: Origin, stored_hook: Callable[[str], None]) -> documents.Manifest:
    """Dump, upload, restore and compare; return the manifest. ``stored_hook`` is called with the location of the complete object.

    Raises the errors of each step. Until the upload is completed nothing is visible in the bucket; if a later step fails, an
    unproven backup stays there without a manifest.
    """
    with workbench(wiring, origin.server, names.backup_id) as bench, follow(wiring, bench, account=wiring.depth == "full") as followers:
        with _new_upload(wiring, names) as upload, bench.spool.open("r+b", buffering=0) as spool:
            pending, expected = _dump_database(wiring, names, origin, (upload, spool), followers)
            with wiring.phase("complete"):
                upload.finish()
                _write_pending(wiring, names, pending)
                stored = upload.complete()
        stored_hook(pending["location"])
        return _prove_new(wiring, names, bench, followers, (pending, expected, stored))


def _new_upload(wiring: Wiring, names: documents.Names) -> MultipartUpload:
    backup = wiring.backup
    return wiring.bucket.multipart(
        names.key,
        content_type=documents.GZIP_TYPE,
        lock_days=backup.lock_days,
        lock_mode=backup.lock_mode,
        part_size=PART_BYTES,
        in_flight=2,
    )


@dataclass(frozen=True)
class Expected:
    """The expected state of the restored database: row counts (and hashes) of the dump, the snapshot's catalog."""

    tables: tuple[TableData, ...]
    catalog: catalog.Catalog


def _dump_database(
    wiring: Wiring, names: documents.Names, origin: Origin, sinks: tuple[MultipartUpload, IO[bytes]], followers: Followers
) -> tuple[dict[str, Any], Expected]:
    """Return the pending document and the state that a restore must match. Releases production's snapshot at the end."""
    server = origin.server
    with ExitStack() as stack:
        with wiring.phase("snapshot"):
            snapshot = stack.enter_context(Snapshot(origin.url, wait_seconds=SNAPSHOT_WAIT_SECONDS))
        counter = Counter(snapshot, origin.url, timeout_seconds=wiring.limit_seconds)
        stack.callback(counter.cancel)
        if wiring.depth != "none":
            counter.start()
        plan = DumpPlan(origin.pg_dump, origin.url, snapshot.id, wiring.level, wiring.limit_seconds)
        meter = Meter("dump", clock=wiring.clock, expected=server.size_bytes, tables=len(snapshot.catalog.tables))
        with wiring.phase("dump"), wiring.progress(meter), _disk_errors(followers):
            dumped = dump(plan, wiring.processes, *sinks, meter)
        with wiring.phase("counts"):
            counts = counter.result()
    objects = None
    if followers.accountant is not None:
        with wiring.phase("account"):
            account = followers.accountant.finish(dumped.size_bytes)
        dumped, objects = replace(dumped, tables=account.tables), account.objects
    if wiring.depth != "none":
        proof.require_none(proof.count_findings(dumped.tables, counts, server.encoding))
    pending = _pending_document(wiring, names, origin, snapshot, dumped)
    pending["compressed"]["crc32"] = sinks[0].checksum
    pending["large_objects_hash"] = objects
    return pending, Expected(dumped.tables, snapshot.catalog)


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


def _pending_document(wiring: Wiring, names: documents.Names, origin: Origin, snapshot: Snapshot, dumped: Dumped) -> dict[str, Any]:
    encoding = origin.server.encoding
    return {
        "schema_version": documents.SCHEMA_VERSION,
        "backup_id": names.backup_id,
        **wiring.identity,
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
        "location": wiring.bucket.url(names.key),
    }


def _write_pending(wiring: Wiring, names: documents.Names, pending: dict[str, Any]) -> None:
    """Write the pending document, which also reserves this attempt's key. Raises NotTrueError when another run reserved it."""
    try:
        documents.write_once(wiring.bucket, names.pending_key, pending, "backup-pending", wiring.backup, lock=False)
    except AlreadyThereError as error:
        raise NotTrueError(
            "Another run is making this backup",
            what=f"{names.pending_key} appeared while this run was dumping: {error.existing.describe()}",
            where=wiring.bucket.url(names.pending_key),
            next_step="wait for the other run to end, then re-run this job: it recognises the proven backup",
        ) from None


def _prove_new(
    wiring: Wiring,
    names: documents.Names,
    bench: Bench,
    followers: Followers,
    results: tuple[dict[str, Any], Expected, StoredObject],
) -> documents.Manifest:
    pending, expected, stored = results
    size, sha256 = pending["compressed"]["bytes"], pending["compressed"]["sha256"]
    restore_seconds = None
    if followers.restore is not None and bench.database is not None:
        download = Background(lambda: _read_back(wiring, stored, sha256))
        restore_seconds = _finish_restore(wiring, followers.restore, size)
        restored_catalog = _compare_tables(wiring, bench.database, pending, expected.tables)
        proof.require_none(catalog.differences(expected.catalog, restored_catalog))
        download.result()
    return conclude(wiring, names, pending, stored, restore_seconds)


def _read_back(wiring: Wiring, stored: StoredObject, sha256: str) -> None:
    with wiring.phase("read_back"):
        proof.read_back(wiring.bucket, stored, sha256)


def _finish_restore(wiring: Wiring, restore: Restore, size: int) -> float:
    with wiring.phase("restore_after_dump"):
        seconds = restore.finish(size)
    wiring.seconds["restore"] = round(seconds, 3)
    wiring.processes.say(f"restored in {seconds:.1f} s")
    return seconds


def _compare_tables(wiring: Wiring, database: DatabaseUrl, document: Mapping[str, Any], tables: tuple[TableData, ...]) -> catalog.Catalog:
    """Compare every restored table with the dump's and return the restored catalog. Raises NotTrueError."""
    encoding = document["server"]["encoding"]
    meter = Meter("compare", clock=wiring.clock, expected=document["raw"]["bytes"] if wiring.depth == "full" else 0, tables=len(tables))
    with wiring.phase("compare"), wiring.progress(meter):
        restored_catalog, restored = proof.restored_tables(database, encoding, tables, meter)
    by_name = {(table.schema, table.name): table for table in restored}
    findings = proof.table_findings(tables, by_name, encoding)
    for line in findings:
        wiring.processes.say(f"✗ {line}")
    if document["large_objects_hash"] is not None and wiring.depth == "full":
        objects = proof.restored_objects(database)
        if objects != document["large_objects_hash"]:
            findings.append(f"large objects: the content differs ({document['large_objects_hash']} in the dump, {objects} restored)")
    proof.require_none(findings)
    return restored_catalog


def conclude(
    wiring: Wiring, names: documents.Names, pending: dict[str, Any], stored: StoredObject, restore_seconds: float | None
) -> documents.Manifest:
    """Write the manifest, the last document of a proven backup, and return it. Raises AlreadyThereError."""
    verified_at = rfc3339(wiring.clock.now())
    document = {
        **pending,
        "version_id": stored.version_id,
        "lock_until": rfc3339(stored.lock_until) if stored.lock_until else None,
        "encryption": stored.encryption,
        "proof": {
            "depth": wiring.depth,
            "restore_seconds": None if restore_seconds is None else round(restore_seconds, 3),
            "verified_at": verified_at,
            "reason": wiring.reason,
            "where": wiring.where,
        },
        "seconds": dict(wiring.seconds),
        "created_at": verified_at,
    }
    sha256 = documents.write_once(wiring.bucket, names.manifest_key, document, "backup-manifest", wiring.backup, lock=True)
    return documents.Manifest(document, names.manifest_key, sha256)


# --- a stored backup ----------------------------------------------------------------------------------------------------


def prove_stored(wiring: Wiring, document: Mapping[str, Any], stored: StoredObject, *, overlapping: bool = True) -> float | None:
    """Restore a stored backup and compare it with its document; return the seconds of the restore (None: depth none).

    ``overlapping`` False does download, count and restore one after another, so that a benchmark can measure the difference.
    Raises ForeignObjectError when the object's SHA-256 is not the document's, NotTrueError when the restored database differs
    from the document.
    """
    server = facts_of(dict(document["server"]))
    with workbench(wiring, server, f"drill-{document['backup_id']}") as bench, ExitStack() as stack:
        if overlapping:
            followers = stack.enter_context(follow(wiring, bench, account=True))
        bench.spool.touch(mode=0o600)
        with wiring.phase("read_back"):
            _download(wiring, document, stored, bench.spool)
        if not overlapping:
            with follow(wiring, replace(bench, scratch=None), account=True) as counters:
                account = _require_recorded_rows(counters, document, stored)
            followers = stack.enter_context(follow(wiring, bench, account=False))
        else:
            account = _require_recorded_rows(followers, document, stored)
        if followers.restore is None or bench.database is None:
            return None
        seconds = _finish_restore(wiring, followers.restore, stored.size)
        restored_catalog = _compare_tables(wiring, bench.database, document, account.tables)
        proof.require_none(documents.catalog_findings(document["catalog"], restored_catalog))
        return seconds


def _require_recorded_rows(followers: Followers, document: Mapping[str, Any], stored: StoredObject) -> Account:
    """Return the account of the spool. Raises NotTrueError when it differs from the document."""
    assert followers.accountant is not None  # noqa: S101 - the callers start an accountant
    account = followers.accountant.finish(stored.size)
    recorded = {table["name"]: table for table in document["tables"]}
    encoding, sha256 = document["server"]["encoding"], document["raw"]["sha256"]
    proof.require_none(proof.account_findings(recorded, account.tables, encoding, sha256, account.raw_sha256))
    return account


def _download(wiring: Wiring, document: Mapping[str, Any], stored: StoredObject, spool: Path) -> None:
    import hashlib

    digest = hashlib.sha256()
    meter = Meter("read", clock=wiring.clock, expected=stored.size)
    with spool.open("r+b", buffering=0) as file, wiring.progress(meter):
        for piece in wiring.bucket.stream(stored.key, stored.version_id):
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
            where=wiring.bucket.url(stored.key),
            next_step="nothing was overwritten; check the store and its logs, then re-run the job (a foreign object: deploy anew)",
        )
