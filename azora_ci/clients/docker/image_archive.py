"""Archives of images on their way from the job that built them to the job that pushes them.

An archive is what ``docker save`` writes, compressed by zstd. Its writer ran the application's code and is not trusted: the reader
accepts one image under one name, and hands the daemon a new archive that holds nothing but that image's configuration and layers.
Format: https://github.com/moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from azora_ci.clients.docker.build_context import BLOCK, digest_of
from azora_ci.core.documents import LIMITS, read_json
from azora_ci.core.errors import AzoraError, NotTrueError

LEVEL = 3  # zstd's default
MOST_BYTES = 64 * 1024**3  # of an unpacked archive; more than a disk of GitHub's runners
MOST_MEMBERS = 20_000  # an image has at most 127 layers, each with a folder and three files
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class StoredArchive:
    """A compressed archive in a file: ``sha256:<hex>`` and number of its bytes."""

    sha256: str
    size_bytes: int


def write(chunks: Iterable[bytes], path: Path) -> StoredArchive:
    """Compress the output of ``docker save`` into a file and return its digest and size."""
    import zstandard

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, zstandard.ZstdCompressor(level=LEVEL).stream_writer(file) as compressed:
        for chunk in chunks:
            compressed.write(chunk)
    return StoredArchive(digest_of(path), path.stat().st_size)


@dataclass(frozen=True)
class ArchivedImage:
    """The only image of an archive: the digest of its configuration (``sha256:<hex>``), which is its id, and its labels."""

    image_id: str
    labels: Mapping[str, str]
    _configuration: bytes
    _layers: tuple[str, ...]
    _tar: tarfile.TarFile

    def chunks(self, reference: str) -> Iterator[bytes]:
        """Yield an uncompressed archive for ``docker load``: this image under ``reference``, and nothing else of the original."""
        names = [f"{number}/layer.tar" for number in range(len(self._layers))]
        configuration = f"{self.image_id.removeprefix('sha256:')}.json"
        manifest = [{"Config": configuration, "RepoTags": [reference], "Layers": names}]
        for name, content in ((configuration, self._configuration), (MANIFEST, json.dumps(manifest).encode())):
            yield from _member(name, BytesIO(content), len(content))
        for name, layer in zip(names, self._layers, strict=True):
            member = self._tar.getmember(layer)
            content_file = self._tar.extractfile(member)
            assert content_file is not None  # noqa: S101 - ``_file`` has found a regular file
            yield from _member(name, content_file, member.size)
        yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, content: IO[bytes], size: int) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size = size
    yield header.tobuf(tarfile.GNU_FORMAT)
    while block := content.read(BLOCK):
        yield block
    yield bytes(-size % tarfile.BLOCKSIZE)


@contextmanager
def opened(path: Path, reference: str | None) -> Iterator[ArchivedImage]:
    """Yield the only image of an archive, which must be named ``reference`` (None: whatever its name). Raises NotTrueError."""
    with tempfile.TemporaryFile(prefix="image-") as unpacked:
        try:
            _decompress(path, unpacked)
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                image = _image(tar, reference, path)
                yield image
        except (tarfile.TarError, EOFError) as error:
            raise _error(f"it cannot be read: {error}", path) from error


def _decompress(path: Path, target: IO[bytes]) -> None:
    import zstandard

    size = 0
    try:
        with path.open("rb") as file:
            for block in zstandard.ZstdDecompressor().read_to_iter(file, read_size=BLOCK):
                size += len(block)
                if size > MOST_BYTES:
                    raise _error(f"it unpacks to more than {MOST_BYTES} bytes", path)
                target.write(block)
    except zstandard.ZstdError as error:
        raise _error(f"it is not zstd: {error}", path) from error
    target.seek(0)


def _image(tar: tarfile.TarFile, reference: str | None, path: Path) -> ArchivedImage:
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if len(members) >= MOST_MEMBERS:
            raise _error(f"it has more than {MOST_MEMBERS} members", path)
        if member.name in members and not member.isdir():
            raise _error(f"{member.name!r} is in it twice", path)
        members[member.name] = member
    manifest = _json(tar, members, MANIFEST, path)[1]
    if not isinstance(manifest, list) or len(manifest) != 1 or not isinstance(manifest[0], dict):
        raise _error(f"its manifest names {len(manifest) if isinstance(manifest, list) else 'no'} images, one is expected", path)
    entry = manifest[0]
    if reference is not None and entry.get("RepoTags") != [reference]:
        raise _error(f"its image is named {entry.get('RepoTags')!r}, expected {reference} only", path)
    content, configuration = _json(tar, members, entry.get("Config"), path)
    settings = configuration.get("config") if isinstance(configuration, dict) else None
    labels = settings.get("Labels") if isinstance(settings, dict) else None
    layers = entry.get("Layers")
    if not isinstance(layers, list):
        raise _error("its manifest has no list of layers", path)
    names = tuple(_file(members, layer, path).name for layer in layers)
    return ArchivedImage(f"sha256:{hashlib.sha256(content).hexdigest()}", labels if isinstance(labels, dict) else {}, content, names, tar)


def _file(members: Mapping[str, tarfile.TarInfo], name: object, path: Path) -> tarfile.TarInfo:
    """Return the regular file of this name; ``docker save`` writes a layer that it has written before as a link."""
    member = members.get(name) if isinstance(name, str) else None
    if member is not None and member.issym():
        member = members.get(posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname)))
    if member is None or not member.isreg() or member.issparse():
        raise _error(f"its manifest names {name!r}, which is no file in it", path)
    return member


def _json(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: object, path: Path) -> tuple[bytes, Any]:
    member = _file(members, name, path)
    if member.size > LIMITS.size:  # of manifest and configuration; registries refuse larger ones, too
        raise _error(f"{member.name} has {member.size} bytes, at most {LIMITS.size} are read", path)
    file = tar.extractfile(member)
    assert file is not None  # noqa: S101 - it is a regular file
    content = file.read()
    try:
        return content, read_json(content, LIMITS)
    except ValueError as error:
        raise _error(f"{member.name} is not JSON: {str(error)[:200]}", path) from error


def _error(problem: str, path: Path) -> AzoraError:
    return NotTrueError(
        "Image archive is refused",
        what=f"{problem}; nothing of it was loaded",
        where=str(path),
        next_step="find out what the application's build does to the daemon or the archive; re-run all jobs",
    )
