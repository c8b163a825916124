"""Which compose files of a repository are read: those that production uses, by their names and what they hold. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_COMPOSE = re.compile(r"(?:docker-)?compose(?:[._-](?P<variant>[\w.-]+?))?\.ya?ml", re.IGNORECASE)
_BASES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")  # in the order in which Compose looks for them
_PRODUCTION = re.compile(r"(?:prod|production|release|deploy|selfhost|self-host|server)", re.IGNORECASE)
# Folders in which applications keep what production runs; the top one first.
_FOLDERS = (
    "",
    "docker",
    ".docker",
    "deploy",
    "deployment",
    "hosting",
    "infra",
    "infrastructure",
    "compose",
    "docker-compose",
    "production",
    "ops",
)
Services = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Selection:
    """``files``: to be merged in this order; ``reason``: why these; ``others``: further compose files of the repository."""

    files: tuple[str, ...] = ()
    reason: str = ""
    others: tuple[str, ...] = ()


def compose_files(files: Iterable[str]) -> list[str]:
    """Return those of a repository's files that are called like compose files, those in the usual folders first."""
    found = [path for path in files if _COMPOSE.fullmatch(path.rpartition("/")[2])]
    return sorted(found, key=lambda path: (_rank(path), path.count("/"), path))


def select(files: Iterable[str], services: Callable[[str], Services]) -> Selection:
    """Return which compose files to read. ``services``: path -> the services of that file alone, empty when it cannot be read."""
    candidates = compose_files(files)
    folders = dict.fromkeys(_folder(path) for path in candidates if _rank(path) < len(_FOLDERS))
    chosen: Selection | None = None
    for folder in folders:
        selection = _in_folder([path for path in candidates if _folder(path) == folder], services)
        if selection is None:
            continue
        if any("build" in service for path in selection.files for service in services(path).values()):
            chosen = selection
            break
        chosen = chosen or selection
    if chosen is None:
        return Selection(others=tuple(candidates))
    return Selection(chosen.files, chosen.reason, tuple(path for path in candidates if path not in chosen.files))


def _in_folder(paths: Sequence[str], services: Callable[[str], Services]) -> Selection | None:
    names = {PurePosixPath(path).name: path for path in paths}
    base = next((names[name] for name in _BASES if name in names), None)
    production = next((path for path in paths if _PRODUCTION.fullmatch(_variant(path))), None)
    building = next((path for path in paths if _variant(path) == "build"), None)
    if production and (base is None or _is_complete(services(production))):
        return Selection((production,), "production's, complete by itself")
    if base is None:
        return Selection((building,), "the one that builds") if building else None
    if production:
        return Selection((base, production), "production's over the one it changes")
    override = next((path for path in paths if path.endswith((".override.yml", ".override.yaml")) and _is_beside(path, base)), None)
    if override:
        return Selection((base, override), "Compose reads the override file by itself")
    if building and not any("build" in service for service in services(base).values()):
        return Selection((base, building), "images over how they are built")
    return Selection((base,))


def _is_complete(services: Services) -> bool:
    """Say whether a file stands alone: each of its services has an image or a build, and one of them a build."""
    return any("build" in service for service in services.values()) and all(
        {"build", "image", "extends"} & service.keys() for service in services.values()
    )


def _is_beside(override: str, base: str) -> bool:
    return re.sub(r"\.override(?=\.ya?ml$)", "", override).rsplit(".", 1)[0] == base.rsplit(".", 1)[0]


def _variant(path: str) -> str:
    match = _COMPOSE.fullmatch(path.rpartition("/")[2])
    return (match["variant"] or "").lower() if match else ""


def _folder(path: str) -> str:
    parent = PurePosixPath(path).parent.as_posix()
    return "" if parent == "." else parent


def _rank(path: str) -> int:
    """Return how likely a file is production's by its folder; folders that nobody knows are the last, and are only offered."""
    folder = _folder(path)
    if folder in _FOLDERS:
        return _FOLDERS.index(folder)
    return len(_FOLDERS) - 1 if folder.split("/")[0] in _FOLDERS[1:] else len(_FOLDERS)
