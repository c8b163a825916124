"""Deterministic archives of a service's build context: the same content gives the same bytes, whatever its times and owners.

The Docker SDK's own matcher reads ``.dockerignore`` to select the files of a context, so that an archive and an image contain the
same files. Beyond that only ``.git`` and this job's own folders are left out, because these change while they are read; for example
``node_modules`` stays, since a service may need it.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from azora_ci.core.errors import BadInputError

ALWAYS_LEFT_OUT = (".git",)
BLOCK = 1024 * 1024
COMPRESSION = 1  # igzip's level 1: an archive is read once or twice, so speed matters more than size


@dataclass(frozen=True)
class BuildContext:
    """An archive: ``sha256:<hex>`` of its bytes, size in bytes, number of entries."""

    digest: str
    size_bytes: int
    entries: int


class _CountingWriter:
    """A writer that hashes and counts the bytes that it passes to ``target``."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._target.write(data)

    def flush(self) -> None:
        self._target.flush()


def context_folder(context: Path, root: Path) -> Path:
    """Return the folder of a service's build context below ``root``. Raises BadInputError when it does not exist or is outside."""
    folder = (root / context).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise _error("Build context leads out of the repository", f"{context} is {folder}", root, "name a folder below the repository")
    if not folder.is_dir():
        raise _error("No build context", f"{folder} is no folder", root, "correct services.*.context, or let the build make it")
    return folder


def members(folder: Path, *, dockerfile: str, left_out: Collection[Path] = ()) -> list[str]:
    """Return the sorted relative paths of a context, without those that ``.dockerignore``, ``ALWAYS_LEFT_OUT``, ``left_out`` exclude."""
    from docker.utils.build import exclude_paths

    ignore = folder / ".dockerignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    patterns = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    excluded = [*ALWAYS_LEFT_OUT, *names_below(folder, left_out)]
    return sorted(exclude_paths(str(folder), [*patterns, *excluded], dockerfile=dockerfile))


def names_below(folder: Path, paths: Collection[Path]) -> list[str]:
    """Return those of the paths that are below a folder, relative to it."""
    return [path.resolve().relative_to(folder).as_posix() for path in paths if path.resolve().is_relative_to(folder)]


def write(folder: Path, names: Collection[str], stream: IO[bytes], *, self_contained: bool) -> BuildContext:
    """Write a tar.gz of ``names`` below ``folder``. ``self_contained`` forbids links to outside of it. Raises BadInputError."""
    from isal import igzip

    writer = _CountingWriter(stream)
    try:
        compressed = igzip.GzipFile(  # type: ignore[no-untyped-call]  # isal has no types for this constructor
            filename="", mode="wb", compresslevel=COMPRESSION, fileobj=writer, mtime=0
        )
        with compressed, tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
            for name in names:
                _add(tar, folder, name, self_contained=self_contained)
    except OSError as error:
        raise _error("Build context cannot be read", str(error), folder, "let nothing change the context while it is archived") from error
    return BuildContext(f"sha256:{writer.sha256.hexdigest()}", writer.size, len(names))


def _add(tar: tarfile.TarFile, folder: Path, name: str, *, self_contained: bool) -> None:
    path = folder / name
    status = path.lstat()
    member = tarfile.TarInfo(name)  # owner, group and time stay 0
    member.mode = 0o755 if stat.S_ISDIR(status.st_mode) or status.st_mode & 0o111 else 0o644
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif stat.S_ISLNK(status.st_mode):
        member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, str(path.readlink())
        if self_contained:
            _require_inside(folder, name, member.linkname)
        tar.addfile(member)
    elif stat.S_ISREG(status.st_mode):
        member.size = status.st_size
        with path.open("rb") as file:
            tar.addfile(member, file)
    else:
        raise _error("Build context holds a special file", f"{name} is neither file, folder nor link", folder, "name it in .dockerignore")


def _require_inside(folder: Path, name: str, target: str) -> None:
    depth = 0
    for part in (PurePosixPath(name).parent / target).parts:
        depth = depth - 1 if part == ".." else depth + 1
        if depth < 0 or target.startswith("/"):
            details = f"{name} -> {target}: it would lead nowhere on the machine that unpacks the archive"
            raise _error(
                "Link leads out of the build context", details, folder, "copy what it names into the context, or name it in .dockerignore"
            )


def store(folder: Path, names: Collection[str], archive_dir: Path) -> tuple[BuildContext, Path, bool]:
    """Write a context to ``<archive_dir>/sha256-<hex>.tar.gz`` by one rename; return it, its path, and whether the file existed."""
    archive_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=archive_dir, prefix=".part-", delete=False) as file:
        part = Path(file.name)
        try:
            archive = write(folder, names, file, self_contained=True)
        except BaseException:
            part.unlink()
            raise
    path = archive_dir / f"{archive.digest.replace(':', '-')}.tar.gz"
    reused = path.is_file() and digest_of(path) == archive.digest
    part.chmod(0o644)
    part.replace(path)
    return archive, path, reused


def put(archive: Path, digest: str, archive_dir: Path) -> tuple[Path, bool]:
    """Copy an archive to ``<archive_dir>/sha256-<hex>.tar.gz`` by one rename; return its path, and whether the file existed."""
    path = archive_dir / f"{digest.replace(':', '-')}.tar.gz"
    reused = path.is_file() and digest_of(path) == digest
    if not reused:
        archive_dir.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        shutil.copyfile(archive, part)
        part.replace(path)
    return path, reused


def digest_of(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
    return f"sha256:{sha256.hexdigest()}"


def _error(title: str, what: str, where: Path, next_step: str) -> BadInputError:
    return BadInputError(title, what=what, where=str(where), next_step=next_step)
