"""The documents beside a backup: ``pending`` before its upload is completed, ``manifest`` as the last write, never replaced.

Names below the backup's location, for attempt 1 and attempt N of a deployment id:
``backup-<id>.sql.gz`` and ``backup-<id>-attempt-N.sql.gz``, each with ``.pending.json`` and ``.manifest.json`` for ``.sql.gz``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azora_ci.clients.signing.signatures import Signatures
from azora_ci.core import schemas
from azora_ci.core.documents import MEBIBYTE, Limits, read_json
from azora_ci.core.errors import NotTrueError
from azora_ci.database.backup import catalog
from azora_ci.database.server import ServerFacts

if TYPE_CHECKING:
    from azora_ci.clients.s3.bucket import Bucket
    from azora_ci.clients.s3.objects import StoredObject
    from azora_ci.core.config import BackupSettings

SCHEMA_VERSION = 1
LIMITS = Limits(size=32 * MEBIBYTE, values=1_000_000)  # of a document: it has an entry per table
JSON_TYPE = "application/json"
GZIP_TYPE = "application/gzip"
HANDED_OVER = "backup-manifest.json"  # name in the artifact of database-backup: the exact bytes of the verified manifest
_NAME = re.compile(r"backup-([1-9][0-9]{0,11}-[0-9a-f]{6})(?:-attempt-([1-9][0-9]{0,5}))?(\.sql\.gz|\.pending\.json|\.manifest\.json)")


@dataclass(frozen=True)
class Names:
    """Keys of one attempt's three objects."""

    backup: BackupSettings
    deployment_id: str
    attempt: int = 1

    @property
    def backup_id(self) -> str:
        """Return ``backup-<id>`` or ``backup-<id>-attempt-N``."""
        return f"backup-{self.deployment_id}" + (f"-attempt-{self.attempt}" if self.attempt > 1 else "")

    @property
    def key(self) -> str:
        """Return the key of the backup itself."""
        return self.backup.key(f"{self.backup_id}.sql.gz")

    @property
    def pending_key(self) -> str:
        """Return the key of the pending document."""
        return self.backup.key(f"{self.backup_id}.pending.json")

    @property
    def manifest_key(self) -> str:
        """Return the key of the manifest."""
        return self.backup.key(f"{self.backup_id}.manifest.json")


@dataclass
class Attempt:
    """The objects of one attempt in the bucket, as a listing describes them, by suffix."""

    names: Names
    objects: dict[str, StoredObject] = field(default_factory=dict)

    @property
    def has_backup(self) -> bool:
        """Return whether the backup itself is in the bucket."""
        return ".sql.gz" in self.objects

    @property
    def has_pending(self) -> bool:
        """Return whether the pending document is in the bucket."""
        return ".pending.json" in self.objects

    @property
    def has_manifest(self) -> bool:
        """Return whether the manifest is in the bucket."""
        return ".manifest.json" in self.objects


def attempts(bucket: Bucket, backup: BackupSettings, deployment_id: str | None = None) -> list[Attempt]:
    """Return the attempts in the bucket, of one deployment or of all, oldest deployment and attempt first."""
    prefix = backup.key(f"backup-{deployment_id or ''}")
    by_identity: dict[tuple[str, int], Attempt] = {}
    for stored in bucket.list(prefix):
        matched = _NAME.fullmatch(stored.key.removeprefix(backup.key("")))
        if matched and deployment_id in {None, matched[1]}:
            identity = (matched[1], int(matched[2] or 1))
            by_identity.setdefault(identity, Attempt(Names(backup, *identity))).objects[matched[3]] = stored
    return [by_identity[identity] for identity in sorted(by_identity, key=lambda identity: (int(identity[0].split("-")[0]), *identity))]


@dataclass(frozen=True)
class Manifest:
    """A manifest as it is stored: its document, key and SHA-256."""

    document: dict[str, Any]
    key: str
    sha256: str

    @property
    def backup_id(self) -> str:
        """Return the id of the backup."""
        return str(self.document["backup_id"])

    @property
    def snapshot_time(self) -> str:
        """Return when the snapshot was taken, RFC 3339."""
        return str(self.document["snapshot"]["time"])

    @property
    def depth(self) -> str:
        """Return full, counts or none."""
        return str(self.document["proof"]["depth"])

    def evidence(self) -> dict[str, Any]:
        """Return the keys that every job's evidence about a backup shares."""
        document = self.document
        proof = {name: document["proof"][name] for name in ("depth", "restore_seconds", "verified_at", "reason")}
        return {
            "backup_id": document["backup_id"],
            "location": document["location"],
            "key": document["key"],
            "version_id": document["version_id"],
            "timestamp": document["snapshot"]["time"],
            "manifest_key": self.key,
            "manifest_sha256": self.sha256,
            "sha256": document["compressed"]["sha256"],
            "size_bytes": document["compressed"]["bytes"],
            "raw_bytes": document["raw"]["bytes"],
            "tables": len(document["tables"]),
            "rows": document["rows"],
            "proof": proof,
            "lock_until": document["lock_until"],
            "seconds": document["seconds"],
            "server_version": document["server"]["version"],
        }


def read(bucket: Bucket, names: Names) -> Manifest:
    """Return a stored manifest, validated.

    Raises BadInputError when it is absent or does not match its schema, NotTrueError when it is not signed as the configuration says.
    """
    data = bucket.read(names.manifest_key, most=LIMITS.size)
    Signatures.of(bucket, names.backup.signing).require(names.manifest_key, data)
    document = schemas.read(data, "backup-manifest", where=bucket.url(names.manifest_key), limits=LIMITS)
    return Manifest(document, names.manifest_key, hashlib.sha256(data).hexdigest())


