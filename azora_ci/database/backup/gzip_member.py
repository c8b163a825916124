"""One gzip member, compressed on several threads and readable by any ``gunzip``.

Each block becomes raw deflate that ends with a sync flush, so blocks can be compressed independently and concatenated (RFC 1951);
with one header before them, and one final empty block and the CRC of all data after them, they form a single member (RFC 1952).
A truncated file is then always detected, unlike a file of several members that is cut between two of them.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

BLOCK = 512 * 1024  # bytes of SQL in one deflate block
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # deflate, no name, no time (the same bytes give the same file), unknown system
END_OF_DEFLATE = b"\x03\x00"  # a final block without content
RAW_DEFLATE = -15
AHEAD = 2  # blocks that may wait for output: bounds memory


def deflate_block(data: bytes, level: int) -> bytes:
    """Return ``data`` as raw deflate that ends on a byte boundary and is not the last block. ``level`` is ISA-L's, 0 to 3."""
    from isal import isal_zlib

    compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, RAW_DEFLATE)
    return bytes(compressor.compress(data)) + bytes(compressor.flush(isal_zlib.Z_SYNC_FLUSH))


class GzipMember:
    """Compresses blocks on threads and yields the member's bytes in order. A context manager that ends its threads."""

    def __init__(self, *, level: int = 2, threads: int = 2) -> None:
        self._level = level
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deflate")
        self._waiting: deque[Future[bytes]] = deque()
        self._crc = 0
        self.raw_bytes = 0

    def __enter__(self) -> GzipMember:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, block: bytes) -> Iterator[bytes]:
        """Start compressing a block and yield the compressed blocks that are ready, in order."""
        from isal import isal_zlib

        if not self.raw_bytes:
            yield HEADER
        self._crc = isal_zlib.crc32(block, self._crc)
        self.raw_bytes += len(block)
        self._waiting.append(self._pool.submit(deflate_block, block, self._level))
        while len(self._waiting) > AHEAD or (self._waiting and self._waiting[0].done()):
            yield self._waiting.popleft().result()

    def finish(self) -> Iterator[bytes]:
        """Yield the rest: outstanding blocks, the final block, CRC and length modulo 2^32."""
        if not self.raw_bytes:
            yield HEADER
        while self._waiting:
            yield self._waiting.popleft().result()
        yield END_OF_DEFLATE + struct.pack("<II", self._crc, self.raw_bytes & 0xFFFFFFFF)
