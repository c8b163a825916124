"""Nothing that takes something away from the version that runs is ever compatible, however it is written and whatever stands before it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from azora_ci.database.migrations.judgement.model import Facts, Relation, Verdict
from tests.database.migrations.judgement.test_judge import statements

TABLES, COLUMNS = ("orders", "lines"), ("id", "total")
# Each breaks a version that uses every table and column of TABLES and COLUMNS, the view v, the type kind, the function f and schema s.
ALTERING = (
    "DROP COLUMN {c}", "DROP {c}", "DROP COLUMN IF EXISTS {c} CASCADE", "ALTER COLUMN {c} TYPE bigint", "ALTER {c} SET DATA TYPE text",
    "ALTER {c} TYPE int USING {c}::int", "ALTER COLUMN {c} SET NOT NULL", "ALTER {c} DROP DEFAULT", "ADD CONSTRAINT k CHECK ({c} > 0)",
    "ADD CHECK ({c} > 0) NOT VALID", "ADD UNIQUE ({c})", "ADD CONSTRAINT k UNIQUE NULLS NOT DISTINCT ({c})", "ADD PRIMARY KEY ({c})",
    "ADD FOREIGN KEY ({c}) REFERENCES other (id)", "ADD CONSTRAINT k FOREIGN KEY ({c}) REFERENCES other (id) NOT VALID",
    "ADD EXCLUDE ({c} WITH =)", "ADD CONSTRAINT k NOT NULL {c}", "ADD CHECK ({c} > 0 OR fresh > 0)", "ADD UNIQUE ({c}, {c})",
    "DROP CONSTRAINT known", "ADD COLUMN fresh_2 int NOT NULL", "ADD fresh_2 int PRIMARY KEY", "ADD fresh_2 int DEFAULT 1 UNIQUE",
)  # fmt: skip
OTHERS = (
    "ALTER TABLE {t} RENAME COLUMN {c} TO x", "ALTER TABLE {t} RENAME {c} TO x", "ALTER TABLE {t} RENAME TO x", "DROP TABLE {t}",
    "DROP TABLE IF EXISTS {t} CASCADE", "ALTER TABLE {t} SET SCHEMA s", "CREATE UNIQUE INDEX ON {t} ({c})", "TRUNCATE {t}",
    "CREATE UNIQUE INDEX CONCURRENTLY i ON {t} ({c})", "DROP VIEW v", "ALTER VIEW v RENAME TO w", "DROP TYPE kind",
    "ALTER TYPE kind RENAME TO kinds", "ALTER TYPE kind RENAME VALUE 'a' TO 'b'", "DROP FUNCTION f", "ALTER FUNCTION f RENAME TO g",
    "DROP SCHEMA s CASCADE", "ALTER SCHEMA s RENAME TO r", "DELETE FROM {t}", "DROP INDEX known_i", "ALTER DOMAIN d ADD CHECK (VALUE > 0)",
    "DROP SEQUENCE q", "ALTER SEQUENCE q RENAME TO r", "REVOKE SELECT ON {t} FROM app", "DROP EXTENSION pgcrypto", "DROP TRIGGER g ON {t}",
)  # fmt: skip
# What may stand before it, without making it harmless.
BEFORE = (
    "ALTER TABLE {t} ADD COLUMN fresh int", "ALTER TABLE lines ADD COLUMN fresh int NOT NULL DEFAULT 1", "CREATE TABLE n (id int)",
    "CREATE INDEX i2 ON orders (id)", "CREATE TABLE IF NOT EXISTS {t} (id int)", "DROP TABLE {t}; CREATE TABLE {t} (id int, total int)",
    "ALTER TABLE {t} RENAME TO old; CREATE TABLE {t} (id int, total int)", "ALTER TABLE {t} RENAME TO o2; ALTER TABLE o2 RENAME TO {t}",
    "ALTER TABLE {t} DROP COLUMN {c}, ADD COLUMN {c} int", "CREATE SCHEMA IF NOT EXISTS s", "BEGIN", "DO $$ BEGIN NULL; END $$",
    "DROP TYPE kind; CREATE TYPE kind AS ENUM ('a')", "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "SET search_path = public", "CREATE OR REPLACE VIEW v AS SELECT 2",
    "CREATE TEMP TABLE t2 (id int)", "DROP VIEW v; CREATE VIEW v AS SELECT 1", "DROP INDEX known_i; CREATE INDEX known_i ON orders (id)",
)  # fmt: skip
KNOWN = Facts(
    known=True,
    relations={**{name: Relation("r", 5, 100) for name in (*TABLES, "other")}, "v": Relation("v"), "q": Relation("S")},
    types={(table, column): "integer" for table in TABLES for column in COLUMNS},
    indexes={"known_i": "orders"},
)


WRAPPED = (
    "{}", "DO $x$ BEGIN {}; END $x$", "DO $x$ BEGIN IF true THEN {}; END IF; END $x$", "DO $x$ BEGIN EXECUTE $y${}$y$; END $x$",
)  # fmt: skip
SPELLED = ("{0}", '"{0}"', "public.{0}", "PUBLIC.{0}", '"public"."{0}"')
BESIDE = ("ADD COLUMN f1 int", "SET (fillfactor = 70)", "ALTER COLUMN id SET STATISTICS 10")


@st.composite
def breaking(draw):
    table, column = draw(st.sampled_from(TABLES)), draw(st.sampled_from(COLUMNS))
    name = draw(st.sampled_from(SPELLED)).format(table)
    field = draw(st.sampled_from((column, f'"{column}"', column.upper())))
    if draw(st.booleans()):
        harmless = draw(st.lists(st.sampled_from(BESIDE), max_size=2, unique=True))
        actions = draw(st.permutations([draw(st.sampled_from(ALTERING)).format(c=field), *harmless]))
        sql = f"ALTER TABLE {draw(st.sampled_from(('', 'ONLY ', 'IF EXISTS ')))}{name} {', '.join(actions)}"
    else:
        sql = draw(st.sampled_from(OTHERS)).format(t=name, c=field)
    if draw(st.booleans()):
        sql = f"/* a; */ {sql} -- b;\n"
    before = [draw(st.sampled_from(BEFORE)).format(t=table, c=column) for _ in range(draw(st.integers(0, 2)))]
    return ";\n".join([*before, draw(st.sampled_from(WRAPPED)).format(sql)])


@settings(max_examples=600, deadline=None)
@given(breaking(), st.sampled_from((Facts(), KNOWN)))
def test_nothing_that_takes_away_is_ever_compatible(sql: str, facts: Facts):
    assert statements(sql, facts)[-1].verdict is not Verdict.COMPATIBLE, sql


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from("'\";$x -*/\\\n\r(){}E"), max_size=60).map("".join))
def test_any_text_is_judged(text: str):
    for statement in statements(text):
        assert statement.line >= 1
        assert statement.actions
