"""Objects of an S3 store as this package handles them, and the checksum that they carry."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime

from azora_ci.core.clock import rfc3339
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError

EXISTS = "PreconditionFailed"
CONFLICT = "ConditionalRequestConflict"


@dataclass(frozen=True)
class StoredObject:
    """An object as the store describes it.

    ``size`` in bytes; ``checksum`` is the base64 CRC32 of the whole object where the store keeps one; ``lock_until`` is the
    end of its retention. A listing has only key, size, etag and time.
    """

    key: str
    size: int
    etag: str
    modified: datetime | None = None
    version_id: str | None = None
    checksum: str | None = None
    lock_until: datetime | None = None
    lock_mode: str | None = None
    encryption: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        """Return the facts as one line of text."""
        facts = [f"{self.size} bytes", f"ETag {self.etag}"]
        facts += [f"modified {rfc3339(self.modified)}"] if self.modified else []
        facts += [f"version {self.version_id}"] if self.version_id else []
        facts += [f"CRC32 {self.checksum}"] if self.checksum else []
        facts += [f"locked until {rfc3339(self.lock_until)}"] if self.lock_until else []
        return ", ".join(facts)


@dataclass(frozen=True)
class PendingUpload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    initiated: datetime


class AlreadyThereError(NotTrueError):
    """The key is taken by the object ``existing``; ``identical`` says whether its size and checksum are those of our bytes."""

    def __init__(self, url: str, existing: StoredObject, *, identical: bool) -> None:
        super().__init__(
            "The object is already there",
            what=f"{url} exists with {'the same' if identical else 'other'} content: {existing.describe()}",
            where=url,
            next_step="nothing was overwritten; find out who wrote it, or use another deployment id or attempt",
        )
        self.existing = existing
        self.identical = identical


class NotThereError(BadInputError):
    """There is no object under this key, or not this version of it."""


class StartAgainError(UnreachableError):
    """A conditional write collided with a simultaneous one (409): nothing was written, the upload must start again."""


def encode_crc32(value: int) -> str:
    """Return a CRC32 as S3 writes it: base64 of its four bytes, most significant first."""
    return base64.b64encode(value.to_bytes(4, "big")).decode("ascii")


def crc32(data: bytes | bytearray | memoryview) -> str:
    """Return the CRC32 of some bytes as S3 writes it."""
    from isal import isal_zlib

    return encode_crc32(isal_zlib.crc32(data))
