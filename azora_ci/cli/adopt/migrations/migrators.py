"""Find how else than by Prisma a repository migrates its database, and images that do it at their own start. Runs nothing."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from azora_ci.cli.adopt.repository import Files
from azora_ci.cli.adopt.toolchain import FoundToolchain
from azora_ci.core.documents import UnreadableError, read_json

# What migrates a database, in a command, a script, or an image's start.
_MIGRATES = re.compile(
    r"\bprisma\b[^\n;&|]{0,60}\b(?:migrate\s+(?:deploy|dev|reset)|db\s+push)\b|\bmanage\.py\b[^\n;&|]{0,20}\bmigrate\b"
    r"|\balembic\b[^\n;&|]{0,60}\bupgrade\b|\bflask\s+db\s+upgrade\b|\bknex\b[^\n;&|]{0,60}\bmigrate:(?:latest|up)\b"
    r"|\bsequelize(?:-cli)?\b[^\n;&|]{0,40}\bdb:migrate\b|\btypeorm\b[^\n;&|]{0,80}\bmigration:run\b|\bdrizzle-kit\b\s+(?:migrate|push)\b"
    r"|\bnode-pg-migrate\b[^\n;&|]{0,40}\bup\b|\bflyway\b[^\n;&|]{0,80}\bmigrate\b|\bliquibase\b[^\n;&|]{0,80}\bupdate\b"
    r"|\b(?:rails|rake)\b[^\n;&|]{0,40}\bdb:(?:migrate|prepare)\b|\bartisan\b[^\n;&|]{0,20}\bmigrate\b|\bdoctrine:migrations:migrate\b"
    r"|\bdotnet\s+ef\s+database\s+update\b|\b(?:goose|dbmate|migrate)\b[^\n;&|]{0,120}\bup\b|\bsqlx\s+migrate\s+run\b"
    r"|\bdiesel\s+migration\s+run\b|\batlas\s+migrate\s+apply\b|\bmikro-orm\b[^\n;&|]{0,40}\bmigration:up\b|\bwasp\s+db\s+migrate"
)
_PACKAGE_SCRIPT = re.compile(r"\b(?:npm|pnpm|yarn|bun)\s+(?:run\s+|run-script\s+)?(?:--?\S+\s+)*([\w:.-]+)")
_NODE_TOOLS = {  # package -> program and arguments that apply what is pending
    "knex": ("knex", "migrate:latest"),
    "sequelize-cli": ("sequelize-cli", "db:migrate"),
    "drizzle-kit": ("drizzle-kit", "migrate"),
    "node-pg-migrate": ("node-pg-migrate", "up"),
    "typeorm": ("typeorm", "migration:run"),
    "@mikro-orm/cli": ("mikro-orm", "migration:up"),
}
# Where applications say by which variables they find their database.
_SETTINGS = (
    *(f"{name}.py" for name in ("settings", "base", "production", "env", "config")),
    *(
        f"{name}.{suffix}"
        for name in ("knexfile", "drizzle.config", "data-source", "mikro-orm.config")
        for suffix in ("ts", "js", "mjs", "cjs")
    ),
    ".env.example",
    ".env.sample",
    ".env.template",
)
_ADDRESS = re.compile(r"\b((?:[A-Z0-9]+_)*(?:DATABASE|POSTGRES|POSTGRESQL|PG|DB)_(?:URL|URI|DSN))\b")
_VENV = ".azora-venv"  # made by the build, of copies: a link to the machine's Python does not travel with the tree
_DEPTH = 4  # of scripts that call scripts


@dataclass(frozen=True)
class Migrator:
    """How another tool than Prisma migrates: its name, the command, what installs it, the file that says so, and what is not certain.

    ``variables``: names that the application has for its database's address, from the file ``variables_from``; empty where none does.
    """

    tool: str
    command: tuple[str, ...]
    prepare: tuple[tuple[str, ...], ...]
    source: str
    doubt: str | None = None
    variables: tuple[str, ...] = ()
    variables_from: str = ""


def discover(files: Files, package: Mapping[str, Any], toolchain: FoundToolchain) -> Migrator | None:
    """Return the tool whose files lie in a repository, or None; where there are several, the first of Django, Alembic, Node.js' tools."""
    tool = _discover(files, package, toolchain)
    if tool is None:
        return None
    for path in files.named(*_SETTINGS):
        names = dict.fromkeys(_ADDRESS.findall(files.text(path)))
        if len(names) == 1:  # of several, only a person knows which is this database's
            return replace(tool, variables=tuple(names), variables_from=str(path))
    return tool


