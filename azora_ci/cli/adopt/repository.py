"""The files of a repository by name and as text. Nothing of them is executed, and no link out of it is followed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from azora_ci.cli.adopt.files import regular
from azora_ci.core.documents import Limits, UnreadableError, read_json

LARGEST = 1024 * 1024  # bytes of a file that is read


class Files:
    """The paths of a repository's files below its folder, without those of other people (``files.walk``)."""

    def __init__(self, folder: Path, paths: Iterable[str]) -> None:
        self.folder = folder
        self._by_name: dict[str, list[str]] = {}
        for path in paths:
            self._by_name.setdefault(path.rpartition("/")[2], []).append(path)

    def named(self, *names: str) -> Iterator[PurePosixPath]:
        """Yield the files that have one of these names, the highest first."""
        found = (PurePosixPath(path) for name in dict.fromkeys(names) for path in self._by_name.get(name, []))
        yield from sorted(found, key=lambda path: (len(path.parts), path))

    def ending(self, suffix: str) -> Iterator[PurePosixPath]:
        """Yield the files whose names end so."""
        yield from (PurePosixPath(path) for name, paths in self._by_name.items() if name.endswith(suffix) for path in paths)

    def text(self, path: PurePosixPath | str) -> str:
        """Return a file's text, without a byte order mark; what is no UTF-8 is replaced. Empty for no file and for a huge one."""
        file = regular(self.folder, str(path))
        try:
            if file is None or file.stat().st_size > LARGEST:
                return ""
            return file.read_bytes().decode("utf-8-sig", errors="replace")
        except OSError:
            return ""

    def mapping(self, path: PurePosixPath | str) -> dict[str, Any]:
        """Return the object that a JSON file holds; empty for anything else."""
        return mapping(self.text(path))

    def nearest(self, start: PurePosixPath, name: str) -> PurePosixPath | None:
        """Return the nearest folder at or above ``start`` that holds a file of this name, or None."""
        have = self._by_name.get(name, [])
        return next((folder for folder in (start, *start.parents) if str(folder / name) in have), None)


def mapping(text: str) -> dict[str, Any]:
    """Return the object that a text of JSON holds; empty for anything else. Of equal keys the last counts, as npm takes it."""
    try:
        document = read_json(text, Limits(unique_keys=False))
    except UnreadableError:
        return {}
    return document if isinstance(document, dict) else {}
