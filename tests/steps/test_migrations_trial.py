"""These tests run database-backup with pending migrations: they are tried on the copy, with real PostgreSQL, Prisma, S3 and isolation."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from azora_ci.database.migrations.history import Migration
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.rehearsal import application
from tests.support import ROOT
from tests.support.migration_world import ID, Deployment
from tests.support.waiting import until

NEW = list(application.NEW_MIGRATIONS)
CANARY = "canary-5f3a"


def artifact(production: Deployment) -> str:
    """Return all that the job leaves for its artifact."""
    folder = next(production.received.glob("backup-logs-*"))
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*") if path.is_file())


def test_pending_migrations_are_tried_on_the_copy(production: Deployment) -> None:
    fragment = production.try_out()
    assert fragment["status"] == "ok", fragment["error"]
    trial = fragment["evidence"]["trial"]
    assert (trial["how"], trial["passed"], trial["exit_code"], trial["unapplied"], trial["errors"]) == ("full copy", True, 0, [], [])
    folder = application.migrations(production.folder)
    assert trial["files"] == [
        {"name": name, "sha256": Migration(name, (folder / name / "migration.sql").read_bytes()).checksum} for name in NEW
    ]
    added = next(statement for statement in trial["statements"] if statement["objects"] == ["table public.courses"])
    assert (added["tag"], added["locks"]) == ("ALTER TABLE", [{"table": "courses", "mode": "AccessExclusiveLock"}])
    assert trial["blocked"][0]["table"] == "courses"
    assert any(line.startswith("column courses.level") for line in trial["catalogue"]["gained"])
    assert trial["surprises"] == [], "each lock was foreseen"
    assert trial["seconds"] > trial["statement_seconds"] >= 0
    assert fragment["evidence"]["isolation"] == "namespaces"
    assert production.applied() == list(application.OLD_MIGRATIONS), "production is untouched"
    assert list(production.scratch.iterdir()) == []


def test_what_the_judgement_did_not_foresee_is_said(production: Deployment) -> None:
    hidden = "CREATE FUNCTION widen() RETURNS int LANGUAGE plpgsql AS $$BEGIN ALTER TABLE users ALTER id TYPE numeric; RETURN 1; END$$"
    production.maker.execute(production.url, hidden)
    production.add("20991231000000_hidden", "SELECT widen();\nALTER TABLE courses ADD COLUMN open boolean NOT NULL DEFAULT true;\n")
    fragment = production.try_out()
    assert fragment["status"] == "ok", fragment["error"]
    unforeseen = fragment["evidence"]["trial"]["surprises"]
    assert "users: expected that nobody can write, on the copy nobody can read or write" in unforeseen
    assert "users: its rewriting was not expected" in unforeseen
    assert not any(line.startswith("courses") for line in unforeseen)
    assert "not as judged: users: its rewriting was not expected" in artifact(production)


BREAKS = {
    "a new constraint": ("23514", "ALTER TABLE users ADD CONSTRAINT no_canary CHECK (email NOT LIKE '%{canary}%');"),
    "a unique index": ("23505", "CREATE UNIQUE INDEX one_name ON users (name);"),
    "a cast": ("22P02", "ALTER TABLE users ALTER COLUMN email TYPE integer USING email::integer;"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_migration_that_production_s_rows_break_stops_here_and_shows_none_of_them(production: Deployment, how: str) -> None:
    sqlstate, sql = BREAKS[how]
    production.maker.execute(
        production.url, f"INSERT INTO users (email, name) SELECT '{CANARY}' || n, '{CANARY}' FROM generate_series(1, 2) n"
    )
    production.add("20991231000000_breaks", "CREATE TABLE before_it (id int);\n" + sql.replace("{canary}", CANARY[:4]) + "\n")
    before = production.maker.execute(production.url, "SELECT count(*) FROM pg_class")
    fragment = production.try_out()
    assert (fragment["status"], fragment["error"]["title"]) == ("failed", "The migration fails on a copy of production")
    assert "production is untouched, the migration fails on a copy of production's data" in fragment["error"]["what"]
    trial = fragment["evidence"]["trial"]
    assert not trial["passed"]
    assert [error["sqlstate"] for error in trial["errors"]] == [sqlstate]
    assert trial["errors"][-1]["where"] == "in 20991231000000_breaks/migration.sql, line 2"
    assert CANARY not in artifact(production)
    assert fragment["evidence"]["proof"]["depth"] == "full", "the backup is proven all the same"
    assert production.maker.execute(production.url, "SELECT count(*) FROM pg_class") == before
    assert list(production.scratch.iterdir()) == []


RAISED = "DO $$ BEGIN RAISE EXCEPTION 'bad: %', (SELECT max(email) FROM users){code}; END $$;"


@pytest.mark.parametrize("code", ["", " USING ERRCODE = '22012'", " USING ERRCODE = 'check_violation'"])
def test_what_a_migration_says_itself_is_withheld(production: Deployment, code: str) -> None:
    production.maker.execute(production.url, f"INSERT INTO users (email, name) VALUES ('{CANARY}', 'x')")
    psql = str(find_binary("psql", 18))
    production.configure_command([psql, "-Xc", f"CREATE TABLE before_it (id int); {RAISED.replace('{code}', code)}"])
    fragment = production.try_out()
    trial = fragment["evidence"]["trial"]
    assert [statement["objects"] for statement in trial["statements"]] == [["table public.before_it"]]
    assert "withheld" in trial["errors"][0]["message"]
    assert "done before it: 1 statements, the last CREATE TABLE (table public.before_it)" in fragment["error"]["what"]
    assert CANARY not in artifact(production)


REACH = """
import os, socket, subprocess, sys
def reached(*address):
    try:
        socket.create_connection(address, 3).close()
        return "reached"
    except OSError as error:
        return type(error).__name__
