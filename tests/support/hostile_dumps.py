"""Dumps that a bucket's writer could have left, and honest ones that look like them, for everything that restores.

Each hostile dump would run ``touch PWNED`` in psql's folder, or in the server's, if it were believed.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = b"--\n-- PostgreSQL database dump\n--\n\n\\restrict aB3\n\n-- Dumped\n\nSET standard_conforming_strings = on;\nSELECT 1;\n"
TABLE = b"CREATE TABLE public.t (a text);\n"
ROWS = b"COPY public.t (a) FROM stdin;\n1\n\\.\n\n"
END = b"\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict aB3\n\n"
PLANTED = "PWNED"
RUN = b"\\! touch PWNED\n"


@dataclass(frozen=True)
class Dump:
    """One dump; ``rows`` is how many rows of ``public.t`` an honest one restores, None for a hostile one."""

    name: str
    sql: bytes
    rows: int | None = None


def hostile(name: str, middle: bytes) -> Dump:
    """Return a dump with this text between its table and its end."""
    return Dump(name, HEAD + TABLE + middle + END)


def honest(name: str, middle: bytes, rows: int = 0) -> Dump:
    """Return a dump that must be restored."""
    return Dump(name, HEAD + TABLE + middle + END, rows)


def with_command(sql: bytes, planted: bytes) -> bytes:
    """Return pg_dump's own output with a command before its last lines that leaves restricted mode, runs and enters it again."""
    last_lines = sql.rindex(b"--\n-- PostgreSQL database dump complete")
    word = sql[sql.index(b"\\restrict ") :].split(b"\n", 1)[0].split()[1]
    command = b"\\unrestrict %b\n\\! touch %b\n\\restrict %b\n" % (word, planted, word)
    return sql[:last_lines] + command + sql[last_lines:]


HOSTILE = (
    hostile("leaves restricted mode", b"\\unrestrict aB3\n" + RUN),
    hostile("leaves and enters again", b"\\unrestrict aB3\n" + RUN + b"\\restrict aB3\n"),
    hostile("shell", RUN),
    hostile("shell after rows", ROWS + RUN),
    hostile("shell after SQL in a line", b"SELECT 1; " + RUN),
    hostile("shell inside a statement", b"SELECT 1 +\n  " + RUN),
    hostile("copy of psql", b"\\copy public.t from program 'touch PWNED'\n"),
    hostile("output to a pipe", b"\\o |touch PWNED\nSELECT 1;\n"),
    hostile("file", b"\\i /dev/null\n"),
    hostile("query to a pipe", b"SELECT 1 \\g |touch PWNED\n"),
    hostile("query runs its rows", b"SELECT 'x' \\gexec\n"),
    hostile("backquotes", b"\\set x `touch PWNED`\n"),
    hostile("COPY from a program", b"COPY public.t FROM PROGRAM 'touch PWNED';\n"),
    hostile("COPY to a program", b"copy public.t to program 'touch PWNED; cat';\n"),
    hostile("lower-case COPY hides a quote", b"copy public.t from stdin;\n'\n\\.\n" + RUN + b"SELECT '';\n"),
    hostile("end of rows with a carriage return", b"COPY public.t (a) FROM stdin;\n1\n\\.\r\n" + RUN + b"\\.\n"),
    hostile("literal with escapes", b"SELECT E'\\'';\n" + RUN + b"SELECT '';\n"),
    hostile("literal with escapes that goes on", b"SELECT E'a'\n'\\'';\n" + RUN + b"SELECT '';\n"),
    hostile("nested comment", b"/* /* */ ' */\n" + RUN + b"SELECT '';\n"),
    hostile("comment that a carriage return ends", b"-- x\r" + RUN),
    hostile("dollar signs in a name", b"SELECT 1 AS a$$;\n" + RUN + b"SELECT 1 AS a$$;\n"),
    hostile("long dollar quote", b"SELECT $" + b"a" * 400 + b"$'$" + b"a" * 400 + b"$;\n" + RUN + b"SELECT '';\n"),
    hostile("COPY in parentheses", b"SELECT (\nCOPY public.t (a) FROM stdin;\n" + RUN + b"\\.\n"),
    hostile(
        "COPY in a function's body",
        b"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC\n SELECT 1;\nCOPY public.t (a) FROM stdin;\n" + RUN + b"\\.\nEND;\n",
    ),
    hostile("NUL byte", b"SELECT 1 \0'\n" + RUN + b"';\n"),
    Dump("shell before the end", HEAD + TABLE + b"SELECT 1;" + b"\n" * 300 + RUN + END),
    Dump("shell at the very end", HEAD + TABLE + END + RUN),
    Dump("SQL after the end", HEAD + TABLE + END + b"SELECT 1;\n" + END.replace(b"\\unrestrict aB3\n", b"")),
    Dump("shell first", RUN + HEAD + TABLE + END),
    Dump("second restrict", HEAD.replace(b"\n\n-- Dumped", b"\n\\restrict cD4\n-- Dumped") + TABLE + END),
    Dump("other word at the end", HEAD + TABLE + END.replace(b"aB3", b"cD4")),
    Dump("restrict after SQL", HEAD.replace(b"\\restrict aB3\n", b"") + TABLE + b"\\restrict aB3\n" + END),
)

HONEST = (
    honest("plain", ROWS, 1),
    Dump("pg_dump of before August 2025", (HEAD + TABLE + END).replace(b"\\restrict aB3\n", b"").replace(b"\\unrestrict aB3\n", b""), 0),
    honest("literal with a backslash", b"COMMENT ON TABLE public.t IS 'C:\\! x\\';\n" + ROWS, 1),
    honest("literal with escapes", b"INSERT INTO public.t VALUES (E'a\\\\! \\' b');\n", 1),
    honest("dollar quote", b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_$ SELECT '\\! $$ ' $_$;\n" + ROWS, 1),
    honest("dollar quote without a tag", b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$/*\n\\! x\n*/SELECT 'x' $$;\n"),
    honest("comments", b"-- \\! x\n/* \\i x /* ' */ \\o */\n" + ROWS, 1),
    honest("name", b'CREATE VIEW public."a\\! $$ \'b" AS SELECT 1 AS "\\i";\n' + ROWS, 1),
    honest("rows", b"COPY public.t (a) FROM stdin;\n\\\\! x\n\\N\nSELECT '$$ /* --\n\\\\.\n\\.\n", 4),
    honest("no rows", b"COPY public.t (a) FROM stdin;\n\\.\n" + ROWS, 1),
    honest("column with the name copy", b"CREATE TABLE public.u (\n    copy text,\n    begin text\n);\n" + ROWS, 1),
    honest(
        "body of a function",
        b"CREATE FUNCTION g() RETURNS int\n    LANGUAGE sql\n    BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 ELSE 2 END;\nEND;\n" + ROWS,
        1,
    ),
    honest("parameters and numbers", b"PREPARE p AS SELECT $1::int + 1.5e-3 - 1e5;\n" + ROWS, 1),
    honest("not ASCII", "COMMENT ON TABLE public.t IS 'Straße é';\n".encode() + ROWS, 1),
)
ALL = (*HOSTILE, *HONEST)
