"""These tests run database-migrations where a statement in the middle fails or the job itself dies, and what the next run makes of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from azora_ci.rehearsal import application
from tests.support import ROOT
from tests.support.migration_world import Deployment
from tests.support.waiting import until

SCRIPT = ROOT / "scripts" / "database_migrations.py"
NAME = "20991231000000_last"
SLEEPS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep(600)%'"


def only(production: Deployment, sql: str) -> None:
    """Leave one pending migration."""
    for name in application.NEW_MIGRATIONS:
        shutil.rmtree(application.migrations(production.folder) / name)
    production.add(NAME, sql)
    production.back_up()


def test_two_runs_at_once_then_one_is_killed_and_another_reruns(
    production: Deployment, running: Callable[..., subprocess.Popen[str]]
) -> None:
    only(production, "CREATE TABLE first (id int);\nSELECT pg_sleep(600);\nCREATE TABLE third (id int);\n")
    step = running([sys.executable, str(SCRIPT)], production.folder, production.environ(GITHUB_OUTPUT=""))
    until(lambda: production.maker.execute(production.url, SLEEPS) == [(1,)] or step.poll() is not None, "the sleep", 120)
    elsewhere = str(production.logs / "second")
    assert production.run(DEPLOYMENT_LOG_DIR=elsewhere) == 1
    second = json.loads((production.logs / "second/record/database-migrations.json").read_text(encoding="utf-8"))["error"]
    assert second["title"] == "Another deployment migrates this database"
    assert "azora-ci deployment 1764000000-abc123" in second["what"]

    step.send_signal(signal.SIGKILL)
    step.wait(30)
    until(lambda: production.maker.execute(production.url, SLEEPS) in ([(0,)], [(1,)]) and not _holds(production), "the lock's end", 30)
    assert production.run(GITHUB_RUN_ATTEMPT="2") == 1
    assert production.error["title"] == "A failed migration blocks the database"
    assert f"{NAME}: began" in production.error["what"]
    assert "resolve --rolled-back NAME" in production.error["next"]
    assert production.maker.execute(production.url, "SELECT to_regclass('first')::text, to_regclass('third')::text") == [("first", None)]
    production.maker.execute(
        production.url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%'"
    )


def _holds(production: Deployment) -> bool:
    held = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'azora-ci deployment%' AND datname = current_database()"
    return production.maker.execute(production.url, held) != [(0,)]


FAILING = {
    "third statement": ("CREATE TABLE a (id int);\nCREATE TABLE b (id int);\nALTER TABLE nowhere ADD c int;\n", "table b", "nowhere"),
    "unique index": (
        "INSERT INTO users (email, name) VALUES ('a@x', 'one'), ('b@x', 'one');\n"
        "CREATE UNIQUE INDEX CONCURRENTLY one_name ON users (name);\n",
        "index one_name on users unique invalid",
        "Unique constraint failed",
    ),
}


@pytest.mark.parametrize("how", FAILING)
def test_what_stays_of_a_migration_that_fails_in_its_middle_is_named(production: Deployment, how: str) -> None:
    sql, stays, refused = FAILING[how]
    only(production, sql)
    assert production.run() == 1
    what = production.error["what"]
    assert production.error["title"] == f"Migration {NAME} failed"
    assert refused in what
    assert any(line.startswith(stays) for line in production.evidence["schema_gained"]), production.evidence["schema_gained"]
    assert stays in what
    assert production.evidence["failed"] == [NAME]
