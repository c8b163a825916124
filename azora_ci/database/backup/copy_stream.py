"""A scanner for the plain SQL of pg_dump as a stream: finds tables, counts and hashes rows, detects an incomplete dump.

Rows are between ``COPY … FROM stdin;`` and a line ``\\.``; the other lines are SQL, in which quoted text, dollar quotes and
comments may contain text that looks like these two markers. Memory is bounded whatever the length of a row.
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
OBJECT_CALL = 40  # the calls above have at most this many bytes before the quote
_CLOSING = {b"'": b"'", b'"': b'"', b"--": b"\n", b"/*": b"*/"}
LONGEST_TOKEN = 256  # bytes kept at the end of a block because a token may be cut there
LONGEST_HEADER = 4 * 1024 * 1024  # 1600 columns with names of 63 bytes need 0.2 MiB
TAIL = 1024
HASH_BITS = 128


@dataclass
class TableData:
    """One table's rows in the dump. ``statement`` is the text between COPY and FROM, as bytes of the dump's encoding."""

    schema: bytes
    name: bytes
    statement: bytes
    rows: int = 0
    hash: str | None = None


class RowHash:
    """An order-independent hash of lines: the sum of each line's 128-bit BLAKE2b, modulo 2^128. It detects accidents, not forgery."""

    def __init__(self) -> None:
        self._sum = 0
        self._partial_line: blake2b | None = None  # hash of a line that continues in the next piece
        self.rows = 0

    def feed(self, piece: bytes) -> None:
        """Add a piece of text; lines may be cut anywhere."""
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


class CopyScanner:
    """Scans a dump block by block. ``tables`` are those read so far; rows are counted, and hashed where ``is_hashed`` returns True."""

    def __init__(self, is_hashed: Callable[[TableData], bool] = lambda _table: False) -> None:
        self.tables: list[TableData] = []
        self._is_hashed = is_hashed
        self._unscanned = b"\n"  # a COPY may be the first line
        self._state: Callable[[bytes, int], int] = self._scan_sql
        self._closing = b""
        self._at_first_row = False
        self._hash: RowHash | None = None
        self._tail = b""
        self._quoting_call = b""  # the call whose quoted argument is being read, where it restores a large object
        self._object_id = b""
        self.objects = ObjectsHash()

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the dump. Raises ValueError for a COPY statement that cannot be read."""
        self._tail = block[-TAIL:] if len(block) >= TAIL else (self._tail + block)[-TAIL:]
        buffer, position = (self._unscanned + block) if self._unscanned else block, 0
        while True:
            state = self._state
            position = self._state(buffer, position)
            if self._state == state:
                break
        self._unscanned = buffer[position:]

    @property
    def complete(self) -> bool:
        """Return whether the dump ended with pg_dump's completion line, outside of rows and quotes."""
        return self._state == self._scan_sql and bool(_END.search(self._tail))

    @property
    def rows(self) -> int:
        """Return the number of rows read so far."""
        return sum(table.rows for table in self.tables)

    # A state is a method that scans the buffer from a position and returns the position where it stopped; it may set the next state.

    def _scan_sql(self, buffer: bytes, position: int) -> int:
        matched = _TOKEN.search(buffer, position)
        if matched is None:
            return max(position, len(buffer) - LONGEST_TOKEN)
        token = matched[0]
        if token == b"\nCOPY ":
            return self._scan_header(buffer, matched.start())
        self._closing = _CLOSING.get(token, token)
        self._state = self._scan_quoted
        call = _OBJECT.search(buffer, max(0, matched.start() - OBJECT_CALL), matched.start()) if token == b"'" else None
        self._quoting_call = call[1] if call else b""
        return matched.end()

    def _scan_quoted(self, buffer: bytes, position: int) -> int:
        end = buffer.find(self._closing, position)
        if end < 0:
            stop = max(position, len(buffer) - len(self._closing) + 1)
            self._feed_object(buffer, position, stop)
            return stop
        self._feed_object(buffer, position, end)
        if self._quoting_call == b"lo_open(":
            self.objects.begin(self._object_id)
            self._object_id = b""
        self._state = self._scan_sql
        return end if self._closing == b"\n" else end + len(self._closing)  # the next token may begin with this newline

    def _feed_object(self, buffer: bytes, start: int, stop: int) -> None:
        if self._quoting_call == b"lo_open(":
            self._object_id += buffer[start:stop]
        elif self._quoting_call:
            self.objects.feed(buffer[start:stop])

    def _scan_header(self, buffer: bytes, position: int) -> int:
        matched = _HEADER.match(buffer, position)
        if matched is None:
            if len(buffer) - position > LONGEST_HEADER:
                raise ValueError("a COPY statement in the dump does not end")
            return position
        table = _TABLE.fullmatch(matched[1])
        if table is None:
            raise ValueError(f"a COPY statement in the dump cannot be read: {matched[1][:200]!r}")
        self.tables.append(TableData(_unquoted(table[1]), _unquoted(table[2]), matched[1]))
        self._hash = RowHash() if self._is_hashed(self.tables[-1]) else None
        self._state, self._at_first_row = self._scan_rows, True
        return matched.end() - 1  # at the newline, so that the end of an empty table is recognised like any other

    def _scan_rows(self, buffer: bytes, position: int) -> int:
        end = buffer.find(b"\n\\.\n", position)
        stop = end + 1 if end >= 0 else max(position, len(buffer) - 3)
        start = position + 1 if self._at_first_row and stop > position else position
        self._at_first_row = self._at_first_row and stop == position
        self._count_rows(buffer[start:stop])
        if end >= 0:
            self._end_table()
            return end + 3  # at the newline after \.
        return stop

    def _count_rows(self, piece: bytes) -> None:
        if self._hash is not None:
            self._hash.feed(piece)
        else:
            self.tables[-1].rows += piece.count(b"\n")

    def _end_table(self) -> None:
        if self._hash is not None:
            self.tables[-1].rows, self.tables[-1].hash = self._hash.rows, self._hash.hexdigest()
        self._state = self._scan_sql


def _unquoted(identifier: bytes) -> bytes:
    return identifier[1:-1].replace(b'""', b'"') if identifier.startswith(b'"') else identifier
