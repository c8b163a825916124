"""pre-deployment-validation judges the pending migrations by production, which it only reads: annotations, evidence, and the gate."""

# ruff: noqa: F811 - arguments are named as the fixtures that are imported
from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import DatabaseMaker
from tests.steps.test_pre_deployment_validation import World, edge, site, world  # noqa: F401 - its repository and production
from tests.support import prisma_table

ORDERS = "CREATE TABLE orders (id int, total int); INSERT INTO orders SELECT n, n FROM generate_series(1, 1000) n; ANALYZE orders;"
FILE = "prisma/migrations/2_next/migration.sql"


def deploy(world: World, maker: DatabaseMaker, sql: str, *, applied: tuple[str, ...] = ("1_start",), **environ: str) -> int:
    """Run the gates with a second migration; production has ``orders``, and has applied the first."""
    (world.folder / FILE).parent.mkdir(exist_ok=True)
    (world.folder / FILE).write_text(sql)
    maker.execute(
        world.means["PROD_DATABASE_URL"], ORDERS + prisma_table.with_migrations(*applied, folder=world.folder / "prisma/migrations")
    )
    return world.run(**environ)


def judged(world: World) -> dict[str, Any]:
    return dict(world.evidence["migrations"])


def test_an_incompatible_migration_is_told_at_its_line_and_recorded(
    world: World, postgres_cluster: DatabaseMaker, capsys: pytest.CaptureFixture[str]
):
    sql = "-- a comment\nALTER TABLE orders ADD COLUMN note text;\n\nALTER TABLE orders\n  DROP COLUMN total;\n"
    assert deploy(world, postgres_cluster, sql, GITHUB_ACTIONS="true") == 0
    judgement = judged(world)["judgement"]
    assert (judgement["files"], judgement["statements"], judgement["verdict"]) == ([FILE], 2, "incompatible")
    (finding,) = judgement["findings"]
    assert (finding["file"], finding["line"], finding["kind"]) == (FILE, 4, "data")
    assert finding["locks"] == {"orders": "ACCESS EXCLUSIVE"}
    assert "ban-drop-column" in finding["rules"]
    output = capsys.readouterr().out
    assert f"::warning file={FILE},line=4,title=The running version does not bear this migration::ALTER TABLE orders DROP COLUMN" in output
    assert output.count(f"file={FILE}") == 1
    assert "MIGRATIONS_INCOMPATIBLE_REASON is not set" in world.log
    assert "| pending migrations | the running version | ✓ incompatible, 1 pending, 1 findings |" in (world.folder / "summary").read_text()
    assert "override_reason" not in world.evidence


def test_a_reason_lands_in_the_record(world: World, postgres_cluster: DatabaseMaker):
    reason = "unused since v1.1.0"
    assert deploy(world, postgres_cluster, "DROP TABLE orders", MIGRATIONS_INCOMPATIBLE_REASON=reason) == 0
    assert judged(world)["reason"] == reason
    assert world.evidence["override_reason"] == f"migrations are incompatible: {reason}"


@pytest.mark.parametrize("sql", ["ALTER TABLE orders ALTER COLUMN total TYPE bigint", "SELECT archive_orders()"])
def test_the_gate_is_closed_where_only_compatible_migrations_may_pass(world: World, postgres_cluster: DatabaseMaker, sql: str):
    assert deploy(world, postgres_cluster, sql, MIGRATIONS_REQUIRE_COMPATIBLE="true", MIGRATIONS_INCOMPATIBLE_REASON="none counts") == 1
    assert world.evidence["problems"][0]["where"] == f"{FILE}:1"
    assert world.evidence["problems"][0]["next"]


