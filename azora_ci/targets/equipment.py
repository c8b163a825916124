"""What a production host needs beside instances: two networks, the volume of the routes, the guard and the edge.

Everything is idempotent: what is there is recognised by name and label.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import ipaddress
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azora_ci import envoy, envoy_config, guard, guard_store
from azora_ci.config import DockerHosts as HostSettings
from azora_ci.config import Tls
from azora_ci.errors import NotTrueError
from azora_ci.targets.docker_host import LABEL, NETWORK, DockerHost
from azora_ci.targets.edge_settings import TLS_FOLDER, TLS_PORT
from azora_ci.targets.guarded import EDGE_FOLDER

ADMIN_NETWORK, VOLUME = "azora-admin", "azora-edge"
EDGE, GUARD = "azora-edge", "azora-guard"
EDGE_PORT, ADMIN_PORT, GUARD_PORT = 8080, 9901, 9902  # inside their containers


class Equipment:
    """A host's edge and guard."""

    def __init__(self, host: DockerHost, settings: HostSettings, tls: Tls | None, say: Callable[[str], None]) -> None:
        self._host, self._settings, self._tls, self._say = host, settings, tls, say

    def is_installed(self) -> bool:
        """Say whether a guard runs here."""
        with self._host.docker("list containers") as client:
            return bool(client.containers.list(filters={"name": f"^/{GUARD}$", "status": "running"}))

    def has_another_guard(self) -> bool:
        """Say whether a guard runs here that is not this version's, or is configured differently."""
        with self._host.docker("list containers") as client:
            found = client.api.containers(filters={"name": f"^/{GUARD}$", "status": "running"})
        return bool(found) and found[0]["Labels"].get(f"{LABEL}guard") != self._guard_digest()

    def remove_guard(self) -> None:
        """Remove the guard; its journal and the routes stay on their volume, and the edge goes on."""
        with self._host.docker("remove the guard") as client:
            client.api.remove_container(GUARD, force=True)

    def _guard_digest(self) -> str:
        parts = (inspect.getsource(guard), inspect.getsource(guard_store), self._settings.guard_image, f"{self._settings.lease_seconds:g}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def install_guard(self) -> None:
        """Have the networks, the volume and the guard."""
        with self._host.docker("prepare the edge's networks and guard") as client:
            self._network(client, NETWORK, self._host.addresses.network, internal=False)
            self._network(client, ADMIN_NETWORK, self._host.addresses.admin_network, internal=True)
            client.volumes.create(VOLUME)
            self._ensure(client, GUARD, self._settings.guard_image, self._create_guard)

    def install_edge(self) -> None:
        """Have the edge run. The guard must have a first generation: Envoy does not start without its files."""
        with self._host.docker("start the edge") as client:
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
                where=f"{self._host.name}, target.docker_hosts",
                next_step="configure the subnet that is there; addresses of running instances depend on it",
            )

    def _ensure(self, client: Any, name: str, image: str, create: Callable[[Any], Any]) -> None:
        from docker.errors import NotFound

        try:
            container = client.containers.get(name)
        except NotFound:
            self._host.pull(image)
            container = create(client)
        else:
            wanted = container.labels.get(f"{LABEL}image")
            if wanted != image:
                self._say(f"{self._host.name}: {name} runs {wanted}, configured is {image}; it is left as it is")
        if container.status != "running":
            container.start()

    def _create_guard(self, client: Any) -> Any:
        lease = self._settings.lease_seconds
        container = self._host.create(
            client,
            GUARD,
            self._settings.guard_image,
            entrypoint=["python3", "/azora/guard.py"],
            command=["--folder", str(EDGE_FOLDER), "--listen", f"0.0.0.0:{GUARD_PORT}", "--lease-seconds", f"{lease:g}"],
            endpoint=(ADMIN_NETWORK, self._host.addresses.guard),
            binds=[f"{VOLUME}:{EDGE_FOLDER}:rw"],
            labels={f"{LABEL}guard": self._guard_digest()},
        )
        bootstrap = envoy_config.bootstrap(EDGE_FOLDER, f"{self._host.addresses.admin}:{ADMIN_PORT}")
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
        binds, ports = [f"{VOLUME}:{EDGE_FOLDER}:ro"], {EDGE_PORT: self._settings.http_port}
        if self._tls is not None:
            binds.append(f"{self._tls.certificate.parent}:{TLS_FOLDER}:ro")
            ports[TLS_PORT] = self._tls.port
        container = self._host.create(
            client,
            EDGE,
            self._settings.edge_image,
            entrypoint=list(envoy.command(EDGE_FOLDER / "bootstrap.json")),
            command=[],
            endpoint=(NETWORK, self._host.addresses.edge),
            binds=binds,
            ports=ports,
        )
        client.networks.get(ADMIN_NETWORK).connect(container, ipv4_address=self._host.addresses.admin)
        return container


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
