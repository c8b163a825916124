"""The application's tree as the job build packed it: everything that the migrate command needs, its packages too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import tree

ARTIFACT = "application-tree"
FILE = "tree.tar.zst"


def unpack(received: Path, recorded: Mapping[str, Any] | None, folder: Path) -> None:
    """Unpack the tree that build recorded (``sha256``, ``entries``) into ``folder``. Raises NotTrueError when it is absent or another."""
    files = sorted(received.glob(f"{ARTIFACT}*/{FILE}"))
    if recorded is None or len(files) != 1:
        raise NotTrueError(
            "The application's tree is missing",
            what="build packed none" if recorded is None else f"{len(files)} artifacts {ARTIFACT} with {FILE} were received, one is needed",
            where=str(received),
            next_step="check that database.prepare and the migrations are in the deployment configuration, then re-run all jobs",
        )
    tree.unpack(files[0], folder, recorded["sha256"])


def require_same_migrations(checkout: Path, unpacked: Path) -> int:
    """Return how many files the folder of migrations has, in the release's commit and in the tree. Raises NotTrueError when they differ."""
    expected, actual = _hashes(checkout), _hashes(unpacked)
    different = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if different:
        name = different[0]
        how = "is not in the tree" if name not in actual else "is not in the commit" if name not in expected else "has other bytes"
        raise NotTrueError(
            "The build changed the migrations",
            what=f"{name} {how}; {len(different)} of {len(expected | actual)} files differ from the release's commit; nothing was applied",
            where=str(checkout),
            next_step="find out what of the build or of database.prepare writes there; migrations are applied as they were committed",
        )
    return len(expected)


def _hashes(folder: Path) -> dict[str, str]:
    """Return name -> SHA-256 of every file below a folder; a link, whose target may change, counts as itself."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            hashes[str(path.relative_to(folder))] = f"link to {path.readlink()}"
        elif path.is_file():
            hashes[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes
