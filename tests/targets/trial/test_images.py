"""A service of an image, started apart with a real dockerd and registry: a door, a window, and nothing else; nothing of it stays."""

from __future__ import annotations

import io
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.process.isolation import Door, Isolation
from azora_ci.core.variables import Secret
from azora_ci.health.probes import ProbeRequest, fetch
from azora_ci.rehearsal.docker import local_images
from azora_ci.targets.registry import kind_of
from azora_ci.targets.release import Release
from azora_ci.targets.trial.base import Apart, Means, Started
from azora_ci.targets.trial.images import LABEL
from tests.support import deploy_config
from tests.support.docker_engine import PASSWORD, USER
from tests.support.waiting import until

SERVER = """
import http.server, os, socket
def tried(host, port):
    try:
        with socket.create_connection((host, port), 3) as talk:
            talk.sendall(b"hello")
            return talk.recv(100).decode()
    except OSError as error:
        return type(error).__name__
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            os._exit(7)
        rights = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "NoNewPrivs"))]
        found = [AT_START, tried("127.0.0.1", OUTSIDE), tried("1.1.1.1", 443), *rights, os.environ["VERSION"], os.environ["GIVEN"]]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(" ".join(found).encode())
AT_START = tried("127.0.0.1", 5432)
print("canary-row", flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def door() -> Iterator[Door]:
    """Yield a door behind which a Unix socket answers each line with itself, owned by another user as PostgreSQL's is."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/s")
        os.chown(f"{folder}/s", 65534, 65534)
        os.chown(folder, 65534, 65534)
        server.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.sendall(client.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        yield Door(Path(folder) / "s", 5432)


class Production:
    """A registry with the image of a service of v1.0.0, and what starts it apart."""

    def __init__(self, folder: Path, docker_host: str, registry: str, outside: int) -> None:
        self.stream = io.StringIO()
        processes = Processes(JobLog(Actions(stream=self.stream), Clock(), folder / "log"))
        self.client = docker.DockerClient(base_url=docker_host)
        tag = f"{registry}/azora/api:v1.0.0"
        local_images.python(self.client, processes, tag)
        auth = {"username": USER, "password": PASSWORD}
        lines = list(self.client.api.push(f"{registry}/azora/api", tag="v1.0.0", stream=True, decode=True, auth_config=auth))
        digest = next(line["aux"]["Digest"] for line in lines if "aux" in line)
        self.client.images.remove(tag, force=True)
        service = deploy_config.service("API", command=["-c", SERVER.replace("OUTSIDE", str(outside))])
        loaded = config.load(deploy_config.write(folder / "deploy.toml", services={"api": service}))
        target = replace(loaded.target, kind="docker_hosts")
        self.config = replace(loaded, target=target, registry=config.RegistrySettings(f"{registry}/azora", insecure=True))
        self.release = Release("1763000000-0f0f0f", "v1.0.0", {"api": digest})
        means = Means(
            self.config, processes, Clock(), lambda folder: Isolation(folder, folder), docker_host, (Secret(USER), Secret(PASSWORD))
        )
        self.apart: Apart = kind_of(self.config).apart(means)

    def left(self) -> list[str]:
        images = sorted(map(str, self.client.images.list()))  # the engine sorts by seconds, in which several may be made
        return [container.name for container in self.client.containers.list(all=True)] + images


def ask(started: Started, path: str = "/") -> str:
    return fetch(ProbeRequest(f"http://localhost{path}", dial=started.dial), 10, Clock()).body.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="starts dockerd")
def test_an_image_reaches_the_door_and_nothing_else_and_nothing_of_it_stays(
    tmp_path: Path, docker_engine: str, private_registry: str, door: Door
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        production = Production(tmp_path, docker_engine, private_registry, outside.getsockname()[1])
        image = local_images.load(production.client, "of-a-killed-run:1", local_images.archive({}), entrypoint=["/x"])
        before = production.left()
        production.client.api.create_container(image, name="of-a-killed-run", labels={LABEL: "999999999"})
        service = production.config.service("api")
        with production.apart.started(service, production.release, {"GIVEN": "given"}, door) as started:
            until(lambda: ask(started), "the service answers", 30)
            found = ask(started).split()
            assert found == ["hello", "ConnectionRefusedError", "OSError", "0" * 16, "1", "1.0.0", "given"]
            assert started.ended() is None
            containers = production.client.containers.list()
            assert {container.attrs["HostConfig"]["LogConfig"]["Type"] for container in containers} == {"none"}
            assert "of-a-killed-run" not in production.left()
            ask(started, "/end")
            until(started.ended, "it has ended", 20)
            assert started.ended() == "its container ended, exit code 7"
        assert production.left() == before
        assert "canary-row" not in production.stream.getvalue() + (tmp_path / "log").read_text(encoding="utf-8")

        def cancelled() -> None:
            with production.apart.started(service, production.release, {"GIVEN": "given"}, door):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cancelled()
        assert production.left() == before
