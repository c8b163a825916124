"""Prisma from outside: the table it really writes, the codes it really prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.process import Completed
from azora_ci.database.migrations import history, prisma
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.rehearsal import application
from tests.conftest import DatabaseMaker
from tests.support.sample import Sample


def test_folder_is_read_in_order(tmp_path: Path) -> None:
    for name in ("2_b", "1_a"):
        application.add_migration(tmp_path, name, f"SELECT '{name}';\n")
    (application.migrations(tmp_path) / "migration_lock.toml").write_text("provider = 'postgresql'\n", encoding="utf-8")
    migrations = prisma.read_folder(application.migrations(tmp_path))
    assert [(migration.name, migration.text) for migration in migrations] == [("1_a", "SELECT '1_a';\n"), ("2_b", "SELECT '2_b';\n")]


def test_a_folder_without_migrations_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no folder of a migration") as missing:
        prisma.read_folder(tmp_path / "nowhere")
    assert "database.migrations_dir" in missing.value.next_step
    (tmp_path / "1_a").mkdir()
    with pytest.raises(BadInputError, match=r"without migration\.sql: 1_a"):
        prisma.read_folder(tmp_path)


def test_what_prisma_recorded_is_what_the_folder_says(sample: Sample, migrated: str) -> None:
    release = prisma.read_folder(application.migrations(sample.built))
    rows = prisma.read_table(DatabaseUrl.parse(migrated), "public")
    plan = history.plan(release, rows)
    assert [row.name for row in plan.applied] == [migration.name for migration in release[:3]]
    assert [migration.name for migration in plan.pending] == list(application.NEW_MIGRATIONS)
    assert (plan.edited, plan.failed, history.refusal(plan)) == ((), (), None)


def test_a_database_without_the_table_has_no_rows(postgres_cluster: DatabaseMaker) -> None:
    url = DatabaseUrl.parse(postgres_cluster.fresh())
    assert prisma.read_table(url, "public") == []
    assert prisma.read_table(url, 'no "such" schema') == []


def test_a_table_that_may_not_be_read_is_said_so(postgres_cluster: DatabaseMaker) -> None:
    url = DatabaseUrl.parse(postgres_cluster.fresh("CREATE TABLE _prisma_migrations (id int)"))
    with pytest.raises(UnreachableError, match="migration_name"):
        prisma.read_table(url, "public")


def test_the_holder_of_the_lock_is_named(postgres_cluster: DatabaseMaker) -> None:
    url = DatabaseUrl.parse(postgres_cluster.fresh())
    other = DatabaseUrl.parse(postgres_cluster.fresh())
    holder = url.connect(application="psql of ada")
    try:
        with holder.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (history.LOCK,))
        (description,) = prisma.lock_holders(url)
        assert f"process {holder.info.backend_pid} (psql of ada, from 127.0.0.1" in description
        assert prisma.lock_holders(other) == []
    finally:
        holder.close()


def test_a_migration_in_another_encoding_is_named_with_its_file(tmp_path: Path) -> None:
    application.add_migration(tmp_path, "1_a", "SELECT 1;\n")
    application.add_migration(tmp_path, "2_b", "").write_bytes("SELECT 2;\n".encode("utf-16"))
    application.add_migration(tmp_path, "3_c", "").write_bytes(b"-- caf\xe9\n")
    with pytest.raises(BadInputError, match="it is UTF-16") as refused:
        prisma.read_folder(application.migrations(tmp_path))
    assert refused.value.what.splitlines()[0] == "2_b/migration.sql: it is UTF-16"
    assert refused.value.what.splitlines()[1].startswith("3_c/migration.sql: byte 6 (line 1) is 0xE9")


def test_the_layout_of_prisma_8_is_recognised(tmp_path: Path) -> None:
    package = tmp_path / "migrations/app/20260101T1200_init"
    package.mkdir(parents=True)
    (package / "ops.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadInputError, match="Prisma 8") as refused:
        prisma.read_folder(tmp_path / "migrations")
    assert "[migrations] command" in refused.value.next_step


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("Loaded\nError: P3009\n\nmigrate found failed migrations", "P3009"),
        ("Error: P1001: Can't reach database server", "P1001"),
        ("Error: external connector error\nNull constraint failed", None),
        ("read P1002 in the log", None),
        ("\x1b[1m\x1b[31mError: \x1b[39m\x1b[22mP1002\n", "P1002"),
        ("\x1b]8;;https://pris.ly\x07Error\x1b]8;;\x07: P1002", "P1002"),
        ("@acme/db:migrate: Error: P1002", "P1002"),  # turbo
        ("packages/db migrate: \x1b[31mError\x1b[39m: P1001: no server", "P1001"),  # pnpm -r
        ("[db] Error: P1001", "P1001"),  # concurrently, nx
        ("[@acme/db]: Error: P1001", "P1001"),  # yarn workspaces foreach
        ("│ Error: P1002\r\n", "P1002"),  # pnpm -r, lines of one package together
        ("migrate-1  | Error: P3018", "P3018"),  # docker compose
        ("⠋ applying\rError: P1002", "P1002"),
        ("warning: read about Error: P1002", None),
        ("Error: Can't reach database server at `127.0.0.1:1`", "P1001"),
        ("db: \x1b[31mError: connect ECONNREFUSED 127.0.0.1:1\x1b[0m", "P1001"),
        ("Error: Authentication failed against the database server", "P1000"),
        ("the log says: Can't reach database server", None),
    ],
)
def test_error_codes_are_read_from_prismas_own_line(output: str, code: str | None) -> None:
    assert prisma.error_code(output) == code


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Error: P1002\nTimed out trying to acquire a postgres advisory lock (SELECT pg_advisory_lock(72707369)).", True),
        ("Error: P1002\nThe database server was reached but timed out.", False),
        ("Error: P3009\n72707369", False),
        ("db: Error: P1002\ndb: Timed out (SELECT pg_advisory_lock(\x1b[33m72707369\x1b[39m)).", True),
    ],
)
def test_only_prismas_own_lock_counts_as_a_lock_timeout(output: str, expected: bool) -> None:
    completed = Completed(("npx",), 1, "", output)
    assert prisma.MigrateResult(completed, prisma.error_code(output)).lock_timeout is expected
