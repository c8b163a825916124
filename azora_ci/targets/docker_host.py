"""One production host: a Docker daemon behind an OpenSSH connection. Networks, edge, guard, and instances as containers.

Everything is idempotent: what is there is recognised by name and label. Protocol: Docker Engine API by the Docker SDK.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import ipaddress
import json
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci import envoy, envoy_config, guard, guard_store
from azora_ci.config import DockerHosts as HostSettings
from azora_ci.errors import NotTrueError, UnreachableError
from azora_ci.ssh import Connection, socks_connect
from azora_ci.targets import Wiring
from azora_ci.targets.guarded import EDGE_FOLDER

NETWORK, ADMIN_NETWORK, VOLUME = "azora", "azora-admin", "azora-edge"
EDGE, GUARD = "azora-edge", "azora-guard"
EDGE_PORT, ADMIN_PORT, GUARD_PORT = 8080, 9901, 9902  # inside their containers
FIRST_INSTANCE = 16  # of the network's addresses; the ones before are the gateway's, the edge's, and to spare
LABEL = "world.azora."
API_SECONDS = 60.0  # for one answer of the daemon


@dataclass(frozen=True)
class Addresses:
    """Static addresses of a host's networks."""

    network: ipaddress.IPv4Network
    admin_network: ipaddress.IPv4Network

    @property
    def edge(self) -> str:
        """Return the edge's address among the instances."""
        return str(self.network[2])

    @property
    def admin(self) -> str:
        """Return the address of the edge's admin port."""
        return str(self.admin_network[2])

    @property
    def guard(self) -> str:
        """Return the guard's address."""
        return str(self.admin_network[3])

    def free(self, taken: set[str]) -> str:
        """Return an address for an instance. Raises NotTrueError when all are taken."""
        last = self.network.num_addresses - 1
        found = next((str(self.network[one]) for one in range(FIRST_INSTANCE, last) if str(self.network[one]) not in taken), None)
        if found is None:
            raise NotTrueError(
                "No address is free for an instance",
                what=f"all of {self.network} are taken",
                where="target.docker_hosts.network",
                next_step="remove containers of old releases from the host, or configure a larger network",
            )
        return found


