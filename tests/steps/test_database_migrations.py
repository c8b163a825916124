"""These tests run database-migrations with a real PostgreSQL, Prisma and S3 server, on good and on bad days."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core.variables import declared_variables
from azora_ci.database.backup import manifest
from azora_ci.database.migrations.history import LOCK
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.rehearsal import application
from azora_ci.rehearsal.standins.github import GitHubApi
from azora_ci.steps import database_migrations
from azora_ci.steps.job import TOOLCHAIN
from tests.core.test_markdown import cells
from tests.support import ROOT
from tests.support.migration_world import PRISMA, Deployment
from tests.support.sample import Sample
from tests.support.waiting import until

NEW = list(application.NEW_MIGRATIONS)
SCRIPT = ROOT / "scripts" / "database_migrations.py"


# --- the good day -----------------------------------------------------------------------------------------------------------


def test_pending_migrations_are_applied_once_and_a_re_run_says_the_same(production: Deployment) -> None:
    production.back_up()
    assert production.run() == 0
    evidence = production.evidence
    assert [migration["name"] for migration in evidence["applied"]] == NEW
    assert (evidence["migrations_applied"], evidence["already_applied"], evidence["pending"]) == (2, 3, NEW)
    assert 1 <= evidence["backup_age_minutes"] < 3
    assert 'ALTER TABLE "courses" ADD COLUMN "level"' in production.log
    assert production.applied()[-2:] == NEW
    assert production.output.read_text(encoding="utf-8").splitlines()[1] == "2"

    assert production.run(GITHUB_RUN_ATTEMPT="2") == 0
    rerun = production.evidence
    assert (rerun["migrations_applied"], rerun["already_applied"], rerun["pending"]) == (2, 3, [])
    assert rerun["applied"] == evidence["applied"]
    assert "attempts" not in rerun


def test_behind_a_backup_that_was_really_made(production: Deployment) -> None:
    assert production.try_out()["status"] == "ok"
    assert production.run() == 0
    assert (production.evidence["migrations_applied"], production.evidence["proof_depth"]) == (2, "full")
    assert (production.evidence["trial"]["how"], production.evidence["differs"]) == ("full copy", [])
    assert "nobody could read or write courses for" in production.log
    assert "✓ production defines exactly what the copy did after the trial" in production.log


def test_no_secret_is_in_any_artifact(production: Deployment) -> None:
    production.configure(migrate=["sh", "-c", 'echo "connecting to $DATABASE_URL"; exit 1'], prepare=[["sh", "-c", "env | sort"]])
    production.back_up()
    assert production.run() == 1
    password = DatabaseUrl.parse(production.url).password
    artifact = "".join(path.read_text(encoding="utf-8") for path in production.logs.rglob("*") if path.is_file())
    assert "connecting to ***" in artifact
    assert password not in artifact
    assert production.stores.environ["AWS_SECRET_ACCESS_KEY"] not in artifact
    assert "DATABASE_URL=" not in artifact


def test_an_older_release_goes_on_with_a_warning(production: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    production.maker.execute(
        production.url,
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, finished_at) VALUES ('x', 'y', '20991231000000_later', now())",
    )
    for name in NEW:
        (application.migrations(production.folder) / name / "migration.sql").unlink()
        (application.migrations(production.folder) / name).rmdir()
    production.back_up(timedelta(minutes=-1))
    assert production.run() == 0
    assert production.evidence["database_ahead"] == ["20991231000000_later"]
    assert "an older release is deployed" in capsys.readouterr().out


def test_the_summary_shows_names_as_they_are(production: Deployment) -> None:
    name, sql = "20991231000000_a|b`<i>c", "SELECT 1;\n"
    for migration in NEW:
        shutil.rmtree(application.migrations(production.folder) / migration)
    production.add(name, sql)
    production.back_up()
    production.maker.execute(
        production.url,
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, finished_at) "
        f"VALUES ('x', '{hashlib.sha256(sql.encode()).hexdigest()}', '{name}', now())",
    )
    summary = production.folder / "summary.md"
    assert production.run(GITHUB_STEP_SUMMARY=str(summary)) == 0
    assert cells(summary.read_text(encoding="utf-8").partition("\n\n")[2])[0] == name


# --- beside the application's code ------------------------------------------------------------------------------------------------

LOOK = "env; id -un; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; cat $LOGS/*.log ../*/secret* /tmp/*/* 2>/dev/null; exit 1"


def test_the_migrate_command_is_alone_with_the_address_of_the_database(
    production: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret.env").write_text("SECRET=in-a-file\n", encoding="utf-8")
    temp = tmp_path / "temp"
    (temp / "_runner_file_commands").mkdir(parents=True)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "a-token-of-github")
    monkeypatch.setenv("SOME_SERVICE_KEY", "a-key-of-a-service")
    production.configure(migrate=["sh", "-c", LOOK.replace("$LOGS", str(production.logs))])
    production.back_up()
    with GitHubApi(tmp_path / "github.json", "a-token-that-reads-the-run") as api:
        api.write()
        environ = {"GITHUB_TOKEN": api.token, "GITHUB_API_URL": api.url, "GITHUB_REPOSITORY": "azora/azora"}
        assert production.run(RUNNER_TEMP=str(temp), **environ) == 1
    assert production.evidence["build_checked"]["checked"]
    assert production.evidence["isolation"] == "namespaces"
    assert "override_reason" not in production.evidence
    printed = production.log
    assert "DATABASE_URL=***" in printed
    assert "isolated" in printed.split()
    for name in ("PROD_DATABASE_URL", "AWS_SECRET", "RUNNER_TEMP", "GITHUB_OUTPUT", "a-token-", "a-key-of-a-service", "in-a-file"):
        assert name not in printed


def build(production: Deployment, **changes: Any) -> Path:
    """Hand the application over as the job build did, and leave a checkout without any package of it."""
    packed = production.hand_over(**changes)
    production.built = True
    shutil.rmtree(production.folder / "node_modules")
    return packed


def test_in_the_tree_of_the_build(production: Deployment, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    production.configure(prepare=[["touch", "prepared-here"]])
    production.back_up()
    build(production)
    assert production.run(RUNNER_TEMP=str(temp)) == 0, production.log
    assert production.applied()[-2:] == NEW
    assert not (production.folder / "prepared-here").exists()
    assert list(temp.iterdir()) == []


def test_by_the_package_manager_of_the_toolchain(production: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "temp" / TOOLCHAIN / "bin" / "pnpm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho pnpm runs; exit 7\n", encoding="utf-8")
    program.chmod(0o755)
    assert f"folder=$RUNNER_TEMP/{TOOLCHAIN}\n" in (ROOT / ".github/actions/toolchain/install.sh").read_text(encoding="utf-8")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    production.configure(migrate=["pnpm", "exec", "prisma", "migrate", "deploy"])
    production.back_up()
    assert production.run(RUNNER_TEMP=str(tmp_path / "temp")) == 1
    assert "pnpm runs" in production.log
    assert "exit code 7" in production.error["what"]


@pytest.mark.parametrize("place", ["temp", "application/.github"])
def test_with_the_database_ca_as_the_commit_and_the_runner_have_it(production: Deployment, tmp_path: Path, place: str) -> None:
    ca = tmp_path / place / "database-ca.pem"
    ca.parent.mkdir(parents=True)
    (tmp_path / "temp").mkdir(exist_ok=True)
    ca.write_text("of the build\n", encoding="utf-8")
    production.configure(migrate=["sh", "-c", f"cat {ca}; echo more >> {ca}; exit 7"])
    production.back_up()
    build(production)
    ca.write_text("of the commit\n", encoding="utf-8")
    assert production.run(PROD_DATABASE_CA=str(ca), RUNNER_TEMP=str(tmp_path / "temp")) == 1
    assert "of the commit" in production.log
    assert "of the build" not in production.log
    assert ca.read_text(encoding="utf-8") == "of the commit\n"
    assert "exit code 7" in production.error["what"]


def test_with_migrations_that_the_build_changed(production: Deployment) -> None:
    production.back_up()
    path = application.migrations(production.folder) / NEW[0] / "migration.sql"
    committed = path.read_bytes()
    path.write_text("DROP TABLE users;", encoding="utf-8")
    build(production)
    path.write_bytes(committed)
    refused(production, "The build changed the migrations", f"{NEW[0]}/migration.sql has other bytes")


def test_with_a_tree_that_the_build_did_not_pack(production: Deployment) -> None:
    production.back_up()
    packed = build(production)
    packed.write_bytes(packed.read_bytes()[:-1] + b"x")
    refused(production, "The tree is not the one that was built", "re-run all jobs")
    build_evidence: dict[str, Any] = {"tree": None}
    (production.folder / "node_modules").mkdir()
    build(production, **build_evidence)
    refused(production, "The application's tree is missing", "build packed none")


def test_without_isolation_only_for_a_reason_that_is_recorded(production: Deployment) -> None:
    production.back_up()
    before = production.applied()
    assert production.run(ISOLATION="none") == 2
    assert production.error["title"] == "Running application code without isolation needs a reason"
    assert production.applied() == before
    assert production.run(ISOLATION="none", ISOLATION_REASON="a test") == 0
    assert (production.evidence["isolation"], production.evidence["override_reason"]) == ("none", "ISOLATION=none: a test")


# --- the gate ---------------------------------------------------------------------------------------------------------------


def refused(production: Deployment, title: str, message: str, code: int = 1) -> None:
    """Check that the step refuses with this message and leaves the database as it was."""
    before = production.applied()
    assert production.run() == code, production.log
    assert (production.error["title"], production.fragment()["status"]) == (title, "failed")
    assert message in production.error["what"] + production.error["next"]
    assert production.applied() == before
    assert "attempts" not in production.evidence


def test_without_evidence_of_a_backup(production: Deployment) -> None:
    refused(production, "No evidence of database-backup", "it is not among the jobs in NEEDS")


def test_without_the_manifest_beside_the_evidence(production: Deployment) -> None:
    production.back_up()
    production.manifest.unlink()
    refused(production, "No verified backup", "database-backup handed no manifest over")


def test_with_a_manifest_that_the_backup_job_did_not_write(production: Deployment) -> None:
    production.back_up()
    document = json.loads(production.manifest.read_text(encoding="utf-8"))
    production.manifest.write_bytes(
        manifest.encoded({**document, "snapshot": {**document["snapshot"], "time": "2026-11-24T11:00:00.000Z"}})
    )
    refused(production, "The backup is not the one that was verified", "re-run all jobs")


def test_without_any_access_to_the_bucket(production: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    production.back_up()
    monkeypatch.setattr(production.stores, "environ", {})
    assert not [name for _, variable in declared_variables(database_migrations.Settings) if (name := variable.name).startswith("AWS")]
    assert production.run(AWS_ENDPOINT_URL_S3="http://127.0.0.1:1") == 0


def test_with_a_backup_of_another_database(production: Deployment) -> None:
    production.back_up(url=production.maker.fresh())
    refused(production, "The backup is of another database", "PROD_DATABASE_URL names fresh_")


def test_a_stale_backup_closes_the_gate_only_when_something_is_pending(production: Deployment) -> None:
    production.back_up(timedelta(minutes=121))
    refused(production, "The backup is too old", "re-run all jobs")
    for name in NEW:
        (application.migrations(production.folder) / name / "migration.sql").unlink()
        (application.migrations(production.folder) / name).rmdir()
    assert production.run() == 0
    assert production.evidence["migrations_applied"] >= 0


def test_an_edited_migration(production: Deployment) -> None:
    production.back_up()
    (application.migrations(production.folder) / "20260915080000_education" / "migration.sql").write_text("SELECT 1;\n", encoding="utf-8")
    refused(production, "Applied migrations were edited", "20260915080000_education: applied with SHA-256 ")


def test_a_deleted_migration(production: Deployment) -> None:
    production.back_up()
    folder = application.migrations(production.folder) / "20260915080000_education"
    (folder / "migration.sql").unlink()
    folder.rmdir()
    refused(production, "Applied migrations are gone from the release", "20260915080000_education")


def test_a_build_that_failed_meanwhile(production: Deployment, tmp_path: Path) -> None:
    production.back_up()
    with GitHubApi(tmp_path / "github.json", "x") as api:
        api.write(run_jobs=[{"name": "production / Application images", "status": "completed", "conclusion": "failure"}])
        environ = {"GITHUB_TOKEN": "x", "GITHUB_API_URL": api.url, "GITHUB_REPOSITORY": "azora/azora", "GITHUB_RUN_ATTEMPT": "2"}
        assert production.run(**environ) == 1
        assert "/repos/azora/azora/actions/runs/1/attempts/2/jobs" in api.requests
    assert production.error["title"] == "The build has failed meanwhile"
    assert production.applied() == list(application.OLD_MIGRATIONS)
    assert "attempts" not in production.evidence


# --- the bad day ------------------------------------------------------------------------------------------------------------


def test_a_failed_migration_says_what_stayed_and_blocks_the_next_attempt(production: Deployment) -> None:
    production.maker.execute(
        production.url,
        """INSERT INTO users (email, name) VALUES ('a@example.org', 'Ada');
        INSERT INTO listings (seller_id, title, price_cents) SELECT id, 'Book', 100 FROM users;
        INSERT INTO orders (buyer_id, listing_id) SELECT seller_id, id FROM listings""",
    )
    application.add_failing_migration(production.folder)
    production.back_up()
    assert production.run() == 1
    name, error = application.FAILING_MIGRATION, production.error
    assert error["title"] == f"Migration {name} failed"
    assert f"applied by this attempt: {', '.join(NEW)}" in error["what"]
    assert "column orders.total_cents integer" in error["what"]
    assert "P3009" in error["what"]
    assert f"resolve --rolled-back {name}" in error["next"]
    evidence = production.evidence
    assert (evidence["migrations_applied"], evidence["failed"]) == (2, [name])
    assert "column orders.total_cents integer" in evidence["schema_gained"]

    refused(production, "A failed migration blocks the database", f"{name}: began")


def test_a_failure_in_another_schema_is_named_there(production: Deployment) -> None:
    production.add("20261122080000_billing", "CREATE SCHEMA billing;\nCREATE TABLE billing.invoices (id int PRIMARY KEY, total int);\n")
    production.add(
        "20261123080000_vat", "ALTER TABLE billing.invoices ADD COLUMN vat int;\nALTER TABLE billing.nowhere ADD COLUMN x int;\n"
    )
    production.back_up()
    assert production.run() == 1
    what, evidence = production.error["what"], production.evidence
    assert "column billing.invoices.vat integer" in what
    assert {"table billing.invoices", "column billing.invoices.vat integer"} <= set(evidence["schema_gained"])
    assert evidence["failed"] == ["20261123080000_vat"]
    assert "as before" not in what


ENCODINGS = {
    "utf-16": "it is UTF-16",
    "cp1252": "byte 13 (line 2) is 0x97, which is no UTF-8",
}


@pytest.mark.parametrize(("encoding", "said"), ENCODINGS.items())
def test_a_migration_in_another_encoding_is_refused_before_anything_runs(production: Deployment, encoding: str, said: str) -> None:
    production.add("20261123080000_dash", "")
    path = application.migrations(production.folder) / "20261123080000_dash/migration.sql"
    path.write_bytes("SELECT 1;\n-- \u2014\nSELECT 2;\n".encode(encoding))
    production.back_up()
    refused(production, "A migration is not UTF-8", f"20261123080000_dash/migration.sql: {said}", 2)


@pytest.mark.parametrize(("encoding", "applied"), [("utf-16", False), ("utf-8-sig", True)])
def test_what_prisma_itself_makes_of_an_encoding(production: Deployment, sample: Sample, encoding: str, applied: bool) -> None:
    production.add("20261123080000_dash", "")
    path = application.migrations(production.folder) / "20261123080000_dash/migration.sql"
    path.write_bytes("SELECT 1;\n-- \u2014\nSELECT 2;\n".encode(encoding))
    env = {**sample.node.environment(), "DATABASE_URL": production.url}
    sample.processes.run((str(sample.node.bin / "npx"), *PRISMA[1:]), env=env, cwd=production.folder, check=False, echo=False)
    assert ("20261123080000_dash" in production.applied()) is applied


@pytest.mark.parametrize(
    "command",
    [
        PRISMA,
        ["env", "FORCE_COLOR=1", *PRISMA],
        ["bash", "-o", "pipefail", "-c", "FORCE_COLOR=1 npx prisma migrate deploy 2>&1 | sed 's,^,@azora/db:migrate: ,'"],
    ],
    ids=["plain", "coloured", "prefixed"],
)
def test_a_held_lock_is_waited_for_and_its_holder_named(
    production: Deployment, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    production.configure(migrate=command)
    monkeypatch.setattr(database_migrations, "LOCK_PAUSE_SECONDS", 0.1)
    production.back_up()
    holder = DatabaseUrl.parse(production.url).connect(application="another deployment")
    log = production.logs / "database-migrations.log"

    def release() -> None:
        until(lambda: log.exists() and "attempt 1 of 3" in log.read_text(encoding="utf-8"), "the first attempt", 60)
        holder.close()

    with holder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    helper = threading.Thread(target=release)
    helper.start()
    try:
        assert production.run() == 0
    finally:
        helper.join(90)
    assert production.evidence["attempts"] >= 2
    assert "another deployment" in production.evidence["lock_holders"][0]
    assert production.applied()[-2:] == NEW


def test_a_lock_that_is_never_free_ends_the_job(production: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_migrations, "LOCK_PAUSE_SECONDS", 0.0)
    production.configure(migrate=["sh", "-c", f"echo 'Error: P1002'; echo 'pg_advisory_lock({LOCK})'; exit 1"])
    production.back_up()
    assert production.run() == 1
    assert production.error["title"] == "Another migration holds Prisma's lock"
    assert "in each of 3 attempts" in production.error["what"]
    assert production.evidence["attempts"] == 3


@pytest.mark.parametrize(
    ("script", "code", "title", "text"),
    [
        ("true", 1, "The migrate command succeeded, the database disagrees", "still pending: 20261120080000_course_ratings"),
        ("echo 'Error: P1001: no server'; exit 1", 3, "The migrate command failed", "P1001"),
        ("echo 'Error: P1000: no login'; exit 1", 2, "The migrate command failed", "P1000"),
        ("echo 'npm error npx canceled due to missing packages' >&2; exit 1", 1, "The migrate command failed", "database.prepare"),
        ("exit 7", 1, "The migrate command failed", "exit code 7"),
    ],
)
def test_a_command_that_does_not_migrate(production: Deployment, script: str, code: int, title: str, text: str) -> None:
    production.configure(migrate=["sh", "-c", script])
    production.back_up()
    assert production.run() == code
    assert production.error["title"] == title
    assert text in production.error["what"] + production.error["next"]
    assert len(production.applied()) == 3


def test_a_backup_that_was_never_restored_is_not_called_proven(production: Deployment) -> None:
    production.configure(migrate=["false"])
    production.back_up(depth="none")
    assert production.run() == 1
    assert "was never restored to prove it" in production.error["what"]


@pytest.mark.parametrize("prefix", ["", "FORCE_COLOR=1 "])
def test_a_server_that_only_the_command_cannot_reach(production: Deployment, prefix: str) -> None:
    elsewhere = "postgresql://azora:x@127.0.0.1:1/azora"
    production.configure(migrate=["sh", "-c", f"{prefix}DATABASE_URL={elsewhere} npx prisma migrate deploy"])
    production.back_up()
    assert production.run() == 3, production.log
    assert production.error["title"] == "The migrate command failed"
    assert len(production.applied()) == 3


def test_an_unreachable_database(production: Deployment) -> None:
    production.back_up()
    production.url = "postgresql://azora:hidden-word@127.0.0.1:1/azora"
    assert production.run() == 3
    assert "hidden-word" not in production.log + json.dumps(production.fragment())


def test_a_cancelled_migration_leaves_evidence_of_its_state(production: Deployment, running: Callable[..., subprocess.Popen[str]]) -> None:
    production.add("20261123080000_slow", "SELECT pg_sleep(600);\n")
    production.back_up()
    step = running([sys.executable, str(SCRIPT)], production.folder, production.environ(GITHUB_OUTPUT=""))
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep(600)%'"
    until(lambda: production.maker.execute(production.url, sleeping) == [(1,)] or step.poll() is not None, "the slow migration", 60)
    step.send_signal(signal.SIGTERM)
    assert step.wait(30) == 1
    assert production.fragment()["status"] == "cancelled"
    assert production.evidence["failed"] == ["20261123080000_slow"]
    assert "the server may still be at work: process" in production.error["what"]
    assert "resolve --rolled-back 20261123080000_slow" in production.error["next"]
    assert f"applied by this attempt: {', '.join(NEW)}" in production.error["what"]
