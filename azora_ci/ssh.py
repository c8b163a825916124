"""One OpenSSH connection per production host: it forwards the Docker socket and a SOCKS port, and runs no command there.

The host needs an sshd with ``AllowTcpForwarding`` and ``AllowStreamLocalForwarding``. Host keys are always checked, against pinned
ones; accepting an unknown key once is an explicit opt-in. The private key lies in a file of mode 0600 in a folder of its own, which is
wiped at the end; it is never on a command line. Options as in ssh_config(5).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from azora_ci.clock import Clock
from azora_ci.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.process import Child, Processes
from azora_ci.settings import Secret

DOCKER_SOCKET = "/var/run/docker.sock"
CONNECT_SECONDS = 10
ATTEMPTS = 4  # of opening a connection; waits 1, 2, 4 s between them
KEEP_ALIVE = ("ServerAliveInterval=5", "ServerAliveCountMax=3")  # a dead peer is noticed after 15 s
_HOST = re.compile(r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class HostAddress:
    """A production host and the port of its sshd."""

    host: str
    port: int = 22

    def __str__(self) -> str:
        return self.host if self.port == 22 else f"{self.host}:{self.port}"


def parse_hosts(text: str) -> tuple[HostAddress, ...]:
    """Return the hosts of ``PROD_HOST``: one or several, comma separated, ``host[:port]``. Raises ValueError with a reason."""
    hosts = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        match = _HOST.fullmatch(part)
        if match is None or not 0 < int(match["port"] or 22) < 65536:
            raise ValueError("holds something that is not host or host:port")
        hosts.append(HostAddress(match["host"].strip("[]"), int(match["port"] or 22)))
    if not hosts:
        raise ValueError("names no host")
    if len(set(hosts)) != len(hosts):
        raise ValueError("names a host twice")
    return tuple(hosts)


def normal_key(text: str) -> str:
    """Return a private key as OpenSSH wants it: no carriage returns, a final newline. Raises ValueError when it is none."""
    key = text.replace("\r\n", "\n").replace("\r", "\n").strip("\n") + "\n"
    if not re.match(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n", key):
        raise ValueError("is not a private key in PEM or OpenSSH format")
    return key


class Credentials:
    """User, private key and pinned host keys, as files that live only as long as this object."""

    def __init__(self, user: str, key: Secret, *, known_hosts: str | None, accept_new: bool = False) -> None:
        if known_hosts is None and not accept_new:
            raise BadInputError(
                "No host key is pinned",
                what="without a pinned key anyone on the path could pose as the production host",
                where="PROD_KNOWN_HOSTS",
                next_step="set it to the output of: ssh-keyscan HOST (compared with the host's own keys), or, for the very first"
                " deployment only, set PROD_ACCEPT_NEW_HOST_KEY=true",
            )
        self.user = user
        self.accept_new = accept_new and known_hosts is None
        self.folder = Path(tempfile.mkdtemp(prefix="azora-ssh-"))  # mode 0700
        self.key_file = self.folder / "key"
        self.known_hosts_file = self.folder / "known_hosts"
        descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(normal_key(key.reveal()))
        self.known_hosts_file.write_text(known_hosts.replace("\r", "").rstrip("\n") + "\n" if known_hosts else "", encoding="utf-8")

    def host_keys(self) -> str:
        """Return the known host keys, for pinning; after the first connection with ``accept_new`` the new one is among them."""
        return self.known_hosts_file.read_text(encoding="utf-8")

    def wipe(self) -> None:
        """Overwrite the key and remove the folder."""
        with contextlib.suppress(OSError):
            self.key_file.write_bytes(b"\0" * self.key_file.stat().st_size)
        shutil.rmtree(self.folder, ignore_errors=True)


def tunnel_argv(
    address: HostAddress, credentials: Credentials, *, socket_path: Path, socks_port: int, remote_socket: str
) -> tuple[str, ...]:
    """Return the command that forwards the remote Docker socket to ``socket_path`` and opens a SOCKS port on loopback."""
    options = (
        "BatchMode=yes",
        f"ConnectTimeout={CONNECT_SECONDS}",
        "ExitOnForwardFailure=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PasswordAuthentication=no",
        f"StrictHostKeyChecking={'accept-new' if credentials.accept_new else 'yes'}",
        f"UserKnownHostsFile={credentials.known_hosts_file}",
        "GlobalKnownHostsFile=none",
        "HashKnownHosts=no",
        "StreamLocalBindMask=0177",
        "ControlPath=none",
        "LogLevel=INFO",
        *KEEP_ALIVE,
    )
    flags = tuple(part for option in options for part in ("-o", option))
    return (
        "ssh", "-F", "none", "-N", "-T", "-i", str(credentials.key_file), "-p", str(address.port), "-l", credentials.user, *flags,
        "-L", f"{socket_path}:{remote_socket}", "-D", f"127.0.0.1:{socks_port}", "--", address.host,
    )  # fmt: skip


_REASONS: tuple[tuple[str, type[AzoraError], str, str], ...] = (
    ("HOST IDENTIFICATION HAS CHANGED", NotTrueError, "Host key does not match", "somebody may be listening in, or the host was set up"
     " anew: compare its key with PROD_KNOWN_HOSTS before you change that"),
    ("Host key verification failed", NotTrueError, "Host key is not the pinned one", "add the host's key to PROD_KNOWN_HOSTS (ssh-keyscan,"
     " compared with the host's own keys)"),
    ("Permission denied", BadInputError, "Host refuses the key", "check PROD_USER and PROD_KEY, and the user's authorized_keys"),
    ("error in libcrypto", BadInputError, "Private key cannot be read", "set PROD_KEY to the whole private key, all lines, no passphrase"),
    ("invalid format", BadInputError, "Private key cannot be read", "set PROD_KEY to the whole private key, all lines, no passphrase"),
)  # fmt: skip


def explain(stderr: str, address: HostAddress) -> AzoraError:
    """Return the error that OpenSSH's messages mean."""
    for sign, kind, title, next_step in _REASONS:
        if sign in stderr:
            return kind(title, what=stderr.strip()[-500:], where=f"PROD_HOST {address}", next_step=next_step)
    return UnreachableError(
        "Production host cannot be reached",
        what=stderr.strip()[-500:] or f"no answer within {CONNECT_SECONDS} s",
        where=f"PROD_HOST {address}",
        next_step="check that sshd runs there, that the runner may reach it, and that the port is right",
    )


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, enough to ask Docker whether it is there."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def socks_connect(socks_port: int, host: str, port: int, *, timeout: float) -> socket.socket:
    """Return a TCP connection to ``host:port`` as seen from the far end of a tunnel (SOCKS 5, RFC 1928, no authentication).

    Raises OSError when the far end cannot or may not connect.
    """
    connection = socket.create_connection(("127.0.0.1", socks_port), timeout=timeout)
    try:
        name = host.encode("idna")
        connection.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        answer = b""
        while len(answer) < 12:  # 2 bytes method, 10 bytes reply with an IPv4 address, as OpenSSH answers
            part = connection.recv(12 - len(answer))
            if not part:
                raise ConnectionRefusedError(f"the tunnel did not connect to {host}:{port}")
            answer += part
        if answer[:2] != b"\x05\x00" or answer[3] != 0:
            raise ConnectionRefusedError(f"the tunnel refused {host}:{port} (SOCKS reply {answer[3]})")
    except BaseException:
        connection.close()
        raise
    return connection


