"""The production database, reached through the first production host (``database.via_ssh``).

SSH forwards a port on loopback to the database. libpq still verifies the database's own name: ``host`` is unchanged and only
``hostaddr`` and ``port`` lead into the tunnel (https://www.postgresql.org/docs/current/libpq-connect.html, hostaddr).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from azora_ci.clients.ssh.access import Access, access_of
from azora_ci.clients.ssh.tunnel import EXPLANATION_SECONDS, Tunnel, forward_lines
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.process import Processes
from azora_ci.core.settings import SshAccess
from azora_ci.database.postgres import DatabaseUrl

ANSWER_SECONDS = 15.0
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")  # a server answers S or N; "SSLRequest" of PostgreSQL's protocol
DEFAULT_PORT = 5432


def access_to(url: DatabaseUrl, settings: SshAccess) -> Access:
    """Return the SSH access through which a database is reached.

    Raises BadInputError for an address that cannot be forwarded, and when the settings do not describe the access.
    """
    if "," in url.host or url.host.startswith("/"):
        raise BadInputError(
            "This address cannot be forwarded",
            what="the connection string names several hosts" if "," in url.host else "the connection string names a local socket",
            where="PROD_DATABASE_URL, with database.via_ssh",
            next_step="name the one host and port that the production host connects to",
        )
    hint = "set them as secrets of the environment, and its variable DATABASE_VIA_SSH to true: it hands them to this step"
    return access_of(settings, "database.via_ssh in the deployment configuration", hint)


@contextmanager
def reachable_database(
    url: DatabaseUrl, access: Access, recorded: str, processes: Processes, clock: Clock, evidence: dict[str, Any]
) -> Iterator[DatabaseUrl]:
    """Yield the address of a database that leads through a tunnel; the tunnel stays open during the block.

    ``recorded`` host keys (text of a known_hosts file) are used when none is pinned; ``host_keys`` is added to ``evidence``. Raises the
    errors of ``ssh.explain``.
    """
    log = processes.log
    credentials = access.credentials(recorded)
    try:
        tunnel = DatabaseTunnel(
            access.hosts[0], to=url, credentials=credentials, processes=processes, clock=clock, alias="azora-database",
            jump=access.jump, say=log.say,
        )  # fmt: skip
        with tunnel:
            evidence["host_keys"] = credentials.evidence()
            if credentials.to_be_pinned():
                log.annotate("New host keys were accepted", credentials.to_be_pinned())
            log.say("the database is reached through the first production host")
            yield url.with_tunnel(tunnel.port)
    finally:
        credentials.wipe()


class DatabaseTunnel(Tunnel):
    """An SSH tunnel that forwards a port on loopback to a database server; the SSH host resolves the server's address."""

    def __init__(self, address: Any, *, to: DatabaseUrl, **options: Any) -> None:
        super().__init__(address, **options)
        self._to = to

    def _forwards(self) -> tuple[str, ...]:
        return forward_lines(self, self._to.parameters.get("hostaddr", self._to.host), int(self._to.port or DEFAULT_PORT))

    def _check(self) -> None:
        """Ask whether the server supports TLS; only a PostgreSQL server answers S, N or E. Raises BadInputError or UnreachableError."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS) as probe:
                probe.sendall(SSL_REQUEST)
                answer = probe.recv(1)
        except OSError as error:
            answer, observation = b"", str(error)
        else:
            observation = f"it answered {answer!r}" if answer else "the connection was closed without an answer"
        if answer not in {b"S", b"N", b"E"}:
            raise self._explain_failure(observation)

    def _explain_failure(self, observation: str) -> BadInputError | UnreachableError:
        assert self._child is not None  # noqa: S101 - it was opened before it was checked
        lines = list[str]()
        for _elapsed in self._clock.ticks(0.05, EXPLANATION_SECONDS):  # OpenSSH writes the reason a moment after it closed the connection
            lines = [line for line in self._child.stderr_text.splitlines() if "open failed" in line]
            if lines:
                break
        details = "; ".join([observation, *lines[-1:]])
        if "administratively prohibited" in details:
            return BadInputError(
                "sshd forbids forwarding",
                what=details,
                where=f"sshd_config on {self._place}",
                next_step=f"set AllowTcpForwarding yes there (and PermitOpen {self._to.location.partition('/')[0]}, where it is used)",
            )
        return UnreachableError(
            "Database cannot be reached from the production host",
            what=details,
            where=f"{self._to.location}, from {self._place}",
            next_step="check host and port of PROD_DATABASE_URL as that host sees them, and that the server admits it (firewall)",
        )
