"""What statements are told to do to the version that runs: reports from the field, ways of writing, and that nothing bad passes."""

from __future__ import annotations

import pytest

from azora_ci.database.migrations.history import Migration
from azora_ci.database.migrations.judgement.alter import keeps_bytes
from azora_ci.database.migrations.judgement.judge import judge, risks_of
from azora_ci.database.migrations.judgement.model import Facts, KnownConstraint, Lock, Relation, Verdict, worst
from tests.database.migrations.judgement import traced


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


# What a release makes and then changes: nobody uses it yet.
OWN = (
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'; "
    "DROP FUNCTION f()",
    "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'; DROP PROCEDURE p()",
    "CREATE TYPE k AS ENUM ('a'); ALTER TYPE k RENAME VALUE 'a' TO 'b'; ALTER TYPE k RENAME TO j",
    "CREATE TYPE k AS ENUM ('a'); DROP TYPE k",
    "CREATE TYPE k AS (a int); ALTER TYPE k ADD ATTRIBUTE b int; DROP TYPE k",
    "CREATE DOMAIN d AS int; ALTER DOMAIN d ADD CHECK (VALUE > 0); DROP DOMAIN d",
    "CREATE SCHEMA s2; CREATE TABLE s2.n (id int); ALTER TABLE s2.n DROP COLUMN id; DROP TABLE s2.n; DROP SCHEMA s2",
    "CREATE SCHEMA s2 CREATE TABLE n (id int); ALTER SCHEMA s2 RENAME TO s3",
    "CREATE VIEW w AS SELECT 1 AS a; CREATE OR REPLACE VIEW w AS SELECT 2 AS a; ALTER VIEW w RENAME TO w2; DROP VIEW w2",
    "CREATE SEQUENCE q2; ALTER SEQUENCE q2 RESTART WITH 5; DROP SEQUENCE q2",
    "ALTER SEQUENCE q2 OWNED BY x.a",
    "CREATE INDEX i ON x (a); ALTER INDEX i RENAME TO j; DROP INDEX j",
    "ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD CONSTRAINT u UNIQUE (e); ALTER TABLE x RENAME CONSTRAINT u TO w",
    "ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD CONSTRAINT u UNIQUE (e); ALTER TABLE x DROP CONSTRAINT u",
    "ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ALTER e TYPE text; ALTER TABLE x RENAME e TO g; UPDATE x SET g = 1; "
    "ALTER TABLE x DROP g",
    "ALTER TABLE x ADD COLUMN e int NOT NULL DEFAULT 1; ALTER TABLE x ALTER e DROP NOT NULL; ALTER TABLE x ALTER e DROP DEFAULT",
    "ALTER TABLE x ADD COLUMN e int NOT NULL DEFAULT 1; ALTER TABLE x ALTER e SET DEFAULT 2; ALTER TABLE x ALTER e SET NOT NULL",
    "CREATE TABLE n (id int NOT NULL); CREATE TRIGGER g BEFORE INSERT ON n EXECUTE FUNCTION f(); DROP TRIGGER g ON n; ALTER TABLE n "
    "ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON n USING (true); ALTER POLICY p ON n RENAME TO p2; DROP POLICY p2 ON n; "
    "ALTER TABLE n ALTER id ADD GENERATED ALWAYS AS IDENTITY; ALTER TABLE n ALTER id DROP IDENTITY; ALTER TABLE n ADD PRIMARY KEY (id); "
    "CREATE RULE r AS ON INSERT TO n DO NOTHING; REVOKE ALL ON n FROM app; COPY n FROM STDIN; TRUNCATE n; DELETE FROM n",
    "CREATE TABLE n (id int); ALTER TABLE n SET SCHEMA s; ALTER TABLE s.n DROP COLUMN id",
    "CREATE TABLE n (id int); MERGE INTO n USING x ON n.id = x.id WHEN MATCHED THEN DELETE",
    "CREATE TABLE n (id int); INSERT INTO n VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 2; CREATE UNIQUE INDEX ON n (id)",
    "CREATE TABLE n (LIKE x); ALTER TABLE x ATTACH PARTITION n FOR VALUES IN (5)",
    "SELECT 1 AS id INTO n; DROP TABLE n",
    "CREATE MATERIALIZED VIEW m AS SELECT 1 AS a; DROP MATERIALIZED VIEW m",
    "DO '/* $block$ $block_$ */ BEGIN NULL; END'",
    "DO $$ DECLARE n int := 1; BEGIN n := n + 1; IF n > 1 THEN RAISE NOTICE 'x'; END IF; PERFORM 1; RETURN; END $$",
    "SAVEPOINT a; RELEASE a; COMMIT; SET lock_timeout = '5s'; RESET lock_timeout; SHOW lock_timeout",
    "COPY x TO STDOUT; COPY x FROM STDIN; GRANT SELECT ON x TO app; COMMENT ON COLUMN x.a IS 'b'; VACUUM x; REINDEX TABLE x",
)  # fmt: skip


