"""Documents of Kubernetes in the files of a repository, read within bounds; what cannot be read is noted, and stops nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from azora_ci.cli.adopt.compose.document import parse
from azora_ci.cli.adopt.repository import Files
from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.core.errors import BadInputError

ROLLOUT, DEPLOYMENT = "Rollout", "Deployment"
WORKLOADS = (ROLLOUT, DEPLOYMENT, "StatefulSet", "DaemonSet", "CronJob", "Job")
_BYTES = 2 * 1024 * 1024  # of all documents that are parsed
_DOCUMENTS = 3000
_COPIED = 1_000_000  # values of all objects that builds and patches copy
_BUILDS = 1000  # of folders, where each may name many
_KIND = re.compile(r"^[ \t]*(?:-[ \t]+)?[\"']?kind[\"']?[ \t]*:[ \t]*[\"']?([A-Za-z]{1,60})", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_API = re.compile(r"^[ \t]*(?:-[ \t]+)?[\"']?apiVersion[\"']?[ \t]*:", re.MULTILINE)


@dataclass(frozen=True)
class Manifest:
    """One object of Kubernetes. ``path``: the file that it is of; ``guessed``: what its name is made of that nobody says, if anything."""

    path: str
    document: Document
    guessed: str = ""

    @property
    def kind(self) -> str:
        """Return what it is, such as Deployment."""
        return str(self.document.get("kind"))

    @property
    def name(self) -> str:
        """Return its name, nothing where it has none, and for one that no object can have."""
        value = str(member(self.document, "metadata", "name"))
        return value if _NAME.fullmatch(value) and value != "None" else ""

    @property
    def namespace(self) -> str:
        """Return its namespace, nothing where it does not say one."""
        value = member(self.document, "metadata", "namespace")
        return value if isinstance(value, str) and _NAME.fullmatch(value) else ""

    @property
    def is_workload(self) -> bool:
        """Say whether it runs pods, and has a name."""
        return self.kind in WORKLOADS and bool(self.name)

    def with_guess(self, what: str) -> Manifest:
        """Return it with the mark that its name is made of something that nobody says."""
        return replace(self, guessed=what)


@dataclass
class Reader:
    """Reads manifests of a repository, each file once. ``notes``: path -> why it is not read."""

    files: Files
    paths: tuple[str, ...]
    notes: dict[str, str] = field(default_factory=dict)
    _read: dict[str, list[Manifest]] = field(default_factory=dict)
    _mappings: dict[str, Document] = field(default_factory=dict)
    _places: set[str] = field(default_factory=set)
    _bytes: int = 0
    _documents: int = 0
    _builds: int = 0
    _copied: int = 0

    def text(self, path: str) -> str:
        """Return a file's text; empty for none, and for one that is no file of the repository."""
        return self.files.text(path)

    def kinds(self, path: str) -> set[str]:
        """Return the kinds that a file's documents have by the look of it, without parsing it."""
        content = self.text(path)
        return set(_KIND.findall(content)) if _API.search(content) else set()

    def documents(self, path: str) -> list[Manifest]:
        """Return the objects of a file, those of a List one by one."""
        if path not in self._read:
            self._read[path] = self.parse(path, self.text(path))
        return self._read[path]

    def mapping(self, path: str) -> Document:
        """Return the one document of a file, such as a chart's values; empty for none."""
        if path not in self._mappings:
            self._mappings[path] = next(iter(self.mappings(path, self.text(path))), {})
        return self._mappings[path]

    def parse(self, path: str, text: str) -> list[Manifest]:
        """Return the objects of a text. ``path``: the file that it is made of."""
        found = [Manifest(path, document) for document in _flat(self.mappings(path, text)) if isinstance(document.get("kind"), str)]
        self._documents += len(found)
        if self._documents > _DOCUMENTS:
            self.note(path, f"more than {_DOCUMENTS} objects are there")
            return []
        return found

    def mappings(self, path: str, text: str) -> list[Document]:
        """Return the documents of a text, whatever they are."""
        content = text.encode(errors="replace")
        self._bytes += len(content)
        if self._bytes > _BYTES:
            self.note(path, f"more than {_BYTES} bytes of manifests are there")
            return []
        try:
            return parse(content, Path(path))
        except BadInputError as error:
            self.note(path, error.what)
            return []

    def may_build(self) -> bool:
        """Count a folder that is built from others; say whether there are not yet too many."""
        self._builds += 1
        return self._builds <= _BUILDS

    def may_copy(self, *values: Any) -> bool:
        """Count the values that a build or a patch copies; say whether there are not yet too many."""
        self._copied += sum(map(_weight, values)) if self._copied <= _COPIED else 0
        return self._copied <= _COPIED

    def note(self, path: str, reason: str) -> None:
        """Note why a file is not read."""
        self.notes.setdefault(path, reason)

    def has(self, path: str) -> bool:
        """Say whether a file or a folder is there."""
        if not self._places:
            self._places.update(place for file in self.paths for place in (file, *map(str, PurePosixPath(file).parents)))
        return path in self._places

    def below(self, folder: str) -> list[str]:
        """Return the YAML files of a folder and of those in it."""
        start = "" if folder == "." else f"{folder}/"
        return [path for path in self.paths if path.startswith(start) and path.endswith((".yaml", ".yml"))]


def _weight(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_weight, inner))


def _flat(documents: Iterable[Any]) -> list[Document]:
    found: list[Document] = []
    for document in documents:
        items = document.get("items") if isinstance(document, dict) and document.get("kind") == "List" else None
        found += [item for item in (items if isinstance(items, list) else [document]) if isinstance(item, dict)]
    return found


def folder_of(path: str) -> str:
    """Return the folder of a file."""
    return PurePosixPath(path).parent.as_posix()
