"""Uploads a stream of unknown length to one S3 object, in parts; the object is visible only when it is complete.

Limits and rules are those of the S3 API reference: at most 10,000 parts of 5 MiB to 5 GiB (the last may be smaller), objects
up to 5 TiB, a full-object CRC32, ``If-None-Match: *`` and the object's size on completion.
"""

from __future__ import annotations

import queue
import threading
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from azora_ci.clients.s3.calls import CallRefusedError, Calls
from azora_ci.clients.s3.objects import CONFLICT, EXISTS, AlreadyThereError, StartAgainError, StoredObject, encode_crc32
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError, Explained, NotTrueError, UnreachableError

MEBIBYTE = 1024 * 1024
PARTS = 10_000  # the most that S3 allows
EVEN_PARTS = 1_000  # parts of the first size, before they grow
GROWTH = 2.4  # exponent of the growth: 10,000 parts that start at 8 MiB hold 5.6 TiB, the last has 2 GiB
MEMORY = 64 * MEBIBYTE  # bytes of parts in transit, while parts are small; a larger part is sent alone
PATIENCE_ON_ABORT = 2.0  # seconds to wait for parts in transit: a cancelled step has 7 s in all
TOKEN = "azora-upload"  # noqa: S105 - the name of the metadata entry by which an upload recognises its own object


def part_size(number: int, first: int = 8 * MEBIBYTE) -> int:
    """Return the bytes of part 1, 2, …: ``first`` for 1,000 parts, then growing, so that 10,000 parts suffice for any object."""
    growth = max(1.0, number / EVEN_PARTS) ** GROWTH
    return int(first * growth) // MEBIBYTE * MEBIBYTE


class _Bucket(Protocol):
    """The members of ``bucket.Bucket`` that an upload uses."""

    name: str
    calls: Calls
    clock: Clock
    checksums: bool

    def check(self, data: bytes | bytearray) -> dict[str, Any]: ...
    def url(self, key: str) -> str: ...
    def protection(self, lock_days: int | None, lock_mode: str) -> dict[str, Any]: ...
    def head(self, key: str) -> StoredObject | None: ...
    def require(self, key: str, version_id: str | None = None) -> StoredObject: ...
    def abort_upload(self, key: str, upload_id: str) -> None: ...


@dataclass
class _Part:
    number: int
    body: bytes | bytearray