def _discover(files: Files, package: Mapping[str, Any], toolchain: FoundToolchain) -> Migrator | None:
    for path in files.named("manage.py"):
        if "django" in files.text(path).lower():
            return Migrator("Django", (f"{_VENV}/bin/python", str(path), "migrate", "--noinput"), *_python(files, path))
    for path in files.named("alembic.ini"):
        up = "../" * len(path.parent.parts)  # its paths and modules are found from its folder
        there = ("env", "-C", str(path.parent)) if up else ()
        return Migrator("Alembic", (*there, f"{up}{_VENV}/bin/alembic", "-c", path.name, "upgrade", "head"), *_python(files, path))
    tables = (package.get(name) for name in ("dependencies", "devDependencies"))
    dependencies = {name for table in tables if isinstance(table, dict) for name in table}
    within = toolchain.within
    for name, arguments in _NODE_TOOLS.items():
        if name in dependencies:
            doubt = "its options, where package.json has a script with some"
            return Migrator(name, (*within, *toolchain.execute, *arguments), ((*within, *toolchain.install),), "package.json", doubt)
    for path in files.named("flyway.conf", "flyway.toml"):
        return Migrator("Flyway", ("flyway", "migrate"), (), str(path), "how flyway comes onto the runner; FLYWAY_URL has the form jdbc")
    return None


def _python(files: Files, path: PurePosixPath) -> tuple[tuple[tuple[str, ...], ...], str, str | None]:
    """Return what installs a Python application into a folder of the tree, the file that it is found by, and what is not certain."""
    requirements = next((file for file in files.named("requirements.txt") if file.parent in (path.parent, PurePosixPath())), None)
    venv = ("python3", "-m", "venv", "--copies", _VENV)
    if requirements is None:
        return (venv,), str(path), "what installs the application's packages into it, in database.prepare"
    return (venv, (f"{_VENV}/bin/pip", "install", "--quiet", "-r", str(requirements))), str(path), None


# --- images that migrate at their own start ---------------------------------------------------------------------------------


def only_migrates(command: str) -> bool:
    """Say whether a command applies migrations, and starts nothing after them."""
    matched = _MIGRATES.search(command)
    if matched is None:
        return False
    following = re.split(r"&&|\|\||[;\n]|(?<!>)&", command[matched.end() :])[1:]
    return all(re.fullmatch(r"\s*(?:(?:echo|exit|true)\b.*)?[\s\"')]*", part) for part in following)


def at_start(
    files: Files,
    context: str,
    dockerfile: str,
    command: Sequence[str] = (),
    entrypoint: Sequence[str] = (),
    named: str = "command of the compose file",
) -> str | None:
    """Return what migrates the database when a container of an image starts, as text with its file, or None.

    ``command`` and ``entrypoint``: what a compose file or a manifest starts in place of the image's own, and is called ``named``. Scripts
    that are started are read, those of package.json, too.
    """
    start = PurePosixPath(context) / dockerfile
    lines = [(str(start), line) for line in _starting_lines(files.text(start))]
    if command or entrypoint:
        kept = [] if entrypoint else [(source, line) for source, line in lines if line.upper().startswith("ENTRYPOINT")]
        lines = [*kept, (named, shlex.join([*entrypoint, *command]))]
    return next(filter(None, (_migrating(files, PurePosixPath(context), source, line, _DEPTH) for source, line in lines)), None)


def _starting_lines(dockerfile: str) -> Iterator[str]:
    """Yield the CMD and ENTRYPOINT of the last stage, as one line each; a later one replaces an earlier one."""
    joined = re.sub(r"\\[ \t]*\r?\n", " ", dockerfile)
    last = re.split(r"^\s*FROM\s", joined, flags=re.MULTILINE | re.IGNORECASE)[-1]
    for word in ("ENTRYPOINT", "CMD"):
        found = re.findall(rf"^\s*({word}\s.*)$", last, re.MULTILINE | re.IGNORECASE)
        yield from found[-1:]


def _migrating(files: Files, context: PurePosixPath, source: str, line: str, depth: int) -> str | None:
    words = _words(line)
    if matched := _MIGRATES.search(" ".join(words)):
        return f"{' '.join(matched[0].split())} ({source})"
    if depth == 0:
        return None
    for name, script in _called(files, context, words):
        for script_line in re.sub(r"\\[ \t]*\r?\n", " ", script).splitlines():
            if not script_line.lstrip().startswith("#") and (migrating := _migrating(files, context, name, script_line, depth - 1)):
                return migrating
    return None


def _words(line: str) -> list[str]:
    text = re.sub(r"^(?:CMD|ENTRYPOINT)\s+", "", line.strip(), flags=re.IGNORECASE)
    if text.startswith("["):
        with contextlib.suppress(UnreadableError):
            return [str(word) for word in read_json(text)]
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def _called(files: Files, context: PurePosixPath, words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the scripts that a command calls: files of the repository, and scripts of package.json with their pre-."""
    for word in " ".join(words).split():
        name = PurePosixPath(word).name
        if ("." in name and re.fullmatch(r"[\w.-]+\.(?:sh|bash|js|cjs|mjs|ts|py)", name)) or name in {"entrypoint", "docker-entrypoint"}:
            below = [path for path in files.named(name) if context in (path.parent, *path.parents)]
            yield from ((str(path), files.text(path)) for path in below[:1])
    package = files.nearest(context, "package.json")
    named = files.mapping(package / "package.json").get("scripts") if package is not None else None
    scripts = named if isinstance(named, dict) else {}
    for called in _PACKAGE_SCRIPT.findall(" ".join(words)):
        for script in (f"pre{called}", called):
            if script in scripts:
                yield f"script {script} of package.json", str(scripts[script])
