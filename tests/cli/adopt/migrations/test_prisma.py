"""Prisma is found where it lives, by reading alone: schemas, migrations, names of variables, and the command that migrates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from azora_ci.cli.adopt.files import walk
from azora_ci.cli.adopt.migrations import prisma
from azora_ci.cli.adopt.migrations.prisma import FoundPrisma, Prisma
from azora_ci.cli.adopt.repository import Files
from azora_ci.cli.adopt.toolchain import FoundToolchain

SCHEMA = 'datasource db {\n  provider = "postgresql"\n  url = env("DATABASE_URL")\n}\n'
SQLITE = 'datasource db {\n  provider = "sqlite"\n  url = "file:./dev.db"\n}\n'
MODELS = "model A {\n  id Int @id\n}\n"
LOCK = '# Prisma\nprovider = "postgresql"\n'
PACKAGE = json.dumps({"name": "@acme/db", "dependencies": {"prisma": "^6"}})
MANAGERS = {name: FoundToolchain(name, "4.5.0" if name == "yarn" else "9.0.0", "22", None) for name in ("npm", "pnpm", "yarn", "bun")}
DEPLOY = ("prisma", "migrate", "deploy")


def repository(folder: Path, files: dict[str, str]) -> Prisma:
    """Write files, migrations as their folder alone, and return what is found among them."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return prisma.discover(Files(folder, walk(folder)))


def migrations(folder: str) -> dict[str, str]:
    return {f"{folder}/20260101000000_init/migration.sql": "SELECT 1;", f"{folder}/migration_lock.toml": LOCK}


def only(found: Prisma) -> FoundPrisma:
    (schema,) = found.schemas
    assert found.certain
    return schema


@pytest.mark.parametrize(
    ("files", "schema", "folder", "options"),
    [
        ({"prisma/schema.prisma": SCHEMA, **migrations("prisma/migrations")}, "prisma/schema.prisma", "prisma/migrations", ()),
        ({"schema.prisma": SCHEMA, **migrations("migrations")}, "schema.prisma", "migrations", ()),
        (
            {"db/schema.prisma": SCHEMA, "package.json": '{"prisma": {"schema": "./db/schema.prisma"}}', **migrations("db/migrations")},
            "db/schema.prisma",
            "db/migrations",
            (),
        ),
        (
            {"src/db/main.prisma": SCHEMA, "package.json": PACKAGE, **migrations("src/db/migrations")},
            "src/db/main.prisma",
            "src/db/migrations",
            ("--schema", "src/db/main.prisma"),
        ),
        (  # a folder of schemas, the migrations beside the datasource
            {"prisma/schema/main.prisma": SCHEMA, "prisma/schema/a.prisma": MODELS, **migrations("prisma/schema/migrations")},
            "prisma/schema",
            "prisma/schema/migrations",
            ("--schema", "prisma/schema"),
        ),
        (  # the same, the migrations beside the folder, which package.json names
            {
                "prisma/schema/schema.prisma": SCHEMA,
                "prisma/schema/models/a.prisma": MODELS,
                "package.json": '{"prisma": {"schema": "prisma/schema"}}',
                **migrations("prisma/migrations"),
            },
            "prisma/schema",
            "prisma/migrations",
            (),
        ),
        (
            {
                "prisma.config.ts": 'export default defineConfig({ schema: "src/s.prisma", migrations: { path: "sql/changes" } })',
                "src/s.prisma": SCHEMA,
                **migrations("sql/changes"),
            },
            "src/s.prisma",
            "sql/changes",
            (),
        ),
        (
            {".config/prisma.ts": "export default {}", "prisma/schema.prisma": SCHEMA, **migrations("prisma/migrations")},
            "prisma/schema.prisma",
            "prisma/migrations",
            (),
        ),
        (
            {
                "tools/prisma.config.mjs": 'export default { schema: path.join(import.meta.dirname, "..", "db", "schema.prisma") }',
                "db/schema.prisma": SCHEMA,
                "package.json": PACKAGE,
                **migrations("db/migrations"),
            },
            "db/schema.prisma",
            "db/migrations",
            ("--config", "tools/prisma.config.mjs"),
        ),
    ],
)
def test_a_schema_and_its_migrations(tmp_path: Path, files: dict[str, str], schema: str, folder: str, options: tuple[str, ...]) -> None:
    found = only(repository(tmp_path, files))
    assert (found.schema, found.migrations, found.applied, found.provider) == (schema, folder, True, "postgresql")
    assert (found.options, found.variables, found.open) == (options, ("DATABASE_URL",), ())


@pytest.mark.parametrize(
    ("manager", "execute"),
    [("npm", ("npx",)), ("pnpm", ("pnpm", "exec")), ("yarn", ("yarn", "run")), ("bun", ("bun", "run"))],
)
@pytest.mark.parametrize("workspaces", ["package.json", "pnpm-workspace.yaml"])
def test_a_workspace(tmp_path: Path, manager: str, execute: tuple[str, ...], workspaces: str) -> None:
    root = {"package.json": '{"workspaces": ["packages/*"]}'} if workspaces == "package.json" else {}
    root |= {"pnpm-workspace.yaml": "packages: ['packages/*']"} if workspaces != "package.json" else {}
    db = {"packages/db/package.json": PACKAGE, "packages/db/prisma/schema/main.prisma": SCHEMA}
    found = only(repository(tmp_path, {"package.json": "{}"} | root | db | migrations("packages/db/prisma/schema/migrations")))
    assert found.command(MANAGERS[manager]) == ("env", "-C", "packages/db", *execute, *DEPLOY, "--schema", "prisma/schema/main.prisma")
    assert found.prepare(MANAGERS[manager]) == (MANAGERS[manager].install,)
    assert found.migrations == "packages/db/prisma/schema/migrations"


