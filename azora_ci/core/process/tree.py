"""A folder as one file for the next job: tar in zstandard, and back again without trust in its contents.

The job that packs a tree has run code of the application, so the reader takes only the bytes with the SHA-256 that it was told, and
still refuses every entry that could reach out of its folder, or that would fill the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from azora_ci.core.errors import NotTrueError

GIB = 1024**3
MOST_BYTES = 8 * GIB  # of an unpacked tree; a runner of GitHub has 14 GB free
MOST_ENTRIES = 1_000_000
LONGEST_NAME = 1024  # of a name or of a link; below PATH_MAX, beyond which realpath no longer follows links
LONGEST_HEADER = 64 * 1024  # bytes of an extended header, which tarfile reads into memory
LEVEL = 3  # zstandard's default
SAID_EVERY = 1 * GIB


@dataclass(frozen=True)
class Packed:
    """A written archive: SHA-256 and size in bytes of the file, number of entries in it, links left out because they lead outside."""

    sha256: str
    bytes: int
    entries: int
    left_out: tuple[str, ...] = ()

    def evidence(self) -> dict[str, Any]:
        """Return what the packing job records, and what the unpacking job needs."""
        return {"sha256": self.sha256, "bytes": self.bytes, "entries": self.entries}


class _Hashing:
    """A file object that hashes and counts every byte that passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0

    def write(self, chunk: bytes) -> int:
        self.digest.update(chunk)
        self.count += len(chunk)
        return self._file.write(chunk)

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.digest.update(chunk)
        self.count += len(chunk)
        return chunk


class _Bounded(tarfile.TarInfo):
    """A header of an archive; an extended header longer than ``LONGEST_HEADER`` is refused before it is read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
        if self.type in extended and self.size > LONGEST_HEADER:
            raise _refused("an extended header", f"is {self.size} bytes long, {LONGEST_HEADER} are allowed")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return] # tarfile's place to override, not in the stubs


def pack(folder: Path, file: Path, left_out: Iterable[str] = (), say: Callable[[str], None] | None = None) -> Packed:
    """Write a folder's files, folders and links to ``file`` as tar in zstandard, in order of their names.

    ``.git`` and the paths ``left_out`` (relative to the folder) are left out, as are sockets, pipes, devices and links that lead out of
    the folder. Permissions are kept, owners and setuid bits are not. ``file`` may lie inside the folder. Raises OSError.
    """
    import zstandard

    skipped = {".git", *left_out}
    outside: list[str] = []
    entries = 0
    with file.open("wb") as target:
        hashing = _Hashing(target)
        compressor = zstandard.ZstdCompressor(level=LEVEL, threads=-1)
        with (
            compressor.stream_writer(hashing, closefd=False) as stream,  # type: ignore[arg-type] # writes is all it needs
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            own = file.stat()
            packed_bytes = 0
            for path in _walk(folder, skipped):
                if path.is_symlink() and not _is_within(folder, path):
                    outside.append(str(path.relative_to(folder)))
                    continue
                header = _header(archive, path, folder)
                if header is None or os.path.samestat(path.lstat(), own):
                    continue
                _add(archive, header, path)
                entries += 1
                if say is not None and (packed_bytes + header.size) // SAID_EVERY > packed_bytes // SAID_EVERY:
                    say(f"packed {(packed_bytes + header.size) / GIB:.1f} GiB of {folder}, {entries} entries")
                packed_bytes += header.size
    return Packed(hashing.digest.hexdigest(), hashing.count, entries, tuple(outside))


def _walk(folder: Path, skipped: set[str]) -> Iterator[Path]:
    """Yield everything below a folder, each folder before its contents; links are not followed."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        kept = [name for name in folders if str((here / name).relative_to(folder)) not in skipped]
        folders[:] = sorted(kept)
        for name in sorted([*kept, *(name for name in files if str((here / name).relative_to(folder)) not in skipped)]):
            yield here / name


def _header(archive: tarfile.TarFile, path: Path, folder: Path) -> tarfile.TarInfo | None:
    """Return a path's header without owner and setuid bits, or None for what is no file, folder or link."""
    header = archive.gettarinfo(path, arcname=str(path.relative_to(folder)))
    if header is None or not (header.isreg() or header.isdir() or header.issym() or header.islnk()):
        return None
    header.mode &= 0o777
    header.uid = header.gid = 0
    header.uname = header.gname = ""
    return header


def _add(archive: tarfile.TarFile, header: tarfile.TarInfo, path: Path) -> None:
    if header.isreg():
        with path.open("rb") as content:
            archive.addfile(header, content)
    else:
        archive.addfile(header)


