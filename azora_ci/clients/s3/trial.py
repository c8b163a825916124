"""Whether a store can do what a backup asks of it: tried once in each bucket, before anything is dumped.

The trial's object stays, never overwritten: a later run that finds it knows that the store was able to.
"""

from __future__ import annotations

from azora_ci.clients.s3.bucket import Bucket
from azora_ci.clients.s3.calls import UnexpectedAnswerError
from azora_ci.clients.s3.objects import AlreadyThereError, StoredObject
from azora_ci.core.errors import BadInputError

BODY = b"This store takes objects in parts, writes each key once, and checked this one.\n"
PART_BYTES = 5 * 1024 * 1024
READ_BACK = 'checksums = "read-back" under [backup]'


def require_uploads(bucket: Bucket, key: str) -> str:
    """Upload a small object in parts below ``key``, unless an earlier run did, and return what the store can do as a line of text.

    Raises BadInputError that names what the store lacks, and whether ``[backup] checksums`` can do without it.
    """
    try:
        stored = _tried(bucket, key)
    except UnexpectedAnswerError as error:
        raise BadInputError(
            "The store lacks what a backup needs",
            what=f"a trial failed, before anything was dumped: {error.title}, {error.what}",
            where=error.where,
            next_step=_way_out(bucket, key),
        ) from error
    if not bucket.checksums:
        return f"uploads in parts: tried; without checksums of whole objects, as {READ_BACK} says: every backup is read back"
    kept = "CRC32 of whole objects checked and kept" if stored.checksum else "no checksum is kept: backups are read back"
    return f"uploads in parts: tried; {kept}"


def _way_out(bucket: Bucket, key: str) -> str:
    """Return what to do about a store that cannot do it, after trying whether it can without checksums."""
    if bucket.checksums:
        try:
            _tried(Bucket(bucket.name, bucket.calls, bucket.clock, checksums=False), key)
        except UnexpectedAnswerError:
            pass
        else:
            return (
                f"use a store with full-object CRC32 checksums; or agree to do without them, which works here and is recorded: {READ_BACK}"
            )
    return "use a store that has multipart uploads with If-None-Match on completion"


def _tried(bucket: Bucket, key: str) -> StoredObject:
    name = f"{key}.{'full-object' if bucket.checksums else 'read-back'}"
    existing = bucket.head(name)
    if existing is not None:
        return existing
    with bucket.multipart(name, content_type="text/plain", in_flight=1, part_size=PART_BYTES) as upload:
        upload.write(BODY)
        try:
            return upload.complete()
        except AlreadyThereError as error:  # another run tries at the same time
            return error.existing
