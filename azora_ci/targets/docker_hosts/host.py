"""One production host: a Docker daemon behind an SSH connection, its containers and images.

Protocol: the Docker Engine API, spoken by the Docker SDK.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from azora_ci.clients.docker import engine
from azora_ci.core.config import DockerHostsSettings as HostSettings
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.targets.base import TargetContext
from azora_ci.targets.docker_hosts.names import Names

if TYPE_CHECKING:
    from azora_ci.targets.docker_hosts.connection import Connection

LABEL = "world.azora."
PROCESSES = 1024  # and threads, at most in a container
IN_USE = 409  # the daemon's status for an image that a container is made of
API_SECONDS = 60.0  # limit for one answer of the daemon


@dataclass(frozen=True)
class Cage:
    """What a container may not do. ``drop`` and ``add`` are capabilities; with ``read_only`` it can write to volumes and /tmp only."""

    drop: tuple[str, ...] = ("ALL",)
    add: tuple[str, ...] = ()
    read_only: bool = False


CLOSED = Cage()


class DockerHost:
    """A connected host. Call ``open`` first; ``ensure`` opens a lost connection again."""

    def __init__(self, connection: Connection, settings: HostSettings, context: TargetContext) -> None:
        self.name = str(connection.address)
        self.names = Names(settings.name)
        self._connection, self._settings, self._context = connection, settings, context
        self._client: Any = None
        self._connection_lock, self._client_lock = threading.Lock(), threading.Lock()
        self._closed = False

    @property
    def connection(self) -> Connection:
        """Return the SSH connection, for checks of the connection itself."""
        return self._connection

    # --- connection ----------------------------------------------------------------------------------------------------

    def open(self, attempts: int | None = None) -> None:
        """Connect. ``attempts`` limits how often an error is retried where that can help. Raises the errors of ``tunnel.explain``."""
        with self._connection_lock:
            self._connection.open(attempts)

    def ensure(self) -> None:
        """Open the connection again if it was lost. Raises UnreachableError when that fails."""
        with self._connection_lock:
            if self._closed:
                raise UnreachableError(
                    "Connection is closed", what="the run ends", where=self.name, next_step="nothing: it was closed by us"
                )
            earlier_openings = self._connection.openings
            self._connection.ensure()
            if self._closed:  # by another thread while this one connected
                self._connection.close()
            if self._connection.openings != earlier_openings:
                self._client = None  # its pooled connections are dead

    def close(self) -> None:
        """End the connection for good; a thread that waits for it to be opened again gives up."""
        self._closed = True
        self._connection.close()

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        """Connect to an address as seen from the host; a ``probes.Dial``."""
        return self._connection.dial((host, port), timeout)

    @contextmanager
    def docker(self, doing: str) -> Iterator[Any]:
        """Yield the Docker client. An exception of the SDK becomes UnreachableError; ``doing``, a verb phrase, names what failed."""

        def explained(answer: str, error: Exception) -> UnreachableError:
            return UnreachableError(
                f"Docker did not {doing}",
                what=(answer or f"{type(error).__name__}: {error}")[:1000],
                where=self.name,
                next_step="check dockerd on the host (journalctl -u docker) and its disk; a rerun continues from what is there",
            )

        with engine.translated_errors(explained):
            yield self._docker_client()

    def _docker_client(self) -> Any:
        with self._client_lock:  # containers are stopped by several threads
            client = self._client
            if client is None:
                import docker

                client = docker.DockerClient.__new__(docker.DockerClient)  # whose constructor makes a client of its own
                client.api = engine.open_api(f"unix://{self._connection.docker_socket}", timeout=API_SECONDS)
                self._client = client
            return client

    # --- containers ----------------------------------------------------------------------------------------------------

    def create(  # noqa: PLR0913 - the parts of a container, all by keyword
        self,
        client: Any,
        name: str,
        image: str,
        *,
        command: list[str] | None,
        endpoint: tuple[str, str] | None,
        entrypoint: list[str] | None = None,
        binds: Sequence[str] = (),
        ports: Mapping[int, int] | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        memory: str | None = None,
        files: int | None = None,
        user: str | None = None,
        restart: bool = True,
        cage: Cage = CLOSED,
        hosts: Mapping[str, str] | None = None,
    ) -> Any:
        """Create a container and return it, not started. ``hosts``: name -> address, of other machines as it shall know them.

        ``files``: how many files and connections it may open; None: the daemon's default.

        ``endpoint``: (network, static address), (network, "") for a network that has none to give, None for no network.
        """
        api = client.api
        host_config = api.create_host_config(
            binds=list(binds),
            port_bindings=dict(ports or {}),
            restart_policy={"Name": "unless-stopped"} if restart else None,
            network_mode=endpoint[0] if endpoint else "none",
            mem_limit=memory,
            pids_limit=PROCESSES,
            ulimits=[{"Name": "nofile", "Soft": files, "Hard": files}] if files else None,
            extra_hosts=dict(hosts or {}),
            security_opt=["no-new-privileges"],
            cap_drop=list(cage.drop),
            cap_add=list(cage.add),
            read_only=cage.read_only,
            tmpfs={"/tmp": ""} if cage.read_only else None,  # noqa: S108 - inside the container
            log_config={"Type": "json-file", "Config": {"max-size": "20m", "max-file": "3"}},
        )
        answer = api.create_container(
            image,
            name=name,
            command=command,
            entrypoint=entrypoint,
            user=user,
            environment=dict(env or {}),
            ports=list(ports or {}),
            labels={f"{LABEL}image": image, **(labels or {})},
            host_config=host_config,
            networking_config=_endpoint(api, *endpoint) if endpoint and endpoint[1] else None,
        )
        return client.containers.get(answer["Id"])

    def find_container(self, client: Any, name: str) -> Any:
        """Return the container of this name, or None."""
        from docker.errors import NotFound

        try:
            return client.containers.get(name)
        except NotFound:
            return None

    def remove_container(self, client: Any, name: str) -> None:
        """Remove the container of this name, if there is one: a runner that died before it noted the container left it behind."""
        from docker.errors import NotFound

        with suppress(NotFound):
            client.containers.get(name).remove(force=True)

    # --- images --------------------------------------------------------------------------------------------------------

    def has_image(self, reference: str) -> bool:
        """Return whether the host has an image."""
        from docker.errors import ImageNotFound

        with self.docker("look for an image") as client:
            try:
                client.images.get(reference)
            except ImageNotFound:
                return False
            return True

    def require_image(self, reference: str) -> None:
        """Raise NotTrueError when the host neither has an image nor is told by the image's registry that it may pull it."""
        from docker.errors import APIError

        if self.has_image(reference):
            return
        with self.docker("ask a registry") as client:
            try:
                client.api.inspect_distribution(reference, auth_config=self._registry_auth(reference))
            except APIError as error:
                raise self._missing(reference, str(error.explanation or error)) from error

    def runs_as_root(self, reference: str) -> bool:
        """Return whether a container of an image that is on the host runs as root."""
        with self.docker("look at an image") as client:
            user = str((client.images.get(reference).attrs.get("Config") or {}).get("User") or "")
        return user.partition(":")[0] in {"", "0", "root"}

    def drop_image(self, reference: str) -> None:
        """Remove an image unless a container, running or stopped, is made of it."""
        from docker.errors import APIError, NotFound

        with self.docker("remove an image") as client:
            try:
                client.api.remove_image(reference)
            except NotFound:
                return
            except APIError as error:
                if error.response is None or error.response.status_code != IN_USE:
                    raise

    def pull(self, reference: str, checkpoint: Callable[[], None] = lambda: None) -> None:
        """Pull an image by its digest unless the host has it; only this call has credentials. Raises NotTrueError when it fails."""
        if self.has_image(reference):
            return
        with self.docker("pull an image") as client:
            repository, separator, digest = reference.partition("@")
            if not separator:
                raise self._missing(reference, "it is not on the host, and an image id cannot be pulled")
            self._context.log.say(f"{self.name}: pulling {reference}")
            problem = ""
            for answer in engine.pull(client.api, repository, digest, self._registry_auth(reference)):
                problem = str(answer.get("error") or problem)
                checkpoint()
            if problem:
                raise self._missing(reference, problem)

    def _registry_auth(self, reference: str) -> dict[str, str] | None:
        """Return the login for an image; it belongs to the configured registry, and edge and guard may come from another one."""
        access, registry = self._context.access, self._context.config.registry
        login = access.registry_login if access is not None and registry is not None and registry.holds(reference) else None
        return {"username": login[0].reveal(), "password": login[1].reveal()} if login else None

    def _missing(self, reference: str, problem: str) -> NotTrueError:
        return NotTrueError(
            "An image cannot be pulled",
            what=f"{reference}: {problem[:500]}",
            where=self.name,
            next_step="check that build-and-push pushed it, that the host reaches the registry, and its login, PULL_USERNAME",
        )


def _endpoint(api: Any, network: str, address: str) -> Any:
    return api.create_networking_config({network: api.create_endpoint_config(ipv4_address=address)})
