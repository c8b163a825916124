"""An SSH connection per production host: it forwards what is behind the host, and runs no command there.

The host needs an sshd with ``AllowTcpForwarding`` and ``AllowStreamLocalForwarding``. asyncssh speaks the protocol, in one event loop with
a thread of its own: private key and host keys stay in this process's memory, and a connection ends with the process, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

import asyncssh

from azora_ci.clients.ssh.credentials import AUTHORITY, REVOKED, Credentials
from azora_ci.clients.ssh.host_keys import HostKey, known_name
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.core.hosts import HostAddress, JumpHost

CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS, KEEPALIVES = 5, 2  # a silent peer is given up after 15 s
TEXT_LENGTH = 200  # of what a peer says; longer texts are cut
ATTEMPTS = 4  # of opening a connection; waits 1, 2, 4 s between them
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # preferred: processors have instructions for them
FORBIDDEN = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
Destination = tuple[str, int] | Path  # host and port, or a Unix socket, as seen from the host
Result = TypeVar("Result")

asyncssh.set_log_level("CRITICAL")  # other messages name hosts and users


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that looks names up in threads of which none holds up the end of the process, as those of the executor do."""

    async def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        addresses: Future[Any] = Future()
        addresses.set_running_or_notify_cancel()  # so that nobody who stops waiting cancels it

        def look_up() -> None:
            try:
                addresses.set_result(socket.getaddrinfo(*arguments, **options))
            except (OSError, UnicodeError) as error:
                addresses.set_exception(error)

        threading.Thread(target=look_up, name="name lookup", daemon=True).start()
        return await asyncio.wrap_future(addresses)


_loop = _Loop()  # of all connections; whoever imports this module wants one
threading.Thread(target=_loop.run_forever, name="ssh", daemon=True).start()


def _in_loop(work: Awaitable[Result], seconds: float) -> Result:
    """Do something in the event loop and return its result. Raises TimeoutError; what interrupts the caller cancels the work."""
    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), _loop)
    try:
        return future.result()
    finally:
        future.cancel()  # of no effect when it is finished


class _HostKeyCheck(asyncssh.SSHClient):
    """Asks the credentials about the key that a host shows, or about the key of the authority that vouches for the host."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        self._credentials, self._name = credentials, name
        self._key: HostKey | None = None
        self._marker = ""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002 - asyncssh's call
        return self._is_trusted(key, "")

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002 - asyncssh's call
        return self._is_trusted(key, AUTHORITY)

    def auth_completed(self) -> None:
        if self._key is not None:
            self._credentials.note(self._name, self._key, self._marker)

    def _is_trusted(self, key: asyncssh.SSHKey, marker: str) -> bool:
        self._key, self._marker = HostKey(*key.export_public_key().decode().split()[:2]), marker
        return self._credentials.trusts(self._name, self._key, marker)

    def refusal(self, error: asyncssh.HostKeyNotVerifiable, where: str) -> NotTrueError:
        """Return the error that names the expected keys and the one that the host shows."""
        if error.reason.startswith(("Host key is revoked", "Host CA key is revoked")):
            return NotTrueError(
                "Host key is revoked",
                what="revoked: " + ", ".join(key.fingerprint for key in self._credentials.known(self._name, REVOKED)),
                where=where,
                next_step="somebody who has the stolen key may be listening in: give the host a new key and pin that one",
            )
        title, next_step = "Host key is not the pinned one", "pin it in PROD_KNOWN_HOSTS (ssh-keyscan, compared with the host's own keys)"
        known_keys = ", ".join(f"{key.fingerprint} ({key.key_type})" for key in self._credentials.known(self._name))
        if known_keys:
            title = "Host key does not match"
            next_step = "somebody may be listening in, or the host was set up anew: compare its key before you change PROD_KNOWN_HOSTS"
        fingerprint = self._key.fingerprint if self._key else "(none)"
        return NotTrueError(title, what=f"known: {known_keys or '(none)'}; the host shows: {fingerprint}", where=where, next_step=next_step)


def _one_line(text: str) -> str:
    """Return a text that a peer may have chosen as one short line without control characters."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:TEXT_LENGTH]