def test_a_compatible_migration_passes_and_whom_it_stops_is_a_notice(
    world: World, postgres_cluster: DatabaseMaker, capsys: pytest.CaptureFixture[str]
):
    sql = "CREATE INDEX orders_total ON orders (total)"
    assert deploy(world, postgres_cluster, sql, MIGRATIONS_REQUIRE_COMPATIBLE="true", GITHUB_ACTIONS="true") == 0
    (finding,) = judged(world)["judgement"]["findings"]
    assert finding["waits"]["orders"].startswith("nobody can write (SHARE) until it is done; about 1,000 rows, ")
    assert f"::notice file={FILE},line=1,title=Users wait for this migration::" in capsys.readouterr().out


def test_production_is_only_read_and_what_is_applied_is_not_judged(world: World, postgres_cluster: DatabaseMaker):
    assert deploy(world, postgres_cluster, "DROP TABLE orders", applied=("1_start", "2_next"), MIGRATIONS_REQUIRE_COMPATIBLE="true") == 0
    assert judged(world)["judgement"]["files"] == []
    assert postgres_cluster.execute(world.means["PROD_DATABASE_URL"], "SELECT count(*) FROM orders") == [(1000,)]
    assert "✓ 0 pending migrations" in world.log


def test_files_of_another_tool_are_judged_by_its_history(world: World, postgres_cluster: DatabaseMaker):
    world.sections = {"database": {}, "migrations": {"command": ["dbmate", "up"]}}
    folder = world.folder / "db/migrations"
    folder.mkdir(parents=True)
    (folder / "20260101000000_start.sql").write_text("-- migrate:up\nSELECT 1;\n-- migrate:down\nDROP TABLE orders;\n")
    (folder / "20260201000000_next.sql").write_text("-- migrate:up\nALTER TABLE orders ADD a int;\n-- migrate:down\nDROP TABLE orders;\n")
    history = "CREATE TABLE schema_migrations (version text); INSERT INTO schema_migrations VALUES ('20260101000000');"
    assert deploy(world, postgres_cluster, history) == 0
    assert judged(world)["judgement"] is None  # no history is there yet
    assert "known to their tool alone" in judged(world)["not_judged"]
    postgres_cluster.execute(world.means["PROD_DATABASE_URL"], history)
    assert world.run(MIGRATIONS_REQUIRE_COMPATIBLE="true") == 0
    assert judged(world)["judgement"]["files"] == ["db/migrations/20260201000000_next.sql"]


def test_what_cannot_be_judged_closes_the_gate_only_where_that_is_asked(world: World, postgres_cluster: DatabaseMaker):
    world.sections = {"database": {}, "migrations": {"command": ["python", "manage.py", "migrate"]}}
    assert world.run() == 0
    assert world.run(MIGRATIONS_REQUIRE_COMPATIBLE="true") == 1
    assert "migrations are not judged" in world.error


EDITED = "UPDATE _prisma_migrations SET checksum = 'another' WHERE migration_name = '1_start';"
REFUSED: dict[str, tuple[tuple[str, ...], str | None, str, str]] = {
    "edited": (("1_start",), None, EDITED, "Applied migrations were edited: 1_start: applied with SHA-256 another"),
    "deleted": (("1_gone", "1_start"), None, "", "Applied migrations are gone from the release: applied in the database"),
    "failed": (("1_start",), "2_next", "", "A failed migration blocks the database: 2_next: began"),
    "diverged": (("1_start", "3_other"), None, "", "Release and database have diverged: only the database has: 3_other"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_database_migrations_would_refuse_is_refused_before_the_backup(world: World, postgres_cluster: DatabaseMaker, how: str):
    applied, failed, further, said = REFUSED[how]
    table = prisma_table.with_migrations(*applied, failed=failed, folder=world.folder / "prisma/migrations") + further
    (world.folder / FILE).parent.mkdir(exist_ok=True)
    (world.folder / FILE).write_text("SELECT 1;")
    postgres_cluster.execute(world.means["PROD_DATABASE_URL"], table)
    assert world.run() == 1
    (problem,) = world.evidence["problems"]
    assert problem["where"] == "prisma/migrations and _prisma_migrations of the production database"
    assert problem["what"].startswith(said)
    assert problem["next"]
    assert judged(world)["not_judged"] == problem["what"]
