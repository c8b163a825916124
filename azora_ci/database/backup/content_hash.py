"""Hashes of a database's content that do not depend on the order of rows or large objects. They detect accidents, not forgery."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b  # otherwise late: it brings OpenSSL, 4 MiB that a restore does without

HASH_BITS = 128


class RowHash:
    """An order-independent hash of lines: the sum of each line's 128-bit BLAKE2b, modulo 2^128. It detects accidents, not forgery."""

    def __init__(self) -> None:
        self._sum = 0
        self._partial_line: blake2b | None = None  # hash of a line that continues in the next piece
        self.rows = 0

    def feed(self, piece: bytes) -> None:
        """Add a piece of text; lines may be cut anywhere."""
        from hashlib import blake2b

        lines = piece.split(b"\n")
        last = lines.pop()
        if self._partial_line is not None:
            if not lines:
                self._partial_line.update(last)
                return
            self._partial_line.update(lines[0])
            lines[0] = b""
            self._sum += int.from_bytes(self._partial_line.digest(), "little")
            self.rows += 1
            del lines[0]
            self._partial_line = None
        from_bytes = int.from_bytes
        self._sum += sum([from_bytes(blake2b(line, digest_size=16).digest(), "little") for line in lines])
        self.rows += len(lines)
        if last:
            self._partial_line = blake2b(last, digest_size=16)

    def hexdigest(self) -> str:
        """Return the hash of the lines so far as 32 hex digits."""
        return f"{self._sum % (1 << HASH_BITS):032x}"


class ObjectsHash:
    """An order-independent hash of large objects: the sum of every object's 128-bit BLAKE2b of ``oid:hex digits``, modulo 2^128."""

    def __init__(self) -> None:
        self._sum = 0
        self._current: blake2b | None = None

    def begin(self, oid: bytes) -> None:
        """Begin the object with this id; the previous object ends."""
        from hashlib import blake2b

        self._end()
        self._current = blake2b(oid + b":", digest_size=16)

    def feed(self, piece: bytes) -> None:
        """Add hex digits of the object's data, which may be cut anywhere; the ``\\x`` before them is ignored."""
        if self._current is not None:
            self._current.update(piece.translate(None, b"\\x"))

    def _end(self) -> None:
        if self._current is not None:
            self._sum += int.from_bytes(self._current.digest(), "little")
        self._current = None

    def hexdigest(self) -> str:
        """Return the hash of the objects so far as 32 hex digits."""
        self._end()
        return f"{self._sum % (1 << HASH_BITS):032x}"
