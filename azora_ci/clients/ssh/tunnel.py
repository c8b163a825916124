"""One OpenSSH connection per production host: it forwards the Docker socket and a SOCKS port, and runs no command there.

The host needs an sshd with ``AllowTcpForwarding`` and ``AllowStreamLocalForwarding``. Host keys are always checked, against pinned or
recorded ones; accepting an unknown key once is an explicit opt-in. What names production is in the files of ``ssh_folder``.

A jump host is a connection of its own that forwards the host's sshd. OpenSSH's ProxyJump would put the production host's name on the
command line of a second ssh.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from azora_ci import lasting
from azora_ci.clients.ssh.credentials import CONNECT_SECONDS, Credentials, config_text
from azora_ci.clients.ssh.host_keys import HostKey, known_name
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.core.hosts import HostAddress, JumpHost
from azora_ci.core.process import Child, Processes

DOCKER_SOCKET = "/var/run/docker.sock"
EXPLANATION_SECONDS = 2.0  # that OpenSSH may take to say why it closed a forwarded connection
ATTEMPTS = 4  # of opening a connection; waits 1, 2, 4 s between them


def ssh_argv(config_file: Path, alias: str) -> tuple[str, ...]:
    """Return the command that opens the connection which a configuration file describes; it names nobody and nothing."""
    return ("ssh", "-F", str(config_file), "-N", "-T", alias)


_REASONS: tuple[tuple[str, type[AzoraError], str, str], ...] = (
    ("HOST IDENTIFICATION HAS CHANGED", NotTrueError, "Host key does not match", "somebody may be listening in, or the host was set up"
     " anew: compare its key with PROD_KNOWN_HOSTS before you change that"),
    ("Host key verification failed", NotTrueError, "Host key is not the pinned one", "add the host's key to PROD_KNOWN_HOSTS (ssh-keyscan,"
     " compared with the host's own keys)"),
    ("Permission denied", BadInputError, "Host refuses the key", "check PROD_USER and PROD_KEY, and the user's authorized_keys"),
    ("administratively prohibited", BadInputError, "The jump host forbids forwarding", "set AllowTcpForwarding yes in its sshd_config"),
    ("error in libcrypto", BadInputError, "Private key cannot be read", "set PROD_KEY to the whole private key, all lines, no passphrase"),
    ("invalid format", BadInputError, "Private key cannot be read", "set PROD_KEY to the whole private key, all lines, no passphrase"),
)  # fmt: skip


def explain(stderr: str, where: str, known: Iterable[HostKey] = ()) -> AzoraError:
    """Return the error that OpenSSH's messages mean; ``known`` are the keys that the host might have shown."""
    said = _without_art(stderr)[-500:]
    for sign, kind, title, next_step in _REASONS:
        if sign in stderr:
            what = _other_key(stderr, known) if kind is NotTrueError else said
            return kind(title, what=what, where=where, next_step=next_step)
    return UnreachableError(
        "Production host cannot be reached",
        what=said or f"no answer within {CONNECT_SECONDS} s",
        where=where,
        next_step="check that sshd runs there, that the runner may reach it, and that the port is right",
    )


def _other_key(stderr: str, known: Iterable[HostKey]) -> str:
    """Say which key was expected and which one was shown; OpenSSH names a key of a type that is not known by its type only."""
    expected = ", ".join(f"{one.fingerprint} ({one.key_type})" for one in known) or "(none)"
    found = re.search(r"sent by the remote host is\s+(SHA256:[A-Za-z0-9+/]+)", stderr)
    kind = re.search(r"No (\S+) host key is known", stderr)
    shown = found[1] if found else f"a key of type {kind[1]}, of which none is known" if kind else _without_art(stderr)[-200:]
    return f"known: {expected}; the host shows: {shown}"


def _without_art(stderr: str) -> str:
    """Return OpenSSH's messages without the picture of the host key."""
    return "\n".join(line for line in stderr.splitlines() if not line.startswith(("+--", "|", "Host key fingerprint is"))).strip()


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


def is_listening(port: int) -> bool:
    """Say whether something listens on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Tunnel:
    """An SSH connection that forwards something, opened again when it breaks. Use as a context manager.

    ``alias`` is the connection's name on the command line. ``port`` on loopback and ``socket_file`` are forwarded: that OpenSSH made the
    file says that the port is its own, not another program's.
    """

    def __init__(  # noqa: PLR0913 - the parts of a connection, all by keyword
        self,
        address: HostAddress,
        *,
        credentials: Credentials,
        processes: Processes,
        clock: Clock,
        alias: str = "azora-1",
        jump: JumpHost | None = None,
        user: str | None = None,
        variable: str = "PROD_HOST",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self.alias = alias
        self.credentials = credentials
        self.port = 0
        self.socket_file = credentials.folder / f"{alias}.sock"
        self._user = user
        self._label = str(address) if variable == "PROD_HOST" else "the jump host"
        self._place = (f"{address} of PROD_HOST" if variable == "PROD_HOST" else variable) + (" through PROD_JUMP_HOST" if jump else "")
        self._processes = processes
        self._clock = clock
        self._say = say or (lambda _line: None)
        self._child: Child | None = None
        self._via: _JumpTunnel | None = None
        if jump is not None:
            self._via = _JumpTunnel(
                jump.address, to=address, credentials=credentials, processes=processes, clock=clock, alias=f"{alias}-jump", user=jump.user,
                variable="PROD_JUMP_HOST", say=say,
            )  # fmt: skip

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Return the name under which the host's keys are known."""
        return known_name(self.address.host, self.address.port)

    def open(self, attempts: int | None = None) -> None:
        """Connect, at most ``attempts`` (``ATTEMPTS``) times where trying again can help. Raises the errors of ``explain``."""
        most = attempts or ATTEMPTS
        for attempt in range(1, most + 1):
            try:
                return self._open_once()
            except UnreachableError as error:
                if attempt == most:
                    raise
                self._say(f"{self._label}: {error.title.lower()}, attempt {attempt} of {most}: {error.what.splitlines()[-1]}")
                self._clock.sleep(2 ** (attempt - 1))
        return None

    def ensure(self) -> None:
        """Open the connection again if it broke."""
        if not self.is_open():
            self._say(f"{self._label}: connection lost, opening it again")
            self.open()

    def is_open(self) -> bool:
        """Say whether it is open, as far as OpenSSH has noticed. One that is just ending has closed its ports before it is gone."""
        return self._child is not None and self._child.poll() is None and self._is_ready()

    def close(self) -> None:
        """End the connection and remove its socket."""
        if self._child is not None:
            self._child.end()
            self._child = None
        self.socket_file.unlink(missing_ok=True)
        if self._via is not None:
            self._via.close()

    # --- what a kind of tunnel says ---------------------------------------------------------------------------------------

    def _forwards(self) -> tuple[str, ...]:
        """Return the lines of ssh_config that forward ``port`` and ``socket_file``."""
        raise NotImplementedError

    def _check(self) -> None:
        """Ask the far end through the tunnel. Raises errors of the family."""

    # --- opening ----------------------------------------------------------------------------------------------------------

    def _open_once(self) -> None:
        if self._child is not None:
            self._child.end()
        if self._via is not None and not self._via.is_open():
            self._via.open(attempts=1)  # who calls tries again
        self.socket_file.unlink(missing_ok=True)
        self.port = free_port()
        config_file = self.credentials.write(f"config-{self.alias}", config_text(self.alias, self._options(), self._forwards()))
        self._child = lasting.start(self._processes, ssh_argv(config_file, self.alias))
        deadline = self._clock.monotonic() + CONNECT_SECONDS + 5
        while not self._is_ready():
            if self._child.poll() is not None:
                self._child.wait(5)
                raise self._explained()
            if self._clock.monotonic() > deadline:
                self._child.end()
                raise self._explained()
            self._clock.sleep(0.05)
        self.credentials.note(self.name, self._shown_key(self._child))
        if self._child.poll() is not None:
            raise self._explained()
        self._check()

    def _is_ready(self) -> bool:
        return self.socket_file.exists() and is_listening(self.port)

    def _shown_key(self, child: Child) -> str | None:
        """Return the fingerprint of the key that the host showed, None where it was accepted as a new one."""
        for _elapsed in self._clock.ticks(0.05, EXPLANATION_SECONDS):  # it was printed before, and is on its way to us
            found = re.search(r"Host key fingerprint is (SHA256:\S+)|Permanently added", child.stderr_text)
            if found:
                return found[1]
        return None

    def _options(self) -> Mapping[str, str]:
        options = self.credentials.options_for(self.name)
        if self._user is not None:
            options["User"] = self._user
        if self._via is None:
            return options | {"HostName": self.address.host, "Port": str(self.address.port)}
        return options | {"HostName": "127.0.0.1", "Port": str(self._via.port), "HostKeyAlias": self.name}

    def _explained(self) -> AzoraError:
        assert self._child is not None  # noqa: S101 - it has just failed
        said = self._child.stderr_text
        if self._via is not None and self._via._child is not None:
            said += self._via._child.stderr_text
        return explain(said, self._place, self.credentials.known(self.name))