def hand_over(bucket: Bucket, manifest: Manifest, folder: Path) -> None:
    """Write the exact bytes of a stored manifest into a folder, for jobs that cannot read the bucket. Raises NotTrueError for others."""
    data = bucket.read(manifest.key, most=LIMITS.size)
    _require_sha256(data, manifest.sha256, bucket.url(manifest.key))
    (folder / HANDED_OVER).write_bytes(data)


def read_handed_over(folder: Path, sha256: str) -> Manifest:
    """Return the manifest that ``hand_over`` wrote into the artifact in ``folder``. Raises NotTrueError for other bytes."""
    path = folder / HANDED_OVER
    try:
        with path.open("rb") as file:
            data = file.read(LIMITS.size + 1)
    except OSError as error:
        raise NotTrueError(
            "No verified backup",
            what=f"database-backup handed no manifest over: {error.strerror}",
            where=str(path),
            next_step="run database-backup for this deployment; read what it reports",
        ) from error
    _require_sha256(data, sha256, str(path))
    document: dict[str, Any] = schemas.read(data, "backup-manifest", where=str(path), limits=LIMITS)
    return Manifest(document, document["key"].removesuffix(".sql.gz") + ".manifest.json", sha256)


def _require_sha256(data: bytes, sha256: str, where: str) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise NotTrueError(
            "The backup is not the one that was verified",
            what=f"database-backup verified the manifest {sha256[:12]}…, this one is {actual[:12]}…",
            where=where,
            next_step="find out who wrote it, then re-run all jobs",
        )


def read_pending(bucket: Bucket, names: Names) -> dict[str, Any]:
    """Return a stored pending document, validated. Raises as ``read`` does."""
    data = bucket.read(names.pending_key, most=LIMITS.size)
    Signatures.of(bucket, names.backup.signing).require(names.pending_key, data)
    pending: dict[str, Any] = schemas.read(data, "backup-pending", where=bucket.url(names.pending_key), limits=LIMITS)
    return pending


def require_object(bucket: Bucket, manifest: Manifest) -> StoredObject:
    """Return the object that a manifest describes: exactly that version, which must be the newest under its key.

    Raises NotTrueError that names both when another object is under the key or the described object is absent.
    """
    document = manifest.document
    newest = bucket.head(document["key"])
    if newest is None or newest.version_id != document["version_id"] or not _same_bytes(newest, document["compressed"]):
        raise NotTrueError(
            "Another object is under the backup's key",
            what=f"the manifest describes {document['compressed']['bytes']} bytes, version {document['version_id']}, CRC32 "
            f"{document['compressed']['crc32']}; the key holds {newest.describe() if newest else 'nothing'}",
            where=bucket.url(document["key"]),
            next_step="nothing was overwritten; find out who wrote or removed it (bucket logs), then deploy with a new tag or dispatch",
        )
    return newest


def _same_bytes(stored: StoredObject, compressed: Mapping[str, Any]) -> bool:
    return stored.size == compressed["bytes"] and stored.checksum in {None, compressed["crc32"]}


def catalog_document(database_catalog: catalog.Catalog) -> dict[str, Any]:
    """Return a catalog in the form of the documents: counts and hashes instead of long lists."""
    return {
        "tables": _summary(database_catalog.tables),
        "constraints": _summary(database_catalog.constraints),
        "indexes": _summary(database_catalog.indexes),
        "sequences": {catalog.display_name(name): list(values) for name, values in sorted(database_catalog.sequences.items())},
        "large_objects": database_catalog.large_objects,
    }


def _summary(items: Any) -> dict[str, Any]:
    lines = sorted(json.dumps(item, ensure_ascii=False) for item in items)
    return {"count": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()}


def catalog_findings(document: Mapping[str, Any], restored: catalog.Catalog) -> list[str]:
    """Return one line for every difference between a restored catalog and the catalog in a document."""
    restored_document = catalog_document(restored)
    if document["constraints"] == _summary(restored.named_constraints):  # of before: every constraint by its name
        restored_document["constraints"] = document["constraints"]
    findings = [
        f"{kind}: {document[kind]['count']} at the snapshot, {restored_document[kind]['count']} restored, not the same"
        for kind in ("tables", "constraints", "indexes")
        if document[kind] != restored_document[kind]
    ]
    if document["large_objects"] != restored_document["large_objects"]:
        findings.append(f"large objects: {document['large_objects']} at the snapshot, {restored_document['large_objects']} restored")
    snapshot_sequences = {name: (increment, last) for name, (increment, last) in document["sequences"].items()}
    restored_sequences = {name: (increment, last) for name, (increment, last) in restored_document["sequences"].items()}
    return findings + catalog.sequences_behind(snapshot_sequences, restored_sequences)


def server_document(facts: ServerFacts) -> dict[str, Any]:
    """Return a server's facts as JSON."""
    document: dict[str, Any] = read_json(json.dumps(asdict(facts)))
    return document


def encoded(document: dict[str, Any]) -> bytes:
    """Return the bytes as which a document is stored."""
    return (json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def write_once(bucket: Bucket, key: str, document: dict[str, Any], schema: str, backup: BackupSettings, *, lock: bool) -> str:
    """Validate a document, store it under a key that is still free, sign it, and return its SHA-256. Raises AlreadyThereError."""
    schemas.validate(document, schema, where=bucket.url(key))
    data = encoded(document)
    days = backup.lock_days if lock else None
    bucket.put_once(key, data, content_type=JSON_TYPE, lock_days=days, lock_mode=backup.lock_mode)
    Signatures.of(bucket, backup.signing).keep(key, data, lock_days=days, lock_mode=backup.lock_mode)
    return hashlib.sha256(data).hexdigest()
