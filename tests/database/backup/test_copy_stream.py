from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azora_ci.database.backup.content_hash import RowHash
from azora_ci.database.backup.copy_stream import BACKSLASHES, CopyScanner
from tests.support import hostile_dumps

DUMP = rb"""--
-- PostgreSQL database dump
--

\restrict abc

CREATE FUNCTION f() RETURNS text AS $_$
COPY public.fake (a) FROM stdin;
1
\.
$_$;
COMMENT ON TABLE x IS 'it''s
COPY public.fake (a) FROM stdin;
';
/* COPY "no" -- ' */
COPY public.t (a, "b ) FROM stdin;
x") FROM stdin;
1	2
3	4\n
\.


COPY "Q s"."ta""b" (a) FROM stdin;
\.


COPY public.nocol  FROM stdin;


\.

SELECT 'a\';
--
-- PostgreSQL database dump complete
--

\unrestrict abc

"""
TABLES = [(b"public", b"t", 2), (b"Q s", b'ta"b', 0), (b"public", b"nocol", 2)]


def scan(pieces: list[bytes], *, hashing: bool = True) -> CopyScanner:
    scanner = CopyScanner(lambda _table: hashing)
    for piece in pieces:
        scanner.feed(piece)
    scanner.end()
    return scanner


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % len(data) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


@given(st.lists(st.integers(0, 10**6), max_size=60), st.booleans())
@settings(max_examples=150, deadline=None)
def test_tables_are_found_wherever_blocks_are_cut(places: list[int], hashing: bool):
    scanner = scan(cut(DUMP, places), hashing=hashing)
    assert [(table.schema, table.name, table.rows) for table in scanner.tables] == TABLES
    assert scanner.complete
    if hashing:
        assert [table.hash for table in scanner.tables] == [table.hash for table in scan([DUMP]).tables]


def test_one_byte_at_a_time():
    scanner = scan([bytes([byte]) for byte in DUMP])
    assert [(table.schema, table.name, table.rows) for table in scanner.tables] == TABLES


def test_a_dump_without_its_last_line_is_not_complete():
    end = DUMP.index(b"complete\n--\n")
    for stop in range(0, end + len(b"complete\n-"), 3):
        assert not scan([DUMP[:stop]]).complete


def test_completion_line_inside_rows_or_quotes_does_not_count():
    end = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"
    assert scan([b"SELECT 1;" + end]).complete
    assert not scan([b"SELECT 'open" + end]).complete
    assert not scan([b"COPY public.t (a) FROM stdin;" + end]).complete
    assert not scan([b"SELECT 1;" + end + b"SELECT 2;\n" * 200]).complete


def test_unreadable_copy_is_an_error():
    with pytest.raises(ValueError, match="cannot be read"):
        scan([b"\nCOPY nonsense FROM stdin;\n"])


LINES = st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20)


@given(LINES, st.randoms(use_true_random=False), st.lists(st.integers(0, 10**6), max_size=8))
@settings(max_examples=150, deadline=None)
def test_hash_knows_rows_and_not_their_order(lines: list[bytes], order, places: list[int]):
    first, second = RowHash(), RowHash()
    first.feed(b"".join(line + b"\n" for line in lines))
    order.shuffle(lines)
    text = b"".join(line + b"\n" for line in lines)
    for piece in cut(text, places) if text else []:
        second.feed(piece)
    assert (first.rows, first.hexdigest()) == (second.rows, second.hexdigest()) and first.rows == len(lines)


@given(LINES.filter(bool), st.data())
@settings(max_examples=100, deadline=None)
def test_hash_sees_every_change(lines: list[bytes], data):
    def digest(rows: list[bytes]) -> str:
        row_hash = RowHash()
        row_hash.feed(b"".join(line + b"\n" for line in rows))
        return row_hash.hexdigest()

    place = data.draw(st.integers(0, len(lines) - 1))
    changed = [*lines]
    changed[place] += b"x"
    assert digest(changed) != digest(lines)
    assert digest(lines[:place] + lines[place + 1 :]) != digest(lines)
    assert digest([*lines, lines[place]]) != digest(lines)