def free_port() -> int:
    """Return a port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Connection:
    """A connection to one host, opened again when it breaks. Use as a context manager."""

    def __init__(
        self,
        address: HostAddress,
        *,
        credentials: Credentials,
        processes: Processes,
        clock: Clock,
        remote_socket: str = DOCKER_SOCKET,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self._credentials = credentials
        self._processes = processes
        self._clock = clock
        self._remote_socket = remote_socket
        self._say = say or (lambda _line: None)
        self._folder = Path(tempfile.mkdtemp(prefix="azora-tunnel-"))
        self._child: Child | None = None
        self.docker_socket = self._folder / "docker.sock"
        self.socks_port = 0

    def __enter__(self) -> Connection:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Connect, at most ``ATTEMPTS`` times where trying again can help. Raises the errors of ``explain``."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._open_once()
            except UnreachableError as error:
                if attempt == ATTEMPTS:
                    raise
                self._say(f"{self.address}: {error.title.lower()}, attempt {attempt} of {ATTEMPTS}: {error.what.splitlines()[-1]}")
                self._clock.sleep(2 ** (attempt - 1))
        return None

    def ensure(self) -> None:
        """Open the connection again if it broke."""
        if self._child is None or self._child.poll() is not None:
            self._say(f"{self.address}: connection lost, opening it again")
            self.open()

    def close(self) -> None:
        """End the connection and remove its sockets."""
        if self._child is not None:
            self._child.end()
            self._child = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open_once(self) -> None:
        if self._child is not None:
            self._child.end()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.docker_socket.unlink(missing_ok=True)
        self.socks_port = free_port()
        argv = tunnel_argv(
            self.address, self._credentials, socket_path=self.docker_socket, socks_port=self.socks_port, remote_socket=self._remote_socket
        )
        self._child = self._processes.start(argv)
        deadline = self._clock.monotonic() + CONNECT_SECONDS + 5
        while not self.docker_socket.exists():
            if self._child.poll() is not None:
                self._child.wait(5)
                raise explain(self._child.stderr_text, self.address)
            if self._clock.monotonic() > deadline:
                self._child.end()
                raise explain("", self.address)
            self._clock.sleep(0.05)
        self._ping()

    def _ping(self) -> None:
        """Ask Docker through the tunnel; the answer to a forbidden forwarding comes only now."""
        connection = UnixConnection(self.docker_socket, timeout=CONNECT_SECONDS)
        try:
            connection.request("GET", "/_ping")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._no_docker(error) from error
        finally:
            connection.close()

    def _no_docker(self, error: Exception) -> AzoraError:
        """Return what a silent Docker socket means. OpenSSH says the same for a forbidden and for a missing socket."""
        if not self._tcp_is_forwarded():
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

    def _tcp_is_forwarded(self) -> bool:
        try:
            socks_connect(self.socks_port, "127.0.0.1", self.address.port, timeout=CONNECT_SECONDS).close()
        except OSError:
            return False
        return True
