"""These tests run database-migrations against locks and limits: they reach the server, and what could not be had is tried again or told."""

from __future__ import annotations

import shutil
import threading

import pytest

from azora_ci.database.migrations import guard
from azora_ci.database.migrations.history import Migration
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.rehearsal import application
from azora_ci.steps import database_migrations
from tests.support.migration_world import Deployment
from tests.support.pooler import SessionProxy, TransactionPooler
from tests.support.waiting import until

NAME = "20991231000000_last"
SEEN = (
    "CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS lock, current_setting('statement_timeout') AS statement, "
    "current_setting('application_name') AS name;"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_migrations, "LOCK_PAUSE_SECONDS", 0.1)


def only(production: Deployment, sql: str) -> None:
    """Leave one pending migration."""
    for name in application.NEW_MIGRATIONS:
        shutil.rmtree(application.migrations(production.folder) / name)
    production.add(NAME, sql)
    production.back_up()


def test_timeouts_reach_the_server_through_prisma(production: Deployment) -> None:
    only(production, SEEN)
    assert production.run(MIGRATIONS_LOCK_TIMEOUT_SECONDS="7") == 0
    assert production.maker.execute(production.url, "SELECT * FROM seen") == [("7s", "30min", guard.APPLICATION)]


def test_timeouts_reach_the_server_through_a_command(production: Deployment) -> None:
    production.configure_command([str(find_binary("psql", 18)), "-Xc", SEEN])
    production.back_up()
    assert production.run(MIGRATIONS_STATEMENT_TIMEOUT_SECONDS="90") == 0
    assert production.maker.execute(production.url, "SELECT * FROM seen") == [("5s", "90s", guard.APPLICATION)] or (
        production.maker.execute(production.url, "SELECT * FROM seen") == [("5s", "90s", "psql")]
    )


PARTS = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password", "PGDATABASE": "database"}
FROM_PARTS = 'DATABASE_URL="postgresql://$PGUSER:$PGPASSWORD@$PGHOST:$PGPORT/$PGDATABASE" exec npx prisma migrate deploy'


