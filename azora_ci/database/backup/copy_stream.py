"""A scanner for the plain SQL of pg_dump as a stream: finds tables, counts and hashes rows, detects an incomplete dump.

Rows are between ``COPY … FROM stdin;`` and a line ``\\.``; the other lines are SQL, which is read by the rules of psql's own lexer
(psqlscan.l): a backslash outside of quotes, dollar quotes and comments is a command of psql, and a dump that holds one is refused.
pg_dump writes two, ``\\restrict`` before and ``\\unrestrict`` after everything; they are left out of what psql is given.
Memory is bounded whatever the length of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from azora_ci.database.backup.content_hash import ObjectsHash, RowHash

_IDENTIFIER = rb'(?:"(?:[^"]|"")*"|[^".(\s]+)'
_LETTER = rb"A-Za-z_\x80-\xff"
_TOKEN = re.compile(
    rb"(?P<word>[%b][%b0-9$]*)|(?P<number>[0-9][%b0-9.]*)|(?P<dollar>\$(?:[%b][%b0-9]*)?\$?)|(?P<other>--|/\*|\S)" % ((_LETTER,) * 5)
)
_NUMBER = re.compile(rb"[0-9.]+(?:[eE][0-9]*)?")
_LITERAL_PREFIXES = frozenset({b"e", b"b", b"x", b"n"})
_ROUTINES = frozenset({b"function", b"procedure"})
_HEADER = re.compile(rb'COPY ((?:"(?:[^"]|"")*"|[^";])*?) FROM stdin;\n')
_OTHER_COPY = re.compile(rb'(?:"(?:[^"]|"")*"|\'(?:[^\']|\'\')*\'|[^"\';])*;[^\n]?', re.DOTALL)
_TABLE = re.compile(rb"(" + _IDENTIFIER + rb")\.(" + _IDENTIFIER + rb")\s*(\(.*\))?\s*", re.DOTALL)
END_OF_ROWS = b"\n\\."
BACKSLASHES = 1000  # in a block of rows: beyond them a search for the whole end of rows is faster
LONGEST_COMMAND = 300  # bytes; pg_dump's words have 63
_OWN_COMMAND = re.compile(rb"\\(un)?restrict ([A-Za-z0-9]{1,256})(?=\n)")
_END = re.compile(rb"\n--\n-- PostgreSQL database dump complete\n--\n\s*(?:\\unrestrict [A-Za-z0-9]+\s*)?\Z")
# How pg_dump restores large objects: SELECT pg_catalog.lo_open('16385', 131072); SELECT pg_catalog.lowrite(0, '\\x00ff');
_OBJECT = re.compile(rb"SELECT pg_catalog\.(lo_open\(|lowrite\(0, )\Z")
OBJECT_CALL = 40  # the calls above have at most this many bytes before the quote
_END_OF_LINE = re.compile(rb"[\r\n]")  # psql ends a comment at either
_COMMENT_MARK = re.compile(rb"/\*|\*/")
_ESCAPE_OR_QUOTE = re.compile(rb"\\.|'", re.DOTALL)
LONGEST_HEADER = 4 * 1024 * 1024  # 1600 columns with names of 63 bytes need 0.2 MiB
TAIL = 1024
SHOWN = 80  # bytes of a refused place in a message

Judged = bytes | memoryview


@dataclass
class TableData:
    """One table's rows in the dump. ``statement`` is the text between COPY and FROM, as bytes of the dump's encoding."""

    schema: bytes
    name: bytes
    statement: bytes
    rows: int = 0
    hash: str | None = None

    @property
    def columns(self) -> bytes:
        """Return the columns that the rows hold, as a list in SQL."""
        table = _TABLE.fullmatch(self.statement)
        return table[3][1:-1] if table and table[3] else b"*"


class CopyScanner:
    """Scans a dump block by block. ``tables`` are those read so far; rows are counted, and hashed where ``is_hashed`` returns True.

    ``doubt`` names a place that psql reads differently under settings which the dump itself can change; None: there is none.
    """

    def __init__(self, is_hashed: Callable[[TableData], bool] = lambda _table: False) -> None:
        self.tables: list[TableData] = []
        self.doubt: str | None = None
        self.objects = ObjectsHash()
        self._is_hashed = is_hashed
        self._unscanned = b""
        self._scanned = b""  # the last bytes before it
        self._ended = False
        self._state: Callable[[bytes, int], int] = self._scan_sql
        self._tail = b""
        self._judged: list[Judged] = []
        self._judged_to = 0  # index in the buffer up to which bytes are in _judged, or left out
        # The statement that is being read, as psql counts: nothing of it, depth of parentheses and of BEGIN … END, its first words.
        self._between_statements = True
        self._before_first = True
        self._parentheses = self._begins = 0
        self._words: list[bytes] = []
        self._restrict_word: bytes | None = None  # the word of the dump's own \restrict
        self._unrestricted = False
        # What is quoted or commented, or the rows that are being read.
        self._closing = b""
        self._backslashes = 0  # directly before the place reached in a literal
        self._comments = 0
        self._quoting_call = b""  # the call whose quoted argument is being read, where it restores a large object
        self._object_id = b""
        self._after_escaped = False
        self._at_first_row = False
        self._hash: RowHash | None = None

    def feed(self, block: bytes) -> list[Judged]:
        """Take the next bytes of the dump and return those judged now, for psql, without the dump's own pair of commands.

        The pieces are views of the block: nothing is copied. Raises ValueError for a command of psql, and for what cannot be judged:
        another COPY than pg_dump's, a NUL byte.
        """
        if b"\0" in block:
            raise ValueError("the dump holds a NUL byte, which no text of PostgreSQL does")
        self._tail = block[-TAIL:] if len(block) >= TAIL else (self._tail + block)[-TAIL:]
        self._judged, self._judged_to = [], 0
        buffer, position = self._joined(block), 0
        while True:
            state, start = self._state, position
            position = self._state(buffer, position)
            if state != self._scan_rows and self.doubt is None and not buffer[start:position].isascii():
                self.doubt = "text that is not ASCII, outside of rows"
            if self._state == state:
                break
        self._unscanned = buffer[position:]
        self._scanned = (self._scanned + buffer[max(0, position - OBJECT_CALL) : position])[-OBJECT_CALL:]
        self._judged.append(memoryview(buffer)[self._judged_to : position])
        return self._judged

    def _joined(self, block: bytes) -> bytes:
        """Return the block behind what was left unscanned. Rows leave three bytes, and no block is copied for them."""
        left = self._unscanned
        if self._state != self._scan_rows or self._at_first_row or len(block) < 2 or END_OF_ROWS in left + block[:2]:
            return left + block if left else block
        self._count_rows(left, 0, len(left))
        self._judged.append(left)
        self._scanned = (self._scanned + left)[-OBJECT_CALL:]
        return block

    def end(self) -> list[Judged]:
        """Judge what is left, after the last block; return and raise as ``feed`` does."""
        self._ended = True
        return self.feed(b"")

    @property
    def complete(self) -> bool:
        """Return whether the dump ended with pg_dump's completion line, outside of rows and quotes. Call ``end`` first."""
        whole = self._state == self._scan_sql and self._between_statements and not self._unscanned
        return whole and bool(_END.search(self._tail))

    @property
    def rows(self) -> int:
        """Return the number of rows read so far."""
        return sum(table.rows for table in self.tables)

    # A state is a method that scans the buffer from a position and returns the position where it stopped; it may set the next state.
    # It stops before what may be cut at the end of the buffer.

    def _scan_sql(self, buffer: bytes, position: int) -> int:
        while (matched := _TOKEN.search(buffer, position)) is not None:
            start, end, kind, token = matched.start(), matched.end(), matched.lastgroup, matched[0]
            if end == len(buffer) and not self._ended:
                if end - start > LONGEST_HEADER:
                    raise ValueError("a word in the dump does not end")
                return start
            if token == b"\\":
                position = self._own_command(buffer, start)
                if position == start:
                    return start
                continue
            if token in {b"--", b"/*"}:
                self._state = self._scan_line_comment if token == b"--" else self._scan_comment
                self._comments = 1
                return end
            if self._unrestricted:
                raise ValueError(f"SQL follows the dump's own \\unrestrict: {_shown(buffer, start)}")
            if kind == "word" and self._between_statements and token.lower() == b"copy":
                return self._scan_header(buffer, start)
            self._between_statements = self._before_first = False
            if self._opens_quote(buffer, matched):
                return end
            self._count_token(kind, token, buffer[end : end + 2])
            self._after_escaped = False
            position = end
        return len(buffer)

    def _opens_quote(self, buffer: bytes, matched: re.Match[bytes]) -> bool:
        """Set the state that reads a quoted text, if this token opens one. Raises ValueError where psql's versions differ."""
        start, token, kind = matched.start(), matched[0], matched.lastgroup
        if kind == "number" and not _NUMBER.fullmatch(token):
            raise ValueError(f"a word directly follows a number: {_shown(buffer, start)}")
        if kind == "number" and buffer[matched.end() : matched.end() + 1] in {b"'", b'"', b"$"}:
            raise ValueError(f"a quote directly follows a number: {_shown(buffer, start)}")
        if kind == "dollar" and len(token) > 1:
            if not token.endswith(b"$"):
                raise ValueError(f"a dollar quote does not begin as one: {_shown(buffer, start)}")
        elif token not in {b"'", b'"'}:
            return False
        self._closing, self._state, self._backslashes = token, self._scan_quoted, 0
        self._quoting_call = b""
        if token != b"'":
            self._after_escaped = False
            return True
        if self._after_escaped:
            raise ValueError(f"two literals follow each other, the first with escapes: {_shown(buffer, start)}")
        if self._words and self._words[-1] == b"e'":
            self._words.pop()
            self._state = self._scan_escaped
            return True
        call = _OBJECT.search(
            (self._scanned + buffer[:start])[-OBJECT_CALL:] if start < OBJECT_CALL else buffer[start - OBJECT_CALL : start]
        )
        self._quoting_call = call[1] if call else b""
        return True

    def _count_token(self, kind: str | None, token: bytes, following: bytes) -> None:
        """Count parentheses and BEGIN … END as psql does, to know where the statement ends."""
        if token == b"(":
            self._parentheses += 1
        elif token == b")":
            self._parentheses = max(0, self._parentheses - 1)
        elif token == b";" and not self._parentheses and not self._begins:
            self._between_statements, self._words = True, []
        elif kind == "word":
            self._count_word(token.lower(), following)

    def _count_word(self, word: bytes, following: bytes) -> None:
        if following[:1] == b"'" and word in _LITERAL_PREFIXES:
            if word == b"e":
                self._words.append(b"e'")  # the quote that follows takes it away again
            return
        if word == b"u" and following in {b"&'", b'&"'}:
            return
        if len(self._words) < 4:
            self._words.append(word)
        words = self._words
        of_routine = words[0] == b"create" and (words[1:2] or [b""])[0] in _ROUTINES
        or_replaced = words[:3] == [b"create", b"or", b"replace"] and (words[3:4] or [b""])[0] in _ROUTINES
        if (of_routine or or_replaced) and not self._parentheses:
            if word == b"begin" or (word == b"case" and self._begins):
                self._begins += 1
            elif word == b"end":
                self._begins = max(0, self._begins - 1)

    def _own_command(self, buffer: bytes, start: int) -> int:
        """Leave the dump's own \\restrict or \\unrestrict out and return its end (``start``: it may be cut). Raises ValueError."""
        matched = _OWN_COMMAND.match(buffer, start)
        if matched is None and b"\n" not in buffer[start:] and len(buffer) - start < LONGEST_COMMAND:
            return start
        if matched is not None and not matched[1] and self._before_first and self._restrict_word is None:
            self._restrict_word = matched[2]
        elif matched is not None and matched[1] and self._between_statements and matched[2] == self._restrict_word:
            self._unrestricted, self._restrict_word = True, None
        else:
            raise ValueError(f"a command of psql is in the dump: {_shown(buffer, start)}")
        assert matched is not None  # noqa: S101 - the last branch raises
        self._judged.append(buffer[self._judged_to : start])
        self._judged_to = matched.end()
        return matched.end()

    def _scan_line_comment(self, buffer: bytes, position: int) -> int:
        matched = _END_OF_LINE.search(buffer, position)
        if matched is None:
            return len(buffer)
        self._state = self._scan_sql
        return matched.start()

    def _scan_comment(self, buffer: bytes, position: int) -> int:
        while (matched := _COMMENT_MARK.search(buffer, position)) is not None:
            self._comments += 1 if matched[0] == b"/*" else -1
            position = matched.end()
            if not self._comments:
                self._state = self._scan_sql
                return position
        return max(position, len(buffer) - 1)

    def _scan_escaped(self, buffer: bytes, position: int) -> int:
        while (matched := _ESCAPE_OR_QUOTE.search(buffer, position)) is not None:
            position = matched.end()
            if matched[0] == b"'":
                self._state, self._after_escaped = self._scan_sql, True
                return position
        return max(position, len(buffer) - 1) if buffer.endswith(b"\\") else len(buffer)

    def _scan_quoted(self, buffer: bytes, position: int) -> int:
        end = buffer.find(self._closing, position)
        stop = end if end >= 0 else max(position, len(buffer) - len(self._closing) + 1)
        self._feed_object(buffer, position, stop)
        if self._closing == b"'":
            run = stop - position - len(buffer[position:stop].rstrip(b"\\"))
            self._backslashes = run + (self._backslashes if run == stop - position else 0)
        if end < 0:
            return stop
        if self._backslashes % 2 and self.doubt is None:
            self.doubt = f"a backslash directly before a quote: {_shown(buffer, max(0, end - SHOWN // 2))}"
        if self._quoting_call == b"lo_open(":
            self.objects.begin(self._object_id)
            self._object_id = b""
        self._state = self._scan_sql
        return end + len(self._closing)

    def _feed_object(self, buffer: bytes, start: int, stop: int) -> None:
        if self._quoting_call == b"lo_open(":
            self._object_id += buffer[start:stop]
        elif self._quoting_call:
            self.objects.feed(buffer[start:stop])

    def _scan_header(self, buffer: bytes, position: int) -> int:
        matched = _HEADER.match(buffer, position)
        if matched is None:
            other = _OTHER_COPY.match(buffer, position)
            if (other and other.end() < len(buffer)) or len(buffer) - position > LONGEST_HEADER:
                raise ValueError(f"a COPY in the dump is not pg_dump's COPY … FROM stdin: {_shown(buffer, position)}")
            return position
        table = _TABLE.fullmatch(matched[1])
        if table is None:
            raise ValueError(f"a COPY statement in the dump cannot be read: {matched[1][:200]!r}")
        self.tables.append(TableData(_unquoted(table[1]), _unquoted(table[2]), matched[1]))
        self._hash = RowHash() if self._is_hashed(self.tables[-1]) else None
        self._state, self._at_first_row, self._before_first = self._scan_rows, True, False
        return matched.end() - 1  # at the newline, so that the end of an empty table is recognised like any other

    def _scan_rows(self, buffer: bytes, position: int) -> int:
        end = _find_end_of_rows(buffer, position)
        if end >= 0 and buffer[end + 3 : end + 4] != b"\n":  # psql also ends rows at \. and a carriage return; pg_dump never writes that
            raise ValueError(f"a row in the dump begins like the end of rows: {_shown(buffer, end + 1)}")
        stop = end + 1 if end >= 0 else max(position, len(buffer) - 3)
        start = position + 1 if self._at_first_row and stop > position else position
        self._at_first_row = self._at_first_row and stop == position
        self._count_rows(buffer, start, stop)
        if end >= 0:
            self._end_table()
            return end + 3  # at the newline after \.
        return stop

    def _count_rows(self, buffer: bytes, start: int, stop: int) -> None:
        if self._hash is not None:
            self._hash.feed(buffer[start:stop])
        else:
            self.tables[-1].rows += buffer.count(b"\n", start, stop)

    def _end_table(self) -> None:
        if self._hash is not None:
            self.tables[-1].rows, self.tables[-1].hash = self._hash.rows, self._hash.hexdigest()
        self._state = self._scan_sql


def _find_end_of_rows(buffer: bytes, position: int) -> int:
    """Return the index of the first end of rows that a byte follows, or -1. One byte is found ten times as fast as three are."""
    last, place = len(buffer) - 2, position
    for _ in range(BACKSLASHES):
        place = buffer.find(b"\\", place + 1, last)
        if place < 0:
            return -1
        if buffer.startswith(END_OF_ROWS, place - 1):
            return place - 1
    return buffer.find(END_OF_ROWS, place, len(buffer) - 1)


def _shown(buffer: bytes, position: int) -> str:
    """Return the line at a position, shortened, with everything unusual escaped."""
    return ascii(buffer[position : position + SHOWN].split(b"\n", 1)[0].decode("latin-1"))


def _unquoted(identifier: bytes) -> bytes:
    return identifier[1:-1].replace(b'""', b'"') if identifier.startswith(b'"') else identifier
