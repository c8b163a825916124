"""The files on a guard's volume: journal, generations, the link to the one in force, and reserves for going back when the disk is full.

Standard library only: it runs with ``server.py`` in a container. Going back to the old routes must work on a full disk. Space for it is
occupied beforehand, and overwritten in place when no other is left: ``journal.spare`` for journal entries, and spare generations with one
file for each file of a generation. File systems that copy on write (btrfs, ZFS) cannot guarantee that. To go back when a lease expires
takes one rename only, of a link that was made before the first weight.
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
SPARE_GENERATIONS = 2  # one to go back, one to remove the release from the routes
SMALLEST_SPARE = 4096  # bytes of a spare file, which is twice as long as the file that it may become
_FULL = {errno.ENOSPC, errno.EDQUOT}


class FullError(Exception):
    """The disk has no room for a change."""


class Store:
    """The files in a guard's folder. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations, self._spares = folder / "generations", folder / "spares"
        self._journal, self._spare_journal = folder / "journal.jsonl", folder / "journal.spare"
        for path in (folder, self._generations, self._spares):
            path.mkdir(parents=True, exist_ok=True)
        self._repair_journal()
        with suppress(OSError):  # the disk is full already: changes that need a reserve fail until there is room
            self._occupy(self._spare_journal, SPARE_JOURNAL)

    def disk(self) -> dict[str, int]:
        """Return the free and the total bytes of the file system."""
        usage = shutil.disk_usage(self._folder)
        return {"disk_free_bytes": usage.free, "disk_total_bytes": usage.total}

    # --- journal -----------------------------------------------------------------------------------------------------------

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, oldest first."""
        data = self._journal.read_bytes() if self._journal.exists() else b""
        return [json.loads(line) for line in (data + self._read_spare()).splitlines()]

    def append(self, entry: dict[str, Any], *, reserve: bool) -> None:
        """Append an entry and sync it. Raises FullError with the journal as it was; with ``reserve``, a full disk uses the reserve."""
        line = json.dumps(entry).encode() + b"\n"
        spare = self._read_spare()
        try:
            self._append_to_journal(spare + line)
        except OSError as error:
            if error.errno not in _FULL or not reserve:
                raise _as_full_error(error) from error
            self._write_spare(len(spare), line)
        else:
            if spare:
                self._write_spare(0, b"\n" * len(spare))

    def _append_to_journal(self, data: bytes) -> None:
        with self._journal.open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                _write(file.fileno(), data)
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)  # half an entry would spoil the next one
                raise

    def _read_spare(self) -> bytes:
        data = self._spare_journal.read_bytes() if self._spare_journal.exists() else b""
        used = data.rstrip(b"\n")
        return used + b"\n" if used else b""

    def _write_spare(self, offset: int, data: bytes) -> None:
        try:
            if offset + len(data) > self._spare_journal.stat().st_size:
                raise FullError("the disk is full, and so is the journal's reserve")
            with self._spare_journal.open("r+b", buffering=0) as file:
                file.seek(offset)
                _write(file.fileno(), data)
                os.fsync(file.fileno())
        except OSError as error:
            raise _as_full_error(error) from error

    def _repair_journal(self) -> None:
        """Drop a last entry that was cut, which was not acted upon, and entries of the reserve that have reached the journal since."""
        data = self._journal.read_bytes() if self._journal.exists() else b""
        if data and not data.endswith(b"\n"):
            os.truncate(self._journal, data.rfind(b"\n") + 1)
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        last = json.loads(lines[-1])["sequence"] if lines else 0
        spare = self._read_spare()
        kept = b"".join(line + b"\n" for line in _whole_lines(spare) if json.loads(line)["sequence"] > last)
        if kept != spare:
            self._write_spare(0, kept.ljust(len(spare), b"\n"))

    # --- generations -------------------------------------------------------------------------------------------------------

    def current(self) -> str | None:
        """Return the generation that ``current`` points to."""
        link = self._folder / "current"
        return link.readlink().name if link.is_symlink() else None

    def has(self, generation: str) -> bool:
        """Return whether a generation exists."""
        return (self._generations / generation).is_dir()

    def files(self, generation: str | None) -> dict[str, str]:
        """Return the files of a generation, name -> text."""
        folder = self._generations / generation if generation else None
        return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} if folder else {}

    def write_generation(self, generation: str, files: dict[str, str], *, reserve: bool) -> None:
        """Write a generation's folder. Raises FullError and leaves nothing; with ``reserve``, a full disk overwrites a spare generation."""
        part = self._generations / f".{generation}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            for name, text in files.items():
                _overwrite(part / name, text.encode())
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if error.errno not in _FULL or not reserve:
                raise _as_full_error(error) from error
            part = self._overwrite_spare(files)
        part.rename(self._generations / generation)

    def _overwrite_spare(self, files: dict[str, str]) -> Path:
        spares = sorted(self._spares.iterdir())
        spare = next((folder for folder in spares if files.keys() <= {path.name for path in folder.iterdir()}), None)
        if spare is None:
            raise FullError("the disk is full, and no room for these routes was reserved")
        try:
            for path in list(spare.iterdir()):
                if path.name in files:
                    _overwrite(path, files[path.name].encode())
                else:
                    path.unlink()
        except OSError as error:
            raise _as_full_error(error) from error
        return spare

    def reserve(self, files: dict[str, str]) -> None:
        """Occupy the space of the journal's reserve and of later generations that have (some of) these files. Raises FullError."""
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
            raise _as_full_error(error) from error

    def _occupy(self, path: Path, size: int) -> None:
        occupied = path.stat().st_size if path.exists() else 0
        if occupied < size:
            with path.open("ab", buffering=0) as file:
                _write(file.fileno(), b"\n" * (size - occupied))
                os.fsync(file.fileno())

    # --- the link ----------------------------------------------------------------------------------------------------------

    def prepare(self, generation: str) -> None:
        """Create the link that ``switch`` to this generation renames. Raises FullError."""
        part, target = self._prepared_link(generation), Path("generations") / generation
        if part.is_symlink() and part.readlink() == target:
            return  # to create it again might fail on a full disk
        try:
            part.unlink(missing_ok=True)
            part.symlink_to(target)
        except OSError as error:
            raise _as_full_error(error) from error

    def switch(self, generation: str) -> None:
        """Put a generation in force by one rename, which needs no space once ``prepare`` was called."""
        self.prepare(generation)
        self._prepared_link(generation).rename(self._folder / "current")
        _sync(self._folder)

    def _prepared_link(self, generation: str) -> Path:
        return self._folder / f".to.{generation}"

    def sweep(self, kept: set[str | None]) -> None:
        """Remove all but the ``KEPT_GENERATIONS`` newest generations, and prepared links; those of ``kept`` stay."""
        folders = sorted(self._generations.iterdir(), key=lambda path: path.stat().st_mtime)
        for folder in folders[:-KEPT_GENERATIONS]:
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for link in self._folder.glob(".to.*"):
            if link.name.removeprefix(".to.") not in kept:
                link.unlink(missing_ok=True)


def _overwrite(path: Path, data: bytes) -> None:
    """Write a file. An existing one is overwritten in place and truncated, so that up to its length no new space is needed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        _write(descriptor, data)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole_lines(data: bytes) -> list[bytes]:
    lines = []
    for line in data.splitlines():
        try:
            json.loads(line)
        except ValueError:
            break
        lines.append(line)
    return lines


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_full_error(error: OSError) -> Exception:
    return FullError(f"{error.strerror}: {error.filename or 'the journal'}") if error.errno in _FULL else error
