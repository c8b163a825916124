"""What statements are told to do to the version that runs: reports from the field, ways of writing, and that nothing bad passes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azora_ci.database.migrations.history import Migration
from azora_ci.database.migrations.judgement.alter import keeps_bytes
from azora_ci.database.migrations.judgement.judge import judge, risks_of, risks_of_release
from azora_ci.database.migrations.judgement.model import Facts, KnownConstraint, Lock, Relation, Verdict, worst


def statements(sql: str, facts: Facts | None = None):
    return judge([("1_a/migration.sql", sql)], facts or Facts())


def verdicts(sql: str, facts: Facts | None = None) -> list[str]:
    return [str(statement.verdict) for statement in statements(sql, facts)]


# --- reports from the field -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER INDEX a RENAME TO b",
        "ALTER TABLE x ADD COLUMN a int, ALTER COLUMN b DROP NOT NULL",
        "ALTER TABLE x ADD COLUMN n SERIAL NOT NULL",
        'CREATE TABLE "n" ("id" INT);\nCREATE INDEX "i" ON "n"("id");\nALTER TABLE "n" ADD CONSTRAINT c CHECK (id > 0)',
        "CREATE TABLE n (id int); ALTER TABLE n RENAME TO m; ALTER TABLE m DROP COLUMN id; DROP TABLE m",
        "CREATE TEMP TABLE x AS SELECT 1 AS id; UPDATE x SET id = 2; DELETE FROM x; ALTER TABLE x DROP COLUMN id; DROP TABLE x",
        "ALTER TABLE x ADD COLUMN a int; ALTER TABLE x ALTER a SET DEFAULT 1",
        "DO $$ BEGIN CREATE TYPE s AS ENUM ('a'); EXCEPTION WHEN duplicate_object THEN null; END $$",
    ],
)
def test_harmless_statements_are_compatible(sql: str):
    assert set(verdicts(sql)) == {"compatible"}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("ALTER TABLE x ADD COLUMN a text NOT NULL, ADD COLUMN b int NOT NULL DEFAULT 0", "incompatible"),
        ("ALTER TABLE x ADD COLUMN b int, ADD COLUMN a text NOT NULL", "incompatible"),
        ("ALTER TABLE x ADD FOREIGN KEY (x) REFERENCES y(id)", "incompatible"),
        ("DO $$ BEGIN DROP TABLE x; END $$", "incompatible"),
        ("DO $$ BEGIN EXECUTE 'DROP TABLE ' || name; END $$", "unknown"),
        ("DO LANGUAGE plpython3u $$ plpy.execute('DROP TABLE x') $$", "unknown"),
        ('ALTER TABLE x DROP "c"', "incompatible"),
        ("ALTER TABLE x ADD c text NOT NULL", "incompatible"),
        ("ALTER TABLE x ALTER c TYPE int", "incompatible"),
        ("\ufeffDROP TABLE x", "incompatible"),
        ("DELETE FROM ONLY a", "incompatible"),
        ("ALTER TYPE t RENAME VALUE 'a' TO 'b'", "incompatible"),
        ("UPDATE x SET a = 1", "unknown"),
        ("DROP TYPE t", "incompatible"),
        ("ALTER TABLE x ALTER COLUMN a DROP DEFAULT", "incompatible"),
        ("DROP VIEW v", "incompatible"),
        ("ALTER TABLE x ADD PRIMARY KEY (id)", "incompatible"),
        ("ALTER TABLE x ADD UNIQUE (id)", "incompatible"),
        ("CREATE TABLE IF NOT EXISTS x (id int); ALTER TABLE x DROP COLUMN id", "incompatible"),
        ("ALTER INDEX x RENAME TO y", "incompatible"),  # it is a table: PostgreSQL renames it
        ("Your database is now in sync with your schema.", "unknown"),
        ("\\i other.sql", "unknown"),
        ("SELECT archive_everything()", "unknown"),
        ("CALL archive_everything()", "unknown"),
        ("CREATE TABLE n (id int); ROLLBACK; ALTER TABLE n DROP COLUMN id", "incompatible"),
        ("CREATE TABLE n (id int); WITH gone AS (DELETE FROM x RETURNING *) INSERT INTO n SELECT id FROM gone", "incompatible"),
        ("CREATE TEMP TABLE x (id int); ALTER TABLE public.x DROP COLUMN id", "incompatible"),
        ("CREATE TEMP TABLE x (id int); DROP TABLE x; DROP TABLE x", "incompatible"),
        ("DO $$ BEGIN BEGIN CREATE TABLE x (); EXCEPTION WHEN OTHERS THEN NULL; END; ALTER TABLE x DROP id; END $$", "incompatible"),
        ("ALTER TABLE x ADD COLUMN a int UNIQUE; ALTER TABLE x ALTER a SET DEFAULT 1", "unknown"),
        ("ALTER TABLE x ADD COLUMN a int; CREATE UNIQUE INDEX ON x (a); ALTER TABLE x ALTER a SET DEFAULT 1", "unknown"),
    ],
)
def test_what_the_running_version_may_not_bear_is_found(sql: str, expected: str):
    assert worst(statements(sql, Facts(relations={"x": Relation("r")}))) == expected


def test_a_table_under_an_old_name_is_used_at_once():
    sql = "ALTER TABLE a RENAME TO a_old; CREATE TABLE a (id int); ALTER TABLE a ADD b int NOT NULL; ALTER TABLE a_old DROP COLUMN id"
    assert verdicts(sql) == ["incompatible", "compatible", "incompatible", "incompatible"]


def test_every_action_of_an_alter_table_is_judged_in_its_order():
    (statement,) = statements("ALTER TABLE x ADD b int, DROP a")
    assert [(action.what, action.verdict) for action in statement.actions] == [
        ("ADD COLUMN b", Verdict.COMPATIBLE),
        ("DROP COLUMN a", Verdict.INCOMPATIBLE),
    ]
    assert statement.worst.loses
    assert statement.worst.instead


# --- risks, as database-migrations prints and records them ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ('DROP TABLE "users";', "data"),
        ('ALTER TABLE "users" DROP COLUMN "name";', "data"),
        ("TRUNCATE orders;", "data"),
        ("DELETE FROM orders;", "data"),
        ("DELETE FROM orders WHERE id = 1;", "unknown"),
        ('ALTER TABLE "users" RENAME COLUMN "name" TO "full_name";', "old-version"),
        ("ALTER TABLE users RENAME TO people;", "old-version"),
        ("ALTER TABLE users ALTER COLUMN name SET NOT NULL;", "old-version"),
        ("ALTER TABLE users ADD COLUMN age INTEGER NOT NULL;", "old-version"),
        ("ALTER TABLE users ADD COLUMN age INTEGER NOT NULL DEFAULT 0;", None),
        ("ALTER TABLE users ADD COLUMN age INTEGER;", None),
        ("ALTER TABLE users ALTER COLUMN id SET DATA TYPE BIGINT;", "old-version"),
        ('CREATE UNIQUE INDEX "u" ON "users"("email");', "old-version"),
        ('CREATE INDEX "u" ON "users"("email");', "lock"),
        ("CREATE INDEX CONCURRENTLY u ON users(email);", None),
        ("ALTER TABLE orders ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES b(id);", "old-version"),
        ("ALTER TABLE orders ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES b(id) NOT VALID;", "old-version"),
        ('CREATE TABLE "n" ("id" INT);\nCREATE INDEX "i" ON "n"("id");\nALTER TABLE "n" ADD CONSTRAINT c CHECK (id > 0);', None),
        ("-- DROP TABLE users;\nINSERT INTO notes VALUES ('DROP TABLE users; it''s gone');", None),
        ("/* DROP TABLE a; */ CREATE FUNCTION f() RETURNS void AS $x$ DROP TABLE a; $x$ LANGUAGE sql;", None),
    ],
)
def test_risks_are_found_in_statements_only(sql: str, kind: str | None) -> None:
    findings = list(risks_of(Migration("1_a", sql.encode())))
    assert [risk.kind for risk in findings] == ([kind] if kind else [])
    assert all(risk.why and risk.statement in " ".join(sql.split()) for risk in findings)


def test_a_later_migration_knows_what_an_earlier_one_of_the_release_made():
    first, second = Migration("1_a", b"CREATE TABLE n (id int)"), Migration("2_b", b"ALTER TABLE n DROP COLUMN id; DROP TABLE x")
    assert [risk.statement for risk in risks_of_release([first, second])] == ["DROP TABLE x"]
    assert [risk.migration for risk in risks_of(second)] == ["2_b", "2_b"]


# --- ways of writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "lines", "texts"),
    [
        ("-- one\n\nSELECT E'it\\'s; DROP TABLE x';\nSELECT 2", [3, 4], ["SELECT E'it\\'s; DROP TABLE x'", "SELECT 2"]),
        ("/* a /* b; */ c; */\nSELECT 1; /* d */ SELECT 2 -- e;\n", [2, 2], ["SELECT 1", "SELECT 2"]),
        ("SELECT 1;\r\n-- é\r\nSELECT\r\n 2;\r\n", [1, 3], ["SELECT 1", "SELECT 2"]),
        ("\ufeffSELECT 1;\nSELECT 2", [1, 2], ["SELECT 1", "SELECT 2"]),
        ("SELECT $a$ ; $b$ ; $a$;\n\n\nSELECT 2;", [1, 4], ["SELECT $a$ ; $b$ ; $a$", "SELECT 2"]),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END;\nSELECT 3",
            [1, 2],
            ["CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", "SELECT 3"],
        ),
        ("", [], []),
        ("-- nothing\n", [], []),
    ],
)
def test_statements_are_split_as_postgresql_does(sql: str, lines: list[int], texts: list[str]):
    found = statements(sql)
    assert [statement.line for statement in found] == lines
    assert [statement.text for statement in found] == texts


@pytest.mark.parametrize(("sql", "line"), [("SELECT 1;\nSELEC 2;\nSELECT 3", 2), ("SELECT 1;\n\nSELECT é FROM ;", 3), ("SELECT\0 1", 1)])
def test_what_postgresql_cannot_parse_is_unknown_at_its_line(sql: str, line: int):
    (statement,) = statements(sql)
    assert (statement.line, statement.verdict) == (line, Verdict.UNKNOWN)
    assert "grammar" in statement.worst.reason


def test_one_statement_that_is_nested_too_deeply_hides_no_other():
    chain = "||".join(["a"] * 200)
    found = statements(f"SELECT 1;\n-- é\nSELECT {chain};\n\nDROP TABLE x;")
    assert [(statement.line, str(statement.verdict)) for statement in found] == [(1, "compatible"), (3, "unknown"), (5, "incompatible")]
    assert verdicts("SELECT " + "||".join(["a"] * 100_000)) == ["unknown"]
    assert verdicts("INSERT INTO x VALUES " + ", ".join(["(1, 'a')"] * 20_000)) == ["compatible"]


def test_names_are_those_of_the_search_path():
    sql = "SET search_path = billing; CREATE TABLE a (id int); ALTER TABLE billing.a DROP COLUMN id; ALTER TABLE public.a DROP COLUMN id"
    assert verdicts(sql) == ["compatible", "compatible", "compatible", "incompatible"]
    assert statements("ALTER TABLE public.a ADD b int; ALTER TABLE x.a ADD b int")[1].locks == {"x.a": Lock.ACCESS_EXCLUSIVE}


# --- what production's catalogue adds -------------------------------------------------------------------------------------


def test_sizes_are_told():
    facts = Facts(known=True, relations={"x": Relation("r", 1_234_567, 5 * 1024**3), "y": Relation("r"), "z": Relation("r", None, 10)})
    assert facts.size("x") == "about 1,234,567 rows, 5 GiB"
    assert (facts.size("y"), facts.size("nothing"), facts.size("z")) == ("", "", "rows never counted, 10 bytes")


def test_a_table_that_production_lacks_is_new_with_if_not_exists():
    facts = Facts(known=True, relations={"x": Relation("r")})
    sql = "CREATE TABLE IF NOT EXISTS {0} (id int); ALTER TABLE {0} DROP COLUMN id"
    assert verdicts(sql.format("n"), facts) == ["compatible", "compatible"]
    assert verdicts(sql.format("x"), facts) == ["compatible", "incompatible"]


def test_foreign_keys_of_production_lock_their_other_end():
    facts = Facts(known=True, relations={"x": Relation("r")}, constraints=(KnownConstraint("x", "k", "f", ("a",), "y"),))
    both = {"x": Lock.ACCESS_EXCLUSIVE, "y": Lock.ACCESS_EXCLUSIVE}
    for sql in ("ALTER TABLE x DROP COLUMN a", "ALTER TABLE x DROP CONSTRAINT k", "DROP TABLE x", "ALTER TABLE x ALTER a TYPE text"):
        assert statements(sql, facts)[0].locks == both
    assert statements("ALTER TABLE x RENAME TO z; ALTER TABLE z DROP COLUMN a", facts)[1].locks["y"] is Lock.ACCESS_EXCLUSIVE


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("character varying(20)", "varchar(20)", True),
        ("character varying(20)", "varchar(19)", False),
        ("character varying", "varchar(19)", False),
        ("character varying(20)", "varchar", True),
        ("timestamp(3) with time zone", "timestamptz(6)", True),
        ("timestamp(3) with time zone", "timestamp(6)", False),
        ("timestamp(3) without time zone", "timestamp", True),
        ("numeric(10,2)", "numeric(11,2)", True),
        ("numeric(10,2)", "numeric(11,3)", False),
        ("numeric(10,2)", "numeric(9,2)", False),
        ("integer", "integer", True),
        ("integer", "bigint", False),
        ("inet", "cidr", False),
        ("text", "varchar", True),
        ("json", "text", False),
        ("", "text", False),
    ],
)
def test_only_a_wider_type_of_the_same_kind_keeps_the_rows_as_they_are(old: str, new: str, kept: bool):
    assert keeps_bytes(old, new) is kept


# --- nothing bad passes ---------------------------------------------------------------------------------------------------

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
