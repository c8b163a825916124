"""Node.js and the package manager are found in every file that names them, and what is no exact version is left open."""

from __future__ import annotations

import pytest

from azora_ci.cli.adopt import plan, toolchain
from azora_ci.core import config
from azora_ci.gates.audit import lock_files

PNPM, YARN_4 = {"pnpm-lock.yaml": ""}, {"yarn.lock": "__metadata:\n"}


def found(folder, files, package):
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return toolchain.discover(folder, package)


def test_yarn_4_is_audited_by_its_lock_file_and_no_command_of_yarn(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "package.json").write_text('{"packageManager": "yarn@4.5.0", "scripts": {"build": "tsc"}}')
    (tmp_path / "yarn.lock").write_text("__metadata:\n  version: 8\n")
    plan.adopt(tmp_path, action_ref="0" * 40)
    adopted = config.load(tmp_path / plan.CONFIG)
    assert adopted.validation.audit.level == "high"
    assert adopted.build.commands == adopted.checks.build == (("yarn", "install", "--immutable"), ("yarn", "run", "build"))
    assert [file.manager for file in lock_files.find(tmp_path)] == ["yarn"]


def test_without_packages_nothing_of_node_is_guessed(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "go.mod").write_text("module example.org/app\n")
    plan.adopt(tmp_path, action_ref="0" * 40)
    written = (tmp_path / plan.CONFIG).read_text()
    adopted = config.load(tmp_path / plan.CONFIG)
    assert (adopted.checks.build, adopted.build.commands) == ((("true",),), ())
    assert "npm" not in written
    assert written.count("# fill in: no package.json") == written.count("# fill in: what must run before the images are made") == 1


@pytest.mark.parametrize(
    ("files", "package", "node"),
    [
        ({".nvmrc": "# of the servers\nv20.11.1\n"}, {}, "20.11.1"),
        ({".nvmrc": "\ufeff22\n"}, {}, "22"),
        ({}, {"volta": {"node": "18.20.1"}}, "18.20.1"),
        ({".tool-versions": "python 3.12.1\nnodejs 20.9.0\n"}, {}, "20.9.0"),
        ({"mise.toml": '[tools]\nnode = "22"\n'}, {}, "22"),
        ({}, {"devEngines": {"runtime": {"name": "node", "version": ">=22.1.0"}}}, None),
        ({}, {"devEngines": {"runtime": {"name": "node", "version": "^22.1.0"}}}, "22"),
        ({"Dockerfile": "FROM node:22\n"}, {"engines": {"node": ">=14"}}, "22"),
        ({}, {"engines": {"node": ">=14"}}, None),
        ({"Dockerfile": 'ARG NODE_VERSION="20"\nFROM node:${NODE_VERSION}-alpine\n'}, {}, "20"),
        ({"Dockerfile": "ARG NODE_VERSION\nFROM node:${NODE_VERSION:-20}-alpine\n"}, {}, "20"),
        ({}, {"devEngines": {"runtime": [{"name": "bun", "version": "1"}]}}, None),
        ({}, {"engines": {"node": "<23 >=20"}}, "20"),
        ({}, {"engines": {"node": "<23"}}, None),
        ({}, {"engines": None, "volta": None, "devEngines": None}, None),
        ({"Dockerfile": "FROM --platform=$BUILDPLATFORM docker.io/library/node:22.4-alpine AS build\nFROM nginx\n"}, {}, "22.4"),
        ({"Dockerfile": "FROM node:alpine\n"}, {}, None),
        ({".nvmrc": "20\n", "Dockerfile": "FROM node:22\n"}, {"engines": {"node": "18"}}, "20"),
    ],
)
def test_node(tmp_path, files, package, node):
    assert found(tmp_path, files, package).node == node


HUSKY = '{"devDependencies": {"husky": "9"}, "scripts": {"prepare": "husky"}}'
BACKEND = '{"dependencies": {"knex": "3"}, "scripts": {"build": "tsc"}}'
YARN = ("yarn", "install", "--frozen-lockfile")


@pytest.mark.parametrize(
    ("files", "within", "install"),
    [
        ({"backend/package.json": BACKEND, "backend/yarn.lock": "# v1\n"}, ("env", "-C", "backend"), YARN),
        (
            {"package.json": HUSKY, "package-lock.json": "{}", "backend/package.json": BACKEND, "backend/yarn.lock": "# v1"},
            ("env", "-C", "backend"),
            YARN,
        ),
        ({"package.json": BACKEND, "package-lock.json": "{}", "docs/package.json": "{}", "docs/yarn.lock": "# v1"}, (), ("npm", "ci")),
        ({"a/package.json": BACKEND, "a/yarn.lock": "# v1", "b/package.json": BACKEND, "b/package-lock.json": "{}"}, (), ("npm", "ci")),
        (
            {
                "a/package.json": '{"dependencies": {"prisma": "6"}, "scripts": {"build": "tsc"}}',
                "a/yarn.lock": "# v1",
                "a/prisma/schema.prisma": 'datasource db {\n  provider = "postgresql"\n  url = env("A")\n}\n',
                "b/package.json": BACKEND,
                "b/package-lock.json": "{}",
            },
            ("env", "-C", "a"),
            YARN,
        ),
    ],
)
def test_the_package_that_is_deployed_has_its_own_toolchain(tmp_path, files, within, install):
    for name, content in ({".nvmrc": "22\n"} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / ".git").mkdir()
    plan.adopt(tmp_path, action_ref="0" * 40)
    adopted = config.load(tmp_path / plan.CONFIG)
    assert adopted.build.commands[0] == (*within, *install)
    assert adopted.toolchain.node == "22"
    assert not adopted.database.prepare or adopted.database.prepare == ((*within, *install),)
    assert not within or adopted.toolchain.package_manager == f"yarn@{toolchain.LAST_YARN_1}"


@pytest.mark.parametrize(
    ("files", "package", "manager", "version"),
    [
        (PNPM, {"packageManager": "pnpm@9"}, "pnpm", None),
        ({}, {"packageManager": "pnpm@9.12.0"}, "pnpm", "9.12.0"),
        (PNPM, {"volta": {"pnpm": "9.1.0"}}, "pnpm", "9.1.0"),
        (PNPM | {".tool-versions": "pnpm 9.2.0\n"}, {}, "pnpm", "9.2.0"),
        (PNPM | {"mise.toml": '[tools]\n"pnpm" = "9.3.0"\n'}, {}, "pnpm", "9.3.0"),
        ({}, {"devEngines": {"packageManager": {"name": "pnpm", "version": "10.1.0"}}}, "pnpm", "10.1.0"),
        (PNPM, {"devEngines": {"packageManager": {"name": "pnpm", "version": "^10"}}}, "pnpm", None),
        ({"bun.lock": "", ".bun-version": "1.2.3\n"}, {}, "bun", "1.2.3"),
        ({"yarn.lock": "# v1\n"}, {"volta": {"yarn": "1.22.10"}}, "yarn", "1.22.10"),
        ({"yarn.lock": "# v1\n"}, {}, "yarn", toolchain.LAST_YARN_1),
        (YARN_4, {"volta": {"yarn": "4.5.3"}}, "yarn", "4.5.3"),
        (YARN_4, {}, "yarn", None),
        ({}, {"packageManager": None}, None, None),
    ],
)
def test_the_package_manager(tmp_path, files, package, manager, version):
    toolchain_found = found(tmp_path, files, package)
    assert (toolchain_found.manager, toolchain_found.version) == (manager, version)
