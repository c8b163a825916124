"""Archives of images between two jobs: what a real daemon saves and loads, and what a hostile writer may try."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import zstandard

from azora_ci.clients.docker import image_archive
from azora_ci.clients.docker.images import Docker
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from tests.support.docker_engine import BUSYBOX, saved

REFERENCE = "registry.example/azora/api_gateway:v1.2.3"
CONFIG = json.dumps({"config": {"Labels": {"a": "b"}}, "rootfs": {"type": "layers", "diff_ids": []}}).encode()
Members = dict[str, bytes | tarfile.TarInfo]


def manifest(**changes: Any) -> bytes:
    return json.dumps([{"Config": "c.json", "RepoTags": [REFERENCE], "Layers": ["1/layer.tar"]} | changes]).encode()


def members(**changes: Any) -> Members:
    return {"1/layer.tar": b"layer", "c.json": CONFIG, "manifest.json": manifest(), **changes}


def tar(*parts: Members) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in [pair for part in parts for pair in part.items()]:
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                content.name = name
                archive.addfile(content)
    return stream.getvalue()


def link(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def written(folder: Path, content: bytes) -> Path:
    image_archive.write([content[:100], content[100:]], folder / "image.tar.zst")
    return folder / "image.tar.zst"


def loaded(path: Path) -> tarfile.TarFile:
    """Return what the daemon would get of an archive."""
    with image_archive.opened(path, REFERENCE) as image:
        return tarfile.open(fileobj=io.BytesIO(b"".join(image.chunks(REFERENCE))))


def test_the_one_image_of_an_archive(tmp_path: Path) -> None:
    with image_archive.opened(written(tmp_path, tar(members())), REFERENCE) as image:
        assert image.image_id == f"sha256:{hashlib.sha256(CONFIG).hexdigest()}"
        assert image.labels == {"a": "b"}


def test_nothing_but_the_named_image_reaches_the_daemon(tmp_path: Path) -> None:
    extra: Members = {
        "index.json": b'{"manifests": [{"annotations": {"io.containerd.image.name": "evil:1"}}]}',
        "oci-layout": b"{}",
        "repositories": b'{"evil": {"latest": "1"}}',
        "1/json": b"{}",
        "2/layer.tar": link("../1/layer.tar"),
    }
    path = written(tmp_path, tar(members(**{"manifest.json": manifest(Layers=["1/layer.tar", "2/layer.tar"])}), extra))
    with loaded(path) as archive:
        configuration = f"{hashlib.sha256(CONFIG).hexdigest()}.json"
        assert archive.getnames() == [configuration, "manifest.json", "0/layer.tar", "1/layer.tar"]
        file = archive.extractfile("manifest.json")
        assert file is not None
        expected = {"Config": configuration, "RepoTags": [REFERENCE], "Layers": ["0/layer.tar", "1/layer.tar"]}
        assert json.loads(file.read()) == [expected]
        assert {archive.extractfile(name).read() for name in expected["Layers"]} == {b"layer"}  # type: ignore[union-attr] # files


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (tar(members(**{"manifest.json": manifest(RepoTags=["evil.example/x:1"])})), "named ['evil.example/x:1'], expected"),
        (tar(members(**{"manifest.json": manifest(RepoTags=[REFERENCE, "evil.example/x:1"])})), "expected registry.example"),
        (tar(members(**{"manifest.json": manifest(RepoTags=None)})), "named None"),
        (tar(members(**{"manifest.json": json.dumps(json.loads(manifest()) * 2).encode()})), "names 2 images, one is expected"),
        (tar(members(**{"manifest.json": b"[]"})), "names 0 images"),
        (tar(members(**{"manifest.json": b'{"Config": "c.json"}'})), "names no images"),
        (tar(members(**{"manifest.json": b"[" * 100_000})), "manifest.json is not JSON"),
        (tar(members(**{"manifest.json": b"\xff"})), "manifest.json is not JSON"),
        (tar(members(**{"manifest.json": manifest(Config="../c.json")})), "names '../c.json', which is no file"),
        (tar(members(**{"manifest.json": manifest(Config=["c.json"])})), "which is no file"),
        (tar(members(**{"manifest.json": manifest(Layers="1")})), "no list of layers"),
        (tar(members(**{"1/layer.tar": link("/etc/passwd")})), "names '1/layer.tar', which is no file"),
        (tar(members(**{"1/layer.tar": link("../../etc/passwd")})), "which is no file"),
        (tar(members(), {"c.json": b"{}"}), "'c.json' is in it twice"),
        (tar({"1/layer.tar": b"layer"}), "names 'manifest.json', which is no file"),
        (tar(members(**{"c.json": b" " * (image_archive.LIMITS.size + 1)})), "at most 8388608 are read"),
        (tar({f"{number}": b"" for number in range(image_archive.MOST_MEMBERS + 1)}), "more than 20000 members"),
        (tar(members())[:700], "unexpected end of data"),
        (b"no archive at all", "it cannot be read"),
    ],
)
def test_refused_archives(content: bytes, refusal: str, tmp_path: Path) -> None:
    with (
        pytest.raises(NotTrueError, match="nothing of it was loaded") as caught,
        image_archive.opened(written(tmp_path, content), REFERENCE),
    ):
        pass
    assert refusal in caught.value.what


def test_what_is_not_compressed_or_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_bytes(tar(members()))
    with pytest.raises(NotTrueError, match="not zstd"), image_archive.opened(tmp_path / "plain", REFERENCE):
        pass
    (tmp_path / "bomb").write_bytes(zstandard.ZstdCompressor().compress(bytes(10**7)))
    monkeypatch.setattr(image_archive, "MOST_BYTES", 10**6)
    with pytest.raises(NotTrueError, match="unpacks to more than 1000000 bytes"), image_archive.opened(tmp_path / "bomb", REFERENCE):
        pass


@pytest.fixture
def image(docker_engine: str, tmp_path: Path) -> Iterator[str]:
    """Import an image into the daemon and give its name."""
    client = docker.DockerClient(base_url=docker_engine)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(BUSYBOX, "bin/busybox")
        archive.add(__file__, tmp_path.name)  # an image of its own
    repository, _, tag = REFERENCE.rpartition(":")
    client.api.import_image_from_data(stream.getvalue(), repository=repository, tag=tag)
    yield REFERENCE
    client.close()


def test_a_real_image_comes_back_with_its_id(image: str, docker_engine: str, tmp_path: Path) -> None:
    client = docker.DockerClient(base_url=docker_engine)
    original = client.images.get(image).id
    door = Docker(docker_engine, credentials=None, log=print, clock=Clock())
    path = written(tmp_path, saved(docker_engine, image))
    assert door._saved_id(image) == original  # what a daemon with another store is asked for
    client.images.remove(image, force=True)
    with image_archive.opened(path, image) as archived:
        assert archived.image_id == original
        door.load(archived.chunks(image), image)
    assert client.images.get(image).id == original == door.image_id(image)
    client.close()


def test_a_layer_that_is_not_the_configurations_is_refused_by_the_daemon(image: str, docker_engine: str, tmp_path: Path) -> None:
    parts: Members = {}
    with tarfile.open(fileobj=io.BytesIO(saved(docker_engine, image))) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            parts[member.name] = tar({"evil": b"x"}) if member.name.endswith("layer.tar") else file.read() if file else member
    client = docker.DockerClient(base_url=docker_engine)
    client.images.remove(image, force=True)
    client.close()
    door = Docker(docker_engine, credentials=None, log=print, clock=Clock())
    with (
        image_archive.opened(written(tmp_path, tar(parts)), image) as archived,
        pytest.raises(NotTrueError, match="Docker refuses the image archive"),
    ):
        door.load(archived.chunks(image), image)
