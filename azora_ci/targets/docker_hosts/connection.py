"""The connection to a production host: SSH, with the host's Docker socket as a local file.

sshd needs ``AllowStreamLocalForwarding`` for that, and ``AllowTcpForwarding`` for everything else that runs on the host.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import asyncssh

from azora_ci.clients.ssh.tunnel import CONNECT_SECONDS, Tunnel
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.hosts import HostAddress
from azora_ci.core.process import birth

DOCKER_SOCKET = "/var/run/docker.sock"
PREFIX = "azora-ssh-"  # of folders


def _owner(pid: int) -> str:
    """Return what tells a process from every other: the running system, where process ids are counted, its id and its birth."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()} {pid} {birth(pid)}"


def _sweep(root: Path) -> None:
    """Remove the folders of this user's killed processes; those of earlier versions hold the private key."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):  # just being made or removed, or not ours
            owner = (folder / "owner").read_text(encoding="utf-8")
            _, namespace, pid, _ = owner.split()
            is_ours = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if is_ours and namespace == str(Path("/proc/self/ns/pid").readlink()) and owner != _owner(int(pid)):
                shutil.rmtree(folder)


class Connection(Tunnel):
    """A connection to one production host, whose Docker socket is a local file as well: the Docker SDK needs one."""

    def __init__(self, address: HostAddress, *, remote_socket: str = DOCKER_SOCKET, **options: Any) -> None:
        super().__init__(address, **options)
        self._remote_socket = Path(remote_socket)
        _sweep(Path(tempfile.gettempdir()))
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)  # of mode 0700; ``close`` removes it
        with contextlib.suppress(OSError):  # no Linux
            (Path(self._folder.name) / "owner").write_text(_owner(os.getpid()), encoding="utf-8")
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
            connection.getresponse().read(64)  # "OK"; the rest is not of interest
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
