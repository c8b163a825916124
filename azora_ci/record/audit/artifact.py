"""What lies beside the record in its job's artifact, so that whoever has the artifact alone can verify it."""

from __future__ import annotations

from pathlib import Path

from azora_ci.clients.signing.signatures import NONE, SUFFIX
from azora_ci.record.archive import Archive
from azora_ci.record.audit import verify_record


def write_beside(record: Path, archive: Archive, location: str) -> None:
    """Write the script that verifies a record beside it, and the signature of the archived record at this URL, if records are signed."""
    script = Path(verify_record.__file__)
    (record.parent / script.name).write_bytes(script.read_bytes())
    if archive.signatures.name != NONE:
        key = location.removeprefix(archive.bucket.url(""))
        record.with_name(f"{record.name}{SUFFIX}").write_bytes(archive.bucket.read(f"{key}{SUFFIX}"))
