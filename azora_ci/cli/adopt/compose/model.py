"""The model of a compose project: files merged, what they include and extend read, paths made relative to the repository."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from azora_ci.cli.adopt.compose import document
from azora_ci.cli.adopt.compose.document import text, unreadable
from azora_ci.cli.adopt.compose.merge import as_build, as_list, merge, resolved
from azora_ci.cli.adopt.compose.secret import holds_secret, is_secret
from azora_ci.cli.adopt.compose.variables import Interpolated, bounded, interpolate, read_lines
from azora_ci.cli.adopt.files import regular

REMOTE = re.compile(r"(?i)[a-z][a-z+.-]*://|(?:[\w.-]+@)[\w.-]+:|github\.com/|oci:|git:")
_DEPTH = 10  # files that include or extend one another
_FILES = 100
_SERVICES = 200
_TEXTS = 2 * 1024 * 1024  # characters of all texts that variables are put into
_TEXT = 512 * 1024  # bytes of a file of variables
_NUMBER = re.compile(r"(?i)\d{1,5}(?:\.\d{1,3})?(?:[kmgt]?i?b?|m?s|h)")  # of a port, a size or a duration: nobody's secret
UNKNOWN = "is empty, or names a variable that has no value here, may be a secret, or is not in git"


@dataclass(frozen=True)
class Model:
    """What compose files say. Paths in ``services`` are relative to the repository; those that leave it start with ``..``.

    ``named`` were asked for, ``files`` were read with all that they include and extend; ``variables`` are those of the ``.env`` beside the
    first, ``made_of`` the names of all that their values are made of, ``untracked``: git does not track that file; ``notes`` say what was
    not read, and why; ``complete``: all that the files include, extend and build lies in the repository and was read.
    """

    named: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    volumes: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    made_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    untracked: bool = False
    complete: bool = True
    _filled: list[int] = field(default_factory=lambda: [0], compare=False, repr=False)

    def fill(self, value: str) -> Interpolated:
        """Return a text with the variables of ``.env`` put in. Raises BadInputError when all such texts together grow without end."""
        filled = interpolate(value, self.variables)
        if not filled.names:
            return filled
        self._filled[0] += len(filled.text)
        bounded(self._filled[0], filled.names, _TEXTS)
        return replace(filled, names=tuple(dict.fromkeys(other for name in filled.names for other in (name, *self.made_of.get(name, ())))))

    def hides(self, filled: Interpolated) -> bool:
        """Say whether a text is to stay out of a configuration: it may hold a secret, or what is in it git does not track."""
        return holds_secret(filled.text) or any(self._hides(name) for name in filled.names)

    def _hides(self, name: str) -> bool:
        value = self.variables.get(name)
        return is_secret(name, value or None) or (self.untracked and bool(value) and not _NUMBER.fullmatch(value or ""))

    def plain(self, value: Any) -> str | None:
        """Return a scalar with its variables put in; None when one has no value or is to be hidden, and for what is no scalar."""
        if value is None or isinstance(value, dict | list):
            return None
        filled = self.fill(text(value))
        return None if filled.missing or self.hides(filled) else filled.text


def load(root: Path, files: Sequence[str], *, untracked: bool = False) -> Model:
    """Return the model of compose files, given relative to the repository ``root``, later ones merged over earlier ones.

    ``untracked``: git does not track the ``.env`` beside the first.

    Raises BadInputError for a file that cannot be read, and for services that are no mapping.
    """
    lines = {name: value for name, value in _lines_of(root, _parent(files[0])) if value is not None}
    variables = {name: value.text for name, value in lines.items()}
    made_of = {name: value.names for name, value in lines.items()}
    reader = _Reader(root, Model(tuple(files), variables=variables, made_of=made_of, untracked=untracked))
    env = _join(_parent(files[0]), ".env")
    reader.complete = regular(root, env) is not None or not os.path.lexists(root / env)
    merged = reader.merged(files, _parent(files[0]))
    read, notes = tuple(dict.fromkeys(reader.files)), tuple(dict.fromkeys(reader.notes))
    return _with(root, replace(reader.model, files=read, notes=notes, complete=reader.complete), merged)


def load_merged(root: Path, model: Model, merged: dict[str, Any]) -> Model:
    """Return a model with what ``docker compose config`` made of its files, whose paths are relative to the project or absolute."""
    reader = _Reader(root, model)
    folder = _parent(model.named[0])
    services = {name: reader.located(service, folder) for name, service in merged["services"].items() if isinstance(service, dict)}
    # Its name of the project may be the folder's, which is another one where production runs: only what the files say counts.
    return _with(root, replace(model, notes=()), merged | {"services": services, "name": model.name})


def _with(root: Path, model: Model, merged: dict[str, Any]) -> Model:
    path = root / model.named[-1]
    services = {name: service or {} for name, service in _part(merged, "services", path).items()}
    broken = sorted(name for name, service in services.items() if not isinstance(service, dict))
    if broken or not services:
        raise unreadable(path, f"not a mapping: services.{', services.'.join(broken)}" if broken else "it has no mapping of services")
    if len(services) > _SERVICES:
        raise unreadable(path, f"it has {len(services)} services, and at most {_SERVICES} are read")
    return replace(
        model,
        services=services,
        name=model.plain(merged.get("name")) or model.plain("${COMPOSE_PROJECT_NAME}"),
        volumes=_part(merged, "volumes", path),
        networks=_part(merged, "networks", path),
    )


def variables_of(root: Path, folder: str) -> dict[str, str]:
    """Return the variables that Compose itself reads: those of the ``.env`` in the project's folder."""
    return {name: value.text for name, value in _lines_of(root, folder) if value is not None}


