from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from azora_ci.clients.docker import build_context
from azora_ci.core.errors import BadInputError


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def pack(folder: Path, *, self_contained: bool = True) -> bytes:
    stream = io.BytesIO()
    build_context.write(folder, build_context.members(folder, dockerfile="Dockerfile"), stream, self_contained=self_contained)
    return stream.getvalue()


FILES = {"server.js": "serve()", "lib/a.js": "a", "lib/b.js": "b", "node_modules/x/index.js": "x"}


def test_same_content_gives_the_same_bytes_whatever_times_order_and_modes(tmp_path: Path) -> None:
    original = fill(tmp_path / "one", FILES)
    copy = fill(tmp_path / "elsewhere" / "two", dict(reversed(FILES.items())))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    (copy / "server.js").chmod(0o600)
    os.link(copy / "lib" / "a.js", tmp_path / "another-name-of-a")
    assert pack(original) == pack(copy)
    assert pack(original)[4:8] == bytes(4)  # the time in the gzip header
    names = build_context.members(original, dockerfile="Dockerfile")
    assert names == sorted(names)


@pytest.mark.parametrize("change", ["content", "name", "executable", "extra", "empty folder", "link"])
def test_other_content_gives_another_digest(tmp_path: Path, change: str) -> None:
    folder = fill(tmp_path / "context", FILES)
    before = pack(folder)
    match change:
        case "content":
            (folder / "lib" / "a.js").write_text("A")
        case "name":
            (folder / "lib" / "a.js").rename(folder / "lib" / "c.js")
        case "executable":
            (folder / "server.js").chmod(0o755)
        case "extra":
            (folder / "more").write_text("")
        case "empty folder":
            (folder / "data").mkdir()
        case "link":
            (folder / "latest.js").symlink_to("server.js")
    assert pack(folder) != before


def test_what_is_unpacked_is_what_was_packed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "context", {**FILES, "lib/" + "n" * 120 + "/ü.txt": "long"})
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o750)
    (folder / "bin").mkdir()
    (folder / "bin" / "run").symlink_to("../run")
    with tarfile.open(fileobj=io.BytesIO(pack(folder)), mode="r:gz") as tar:
        assert {(member.uid, member.gid, member.mtime, member.uname) for member in tar} == {(0, 0, 0, "")}
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert (tmp_path / "unpacked" / "bin" / "run").read_text() == "#!/bin/sh\n"
    assert os.access(tmp_path / "unpacked" / "run", os.X_OK)
    assert (tmp_path / "unpacked" / "lib" / ("n" * 120) / "ü.txt").read_text() == "long"


def test_dockerignore_decides_and_node_modules_stays_otherwise(tmp_path: Path) -> None:
    files = {
        **FILES,
        ".git/HEAD": "",
        ".env": "secret",
        "lib/a.test.js": "",
        "docs/guide.md": "",
        "docs/keep.md": "",
        "Dockerfile": "FROM scratch",
    }
    folder = fill(tmp_path / "context", files)
    everything = build_context.members(folder, dockerfile="Dockerfile")
    assert "node_modules/x/index.js" in everything
    assert not [name for name in everything if name.startswith(".git")]
    (folder / ".dockerignore").write_text("# comment\n\n.env\n**/*.test.js\ndocs/*\n!docs/keep.md\nDockerfile\nnode_modules\n")
    names = build_context.members(folder, dockerfile="Dockerfile")
    assert {name for name in names if (folder / name).is_file()} == {
        ".dockerignore", "Dockerfile", "docs/keep.md", "lib/a.js", "lib/b.js", "server.js",
    }  # fmt: skip


def test_own_folders_are_left_out(tmp_path: Path) -> None:
    folder = fill(tmp_path / "repository", {**FILES, "deployment-logs/build.log": "grows"})
    names = build_context.members(folder, dockerfile="Dockerfile", left_out=[folder / "deployment-logs", tmp_path / "elsewhere"])
    assert not [name for name in names if name.startswith("deployment-logs")]
    assert "server.js" in names


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "lib/../../secret", "../../../secret"])
def test_a_link_that_leads_out_is_refused_where_nothing_else_comes_along(tmp_path: Path, target: str) -> None:
    folder = fill(tmp_path / "context", FILES)
    (folder / "link").symlink_to(target)
    with pytest.raises(BadInputError, match="leads out of the build context"):
        pack(folder)
    assert pack(folder, self_contained=False)


def test_a_special_file_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "context", FILES)
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadInputError, match="pipe is neither file, folder nor link"):
        pack(folder)


def test_stored_archive_is_named_by_its_digest(tmp_path: Path) -> None:
    folder = fill(tmp_path / "context", FILES)
    names = build_context.members(folder, dockerfile="Dockerfile")
    archive, path, reused = build_context.store(folder, names, tmp_path / "archives")
    hexadecimal = hashlib.sha256(path.read_bytes()).hexdigest()
    assert archive.digest == build_context.digest_of(path) == f"sha256:{hexadecimal}"
    assert path == tmp_path / "archives" / f"sha256-{hexadecimal}.tar.gz"
    assert (archive.size_bytes, reused) == (path.stat().st_size, False)
    assert build_context.store(folder, names, tmp_path / "archives") == (archive, path, True)
    assert [file.name for file in (tmp_path / "archives").iterdir()] == [path.name]


def test_a_damaged_stored_archive_is_replaced(tmp_path: Path) -> None:
    folder = fill(tmp_path / "context", FILES)
    names = build_context.members(folder, dockerfile="Dockerfile")
    archive, path, _ = build_context.store(folder, names, tmp_path / "archives")
    path.write_bytes(path.read_bytes()[:-1])
    assert build_context.store(folder, names, tmp_path / "archives") == (archive, path, False)
    assert build_context.digest_of(path) == archive.digest


def test_a_refused_context_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = fill(tmp_path / "context", FILES)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadInputError):
        build_context.store(folder, build_context.members(folder, dockerfile="Dockerfile"), tmp_path / "archives")
    assert list((tmp_path / "archives").iterdir()) == []


@pytest.mark.parametrize(
    ("context", "reason"), [("../other", "leads out"), ("absent", "No build context"), ("server.js", "No build context")]
)
def test_a_context_must_be_a_folder_of_the_repository(tmp_path: Path, context: str, reason: str) -> None:
    fill(tmp_path / "other", FILES)
    with pytest.raises(BadInputError, match=reason):
        build_context.context_folder(Path(context), fill(tmp_path / "repository", FILES))


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="absent"):
        build_context.write(fill(tmp_path / "context", FILES), ["absent"], io.BytesIO(), self_contained=True)


def test_a_socket_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "context", FILES)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path may have 107 characters at most
        try:
            listener.bind("s")
        finally:
            os.chdir(here)
        with pytest.raises(BadInputError, match="special file"):
            pack(folder)
