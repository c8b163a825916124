"""Reads ``yarn.lock`` of Yarn 1 and of Yarn 2 and newer. Pure.

Neither marks what is for development: that stands in the package.json of each workspace, from which the production packages are
followed. Format of Yarn 1: its ``src/lockfile/parse.js``; of newer ones: YAML, ``yarnpkg.com/features/caching``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from azora_ci.gates.audit.packages import Collected, Locked, mapping, production, reachable

Manifests = Mapping[str, Mapping[str, Any]]  # folder of a workspace ("." is the root) -> its package.json
_PAIR = re.compile(r'"?(?P<name>[^"\s]+?)"?:? +(?P<value>"(?:\\.|[^"\\])*"|\S+)')
_FOREIGN = re.compile(r"(?!npm:|workspace:)(?:[\w+.-]+:|[\w.-]+/)")  # a protocol, or a GitHub repository, in place of a range


class _Entries:
    """The entries of a lock file by their descriptors (``name@range``) and by name."""

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self.entries = entries
        self.by_descriptor = {descriptor: key for key in entries for descriptor in key.split(", ")}
        self.by_name: dict[str, set[str]] = defaultdict(set)
        for descriptor, key in self.by_descriptor.items():
            self.by_name[_name(descriptor)].add(key)

    def of(self, name: str, spec: str) -> set[str]:
        """Return the keys of a dependency. Where ``resolutions`` replaced its range, all entries of its name count."""
        for descriptor in (f"{name}@{spec}", f"{name}@npm:{spec}"):
            if descriptor in self.by_descriptor:
                return {self.by_descriptor[descriptor]}
        return self.by_name.get(name, set())


def _name(descriptor: str) -> str:
    return descriptor[: descriptor.index("@", 1)] if "@" in descriptor[1:] else descriptor


def _real_name(descriptor: str) -> str:
    """Return the name in the registry: ``minimist`` for the alias ``old@npm:minimist@0.0.8``."""
    name, spec = _name(descriptor), descriptor[len(_name(descriptor)) + 1 :]
    return _name(spec.removeprefix("npm:")) if spec.startswith("npm:") and "@" in spec[5:] else name


# --- Yarn 1 -------------------------------------------------------------------------------------------------------------


def read_classic(text: str, manifests: Manifests) -> Locked:
    """Return the production packages of a lock file of Yarn 1. Raises ValueError for a line that is none of its format."""
    locked = _Entries(_parse_classic(text))
    local = {str(manifest.get("name")) for manifest in manifests.values()}
    collected = Collected()

    def keys(dependencies: Mapping[str, str]) -> Iterator[str]:
        for name, spec in dependencies.items():
            entries = locked.of(name, spec)
            if not entries and name not in local and not spec.startswith("link:"):
                collected.leave_out(name, "not in the lock file")
            yield from entries

    roots = [key for manifest in manifests.values() for key in keys(production(manifest))]
    for key in reachable(roots, lambda key: keys(production(locked.entries[key]))):
        descriptor = key.split(", ")[0]
        if _FOREIGN.match(descriptor[len(_name(descriptor)) + 1 :]):
            collected.leave_out(_name(descriptor), f"not from a registry: {descriptor}")
        else:
            collected.add(_real_name(descriptor), str(locked.entries[key].get("version", "")))
    return collected.result()


def _parse_classic(text: str) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    entry: dict[str, Any] = {}
    group: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        depth = len(line) - len(line.lstrip(" "))
        pair = _PAIR.fullmatch(content)
        if depth == 0 and content.endswith(":"):
            entry = entries[content[:-1].replace('"', "")] = {}
        elif depth == 2 and content.endswith(":"):
            group = entry[content[:-1]] = {}
        elif depth in {2, 4} and pair:
            (entry if depth == 2 else group)[pair["name"]] = pair["value"].strip('"')
        else:
            raise ValueError(f"line {number} is none of a lock file of Yarn 1")
    return entries


# --- Yarn 2 and newer -----------------------------------------------------------------------------------------------------


def read_berry(document: Mapping[str, Any], manifests: Manifests) -> Locked:
    """Return the production packages of a lock file of Yarn 2 or newer. Raises ValueError for another document."""
    if "__metadata" not in document:
        raise ValueError("it has no __metadata")
    locked = _Entries({key: mapping(entry) for key, entry in document.items() if key != "__metadata"})
    resolutions = {key: str(entry.get("resolution", "")) for key, entry in locked.entries.items()}
    workspaces = [key for key, resolution in resolutions.items() if "@workspace:" in resolution]
    collected = Collected()

    def keys(key: str) -> Iterator[str]:
        dependencies = {name: str(spec) for name, spec in mapping(locked.entries[key].get("dependencies")).items()}
        if "@workspace:" in resolutions[key]:
            manifest = manifests.get(resolutions[key].partition("@workspace:")[2])
            installed = dependencies if manifest is None else production(manifest)
            dependencies = {name: spec for name, spec in dependencies.items() if name in installed}
        for name, spec in dependencies.items():
            entries = locked.of(name, spec)
            if not entries:
                collected.leave_out(name, "not in the lock file")
            yield from entries

    for key in reachable(workspaces, keys):
        resolution = resolutions[key]
        name, reference = _name(resolution), resolution[len(_name(resolution)) + 1 :]
        if reference.startswith(("npm:", "patch:")):
            collected.add(name, str(locked.entries[key].get("version", "")))
        elif not reference.startswith("workspace:"):
            collected.leave_out(name, f"not from a registry: {reference}")
    return collected.result()
