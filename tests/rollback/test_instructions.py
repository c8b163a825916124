"""The instructions fit the deployment, and their commands work: on a real database, with the real aws and psql."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from azora_ci.cli.main import main
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.database.restore import scripts
from azora_ci.record import chain, deployment
from azora_ci.rollback import instructions, window
from tests.record.test_deployment import FACTS, FAILURE
from tests.support import ROOT
from tests.support import fragments_builder as build
from tests.support.backup_world import ID as BACKUP_ID
from tests.support.backup_world import BackupWorld
from tests.support.record_world import TITLES
from tests.support.stores import Stores

GUIDE = instructions.Guide(
    application="azora",
    on_call="#azora-on-call (Slack)",
    public_url="https://azora.world",
    health_urls=tuple((title, f"https://azora.world/{name}/health") for name, title in TITLES.items()),
    target="docker_hosts",
)
VENV = Path(sys.executable).parent


def document(status: str = "success", **changed: Any) -> dict[str, Any]:
    return deployment.assemble(build.complete(**changed), FACTS, status=status, failure=None if status == "success" else FAILURE)


def text(**changed: Any) -> str:
    return instructions.render(document(**changed), GUIDE)


def test_what_answers_something_else_is_named_in_words():
    assert "something else" not in text()
    guide = replace(GUIDE, otherwise=(("API *Gateway*", "any HTTP 2xx, and a version that its image proves"),))
    verification = instructions.render(document(), guide).partition("Verify the services")[2]
    assert "These answer something else:\n\n- API \\*Gateway\\*: any HTTP 2xx, and a version that its image proves\n" in verification


# --- the text of the instructions -----------------------------------------------------------------------------------------------------


def test_workers_have_no_address_to_ask_and_change_places_one_after_the_other():
    page = instructions.render(document(), replace(GUIDE, workers=("Mailer", "Importer")))
    assert "the workers of v1.2.3 are stopped (Mailer, Importer), and those of v1.2.2 are started again: never both." in page
    assert "Workers have no address (Mailer, Importer). `python -m azora_ci doctor` names each" in page
    assert "workers" not in text().lower()


def test_every_section_of_the_guide_is_there_for_this_deployment():
    page = text()
    for part in (
        "# Rollback instructions: v1.2.3",
        "`1764000000-abc123`",
        "60 minutes from completion",
        "**Deadline: 2025-11-24T12:36:00.125Z**",
        "## When to roll back",
        "### 1. Verify that a rollback is necessary",
        "### 2. Stop traffic to v1.2.3",
        "### 3. Restore the database",
        "### 4. Verify the services",
        "### 5. Document the incident",
        "s3://azora-backups/prod/backup-1764000000-abc123.sql.gz",
        "### Restore commands",
        "set -o pipefail",
        "aws s3 cp s3://azora-backups/prod/backup-1764000000-abc123.sql.gz - | gunzip | psql -X -v ON_ERROR_STOP=1",
        "On-call team of azora: **#azora-on-call (Slack)**",
        "## After the deadline",
        "curl -fsS --max-time 10 https://azora.world/api_gateway/health   # API Gateway",
        '{"status": "healthy", "version": "1.2.2"}',
    ):
        assert part in page, part
    for name in build.SERVICES:
        assert f"https://azora.world/{name}/health" in page


def test_the_button_and_the_command_are_named_with_this_deployments_id():
    page = text()
    assert "[Roll production back](https://github.com/azora/azora/actions/workflows/rollback-production.yml)" in page
    button = "gh workflow run rollback-production.yml --repo azora/azora --ref v1.2.3 -f deployment-id=1764000000-abc123 -f reason="
    assert button in page
    assert "*Use workflow from*: tag `v1.2.3`" in page  # the default branch may have other services by now
    assert "python -m azora_ci rollback --deployment-id 1764000000-abc123 --reason " in page
    assert page.index(button) < page.index("gh workflow run deploy-production.yml")  # the quick way first
    assert "-f after-deadline=true" in page


def test_every_command_of_ours_that_is_named_is_there_with_its_options():
    named = re.findall(r"python -m azora_ci ([^\n`#]+)", text())
    assert {line.split()[0] for line in named} == {"rollback", "edge", "lock", "doctor"}
    for line in named:
        command: Any = main
        words = shlex.split(line)
        while words and isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_inputs_of_the_button_are_those_of_its_workflow():
    path = ROOT / ".github/workflows/rollback-production.yml"
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    inputs = workflow[True]["workflow_dispatch"]["inputs"]  # "on" is YAML's true
    assert set(re.findall(r"-f ([a-z-]+)=", instructions._button(document(), GUIDE, window.plan(document()), ""))) == set(inputs)


def test_a_version_that_is_known_to_break_on_the_schema_is_said_before_the_button():
    safe = {"value": False, "how": "tested", "reasons": ["GET /api of api_gateway: HTTP 500 on the migrated copy"]}
    page = text(b=build.fragment("database-backup", code_rollback_safe=safe))
    known = "v1.2.2 was tried on a migrated copy of the database, and does not work there: GET /api of api_gateway: HTTP 500"
    assert page.index(f"**{known}") < page.index("Press the button")
    assert page.count(known) == 3, "before the button, behind it, and where restoring is decided"
    assert "give the button or the\ncommand its `schema-reason`" in page

    works = text(b=build.fragment("database-backup", code_rollback_safe=safe | {"value": True, "reasons": ["it answers"]}))
    assert "v1.2.2 was tried on a migrated copy of the database, and works there: it answers." in works
    assert "they refuse" not in works


def test_without_migrations_no_restore_is_asked_for():
    page = text(m=build.fragment("database-migrations", migrations_applied=0, applied=[]))
    assert "applied **no migration**: going back needs no restore" in page
    assert "The migrations of this deployment stay applied" not in page


@pytest.mark.parametrize(
    ("tool", "applied", "row", "restore"),
    [
        ("command", None, "not known, by another tool than Prisma", "It is not known how many migrations were applied. If v1.2.2 works"),
        ("command", 3, "3, by another tool than Prisma", "Migrations applied: 3. If v1.2.2 works with the new schema"),
        ("none", 0, "the application has none", "This deployment applied **no migration**: going back needs no restore."),
    ],
)
def test_migrations_of_another_tool_and_none(tool, applied, row, restore):
    page = text(m=build.fragment("database-migrations", tool=tool, migrations_applied=applied, applied=[]))
    assert f"| Migrations applied | {row} |" in page
    assert restore in page


def test_with_migrations_the_loss_of_writes_is_said():
    assert "**Every write after 2025-11-24T11:01:02.000Z is then lost from the live database**" in text()


def test_jobs_are_named_as_not_undone():
    assert "Not undone" not in text()
    page = text(rollout=build.fragment("gradual-rollout", jobs=[build.JOB]))
    assert f"**Not undone by going back**, look at what they changed:\n\n- {build.JOB['summary']}\n" in page


def test_a_version_that_stops_before_the_deadline_is_promised_warm_no_longer():
    assert "is kept running and ready." in text()
    page = text(r=build.fragment("gradual-rollout", warm_until="2025-11-24T11:40:00Z"))
    assert "runs on until 2025-11-24T11:40:00Z.\nAfter that, until the deadline, going back starts its pods again first." in page
    assert "kept running and ready" not in page


def test_first_deployment_promises_no_way_back():
    page = text(r=build.fragment("gradual-rollout", previous=None, rollback_available=False))
    assert "**There is no previous version to go back to.**" in page
    assert "gh workflow run" not in page


def test_unproven_backup_is_not_offered():
    proof = {"depth": "none", "restore_seconds": None, "verified_at": None, "reason": "4 TB"}
    page = text(b=build.fragment("database-backup", proof=proof))
    assert "**not proven**: 4 TB" in page
    assert "There is no verified backup" in page
    assert "pg_restore" not in page
    assert "```bash\n#!/usr/bin/env bash" not in page


def test_failed_smoke_tests_stand_first_among_the_reasons():
    tests = build.evidence("smoke-tests")["tests"]
    tests[0] |= {"passed": False, "status": 500, "detail": "answered 500"}
    page = instructions.render(document("failed", s=build.fragment("smoke-tests", "failed", tests=tests, smoke_status="failed")), GUIDE)
    assert "**Smoke tests of this deployment failed**" in page
    assert "- **api_gateway**: answered 500" in page
    assert "gh workflow run" in page


def blocks(markdown: str) -> list[str]:
    """Return the bash blocks of a Markdown text."""
    return [part.split("```")[0] for part in markdown.split("```bash\n")[1:]]


def test_every_command_passes_shellcheck(tmp_path):
    scripts = blocks(text())
    assert len(scripts) == 9
    for number, script in enumerate(scripts):
        file = tmp_path / f"{number}.sh"
        file.write_text(script if script.startswith("#!") else f"#!/usr/bin/env bash\n{script}")
    completed = subprocess.run(
        [VENV / "shellcheck", "--exclude=SC2154", *sorted(tmp_path.iterdir())], capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode == 0, completed.stdout


def test_what_the_shell_would_act_on_is_quoted():
    backup = {"backup_id": "backup-1", "location": "s3://b/prod/it's $(touch x).sql.gz", "version_id": "v;1"}
    script = scripts.restore_script(backup, build.DEPLOYMENT_ID)
    assert "\nversion_id='v;1' #" in script
    assert """\nkey='prod/it'"'"'s $(touch x).sql.gz'\n""" in script


# --- what the commands do ------------------------------------------------------------------------------------------------------

TABLES = """
CREATE TABLE courses (id int PRIMARY KEY, title text NOT NULL);
CREATE TABLE enrolments (id int PRIMARY KEY, course int REFERENCES courses);
INSERT INTO courses SELECT n, 'course ' || n FROM generate_series(1, 50) n;
INSERT INTO enrolments SELECT n, 1 + n % 50 FROM generate_series(1, 300) n;
"""


LAST_LINE = b"--\n-- PostgreSQL database dump complete\n"


class Rescue:
    """A database with a stored backup, and the on-call engineer's shell."""

    def __init__(self, folder: Path, cluster: Any, stores: Stores) -> None:
        self.folder, self.cluster, self.s3 = folder, cluster, stores.boto3()
        self.bucket = stores.make_bucket(object_lock=True)
        self.url = DatabaseUrl.parse(cluster.fresh(TABLES))
        self.database = self.url.database
        self.programs = find_binary("psql", cluster.cluster.major).parent
        self.environ = {
            "PATH": f"{self.programs}:{VENV}:{os.environ['PATH']}",
            "HOME": str(folder),
            **stores.environ,
            **self.url.libpq_env(),
        }
        self.dump = subprocess.run(
            [self.programs / "pg_dump", "--no-password"], env=self.environ, capture_output=True, timeout=60, check=True
        ).stdout

    def store(self, data: bytes, **more: Any) -> dict[str, Any]:
        """Store a backup and return its part of the deployment record."""
        key = f"prod/{build.BACKUP}.sql.gz"
        answer = self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        evidence = build.evidence("database-backup")
        return (
            evidence
            | {
                "location": f"s3://{self.bucket}/{key}",
                "version_id": answer.get("VersionId"),
                "sha256": chain.sha256(data),
                "tables": 2,
                "rows": 350,
            }
            | more
        )

    def bash(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        file = self.folder / "script.sh"
        file.write_text(script)
        return subprocess.run(
            ["bash", file, *arguments], cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=120, check=False
        )

    def rows(self, table: str, database: str | None = None) -> int:
        url = self.url.with_database(database or self.database)
        return int(self.cluster.execute(url.text, f"SELECT count(*) FROM {table}")[0][0])  # type: ignore[call-overload]

    def databases(self) -> set[str]:
        rows = self.cluster.execute(self.url.with_database("postgres").text, "SELECT datname FROM pg_database")
        return {str(name) for (name,) in rows if str(name).startswith(self.database)}


@pytest.fixture
def rescue(tmp_path, postgres_cluster, s3_server):
    return Rescue(tmp_path, postgres_cluster, s3_server)


def test_restore_and_swap_and_back_again(rescue):
    backup = rescue.store(gzip.compress(rescue.dump))
    rescue.store(b"a newer object under the same key")  # the verified version is fetched, not the newest
    rescue.cluster.execute(rescue.url.text, "DELETE FROM enrolments; CREATE TABLE added_later (id int)")

    restored = rescue.bash(scripts.restore_script(backup, build.DEPLOYMENT_ID))
    assert restored.returncode == 0, restored.stderr
    assert rescue.rows("enrolments") == 0, "the live database was touched"
    assert rescue.rows("enrolments", f"{rescue.database}_restore_1764000000") == 300

    swap = scripts.swap_script(build.DEPLOYMENT_ID)
    holder = DatabaseUrl.parse(rescue.url.text).connect()  # somebody is connected: that must not stop the swap
    swapped = rescue.bash(swap)
    assert swapped.returncode == 0, swapped.stderr
    assert holder.closed or not _answers(holder)
    assert rescue.rows("enrolments") == 300
    aside = f"{rescue.database}_before_rollback_1764000000"
    assert rescue.rows("added_later", aside) == 0, "what was live is not kept"

    back = rescue.bash(swap, "back")
    assert back.returncode == 0, back.stderr
    assert rescue.rows("enrolments") == 0
    assert rescue.databases() == {rescue.database, f"{rescue.database}_restore_1764000000"}


def _answers(connection: Any) -> bool:
    import psycopg2

    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error:
        return False
    return True


def test_a_backup_of_which_only_the_location_is_known_is_restored(rescue):
    unknown = dict.fromkeys(("version_id", "sha256", "tables", "rows"))
    completed = rescue.bash(scripts.restore_script(rescue.store(gzip.compress(rescue.dump), **unknown), build.DEPLOYMENT_ID))
    assert completed.returncode == 0, completed.stderr
    assert rescue.rows("enrolments", f"{rescue.database}_restore_1764000000") == 300


def test_restore_twice_is_not_doubled(rescue):
    script = scripts.restore_script(rescue.store(gzip.compress(rescue.dump)), build.DEPLOYMENT_ID)
    for _ in range(2):
        assert rescue.bash(script).returncode == 0
    assert rescue.rows("courses", f"{rescue.database}_restore_1764000000") == 50


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda dump: {"data": gzip.compress(dump[: len(dump) // 2])},
            "is cut off",
        ),  # the dump is cut off inside a whole gzip: only the missing last line shows it
        (lambda dump: {"data": gzip.compress(dump)[:-8] + bytes(4) + gzip.compress(dump)[-4:]}, "crc error"),
        (lambda dump: {"data": gzip.compress(dump)[:-40]}, "unexpected end of file"),
        (lambda dump: {"data": gzip.compress(dump), "rows": 351}, "restored 2 tables with 350 rows, the backup has 2 tables with 351 rows"),
        (lambda dump: {"data": gzip.compress(dump), "sha256": "0" * 64}, "computed checksum did NOT match"),
        (
            lambda dump: {"data": gzip.compress(dump.replace(b"COPY public.courses", b"COPY public.gone"))},
            'relation "public.gone" does not exist',
        ),
        (lambda dump: {"data": gzip.compress(dump.replace(LAST_LINE, b"SELECT 1/0;\n" + LAST_LINE))}, "division by zero"),
    ],
    ids=["cut dump", "damaged gzip", "cut gzip", "other rows", "other object", "failing table", "failing statement"],
)
def test_a_bad_backup_stops_the_restore_and_never_swaps(rescue, damage, complaint):
    backup = rescue.store(**damage(rescue.dump))
    completed = rescue.bash(scripts.restore_script(backup, build.DEPLOYMENT_ID))
    assert completed.returncode != 0
    assert complaint in completed.stderr
    assert "Restored and compared" not in completed.stdout
    assert rescue.rows("enrolments") == 300


def test_swap_without_a_restored_database_changes_nothing(rescue):
    completed = rescue.bash(scripts.swap_script(build.DEPLOYMENT_ID))
    assert completed.returncode == 1
    assert "run restore-database.sh first" in completed.stderr
    assert rescue.databases() == {rescue.database}
    assert rescue.rows("courses") == 50


def test_a_swap_that_fails_half_way_leaves_the_live_database_open(rescue):
    assert rescue.bash(scripts.restore_script(rescue.store(gzip.compress(rescue.dump)), build.DEPLOYMENT_ID)).returncode == 0
    aside = f"{rescue.database}_before_rollback_1764000000"
    rescue.cluster.execute(rescue.url.with_database("postgres").text, f'CREATE DATABASE "{aside}"')  # the name is taken
    completed = rescue.bash(scripts.swap_script(build.DEPLOYMENT_ID))
    assert completed.returncode != 0
    assert rescue.rows("courses") == 50


def test_one_line_restores_into_the_new_database(rescue):
    rescue.store(gzip.compress(rescue.dump))
    new = DatabaseUrl.parse(rescue.cluster.fresh())
    line = scripts.one_line(f"s3://{rescue.bucket}/prod/{build.BACKUP}.sql.gz")
    completed = rescue.bash(f"RESTORED={new.database}\n{line} > /dev/null\n")
    assert completed.returncode == 0, completed.stderr
    assert rescue.rows("enrolments", new.database) == 300


TRICKY = """
CREATE SCHEMA "Sales Team";
CREATE TABLE "Sales Team"."Order Lines" (id int PRIMARY KEY, note text);
INSERT INTO "Sales Team"."Order Lines" SELECT n, E'line\\n\\t\\\\ü' || n FROM generate_series(1, 40) n;
CREATE TABLE events (at date NOT NULL, id int) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE events_other PARTITION OF events DEFAULT;
INSERT INTO events SELECT date '2025-12-01' + n, n FROM generate_series(1, 60) n;
CREATE TABLE base (id int);
CREATE TABLE derived (extra int) INHERITS (base);
INSERT INTO base VALUES (1), (2);
INSERT INTO derived VALUES (3, 3);
CREATE UNLOGGED TABLE cache (id int);
INSERT INTO cache SELECT generate_series(1, 7);
CREATE TABLE nothing (id int);
CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM base;
"""


def test_what_database_backup_stores_is_what_the_script_restores(rescue, postgres_cluster, s3_server):
    postgres_cluster.execute(rescue.url.text, TRICKY)
    outcome = BackupWorld(rescue.folder, s3_server, object_lock=True).run(rescue.url.text)
    assert outcome.code == 0, outcome
    postgres_cluster.execute(rescue.url.text, "DROP TABLE enrolments")
    completed = rescue.bash(scripts.restore_script(outcome.evidence, BACKUP_ID))
    assert completed.returncode == 0, completed.stderr
    restored = f"{rescue.database}_restore_{BACKUP_ID.split('-')[0]}"
    assert rescue.rows("enrolments", restored) == 300
    assert rescue.rows('"Sales Team"."Order Lines"', restored) == 40
    assert rescue.rows("events", restored) == 60