def _cause(error: Exception) -> str:
    """Return why connecting failed, without the address, which is a secret and stands in the texts of asyncio."""
    if isinstance(error, asyncssh.PermissionDenied):
        return "it does not let the user in with this key"
    if isinstance(error, socket.gaierror):
        return error.strerror or "the name cannot be resolved"
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no answer within {CONNECT_SECONDS:g} s"
    if isinstance(error, OSError):  # of several addresses the numbers are in the text alone
        numbers = dict.fromkeys(re.findall(r"\[Errno (\d+)\]", str(error)))
        return ", ".join(os.strerror(int(number)) for number in numbers) or type(error).__name__
    return _one_line(str(error)) or type(error).__name__


def explain(error: Exception, where: str) -> AzoraError:
    """Return the error that a failure to connect means."""
    if isinstance(error, asyncssh.PermissionDenied):
        title, next_step = "Host refuses the key", "check PROD_USER and PROD_KEY, and the user's authorized_keys"
    elif isinstance(error, asyncssh.KeyImportError):
        title, next_step = "Private key cannot be read", "set PROD_KEY to the whole private key, all lines"
    elif isinstance(error, (KeyError, ValueError)):  # of asyncssh, before it connects, such as a user id without a name
        title, next_step = "SSH cannot be set up", "check PROD_HOST and PROD_USER, and set USER where this machine's user has no name"
    elif isinstance(error, asyncssh.ChannelOpenError) and error.code == FORBIDDEN:
        title, next_step = "The jump host forbids forwarding", "set AllowTcpForwarding yes in its sshd_config"
    else:
        return UnreachableError(
            "Production host cannot be reached",
            what=_cause(error),
            where=where,
            next_step="check that sshd runs there, that the runner may reach it, and that the port is right",
        )
    return BadInputError(title, what=_cause(error), where=where, next_step=next_step)