class DockerHost:
    """A host that is connected. ``open`` before anything else; ``ensure`` opens a lost connection again."""

    def __init__(self, connection: Connection, settings: HostSettings, wiring: Wiring) -> None:
        self.name = str(connection.address)
        self.addresses = Addresses(ipaddress.IPv4Network(settings.network), ipaddress.IPv4Network(settings.admin_network))
        self._connection, self._settings, self._wiring = connection, settings, wiring
        self._client: Any = None
        self._opening = threading.Lock()
        self._closed = False

    # --- connection ----------------------------------------------------------------------------------------------------

    def open(self, attempts: int | None = None) -> None:
        """Connect, with so many attempts where trying again can help. Raises the errors of ``ssh.explain``."""
        with self._opening:
            self._connection.open(attempts)

    def ensure(self) -> None:
        """Open the connection again if it was lost. Raises UnreachableError when that fails."""
        with self._opening:
            if self._closed:
                raise UnreachableError(
                    "Connection is closed", what="the run ends", where=self.name, next_step="nothing: it was closed by us"
                )
            before = self._connection.socks_port
            self._connection.ensure()
            if self._closed:  # meanwhile
                self._connection.close()
            if self._connection.socks_port != before:
                self._client = None  # its pooled connections are dead

    def close(self) -> None:
        """End the connection for good; who waits for it to be opened again gives up."""
        self._closed = True
        self._connection.close()

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        """Connect to an address as seen from the host; a ``probes.Dial``."""
        return socks_connect(self._connection.socks_port, host, port, timeout=timeout)

    @contextmanager
    def docker(self, doing: str) -> Iterator[Any]:
        """Give the Docker client; the SDK's exceptions become UnreachableError that says what was being done."""
        import requests
        from docker.errors import DockerException

        try:
            yield self._docker_client()
        except (DockerException, requests.RequestException, OSError) as error:
            raise UnreachableError(
                f"Docker did not {doing}",
                what=str(getattr(error, "explanation", None) or f"{type(error).__name__}: {error}")[:1000],
                where=self.name,
                next_step="check dockerd on the host (journalctl -u docker) and its disk; a rerun continues from what is there",
            ) from error

    def _docker_client(self) -> Any:
        if self._client is None:
            import docker

            self._client = docker.DockerClient(base_url=f"unix://{self._connection.docker_socket}", timeout=API_SECONDS)
        return self._client

    # --- edge and guard ------------------------------------------------------------------------------------------------

    def is_installed(self) -> bool:
        """Say whether a guard runs here."""
        with self.docker("list containers") as client:
            return bool(client.containers.list(filters={"name": f"^/{GUARD}$", "status": "running"}))

    def has_another_guard(self) -> bool:
        """Say whether a guard runs here that is not this version's, or is configured differently."""
        with self.docker("list containers") as client:
            found = client.api.containers(filters={"name": f"^/{GUARD}$", "status": "running"})
        return bool(found) and found[0]["Labels"].get(f"{LABEL}guard") != self._guard_digest()

    def remove_guard(self) -> None:
        """Remove the guard; its journal and the routes stay on their volume, and the edge goes on."""
        with self.docker("remove the guard") as client:
            client.api.remove_container(GUARD, force=True)

    def _guard_digest(self) -> str:
        parts = (inspect.getsource(guard), inspect.getsource(guard_store), self._settings.guard_image, f"{self._settings.lease_seconds:g}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def install_guard(self) -> None:
        """Have the networks, the volume and the guard."""
        with self.docker("prepare the edge's networks and guard") as client:
            self._network(client, NETWORK, self.addresses.network, internal=False)
            self._network(client, ADMIN_NETWORK, self.addresses.admin_network, internal=True)
            client.volumes.create(VOLUME)
            self._ensure(client, GUARD, self._settings.guard_image, self._create_guard)

    def install_edge(self) -> None:
        """Have the edge run. The guard must have a first generation: Envoy does not start without its files."""
        with self.docker("start the edge") as client:
            self._ensure(client, EDGE, self._settings.edge_image, self._create_edge)

    def _network(self, client: Any, name: str, subnet: ipaddress.IPv4Network, *, internal: bool) -> None:
        from docker.types import IPAMConfig, IPAMPool

        found = client.networks.list(names=[f"^{name}$"])
        if not found:
            pool = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))])
            client.networks.create(name, driver="bridge", ipam=pool, internal=internal, check_duplicate=True)
            return
        there = [one.get("Subnet") for one in found[0].attrs["IPAM"]["Config"] or []]
        if str(subnet) not in there:
            raise NotTrueError(
                "The host's network is another one",
                what=f"network {name} has {', '.join(map(str, there)) or 'no subnet'}, configured is {subnet}",
                where=f"{self.name}, target.docker_hosts",
                next_step="configure the subnet that is there; addresses of running instances depend on it",
            )

    def _ensure(self, client: Any, name: str, image: str, create: Callable[[Any], Any]) -> None:
        from docker.errors import NotFound

        try:
            container = client.containers.get(name)
        except NotFound:
            self.pull(image)
            container = create(client)
        else:
            wanted = container.labels.get(f"{LABEL}image")
            if wanted != image:
                self._wiring.processes.say(f"{self.name}: {name} runs {wanted}, configured is {image}; it is left as it is")
        if container.status != "running":
            container.start()

    def _create_guard(self, client: Any) -> Any:
        lease = self._settings.lease_seconds
        container = self.create(
            client,
            GUARD,
            self._settings.guard_image,
            entrypoint=["python3", "/azora/guard.py"],
            command=["--folder", str(EDGE_FOLDER), "--listen", f"0.0.0.0:{GUARD_PORT}", "--lease-seconds", f"{lease:g}"],
            endpoint=(ADMIN_NETWORK, self.addresses.guard),
            binds=[f"{VOLUME}:{EDGE_FOLDER}:rw"],
            labels={f"{LABEL}guard": self._guard_digest()},
        )
        bootstrap = envoy_config.bootstrap(EDGE_FOLDER, f"{self.addresses.admin}:{ADMIN_PORT}")
        sources = {
            "guard.py": inspect.getsource(guard),
            "azora_ci/__init__.py": "",
            "azora_ci/guard_store.py": inspect.getsource(guard_store),
        }
        for name, text in sources.items():
            container.put_archive("/", _tar(f"azora/{name}", text))
        container.put_archive(str(EDGE_FOLDER), _tar("bootstrap.json", json.dumps(bootstrap)))
        return container

    def _create_edge(self, client: Any) -> Any:
        container = self.create(
            client,
            EDGE,
            self._settings.edge_image,
            entrypoint=list(envoy.command(EDGE_FOLDER / "bootstrap.json")),
            command=[],
            endpoint=(NETWORK, self.addresses.edge),
            binds=[f"{VOLUME}:{EDGE_FOLDER}:ro"],
            ports={EDGE_PORT: self._settings.http_port},
        )
        client.networks.get(ADMIN_NETWORK).connect(container, ipv4_address=self.addresses.admin)
        return container

    def create(  # noqa: PLR0913 - the parts of a container, all by keyword
        self,
        client: Any,
        name: str,
        image: str,
        *,
        command: list[str] | None,
        endpoint: tuple[str, str],
        entrypoint: list[str] | None = None,
        binds: Sequence[str] = (),
        ports: Mapping[int, int] | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        memory: str | None = None,
    ) -> Any:
        """Create a container with a static address in a network; it is not started. ``endpoint``: (network, address)."""
        api = client.api
        network, address = endpoint
        host_config = api.create_host_config(
            binds=list(binds),
            port_bindings=dict(ports or {}),
            restart_policy={"Name": "unless-stopped"},
            mem_limit=memory,
            log_config={"Type": "json-file", "Config": {"max-size": "20m", "max-file": "3"}},
        )
        made = api.create_container(
            image,
            name=name,
            command=command,
            entrypoint=entrypoint,
            environment=dict(env or {}),
            ports=list(ports or {}),
            labels={f"{LABEL}image": image, **(labels or {})},
            host_config=host_config,
            networking_config=api.create_networking_config({network: api.create_endpoint_config(ipv4_address=address)}),
        )
        return client.containers.get(made["Id"])

    def require_memory(self, wanted: int) -> None:
        """Raise NotTrueError when the host has less memory than ``wanted`` bytes beside what running instances may take."""
        with self.docker("tell its memory") as client:
            total = int(client.info()["MemTotal"])
            names = [one["Id"] for one in client.api.containers(filters={"label": f"{LABEL}deployment-id"})]
            taken = sum(int(client.api.inspect_container(name)["HostConfig"]["Memory"]) for name in names)
        if wanted + taken > total:
            raise NotTrueError(
                "The host has too little memory for both versions",
                what=f"running instances may take {taken >> 20} MiB, the new ones {wanted >> 20} MiB, there are {total >> 20} MiB",
                where=self.name,
                next_step="lower services.*.memory or instances, run python -m azora_ci clean, or give the host more memory",
            )

    # --- images --------------------------------------------------------------------------------------------------------

    def pull(self, reference: str, checkpoint: Callable[[], None] = lambda: None) -> None:
        """Have an image, by its digest or image id. Credentials go with this one call. Raises NotTrueError when it is nowhere."""
        from docker.errors import ImageNotFound

        with self.docker("look for an image") as client:
            with suppress(ImageNotFound):
                client.images.get(reference)
                return
            repository, at, digest = reference.partition("@")
            if not at:
                raise self._missing(reference, "it is not on the host, and an image id cannot be pulled")
            self._wiring.processes.say(f"{self.name}: pulling {reference}")
            problem = ""
            try:
                for answer in client.api.pull(repository, tag=digest, stream=True, decode=True, auth_config=self._registry_auth()):
                    problem = str(answer.get("error") or problem)
                    checkpoint()
            except Exception as error:
                explanation = getattr(error, "explanation", None)
                if explanation is None:
                    raise
                problem = str(explanation)
            if problem:
                raise self._missing(reference, problem)

    def _registry_auth(self) -> dict[str, str] | None:
        access = self._wiring.access
        if access is None or access.docker_username is None or access.docker_password is None:
            return None
        return {"username": access.docker_username.reveal(), "password": access.docker_password.reveal()}

    def _missing(self, reference: str, problem: str) -> NotTrueError:
        return NotTrueError(
            "An image cannot be pulled",
            what=f"{reference}: {problem[:500]}",
            where=self.name,
            next_step="check that build-and-push pushed it, that the host reaches the registry, and DOCKER_USERNAME and DOCKER_PASSWORD",
        )


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
