"""A Docker daemon and registries of our own, from the packages docker.io and docker-registry; only our own processes are ended."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import docker.errors

from tests.support.waiting import until

BUSYBOX = next(Path(path) for path in ("/bin/busybox", "/usr/bin/busybox") if Path(path).exists())  # busybox-static
USER, PASSWORD = "release-bot", "a-secret-password"
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuuIpJ1uFPV0WxgPmvlzhlFsc9wEykNZLO\n"  # bcrypt of PASSWORD


@contextmanager
def running(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block; SIGTERM, then SIGKILL."""
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@contextmanager
def engine(*, bridge: bool = False) -> Iterator[str]:
    """Start a daemon with folders of its own and without a network; give its address.

    With ``bridge`` it has a network namespace of its own, cut off from everything, and in it the bridge that RUN needs.
    """
    folder = Path(tempfile.mkdtemp(prefix="dk"))  # short: a socket's path may have 107 characters at most
    url = f"unix://{folder}/s"
    argv = ["dockerd", "--data-root", f"{folder}/d", "--exec-root", f"{folder}/e", "--pidfile", f"{folder}/p", "-H", url]
    argv += ["--iptables=false", "--ip-forward=false", "--ip-masq=false", *([] if bridge else ["--bridge=none"])]
    argv = ["unshare", "--net", *argv] if bridge else argv
    try:
        with running(argv, folder / "log") as process:

            def answers() -> bool:
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                return (folder / "s").exists() and _pong(url)

            until(answers, "dockerd answers", 60)
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def saved(url: str, *names: str) -> bytes:
    """Return what ``docker save`` writes of images."""
    return subprocess.run(["docker", "-H", url, "save", *names], check=True, stdout=subprocess.PIPE, timeout=60).stdout


def _pong(url: str) -> bool:
    try:
        client = docker.DockerClient(base_url=url, timeout=10)
    except docker.errors.DockerException:
        return False
    client.close()
    return True


@contextmanager
def registry(folder: Path, *, login: bool = False, address: str = "127.0.0.1", auth: str = "") -> Iterator[str]:
    """Start a registry on a port of the kernel's choice; give its ``host:port``. ``auth``: another way to log in, as its YAML says it."""
    text = f"version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{address}:0'}}\n"
    if login:
        (folder / "htpasswd").write_text(HTPASSWD)
        text += f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    text += f"auth: {auth}\n" if auth else ""
    (folder / "registry.yml").write_text(text)
    log = folder / "log"
    with running(["docker-registry", "serve", f"{folder}/registry.yml"], log) as process:
        until(lambda: f"listening on {address}:".encode() in log.read_bytes() or process.poll() is not None, "docker-registry listens")
        listening = re.search(rf"listening on ({re.escape(address)}:[0-9]+)", log.read_text())
        assert listening, log.read_text()[-3000:]
        yield listening[1]
