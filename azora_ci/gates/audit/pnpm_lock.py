"""Reads ``pnpm-lock.yaml`` of pnpm 8 and newer (lockfileVersion 6 and 9). Pure.

``importers`` names for each workspace what it depends on, by kind; ``snapshots`` (version 6: ``packages``) holds each package's own
dependencies, already resolved. Format: github.com/pnpm/spec, "lockfile".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from azora_ci.gates.audit.packages import Collected, Locked, mapping, reachable

OLDEST = 6


def read(documents: Iterable[Mapping[str, Any]]) -> Locked:
    """Return the production packages of the YAML documents in a file. Raises ValueError for another format."""
    collected = Collected()
    for document in documents:
        _read(document, collected)
    return collected.result()


def _read(document: Mapping[str, Any], collected: Collected) -> None:
    version = str(document.get("lockfileVersion", ""))
    if not version.partition(".")[0].isdigit():
        raise ValueError("it has no lockfileVersion")
    if float(version) < OLDEST:
        raise ValueError(f"lockfileVersion {version} is of pnpm 7 or older: install with pnpm 8 or newer once, and commit the lock file")
    packages = mapping(document.get("snapshots")) or mapping(document.get("packages"))
    importers = mapping(document.get("importers")) or {".": document}
    roots = [key for importer in importers.values() for key in _keys(mapping(importer), packages)]
    for key in reachable(roots, lambda key: _keys(mapping(packages.get(key)), packages)):
        name, number = _split(key)
        collected.add(name, number)


def _keys(entry: Mapping[str, Any], packages: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of what an entry depends on; links to folders of the repository have none."""
    named = {**mapping(entry.get("dependencies")), **mapping(entry.get("optionalDependencies"))}
    for name, value in named.items():
        reference = str(value.get("version", "") if isinstance(value, dict) else value)
        if reference.startswith("link:"):
            continue
        keys = (f"{name}@{reference}", reference, f"/{name}@{reference}")
        yield next((key for key in keys if key in packages), keys[0])


def _split(key: str) -> tuple[str, str]:
    """Return name and version of ``/@scope/name@1.2.3(peer@4.5.6)``."""
    bare = key.removeprefix("/").partition("(")[0]
    name, _, number = bare[1:].partition("@")
    return bare[:1] + name, number
