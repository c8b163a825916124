"""The container of the wall, which keeps instances from the machine's metadata service; see ``guard/wall.py``."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

from azora_ci.core.config import DeployConfig
from azora_ci.core.config import DockerHostsSettings as HostSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.docker_hosts.host import LABEL, Cage, DockerHost
from azora_ci.targets.docker_hosts.networks import subnets_of
from azora_ci.targets.guard import wall

SOURCE = inspect.getsource(wall)


class Wall:
    """Installs the wall of a host."""

    def __init__(self, host: DockerHost, settings: HostSettings, config: DeployConfig) -> None:
        self._host, self._settings, self._services = host, settings, config.services

    def install(self, client: Any) -> None:
        """Have the wall stand before the instances' networks, and those that services share with what they need."""
        from docker.errors import NotFound

        names = sorted({name for service in self._services for name in service.networks})
        try:
            others = [str(subnet) for name in names for subnet in subnets_of(client.networks.get(name))]
        except NotFound as error:
            raise NotTrueError(
                "A network of a service is missing",
                what=str(error.explanation),
                where=f"{self._host.name}, services.*.networks = {names}",
                next_step="create it there (docker network create), or correct the name",
            ) from error
        networks = [self._settings.network, *others]
        digest = hashlib.sha256("\0".join((SOURCE, self._settings.guard_image, *networks)).encode()).hexdigest()
        container = self._host.find_container(client, self._host.names.wall)
        if container is not None and container.labels.get(f"{LABEL}wall") != digest:
            container.remove(force=True)
            container = None
        if container is None:
            self._host.pull(self._settings.guard_image)
            container = self._host.create(
                client,
                self._host.names.wall,
                self._settings.guard_image,
                entrypoint=["python3", "-c", SOURCE],
                command=networks,
                endpoint=("host", ""),
                user="0",
                labels={f"{LABEL}wall": digest},
                cage=Cage(add=("NET_ADMIN",), read_only=True),
            )
        if container.status != "running":
            container.start()