@pytest.mark.parametrize("sql", OWN)
def test_what_the_release_itself_made_may_be_changed(sql: str):
    told = [(statement.text, statement.worst.reason) for statement in statements(sql) if statement.verdict is not Verdict.COMPATIBLE]
    assert told == []


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("ALTER TYPE t SET SCHEMA s", "incompatible"),
        ("ALTER TABLE x ADD e int DEFAULT 1; ALTER TABLE x ALTER e DROP DEFAULT; ALTER TABLE x ALTER e SET NOT NULL", "incompatible"),
        ("CREATE TABLE n AS SELECT 1 AS id; ALTER TABLE public.n DROP COLUMN id", "compatible"),
        ("CREATE SCHEMA IF NOT EXISTS s; ALTER TABLE s.x DROP COLUMN id", "incompatible"),
        ("CREATE INDEX IF NOT EXISTS i ON x (a); DROP INDEX i", "unknown"),
        ("DO $$ BEGIN EXECUTE NULL; END $$", "unknown"),
        ("DO $$ BEGIN EXECUTE 5; END $$", "unknown"),
        ("CREATE SCHEMA s2 CREATE TABLE x (id int); ALTER TABLE x DROP COLUMN id", "incompatible"),
        ("CREATE SCHEMA s2 CREATE TABLE x (id int) GRANT SELECT ON x TO app; ALTER TABLE s2.x DROP COLUMN id", "compatible"),
        ("ALTER TABLE x ADD COLUMN e int REFERENCES y; ALTER TABLE x ALTER e SET DEFAULT 1", "unknown"),
        ("ALTER TABLE x ADD COLUMN e int CHECK (e > 5); ALTER TABLE x ALTER e SET DEFAULT 1", "unknown"),
        ("ALTER TABLE x SET SCHEMA s; ALTER TABLE s.x DROP COLUMN id", "incompatible"),
        ("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'; DROP FUNCTION f()", "incompatible"),
        ("CREATE TABLE n (id int); DROP TABLE n CASCADE", "unknown"),
        ("CREATE SCHEMA s2; DROP SCHEMA s", "incompatible"),
        ("CREATE TYPE k AS ENUM ('a'); DROP TYPE j", "incompatible"),
        ("CREATE TYPE k AS ENUM ('a'); ALTER TYPE j RENAME TO k2", "incompatible"),
        ("CREATE TABLE n (id int); REVOKE ALL ON n, x FROM app", "incompatible"),
        ("REVOKE admin FROM app", "incompatible"),
        ("CREATE TABLE n (id int); TRUNCATE n, x", "incompatible"),
        ("COPY x TO PROGRAM 'rm'", "unknown"),
        ("COPY (SELECT f()) TO STDOUT", "unknown"),
        ("COPY x FROM PROGRAM 'ls'", "unknown"),
        ("ALTER DOMAIN d SET DEFAULT 5", "unknown"),
        ("ALTER DOMAIN d SET NOT NULL", "incompatible"),
        ("ALTER DOMAIN d VALIDATE CONSTRAINT c", "compatible"),
        ("ALTER POLICY p ON x USING (false)", "unknown"),
        ("ALTER TRIGGER g ON x RENAME TO g2", "unknown"),
        ("ALTER TABLE x ALTER a ADD GENERATED BY DEFAULT AS IDENTITY", "unknown"),
        ("ALTER TABLE x ADD COLUMN e int DEFAULT 1; ALTER TABLE x ADD CONSTRAINT k CHECK (e > 0)", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD CONSTRAINT k CHECK (e > 0 OR id > 5)", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD CONSTRAINT k CHECK (coalesce(e, 0) > 0)", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD CONSTRAINT k CHECK (false)", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD CONSTRAINT k UNIQUE NULLS NOT DISTINCT (e)", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int; CREATE UNIQUE INDEX ON x (e) NULLS NOT DISTINCT", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD PRIMARY KEY (e)", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int; ALTER TABLE x ADD FOREIGN KEY (e, id) REFERENCES y (a, b) MATCH FULL", "incompatible"),
        ("ALTER TABLE x ADD COLUMN e int CHECK (e > 0) DEFAULT 0", "unknown"),
        ("ALTER TABLE x ADD COLUMN e int CHECK (e IS DISTINCT FROM NULL)", "unknown"),
        ("CREATE UNIQUE INDEX i ON y (a); ALTER TABLE x ADD CONSTRAINT k UNIQUE USING INDEX i", "incompatible"),
        ("CREATE DOMAIN d2 AS int NOT NULL; ALTER TABLE x ADD COLUMN e d2", "unknown"),
        ("CREATE DOMAIN d2 AS int; ALTER TABLE x ADD COLUMN e d2", "compatible"),
        ("ALTER FOREIGN TABLE x OPTIONS (a 'b')", "unknown"),
        ("ALTER VIEW v ALTER a SET DEFAULT 1", "unknown"),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", "unknown"),
        ("CREATE OR REPLACE AGGREGATE a (int) (sfunc = f, stype = int)", "unknown"),
        ("SELECT nextval('q')", "compatible"),
        ("SELECT pg_catalog.set_config('search_path', '', false)", "compatible"),
        ("MERGE INTO x USING y ON x.id = y.id WHEN MATCHED THEN DELETE", "unknown"),
        ("UPDATE x SET a = f() WHERE id = 1", "unknown"),
        ("DO $$ BEGIN FOR i IN 1..3 LOOP DELETE FROM x; END LOOP; END $$", "incompatible"),
        ("DO $$ BEGIN PERFORM f(); END $$", "unknown"),
        ("DO $$ DECLARE r record; BEGIN FOR r IN SELECT 1 LOOP EXECUTE 'DROP TABLE ' || r; END LOOP; END $$", "unknown"),
        ("DO $$ BEGIN nonsense", "unknown"),
        ("ROLLBACK", "unknown"),
    ],
)
def test_verdicts(sql: str, expected: str):
    assert worst(statements(sql)) == expected


