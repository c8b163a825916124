"""Databases of every shape go through the whole job, and come back with the guide's one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.database.server import server_facts
from tests.support.backup_world import ID, BackupWorld

SHAPES = r"""
CREATE ROLE "App Owner";
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE DOMAIN mood_citext AS citext;
CREATE SCHEMA "Quoted Schema";
CREATE TABLE "Quoted Schema"."Mixed ""Case"", (table" ("select" int PRIMARY KEY, "a.b" text, "new
line" text);
INSERT INTO "Quoted Schema"."Mixed ""Case"", (table" VALUES (1, E'tab\there', E'line\nbreak'), (2, NULL, E'\\.'), (3, '', '\N');
ALTER TABLE "Quoted Schema"."Mixed ""Case"", (table" OWNER TO "App Owner";
CREATE TABLE measured (at date NOT NULL, value int) PARTITION BY RANGE (at);
CREATE TABLE measured_2025 PARTITION OF measured FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE measured_2026 PARTITION OF measured FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO measured SELECT '2025-06-01'::date + n, n FROM generate_series(1, 400) n;
CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, price int, twice int GENERATED ALWAYS AS (price * 2) STORED);
INSERT INTO made (price) SELECT generate_series(1, 50);
CREATE MATERIALIZED VIEW sums AS SELECT at, sum(value) FROM measured GROUP BY at;
CREATE UNIQUE INDEX ON sums (at);
CREATE TABLE secret (id int PRIMARY KEY, owner name DEFAULT current_user);
INSERT INTO secret VALUES (1), (2), (3);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE secret FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody_sees ON secret USING (false);
CREATE TABLE a (id int PRIMARY KEY, b int);
CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a (id) DEFERRABLE INITIALLY DEFERRED);
INSERT INTO a VALUES (1, 1);
INSERT INTO b VALUES (1, 1);
ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b (id);
CREATE TABLE parent (id int);
CREATE TABLE child (extra text) INHERITS (parent);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (2, 'c');
CREATE TABLE nothing_in_it ();
CREATE UNLOGGED TABLE unlogged (id int);
INSERT INTO unlogged VALUES (7);
CREATE TABLE kinds (j jsonb, x bytea, t timestamptz, i interval, f float8, m mood_citext, h hstore, r int4range, u uuid);
INSERT INTO kinds VALUES ('{"a": "b\\nc"}', '\xdeadbeef', '2026-03-29 01:30:00+00', '1 mon 3 days', 0.1::float8 / 3, 'Ä', 'a=>b', '[1,5)',
  '00000000-0000-0000-0000-000000000001');
CREATE SEQUENCE down INCREMENT -1 MAXVALUE 100 START 100;
SELECT nextval('down'), nextval('down');
CREATE FUNCTION looks_like_copy() RETURNS text LANGUAGE sql AS $_$
SELECT 'x' /*
COPY public.fake (id) FROM stdin;
1
\.
*/;
$_$;
COMMENT ON FUNCTION looks_like_copy IS 'it''s
COPY public.fake (id) FROM stdin;
';
CREATE VIEW seen AS SELECT 'a''b\c' AS text, "select" FROM "Quoted Schema"."Mixed ""Case"", (table";
GRANT SELECT ON seen TO "App Owner";
SELECT lo_from_bytea(0, decode(repeat('00ff27', 20000), 'hex')), lo_from_bytea(0, 'small');
CREATE TABLE on_slow_disk (id int) TABLESPACE "slow disk";
INSERT INTO on_slow_disk VALUES (1);
"""


@pytest.fixture
def world(tmp_path: Path, s3_server) -> BackupWorld:
    return BackupWorld(tmp_path, s3_server)


def restore_with_the_guides_line(world: BackupWorld, url: str) -> None:
    packed = world.bucket.read(f"prod/backup-{ID}.sql.gz")
    unpacked = subprocess.run(["gunzip"], input=packed, stdout=subprocess.PIPE, check=True).stdout
    argv = [str(find_binary("psql", server_facts(DatabaseUrl.parse(url)).major)), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    subprocess.run(argv, input=unpacked, env=DatabaseUrl.parse(url).libpq_env(), stdout=subprocess.DEVNULL, check=True)


def make_tablespace(url: str) -> None:
    connection = DatabaseUrl.parse(url).connect()
    with connection.cursor() as cursor:
        cursor.execute("SET allow_in_place_tablespaces = on")
        cursor.execute("CREATE TABLESPACE \"slow disk\" LOCATION ''")
    connection.close()


def test_every_shape_is_proven_and_restores(world: BackupWorld, postgres_cluster):
    make_tablespace(postgres_cluster.cluster.url())
    url = postgres_cluster.fresh(SHAPES)
    outcome = world.run(url)
    assert outcome.code == 0, outcome
    tables = {table["name"]: table["rows"] for table in world.manifest()["tables"]}
    assert tables['"Quoted Schema"."Mixed "Case", (table"'] == 3
    assert tables["public.measured_2025"] + tables["public.measured_2026"] == 400
    assert tables["public.secret"] == 3
    assert tables["public.parent"] == tables["public.child"] == 1
    assert "public.fake" not in tables
    assert world.manifest()["catalog"]["large_objects"] == 2
    assert world.manifest()["large_objects_hash"] != "0" * 32
    again = postgres_cluster.fresh()
    restore_with_the_guides_line(world, again)
    assert postgres_cluster.execute(again, "SELECT sum(twice) FROM made") == [(2550,)]
    assert postgres_cluster.execute(again, "SELECT count(*) FROM sums") == [(400,)]
    assert postgres_cluster.execute(again, 'SELECT "new\nline" FROM "Quoted Schema"."Mixed ""Case"", (table" WHERE "select" = 2') == [
        ("\\.",)
    ]


@pytest.mark.parametrize(("encoding", "text"), [("LATIN1", "E'Stra\\337e'"), ("SQL_ASCII", "E'any \\337\\377 byte'")])
def test_databases_that_are_not_utf8(world: BackupWorld, postgres_cluster, encoding: str, text: str):
    url = postgres_cluster.fresh(options=f"TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    postgres_cluster.execute(url, f"SET client_encoding = '{encoding}'; CREATE TABLE t (v text); INSERT INTO t VALUES ({text})")
    outcome = world.run(url)
    assert outcome.code == 0, outcome
    assert world.manifest()["server"]["encoding"] == encoding
    again = postgres_cluster.fresh(options=f"TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    restore_with_the_guides_line(world, again)
    assert postgres_cluster.execute(again, f"SELECT v = {text} FROM t") == [(True,)]
