"""Side by side: what the same service costs its users when a host's container is replaced by ``docker-compose up -d`` over SSH.

The host, its sshd, the service, its database and the load are those of the other scenes. The compose file names one container with
a published port, as compose projects on one host do. Where docker-compose is not installed, the container is stopped and started
over the Docker API in the same order, and the figures say so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import Child
from azora_ci.health.probes import ProbeRequest, fetch
from azora_ci.targets.docker_hosts.names import Names
from tests.bench.rollout import scenes
from tests.bench.rollout.scenes import Size
from tests.bench.rollout.world import SERVICE, Client, until

PROJECT = "side-by-side"
PORT, PUBLISHED = 8080, 8001
REQUESTS = 20_000  # at most
AROUND = 2.0  # seconds of load before
UP_SECONDS = 120.0
EMULATED = "emulated over the Docker API: docker-compose is not installed"


class HostsWorld(scenes.World, Protocol):
    """Hosts, as far as this scene needs them."""

    machines: list[Any]
    reference: str
    mounts: list[str]
    database_url: str
    folder: Path


class Compose:
    """docker-compose against a host's Docker socket, which a real OpenSSH connection forwards."""

    def __init__(self, world: HostsWorld, docker_host: str, file: Path) -> None:
        self._world, self._docker_host, self._file = world, docker_host, file
        version = world.processes.run(("docker-compose", "version", "--short"), echo=False, timeout=UP_SECONDS)
        self.name = f"docker-compose {version.stdout.strip()} over SSH"

    def up(self, version: str) -> None:
        """Bring the project to a version, as a deployment script does."""
        self._file.write_text(json.dumps(_project(self._world, version)), encoding="utf-8")
        self._run("up", "-d")

    def down(self) -> None:
        """Remove the project."""
        self._run("down", "--timeout", "1")

    def _run(self, *words: str) -> None:
        argv = ("docker-compose", "--project-name", PROJECT, "--file", str(self._file), *words)
        self._world.processes.run(argv, env={"DOCKER_HOST": self._docker_host}, echo=False, timeout=UP_SECONDS)


class Emulated:
    """What compose does, over the Docker API: stop and remove, create and start."""

    name = EMULATED

    def __init__(self, world: HostsWorld) -> None:
        self._world = world
        self._running: Any = None

    def up(self, version: str) -> None:
        """Replace the container."""
        self.down()
        service = _project(self._world, version)["services"][SERVICE]
        self._running = self._world.machines[0].client.containers.run(
            service["image"],
            name=PROJECT,
            detach=True,
            network=Names().network(SERVICE),
            ports={PORT: PUBLISHED},
            environment=service["environment"],
            volumes=service["volumes"],
        )

    def down(self) -> None:
        """Stop and remove the container."""
        if self._running is not None:
            self._running.stop(timeout=5)
            self._running.remove(force=True)
            self._running = None


def _project(world: HostsWorld, version: str) -> dict[str, Any]:
    """Return the compose file, as a document; JSON is YAML."""
    service = {
        "image": world.reference,
        "environment": {"PORT": str(PORT), "HOST": "0.0.0.0", "VERSION": version, "DATABASE_URL": world.database_url},
        "ports": [f"{PUBLISHED}:{PORT}"],
        "volumes": world.mounts,
        "stop_grace_period": "5s",
    }
    return {"version": "3.8", "services": {SERVICE: service}, "networks": {"default": {"external": {"name": Names().network(SERVICE)}}}}


@contextmanager
def deployer(world: HostsWorld) -> Iterator[Compose | Emulated]:
    """Provide what replaces the container; the container is removed at the end."""
    if shutil.which("docker-compose") is None:
        project: Compose | Emulated = Emulated(world)
        connection = None
    else:
        connection, docker_host = connect(world)
        project = Compose(world, docker_host, world.folder / "docker-compose.yml")
    try:
        yield project
    finally:
        try:
            project.down()
        finally:
            if connection is not None:
                connection.end()


def connect(world: HostsWorld) -> tuple[Child, str]:
    """Open an SSH connection to the first host that forwards its Docker socket; return it and ``DOCKER_HOST``."""
    sshd, socket = world.machines[0].sshd, Path(world.machines[0].folder) / "compose"
    known_hosts = world.folder / "compose-known-hosts"
    known_hosts.write_text(sshd.known_hosts, encoding="utf-8")
    options = ("BatchMode=yes", "ExitOnForwardFailure=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known_hosts}")
    flags = tuple(word for option in options for word in ("-o", option))
    argv = ("ssh", "-F", "none", "-N", "-T", "-i", str(sshd.key_file), *flags, "-L", f"{socket}:/var/run/docker.sock")
    connection = world.processes.start((*argv, "-l", sshd.user, sshd.address))
    until(lambda: socket.exists() or connection.poll() is not None, "ssh forwards the Docker socket", world.clock)
    if connection.poll() is not None:
        raise NotTrueError("ssh ended", what=connection.stderr_text[-1000:], where=sshd.address, next_step="read its message")
    return connection, f"unix://{socket}"


def compose(world: HostsWorld, size: Size) -> dict[str, Any]:
    """Replace 1.0.0 by 1.1.0 under load, and count who got no answer."""
    address = world.machines[0].address
    request = ProbeRequest(f"http://{address}:{PUBLISHED}/health")
    with deployer(world) as project:
        project.up("1.0.0")
        until(lambda: fetch(request, 2, world.clock).status == 200, "the service answers", world.clock)
        requests = min(size.requests, REQUESTS)
        load = Client(world.processes, [(address, PUBLISHED)], rate=size.rate, requests=requests, post_every=size.post_every)
        world.clock.sleep(AROUND)
        begun = world.clock.monotonic()
        project.up("1.1.0")
        seconds = world.clock.monotonic() - begun
        until(lambda: fetch(request, 2, world.clock).status == 200, "the service answers again", world.clock)
        world.clock.sleep(AROUND)
        counts = load.finish(120)
    return {
        "compose": project.name,
        "compose_requests": counts["sent"].get("GET", 0),
        "compose_failed": counts["failed"].get("GET", 0),
        "compose_posts": counts["sent"].get("POST", 0),
        "compose_posts_failed": counts["failed"].get("POST", 0),
        "compose_up_seconds": round(seconds, 1),
        "versions": counts["versions"],
        **scenes.account(counts),
    }