OBJECTS = rb"""
SELECT pg_catalog.lo_open('16385', 131072);
SELECT pg_catalog.lowrite(0, '\x00ff27');
SELECT pg_catalog.lowrite(0, '\x0a');
SELECT pg_catalog.lo_close(0);
SELECT pg_catalog.lo_open('16386', 131072);
SELECT pg_catalog.lo_close(0);
SELECT pg_catalog.setval('public.s', 3, true);
"""


def objects(pieces: list[bytes]) -> str:
    return scan(pieces).objects.hexdigest()


@given(st.lists(st.integers(0, 10**6), max_size=40))
@settings(max_examples=100, deadline=None)
def test_large_objects_are_hashed_wherever_blocks_are_cut(places: list[int]):
    assert objects(cut(OBJECTS, places)) == objects([OBJECTS])


def test_hash_of_large_objects_sees_number_content_and_length():
    changed = [OBJECTS.replace(b"16386", b"16387"), OBJECTS.replace(b"00ff27", b"00ff28"), OBJECTS.replace(b"0a", b"0a0a"), b"SELECT 1;"]
    assert len({objects([OBJECTS]), *(objects([dump]) for dump in changed)}) == 5


def test_large_objects_written_in_other_pieces_are_the_same():
    assert objects([OBJECTS.replace(b"0a", b"").replace(b"00ff27", b"00ff270a")]) == objects([OBJECTS])


# --- what psql would act on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dump", hostile_dumps.HOSTILE, ids=lambda dump: dump.name)
def test_a_command_of_psql_is_refused(dump: hostile_dumps.Dump):
    with pytest.raises(ValueError, match=r"in the dump|the dump |follow|dollar quote"):
        scan([dump.sql])


@pytest.mark.parametrize("dump", hostile_dumps.ALL, ids=lambda dump: dump.name)
@given(places=st.lists(st.integers(0, 10**6), max_size=30))
@settings(max_examples=25, deadline=None)
def test_nothing_of_a_command_is_passed_on_wherever_blocks_are_cut(dump: hostile_dumps.Dump, places: list[int]):
    scanner, judged = CopyScanner(), b""
    without_pair = dump.sql.replace(b"\\restrict aB3", b"").replace(b"\\unrestrict aB3", b"")
    try:
        for piece in cut(dump.sql, places):
            judged += b"".join(scanner.feed(piece))
        judged += b"".join(scanner.end())
    except ValueError:
        assert dump.rows is None
        assert without_pair.startswith(judged) and b"PWNED" not in judged and b"program" not in judged.lower()
    else:
        assert dump.rows is not None
        assert scanner.complete and scanner.rows + dump.sql.count(b"INSERT") == dump.rows
        assert judged == without_pair


@pytest.mark.parametrize(
    ("sql", "doubt"),
    [(rb"SELECT 'a\';", "before a quote"), ("SELECT 'é';".encode(), "not ASCII"), (rb"SELECT 'a\\', '\b', E'\'';", None)],
)
def test_what_other_settings_read_differently_is_named(sql: bytes, doubt: str | None):
    for pieces in ([sql], [sql[i : i + 1] for i in range(len(sql))]):
        found = scan(pieces).doubt
        assert (found is None) if doubt is None else (doubt in (found or ""))


@pytest.mark.parametrize("backslashes", [3, BACKSLASHES - 1, BACKSLASHES, BACKSLASHES + 1, 3 * BACKSLASHES])
def test_the_end_of_rows_is_found_behind_any_number_of_backslashes(backslashes: int):
    rows = b"".join(b"\\\\x%d\n" % number for number in range(backslashes // 2)) + b"\\N\n" * (backslashes % 2)
    before, copy, after = DUMP.partition(b"COPY public.t ")
    sql = before + b"COPY public.r (a) FROM stdin;\n" + rows + b"\\.\n\n" + copy + after
    for pieces in ([sql], [sql[i : i + 999] for i in range(0, len(sql), 999)]):
        assert [table.rows for table in scan(pieces, hashing=False).tables] == [rows.count(b"\n"), *(rows for *_, rows in TABLES)]