def test_timeouts_reach_a_command_that_gets_host_and_port_as_far_as_its_driver_reads_them_and_that_is_said(
    production: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    production.configure(migrate=["sh", "-c", FROM_PARTS], variables=PARTS)
    only(production, SEEN)
    assert production.run(MIGRATIONS_LOCK_TIMEOUT_SECONDS="7") == 0, production.log
    assert production.maker.execute(production.url, "SELECT * FROM seen") == [("7s", "30min", guard.APPLICATION)]
    timeouts = production.evidence["timeouts"]
    assert (timeouts["lock_seconds"], timeouts["statement_seconds"]) == (7, 1800)
    assert "the command gets no connection string (PGHOST, PGPORT" in timeouts["missing"]
    assert "Timeouts may not reach the server" in capsys.readouterr().out


def test_timeouts_through_a_pooler_are_tried(production: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    only(production, SEEN)
    with SessionProxy(production.url) as pooler:
        assert production.run(PROD_DATABASE_URL=f"{pooler.url}?pgbouncer=true") == 0, production.log
    assert production.maker.execute(production.url, "SELECT * FROM seen") == [("5s", "30min", guard.APPLICATION)]
    assert production.evidence["timeouts"]["missing"] is None
    assert "Timeouts may not" not in capsys.readouterr().out


def test_a_pooler_that_drops_timeouts_is_told_of(production: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    production.configure_command([str(find_binary("psql", 18)), "-Xc", SEEN])
    production.back_up()
    production.maker.execute(
        production.url, "ALTER DATABASE " + DatabaseUrl.parse(production.url).database + " SET search_path = sales, public"
    )
    with TransactionPooler(production.url) as pooler:
        assert production.run(PROD_DATABASE_URL=pooler.url) == 0, production.log
        left = "SELECT current_setting('search_path'), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %d)"
        assert production.maker.execute(pooler.url, left % guard.LOCK) == [("sales, public", 0)], "what we set and held is gone"
    assert production.maker.execute(production.url, "SELECT lock, statement FROM seen") == [("0", "0")]
    assert production.evidence["timeouts"]["missing"] == "the server's session does not have them: a pooler drops them"
    assert "lock_timeout and statement_timeout of the migrations: the server's session" in capsys.readouterr().out


def test_a_pooler_that_refuses_such_sessions_is_told_of(production: Deployment) -> None:
    refused = guard.Timeouts(5, 60).refused_at(DatabaseUrl.parse(f"{production.url}?options=-c%20nothing.such%3D1%20-x"))
    assert refused is not None
    assert refused.startswith("a session that asks for them is refused: ")


@pytest.mark.parametrize(
    ("sql", "released", "attempts"),
    [
        ("ALTER TABLE courses ADD COLUMN later int;", True, 2),
        ("ALTER TABLE courses ADD COLUMN later int;", False, 3),
        ("CREATE TABLE stays (id int);\nALTER TABLE courses ADD COLUMN later int;", True, 1),
        ("UPDATE users SET name = name;\nALTER TABLE courses ADD COLUMN later int;", True, 1),
    ],
    ids=["released", "never", "half of it applied", "rows may have changed"],
)
def test_a_lock_that_cannot_be_had_is_tried_again_where_nothing_was_applied(
    production: Deployment, sql: str, released: bool, attempts: int
) -> None:
    only(production, sql)
    log = production.logs / "database-migrations.log"
    holder = DatabaseUrl.parse(production.url).connect(application="a long report", autocommit=False)
    with holder.cursor() as cursor:
        cursor.execute("LOCK TABLE courses IN ACCESS SHARE MODE")

    def release() -> None:
        until(lambda: log.exists() and "attempt 1 of 3" in log.read_text(encoding="utf-8"), "the first attempt", 30)
        if released:
            holder.close()

    helper = threading.Thread(target=release)
    helper.start()
    try:
        code = production.run(MIGRATIONS_LOCK_TIMEOUT_SECONDS="1")
    finally:
        helper.join(90)
        holder.close()
    assert (code, production.evidence["attempts"]) == (0 if attempts == 2 else 1, attempts)
    assert "a long report" in production.evidence["lock_holders"][0]
    assert "waiting for a lock that process" in production.log
    if attempts == 2:
        assert "marked as rolled back" in production.log
        assert production.applied()[-1] == NAME
        assert any(entry["where"] == f"{NAME}/migration.sql, line 1" for entry in production.evidence["observed"])


def test_another_deployment_is_not_disturbed(production: Deployment) -> None:
    only(production, "SELECT 1;")
    other = DatabaseUrl.parse(production.url).connect(application="azora-ci deployment 1764000001-abc124")
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (guard.LOCK,))
    assert production.run() == 1
    other.close()
    assert production.error["title"] == "Another deployment migrates this database"
    assert "1764000001-abc124" in production.error["what"]


def test_migrations_that_may_change_rows_without_a_trace() -> None:
    def defines(sql: str) -> bool:
        return guard.only_defines([Migration("m", sql.encode())])

    assert defines("ALTER TABLE a ADD b int; CREATE INDEX i ON a (b);")
    assert not any(map(defines, ("update a set b = 1", "DO $$ BEGIN END $$", "CREATE TABLE x (); TRUNCATE a")))


def test_options_of_the_address_are_kept() -> None:
    address = guard.Timeouts(5, 60).within("postgresql://u:p%20w@h:5432/d?schema=s&options=-c%20search_path%3Ds")
    url = DatabaseUrl.parse(address)
    assert url.parameters["options"] == "-c search_path=s -c lock_timeout=5000 -c statement_timeout=60000"
    assert (url.password, url.schema) == ("p w", "s")
