"""Reads the plain SQL of pg_dump as it flows by: which tables, how many rows, what is in them, and whether it is complete.

Rows stand between ``COPY … FROM stdin;`` and a line ``\\.``; everything else is SQL, in which quoted text, dollar quotes and
comments may look like either. Memory is bounded whatever the length of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

_IDENTIFIER = rb'(?:"(?:[^"]|"")*"|[^".(\s]+)'
_TOKEN = re.compile(rb"'|\"|--|/\*|\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$|\nCOPY ")
_HEADER = re.compile(rb'\nCOPY ((?:"(?:[^"]|"")*"|[^";])*?) FROM stdin;\n')
_TABLE = re.compile(rb"(" + _IDENTIFIER + rb")\.(" + _IDENTIFIER + rb")\s*(\(.*\))?\s*", re.DOTALL)
_END = re.compile(rb"\n--\n-- PostgreSQL database dump complete\n--\n\s*(?:\\unrestrict [A-Za-z0-9]+\s*)?\Z")
# How pg_dump restores large objects: SELECT pg_catalog.lo_open('16385', 131072); SELECT pg_catalog.lowrite(0, '\\x00ff');
_OBJECT = re.compile(rb"SELECT pg_catalog\.(lo_open\(|lowrite\(0, )\Z")
OBJECT_CALL = 40  # bytes that the calls above have at most before the quote
_CLOSING = {b"'": b"'", b'"': b'"', b"--": b"\n", b"/*": b"*/"}
LONGEST_TOKEN = 256  # bytes kept at the end of a block because a token may be cut there
LONGEST_HEADER = 4 * 1024 * 1024  # 1600 columns with names of 63 bytes need 0.2 MiB
TAIL = 1024
HASH_BITS = 128


@dataclass
class TableData:
    """One table's rows in the dump. ``statement`` is what stands between COPY and FROM, as bytes of the dump's encoding."""

    schema: bytes
    name: bytes
    statement: bytes
    rows: int = 0
    hash: str | None = None


class RowHash:
    """An order-independent hash of lines: the sum of each line's 128-bit BLAKE2b, modulo 2^128. It finds accidents, not forgers."""

    def __init__(self) -> None:
        self._sum = 0
        self._cut: blake2b | None = None  # of a line that goes on in the next piece
        self.rows = 0

    def feed(self, piece: bytes) -> None:
        """Add a piece of text; lines may be cut anywhere."""
        lines = piece.split(b"\n")
        last = lines.pop()
        if self._cut is not None:
            if not lines:
                self._cut.update(last)
                return
            self._cut.update(lines[0])
            lines[0] = b""
            self._sum += int.from_bytes(self._cut.digest(), "little")
            self.rows += 1
            del lines[0]
            self._cut = None
        number = int.from_bytes
        self._sum += sum([number(blake2b(line, digest_size=16).digest(), "little") for line in lines])
        self.rows += len(lines)
        if last:
            self._cut = blake2b(last, digest_size=16)

    def hexdigest(self) -> str:
        """Return the hash of the lines so far as 32 hex digits."""
        return f"{self._sum % (1 << HASH_BITS):032x}"


class ObjectsHash:
    """An order-independent hash of large objects: the sum of each one's 128-bit BLAKE2b of ``oid:hex digits``, modulo 2^128."""

    def __init__(self) -> None:
        self._sum = 0
        self._one: blake2b | None = None

    def begin(self, oid: bytes) -> None:
        """Go on to the next object."""
        self._end()
        self._one = blake2b(oid + b":", digest_size=16)

    def feed(self, piece: bytes) -> None:
        """Add hex digits of the object's data, wherever they are cut; the ``\\x`` before them is left out."""
        if self._one is not None:
            self._one.update(piece.translate(None, b"\\x"))

    def _end(self) -> None:
        if self._one is not None:
            self._sum += int.from_bytes(self._one.digest(), "little")
        self._one = None

    def hexdigest(self) -> str:
        """Return the hash of the objects so far as 32 hex digits."""
        self._end()
        return f"{self._sum % (1 << HASH_BITS):032x}"


