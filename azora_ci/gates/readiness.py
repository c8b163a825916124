"""What would stop a deployment, as a list that is complete: adopt --check, doctor and pre-deployment-validation report the same problems.

Here is what the repository and the names of secrets tell. Reads files of the repository; runs nothing of it and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.core import config as configuration
from azora_ci.core.config import Command, DeployConfig, Service
from azora_ci.core.documents import UnreadableError, read_toml
from azora_ci.core.errors import AzoraError, BadInputError
from azora_ci.core.hosts import is_loopback
from azora_ci.database.migrations import prisma
from azora_ci.gates.audit import lock_files
from azora_ci.gates.audit.verdict import NO_LEVEL
from azora_ci.targets.base import IMAGES
from azora_ci.targets.registry import kind_of

FILL_IN = "# fill in"  # how a line of the configuration is marked that holds a guess
NO_DIGEST = f"sha256:{'0' * 64}"
_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?(?:[^/@\s]+@)?(?P<host>[A-Za-z0-9.-]+)(?::\d+)?(?:[/@?#]\S*)?")
_RESERVED = re.compile(r"\.(?:example|invalid)$|(?:^|\.)example\.(?:com|net|org)$", re.IGNORECASE)  # RFC 2606: nobody has these names
# Keys whose texts are the application's own, or are meant for people: no address of production.
_NO_ADDRESSES = frozenset({"args", "command", "contains", "entrypoint", "env", "migrate", "prepare", "reason", "title"})
_PUBLIC = frozenset({"public_url", "public_health_url", "url"})
_LOCKED = {"npm": {"ci"}, "pnpm": {"--frozen-lockfile"}, "yarn": {"--frozen-lockfile", "--immutable"}, "bun": {"--frozen-lockfile"}}
_ELSEWHERE = ("--prefix", "--cwd", "--dir", "-C")  # options that name another folder than the working one
_STAGE = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*\S+(?:\s+AS\s+(?P<name>\S+))?", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """Something that would stop a deployment: its place (``file:line``, key, variable, host), what is wrong there, what to do."""

    where: str
    what: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def document(self) -> dict[str, str]:
        """Return the problem as evidence."""
        return {"where": self.where, "what": self.what, "next": self.next_step}


def of_error(error: AzoraError) -> Problem:
    """Return an error as a problem among others."""
    return Problem(error.where, f"{error.title}: {error.what}", error.next_step)


def of_repository(folder: Path, path: Path, own: Collection[str], is_ignored: Callable[[str], bool]) -> list[Problem]:
    """Return the problems of a checkout at ``folder`` with the configuration ``path`` below it, those in its text first.

    ``own``: names of the variables that jobs read; ``is_ignored``: whether git ignores a path, so that a build may make it.
    """
    file = folder / path
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    problems = [*marks(text, path), *placeholders(text, path)]
    try:
        loaded = configuration.load(file)
    except AzoraError as error:
        return [*problems, of_error(error)]
    return [*problems, *of_configuration(loaded, path, own), *of_files(loaded, folder, is_ignored)]


# --- the configuration's text ---------------------------------------------------------------------------------------------


def to_fill_in(text: str) -> list[tuple[int, str]]:
    """Return (line number, hint) of every line that is still marked to be filled in."""
    marked = [(number, line) for number, line in enumerate(text.splitlines(), 1) if FILL_IN in line and not line.lstrip().startswith("#")]
    return [(number, line.split(FILL_IN, 1)[1].lstrip(": ")) for number, line in marked]


def marks(text: str, path: Path) -> list[Problem]:
    """Return a problem for every line that is still marked: nobody has said that its value is right."""
    step = "correct the value and remove the comment"
    return [Problem(f"{path}:{number}", f"is still to be filled in: {hint or 'a guess'}", step) for number, hint in to_fill_in(text)]


def placeholders(text: str, path: Path) -> list[Problem]:
    """Return a problem for every value that is no address: a digest of zeros, a name that is reserved for examples, loopback for users.

    A line that is marked is reported by ``marks`` alone. A text that is no TOML has none: loading it says what is wrong.
    """
    try:
        document = read_toml(text)
    except UnreadableError:
        return []
    marked = {number for number, _ in to_fill_in(text)}
    target = document.get("target")
    local = isinstance(target, dict) and target.get("kind") == "local_processes"
    lines = text.splitlines()
    problems = []
    for key, value in _texts(document):
        what = _placeholder(key, value, local=local)
        number = next((number for number, line in enumerate(lines, 1) if value in line and re.search(rf"\b{key}\b", line)), None)
        if what is not None and number not in marked:
            place = f"{path}:{number}" if number else str(path)
            problems.append(Problem(place, f"{key} = {value}: {what}", "write the real one"))
    return list(dict.fromkeys(problems))


def _placeholder(key: str, value: str, *, local: bool) -> str | None:
    if NO_DIGEST in value:
        return "the digest is all zeros, no image has it"
    address = _ADDRESS.fullmatch(value)
    if address and _RESERVED.search(address["host"]):
        return f"{address['host']} is reserved for examples, nothing answers there"
    if key in _PUBLIC and not local and is_loopback(value):
        return "users and this job reach it on their own machine only"
    return None


def _texts(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, text) for every text of a document that may be an address."""
    for key, value in table.items():
        if key in _NO_ADDRESSES:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _texts(item)
            elif isinstance(item, str):
                yield key, item


