"""What a guard keeps on its volume: journal, generations, the link to the one in force, and room to go back when the disk is full.

Standard library only: it runs beside ``guard.py`` in a container. Whoever fills the disk must not take away the way back, so space for
it is occupied beforehand and overwritten in place when nothing else is left: ``journal.spare`` for journal entries, and spare generations
that have a file for each one that routes are made of. File systems that copy on write (btrfs, ZFS) cannot promise that; the return of
an expired lease needs one rename only, of a link that was made before the first weight.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

KEPT_GENERATIONS = 20
SPARE_JOURNAL = 256 * 1024  # bytes: some hundred entries
SPARE_GENERATIONS = 2  # one to go back, one to forget the release
SMALLEST_SPARE = 4096  # bytes of a spare file, which is twice as long as the one it may replace
_FULL = {errno.ENOSPC, errno.EDQUOT}


class FullError(Exception):
    """The disk has no room for this."""


class Store:
    """A guard's folder. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations, self._spares = folder / "generations", folder / "spares"
        self._journal, self._spare_journal = folder / "journal.jsonl", folder / "journal.spare"
        for one in (folder, self._generations, self._spares):
            one.mkdir(parents=True, exist_ok=True)
        self._mend()
        with suppress(OSError):  # full already: only what needs no reserve works until there is room
            self._occupy(self._spare_journal, SPARE_JOURNAL)

    def disk(self) -> dict[str, int]:
        """Return free and all bytes of the file system."""
        usage = shutil.disk_usage(self._folder)
        return {"disk_free_bytes": usage.free, "disk_total_bytes": usage.total}

    # --- journal -----------------------------------------------------------------------------------------------------------

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, oldest first."""
        data = self._journal.read_bytes() if self._journal.exists() else b""
        return [json.loads(line) for line in (data + self._spared()).splitlines()]

    def append(self, entry: dict[str, Any], *, reserve: bool) -> None:
        """Add an entry and have it on disk. Raises FullError, and leaves the journal as it was; ``reserve``: use it then."""
        line = json.dumps(entry).encode() + b"\n"
        spared = self._spared()
        try:
            self._add(spared + line)
        except OSError as error:
            if error.errno not in _FULL or not reserve:
                raise _explained(error) from error
            self._spare(len(spared), line)
        else:
            if spared:
                self._spare(0, b"\n" * len(spared))

    def _add(self, data: bytes) -> None:
        with self._journal.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                _write(file.fileno(), data)
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)  # half an entry would spoil the next one
                raise

    def _spared(self) -> bytes:
        data = self._spare_journal.read_bytes() if self._spare_journal.exists() else b""
        used = data.rstrip(b"\n")
        return used + b"\n" if used else b""

    def _spare(self, at: int, data: bytes) -> None:
        try:
            if at + len(data) > self._spare_journal.stat().st_size:
                raise FullError("the disk is full, and so is the journal's reserve")
            with self._spare_journal.open("r+b", buffering=0) as file:
                file.seek(at)
                _write(file.fileno(), data)
                os.fsync(file.fileno())
        except OSError as error:
            raise _explained(error) from error

    def _mend(self) -> None:
        """Drop entries whose writer was killed, which were not acted upon, and spare ones that have reached the journal since."""
        data = self._journal.read_bytes() if self._journal.exists() else b""
        if data and not data.endswith(b"\n"):
            os.truncate(self._journal, data.rfind(b"\n") + 1)
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        last = json.loads(whole[-1])["sequence"] if whole else 0
        spared = self._spared()
        kept = b"".join(line + b"\n" for line in _whole_lines(spared) if json.loads(line)["sequence"] > last)
        if kept != spared:
            self._spare(0, kept.ljust(len(spared), b"\n"))

    # --- generations -------------------------------------------------------------------------------------------------------

    def current(self) -> str | None:
        """Return the generation that ``current`` points to."""
        link = self._folder / "current"
        return link.readlink().name if link.is_symlink() else None

    def has(self, generation: str) -> bool:
        """Say whether a generation is there."""
        return (self._generations / generation).is_dir()

    def files(self, generation: str | None) -> dict[str, str]:
        """Return the files of a generation, name -> text."""
        folder = self._generations / generation if generation else None
        return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} if folder else {}

    def lay(self, generation: str, files: dict[str, str], *, reserve: bool) -> None:
        """Write a generation's folder. Raises FullError and leaves nothing; ``reserve``: overwrite a spare generation then."""
        part = self._generations / f".{generation}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            for name, text in files.items():
                _put(part / name, text.encode())
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if error.errno not in _FULL or not reserve:
                raise _explained(error) from error
            part = self._overwritten_spare(files)
        part.rename(self._generations / generation)

    def _overwritten_spare(self, files: dict[str, str]) -> Path:
        spare = next((one for one in sorted(self._spares.iterdir()) if files.keys() <= {path.name for path in one.iterdir()}), None)
        if spare is None:
            raise FullError("the disk is full, and no room for these routes was reserved")
        try:
            for path in list(spare.iterdir()):
                if path.name in files:
                    _put(path, files[path.name].encode())
                else:
                    path.unlink()
        except OSError as error:
            raise _explained(error) from error
        return spare

    def reserve(self, files: dict[str, str]) -> None:
        """Occupy what a later generation with (some of) these files needs. Raises FullError."""
        try:
            for number in range(SPARE_GENERATIONS):
                folder = self._spares / str(number)
                folder.mkdir(exist_ok=True)
                for path in list(folder.iterdir()):
                    if path.name not in files:
                        path.unlink()
                for name, text in files.items():
                    self._occupy(folder / name, max(SMALLEST_SPARE, 2 * len(text.encode())))
            self._occupy(self._spare_journal, SPARE_JOURNAL)
        except OSError as error:
            raise _explained(error) from error

    def _occupy(self, path: Path, size: int) -> None:
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            with path.open("ab", buffering=0) as file:
                _write(file.fileno(), b"\n" * (size - there))
                os.fsync(file.fileno())

    # --- the link ----------------------------------------------------------------------------------------------------------

    def prepare(self, generation: str) -> None:
        """Have the link for ``switch`` to this generation ready. Raises FullError."""
        part, there = self._link(generation), Path("generations") / generation
        if part.is_symlink() and part.readlink() == there:
            return  # made anew, it might find no room
        try:
            part.unlink(missing_ok=True)
            part.symlink_to(there)
        except OSError as error:
            raise _explained(error) from error

    def switch(self, generation: str) -> None:
        """Put a generation in force by one rename, which needs no room when it was prepared."""
        self.prepare(generation)
        self._link(generation).rename(self._folder / "current")
        _sync(self._folder)

    def _link(self, generation: str) -> Path:
        return self._folder / f".to.{generation}"

    def sweep(self, kept: set[str | None]) -> None:
        """Remove generations, and prepared links, of long ago."""
        folders = sorted(self._generations.iterdir(), key=lambda path: path.stat().st_mtime)
        for folder in folders[:-KEPT_GENERATIONS]:
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for link in self._folder.glob(".to.*"):
            if link.name.removeprefix(".to.") not in kept:
                link.unlink(missing_ok=True)


def _put(path: Path, data: bytes) -> None:
    """Write a file; one that is there is overwritten in place and cut, so that it needs no room up to its length."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        _write(descriptor, data)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole_lines(data: bytes) -> list[bytes]:
    found = []
    for line in data.splitlines():
        try:
            json.loads(line)
        except ValueError:
            break
        found.append(line)
    return found


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError) -> Exception:
    return FullError(f"{error.strerror}: {error.filename or 'the journal'}") if error.errno in _FULL else error