class MultipartUpload:
    """An upload in progress: a context manager that aborts the upload if it was not completed.

    ``write`` takes bytes of any length and waits while ``in_flight`` parts are in transit; ``finish`` waits until every part
    is acknowledged; ``complete`` makes the object visible, only if its key is still free. ``size`` and ``checksum`` describe
    the bytes written so far. Memory: at most ``in_flight`` + 1 parts of the first size; beyond 8 GiB parts grow, and fewer are in
    transit at once.
    """

    def __init__(
        self, bucket: _Bucket, key: str, *, content_type: str, lock: tuple[int | None, str], in_flight: int, part_size: int
    ) -> None:
        self.key = key
        self.size = 0
        self.upload_id: str | None = None
        self._bucket = bucket
        self._content_type = content_type
        self._lock = lock
        self._token = uuid.uuid4().hex
        self._first_part_size = part_size
        self._in_flight = in_flight
        self._crc = 0
        self._part_number = 1  # number of the part that is being filled
        self._buffer: bytearray | None = None
        self._filled = 0
        self._acknowledged: dict[int, dict[str, object]] = {}  # entries of the completion, by part number
        self._in_transit: dict[int, int] = {}  # part number -> bytes in transit
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._queue: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._stored: StoredObject | None = None

    @property
    def checksum(self) -> str:
        """Return the base64 CRC32 of the bytes written so far, as the store will keep it."""
        return encode_crc32(self._crc)

    def __enter__(self) -> MultipartUpload:
        lock_days, lock_mode = self._lock
        kept_checksum: dict[str, Any] = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"} if self._bucket.checksums else {}
        answer = self._call(
            "create_multipart_upload",
            ContentType=self._content_type,
            **kept_checksum,
            Metadata={TOKEN: self._token},
            **self._bucket.protection(lock_days, lock_mode),
        )
        self.upload_id = answer["UploadId"]
        for number in range(self._in_flight):
            worker = threading.Thread(target=self._send_parts, name=f"upload {number} of {self.key}", daemon=True)
            self._workers.append(worker)
            worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stored is not None:
            return
        try:
            self.abort()
        except AzoraError as abort_error:
            if error is None:
                raise
            # The first error is the one to report; the leftover upload is added to its text.
            if isinstance(error, Explained):
                error.what += f"\nThe unfinished upload stays in the bucket, invisible ({abort_error.what}); the next run removes it"

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add bytes to the stream and return their number. Raises the error of an earlier part's upload."""
        from isal import isal_zlib

        view = memoryview(data).cast("B")
        length = len(view)
        self._crc = isal_zlib.crc32(view, self._crc)
        while len(view):
            buffer = self._buffer or self._next_buffer()
            count = min(len(view), len(buffer) - self._filled)
            # Through a memoryview, because assigning to a slice of the bytearray would copy twice.
            memoryview(buffer)[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == len(buffer):
                self._send(buffer)
        self.size += length
        return length

    def finish(self) -> None:
        """Send the last part and wait until the store has acknowledged every part. No bytes may follow."""
        if self._buffer is not None or self._part_number == 1:
            self._send(bytes(memoryview(self._buffer or b"")[: self._filled]))
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._in_transit)
        self._raise_failure()

    def complete(self) -> StoredObject:
        """Make the object visible and return its facts as the store gives them.

        Raises AlreadyThereError when the key is taken, StartAgainError when another conditional write interfered (409),
        UnreachableError when the result is unknown. A completion that succeeded although its answer was lost is recognised.
        """
        self.finish()
        try:
            answer = self._call(
                "complete_multipart_upload",
                expected=frozenset({EXISTS, CONFLICT, "NoSuchUpload", "BadDigest"}),
                persistent=True,
                UploadId=self.upload_id,
                MultipartUpload={"Parts": [self._acknowledged[number] for number in sorted(self._acknowledged)]},
                IfNoneMatch="*",
                **self._whole(),
            )
        except CallRefusedError as refused:
            stored = self._recognise_own(refused)
        except UnreachableError:
            own_object = self._find_own()
            if own_object is None:
                raise
            stored = own_object
        else:
            stored = self._verified(self._bucket.require(self.key, answer.get("VersionId")))
        self._stored = stored
        self._end_workers()
        return stored

    def abort(self) -> None:
        """Stop the parts in transit and remove the upload from the store. Does nothing after ``complete``."""
        if self.upload_id is None or self._stored is not None:
            return
        self._end_workers()
        self._bucket.abort_upload(self.key, self.upload_id)
        if any(worker.is_alive() for worker in self._workers):
            # A part in transit may have arrived after the abort; S3's reference asks for a second abort then.
            self._bucket.abort_upload(self.key, self.upload_id)
        self.upload_id = None

    # --- parts in transit ---------------------------------------------------------------------------------------------

    def _next_buffer(self) -> bytearray:
        if self._part_number > PARTS:
            raise BadInputError(
                "The stream is too long for one object",
                what=f"{self.size} bytes and more do not fit in {PARTS} parts",
                where=self._bucket.url(self.key),
                next_step="S3 objects end at 5 TiB: back up in several databases or with another tool",
            )
        self._buffer = bytearray(part_size(self._part_number, self._first_part_size))
        self._filled = 0
        return self._buffer

    def _send(self, body: bytes | bytearray) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._stop.is_set() or self._may_send(len(body)))
            self._raise_failure()
            self._in_transit[self._part_number] = len(body)
        self._queue.put(_Part(self._part_number, body))
        self._part_number += 1
        self._buffer, self._filled = None, 0

    def _may_send(self, length: int) -> bool:
        return not self._in_transit or (len(self._in_transit) < self._in_flight and sum(self._in_transit.values()) + length <= MEMORY)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stop.is_set():
            raise ValueError(f"the upload of {self.key} has ended")

    def _send_parts(self) -> None:
        while (part := self._queue.get()) is not None:
            try:
                acknowledgement = None if self._stop.is_set() else self._upload(part)
            except BaseException as error:  # raised in the thread that writes
                self._record_result(part, None, error)
            else:
                self._record_result(part, acknowledgement, None)

    def _record_result(self, part: _Part, acknowledgement: dict[str, object] | None, error: BaseException | None) -> None:
        with self._changed:
            self._failure = self._failure or error
            if acknowledgement is not None:
                self._acknowledged[part.number] = acknowledgement
            del self._in_transit[part.number]
            self._changed.notify_all()

    def _upload(self, part: _Part) -> dict[str, object]:
        check = self._bucket.check(part.body)
        answer = self._call(
            "upload_part",
            stop=self._stop,
            persistent=True,
            UploadId=self.upload_id,
            PartNumber=part.number,
            Body=part.body,
            ContentLength=len(part.body),
            **check,
        )
        entry: dict[str, object] = {"PartNumber": part.number, "ETag": answer["ETag"]}
        return {**entry, **check} if self._bucket.checksums else entry

    def _whole(self) -> dict[str, Any]:
        """Return the parameters by which the store checks the whole object, where it can."""
        if not self._bucket.checksums:
            return {}
        return {"ChecksumCRC32": self.checksum, "ChecksumType": "FULL_OBJECT", "MpuObjectSize": self.size}

    def _end_workers(self) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        for _ in self._workers:
            self._queue.put(None)
        limit = self._bucket.clock.monotonic() + PATIENCE_ON_ABORT
        for worker in self._workers:
            worker.join(max(0.0, limit - self._bucket.clock.monotonic()))

    def _call(self, operation: str, *, expected: frozenset[str] = frozenset(), **parameters: Any) -> dict[str, Any]:
        bucket = self._bucket
        return bucket.calls.call(operation, bucket.url(self.key), expected=expected, Bucket=bucket.name, Key=self.key, **parameters)

    # --- result of a completion ---------------------------------------------------------------------------------------

    def _recognise_own(self, refused: CallRefusedError) -> StoredObject:
        """Return this upload's object if it was completed although the answer was lost; else raise AlreadyThereError or StartAgainError."""
        existing = self._bucket.head(self.key)
        url = self._bucket.url(self.key)
        if existing is not None and self._is_own(existing):
            return self._verified(existing)
        if refused.code == EXISTS and existing is not None:
            identical = existing.size == self.size and existing.checksum == self.checksum
            raise AlreadyThereError(url, existing, identical=identical) from None
        raise StartAgainError(
            "The upload must start again",
            what=f"the completion was answered with {refused.code}, and the key holds {existing.describe() if existing else 'nothing'}",
            where=url,
            next_step="re-run the job: it uploads anew",
        ) from None

    def _find_own(self) -> StoredObject | None:
        existing = self._bucket.head(self.key)
        return self._verified(existing) if existing is not None and self._is_own(existing) else None

    def _is_own(self, stored: StoredObject) -> bool:
        return dict(stored.metadata).get(TOKEN) == self._token

    def _verified(self, stored: StoredObject) -> StoredObject:
        """Return the stored object if its size and checksum are those of the bytes sent. Raises NotTrueError otherwise."""
        if stored.size != self.size or stored.checksum not in {None, self.checksum}:
            raise NotTrueError(
                "The store keeps something else than was sent",
                what=f"sent were {self.size} bytes with CRC32 {self.checksum}; stored are {stored.describe()}",
                where=self._bucket.url(self.key),
                next_step="do not use this object; take another backup and check the store",
            )
        return stored
