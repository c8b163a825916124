"""A folder as one file: what must survive, and what a hostile archive must not reach."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import tree


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A folder as npm leaves it: a program, a link to it in .bin, a workspace link, empty and hidden things."""
    folder = tmp_path / "application"
    (folder / "node_modules" / ".bin").mkdir(parents=True)
    (folder / "node_modules" / "prisma").mkdir()
    (folder / "node_modules" / "prisma" / "index.js").write_text("program\n", encoding="utf-8")
    (folder / "node_modules" / "prisma" / "index.js").chmod(0o755)
    (folder / "node_modules" / ".bin" / "prisma").symlink_to("../prisma/index.js")
    (folder / "packages" / "shared").mkdir(parents=True)
    (folder / "node_modules" / "shared").symlink_to("../packages/shared")
    (folder / "empty").mkdir()
    (folder / ".env.example").write_text("A=1\n", encoding="utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("token\n", encoding="utf-8")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_npm_installed_survives(application: Path, tmp_path: Path) -> None:
    os.link(application / ".env.example", application / "same")
    packed = tree.pack(application, tmp_path / "tree.tar.zst")
    content = (tmp_path / "tree.tar.zst").read_bytes()
    assert (packed.sha256, packed.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert tree.unpack(tmp_path / "tree.tar.zst", tmp_path / "copy", packed.sha256) == packed.entries == 11
    copy = tmp_path / "copy"
    assert names(copy) == [name for name in names(application) if not name.startswith(".git")]
    assert (copy / "node_modules" / ".bin" / "prisma").readlink() == Path("../prisma/index.js")
    assert os.access(copy / "node_modules" / ".bin" / "prisma", os.X_OK)
    assert (copy / "node_modules" / "shared").resolve() == copy / "packages" / "shared"
    assert (copy / "same").read_text(encoding="utf-8") == "A=1\n"
    assert not (tmp_path / "copy.part").exists()


def test_what_does_not_belong_into_the_tree_is_left_out(application: Path, tmp_path: Path) -> None:
    (application / "outside").symlink_to("../../etc")
    (application / "absolute").symlink_to(application / "empty")
    (application / "loop").symlink_to("loop")
    (application / "program").write_text("x", encoding="utf-8")
    (application / "program").chmod(0o4755)
    os.mkfifo(application / "pipe")
    lines: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(application / "s"))
        packed = tree.pack(application, application / "tree.tar.zst", ["packages/shared", "empty"], lines.append)
    tree.unpack(application / "tree.tar.zst", tmp_path / "copy", packed.sha256)
    assert packed.left_out == ("absolute", "outside")
    copied = names(tmp_path / "copy")
    assert not {"outside", "absolute", "pipe", "s", "empty", "packages/shared", ".git", "tree.tar.zst"} & set(copied)
    assert stat.S_IMODE((tmp_path / "copy" / "program").stat().st_mode) == 0o755


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.mode, header.size = kind, link, mode, len(content)
    return header, content


def archive(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> str:
    """Write an archive of just these entries and return its SHA-256."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as writer:
        for header, content in entries:
            writer.addfile(header, io.BytesIO(content))
    path.write_bytes(zstandard.compress(plain.getvalue()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


FOLDER = entry("d", tarfile.DIRTYPE, mode=0o755)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry("/etc/cron.d/x")], "no name inside"),
        ([entry("../x")], "no name inside"),
        ([FOLDER, entry("d/../../x")], "no name inside"),
        ([entry("x" * 1025)], "no name inside"),
        ([entry("l", tarfile.SYMTYPE, "/etc")], "leads outside"),
        ([entry("l", tarfile.SYMTYPE, "../outside")], "outside"),
        ([entry("l", tarfile.SYMTYPE, "d"), FOLDER, entry("l/x")], "before its folder"),
        ([FOLDER, entry("d", tarfile.SYMTYPE, "..")], "twice"),
        ([entry("h", tarfile.LNKTYPE, "../outside")], "hard link to something"),
        ([entry("h", tarfile.LNKTYPE, "/etc/passwd")], "leads outside"),
        ([entry("l", tarfile.SYMTYPE, "x"), entry("h", tarfile.LNKTYPE, "l")], "hard link to something"),
        ([entry("null", tarfile.CHRTYPE)], "neither file"),
        ([entry("pipe", tarfile.FIFOTYPE)], "neither file"),
        ([entry("s", mode=0o4755)], "4755"),
        ([entry("s", mode=0o2755)], "2755"),
        ([entry("a", content=b"x" * 101)], "more than 100 bytes"),
        ([entry("a", content=b"x" * 60), entry("b", content=b"x" * 60)], "more than 100 bytes"),
        ([entry(str(number)) for number in range(6)], "5 entries"),
    ],
)
def test_a_hostile_entry(tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], reason: str) -> None:
    (tmp_path / "outside").write_text("untouched", encoding="utf-8")
    digest = archive(tmp_path / "a", *entries)
    with pytest.raises(NotTrueError, match=reason) as caught:
        tree.unpack(tmp_path / "a", tmp_path / "copy", digest, most_bytes=100, most_entries=5)
    assert caught.value.title == "The tree is refused"
    assert names(tmp_path) == ["a", "outside"]
    assert (tmp_path / "outside").read_text(encoding="utf-8") == "untouched"


def test_links_that_lead_outside_only_together(tmp_path: Path) -> None:
    """``out`` is harmless when it is written; ``a/b/up``, which comes later, turns it into ``../x``."""
    digest = archive(
        tmp_path / "a",
        entry("out", tarfile.SYMTYPE, "a/b/up/../x"),
        entry("a", tarfile.DIRTYPE, mode=0o755),
        entry("a/b", tarfile.DIRTYPE, mode=0o755),
        entry("a/b/up", tarfile.SYMTYPE, "../.."),
    )
    with pytest.raises(NotTrueError, match="'out' is a link that leads outside"):
        tree.unpack(tmp_path / "a", tmp_path / "copy", digest)
    assert names(tmp_path) == ["a"]


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    digest = archive(tmp_path / "a", entry("x" * 70_000))
    with pytest.raises(NotTrueError, match="extended header"):
        tree.unpack(tmp_path / "a", tmp_path / "copy", digest)


def test_another_file_than_the_one_that_was_built(application: Path, tmp_path: Path) -> None:
    packed = tree.pack(application, tmp_path / "a")
    archive(tmp_path / "b", entry("x", content=b"planted"))
    with pytest.raises(NotTrueError, match="not the one that was built"):
        tree.unpack(tmp_path / "b", tmp_path / "copy", packed.sha256)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"no archive"])
def test_a_damaged_archive(application: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Its digest is right: the job that packed it recorded what it had written."""
    tree.pack(application, tmp_path / "a")
    content = damage((tmp_path / "a").read_bytes())
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(NotTrueError, match="The tree is refused"):
        tree.unpack(tmp_path / "a", tmp_path / "copy", hashlib.sha256(content).hexdigest())
    assert not (tmp_path / "copy").exists()
