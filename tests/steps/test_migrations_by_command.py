"""Another tool's migrations run behind the backup as Prisma's do: psql, and a tool with a history of its own, on good and on bad days."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest

from azora_ci.database import postgres
from azora_ci.database.postgres import DatabaseUrl
from tests.support import ROOT
from tests.support.migration_world import ID, Deployment
from tests.support.waiting import until

SCRIPT = ROOT / "scripts" / "database_migrations.py"
PSQL = [str(postgres.find_binary("psql", None)), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
# What a tool of migrations does, by psql alone: a table of its own says what is applied, and each migration is applied once.
TOOL = """CREATE TABLE IF NOT EXISTS schema_migrations (version text PRIMARY KEY);
SELECT count(*) = 0 AS pending FROM schema_migrations WHERE version = '0001' \\gset
\\if :pending
BEGIN;
CREATE SCHEMA billing;
CREATE TABLE billing.invoices (id int PRIMARY KEY);
INSERT INTO schema_migrations VALUES ('0001');
COMMIT;
\\endif
"""


def configured(production: Deployment, sql: str, *options: str) -> Deployment:
    """Have psql run a file of the application."""
    (production.folder / "migrate.sql").write_text(sql, encoding="utf-8")
    production.configure_command([*PSQL, *options, "-f", "migrate.sql"])
    return production


def tables(production: Deployment) -> list[object]:
    return [name for (name,) in production.maker.execute(production.url, "SELECT tablename FROM pg_tables WHERE schemaname = 'billing'")]


def test_a_command_migrates_and_a_second_run_changes_nothing(production: Deployment) -> None:
    configured(production, TOOL).back_up()
    summary = production.folder / "summary.md"
    assert production.run(GITHUB_STEP_SUMMARY=str(summary)) == 0, production.log
    evidence = production.evidence
    assert (evidence["tool"], evidence["exit_code"], evidence["isolation"]) == ("command", 0, "namespaces")
    assert {"schema billing", "table billing.invoices", "column billing.invoices.id integer not null"} <= set(evidence["schema_gained"])
    assert "history public.schema_migrations: (0001)" in evidence["schema_gained"]
    assert (evidence["migrations_applied"], evidence["applied"], evidence["schema_lost"]) == (1, [], [])
    assert "+ table billing.invoices" in summary.read_text(encoding="utf-8")
    assert "are those of the commit" not in production.log and "is reported by the job build alone" in production.log
    assert production.output.read_text(encoding="utf-8").splitlines()[1] == "1"

    assert production.run() == 0, production.log
    assert (production.evidence["schema_gained"], production.evidence["migrations_applied"]) == ([], 0)
    assert "as before, in every schema" in production.log


def test_a_later_attempt_does_not_say_that_nothing_was_applied(production: Deployment) -> None:
    configured(production, TOOL).back_up()
    assert production.run() == 0
    assert production.run(GITHUB_RUN_ATTEMPT="2") == 0
    assert (production.evidence["schema_gained"], production.evidence["migrations_applied"]) == ([], None)


def test_a_command_that_fails_half_way_says_what_stayed(production: Deployment) -> None:
    sql = "CREATE SCHEMA billing; CREATE TABLE billing.invoices (id int); ALTER TABLE users ADD COLUMN vat text;\nSELECT 1 / 0;"
    configured(production, sql).back_up()
    assert production.run() == 1
    error = production.error
    assert error["title"] == "The migrate command failed"
    for said in ("exit code 3", "division by zero", "table billing.invoices", "column users.vat text", f"backup-{ID}", "proven"):
        assert said in error["what"]
    assert "table billing.invoices" in production.evidence["schema_gained"]
    assert "restore the backup" in error["next"]


def test_a_command_that_is_undone_by_itself_changed_nothing(production: Deployment) -> None:
    configured(production, "CREATE SCHEMA billing;\nSELECT 1 / 0;", "-1").back_up()
    assert production.run() == 1
    assert "as before, in every schema" in production.error["what"]
    assert production.evidence["schema_gained"] == []


def test_a_command_gets_the_database_under_the_applications_names(production: Deployment) -> None:
    names = {"APP_URL": "url", "DB_HOST": "host", "DB_PASSWORD": "password", "FLYWAY_URL": "jdbc"}
    production.configure_command(["sh", "-c", "env | sort; exit 1"], variables=names)
    production.back_up()
    assert production.run() == 1
    url = DatabaseUrl.parse(production.url)
    for line in (
        "APP_URL=***",
        "DB_HOST=127.0.0.1",
        "DB_PASSWORD=***",
        f"FLYWAY_URL=jdbc:postgresql://127.0.0.1:{url.port}/{url.database}",
    ):
        assert line in production.log
    assert " DATABASE_URL=" not in production.log
    assert url.password not in production.log


def test_prisma_gets_the_database_under_the_applications_names(production: Deployment) -> None:
    production.configure(migrate=["sh", "-c", "env | sort; exit 1"], variables={"APP_URL": "url", "DIRECT_URL": "url"})
    production.back_up()
    assert production.run() == 1
    assert "APP_URL=***" in production.log
    assert "DIRECT_URL=***" in production.log
    assert "\nDATABASE_URL=" not in production.log


def test_a_stale_backup_closes_the_gate(production: Deployment) -> None:
    configured(production, TOOL).back_up(timedelta(minutes=121))
    assert production.run() == 1
    assert (production.error["title"], tables(production)) == ("The backup is too old", [])
    assert "was not started and nothing was applied" in production.error["what"]


def test_no_migrations_are_said_and_nothing_runs(production: Deployment) -> None:
    production.configure_command([])
    production.built = True  # no tree is needed
    production.back_up()
    assert production.run() == 0, production.log
    evidence = production.evidence
    assert (evidence["tool"], evidence["migrations_applied"], evidence["applied"]) == ("none", 0, [])
    assert "no migrations: migrations.command is empty" in production.log
    assert "isolation" not in evidence


def test_a_cancelled_command_leaves_evidence_of_its_state(production: Deployment, running: Callable[..., subprocess.Popen[str]]) -> None:
    configured(production, "CREATE SCHEMA billing;\nSELECT pg_sleep(600);").back_up()
    step = running([sys.executable, str(SCRIPT)], production.folder, production.environ(GITHUB_OUTPUT=""))
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep(600)%'"
    until(lambda: production.maker.execute(production.url, sleeping) == [(1,)] or step.poll() is not None, "the slow migration", 60)
    step.send_signal(signal.SIGTERM)
    assert step.wait(30) == 1
    assert production.fragment()["status"] == "cancelled"
    assert production.evidence["schema_gained"] == ["schema billing"]
    assert "schema billing" in production.error["what"]


@pytest.mark.parametrize(("command", "said"), [(["no-such-tool"], "No such file or directory"), (["sh", "-c", "exit 7"], "exit code 7")])
def test_a_command_that_cannot_migrate(production: Deployment, command: list[str], said: str) -> None:
    production.configure_command(command)
    production.back_up()
    assert production.run() == 1, production.log
    assert said in production.error["what"]
    assert production.evidence["schema_gained"] == []
