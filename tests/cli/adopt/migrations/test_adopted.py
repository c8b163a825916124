"""What adopting writes and says of migrations: what was found with its source, the rest marked, and what would bypass the proof."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from azora_ci.cli.adopt import plan
from azora_ci.cli.adopt.report import report
from azora_ci.cli.main import main
from azora_ci.core import config
from tests.cli.adopt.migrations.test_prisma import MODELS, PACKAGE, SCHEMA, SQLITE, migrations, repository

SHA = "0123456789abcdef0123456789abcdef01234567"


def adopted(folder: Path, files: dict[str, str]) -> tuple[dict[str, Any], list[str], str]:
    """Adopt a repository with these files; return the configuration, its marked lines about migrations, and the report."""
    (folder / ".git").mkdir()
    repository(folder, {"package-lock.json": "{}", **files})
    adoption = plan.plan(folder, plan.SetupAction(plan.REPOSITORY, SHA))
    plan.write(adoption)
    config.load(folder / plan.CONFIG)
    text = (folder / plan.CONFIG).read_text(encoding="utf-8")
    part = text[text.index("[database]") : text.index("[backup]")]
    return tomllib.loads(text), [line for line in part.splitlines() if "# fill in" in line], report(adoption)


def test_one_schema_leaves_nothing_to_fill_in(tmp_path: Path) -> None:
    schema = SCHEMA.replace("DATABASE_URL", "APP_URL").replace("}", '  directUrl = env("DIRECT_URL")\n}')
    files = {"prisma/schema/main.prisma": schema, "prisma/schema/a.prisma": MODELS, **migrations("prisma/schema/migrations")}
    document, marked, said = adopted(tmp_path, {"package.json": PACKAGE} | files)
    assert marked == []
    assert document["database"] == {
        "prepare": [["npm", "ci"]],
        "migrate": ["npx", "prisma", "migrate", "deploy", "--schema", "prisma/schema"],
        "migrations_dir": "prisma/schema/migrations",
        "variables": {"APP_URL": "url", "DIRECT_URL": "url"},
    }
    assert "Prisma: prisma/schema (postgresql), prisma/schema/migrations\n" in said
    secrets = document["services"]["app"]["secrets"]  # the service has its own names for the same secret
    assert secrets == [{"env": name, "secret": "PROD_DATABASE_URL"} for name in ("APP_URL", "DIRECT_URL")]


def test_several_schemas_are_offered_and_other_databases_left_out(tmp_path: Path) -> None:
    files = {"a/schema.prisma": SCHEMA, "b/schema.prisma": SCHEMA, "c/schema.prisma": SQLITE}
    _, marked, said = adopted(tmp_path, files | migrations("a/migrations") | migrations("b/migrations"))
    assert len(marked) == 1
    assert "one of a/migrations, b/migrations" in marked[0]
    assert "  b/schema.prisma (postgresql), b/migrations\n" in said
    assert "left out: c/schema.prisma, its provider is sqlite" in said


def test_a_schema_without_migrations_is_a_question(tmp_path: Path) -> None:
    _, marked, _ = adopted(tmp_path, {"prisma/schema.prisma": SCHEMA})
    assert len(marked) == 1
    assert "no migrations are there" in marked[0]


def test_no_prisma_is_said_at_once_and_no_command_of_prisma_written(tmp_path: Path) -> None:
    document, marked, said = adopted(tmp_path, {})
    assert document["migrations"] == {"command": []}
    assert document["database"] == {}
    assert len(marked) == 1
    assert "No Prisma: say in [migrations] what migrates the database" in said


def test_django(tmp_path: Path) -> None:
    files = {"manage.py": "import django", "requirements.txt": "django\n", "shop/settings.py": 'environ["APP_DATABASE_URL"]'}
    document, marked, said = adopted(tmp_path, files)
    assert marked == []
    assert document["migrations"]["command"] == [".azora-venv/bin/python", "manage.py", "migrate", "--noinput"]
    assert document["database"]["variables"] == {"APP_DATABASE_URL": "url"}
    assert "No Prisma: Django migrates, found by manage.py" in said


@pytest.mark.parametrize("settings", ["", 'A_DATABASE_URL, B_DATABASE_URL = environ["A_DATABASE_URL"], environ["B_DATABASE_URL"]'])
def test_names_that_no_file_tells_are_a_question(tmp_path: Path, settings: str) -> None:
    _, marked, _ = adopted(tmp_path, {"manage.py": "import django", "requirements.txt": "", "settings.py": settings})
    assert len(marked) == 1
    assert marked[0].startswith("variables = ")


def test_prisma_8_is_refused_in_words_that_help(tmp_path: Path) -> None:
    _, marked, said = adopted(tmp_path, {"migrations/app/20260101T1200_init/ops.json": "[]"})
    assert "Prisma 8 is not supported yet" in marked[0]
    assert "Prisma 8 (migrations/app/20260101T1200_init/ops.json)" in said


def test_an_image_that_migrates_at_its_own_start_is_warned_of(tmp_path: Path) -> None:
    files = {"compose.yaml": "services: {web: {build: .}}", "Dockerfile": "FROM node:22\nCMD npx prisma migrate deploy && node ."}
    *_, said = adopted(tmp_path, {"prisma/schema.prisma": SCHEMA, **migrations("prisma/migrations"), **files})
    assert "web migrates at its own start: prisma migrate deploy (Dockerfile)" in said
    assert "bypasses the backup's proof" in said
    checked = CliRunner().invoke(main, ["adopt", str(tmp_path), "--check", "--ref", SHA])
    assert "Warning: web migrates at its own start: prisma migrate deploy (Dockerfile)" in checked.output