class CopyScanner:
    """Follows a dump block by block. ``tables`` are those seen so far; rows are counted, and hashed where ``hashed`` says so."""

    def __init__(self, hashed: Callable[[TableData], bool] = lambda _table: False) -> None:
        self.tables: list[TableData] = []
        self._hashed = hashed
        self._rest = b"\n"  # a COPY may be the first line
        self._state: Callable[[bytes, int], int] = self._sql
        self._closing = b""
        self._opening = False
        self._hash: RowHash | None = None
        self._tail = b""
        self._meaning = b""  # of the quoted text that passes: an object's number, its data, or nothing of interest
        self._number = b""
        self.objects = ObjectsHash()

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the dump. Raises ValueError for a COPY statement that cannot be read."""
        self._tail = block[-TAIL:] if len(block) >= TAIL else (self._tail + block)[-TAIL:]
        buffer, position = (self._rest + block) if self._rest else block, 0
        while True:
            before = self._state
            position = self._state(buffer, position)
            if self._state == before:
                break
        self._rest = buffer[position:]

    @property
    def complete(self) -> bool:
        """Say whether the dump ended with pg_dump's completion line, outside of rows and quotes."""
        return self._state == self._sql and bool(_END.search(self._tail))

    @property
    def rows(self) -> int:
        """Return the number of rows seen so far."""
        return sum(table.rows for table in self.tables)

    # A state takes the buffer and a position and returns the position up to which it is done; it may change the state.

    def _sql(self, buffer: bytes, position: int) -> int:
        found = _TOKEN.search(buffer, position)
        if found is None:
            return max(position, len(buffer) - LONGEST_TOKEN)
        token = found[0]
        if token == b"\nCOPY ":
            return self._header(buffer, found.start())
        self._closing = _CLOSING.get(token, token)
        self._state = self._quoted
        before = _OBJECT.search(buffer, max(0, found.start() - OBJECT_CALL), found.start()) if token == b"'" else None
        self._meaning = before[1] if before else b""
        return found.end()

    def _quoted(self, buffer: bytes, position: int) -> int:
        end = buffer.find(self._closing, position)
        if end < 0:
            stop = max(position, len(buffer) - len(self._closing) + 1)
            self._object(buffer, position, stop)
            return stop
        self._object(buffer, position, end)
        if self._meaning == b"lo_open(":
            self.objects.begin(self._number)
            self._number = b""
        self._state = self._sql
        return end if self._closing == b"\n" else end + len(self._closing)  # a line's end may begin the next token

    def _object(self, buffer: bytes, start: int, stop: int) -> None:
        if self._meaning == b"lo_open(":
            self._number += buffer[start:stop]
        elif self._meaning:
            self.objects.feed(buffer[start:stop])

    def _header(self, buffer: bytes, position: int) -> int:
        found = _HEADER.match(buffer, position)
        if found is None:
            if len(buffer) - position > LONGEST_HEADER:
                raise ValueError("a COPY statement in the dump does not end")
            return position
        parts = _TABLE.fullmatch(found[1])
        if parts is None:
            raise ValueError(f"a COPY statement in the dump cannot be read: {found[1][:200]!r}")
        self.tables.append(TableData(_bare(parts[1]), _bare(parts[2]), found[1]))
        self._hash = RowHash() if self._hashed(self.tables[-1]) else None
        self._state, self._opening = self._rows, True
        return found.end() - 1  # at the newline, so that the end of an empty table looks like any other

    def _rows(self, buffer: bytes, position: int) -> int:
        end = buffer.find(b"\n\\.\n", position)
        stop = end + 1 if end >= 0 else max(position, len(buffer) - 3)
        start = position + 1 if self._opening and stop > position else position
        self._opening = self._opening and stop == position
        self._count(buffer[start:stop])
        if end >= 0:
            self._close()
            return end + 3  # at the newline after \.
        return stop

    def _count(self, piece: bytes) -> None:
        if self._hash is not None:
            self._hash.feed(piece)
        else:
            self.tables[-1].rows += piece.count(b"\n")

    def _close(self) -> None:
        if self._hash is not None:
            self.tables[-1].rows, self.tables[-1].hash = self._hash.rows, self._hash.hexdigest()
        self._state = self._sql


def _bare(identifier: bytes) -> bytes:
    return identifier[1:-1].replace(b'""', b'"') if identifier.startswith(b'"') else identifier
