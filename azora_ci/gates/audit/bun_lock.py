"""Reads ``bun.lock``, the text lock file of Bun 1.1.39 and newer. Pure.

``packages`` holds the installed tree: ``"a/b"`` is the ``b`` that lies in the folder of ``a``; what lies at the top has its bare name.
Format: JSON with trailing commas, bun.sh/docs, "lockfile".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from azora_ci.core.documents import read_json
from azora_ci.gates.audit.packages import LIMITS, Collected, Locked, mapping, production, reachable

_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')


def read(text: str) -> Locked:
    """Return the production packages. Raises ValueError for a text that is no lock file of Bun."""
    document = read_json(_TRAILING_COMMA.sub(lambda match: match[1] or "", text), LIMITS)
    if not isinstance(document, dict) or "lockfileVersion" not in document:
        raise ValueError("it has no lockfileVersion")
    packages = {key: entry for key, entry in mapping(document.get("packages")).items() if isinstance(entry, list) and entry}
    collected = Collected()

    def keys(entry: Mapping[str, Any], folder: str) -> Iterator[str]:
        for name in production(entry, peers=True):
            key = _installed(name, folder, packages)
            if key is not None:
                yield key
            elif name not in mapping(entry.get("peerDependencies")) and name not in mapping(entry.get("optionalDependencies")):
                collected.leave_out(name, "not in the lock file")

    workspaces = mapping(document.get("workspaces"))
    roots = [
        key
        for path, manifest in workspaces.items()
        for key in keys(mapping(manifest), "" if path == "" else str(mapping(manifest).get("name", "")))
    ]
    for key in reachable(roots, lambda key: keys(_own(packages[key]), key)):
        name, _, version = str(packages[key][0])[1:].partition("@")
        if not version.startswith("workspace:"):
            collected.add(str(packages[key][0])[:1] + name, version)
    return collected.result()


def _own(entry: list[Any]) -> dict[str, Any]:
    return next((item for item in entry if isinstance(item, dict)), {})


def _installed(name: str, folder: str, packages: Mapping[str, Any]) -> str | None:
    """Return the key of the package that is found under a name from a folder: in the folder itself, else in those above it."""
    parts = re.findall(r"@[^/]+/[^/]+|[^/]+", folder)
    for depth in range(len(parts), -1, -1):
        key = "/".join([*parts[:depth], name])
        if key in packages:
            return key
    return None