def _lines_of(root: Path, folder: str) -> Iterator[tuple[str, Interpolated | None]]:
    return read_lines(read_text(root, _join(folder, ".env")) or "", {})


def read_text(root: Path, path: str) -> str | None:
    """Return the text of a file of the repository; None when it is not there, is no file, or lies outside."""
    file = None if path.startswith("..") else regular(root, path)
    if file is None:
        return None
    with file.open("rb") as opened:
        return opened.read(_TEXT).decode("utf-8-sig", "replace")


def _part(merged: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = merged.get(name)
    if value is not None and not isinstance(value, dict):
        raise unreadable(path, f"it has no mapping of {name}")
    return value or {}


def _parent(path: str) -> str:
    return PurePosixPath(path).parent.as_posix()


def _join(folder: str, path: str) -> str:
    return os.path.normpath(PurePosixPath(folder, path))


@dataclass
class _Reader:
    """Reads files once each is named, and keeps what it read and what it could not."""

    root: Path
    model: Model  # whose variables are put in
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    def merged(self, files: Sequence[str], folder: str, depth: int = 0) -> dict[str, Any]:
        """Return files merged in turn. ``folder``: what their paths are relative to."""
        merged: dict[str, Any] = {}
        for path in files:
            for loaded in self._read(path):
                services = loaded.get("services")
                self.complete &= not isinstance(services, document.Override)
                if isinstance(services, dict):
                    self.complete &= all(isinstance(service, dict | document.Reset | None) for service in services.values())
                    loaded["services"] = {name: self._service(service, path, folder, depth) for name, service in services.items()}
                merged = merge(self._included(loaded, folder, depth, merged), loaded)
        return merged

    def _read(self, path: str) -> list[dict[str, Any]]:
        if len(self.files) >= _FILES:
            raise unreadable(self.root / path, f"more than {_FILES} files include and extend one another")
        if regular(self.root, path) is None:
            raise unreadable(self.root / path, "it is not there, is no regular file, or a link leads out of the repository")
        self.files.append(path)
        return document.read(self.root / path)

    def _included(self, loaded: dict[str, Any], folder: str, depth: int, merged: dict[str, Any]) -> dict[str, Any]:
        """Return what was merged before, with the files under ``include`` below it: ``- a.yml`` or ``{path, project_directory}``."""
        for entry in as_list(resolved(loaded.pop("include", None))):
            paths = [self._path(path, folder) for path in as_list(entry.get("path") if isinstance(entry, dict) else entry)]
            missing = [path for path in paths if not self._is_ours(path)]
            if missing or not paths or depth >= _DEPTH:
                self.complete = False
                self.notes.append(f"include {', '.join(missing or paths) or entry}: not a file of this repository, not read")
                continue
            named = entry.get("project_directory") if isinstance(entry, dict) else None
            if isinstance(entry, dict) and entry.get("env_file"):
                self.complete &= all(self._is_ours(self._path(name, folder)) for name in as_list(entry["env_file"]))
                self.notes.append(f"include {paths[0]}: its env_file is not read")
            below = self.merged(paths, self._path(named, folder) if named else _parent(paths[0]), depth + 1)
            merged = merge(merged, below)
        return merged

    def _service(self, service: Any, path: str, folder: str, depth: int) -> Any:
        """Return a service with its paths made relative to the repository, over the service that it extends."""
        if not isinstance(service, dict):
            return service
        service = dict(service)
        extended = service.pop("extends", None)
        service = self.located(service, folder)
        if extended is None:
            return service
        entry = extended if isinstance(extended, dict) else {"service": extended}
        file = self._path(entry["file"], folder) if entry.get("file") else path
        name = text(entry.get("service"))
        base = self._extended(file, name, file if entry.get("file") else None, folder, depth)
        if base is None:
            self.complete = False
            self.notes.append(f"extends {file}, service {name}: not found, not read")
            return service
        return merge({"services": {"s": base}}, {"services": {"s": service}})["services"]["s"]

    def _extended(self, file: str, name: str, other: str | None, folder: str, depth: int) -> Any:
        if depth >= _DEPTH or not self._is_ours(file):
            return None
        base: Any = None
        for loaded in self._read(file):
            services = loaded.get("services")
            if isinstance(services, dict) and isinstance(services.get(name), dict):
                service = self._service(services[name], file, _parent(file) if other else folder, depth + 1)
                base = merge({"services": {"s": base or {}}}, {"services": {"s": service}})["services"]["s"]
        return base

    def _path(self, value: Any, folder: str) -> str:
        """Return a path relative to the repository; an address stays one, and the variables of what is to be hidden."""
        raw = text(value)
        known = self.model.fill(raw)
        filled = raw if self.model.hides(known) else known.text
        if REMOTE.match(known.text):
            self.complete = False
            return filled
        if filled.startswith("/"):
            return os.path.relpath(filled, self.root.resolve())
        return _join(folder, filled)

    def _is_ours(self, path: str) -> bool:
        return not REMOTE.match(path) and read_text(self.root, path) is not None

    def located(self, service: dict[str, Any], folder: str) -> dict[str, Any]:
        """Return a service whose build and files of variables are named relative to the repository."""
        build, files = service.get("build"), service.get("env_file")
        if isinstance(build, dict) or (build is not None and not isinstance(build, document.Reset | document.Override)):
            build = as_build(build)
            context = build.get("context")
            located = {} if isinstance(context, document.Reset | document.Override) else {"context": self._path(context or ".", folder)}
            service["build"] = build | (located if context is not None or "dockerfile_inline" in build else {})
        if isinstance(files, str | list | dict):
            service["env_file"] = [
                entry | {"path": self._path(entry.get("path"), folder)} if isinstance(entry, dict) else self._path(entry, folder)
                for entry in ([files] if isinstance(files, dict) else as_list(files))
                if not isinstance(entry, document.Reset | document.Override)
            ]
        return service