def test_every_kind_of_statement_has_its_verdict_inside_a_block_too():
    for verdict, sql in (line.split(" | ", 1) for line in traced.KINDS):
        assert (sql, verdicts(sql)) == (sql, [verdict])
        assert len(verdicts(f"DO $w$ BEGIN {sql}; END $w$", Facts(known=True))) == 1


def test_tables_that_point_to_others_say_so():
    told = [statement.worst.reason for statement in statements(
        "CREATE TABLE n (id int REFERENCES x); CREATE TABLE m (id int); CREATE TABLE k PARTITION OF x DEFAULT; "
        "ALTER TABLE m ADD FOREIGN KEY (id) REFERENCES x; ALTER TABLE m ADD FOREIGN KEY (id) REFERENCES x ON DELETE CASCADE"
    )]  # fmt: skip
    assert ["keep the running version from deleting" in reason for reason in told] == [True, False, False, True, False]


def test_a_table_under_an_old_name_is_used_at_once():
    sql = "ALTER TABLE a RENAME TO a_old; CREATE TABLE a (id int); ALTER TABLE a ADD b int NOT NULL; ALTER TABLE a_old DROP COLUMN id"
    assert verdicts(sql) == ["incompatible", "compatible", "incompatible", "incompatible"]


def test_a_column_that_was_added_is_forgotten_with_its_table():
    told = verdicts("ALTER TABLE x ADD e int; DROP TABLE x; CREATE TABLE x (id int, e int); ALTER TABLE x DROP e")
    assert told == ["compatible", "incompatible", "compatible", "incompatible"]