def forward_lines(tunnel: Tunnel, host: str, port: int) -> tuple[str, ...]:
    """Return the lines of ssh_config that forward a tunnel's port and socket to an address as seen from the far end."""
    there = f"{f'[{host}]' if ':' in host else host}:{port}"
    return f"LocalForward 127.0.0.1:{tunnel.port} {there}", f"LocalForward {tunnel.socket_file} {there}"


class _JumpTunnel(Tunnel):
    """The connection to a jump host; ``port`` on loopback is the sshd of the production host behind it."""

    def __init__(self, address: HostAddress, *, to: HostAddress, **parts: Any) -> None:
        super().__init__(address, **parts)
        self._to = to

    def _forwards(self) -> tuple[str, ...]:
        return forward_lines(self, self._to.host, self._to.port)


class Connection(Tunnel):
    """A connection to one production host: its Docker socket as a file, and a SOCKS port."""

    def __init__(self, address: HostAddress, *, remote_socket: str = DOCKER_SOCKET, **parts: Any) -> None:
        super().__init__(address, **parts)
        self._remote_socket = remote_socket

    @property
    def docker_socket(self) -> Path:
        """Return the file that leads to the Docker socket."""
        return self.socket_file

    @property
    def socks_port(self) -> int:
        """Return the port of the SOCKS server on loopback; another one each time the connection is opened."""
        return self.port

    def _forwards(self) -> tuple[str, ...]:
        return f"LocalForward {self.socket_file} {self._remote_socket}", f"DynamicForward 127.0.0.1:{self.port}"

    def _check(self) -> None:
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
        self._await_word("open failed", 0)  # of this attempt: it must not be taken for the answer to the next one
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

    def forbids_tcp(self) -> bool:
        """Say whether sshd refuses to forward TCP; where nothing listens at the port that is tried, it has tried itself."""
        assert self._child is not None  # noqa: S101 - to be asked while connected
        said = len(self._child.stderr_text)
        try:
            socks_connect(self.socks_port, "127.0.0.1", self.address.port, timeout=CONNECT_SECONDS).close()
        except OSError:
            self._await_word("open failed", said)
            return "connect failed" not in self._child.stderr_text[said:]
        return False

    def _await_word(self, word: str, begin: int) -> None:
        """Wait until OpenSSH has said something from there on, which comes a moment after it closed the connection, or never."""
        assert self._child is not None  # noqa: S101 - likewise
        for _elapsed in self._clock.ticks(0.05, EXPLANATION_SECONDS):
            if word in self._child.stderr_text[begin:]:
                return