print(CANARY := "canary-5f3a", file=sys.stderr)
found = [reached("127.0.0.1", PRODUCTION), reached("127.0.0.1", STORE), reached("169.254.169.254", 80), reached("1.1.1.1", 443)]
sql = lambda text: subprocess.run([PSQL, "-XAtc", text], capture_output=True, text=True).stdout.strip()
found += [sql("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"), sql("COPY users FROM PROGRAM 'echo 1'") or "refused"]
found += [sql("SELECT pg_read_file('/etc/hostname')") or "refused", sql("SELECT count(*) FROM pg_roles WHERE rolsuper")]
found += [str(sorted(name for name in os.environ if "SECRET" in name or name.startswith(("AWS", "PROD", "GITHUB"))))]
sql("CREATE TABLE found (" + ", ".join(f'"{n} {word}" int' for n, word in enumerate(found)) + ")")
"""


def test_the_command_reaches_the_copy_and_nothing_else(production: Deployment) -> None:
    ports = {"PRODUCTION": DatabaseUrl.parse(production.url).port, "STORE": urlsplit(production.stores.environ["AWS_ENDPOINT_URL_S3"]).port}
    script = REACH
    for word, value in {**ports, "PSQL": repr(str(find_binary("psql", 18)))}.items():
        script = script.replace(word, str(value))
    (production.folder / "migrate.py").write_text(script, encoding="utf-8")
    production.configure_command(["/usr/bin/python3", "migrate.py"])
    fragment = production.try_out()
    assert fragment["status"] == "ok", fragment["error"]
    columns = [
        line.split('"')[1].split(" ", 1)[1]
        for line in fragment["evidence"]["trial"]["catalogue"]["gained"]
        if line.startswith("column found")
    ]
    assert columns[0] == "ConnectionRefusedError"
    assert columns[1] == "ConnectionRefusedError"
    assert columns[2:] == ["OSError", "OSError", "f", "refused", "refused", "1", "[]"]
    assert CANARY not in artifact(production)


TRAPS = """
CREATE FUNCTION public.concat(text, text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN EXECUTE $x$COPY (SELECT 1) TO PROGRAM 'touch {file}'$x$; RETURN pg_catalog.concat($1, $2); EXCEPTION WHEN OTHERS THEN
    RETURN pg_catalog.concat($1, $2); END $$;
CREATE OR REPLACE FUNCTION public.watches() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN EXECUTE $x$COPY (SELECT 1) TO PROGRAM 'touch {file}'$x$; EXCEPTION WHEN OTHERS THEN NULL; END $$;
CREATE TEMP VIEW pg_locks AS SELECT public.concat('a', 'b');
CREATE TABLE last (id int);
"""


def test_traps_for_our_own_sessions_run_no_program(production: Deployment) -> None:
    production.maker.execute(production.url, "CREATE FUNCTION watches() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'")
    production.maker.execute(production.url, "CREATE EVENT TRIGGER watches ON ddl_command_end EXECUTE FUNCTION watches()")
    file = Path("/tmp") / f"azora-trap-{os.getpid()}"
    production.configure_command([str(find_binary("psql", 18)), "-X", "-f", "traps.sql"])
    (production.folder / "traps.sql").write_text(TRAPS.replace("{file}", str(file)), encoding="utf-8")
    fragment = production.try_out()
    assert fragment["status"] == "ok", fragment["error"]
    assert "table last" in fragment["evidence"]["trial"]["catalogue"]["gained"]
    assert not file.exists()


def test_what_a_command_prints_is_shown_when_it_never_asked_for_a_row(production: Deployment) -> None:
    production.configure(migrate=["sh", "-c", "echo there is no prisma here; exit 9"])
    fragment = production.try_out()
    assert fragment["evidence"]["trial"]["exit_code"] == 9
    assert "there is no prisma here" in artifact(production)


def test_nothing_pending_and_no_trial_wanted(production: Deployment) -> None:
    assert production.try_out(MIGRATIONS_TRIAL="false")["error"]["where"] == "MIGRATIONS_TRIAL_REASON"
    off = production.try_out(MIGRATIONS_TRIAL="false", MIGRATIONS_TRIAL_REASON="no rows on runners")
    assert (off["status"], off["evidence"]["trial"]) == ("ok", {"how": "off", "reason": "no rows on runners", "files": []})
    for name in NEW:
        shutil.rmtree(application.migrations(production.folder) / name)
    recognised = production.try_out(GITHUB_RUN_ATTEMPT="2")
    assert (recognised["status"], recognised["evidence"]["reused"]) == ("ok", True)
    assert recognised["evidence"]["trial"]["how"] == "nothing pending"


def test_where_no_copy_is_here_the_schema_alone_is_tried(production: Deployment) -> None:
    production.maker.execute(production.url, f"INSERT INTO users (email, name) VALUES ('{CANARY}', 'x')")
    fragment = production.try_out(BACKUP_PROOF="none", BACKUP_PROOF_REASON="a test")
    assert fragment["status"] == "ok", fragment["error"]
    trial = fragment["evidence"]["trial"]
    assert (trial["how"], trial["passed"], [entry["name"] for entry in trial["files"]]) == ("schema only", True, NEW)
    assert trial["reason"] == "the backup was not restored"
    printed = artifact(production)
    assert "how many seconds they take in production is not known: there were no rows" in printed, (
        "nothing is claimed of what was not tried"
    )
    assert "nobody could read or write courses (AccessExclusiveLock)" in printed
    assert " s in the server" not in printed
    assert CANARY not in artifact(production)
    assert list(production.scratch.iterdir()) == []


def test_a_recognised_backup_is_restored_again_for_the_trial(production: Deployment) -> None:
    production.add("20991231000000_breaks", "ALTER TABLE nowhere ADD COLUMN x int;")
    assert production.try_out()["error"]["title"] == "The migration fails on a copy of production"
    (application.migrations(production.folder) / "20991231000000_breaks" / "migration.sql").write_text("SELECT 1;", encoding="utf-8")
    again = production.try_out(GITHUB_RUN_ATTEMPT="2")
    assert (again["status"], again["evidence"]["reused"], again["evidence"]["trial"]["passed"]) == ("ok", True, True)


# --- behind the trial ------------------------------------------------------------------------------------------------------------------


def test_what_was_not_tried_is_not_applied(production: Deployment) -> None:
    assert production.try_out()["status"] == "ok"
    production.add("20991231000000_later", "SELECT 1;")
    assert production.run() == 1
    assert production.error["title"] == "The migrations were not tried"
    assert "20991231000000_later" in production.error["what"]
    assert production.applied() == list(application.OLD_MIGRATIONS)


def test_what_production_has_and_the_copy_had_not_is_named(production: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    by_place = "DO $$ BEGIN IF current_database() LIKE 'backup%' THEN CREATE TABLE a (id int); ELSE CREATE TABLE b (id int); END IF; END $$"
    production.configure_command([str(find_binary("psql", 18)), "-Xc", by_place])
    assert production.try_out()["status"] == "ok"
    assert production.run() == 0
    assert production.evidence["differs"] == [
        "the copy has, production lacks: column a.id integer",
        "the copy has, production lacks: table a",
        "production gained, the copy did not: column b.id integer",
        "production gained, the copy did not: table b",
    ]
    assert "Production is not what the copy became" in capsys.readouterr().out

    (production.folder / "another-file").write_text("x", encoding="utf-8")
    production.hand_over()
    assert production.run(GITHUB_RUN_ATTEMPT="2") == 1
    assert "it was tried in the tree" in production.error["what"]


def test_what_fails_in_production_alone_is_told_statement_by_statement(production: Deployment) -> None:
    application.add_late_migration(production.folder)
    assert production.try_out()["status"] == "ok"
    production.maker.execute(production.url, application.LATE_ROW)
    assert production.run() == 1
    lines = production.error["what"].splitlines()
    late = application.LATE_MIGRATION
    assert f"applied: ALTER TABLE (table public.users), {late}/migration.sql, line 1" in lines
    assert f"not applied: ALTER TABLE (table public.users), {late}/migration.sql, line 3" in lines
    assert f"to finish: run it by hand from {late}/migration.sql, line 3 on, then npx prisma migrate resolve --applied {late}" in lines
    undo = next(line for line in lines if line.startswith("to undo: "))
    assert undo == f"to undo: ALTER TABLE users DROP COLUMN nick; then npx prisma migrate resolve --rolled-back {late}"
    production.maker.execute(production.url, "ALTER TABLE users DROP COLUMN nick;")


def test_rows_that_change_are_counted_table_by_table(production: Deployment) -> None:
    production.maker.execute(production.url, f"INSERT INTO users (email, name) SELECT '{CANARY}' || n, 'x' FROM generate_series(1, 30) n")
    production.add(
        "20991231000000_rows",
        "CREATE TABLE kept (id int);\nINSERT INTO kept SELECT n FROM generate_series(1, 7) n;\n"
        "UPDATE users SET name = 'y';\nDELETE FROM users WHERE id IN (SELECT id FROM users ORDER BY id LIMIT 4);\n",
    )
    fragment = production.try_out()
    assert fragment["status"] == "ok", fragment["error"]
    assert fragment["evidence"]["trial"]["rows"] == [
        {"table": "kept", "inserted": 7, "updated": 0, "deleted": 0},
        {"table": "users", "inserted": 0, "updated": 30, "deleted": 4},
    ]
    assert "users: 30 rows updated, 4 rows deleted" in artifact(production)
    assert CANARY not in artifact(production)


def _descendants(pid: int) -> dict[int, str]:
    """Return process id -> command line of what a process started, and what that started."""
    parents, lines = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            lines[int(process.name)] = (process / "cmdline").read_bytes().decode(errors="replace")
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: lines.get(child, "") for child in found - {pid}}


def test_a_cancelled_trial_leaves_no_copy_no_server_and_no_process(
    production: Deployment, running: Callable[..., subprocess.Popen[str]]
) -> None:
    production.add("20991231000000_slow", "SELECT pg_sleep(600);\n")
    logs = production.received / f"backup-logs-{ID}"
    here = {"DEPLOYMENT_LOG_DIR": str(logs), "GITHUB_OUTPUT": "", "BACKUP_SCRATCH_DIR": str(production.scratch)}
    step = running([sys.executable, str(ROOT / "scripts/database_backup.py")], production.folder, production.environ(**here))
    role, looks = DatabaseUrl.parse(production.url).user, list[bool]()

    def sleeps() -> bool:
        looks.append(any(re.match(rf"postgres: {role} .* SELECT", line) for line in _descendants(step.pid).values()))
        return len(looks) > 5 and all(looks[-5:])

    until(lambda: sleeps() or step.poll() is not None, "the sleep", 240)
    started = _descendants(step.pid)
    assert any("prisma" in line for line in started.values()), "the command is at work"
    step.send_signal(signal.SIGTERM)
    assert step.wait(30) == 1
    fragment = json.loads((logs / "record" / "database-backup.json").read_text(encoding="utf-8"))
    assert fragment["status"] == "cancelled"
    assert fragment["evidence"]["unproven"].startswith("s3://")
    assert list(production.scratch.iterdir()) == []
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), "the end of every process", 10)
    assert production.applied() == list(application.OLD_MIGRATIONS)


def test_statements_of_many_kinds(production: Deployment) -> None:
    sql = (
        "CREATE INDEX CONCURRENTLY i ON users (name)",
        "CREATE EXTENSION pg_trgm",
        "GRANT SELECT ON users TO PUBLIC",
        "TRUNCATE users CASCADE",
    )
    production.configure_command(
        [str(find_binary("psql", 18)), "-X", "-v", "ON_ERROR_STOP=1", *(part for text in sql for part in ("-c", text))]
    )
    fragment = production.try_out()
    assert fragment["status"] == "ok", fragment["error"]
    trial = fragment["evidence"]["trial"]
    assert [statement["tag"] for statement in trial["statements"]] == ["CREATE INDEX", "CREATE EXTENSION", "GRANT", "TRUNCATE TABLE"]
    assert trial["statements"][0]["objects"] == ["index public.i"]
    assert "users" in trial["rewritten"]