# --- the configuration's values -------------------------------------------------------------------------------------------


def of_configuration(config: DeployConfig, path: Path, own: Collection[str]) -> Iterator[Problem]:
    """Yield what later jobs would refuse of a configuration only after the migrations, or when all traffic has moved."""
    try:
        kind_of(config).check(config)
    except BadInputError as error:
        yield of_error(error)
    try:
        configuration.names.check(config.services, own)
    except ValueError as error:
        step = "give the service's secret a name of its own, in the repository's secrets, too"
        yield from (Problem(str(path), line, step) for line in str(error).splitlines())
    if not config.checks.required and not config.checks.rulesets:
        yield Problem("checks.required", "no check is named, and no ruleset is asked: an empty gate is closed", "name the required checks")
    if not config.smoke:
        yield Problem(
            "smoke.endpoints",
            "smoke.endpoints is empty: smoke-tests would refuse, after the new version has all traffic",
            "add at least one endpoint to [smoke] that must answer when a deployment is done",
        )


# --- files ----------------------------------------------------------------------------------------------------------------


def of_files(config: DeployConfig, folder: Path, is_ignored: Callable[[str], bool]) -> Iterator[Problem]:
    """Yield the folders and files that the configuration names and the repository lacks."""
    for service in config.services:
        made = bool(config.build.commands) and is_ignored(f"{service.context.as_posix()}/{service.dockerfile.as_posix()}")
        yield from _build_files(service, folder, made=made, image=kind_of(config).artifact == IMAGES)
    try:
        if config.database.tool == "prisma":
            prisma.read_folder(folder / config.database.migrations_dir)
    except BadInputError as error:
        where = f"database.migrations_dir, {config.database.migrations_dir}"
        yield Problem(where, f"{error.title}: {error.what}", error.next_step)
    yield from _lock_files(config, folder)


def _build_files(service: Service, folder: Path, *, made: bool, image: bool) -> Iterator[Problem]:
    """Yield what is missing for the image of a service; what git ignores is ``made`` by the production build."""
    context, key = folder / service.context, f"services.{service.id}"
    if made:
        return
    if not context.is_dir():
        yield Problem(
            f"{key}.context",
            f"there is no folder {service.context}",
            "correct it, or commit the folder; a folder that build.commands makes belongs into .gitignore",
        )
        return
    dockerfile = context / service.dockerfile
    if not image:
        return
    if not dockerfile.is_file():
        yield Problem(f"{key}.dockerfile", f"there is no file {service.context / service.dockerfile}", "correct it, or commit the file")
    elif service.build.target is not None:
        stages = [stage["name"] for stage in _STAGE.finditer(dockerfile.read_text(encoding="utf-8", errors="replace"))]
        named = [name.lower() for name in stages if name] + [str(number) for number in range(len(stages))]
        if service.build.target.lower() not in named:
            found = ", ".join(name for name in stages if name) or "none has a name"
            yield Problem(
                f"{key}.build.target",
                f"{service.context / service.dockerfile} has no stage {service.build.target} ({found})",
                "name one of its stages (FROM … AS name)",
            )


