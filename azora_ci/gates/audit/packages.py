"""What a lock file says: which packages from a registry run in production. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from azora_ci.core.documents import MEBIBYTE, Limits

# Of a lock file: those of large workspaces have some ten MiB; npm nests packages below each other.
LIMITS = Limits(size=64 * MEBIBYTE, depth=512, values=5_000_000, digits=64, unique_keys=False)
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")
_NAME = re.compile(r"(?:@[\w.~-]+/)?[\w.~-]+")
Key = TypeVar("Key")


class Package(NamedTuple):
    """A package in the version that is locked."""

    name: str
    version: str


@dataclass(frozen=True)
class Locked:
    """The production packages of one lock file. ``left_out``: what no registry can be asked about -> the reason."""

    packages: frozenset[Package] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)


class Collected:
    """Collects the production packages of a lock file while it is read."""

    def __init__(self) -> None:
        self._packages: set[Package] = set()
        self._left_out: dict[str, str] = {}

    def add(self, name: str, version: str) -> None:
        """Add a package; a version that no registry has (a git commit, a folder) is left out with that reason."""
        if _VERSION.fullmatch(version) and _NAME.fullmatch(name):
            self._packages.add(Package(name, version.partition("+")[0]))
        else:
            self.leave_out(name, f"no version of a registry: {version or '(none)'}")

    def leave_out(self, name: str, reason: str) -> None:
        """Note a dependency that cannot be audited."""
        self._left_out[name[:200]] = reason[:200]

    def result(self) -> Locked:
        """Return what was collected."""
        return Locked(frozenset(self._packages), dict(sorted(self._left_out.items())))


def mapping(value: object) -> dict[str, Any]:
    """Return a JSON or YAML mapping with texts as keys; an empty one for any other value."""
    return {str(name): item for name, item in value.items()} if isinstance(value, dict) else {}


def production(manifest: Mapping[str, Any], *, peers: bool = False) -> dict[str, str]:
    """Return name -> range of the dependencies that production installs, of a package.json or of an entry with its keys.

    ``peers``: also those peers that the manager installs by itself; optional ones are not.
    """
    named = mapping(manifest.get("dependencies")) | mapping(manifest.get("optionalDependencies"))
    if peers:
        meta = mapping(manifest.get("peerDependenciesMeta"))
        listed = manifest.get("optionalPeers")
        optional = {name for name in meta if mapping(meta[name]).get("optional")} | set(
            map(str, listed if isinstance(listed, list) else ())
        )
        named = {name: spec for name, spec in mapping(manifest.get("peerDependencies")).items() if name not in optional} | named
    return {name: str(spec) for name, spec in named.items()}


def reachable(roots: Iterable[Key], edges: Callable[[Key], Iterable[Key]]) -> Iterator[Key]:
    """Yield everything that the roots lead to, themselves included, each once."""
    waiting, visited = list(roots), set()
    while waiting:
        key = waiting.pop()
        if key not in visited:
            visited.add(key)
            yield key
            waiting += edges(key)
