"""Takes a backup and proves it; proves a stored one again. What follows what, with the details elsewhere."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from azora_ci.backup import catalog, proof
from azora_ci.backup import manifest as documents
from azora_ci.backup.copy_stream import TableData
from azora_ci.backup.dump import Dumped, DumpPlan, dump
from azora_ci.backup.progress import Meter
from azora_ci.backup.restore import Account, Restore
from azora_ci.backup.source import Counter, ServerFacts, Snapshot, facts_of
from azora_ci.backup.workshop import Background, Bench, Followers, Wiring, follow, workbench
from azora_ci.clock import rfc3339
from azora_ci.errors import BadInputError, NotTrueError
from azora_ci.postgres import DatabaseUrl, version_text
from azora_ci.s3 import AlreadyThereError

if TYPE_CHECKING:
    from azora_ci.s3 import StoredObject
    from azora_ci.s3_upload import MultipartUpload

PART_BYTES = 5 * 1024 * 1024  # the smallest that S3 takes: three of them are most of our memory
SNAPSHOT_WAIT_SECONDS = 300.0  # for a safe snapshot; long serializable writers delay it


class ForeignObjectError(NotTrueError):
    """The object under our key is not the one that our documents describe."""


# --- a new backup -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """What is backed up, and with which pg_dump."""

    url: DatabaseUrl
    server: ServerFacts
    pg_dump: Path


def take(it: Wiring, names: documents.Names, origin: Origin, stored_hook: Callable[[str], None]) -> documents.Manifest:
    """Dump, upload, restore and compare; return the manifest. ``stored_hook`` is told the location once the object is there.

    Raises the errors of each part. Until the upload is completed nothing is visible in the bucket; afterwards an unproven
    backup stays there, without a manifest.
    """
    with workbench(it, origin.server, names.backup_id) as bench, follow(it, bench, account=it.depth == "full") as followers:
        with _upload(it, names) as upload, bench.spool.open("r+b", buffering=0) as spool:
            pending, expected = _dump(it, names, origin, (upload, spool), followers)
            with it.phase("complete"):
                upload.finish()
                _claim(it, names, pending)
                stored = upload.complete()
        stored_hook(pending["location"])
        return _prove_new(it, names, bench, followers, (pending, expected, stored))


def _upload(it: Wiring, names: documents.Names) -> MultipartUpload:
    backup = it.backup
    return it.bucket.multipart(
        names.key,
        content_type=documents.GZIP_TYPE,
        lock_days=backup.lock_days,
        lock_mode=backup.lock_mode,
        part_size=PART_BYTES,
        in_flight=2,
    )


@dataclass(frozen=True)
class Expected:
    """What the restored database is compared with: rows (and hashes) of the dump, the snapshot's catalog."""

    tables: tuple[TableData, ...]
    catalog: catalog.Catalog


def _dump(
    it: Wiring, names: documents.Names, origin: Origin, sinks: tuple[MultipartUpload, IO[bytes]], followers: Followers
) -> tuple[dict[str, Any], Expected]:
    """Return the pending document and what a restore must match. Production's snapshot is let go of at the end."""
    server = origin.server
    with ExitStack() as stack:
        with it.phase("snapshot"):
            snapshot = stack.enter_context(Snapshot(origin.url, wait_seconds=SNAPSHOT_WAIT_SECONDS))
        counter = Counter(snapshot, origin.url, timeout_seconds=it.limit_seconds)
        stack.callback(counter.cancel)
        if it.depth != "none":
            counter.start()
        plan = DumpPlan(origin.pg_dump, origin.url, snapshot.id, it.level, it.limit_seconds)
        meter = Meter("dump", clock=it.clock, expected=server.size_bytes, tables=len(snapshot.catalog.tables))
        with it.phase("dump"), it.progress(meter), _disk_errors(followers):
            dumped = dump(plan, it.processes, *sinks, meter)
        with it.phase("counts"):
            counts = counter.result()
    objects = None
    if followers.accountant is not None:
        with it.phase("account"):
            account = followers.accountant.finish(dumped.size_bytes)
        dumped, objects = replace(dumped, tables=account.tables), account.objects
    if it.depth != "none":
        proof.require_none(proof.count_findings(dumped.tables, counts, server.encoding))
    pending = _pending(it, names, origin, snapshot, dumped)
    pending["compressed"]["crc32"] = sinks[0].checksum
    pending["large_objects_hash"] = objects
    return pending, Expected(dumped.tables, snapshot.catalog)


