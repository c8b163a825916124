"""Somebody's own adopted repository: a clone of its committed HEAD, with a configuration for this machine in place of production's."""

from __future__ import annotations

import filecmp
import re
import secrets
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from azora_ci.cli.adopt import plan
from azora_ci.clients.docker import build_context
from azora_ci.core import config
from azora_ci.core.errors import BadInputError
from azora_ci.core.release import Version, highest_release
from azora_ci.database.cluster import SUPERUSER, Cluster
from azora_ci.database.migrations import variables
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.gates import readiness
from azora_ci.rehearsal.applications import overlay, startup, toml
from azora_ci.rehearsal.applications.base import HEALTHY, Run
from azora_ci.rehearsal.judge.deployment import Demand
from azora_ci.rehearsal.production import Production
from azora_ci.rehearsal.repo import BUCKET, WORKFLOW, ScratchRepository
from azora_ci.rehearsal.standins import database

FIRST = "v0.1.0"  # what production is said to run where no earlier tag says it
IMAGE = "image"  # health.version_from of answers that name no version
_DATABASE = re.compile(r"(?:DATABASE|POSTGRES(?:QL)?|PG|DB|DIRECT|SHADOW)(?:_[A-Z0-9]+)*_UR[IL]$|(?:^|_)DSN$")