def _lock_files(config: DeployConfig, folder: Path) -> Iterator[Problem]:
    """Yield the lock files that are missing: those that a command installs by, and any at all where an audit is demanded."""
    commands = {"checks.build": config.checks.build, "build.commands": config.build.commands, "database.prepare": config.database.prepare}
    lacking: dict[str, list[str]] = {}
    for key, argvs in commands.items():
        for manager in filter(None, map(_locked_by, argvs)):
            if not any((folder / name).is_file() for name in _lock_names(manager)):
                lacking.setdefault(manager, []).append(key)
    for manager, keys in lacking.items():
        names = " or ".join(_lock_names(manager))
        where = ", ".join(dict.fromkeys(keys))
        yield Problem(where, f"{manager} is to install what is locked, and there is no {names}", "commit it, or correct the command")
    if config.validation.audit.level == NO_LEVEL or lacking:
        return
    try:
        lock_files.find(folder, [service.context for service in config.services])
    except AzoraError as error:
        yield of_error(error)


def _lock_names(manager: str) -> list[str]:
    return [name for name, owner in lock_files.FILES.items() if owner == manager]


def _locked_by(command: Command) -> str | None:
    """Return the package manager that a command has install what is locked in the working folder, or None."""
    program = Path(command[0]).name if command else ""
    words = set(command[1:])
    elsewhere = any(word.startswith(_ELSEWHERE) for word in words)
    return program if words & _LOCKED.get(program, set()) and not elsewhere else None


# --- secrets --------------------------------------------------------------------------------------------------------------


def own_secrets(config: DeployConfig) -> dict[str, str]:
    """Return name -> who wants it, of the secrets that this project's own jobs cannot do without."""
    wanted = {"PROD_DATABASE_URL": "database-backup and database-migrations"}
    aws = "the archive of backups and records; not needed with the variable AWS_ROLE_ARN"
    wanted |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), aws)
    if kind_of(config).needs_host_keys or config.database.via_ssh:
        reason = "database.via_ssh" if config.database.via_ssh else f"target.kind {config.target.kind}"
        wanted |= dict.fromkeys(("PROD_HOST", "PROD_USER", "PROD_KEY"), reason)
    kubernetes = config.target.kubernetes
    if config.target.kind == "kubernetes" and kubernetes is not None and not kubernetes.in_cluster:
        wanted["KUBECONFIG_DATA"] = "target.kind kubernetes"
    return wanted


def wanted_secrets(config: DeployConfig) -> dict[str, str]:
    """Return name -> who wants it, of the secrets that services and builds name."""
    wanted: dict[str, list[str]] = {}
    for service in config.services:
        for name in service.secrets:
            wanted.setdefault(name, []).append(f"services.{service.id}.secrets")
        for name in service.build.secrets:
            wanted.setdefault(name, []).append(f"services.{service.id}.build.secrets")
    return {name: ", ".join(keys) for name, keys in sorted(wanted.items())}


def of_secrets(wanted: Mapping[str, str], present: Mapping[str, bool | None], environment: str) -> list[Problem]:
    """Return a problem for each secret that is wanted and not there. ``present``: name -> whether it is set, None: nobody said."""
    problems = []
    for name, wanting in wanted.items():
        if present.get(name) is None:
            step = "adopt again: python -m azora_ci adopt PATH writes the names into the workflow; commit it"
            problems.append(Problem(name, f"the workflow does not say whether it is set; wanted by {wanting}", step))
        elif not present[name]:
            step = f"set it as a secret of the environment {environment} (repository settings > Environments), or correct the name"
            problems.append(Problem(name, f"this secret is not set; wanted by {wanting}", step))
    return problems


def places(problems: Iterable[Problem]) -> set[str]:
    """Return the places of problems."""
    return {problem.where for problem in problems}