@contextmanager
def _disk_errors(followers: Followers) -> Iterator[None]:
    """Say what a full disk means."""
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


def _pending(it: Wiring, names: documents.Names, origin: Origin, snapshot: Snapshot, dumped: Dumped) -> dict[str, Any]:
    encoding = origin.server.encoding
    return {
        "schema_version": documents.SCHEMA_VERSION,
        "backup_id": names.backup_id,
        **it.identity,
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
        "location": it.bucket.url(names.key),
    }


def _claim(it: Wiring, names: documents.Names, pending: dict[str, Any]) -> None:
    """Write the pending document: it is also the claim on this attempt's key."""
    try:
        documents.write_once(it.bucket, names.pending_key, pending, "backup-pending", it.backup, lock=False)
    except AlreadyThereError as error:
        raise NotTrueError(
            "Another run is making this backup",
            what=f"{names.pending_key} appeared while this run was dumping: {error.existing.describe()}",
            where=it.bucket.url(names.pending_key),
            next_step="wait for the other run to end, then re-run this job: it recognises the proven backup",
        ) from None


def _prove_new(
    it: Wiring,
    names: documents.Names,
    bench: Bench,
    followers: Followers,
    made: tuple[dict[str, Any], Expected, StoredObject],
) -> documents.Manifest:
    pending, expected, stored = made
    size, sha256 = pending["compressed"]["bytes"], pending["compressed"]["sha256"]
    restore_seconds = None
    if followers.restore is not None and bench.database is not None:
        reading = Background(lambda: _read_back(it, stored, sha256))
        restore_seconds = _finish_restore(it, followers.restore, size)
        seen = _compare(it, bench.database, pending, expected.tables)
        proof.require_none(catalog.differences(expected.catalog, seen))
        reading.result()
    return conclude(it, names, pending, stored, restore_seconds)


def _read_back(it: Wiring, stored: StoredObject, sha256: str) -> None:
    with it.phase("read_back"):
        proof.read_back(it.bucket, stored, sha256)


def _finish_restore(it: Wiring, restore: Restore, size: int) -> float:
    with it.phase("restore_after_dump"):
        seconds = restore.finish(size)
    it.seconds["restore"] = round(seconds, 3)
    it.processes.say(f"restored in {seconds:.1f} s")
    return seconds


def _compare(it: Wiring, database: DatabaseUrl, document: Mapping[str, Any], tables: tuple[TableData, ...]) -> catalog.Catalog:
    """Compare every restored table with the dump's and return the restored catalog. Raises NotTrueError."""
    encoding = document["server"]["encoding"]
    meter = Meter("compare", clock=it.clock, expected=document["raw"]["bytes"] if it.depth == "full" else 0, tables=len(tables))
    with it.phase("compare"), it.progress(meter):
        seen, restored = proof.restored_tables(database, encoding, tables, meter)
    by_name = {(table.schema, table.name): table for table in restored}
    findings = proof.table_findings(tables, by_name, encoding)
    for line in findings:
        it.processes.say(f"✗ {line}")
    if document["large_objects_hash"] is not None and it.depth == "full":
        objects = proof.restored_objects(database)
        if objects != document["large_objects_hash"]:
            findings.append(f"large objects: the content differs ({document['large_objects_hash']} in the dump, {objects} restored)")
    proof.require_none(findings)
    return seen


