"""Reads ``package-lock.json`` and ``npm-shrinkwrap.json`` of npm 5 and newer (lockfileVersion 1 to 3). Pure.

npm marks what only development installs with ``dev``; ``devOptional`` also comes by way of a production package's optional dependency.
Format: npm's documentation, "package-lock.json".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azora_ci.gates.audit.packages import Collected, Locked, mapping


def read(document: Mapping[str, Any]) -> Locked:
    """Return the production packages. Raises ValueError for a document that is no lock file of npm."""
    if not isinstance(document.get("lockfileVersion"), int):
        raise ValueError("it has no lockfileVersion")  # noqa: TRY004 - a wrong document, whatever the type of the value
    collected = Collected()
    if isinstance(document.get("packages"), dict):
        for path, entry in mapping(document["packages"]).items():
            _add(collected, path, mapping(entry))
    else:
        _add_version_1(collected, mapping(document.get("dependencies")))
    return collected.result()


def _add(collected: Collected, path: str, entry: dict[str, Any]) -> None:
    _folder, marker, name = path.rpartition("node_modules/")
    if not marker or entry.get("link") or entry.get("dev") or entry.get("extraneous"):
        return  # a folder of the repository itself, or nothing that production installs
    resolved = str(entry.get("resolved", ""))
    name = str(entry.get("name") or name)
    if resolved.startswith(("git", "file:")):
        collected.leave_out(name, f"not from a registry: {resolved}")
    else:
        collected.add(name, str(entry.get("version", "")))


def _add_version_1(collected: Collected, dependencies: dict[str, Any]) -> None:
    waiting = [dependencies]
    while waiting:
        for name, value in waiting.pop().items():
            entry = mapping(value)
            waiting.append(mapping(entry.get("dependencies")))
            version = str(entry.get("version", ""))
            if entry.get("dev") or entry.get("extraneous"):
                continue
            if version.startswith("npm:"):  # "npm:minimist@0.0.8": an alias
                collected.add(*_split_alias(version))
            elif not (version.startswith("file:") and not version.endswith((".tgz", ".tar.gz"))):  # a folder of the repository
                collected.add(name, version)


def _split_alias(version: str) -> tuple[str, str]:
    name, _, number = version.removeprefix("npm:").rpartition("@")
    return name, number
