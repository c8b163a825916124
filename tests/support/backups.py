"""Verified backups as database-backup leaves them: an object, its manifest, and the fragment of the job."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azora_ci.clients.s3.bucket import Bucket
from azora_ci.core import config, schemas
from azora_ci.core.clock import rfc3339
from azora_ci.database.backup import manifest
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.server import server_facts
from azora_ci.record import fragments
from tests.support.stores import crc


def example(schema: dict[str, Any]) -> Any:
    """Return a document made of a schema's examples."""
    if "const" in schema:
        return schema["const"]
    if schema.get("properties"):
        return {name: example(part) for name, part in schema["properties"].items()}
    return schema["examples"][0]


def store(
    bucket: Bucket, where: config.BackupSettings, deployment_id: str, url: str, age: timedelta, depth: str = "full"
) -> manifest.Manifest:
    """Store an object and the manifest that says it is a backup of ``url`` whose snapshot is ``age`` old."""
    names = manifest.Names(where, deployment_id)
    data = f"backup of {deployment_id}".encode()
    stored = bucket.put_once(names.key, data, content_type=manifest.GZIP_TYPE)
    document = describe(url, deployment_id, age)
    document |= {"backup_id": names.backup_id, "key": names.key, "location": bucket.url(names.key)}
    document |= {"version_id": stored.version_id, "compressed": _facts(data)}
    document["proof"]["depth"] = depth
    manifest.write_once(bucket, names.manifest_key, document, "backup-manifest", where, lock=False)
    return manifest.read(bucket, names)


def describe(url: str, deployment_id: str, age: timedelta) -> dict[str, Any]:
    """Return the manifest of a backup of ``url`` whose snapshot is ``age`` old."""
    document: dict[str, Any] = example(schemas.load("backup-manifest"))
    document |= {"deployment_id": deployment_id, "server": _server(url)}
    document["snapshot"]["time"] = rfc3339(datetime.now(UTC) - age)
    return document


def sha256(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's bytes."""
    return hashlib.sha256(manifest.encoded(document)).hexdigest()


def _facts(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "crc32": crc(data)}


def _server(url: str) -> dict[str, Any]:
    return manifest.server_document(server_facts(DatabaseUrl.parse(url)))


def fragment(received: Path, backup: manifest.Manifest) -> None:
    """Leave the fragment that says which manifest was verified, and the manifest beside it."""
    document = backup.document
    evidence = example(schemas.load("fragment-database-backup")["properties"]["evidence"])
    facts = backup.evidence()
    evidence |= {name: facts[name] for name in evidence if name in facts}
    evidence["trial"] = {"how": "off", "reason": "a test of something else", "files": []}
    del evidence["override_reason"]
    moment = rfc3339(datetime.now(UTC))
    job = fragments.Fragment(
        "database-backup", document["deployment_id"], document["version"], document["git_sha"], "1", 1, "ok", moment, moment, evidence
    )  # fmt: skip
    folder = received / f"backup-logs-{document['deployment_id']}"
    fragments.write(job, folder)
    (folder / manifest.HANDED_OVER).write_bytes(manifest.encoded(document))