class Tunnel:
    """An SSH connection, opened again when it breaks. Use as a context manager; ``place`` says which setting names its address."""

    def __init__(
        self,
        address: HostAddress,
        *,
        credentials: Credentials,
        clock: Clock,
        jump: JumpHost | None = None,
        place: str = "",
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.address = address
        self.name = known_name(address.host, address.port)  # under which the host's keys are known
        self.credentials = credentials
        self.openings = 0  # how often it was opened: what an earlier connection forwarded is dead
        self._clock, self._say = clock, say
        self._place = place or f"{address} of PROD_HOST" + (" through PROD_JUMP_HOST" if jump else "")
        self._user = credentials.user
        self._connection: asyncssh.SSHClientConnection | None = None
        self._jump: Tunnel | None = None
        if jump is not None:
            self._jump = Tunnel(jump.address, credentials=credentials, clock=clock, place="PROD_JUMP_HOST", say=say)
            self._jump._user = jump.user or self._user

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def open(self, attempts: int | None = None) -> None:
        """Connect, at most ``attempts`` (``ATTEMPTS``) times where trying again can help. Raises the errors of ``explain``."""
        for attempt in self._clock.attempts(attempts or ATTEMPTS):
            try:
                return self._open_once()
            except UnreachableError as error:
                if attempt.last:
                    raise
                self._say(f"{self._place}: {error.title.lower()}, {attempt}: {error.what.splitlines()[-1]}")
        return None

    def ensure(self) -> None:
        """Open the connection again if it broke."""
        if not self.is_open():
            self._say(f"{self._place}: connection lost, opening it again")
            self.open()

    def is_open(self) -> bool:
        """Say whether it is open, as far as this end has noticed."""
        return self._connection is not None and not self._connection.is_closed()

    def close(self) -> None:
        """End the connection with everything that it forwards."""
        if self._connection is not None:
            _loop.call_soon_threadsafe(self._connection.close)
        if self._jump is not None:
            self._jump.close()

    def dial(self, destination: Destination, seconds: float) -> socket.socket:
        """Return a connection that the host makes, with ``seconds`` as its timeout.

        Raises PermissionError where its sshd forbids that, and other kinds of OSError where it fails.
        """
        ours, theirs = socket.socketpair()
        try:
            _in_loop(self._join(theirs, destination), seconds)
        except BaseException:
            ours.close()
            raise
        ours.settimeout(seconds)
        return ours

    async def _forward(self, connection: asyncssh.SSHClientConnection) -> None:
        """Forward local sockets through a new connection."""

    def _check(self) -> None:
        """Ask the far end through the tunnel. Raises errors of the family."""

    def _open_once(self) -> None:
        if self._connection is not None:
            _loop.call_soon_threadsafe(self._connection.abort)
        if self._jump is not None and not self._jump.is_open():
            self._jump.open(attempts=1)  # who calls tries again
        check = _HostKeyCheck(self.credentials, self.name)
        try:
            connecting = asyncssh.connect(
                self.address.host,
                self.address.port,
                tunnel=self._jump._connection if self._jump is not None else (),
                config=None,  # nobody's ~/.ssh/config, nor the certificates beside it
                x509_trusted_certs=None,
                x509_trusted_cert_paths=[],
                gss_host=None,
                gss_kex=False,
                gss_auth=False,
                username=self._user,
                client_keys=[asyncssh.import_private_key(self.credentials.key.reveal())],
                agent_path=None,
                preferred_auth="publickey",
                client_factory=lambda: check,
                known_hosts=([], [], self._revoked_keys()),  # so that the check is asked about every other key
                server_host_key_algs=self.credentials.key_types(self.name),
                encryption_algs=CIPHERS,
                keepalive_interval=KEEPALIVE_SECONDS,
                keepalive_count_max=KEEPALIVES,
            )
            self._connection = _in_loop(connecting, CONNECT_SECONDS)
            _in_loop(self._forward(self._connection), CONNECT_SECONDS)
        except asyncssh.HostKeyNotVerifiable as error:
            raise check.refusal(error, self._place) from error
        except (OSError, asyncssh.Error, KeyError, ValueError) as error:
            raise explain(error, self._place) from error
        self.openings += 1
        self._check()

    def _revoked_keys(self) -> list[asyncssh.SSHKey]:
        """Return the host's revoked keys, for asyncssh to look for them in certificates as well; a type unknown to it cannot be shown."""
        keys = []
        for key in self.credentials.known(self.name, REVOKED):
            with contextlib.suppress(asyncssh.KeyImportError):
                keys.append(asyncssh.import_public_key(f"{key.key_type} {key.blob}"))
        return keys

    async def _join(self, end: socket.socket, destination: Destination) -> None:
        """Join a socket with a connection that the host makes; raises as ``dial`` does."""
        local = asyncssh.SSHForwarder()  # is connected first, so that nothing is lost of what arrives at once

        def remote() -> Any:
            return asyncssh.SSHForwarder(local)

        await asyncio.get_running_loop().create_unix_connection(lambda: local, sock=end)
        try:
            if self._connection is None:
                raise ConnectionResetError("not connected")
            if isinstance(destination, Path):
                await self._connection.create_unix_connection(remote, str(destination))
            else:
                await self._connection.create_connection(remote, *destination)
        except BaseException as error:
            local.close()
            if isinstance(error, asyncssh.ChannelOpenError):
                raise (PermissionError if error.code == FORBIDDEN else ConnectionRefusedError)(_one_line(error.reason)) from error
            if isinstance(error, asyncssh.Error):
                raise ConnectionResetError(_one_line(error.reason)) from error
            raise