def test_a_package_beside_the_root_is_installed_there(tmp_path: Path) -> None:
    found = only(
        repository(tmp_path, {"db/package.json": PACKAGE, "db/prisma/schema.prisma": SCHEMA, **migrations("db/prisma/migrations")})
    )
    assert found.prepare(MANAGERS["npm"]) == (("env", "-C", "db", "npm", "ci"),)
    assert found.command(MANAGERS["npm"]) == ("env", "-C", "db", "npx", *DEPLOY)


def test_a_package_without_prisma_uses_the_roots(tmp_path: Path) -> None:
    files = {"package.json": PACKAGE, "apps/api/package.json": "{}", "apps/api/prisma/schema.prisma": SCHEMA}
    found = only(repository(tmp_path, files | migrations("apps/api/prisma/migrations")))
    assert found.command(MANAGERS["npm"]) == ("npx", *DEPLOY, "--schema", "apps/api/prisma/schema.prisma")


@pytest.mark.parametrize(
    ("schema", "config", "variables", "unknown"),
    [
        ('url = env("APP_URL")\n  directUrl = env("DIRECT_URL")', "", ("APP_URL", "DIRECT_URL"), ()),
        ('// url = env("OLD")\n  url = env("NEW") // env("NO")', "", ("NEW",), ()),
        ('url = "postgresql://here"', "", (), ("url",)),
        ("", 'datasource: { url: env("PG_URL"), shadowDatabaseUrl: env("SHADOW") }', ("PG_URL",), ()),
        ("", "datasource: { url: process.env.DIRECT_URL ?? process.env['DATABASE_URL']! }", ("DIRECT_URL", "DATABASE_URL"), ()),
        ("", "datasource: { url: address }", (), ("url",)),
        ("", "", (), ("url",)),
    ],
)
def test_the_names_of_the_addresses(tmp_path: Path, schema: str, config: str, variables: tuple[str, ...], unknown: tuple[str, ...]) -> None:
    files = {"prisma/schema.prisma": f'datasource db {{\n  provider = "postgresql"\n  {schema}\n}}\n', **migrations("prisma/migrations")}
    files |= {"prisma.config.ts": f"export default defineConfig({{ {config} }});"} if config else {}
    found = only(repository(tmp_path, files))
    assert (found.variables, found.open) == (variables, unknown)


def test_a_constant_of_the_configuration_is_followed(tmp_path: Path) -> None:
    text = "const databaseUrl = process.env.APP_URL!;\nexport default defineConfig({ datasource: { url: databaseUrl } });"
    found = only(repository(tmp_path, {"prisma.config.ts": text, "prisma/schema.prisma": 'datasource db {\n provider = "postgresql"\n}\n'}))
    assert found.variables == ("APP_URL",)


def test_what_is_computed_is_open(tmp_path: Path) -> None:
    text = 'export default defineConfig({ schema: find("x"), migrations: { path: `${base}/sql` }, datasource: { url: env("A") } })'
    found = repository(tmp_path, {"prisma.config.ts": text})
    assert only(found).open == ("schema", "migrations.path")


def test_several_schemas_are_ranked_by_their_migrations_and_others_are_named(tmp_path: Path) -> None:
    files = {"a/schema.prisma": SCHEMA, "b/prisma/schema.prisma": SCHEMA, "c/schema.prisma": SQLITE, **migrations("b/prisma/migrations")}
    found = repository(tmp_path, files)
    assert [schema.schema for schema in found.schemas] == ["b/prisma/schema.prisma", "a/schema.prisma"]
    assert found.others == (("c/schema.prisma", "sqlite"),)
    assert found.certain
    both = repository(tmp_path, migrations("a/migrations"))
    assert not both.certain


def test_migrations_without_a_schema_are_found_by_their_lock(tmp_path: Path) -> None:
    found = only(repository(tmp_path, migrations("database/changes")))
    assert (found.migrations, found.provider, found.open) == ("database/changes", "postgresql", ("schema",))


@pytest.mark.parametrize("file", ["migrations/app/20260101T1200_init/ops.json", "src/prisma/contract.prisma", "prisma-next.config.ts"])
def test_prisma_8_is_recognised(tmp_path: Path, file: str) -> None:
    found = repository(tmp_path, {file: "{}"})
    assert (found.next, found.schemas) == ((file,), ())


def test_files_of_other_people_and_links_are_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside.prisma"
    outside.write_text(SCHEMA, encoding="utf-8")
    folder = tmp_path / "application"
    (folder / "prisma").mkdir(parents=True)
    (folder / "prisma/schema.prisma").symlink_to(outside)
    found = repository(
        folder, {"node_modules/x/prisma/schema.prisma": SCHEMA, "package.json": '{"prisma": {"schema": "../outside.prisma"}}'}
    )
    assert [schema.provider for schema in found.schemas] == [None]


@pytest.mark.parametrize(
    "text", ["\ufeff" + PACKAGE, "{", "[]", '{"prisma": null, "dependencies": null}', '{"workspaces": {"packages": null}}']
)
def test_any_package_json_is_survived(tmp_path: Path, text: str) -> None:
    found = only(repository(tmp_path, {"package.json": text, "prisma/schema.prisma": "\ufeff" + SCHEMA, **migrations("prisma/migrations")}))
    assert found.schema == "prisma/schema.prisma"
