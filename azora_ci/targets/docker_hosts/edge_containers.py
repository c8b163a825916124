"""What a production host needs besides instances: networks, the volume of the routes, the guard, the wall and the edge.

Every step is idempotent: existing parts are recognised by name and label. An edge whose configuration changed is replaced. All that an
edge knows is on the volume, so the new edge is created and tried while the old one runs, and starts the moment the old one has stopped.
Connections that are open then are closed, and the time without an answer is measured. A runner that dies in that second leaves the host
without an edge until a rerun or ``edge install``, so no edge is replaced while a rollout is under way or being taken back.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import inspect
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azora_ci.core.config import DeployConfig
from azora_ci.core.config import DockerHostsSettings as HostSettings
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.health.probes import DialledConnection
from azora_ci.targets.base import TargetContext
from azora_ci.targets.docker_hosts.connection import DOCKER_SOCKET
from azora_ci.targets.docker_hosts.doors import EARLIER_NETWORK, Door, socket_of
from azora_ci.targets.docker_hosts.host import LABEL, Cage, DockerHost
from azora_ci.targets.docker_hosts.networks import Networks, edge_address
from azora_ci.targets.docker_hosts.wall import Wall
from azora_ci.targets.envoy import config as envoy_config
from azora_ci.targets.envoy import state
from azora_ci.targets.envoy.options import edge_options
from azora_ci.targets.guard import lease, server, store
from azora_ci.targets.guard.client import EDGE_FOLDER

# An earlier version's edge reads bootstrap.json when it starts again: that one stays as it is.
BOOTSTRAP = EDGE_FOLDER / "edge-bootstrap.json"
SOCKET_MODE = 0o660
ANSWER_SECONDS = 15.0  # limit for a new edge to answer
MOST_ANSWER = 64 * 1024  # bytes that are read of it
EDGE_PORT, TLS_PORT = 8080, 8443  # inside its container
FILES, MEMORY = 20_000, "1g"  # of the edge, at most; its heap has a limit of its own below that
TLS_FOLDER = Path("/tls")  # inside the edge's container


def options_of(config: DeployConfig) -> state.EdgeOptions:
    """Return the options of a host's edge, which listens inside its container and reads the certificate from a mounted folder."""
    tls = config.edge.tls
    if tls is None:
        return edge_options(config, None)
    paths = (str(TLS_FOLDER / tls.certificate.name), str(TLS_FOLDER / tls.key.name))
    return edge_options(config, state.EdgeTls(f"0.0.0.0:{TLS_PORT}", *paths, tls.port, tls.redirect_http))