def unpack(
    file: Path,
    folder: Path,
    sha256: str,
    *,
    most_bytes: int = MOST_BYTES,
    most_entries: int = MOST_ENTRIES,
) -> int:
    """Unpack an archive that ``pack`` wrote into ``folder``, which must not exist yet, and return the number of its entries.

    Contents appear under ``folder`` only when every byte was read and hashed; a refused archive leaves nothing. Raises NotTrueError for
    another SHA-256, for absolute names, ``..``, links that lead outside, devices, setuid bits, and for more bytes or entries than allowed.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        entries = _unpack(file, part, sha256, most_bytes, most_entries)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return entries


def _unpack(file: Path, folder: Path, sha256: str, most_bytes: int, most_entries: int) -> int:
    import zstandard

    damage: Exception | None = None
    refusal: NotTrueError | None = None
    entries = 0
    with file.open("rb") as source:
        hashing = _Hashing(source)
        try:
            with (
                zstandard.ZstdDecompressor().stream_reader(hashing, closefd=False) as stream,  # type: ignore[arg-type] # reads
                tarfile.open(fileobj=stream, mode="r|", tarinfo=_Bounded) as archive,
            ):
                entries = _extract(archive, folder, most_bytes, most_entries)
        except (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError, OSError) as error:
            damage = error
        except NotTrueError as error:
            refusal = error
        while hashing.read(1024 * 1024):
            pass
    if hashing.digest.hexdigest() != sha256:
        raise NotTrueError(
            "The tree is not the one that was built",
            what=f"SHA-256 {hashing.digest.hexdigest()} of {hashing.count} bytes; the job that packed it recorded {sha256}",
            where=str(file),
            next_step="find out who wrote this artifact of the run, then re-run all jobs",
        )
    if damage is not None:
        raise _refused("the archive", f"cannot be read: {type(damage).__name__}: {damage}")
    if refusal is not None:
        raise refusal
    return entries


def _extract(archive: tarfile.TarFile, folder: Path, most_bytes: int, most_entries: int) -> int:
    """Extract each entry below a folder that an earlier entry made, never through a link and never over another entry."""
    folders, files, names = {PurePosixPath()}, set[PurePosixPath](), set[PurePosixPath]()
    links: list[str] = []
    total = 0
    for header in archive:
        name = PurePosixPath(header.name)
        total += header.size
        reason = _reason(header, name, folders, files, names)
        if reason is not None:
            raise _refused(header.name, reason)
        if total > most_bytes or len(names) >= most_entries:
            raise _refused("the archive", f"has more than {most_bytes} bytes or {most_entries} entries")
        names.add(name)
        if header.isdir():
            folders.add(name)
        elif header.issym():
            links.append(header.name)
        else:
            files.add(name)
        archive.extract(header, folder, set_attrs=not header.isdir(), filter="data")
        archive.members = []  # type: ignore[attr-defined] # tarfile keeps every header otherwise
    # Links are looked at again when all are there: one alone may stay inside, and lead outside through another.
    for link in links:
        if not _is_within(folder, folder / link):
            raise _refused(link, "is a link that leads outside of the tree")
    return len(names)


def _reason(
    header: tarfile.TarInfo, name: PurePosixPath, folders: set[PurePosixPath], files: set[PurePosixPath], names: set[PurePosixPath]
) -> str | None:
    """Return why an entry is refused, or None; the sets hold the entries so far, ``names`` all of them."""
    if name.is_absolute() or ".." in name.parts or len(header.name) > LONGEST_NAME or not name.parts:
        return "is no name inside of the tree"
    if not (header.isreg() or header.isdir() or header.issym() or header.islnk()):
        return "is neither file, folder nor link"
    if header.mode & 0o7000:
        return f"has the permissions {header.mode:o}"
    if header.linkname and (PurePosixPath(header.linkname).is_absolute() or len(header.linkname) > LONGEST_NAME):
        return "is a link that leads outside of the tree"
    if header.islnk() and PurePosixPath(header.linkname) not in files:
        return "is a hard link to something that is no file of the tree"
    if name in names or name.parent not in folders:
        return "comes twice, or before its folder"
    return None


def _is_within(folder: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)) and not path.readlink().is_absolute()


def _refused(entry: str, reason: str) -> NotTrueError:
    return NotTrueError(
        "The tree is refused",
        what=f"{entry[:200]!r} {reason}",
        where="the artifact of the job that ran the application's build",
        next_step="find out what of the build wrote this, correct it and release again",
    )
