"""Receive a request's body: to disk in small pieces, with everything verified that S3 verifies.

Bodies come plain with a Content-Length, or as ``aws-chunked`` with a checksum in the trailer, as the AWS SDKs send them
("Checking object integrity" and "STREAMING-UNSIGNED-PAYLOAD-TRAILER" in the S3 API reference).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Protocol

from azora_ci.rehearsal.standins.s3.errors import S3Error, not_implemented

PIECE = 1024 * 1024
SHORT = 4096  # bytes of a chunk header or trailer line
TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
UNSIGNED = "UNSIGNED-PAYLOAD"
PREFIX = "x-amz-checksum-"
KNOWN = {"crc32": 4, "sha1": 20, "sha256": 32}  # algorithm -> bytes of its value
FOREIGN = {"crc32c", "crc64nvme", "sha512", "md5", "xxhash64", "xxhash3", "xxhash128"}  # S3 knows them, this server does not


class Hash(Protocol):
    """What hashlib's objects offer."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """Return the value so far."""


class Crc32:
    """A CRC32 with the interface of hashlib."""

    def __init__(self) -> None:
        from isal import isal_zlib

        self._function = isal_zlib.crc32
        self.value = 0

    def update(self, data: memoryview) -> None:
        """Add bytes."""
        self.value = self._function(data, self.value)

    def digest(self) -> bytes:
        """Return the value so far, most significant byte first."""
        return self.value.to_bytes(4, "big")


@dataclass(frozen=True)
class Received:
    """A body on disk: bytes, ETag, its CRC32, and the checksum that the client sent (algorithm -> base64)."""

    path: Path
    size: int
    etag: str
    crc32: int
    declared: dict[str, str]