class EdgeContainers:
    """Installs, replaces and removes the edge and the guard of a host."""

    def __init__(self, host: DockerHost, settings: HostSettings, context: TargetContext) -> None:
        self._host, self._settings, self._context = host, settings, context
        self._say, self._clock = context.log.say, context.clock
        self._names = host.names
        self._admin = Door(host, self._names.edge)
        self._networks, self._wall = Networks(host, settings), Wall(host, settings, context.config)
        self._services = {service.id for service in context.config.services}

    def is_installed(self) -> bool:
        """Return whether a guard runs on the host."""
        with self._host.docker("list containers") as client:
            return bool(client.containers.list(filters={"name": f"^/{self._names.guard}$", "status": "running"}))

    def has_another_guard(self) -> bool:
        """Return whether a guard runs on the host that is of another version or configured differently."""
        with self._host.docker("list containers") as client:
            guards = client.api.containers(filters={"name": f"^/{self._names.guard}$", "status": "running"})
        return bool(guards) and guards[0]["Labels"].get(f"{LABEL}guard") != self._guard_digest()

    def pull_guard(self) -> None:
        """Pull the configured guard's image unless the host has it. Raises NotTrueError when it cannot be pulled."""
        self._host.pull(self._settings.guard_image)

    def remove_guard(self) -> None:
        """Remove the guard's container. Its journal and the routes stay on their volume, and the edge goes on."""
        with self._host.docker("remove the guard") as client:
            image = client.containers.get(self._names.guard).labels.get(f"{LABEL}image", self._settings.guard_image)
            client.api.remove_container(self._names.guard, force=True)
        if image != self._settings.guard_image:
            self._host.drop_image(image)

    def _guard_digest(self) -> str:
        parts = (*guard_sources().values(), self._settings.guard_image, f"{self._settings.lease_seconds:g}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def install_guard(self, *, walled: bool) -> None:
        """Create networks, the volume and the guard where they are missing, and start the guard; ``walled``: have the wall stand, too."""
        with self._host.docker("prepare the edge's networks and guard") as client:
            self._networks.ensure(client, self._services)
            client.volumes.create(self._names.edge)
            if walled:
                self._wall.install(client)
            container = self._host.find_container(client, self._names.guard)
            if container is None:
                self._host.pull(self._settings.guard_image)
                container = self._create_guard(client)
            if container.status != "running":
                container.start()

    # --- edge --------------------------------------------------------------------------------------------------------------

    def edge_image(self) -> tuple[str | None, bool]:
        """Return (image of the edge, None without an edge; whether the edge is the configured one)."""
        with self._host.docker("look at the edge") as client:
            edges = client.api.containers(all=True, filters={"name": f"^/{self._names.edge}$"})
        labels = edges[0]["Labels"] if edges else {}
        digests = {self._edge_digest(publish=publish) for publish in (True, False)}
        return labels.get(f"{LABEL}image"), labels.get(f"{LABEL}edge") in digests

    @property
    def ports(self) -> tuple[int, ...]:
        """Return the host's ports that users connect to."""
        return tuple(self._edge_parts(publish=True)["ports"].values())

    def is_published(self) -> bool:
        """Return whether a running edge has the port; during a replacement it may not be renamed to its final name yet."""
        with self._host.docker("look at the edge") as client:
            edges = client.api.containers(filters={"name": f"^/({self._names.edge}|{self._names.next_edge})$", "status": "running"})
        return any(port.get("PublicPort") for edge in edges for port in edge.get("Ports") or [])

    def install_edge(self, *, publish: bool = True, replace: bool = True) -> float | None:
        """Create and start the edge, on the host's ports if ``publish``. An edge of another configuration is replaced if ``replace``.

        The guard must have a first generation: Envoy does not start without its files. Returns the seconds without an answer, None unless
        an edge that had the port was replaced.
        """
        with self._host.docker("start the edge") as client:
            self._finish_replacement(client)
            edge = self._host.find_container(client, self._names.edge)
            if edge is not None and edge.labels.get(f"{LABEL}edge") != self._edge_digest(publish=publish):
                if replace:
                    had_port = self.is_published()
                    seconds = self.replace_edge(publish=publish)
                    return seconds if had_port else None
                self._say(f"{self._host.name}: the edge is not the configured one; it is replaced when nothing is under way")
            if edge is None:
                self._host.pull(self._settings.edge_image)
                edge = self._create_edge(client, self._names.edge, publish=publish)
            self._networks.join(client, edge)  # before an instance starts in a network that is new
            if edge.status != "running":
                edge.start()
            self._drop_earlier_networks(client)
        return None

    def replace_edge(self, *, publish: bool, between: Callable[[], None] = lambda: None) -> float:
        """Replace the edge and return the seconds without an answer. ``between`` is called while no edge runs.

        Raises NotTrueError when the new edge does not come up; then the old one is started again.
        """
        with self._host.docker("replace the edge") as client:
            self._host.pull(self._settings.edge_image)
            self._put_bootstrap(client)
            self._try_edge(client)
            old, new = client.containers.get(self._names.edge), self._create_edge(client, self._names.next_edge, publish=publish)
            self._networks.join(client, new)
            stopped_at = self._clock.monotonic()
            old.stop(timeout=1)
            try:
                between()
                new.start()
                self._await_edge(new, publish=publish)
            except BaseException:
                new.remove(force=True)
                old.start()
                raise
            seconds = self._clock.monotonic() - stopped_at
            old.remove(force=True)
            new.rename(self._names.edge)
            self._drop_earlier_networks(client)
        image = old.labels.get(f"{LABEL}image", self._settings.edge_image)
        if image != self._settings.edge_image:
            self._host.drop_image(image)
        return seconds

    def _finish_replacement(self, client: Any) -> None:
        """Finish, or undo, a replacement whose runner died."""
        containers = client.api.containers(all=True, filters={"name": f"^/{self._names.edge}"})
        names = {name.lstrip("/") for container in containers for name in container["Names"]}
        if self._names.trial in names:
            client.containers.get(self._names.trial).remove(force=True)
        if self._names.next_edge not in names:
            return
        new, old = client.containers.get(self._names.next_edge), self._host.find_container(client, self._names.edge)
        if new.status == "running":
            if old is not None:
                old.remove(force=True)
            new.rename(self._names.edge)
        else:
            new.remove(force=True)

    def _try_edge(self, client: Any) -> None:
        """Let the configured image validate its configuration before the old edge is stopped. Raises NotTrueError."""
        from docker.errors import APIError

        parts = self._edge_parts(publish=False)
        parts["entrypoint"] += ["--mode", "validate"]
        trial = self._host.create(
            client,
            self._names.trial,
            self._settings.edge_image,
            command=[],
            endpoint=None,
            user=self._user(client),
            restart=False,
            **parts,
        )
        try:
            trial.start()
            code = trial.wait(timeout=ANSWER_SECONDS)["StatusCode"]
            log = trial.logs(tail=5).decode(errors="replace")
        except APIError as error:
            raise self._not_up(f"it cannot be started: {str(error.explanation)[:500]}") from error
        finally:
            trial.remove(force=True)
        if code:
            raise self._not_up(f"it ended with {code} when it was tried: {self._context.log.masked(log)[-500:]}")

    def _await_edge(self, container: Any, *, publish: bool) -> None:
        deadline = self._clock.monotonic() + ANSWER_SECONDS
        while not self._answers(publish=publish):
            container.reload()
            if container.status in {"exited", "dead", "restarting"} or self._clock.monotonic() > deadline:
                log = self._context.log.masked(container.logs(tail=5).decode(errors="replace"))
                raise self._not_up(f"it is {container.status} and does not answer: {log[-500:]}")
            self._clock.sleep(0.02)

    def _answers(self, *, publish: bool) -> bool:
        # Envoy is ready also when it refused its listeners, as an older version does with what it does not know.
        if self._asked("/ready") is None or f"{envoy_config.LISTENER}::" not in (self._asked("/listeners") or ""):
            return False
        try:
            for port in self.ports if publish else ():
                self._host.dial("127.0.0.1", port, 2.0).close()
        except (OSError, UnreachableError):
            return False
        return True

    def _asked(self, path: str) -> str | None:
        """Return the admin socket's answer; None without one."""
        connection = DialledConnection("admin", None, 2.0, self._admin.dial)
        try:
            connection.request("GET", path, headers={"connection": "close"})
            answer = connection.getresponse()
            return answer.read(MOST_ANSWER).decode(errors="replace") if answer.status == 200 else None
        except (OSError, http.client.HTTPException, UnreachableError):
            return None
        finally:
            connection.close()

    def _not_up(self, problem: str) -> NotTrueError:
        return NotTrueError(
            "The new edge does not come up",
            what=f"{self._settings.edge_image}: {problem}",
            where=f"{self._host.name}, container {self._names.edge}",
            next_step="correct target.docker_hosts; the edge that was there goes on",
        )

    def _edge_digest(self, *, publish: bool) -> str:
        parts = (self._settings.edge_image, self._edge_parts(publish=publish), str(self._settings.network), self._bootstrap())
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _edge_parts(self, *, publish: bool) -> dict[str, Any]:
        """Return what the edge's container is made of, as keywords of ``DockerHost.create``; when this changes, the edge is replaced."""
        binds, ports = [f"{self._names.edge}:{EDGE_FOLDER}:ro", _socket_bind(self._names.edge)], {EDGE_PORT: self._settings.http_port}
        tls = self._context.config.edge.tls
        if tls is not None:
            binds.append(f"{tls.certificate.parent}:{TLS_FOLDER}:ro")
            ports[TLS_PORT] = tls.port
        return {
            "entrypoint": list(state.command(BOOTSTRAP)),
            "binds": binds,
            "ports": ports if publish else {},
            "files": FILES,
            "memory": MEMORY,
            # Root without capabilities may not read files of others, as a certificate's key may be.
            "cage": Cage(add=("DAC_OVERRIDE",) if tls else (), read_only=True),
        }

    def _create_edge(self, client: Any, name: str, *, publish: bool) -> Any:
        self._put_bootstrap(client)
        return self._host.create(
            client,
            name,
            self._settings.edge_image,
            command=[],
            endpoint=(self._names.front, edge_address(client.networks.get(self._names.front))),
            labels={f"{LABEL}edge": self._edge_digest(publish=publish)},
            user=self._user(client),
            **self._edge_parts(publish=publish),
        )

    def _put_bootstrap(self, client: Any) -> None:
        """Write the edge's bootstrap to the volume, which only the guard can write to."""
        client.containers.get(self._names.guard).put_archive(str(EDGE_FOLDER), _tar(BOOTSTRAP.name, self._bootstrap()))

    def _bootstrap(self) -> str:
        return json.dumps(envoy_config.bootstrap(EDGE_FOLDER, socket_of(self._names.edge), SOCKET_MODE, FILES))

    # --- network and guard ------------------------------------------------------------------------------------------------

    def _user(self, client: Any) -> str:
        """Return user and group of guard and edge: root, and the group of the Docker socket, which their own sockets then have.

        The API does not tell a file's group: a container that is given nothing but the socket's name looks at it.
        """
        # A rollback must not depend on another image than those that are there.
        guard = self._host.find_container(client, self._names.guard)
        image = guard.labels.get(f"{LABEL}image") if guard else self._settings.guard_image
        script = "import os; print(os.stat('/asked').st_gid)"
        self._host.remove_container(client, self._names.asked)
        container = self._host.create(
            client,
            self._names.asked,
            image,
            entrypoint=["python3", "-c", script],
            command=[],
            endpoint=None,
            binds=[f"{DOCKER_SOCKET}:/asked:ro"],
            restart=False,
        )
        try:
            container.start()
            code = container.wait(timeout=ANSWER_SECONDS)["StatusCode"]
            answer = container.logs().decode(errors="replace").strip()
        finally:
            container.remove(force=True)
        if code or not answer.isdecimal():
            raise NotTrueError(
                "The group of Docker's socket is not known",
                what=f"{image} ended with {code}: {answer[-500:]}",
                where=f"{self._host.name}, {DOCKER_SOCKET}",
                next_step="check that target.docker_hosts.guard_image has python3, and that Docker's socket is there",
            )
        return f"0:{answer}"

    def _drop_earlier_networks(self, client: Any) -> None:
        """Remove networks that no instance is in any more, and the one that guard and edge of an earlier version were in."""
        from docker.errors import APIError

        self._networks.drop_unused(client, self._services)
        with contextlib.suppress(APIError):  # still used: by a guard whose lock is held
            for network in client.networks.list(names=[f"^{EARLIER_NETWORK}$"]):
                network.remove()

    def _create_guard(self, client: Any) -> Any:
        container = self._host.create(
            client,
            self._names.guard,
            self._settings.guard_image,
            entrypoint=["python3", "/azora"],
            command=[
                "--folder",
                str(EDGE_FOLDER),
                "--socket",
                str(socket_of(self._names.guard)),
                "--lease-seconds",
                f"{self._settings.lease_seconds:g}",
            ],
            endpoint=None,
            user=self._user(client),
            binds=[f"{self._names.edge}:{EDGE_FOLDER}:rw", _socket_bind(self._names.guard)],
            labels={f"{LABEL}guard": self._guard_digest()},
        )
        for name, text in guard_sources().items():
            container.put_archive("/", _tar(f"azora/{name}", text))
        return container


def _socket_bind(container: str) -> str:
    folder = socket_of(container).parent
    return f"{folder}:{folder}:rw"


def guard_sources() -> dict[str, str]:
    """Return the files of the guard by their path below ``/azora``, where ``python3 /azora`` starts it."""
    parts = {"lease": lease, "server": server, "store": store}
    sources = {f"guard/{name}.py": inspect.getsource(module) for name, module in parts.items()}
    return {"__main__.py": "from guard.server import main\n\nmain()\n", "guard/__init__.py": "", **sources}


def _tar(name: str, text: str) -> bytes:
    buffer, data = io.BytesIO(), text.encode()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in reversed(Path(name).parents[:-1]):
            info = tarfile.TarInfo(str(folder))
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
