"""``python -m azora_ci migrations check``: the judgement of the gate at a desk, as text and JSON, with its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from azora_ci.cli.main import main
from tests.conftest import DatabaseMaker
from tests.support import prisma_table


def check(*arguments: object, **environ: str) -> Result:
    return CliRunner().invoke(main, ["migrations", "check", *map(str, arguments)], env=environ)


@pytest.fixture
def application(tmp_path: Path) -> Path:
    for name, sql in {"1_start": "CREATE TABLE orders (id int);", "2_next": "ALTER TABLE orders\n  DROP COLUMN id;"}.items():
        folder = tmp_path / "prisma/migrations" / name
        folder.mkdir(parents=True)
        (folder / "migration.sql").write_text(sql)
    return tmp_path


def test_a_file_is_judged_alone(application: Path):
    result = check(application / "prisma/migrations/2_next/migration.sql")
    assert result.exit_code == 1
    assert "2_next/migration.sql:1: incompatible" in result.output
    assert "instead: stop using it in this release" in result.output


def test_without_a_database_every_migration_is_pending(application: Path):
    result = check(application)
    assert (result.exit_code, "2 statements in 2 files" in result.output) == (0, True)  # the first makes what the second changes


def test_with_a_database_what_it_has_applied_is_left_out(application: Path, postgres_cluster: DatabaseMaker):
    url = postgres_cluster.fresh("CREATE TABLE orders (id int);" + prisma_table.with_migrations("1_start"))
    result = check(application, "--json", "--database-url-from", "SHADOW", SHADOW=url)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["verdict"], len(document["files"])) == ("incompatible", 1)
    assert document["findings"][0]["locks"] == {"orders": "ACCESS EXCLUSIVE"}
    assert check(application, "--database-url-from", "SHADOW", SHADOW="postgresql://u:hunter2@127.0.0.1:1/x").exit_code == 3


def test_what_cannot_be_used_is_exit_code_2(application: Path):
    missing = check(application, "--database-url-from", "SHADOW", SHADOW="")
    assert (missing.exit_code, "SHADOW is not set" in missing.output) == (2, True)
    secret = check(application, "--database-url-from", "postgresql://u:hunter2@h/d")
    assert secret.exit_code == 2
    assert "hunter2" not in secret.output
    (application / "empty").mkdir()
    assert check(application / "empty").exit_code == 2
    (application / "wide.sql").write_bytes("DROP TABLE x".encode("utf-16"))
    assert "UTF-16" in check(application / "wide.sql").output
    assert check(application / "nothing.sql").exit_code == 2


def test_other_tools_keep_their_files_otherwise(tmp_path: Path):
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "1_a.up.sql").write_text("CREATE TABLE a (id int);")
    (folder / "1_a.down.sql").write_text("DROP TABLE a;")
    (folder / "2_b.sql").write_text("-- +goose Up\nALTER TABLE b ADD c int;\n-- +goose Down\nDROP TABLE b;\n")
    result = check(tmp_path, "--json")
    assert result.exit_code == 0
    assert [Path(file).name for file in json.loads(result.stdout)["files"]] == ["1_a.up.sql", "2_b.sql"]