def test_a_statement_knows_its_last_line():
    assert [(found.line, found.last_line) for found in statements("SELECT 1;\nSELECT\n 2,\n 3; SELECT 4")] == [(1, 1), (2, 4), (4, 4)]


def test_what_a_new_schema_brings_along_is_judged():
    (statement,) = statements("CREATE SCHEMA s2 CREATE VIEW v AS SELECT 1 GRANT SELECT ON v TO app")
    assert [action.what for action in statement.actions] == ["CREATE VIEW", "GRANT", "CREATE SCHEMA"]


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
    findings = list(risks_of([Migration("1_a", sql.encode())]))
    assert [risk.kind for risk in findings] == ([kind] if kind else [])
    assert all(risk.why and risk.statement in " ".join(sql.split()) for risk in findings)


def test_a_risk_says_why():
    (blocked,) = risks_of([Migration("1_a", b"CREATE INDEX i ON x (a)")])
    assert blocked.why == "nobody can write in x until it is done (SHARE). nothing that the running version uses is changed"
    (refused,) = risks_of([Migration("1_a", b"CREATE UNIQUE INDEX i ON x (a)")])
    assert refused.why.startswith("CREATE UNIQUE INDEX: writes of the running version that it refuses fail")


def test_an_index_follows_its_table():
    told = statements("CREATE INDEX i ON x (a); CREATE INDEX j ON y (a); ALTER TABLE x RENAME TO z; DROP INDEX i; DROP INDEX j")
    assert [statement.locks for statement in told[3:]] == [{"z": Lock.ACCESS_EXCLUSIVE}, {"y": Lock.ACCESS_EXCLUSIVE}]


def test_a_later_migration_knows_what_an_earlier_one_of_the_release_made():
    first, second = Migration("1_a", b"CREATE TABLE n (id int)"), Migration("2_b", b"ALTER TABLE n DROP COLUMN id; DROP TABLE x")
    assert [risk.statement for risk in risks_of([first, second])] == ["DROP TABLE x"]
    assert [risk.migration for risk in risks_of([second])] == ["2_b", "2_b"]


# --- ways of writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "lines", "texts"),
    [
        ("-- one\n\nSELECT E'it\\'s; DROP TABLE x';\nSELECT 2", [3, 4], ["SELECT E'it\\'s; DROP TABLE x'", "SELECT 2"]),
        ("/* a /* b; */ c; */\nSELECT 1; /* d */ SELECT 2 -- e;\n", [2, 2], ["SELECT 1", "SELECT 2"]),
        ("SELECT 1;\r\n-- é\r\nSELECT\r\n 2;\r\n", [1, 3], ["SELECT 1", "SELECT 2"]),
        ("\ufeffSELECT 1;\nSELECT 2", [1, 2], ["SELECT 1", "SELECT 2"]),
        ("SELECT 1;\n\n\n-- a\n-- b\nSELECT 2;\n\n\n\n", [1, 6], ["SELECT 1", "SELECT 2"]),
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
    assert all(statement.last_line >= statement.line for statement in found)


@pytest.mark.parametrize(("sql", "line"), [("SELECT 1;\nSELEC 2;\nSELECT 3", 2), ("SELECT 1;\n\nSELECT é FROM ;", 3), ("SELECT\0 1", 1)])
def test_what_postgresql_cannot_parse_is_unknown_at_its_line(sql: str, line: int):
    (statement,) = statements(sql)
    assert (statement.line, statement.verdict) == (line, Verdict.UNKNOWN)
    assert statement.text in {"SELEC 2;", "SELECT é FROM ;", ""}
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
    assert Facts(relations={"x": Relation("r", 0, 1024), "y": Relation("r", 0, 1023)}).size("x") == "about 0 rows, 1 KiB"
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
