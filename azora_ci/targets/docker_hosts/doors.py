"""The ways to a host's guard and to the admin interface of its edge: Unix sockets on the host, over the SSH connection.

Who may use the host's Docker socket, and nobody else, may connect to them: they have its group. No port leads to either.
"""

from __future__ import annotations

import socket
from pathlib import Path

from azora_ci.targets.docker_hosts.host import DockerHost
from azora_ci.targets.docker_hosts.names import Names

# Each has a folder of its own there: one cannot replace the other's socket. Docker makes them, for root, again after each boot.
SOCKETS = Path("/run/azora")
EARLIER_NETWORK = "azora-admin"  # of guards and edges that listened on ports
EARLIER_PORTS = {Names().edge: 9901, Names().guard: 9902}


def socket_of(container: str) -> Path:
    """Return the path of the socket of guard or edge."""
    return SOCKETS / container / "http.sock"


class Door:
    """The way to the guard or the edge of a host. ``dial`` is a ``probes.Dial``, whatever the address."""

    def __init__(self, host: DockerHost, container: str) -> None:
        self._host, self._container = host, container

    def dial(self, _host: str, _port: int, timeout: float) -> socket.socket:
        """Connect to the socket, or where there is none to the port of a container that an earlier version installed."""
        try:
            return self._host.connection.dial(socket_of(self._container), timeout)
        except OSError:
            address = self._earlier_address()
            if address is None:
                raise
            return self._host.dial(address, EARLIER_PORTS[self._container], timeout)

    def _earlier_address(self) -> str | None:
        """Return the address of the running container in the network that only earlier versions had; None for another container."""
        with self._host.docker("list containers") as client:
            containers = client.api.containers(filters={"name": f"^/{self._container}$", "status": "running"})
        networks = containers[0]["NetworkSettings"]["Networks"] if containers else {}
        address = networks.get(EARLIER_NETWORK, {}).get("IPAddress")
        return str(address) if address else None
