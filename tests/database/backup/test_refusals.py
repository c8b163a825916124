"""A dump that no server can restore is refused with the object's name and why, and without a row in any message."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.database.backup import messages
from tests.support.backup_world import SIMPLE, BackupWorld

# A function that finds another one by search_path, which is empty in a restore.
INNER = """
CREATE SCHEMA app;
CREATE FUNCTION app.small(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 1000';
SET search_path TO app, public;
"""
SQL_OUTER = "CREATE FUNCTION app.is_ok(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT small($1)';"
PL_OUTER = "CREATE FUNCTION app.is_ok(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN small($1); END';"
CHECK = "CREATE TABLE app.priced (secret_price int CHECK (is_ok(secret_price))); INSERT INTO app.priced VALUES (-777000777);"
GENERATED = "CREATE TABLE app.priced (secret_price int, ok bool GENERATED ALWAYS AS (is_ok(secret_price)) STORED);"
GENERATED += "INSERT INTO app.priced VALUES (-777000777);"
INDEX = "CREATE TABLE app.priced (secret_price int); INSERT INTO app.priced VALUES (-777000777);"
INDEX += "CREATE INDEX ON app.priced (is_ok(secret_price));"
DOMAIN = (
    "CREATE DOMAIN app.price AS int CHECK (is_ok(VALUE)); CREATE TABLE app.priced (p price); INSERT INTO app.priced VALUES (-777000777);"
)


@pytest.mark.parametrize("outer", [SQL_OUTER, PL_OUTER], ids=["sql", "plpgsql"])
@pytest.mark.parametrize("table", [CHECK, GENERATED, INDEX, DOMAIN], ids=["check", "generated", "index", "domain"])
def test_an_unqualified_function_is_named_with_its_table(tmp_path: Path, s3_server, postgres_cluster, outer: str, table: str):
    if table == INDEX and postgres_cluster.cluster.major >= 17:
        pytest.skip("from PostgreSQL 17 on such an index cannot be made, either")
    world = BackupWorld(tmp_path, s3_server)
    outcome = world.run(postgres_cluster.fresh(SIMPLE + INNER + outer + table))
    error = outcome.error
    assert outcome.code == 1, outcome
    assert "function small(integer) does not exist" in error["what"]
    assert "is_ok" in error["next"] and "search_path" in error["next"]
    assert "app.priced" in error["where"]
    assert "777000777" not in outcome.output + outcome.log + str(outcome.fragment)


def test_a_row_that_breaks_a_constraint_stays_out_of_every_message(tmp_path: Path, s3_server, postgres_cluster):
    """NOT VALID in production, and made valid by hand in the catalogue: no restore accepts the row."""
    url = postgres_cluster.fresh(SIMPLE + "CREATE TABLE t (word text); INSERT INTO t VALUES ('hidden-word');")
    postgres_cluster.execute(url, "ALTER TABLE t ADD CONSTRAINT short CHECK (length(word) < 3) NOT VALID")
    postgres_cluster.execute(url, "UPDATE pg_constraint SET convalidated = true WHERE conname = 'short'")
    outcome = BackupWorld(tmp_path, s3_server).run(url)
    assert outcome.code == 1, outcome
    assert 'check constraint "short"' in outcome.error["what"]
    assert "TABLE DATA public.t" in outcome.error["where"]
    assert "hidden-word" not in outcome.output + outcome.log + str(outcome.fragment)


SAID = """psql:/tmp/sql:20: NOTICE:  nothing
psql:/tmp/sql:41: ERROR:  function small(integer) does not exist
LINE 1: SELECT small(777)
               ^
HINT:  No function matches 777.
DETAIL:  Failing row contains (777,
CONTEXT of 777).
QUERY:  SELECT small(777)
CONTEXT:  SQL function "is_ok" during startup
SQL statement "SELECT 777"
PL/pgSQL function app.outer_one(integer) line 3 at assignment
COPY priced, line 1, column p: "777"
"""


def test_names_are_kept_and_rows_are_not():
    filtered = messages.WithoutRows()
    kept = "".join(line for line in map(filtered, SAID.splitlines(keepends=True)) if line is not None)
    assert "777" not in kept
    assert kept.splitlines()[2:] == [
        'CONTEXT:  SQL function "is_ok" during startup',
        "CONTEXT:  PL/pgSQL function app.outer_one(integer) line 3 at assignment",
        "CONTEXT:  COPY priced, line 1, column p",
    ]
    assert messages.line_of_error(kept) == 41
    step = messages.next_step(kept)
    assert step is not None
    assert "function is_ok" in step and "table priced" in step and "function small(integer) does not exist" in step


@pytest.mark.parametrize(
    "output",
    ["psql:x:1: ERROR:  division by zero\nCONTEXT:  COPY t, line 1\n", 'psql:x:1: ERROR:  relation "t" does not exist\n', ""],
)
def test_other_errors_are_not_explained_by_the_search_path(output: str):
    assert messages.next_step(output) is None


DUMP = b"""--
-- PostgreSQL database dump
--
SET x = 1;
-- Name: t; Type: TABLE; Schema: app; Owner: me
CREATE TABLE app.t ();
-- Data for Name: t; Type: TABLE DATA; Schema: app; Owner: me
COPY app.t FROM stdin;
\\.
-- Name: pgcrypto; Type: EXTENSION; Schema: -; Owner:\x20
CREATE EXTENSION pgcrypto;
"""


@pytest.mark.parametrize(
    ("line", "name"),
    [(1, None), (4, None), (6, "TABLE app.t"), (9, "TABLE DATA app.t"), (11, "EXTENSION pgcrypto"), (99, "EXTENSION pgcrypto")],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_object_at_a_line_is_that_of_the_comment_before(line: int, name: str | None, size: int):
    blocks = [DUMP[start : start + size] for start in range(0, len(DUMP), size)]
    assert messages.object_at(blocks, line) == name
