"""The production database, reached through the first production host (``database.via_ssh``).

SSH forwards a port on loopback to the database. libpq still verifies the database's own name: ``host`` is unchanged and only
``hostaddr`` and ``port`` lead into the tunnel (https://www.postgresql.org/docs/current/libpq-connect.html, hostaddr).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncssh

from azora_ci.clients.ssh.access import Access, access_of
from azora_ci.clients.ssh.tunnel import Tunnel
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.hosts import HostAddress
from azora_ci.core.job_log import JobLog
from azora_ci.core.settings import SshAccess
from azora_ci.database.postgres import DatabaseUrl

ANSWER_SECONDS = 15.0
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")  # a server answers S or N; "SSLRequest" of PostgreSQL's protocol
DEFAULT_PORT = 5432


def require_one_address(url: DatabaseUrl, required_by: str, connects: str) -> None:
    """Raise BadInputError for an address that cannot be forwarded; ``connects``: who connects to it."""
    if "," in url.host or url.host.startswith("/"):
        raise BadInputError(
            "This address cannot be forwarded",
            what="the connection string names several hosts" if "," in url.host else "the connection string names a local socket",
            where=f"PROD_DATABASE_URL, with {required_by}",
            next_step=f"name the one host and port that {connects} connects to",
        )


def unlike_postgres(probe: socket.socket) -> str | None:
    """Ask whether a server supports TLS, which only PostgreSQL answers with S, N or E; return what is wrong, None for nothing."""
    probe.sendall(SSL_REQUEST)
    answer = probe.recv(1)
    if answer in {b"S", b"N", b"E"}:
        return None
    return f"it answered {answer!r}" if answer else "the connection was closed without an answer"


def access_to(url: DatabaseUrl, settings: SshAccess) -> Access:
    """Return the SSH access through which a database is reached.

    Raises BadInputError for an address that cannot be forwarded, and when the settings do not describe the access.
    """
    require_one_address(url, "database.via_ssh", "the production host")
    hint = "set them as secrets of the environment, and its variable DATABASE_VIA_SSH to true: it hands them to this step"
    return access_of(settings, "database.via_ssh in the deployment configuration", hint)


@contextmanager
def reachable_database(
    url: DatabaseUrl, access: Access, recorded: str, log: JobLog, clock: Clock, evidence: dict[str, Any]
) -> Iterator[DatabaseUrl]:
    """Yield the address of a database that leads through a tunnel; the tunnel stays open during the block.

    ``recorded`` host keys (text of a known_hosts file) are used when none is pinned; ``host_keys`` is added to ``evidence``. Raises the
    errors of ``DatabaseTunnel``.
    """
    credentials = access.credentials(recorded)
    with DatabaseTunnel(access.hosts[0], to=url, credentials=credentials, clock=clock, jump=access.jump, say=log.say) as tunnel:
        evidence["host_keys"] = credentials.evidence()
        if credentials.to_be_pinned():
            log.annotate("New host keys were accepted", credentials.to_be_pinned())
        log.say("the database is reached through the first production host")
        yield url.with_tunnel(tunnel.port)


class DatabaseTunnel(Tunnel):
    """An SSH tunnel that forwards a port on loopback to a database server; the SSH host resolves the server's address."""

    def __init__(self, address: HostAddress, *, to: DatabaseUrl, **options: Any) -> None:
        super().__init__(address, **options)
        self._to = to
        self._server = (to.parameters.get("hostaddr", to.host), int(to.port or DEFAULT_PORT))
        self.port = 0  # on loopback, once it is open

    async def _forward(self, connection: asyncssh.SSHClientConnection) -> None:
        self.port = (await connection.forward_local_port("127.0.0.1", 0, *self._server)).get_port()

    def _check(self) -> None:
        """Ask whether the server supports TLS; only a PostgreSQL server answers S, N or E. Raises BadInputError or UnreachableError."""
        try:
            with self.dial(self._server, ANSWER_SECONDS) as probe:
                problem = unlike_postgres(probe)
        except PermissionError as error:
            raise BadInputError(
                "sshd forbids forwarding",
                what=str(error),
                where=f"sshd_config on {self._place}",
                next_step=f"set AllowTcpForwarding yes there (and PermitOpen {self._to.location.partition('/')[0]}, where it is used)",
            ) from error
        except OSError as error:
            raise self._explain_failure(str(error)) from error
        if problem is not None:
            raise self._explain_failure(problem)

    def _explain_failure(self, observation: str) -> UnreachableError:
        return UnreachableError(
            "Database cannot be reached from the production host",
            what=observation,
            where=f"{self._to.location}, from {self._place}",
            next_step="check host and port of PROD_DATABASE_URL as that host sees them, and that the server admits it (firewall)",
        )
