"""The files of a repository, found by one walk: folders of other people's files are not entered, links do not lead out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

# Folders that hold other people's files, or what is made from this repository's own.
# fmt: off - one line a folder would hide what the list says
NOT_OURS = frozenset(
    {
        ".cache",
        ".git",
        ".next",
        ".nuxt",
        ".output",
        ".pnpm-store",
        ".svelte-kit",
        ".terraform",
        ".turbo",
        ".venv",
        ".yarn",
        "__pycache__",
        "bower_components",
        "build",
        "coverage",
        "dist",
        "node_modules",
        "target",
        "vendor",
        "venv",
    }
)
# fmt: on
LIMIT = 500_000  # files; a repository with more is read as far as that


def walk(folder: Path) -> tuple[str, ...]:
    """Return the paths of the files below a folder, relative to it, with ``/``, the top ones first and each folder's in order."""
    return tuple(_files(str(folder)))


def _files(top: str) -> Iterator[str]:
    count = 0
    for parent, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name not in NOT_OURS)
        below = os.path.relpath(parent, top).replace(os.sep, "/")
        for name in sorted(names):
            yield name if below == "." else f"{below}/{name}"
        count += len(names)
        if count > LIMIT:
            return


def regular(folder: Path, path: str | PurePath) -> Path | None:
    """Return a file of a folder; None when it is not there, is a device or another thing that is no file, or a link leads out."""
    file = folder / path
    try:
        return file if file.is_file() and file.resolve().is_relative_to(folder.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # a name that is too long or holds a NUL, a circle of links
        return None
