"""The connection to a production host: SSH, with the host's Docker socket as a local file.

sshd needs ``AllowStreamLocalForwarding`` for that, and ``AllowTcpForwarding`` for everything else that runs on the host.
"""

from __future__ import annotations

import http.client
import tempfile
from pathlib import Path
from typing import Any

import asyncssh

from azora_ci.clients.ssh.tunnel import CONNECT_SECONDS, Tunnel
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.hosts import HostAddress

DOCKER_SOCKET = "/var/run/docker.sock"


class Connection(Tunnel):
    """A connection to one production host, whose Docker socket is a local file as well: the Docker SDK needs one."""

    def __init__(self, address: HostAddress, *, remote_socket: str = DOCKER_SOCKET, **options: Any) -> None:
        super().__init__(address, **options)
        self._remote_socket = Path(remote_socket)
        self._folder = tempfile.TemporaryDirectory(prefix="azora-ssh-")  # of mode 0700; ``close`` removes it
        self.docker_socket = Path(self._folder.name) / "docker.sock"

    def close(self) -> None:
        """End the connection and remove its socket."""
        super().close()
        self._folder.cleanup()

    def forbids_tcp(self) -> bool:
        """Say whether sshd refuses to forward TCP; where nothing listens at the port that is tried, it has tried itself."""
        try:
            self.dial(("127.0.0.1", self.address.port), CONNECT_SECONDS).close()
        except OSError as error:
            return isinstance(error, PermissionError)
        return False

    async def _forward(self, connection: asyncssh.SSHClientConnection) -> None:
        self.docker_socket.unlink(missing_ok=True)
        await connection.forward_local_path(str(self.docker_socket), str(self._remote_socket))
        self.docker_socket.chmod(0o600)

    def _check(self) -> None:
        """Ask Docker whether it is there."""
        connection = http.client.HTTPConnection("docker")
        try:
            connection.sock = self.dial(self._remote_socket, CONNECT_SECONDS)
            connection.request("GET", "/_ping")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise self._no_docker(error) from error
        finally:
            connection.close()

    def _no_docker(self, error: Exception) -> AzoraError:
        """Return what a silent Docker socket means. sshd has one answer for a socket that is forbidden, missing, or not the user's."""
        if self.forbids_tcp():
            return BadInputError(
                "sshd forbids forwarding",
                what="neither the Docker socket nor a TCP connection is let through",
                where=f"/etc/ssh/sshd_config on {self.address}",
                next_step="set AllowTcpForwarding yes and AllowStreamLocalForwarding yes there, and reload sshd",
            )
        return UnreachableError(
            "Docker does not answer",
            what=f"{type(error).__name__}: {error}",
            where=f"{self._remote_socket} on {self.address}",
            next_step="check that dockerd runs there, that PROD_USER may use its socket (group docker), and that sshd_config has"
            " AllowStreamLocalForwarding yes",
        )