class Body:
    """The body of one request, not read yet."""

    def __init__(self, stream: BufferedIOBase, headers: Message) -> None:
        self._stream = stream
        self._about_body = True  # whether the checksum headers describe these bytes
        self._headers = headers
        self._payload = headers.get("x-amz-content-sha256", "")
        self._trailer: dict[str, str] = {}
        self.damage = False
        self.verify = True
        length = headers.get("content-length")
        if headers.get("transfer-encoding") is not None:
            raise not_implemented("Transfer-Encoding")
        if length is not None and not re.fullmatch(r"[0-9]{1,15}", length):
            raise S3Error(400, "InvalidArgument", "Content-Length is not a number")
        self.left = int(length or 0)  # bytes on the wire that were not read yet

    def drain(self) -> None:
        """Read and forget what is left, so that the next request on the connection can be read."""
        for _ in self._raw(self.left):
            pass

    def skip(self, count: int) -> None:
        """Read and forget some bytes."""
        for _ in self._raw(min(count, self.left)):
            pass

    def text(self, limit: int = 4 * PIECE, *, about_body: bool = True) -> bytes:
        """Return a small body, verified. The checksums of a completion are not about its body but its object. Raises S3Error."""
        self._about_body = about_body
        if self.left > limit:
            raise S3Error(400, "MaxMessageLengthExceeded", "Your request was too big.")
        checks = self._checks()
        parts = []
        for piece in self._pieces():
            parts.append(bytes(piece))
            for check in checks.values():
                check.update(piece)
        self._verify(checks)
        return b"".join(parts)

    def receive(self, path: Path, *, opaque_etag: bool) -> Received:
        """Write the body to a file and verify it. Raises S3Error; the file is then gone.

        The ETag is the MD5, or random where S3 promises nothing about it (objects encrypted by KMS): that spares the MD5.
        """
        checks = self._checks()
        if opaque_etag and self._headers.get("content-md5") is None:
            del checks["md5"]
        try:
            with path.open("wb", buffering=0) as file:
                size = self._copy(file, checks)
            declared = self._verify(checks)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        crc = checks["crc32"]
        assert isinstance(crc, Crc32)  # noqa: S101 - made by _checks
        etag = uuid.uuid4().hex if opaque_etag else checks["md5"].digest().hex()
        return Received(path, size, etag, crc.value, declared)

    def _copy(self, file: IO[bytes], checks: dict[str, Hash]) -> int:
        size = 0
        for piece in self._pieces():
            if self.damage:
                piece[0] ^= 1
                self.damage = False
            for check in checks.values():
                check.update(piece)
            size += len(piece)
            written = 0
            while written < len(piece):
                written += file.write(piece[written:])
        return size

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _raw(self, count: int) -> Iterator[memoryview]:
        """Yield ``count`` bytes of the wire, in pieces that are valid until the next one."""
        buffer = memoryview(bytearray(min(PIECE, max(count, 1))))
        while count:
            read = self._stream.readinto(buffer[: min(count, len(buffer))])
            if not read:
                self.left = 0
                raise S3Error(400, "IncompleteBody", "The request body terminated unexpectedly")
            count -= read
            self.left -= read
            yield buffer[:read]

    def _line(self) -> bytes:
        line = self._stream.readline(min(SHORT, self.left))
        self.left -= len(line)
        if not line.endswith(b"\r\n"):
            raise S3Error(400, "IncompleteBody", "The chunked body is malformed")
        return line[:-2]

    def _pieces(self) -> Iterator[memoryview]:
        if self._payload != TRAILER:
            yield from self._raw(self.left)
            return
        if "aws-chunked" not in self._headers.get("content-encoding", ""):
            raise S3Error(400, "InvalidRequest", "A trailer needs Content-Encoding: aws-chunked")
        yield from self._chunks(self._decoded_length())
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            self._trailer[name.strip().lower()] = value.strip()
        if self.left:
            raise S3Error(400, "IncompleteBody", "Bytes follow the trailer")

    def _decoded_length(self) -> int:
        text = self._headers.get("x-amz-decoded-content-length", "")
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise S3Error(411, "MissingContentLength", "You must provide the x-amz-decoded-content-length HTTP header.")
        return int(text)

    def _chunks(self, expected: int) -> Iterator[memoryview]:
        while True:
            text = self._line().split(b";")[0]
            if not re.fullmatch(rb"[0-9a-fA-F]{1,12}", text):
                raise S3Error(400, "InvalidChunkSizeError", "A chunk's size is not a hexadecimal number")
            size = int(text, 16)
            expected -= size
            if size == 0:
                break
            if size > self.left:
                raise S3Error(400, "IncompleteBody", "A chunk is longer than the body")
            yield from self._raw(size)
            if self._line():
                raise S3Error(400, "IncompleteBody", "A chunk does not end where its size says")
        if expected != 0:
            raise S3Error(400, "IncompleteBody", "You did not provide the number of bytes specified by x-amz-decoded-content-length")

    # --- checks -------------------------------------------------------------------------------------------------------

    def _declared_header(self) -> tuple[str, str | None] | None:
        """Return (algorithm, base64 value or None when it follows in the trailer) of the checksum that is announced."""
        if not self._about_body:
            return None
        headers = {name.lower(): str(value) for name, value in self._headers.items()}
        found: list[tuple[str, str | None]] = [
            (name.removeprefix(PREFIX), value)
            for name, value in headers.items()
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) in KNOWN.keys() | FOREIGN
        ]
        if self._payload == TRAILER:
            found.append((headers.get("x-amz-trailer", "").lower().removeprefix(PREFIX), None))
        if len(found) > 1:
            raise S3Error(400, "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
        if found and found[0][0] not in KNOWN:
            raise not_implemented(f"checksum {found[0][0]!r}; this server knows {', '.join(KNOWN)}")
        return found[0] if found else None

    def _checks(self) -> dict[str, Hash]:
        """Return the hashes to compute: MD5 for the ETag, CRC32 for combining, what the client declares and signs."""
        checks: dict[str, Hash] = {"md5": hashlib.md5(usedforsecurity=False), "crc32": Crc32()}
        declared = self._declared_header()
        if declared is not None and declared[0] != "crc32":
            checks[declared[0]] = hashlib.new(declared[0], usedforsecurity=False)
        if self._payload not in {TRAILER, UNSIGNED}:
            if not re.fullmatch(r"[0-9a-f]{64}", self._payload):
                raise not_implemented(f"x-amz-content-sha256: {self._payload or 'missing'}")
            checks["sha256"] = hashlib.sha256()
        return checks

    def _verify(self, checks: dict[str, Hash]) -> dict[str, str]:
        """Compare everything and return the declared checksum. Raises S3Error."""
        if self.verify and self._payload not in {TRAILER, UNSIGNED} and checks["sha256"].digest().hex() != self._payload:
            raise S3Error(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
        if self.verify and "md5" in checks:
            self._verify_md5(checks["md5"].digest())
        declared = self._declared_header()
        if declared is None:
            return {}
        algorithm, value = declared
        sent = value if value is not None else self._trailer.get(PREFIX + algorithm, "")
        if _decoded(sent, KNOWN[algorithm]) is None:
            raise S3Error(400, "InvalidRequest", f"Value for {PREFIX}{algorithm} header is invalid.")
        if self.verify and _decoded(sent, KNOWN[algorithm]) != checks[algorithm].digest():
            raise S3Error(400, "BadDigest", f"The {algorithm.upper()} you specified did not match the calculated checksum.")
        return {algorithm: sent}

    def _verify_md5(self, found: bytes) -> None:
        sent = self._headers.get("content-md5")
        if sent is None:
            return
        wanted = _decoded(sent, 16)
        if wanted is None:
            raise S3Error(400, "InvalidDigest", "The Content-MD5 you specified was invalid.")
        if wanted != found:
            raise S3Error(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _decoded(text: str, length: int) -> bytes | None:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return value if len(value) == length else None
