"""The catalogue of a real database before and after a change names what changed, in every schema."""

from __future__ import annotations

import pytest

from azora_ci.database.migrations import catalogue
from azora_ci.database.migrations.catalogue import Change
from azora_ci.database.postgres import DatabaseUrl
from tests.conftest import DatabaseMaker

START = """CREATE SCHEMA billing;
CREATE TABLE orders (id int PRIMARY KEY, note text);
CREATE TABLE billing.invoices (id int PRIMARY KEY, "Total" int DEFAULT 0);
CREATE TYPE billing.mood AS ENUM ('sad', 'happy');
CREATE VIEW billing.open AS SELECT id FROM billing.invoices;
CREATE FUNCTION billing.tax(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE TABLE _prisma_migrations (id int)"""


@pytest.mark.parametrize(
    ("change", "gained", "lost"),
    [
        ("ALTER TABLE orders ADD COLUMN total int NOT NULL", {"column orders.total integer not null"}, set()),
        ("ALTER TABLE orders ADD CONSTRAINT positive CHECK (id > 0)", {"constraint positive on orders CHECK ((id > 0))"}, set()),
        ('CREATE INDEX by_total ON billing.invoices ("Total")', {'index by_total on billing.invoices btree ("Total")'}, set()),
        (
            'ALTER TABLE billing.invoices ALTER "Total" DROP DEFAULT',
            {'column billing.invoices."Total" integer'},
            {'column billing.invoices."Total" integer default 0'},
        ),
        ("ALTER TABLE orders DROP CONSTRAINT orders_pkey", set(), {"index orders_pkey on orders unique btree (id)"}),
        (
            "ALTER TYPE billing.mood ADD VALUE 'so'",
            {"type billing.mood of 'sad', 'happy', 'so'"},
            {"type billing.mood of 'sad', 'happy'"},
        ),
        ("CREATE SCHEMA audit", {"schema audit"}, set()),
        ("CREATE SEQUENCE billing.numbers", {"sequence billing.numbers"}, set()),
        ("CREATE DOMAIN billing.euro AS numeric", {"type billing.euro"}, set()),
        ("ALTER TABLE _prisma_migrations ADD COLUMN logs text", set(), set()),
        ("CREATE TEMPORARY TABLE scratch (id int)", set(), set()),
        ("INSERT INTO orders VALUES (1)", set(), set()),
    ],
)
def test_a_change_is_named(postgres_cluster: DatabaseMaker, change: str, gained: set[str], lost: set[str]) -> None:
    url = postgres_cluster.fresh(START)
    before = catalogue.read(DatabaseUrl.parse(url))
    postgres_cluster.execute(url, change)
    difference = Change.between(before, catalogue.read(DatabaseUrl.parse(url)))
    assert (set(difference.gained), set(difference.lost)) == (gained, lost)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE OR REPLACE VIEW billing.open AS SELECT id FROM billing.invoices WHERE id > 1",
        "CREATE OR REPLACE FUNCTION billing.tax(int) RETURNS int LANGUAGE sql AS 'SELECT $1 + 1'",
        "CREATE POLICY own ON orders USING (id > 0)",
        "CREATE RULE quiet AS ON DELETE TO orders DO INSTEAD NOTHING",
        "CREATE TRIGGER same BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON billing.invoices TO pg_monitor",
        "ALTER TABLE orders ALTER id ADD GENERATED ALWAYS AS IDENTITY",
    ],
)
def test_another_definition_is_noticed(postgres_cluster: DatabaseMaker, change: str) -> None:
    url = postgres_cluster.fresh(START)
    before = catalogue.read(DatabaseUrl.parse(url))
    postgres_cluster.execute(url, change)
    assert Change.between(before, catalogue.read(DatabaseUrl.parse(url)))


DJANGO = "CREATE TABLE django_migrations (id int, app text, name text)"
ALEMBIC = "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('a1')"


@pytest.mark.parametrize(
    ("start", "change", "applied"),
    [
        (DJANGO, "SELECT 1", 0),
        (DJANGO, "INSERT INTO django_migrations VALUES (1, 'shop', '0001_initial'), (2, 'shop', '0002_price')", 2),
        (DJANGO, "CREATE TABLE made_by_somebody_else (id int)", None),
        (ALEMBIC, "UPDATE alembic_version SET version_num = 'c3'", None),
        (ALEMBIC, "SELECT 1", 0),
        ("SELECT 1", "CREATE TABLE a (id int)", None),
        ("SELECT 1", "SELECT 1", None),
        ("CREATE SCHEMA drizzle", "CREATE TABLE drizzle.__drizzle_migrations AS SELECT 1 AS id", 1),
    ],
)
def test_the_histories_of_tools_say_how_many_were_applied(
    postgres_cluster: DatabaseMaker, start: str, change: str, applied: int | None
) -> None:
    url = postgres_cluster.fresh(start)
    before = catalogue.read(DatabaseUrl.parse(url))
    postgres_cluster.execute(url, change)
    difference = Change.between(before, catalogue.read(DatabaseUrl.parse(url)))
    assert difference.applied == applied


def test_a_long_change_is_shortened_for_people_and_bounded_as_evidence() -> None:
    change = Change.between([], [f"table t{number:03}" for number in range(150)])
    assert len(change.evidence()["schema_gained"]) == catalogue.MOST
    assert "table t009 and 140 more; and lost: nothing" in change.describe()
    assert "as before, in every schema" in Change.between([], []).describe()