def conclude(
    it: Wiring, names: documents.Names, pending: dict[str, Any], stored: StoredObject, restore_seconds: float | None
) -> documents.Manifest:
    """Write the manifest, last and once, and return it."""
    moment = rfc3339(it.clock.now())
    document = {
        **pending,
        "version_id": stored.version_id,
        "lock_until": rfc3339(stored.lock_until) if stored.lock_until else None,
        "encryption": stored.encryption,
        "proof": {
            "depth": it.depth,
            "restore_seconds": None if restore_seconds is None else round(restore_seconds, 3),
            "verified_at": moment,
            "reason": it.reason,
            "where": it.where,
        },
        "seconds": dict(it.seconds),
        "created_at": moment,
    }
    sha256 = documents.write_once(it.bucket, names.manifest_key, document, "backup-manifest", it.backup, lock=True)
    return documents.Manifest(document, names.manifest_key, sha256)


# --- a stored backup ----------------------------------------------------------------------------------------------------


def prove_stored(it: Wiring, document: Mapping[str, Any], stored: StoredObject, *, overlapping: bool = True) -> float | None:
    """Restore a stored backup and compare it with its document; return the seconds of the restore (None: depth none).

    ``overlapping`` False does one thing after the other, for those who want to know what that costs. Raises
    ForeignObjectError when the object's bytes are not those of the document, NotTrueError when it does not restore to what
    the document says.
    """
    server = facts_of(dict(document["server"]))
    with workbench(it, server, f"drill-{document['backup_id']}") as bench, ExitStack() as stack:
        if overlapping:
            followers = stack.enter_context(follow(it, bench, account=True))
        bench.spool.touch(mode=0o600)
        with it.phase("read_back"):
            _fetch(it, document, stored, bench.spool)
        if not overlapping:
            with follow(it, replace(bench, scratch=None), account=True) as counting:
                account = _account(counting, document, stored)
            followers = stack.enter_context(follow(it, bench, account=False))
        else:
            account = _account(followers, document, stored)
        if followers.restore is None or bench.database is None:
            return None
        seconds = _finish_restore(it, followers.restore, stored.size)
        seen = _compare(it, bench.database, document, account.tables)
        proof.require_none(documents.catalog_findings(document["catalog"], seen))
        return seconds


def _account(followers: Followers, document: Mapping[str, Any], stored: StoredObject) -> Account:
    """Return the account of the spool, which must be the one in the document. Raises NotTrueError."""
    assert followers.accountant is not None  # noqa: S101 - asked for
    account = followers.accountant.finish(stored.size)
    recorded = {one["name"]: one for one in document["tables"]}
    encoding, sha256 = document["server"]["encoding"], document["raw"]["sha256"]
    proof.require_none(proof.account_findings(recorded, account.tables, encoding, sha256, account.raw_sha256))
    return account


def _fetch(it: Wiring, document: Mapping[str, Any], stored: StoredObject, spool: Path) -> None:
    import hashlib

    digest = hashlib.sha256()
    meter = Meter("read", clock=it.clock, expected=stored.size)
    with spool.open("r+b", buffering=0) as file, it.progress(meter):
        for piece in it.bucket.stream(stored.key, stored.version_id):
            file.write(piece)
            digest.update(piece)
            meter.done += len(piece)
    if digest.hexdigest() != document["compressed"]["sha256"]:
        from azora_ci.s3_upload import TOKEN

        ours = TOKEN in dict(stored.metadata)  # a run of this job wrote it, and the store did not keep what was sent
        kind = NotTrueError if ours else ForeignObjectError
        raise kind(
            "The stored backup is damaged" if ours else "Another object is under the backup's key",
            what=f"its SHA-256 is {digest.hexdigest()}, the document written before it says {document['compressed']['sha256']}; it is "
            f"{stored.describe()}",
            where=it.bucket.url(stored.key),
            next_step="nothing was overwritten; check the store and its logs, then re-run the job (a foreign object: deploy anew)",
        )
