"""Find Prisma in a repository: schemas, their migrations, the variables of their addresses, and the command that migrates. Runs nothing.

https://www.prisma.io/docs/orm/reference/prisma-config-reference; where Prisma looks by itself: ``schema.prisma`` and
``prisma/schema.prisma`` of the folder in which it runs, ``package.json#prisma.schema``, ``prisma.config.*`` and ``.config/prisma.*``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from azora_ci.cli.adopt.migrations import prisma_config
from azora_ci.cli.adopt.migrations.prisma_config import Config, Datasource
from azora_ci.cli.adopt.repository import Files, mapping
from azora_ci.cli.adopt.toolchain import FoundToolchain
from azora_ci.core.errors import BadInputError
from azora_ci.gates.audit import lock_files

POSTGRESQL = frozenset({"postgresql", "postgres"})
CONFIGS = tuple(f"prisma.config.{suffix}" for suffix in ("ts", "js", "mjs", "cjs", "mts", "cts"))
_BY_ITSELF = ("schema.prisma", "prisma/schema.prisma")
ROOT = PurePosixPath()
_NO_CONFIG = Config()


@dataclass(frozen=True)
class FoundPrisma:
    """A schema and its migrations; every path lies below the repository.

    ``package``: the folder whose package holds Prisma, where its command runs; ``workspace``: whether the root's package manager knows
    it as one of its own. ``options``: what tells the command where the schema is. ``open``: what the files do not say.
    """

    migrations: str
    applied: bool
    schema: str | None = None
    provider: str | None = None
    variables: tuple[str, ...] = ()
    package: str = "."
    workspace: bool = False
    options: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    @property
    def _within(self) -> tuple[str, ...]:
        """Return what has a command run in the folder of the package; every package manager finds its workspace from there."""
        return () if self.package == "." else ("env", "-C", self.package)

    def command(self, toolchain: FoundToolchain) -> tuple[str, ...]:
        """Return the command that migrates, from the root of the repository."""
        return (*self._within, *toolchain.execute, "prisma", "migrate", "deploy", *self.options)

    def prepare(self, toolchain: FoundToolchain) -> tuple[tuple[str, ...], ...]:
        """Return the commands that install what the command needs, from the root of the repository."""
        return ((*(() if self.workspace else self._within), *toolchain.install),)

    def describe(self) -> str:
        """Return the schema, its provider, and where its migrations are, for people."""
        schema = self.schema or "a schema that no file names"
        return f"{schema} ({self.provider or 'provider unknown'}), {self.migrations}{'' if self.applied else ', which holds none'}"


@dataclass(frozen=True)
class Prisma:
    """Every schema of PostgreSQL, the likeliest first; ``others``: schemas of other databases -> provider; ``next``: files of Prisma 8."""

    schemas: tuple[FoundPrisma, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    next: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.schemas)

    @property
    def certain(self) -> bool:
        """Say whether exactly one schema has migrations, or there is only one."""
        return len(self.schemas) == 1 or [schema.applied for schema in self.schemas].count(True) == 1


def discover(files: Files) -> Prisma:
    """Return Prisma as it is found in a repository."""
    search = _Search(files)
    found = {schema.schema or schema.migrations: schema for schema in search.schemas()}
    postgresql = [schema for schema in found.values() if schema.provider is None or schema.provider in POSTGRESQL]
    others = sorted((schema.schema or "", schema.provider or "") for schema in found.values() if schema not in postgresql)
    ranked = sorted(postgresql, key=lambda schema: (not schema.applied, schema.migrations.count("/"), schema.migrations))
    return Prisma(tuple(ranked), tuple(others), tuple(map(str, search.of_prisma_8())))


class _Search:
    """One search: what the repository's files say, each read once."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.sources = {path: source for path in files.ending(".prisma") if (source := prisma_config.datasource(files.text(path)))}
        with_source = {path.parent for path in self.sources}
        self.empty = [path for path in files.named("schema.prisma") if path.parent not in with_source]
        self.migrated = {path.parent.parent for path in files.named("migration.sql")}
        self.locks = {path.parent: files.text(path) for path in files.named("migration_lock.toml")}
        # Of a package that does not speak of Prisma only the place counts.
        texts = {path.parent: files.text(path) for path in files.named("package.json")}
        self.packages = {folder: mapping(text) if '"prisma"' in text else {} for folder, text in texts.items()}

    def schemas(self) -> Iterator[FoundPrisma]:
        """Yield the schemas that configurations name, then those that package.json names, those that lie about, and lone migrations."""
        seen: set[PurePosixPath] = set()  # files of schemas and folders of migrations that belong to one already
        for path in (*self.files.named(*CONFIGS), *self._dotted_configs()):
            base = path.parent.parent if path.parent.name == ".config" else path.parent
            yield self._configured(path, base, prisma_config.config(self.files.text(path)), seen)
        for folder, package in self.packages.items():
            named = package.get("prisma", {}).get("schema") if isinstance(package.get("prisma"), dict) else None
            if isinstance(named, str) and (schema := self._below(folder, named)) is not None and not self._seen(schema, seen):
                yield self._schema(schema, seen, owner=folder, by_itself=True)
        for path in sorted((*self.sources, *self.empty), key=lambda path: (len(path.parts), path)):
            if not self._seen(path, seen):
                yield self._schema(path.parent if self._has_parts(path) else path, seen)
        for folder, lock in sorted(self.locks.items()):
            provider = re.search(r'^provider\s*=\s*"([^"]+)"', lock, re.MULTILINE)
            if folder not in seen:
                yield FoundPrisma(str(folder), folder in self.migrated, provider=provider[1] if provider else None, open=("schema",))

    def of_prisma_8(self) -> Iterator[PurePosixPath]:
        """Yield the files that only Prisma 8 has: its plans of operations, contracts, and configuration."""
        yield from self.files.named("contract.prisma", "prisma-next.config.ts")
        yield from (path for path in self.files.named("ops.json") if len(path.parts) > 2 and path.parts[-4:-3] == ("migrations",))

    def _dotted_configs(self) -> Iterator[PurePosixPath]:
        names = [name.replace(".config", "") for name in CONFIGS]
        yield from (path for path in self.files.named(*names) if path.parent.name == ".config")

    def _configured(self, path: PurePosixPath, base: PurePosixPath, config: Config, seen: set[PurePosixPath]) -> FoundPrisma:
        owner = self._owner(base)
        options = () if owner == base else ("--config", posixpath.relpath(str(path), str(owner)))
        schema = self._below(base, config.schema) if config.schema else self._default_schema(base)
        migrations = self._below(base, config.migrations) if config.migrations else None
        return self._schema(schema, seen, owner=owner, by_itself=True, migrations=migrations, config=config, options=options)

    def _schema(  # noqa: PLR0913 - what is known of a schema, all by keyword
        self,
        schema: PurePosixPath | None,
        seen: set[PurePosixPath],
        *,
        owner: PurePosixPath | None = None,
        by_itself: bool = False,
        migrations: PurePosixPath | None = None,
        config: Config = _NO_CONFIG,
        options: tuple[str, ...] = (),
    ) -> FoundPrisma:
        """Return what is known of a schema, a file or a folder. ``by_itself``: Prisma finds it where its command runs."""
        parts = [path for path in self.sources if schema is not None and schema in (path, *path.parents)]
        source = self.sources[parts[0]] if parts else Datasource(None, ())
        folder = migrations or self._migrations(schema, parts)
        place = owner if owner is not None else self._owner(schema.parent if schema is not None else ROOT)
        relative = posixpath.relpath(str(schema), str(place)) if schema is not None else None
        if schema is not None and not by_itself and relative not in _BY_ITSELF:
            options = ("--schema", str(relative))
        variables = tuple(dict.fromkeys((*source.variables, *config.variables)))
        seen.update(filter(None, (schema, folder)), parts)
        open_keys = [key for key in config.computed if not (key == "migrations.path" and folder in self.migrated)]
        open_keys += ["url"] if not variables else []
        return FoundPrisma(
            str(folder),
            folder in self.migrated,
            schema=str(schema) if schema is not None else None,
            provider=source.provider or self._provider(folder),
            variables=variables,
            package=str(place),
            workspace=place != ROOT and self._is_workspace(place),
            options=options,
            open=tuple(open_keys),
        )

    def _has_parts(self, schema: PurePosixPath) -> bool:
        """Say whether models lie in further files below the folder of a schema, and so the folder is the schema."""
        others = (path for path in self.files.ending(".prisma") if path not in self.sources and path != schema)
        return any(schema.parent in path.parents for path in others)

    def _seen(self, schema: PurePosixPath, seen: set[PurePosixPath]) -> bool:
        return any(path in seen for path in (schema, *schema.parents) if path != ROOT)

    def _migrations(self, schema: PurePosixPath | None, parts: list[PurePosixPath]) -> PurePosixPath:
        """Return the folder of a schema's migrations: beside the datasource, or beside the folder that holds it."""
        if schema is None:
            return next(iter(sorted(self.migrated)), PurePosixPath("prisma/migrations"))
        beside = [path.parent for path in parts] or [schema.parent if schema.suffix else schema]
        candidates = [folder / "migrations" for folder in (*beside, *(folder.parent for folder in beside))]
        return next((folder for folder in candidates if folder in self.migrated or folder in self.locks), candidates[0])

    def _provider(self, migrations: PurePosixPath) -> str | None:
        matched = re.search(r'^provider\s*=\s*"([^"]+)"', self.locks.get(migrations, ""), re.MULTILINE)
        return matched[1] if matched else None

    def _default_schema(self, base: PurePosixPath) -> PurePosixPath | None:
        return next((base / name for name in _BY_ITSELF if base / name in self.sources or base / name in self.empty), None)

    def _owner(self, start: PurePosixPath) -> PurePosixPath:
        """Return the folder of the package that holds Prisma: the nearest that depends on it, or else the nearest, or the root."""
        above = [folder for folder in (start, *start.parents) if folder in self.packages]
        holding = [folder for folder in above if _depends_on_prisma(self.packages[folder])]
        return next(iter((*holding, *above)), ROOT)

    def _is_workspace(self, folder: PurePosixPath) -> bool:
        root = self.files.folder.resolve()
        try:
            return root / folder in lock_files.workspaces(root, root)
        except BadInputError:  # the audit names what is wrong with package.json
            return False

    def _below(self, base: PurePosixPath, relative: str) -> PurePosixPath | None:
        """Return a path that a file names, or None where it leads out of the repository."""
        path = PurePosixPath(posixpath.normpath(posixpath.join(str(base), relative)))
        return None if path.is_absolute() or path.parts[:1] == ("..",) else path


def _depends_on_prisma(package: dict[str, Any]) -> bool:
    tables = (package.get(name) for name in ("dependencies", "devDependencies"))
    return "prisma" in package or any(isinstance(table, dict) and "prisma" in table for table in tables)
