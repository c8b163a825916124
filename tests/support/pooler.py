"""Poolers that speak PostgreSQL's protocol (protocol.html, 54.2 and 54.7), in front of a real server.

``SessionProxy`` leads each client to a connection of its own and invents the process id of the handshake, as Neon's does.
``TransactionPooler`` answers clients itself and lends them one of its server connections for the length of a transaction.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from types import TracebackType
from typing import Any

from azora_ci.database.postgres import DatabaseUrl

NO_ENCRYPTION = {80877103, 80877104}  # SSLRequest, GSSENCRequest
CANCEL = 80877102
INVENTED = struct.pack("!II", 4711, 42)  # process id and key of BackendKeyData


class _Server:
    """A listening socket on loopback; every client is served by ``talk`` on a thread."""

    def __init__(self, url: str) -> None:
        self.server = DatabaseUrl.parse(url)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Return the connection string that leads here."""
        return DatabaseUrl("127.0.0.1", str(self.port), self.server.user, self.server.password, self.server.database).text

    def __enter__(self) -> Any:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError):
            startup = _startup(client)
            while struct.unpack("!I", startup[4:8])[0] in NO_ENCRYPTION:
                client.sendall(b"N")
                startup = _startup(client)
            self.talk(client, startup)

    def talk(self, client: socket.socket, startup: bytes) -> None:
        raise NotImplementedError


class SessionProxy(_Server):
    """Leads each client to a server connection of its own. ``clients`` counts them."""

    clients = 0

    def talk(self, client: socket.socket, startup: bytes) -> None:
        self.clients += 1
        with socket.create_connection((self.server.host, int(self.server.port))) as upstream:
            upstream.sendall(startup)
            if struct.unpack("!I", startup[4:8])[0] == CANCEL:
                return
            threading.Thread(target=_copy, args=(client, upstream), daemon=True).start()
            while True:
                kind, body = _message(upstream)
                client.sendall(_packed(kind, INVENTED if kind == b"K" else body))


class TransactionPooler(_Server):
    """Lends server connections to transactions, the one used last first, as PgBouncer does."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._free: list[Any] = []
        self._lock = threading.Lock()

    def talk(self, client: socket.socket, startup: bytes) -> None:
        parameters = {"server_version": "18.0", "server_encoding": "UTF8", "client_encoding": "UTF8", "standard_conforming_strings": "on"}
        described = (f"{name}\0{value}\0".encode() for name, value in {**parameters, "integer_datetimes": "on"}.items())
        client.sendall(_packed(b"R", struct.pack("!I", 0)) + b"".join(_packed(b"S", text) for text in described))
        client.sendall(_packed(b"K", INVENTED) + _packed(b"Z", b"I"))
        while True:
            kind, body = _message(client)
            if kind == b"X":
                return
            self._transaction(client, kind, body)

    def _transaction(self, client: socket.socket, kind: bytes, body: bytes) -> None:
        connection = self._borrow()
        with socket.socket(fileno=os.dup(connection.fileno())) as server:
            server.setblocking(True)  # libpq's are not
            while True:
                server.sendall(_packed(kind, body))
                if _relay(server, client) == b"I":
                    break
                kind, body = _message(client)
        with self._lock:
            self._free.append(connection)

    def _borrow(self) -> Any:
        with self._lock:
            return self._free.pop() if self._free else self.server.connect()


def _relay(server: socket.socket, client: socket.socket) -> bytes:
    """Pass the answer to a query on, and return the state of the transaction after it."""
    while True:
        kind, body = _message(server)
        client.sendall(_packed(kind, body))
        if kind == b"Z":
            return body


def _startup(client: socket.socket) -> bytes:
    length = _read(client, 4)
    return length + _read(client, struct.unpack("!I", length)[0] - 4)


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    head = _read(source, 5)
    return head[:1], _read(source, struct.unpack("!I", head[1:])[0] - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _read(source: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = source.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