@dataclass
class Adopted:
    """The repository at ``path``. See ``base.Application`` for what each member means.

    ``images``: services are containers, not processes. ``given_secrets``: name -> value; ``given_commands``: service -> its command;
    ``given_images``: base image of a Dockerfile -> the image in its place; ``rows``:
    SQL that fills the tables of production.
    """

    path: Path
    images: bool = False
    old_ref: str | None = None
    given_secrets: Mapping[str, str] = field(default_factory=dict)
    given_commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given_images: Mapping[str, str] = field(default_factory=dict)
    rows: Path | None = None
    name: str = field(init=False)
    old: str = field(init=False)
    new: str = field(init=False)
    advisories: Mapping[str, Any] = field(default_factory=lambda: {"advisories": {}})
    _old_commit: str = field(init=False)
    _same: bool = field(init=False)
    _old_tree: Path = field(init=False)
    _document: dict[str, Any] = field(init=False)
    _config: config.DeployConfig = field(init=False)
    _migrations: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    _made_up: dict[str, str] = field(default_factory=dict)
    _remarks: list[str] = field(default_factory=list)
    _replaced: list[str] = field(default_factory=list)

    # --- what it is ----------------------------------------------------------------------------------------------------

    @property
    def checks(self) -> tuple[str, ...]:
        """Return the names of the required checks."""
        return tuple(check.name for check in self._config.checks.required)

    @property
    def package_manager(self) -> str | None:
        """Return what ``toolchain.package_manager`` names."""
        return self._config.toolchain.package_manager

    @property
    def health_paths(self) -> Mapping[str, str]:
        """Return the paths of the public health addresses, with the places of their versions."""
        return {urlsplit(service.public_health_url).path: service.health.version_from for service in self._config.web}

    @property
    def load_paths(self) -> tuple[str, ...]:
        """Return the health endpoints, and the critical endpoints that answer 200."""
        smoke = [urlsplit(endpoint.url) for endpoint in self._config.smoke if endpoint.status == 200]
        paths = [f"{url.path or '/'}{'?' if url.query else ''}{url.query}" for url in smoke]
        health = [f"{path} {source}" for path, source in self.health_paths.items()]
        return (*health, *(path for path in dict.fromkeys(paths) if path not in self.health_paths))

    def demand(self) -> Demand:
        """Demand that every service and every migration of the release is deployed."""
        (old, new), tool = self._migrations, self._config.database.tool
        return Demand(
            old=self.old.removeprefix("v"),
            new=self.new.removeprefix("v"),
            skipped=("deployment-failure-handler",),
            serving=self.new.removeprefix("v"),
            migrations=dict.fromkeys((*old, *new), True),
            backup=True,
            stages=HEALTHY,
            record="success",
            services=tuple(service.id for service in self._config.services),
            old_migrations=old,
            tree=tool == "command" or (tool == "prisma" and bool(self._config.database.prepare or new)),
            migrations_counted=tool != "command",
            versioned_paths=tuple(path for path, source in self.health_paths.items() if source != IMAGE),
        )

    def secrets(self, database_url: str) -> Mapping[str, str]:
        """Return the secrets of its services: those that were given, the database's address, or made up."""
        return {name: self._secret(name, database_url) for name in self._secret_names}

    @property
    def _secret_names(self) -> list[str]:
        return sorted({name for service in self._config.services for name in service.secrets} - {"PROD_DATABASE_URL"})

    def _secret(self, name: str, database_url: str) -> str:
        if name in self.given_secrets:
            return self.given_secrets[name]
        return database_url if _DATABASE.search(name) else self._made_up.setdefault(name, secrets.token_hex(24))

    def remarks(self) -> tuple[str, ...]:
        """Return where its releases come from, and every value that was replaced or made up."""
        lines = [*self._remarks, *(f"replaced {line}" for line in self._replaced)]
        lines += [
            f"secret {name} is {'the address of the rehearsal database' if _DATABASE.search(name) else 'made up (--secrets FILE gives it)'}"
            for name in self._secret_names
            if name not in self.given_secrets
        ]
        return tuple(lines)

    # --- its releases --------------------------------------------------------------------------------------------------

    def base_images(self, folder: Path) -> Mapping[str, str | None]:
        """Return the base images of the services' Dockerfiles, each by itself unless another one was given."""
        root = folder.resolve()
        dockerfiles = {(context / service.dockerfile).resolve() for service, context in self._contexts(folder)}
        inside = [path for path in sorted(dockerfiles) if path.is_relative_to(root) and path.is_file()]
        names = [name for path in inside for name in startup.bases(path.read_text(encoding="utf-8"))]
        return {name: self.given_images.get(name, name) for name in names}

    def begin(self, scratch: ScratchRepository) -> None:
        """Clone its HEAD and choose the releases. Raises BadInputError for a folder that is not an adopted repository."""
        if not (self.path / ".git").exists():
            raise self._refusal("Not a repository", f"{self.path} has no .git", "give the top folder of a git repository")
        scratch.folder.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_fetching(scratch)
        clone = ("clone", "--quiet", "--no-hardlinks", "--no-tags", str(self.path.resolve()), str(scratch.folder))
        scratch.git(*self._careful(), *clone, folder=scratch.folder.parent)
        scratch.git("checkout", "--quiet", "-B", "main")
        for path in (plan.CONFIG, WORKFLOW):
            if not (scratch.folder / path).is_file() or (scratch.folder / path).resolve() != scratch.folder.resolve() / path:  # a link
                step = f"python -m azora_ci adopt {self.path}, fill in the configuration, and commit what it wrote"
                raise self._refusal("The repository is not adopted", f"its HEAD holds no {path}", step)
        self._config = config.load(scratch.folder / plan.CONFIG)
        text = (scratch.folder / plan.CONFIG).read_text(encoding="utf-8")
        self._document = tomllib.loads(text)
        self._choose(scratch)
        self._migrations = self._migrations_of(scratch, self._old_commit), self._migrations_of(scratch, "HEAD")
        marked = readiness.to_fill_in(text)
        if marked:
            self._remarks.append(f"{plan.CONFIG} is still marked to be filled in at lines {', '.join(str(number) for number, _ in marked)}")
        node = self._config.toolchain.node
        self._remarks.append(f"Node.js is this rehearsal's own{f'; the configuration asks for {node}' if node else ''}")
        scratch.git("tag", "--annotate", "-m", "What production runs", self.old, self._old_commit)
        scratch.name_origin(self.name)

    def _their_git(self, scratch: ScratchRepository, *arguments: str) -> str:
        """Run a git command that only reads their repository."""
        options = ("-c", "protocol.allow=never", "--no-optional-locks", "-C", str(self.path.resolve()))
        return scratch.git(*self._careful(), *options, *arguments, folder=scratch.folder.parent)

    def _careful(self) -> tuple[str, ...]:
        """Return the options with which git takes their repository, and runs no program that its configuration names."""
        settings = (f"safe.directory={self.path.resolve()}", "core.fsmonitor=false", "core.hooksPath=/dev/null")
        return tuple(part for setting in settings for part in ("-c", setting))

    def _refuse_fetching(self, scratch: ScratchRepository) -> None:
        """Raise BadInputError for a repository of which git would fetch what is missing, by commands that its configuration names."""
        names = self._their_git(scratch, "config", "--list", "--name-only").lower().splitlines()
        if any(re.fullmatch(r"extensions\.partialclone|remote\..*\.(?:promisor|uploadpack)", name) for name in names):
            what = f"the configuration of {self.path} says that objects are missing, and how they are fetched"
            raise self._refusal("Not a whole repository", what, "give a whole clone of it: git clone without --filter")

    def _has_changes(self, scratch: ScratchRepository) -> bool:
        """Say whether their work tree has other files than HEAD. Git would run the filters that their configuration names."""
        if self._their_git(scratch, "ls-files", "--others", "--exclude-standard"):
            return True
        names = filter(None, scratch.git("ls-files", "-z").split("\0"))
        return any(_differ(scratch.folder / name, self.path / name) for name in names)

    def _choose(self, scratch: ScratchRepository) -> None:
        """Choose the releases: production runs the newest earlier tag, else HEAD itself; HEAD is deployed."""
        head = scratch.git("rev-parse", "HEAD")
        here = self._their_git(scratch, "tag", "--points-at", "HEAD").splitlines()
        merged = self._their_git(scratch, "tag", "--merged", "HEAD").splitlines()
        own, earlier = highest_release(here), highest_release(set(merged) - set(here))
        reference = self.old_ref or (earlier.text if earlier else None)
        self._old_commit = self._their_git(scratch, "rev-parse", f"{reference}^{{commit}}") if reference else head
        self._same = self._old_commit == head
        self.old = reference if reference is not None and highest_release([reference]) else FIRST
        newest = max(version for version in (Version.parse(self.old), own, earlier) if version)
        self.new = own.text if own and own.text == newest.text != self.old else _next(newest)
        origin = re.search(
            r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?$",
            self._their_git(scratch, "config", "--default", "", "--get", "remote.origin.url"),
        )
        self.name = origin[1] if origin else f"local/{re.sub(r'[^A-Za-z0-9._-]+', '-', self.path.resolve().name)}"
        came = f"{self.old} is {reference}" if reference else f"no earlier tag v*: {self.old} is HEAD, as if production ran it already"
        self._remarks.append(f"{came}; {self.new} is HEAD, {head[:12]} {scratch.git('log', '-1', '--format=%s')}")
        if self._has_changes(scratch):
            self._remarks.append("the work tree has changes that are not committed: they are not rehearsed")

    def _migrations_of(self, scratch: ScratchRepository, commit: str) -> tuple[str, ...]:
        if self._config.database.tool != "prisma":
            return ()
        folder = self._config.database.migrations_dir.as_posix().strip("/")
        listed = scratch.git("ls-tree", "-r", "--name-only", commit, "--", f"{folder}/").splitlines()
        return tuple(sorted(path.split("/")[-2] for path in listed if path.endswith("/migration.sql")))

    def write_old(self, scratch: ScratchRepository, folder: Path) -> None:
        """Check out the commit that production runs."""
        scratch.git("clone", "--quiet", "--shared", "--no-tags", str(scratch.folder), str(folder))
        scratch.git("checkout", "--quiet", "--detach", self._old_commit, folder=folder)
        self._old_tree = folder
        self._open_contexts(folder)

    def prepare(self, run: Run, folder: Path) -> None:
        """Run ``database.prepare``."""
        for command in self._config.database.prepare:
            run(command, folder)

    def migrate(self, run: Run, folder: Path, url: str) -> None:
        """Run the migrate command, where the old release has migrations; it finds the database in the variables that are configured."""
        database = self._config.database
        command = database.command if database.tool == "command" else database.migrate if self._migrations[0] else ()
        if command:
            run(command, folder, variables.environment(database.variables, url, DatabaseUrl.parse(url)))

    def fill(self, run: Run, cluster: Cluster) -> None:
        """Run the SQL that was given; without any the tables stay empty."""
        if self.rows is None:
            self._remarks.append("its tables are empty, so that no migration meets rows (--rows FILE.sql fills them)")
            return
        psql = (str(find_binary("psql", cluster.major)), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(self.rows.resolve()))
        run(
            psql,
            self._old_tree,
            {
                f"PG{name}": value
                for name, value in {
                    "HOST": "127.0.0.1",
                    "PORT": str(cluster.port),
                    "USER": SUPERUSER,
                    "PASSWORD": cluster.password,
                    "DATABASE": database.DATABASE,
                }.items()
            },
        )

    def build(self, run: Run, folder: Path) -> None:
        """Run ``build.commands``, except those that prepared the migrations."""
        for command in self._config.build.commands:
            if command not in self._config.database.prepare:
                run(command, folder)

    # --- its configuration here -----------------------------------------------------------------------------------------

    def adopt(self, scratch: ScratchRepository, places: Production, registry: str) -> None:
        """Overlay its configuration. Raises BadInputError naming every service whose start command was not found."""
        commands = {} if self.images else dict(self._commands())
        values = overlay.Values(places.public_url, places.tables(), f"s3://{BUCKET}/prod", str(places.fault_file.parent), places.path)
        overlaid = overlay.overlay(self._document, values, registry, commands)
        (scratch.folder / plan.CONFIG).write_text(toml.render(overlaid.document), encoding="utf-8")
        self._config = config.load(scratch.folder / plan.CONFIG)
        self._replaced = overlaid.replaced
        self._open_contexts(scratch.folder)

    def _commands(self) -> Iterator[tuple[str, list[str]]]:
        missing, contexts = [], {service.id: folder for service, folder in self._contexts(self._old_tree)}
        for name, service in self._document["services"].items():
            given = self.given_commands.get(name)
            context = contexts.get(name, self._old_tree)
            found = startup.Startup(given, "--command") if given else startup.find(context, service)
            if found is None:
                missing.append(name)
            else:
                self._remarks.append(f"{name} starts as a process with {' '.join(found.command)} ({found.source}); its image is not built")
                yield name, list(found.command)
        if missing:
            options = " ".join(f"--command {name}='node server.js'" for name in missing)
            what = f"neither Dockerfile nor package.json says how {', '.join(missing)} start as processes"
            raise self._refusal("A service cannot be started", what, f"say it ({options}), or build the images (--docker)")

    def _contexts(self, folder: Path) -> Iterator[tuple[config.Service, Path]]:
        """Yield each service whose build context is there, with its folder. Raises BadInputError for one that leads out of ``folder``."""
        for service in self._config.services:
            if (folder / service.context).is_dir():
                yield service, build_context.context_folder(service.context, folder)

    def _open_contexts(self, folder: Path) -> None:
        """Remove the .dockerignore of contexts that processes run in: they need what is installed and built there."""
        for service, context in [] if self.images else self._contexts(folder):
            ignored = context / ".dockerignore"
            if ignored.is_file():
                ignored.unlink()
                self._remarks.append(f"{service.context / '.dockerignore'} does not count: {service.id} runs in that folder")
        self._remarks = list(dict.fromkeys(self._remarks))

    def release(self, scratch: ScratchRepository, version: str, change: Callable[[Path], None] | None) -> None:
        """Commit the overlaid configuration and tag it."""
        if change is not None:
            change(scratch.folder)
        for _, context in self._contexts(scratch.folder) if self._same else ():
            mark = context / "rehearsed-version.txt"
            mark.unlink(missing_ok=True)  # theirs may be a link
            mark.write_text(f"{version}\n", encoding="utf-8")
        scratch.commit(f"Rehearse {version}", version)

    def _refusal(self, title: str, what: str, next_step: str) -> BadInputError:
        return BadInputError(title, what=what, where=str(self.path), next_step=next_step)


def _differ(committed: Path, theirs: Path) -> bool:
    if committed.is_symlink() or theirs.is_symlink():
        return not (committed.is_symlink() and theirs.is_symlink() and committed.readlink() == theirs.readlink())
    return committed.is_file() and not (theirs.is_file() and filecmp.cmp(committed, theirs, shallow=False))


def _next(version: Version) -> str:
    """Return the version with the next patch number."""
    major, minor, patch = version.bare.partition("-")[0].split(".")
    return f"v{major}.{minor}.{int(patch) + 1}"
