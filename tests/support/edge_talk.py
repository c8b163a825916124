"""Clients that keep a connection through the edge open: an upgraded one that is echoed, and a stream of events."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tests.support.docker_world import HTTP_PORT


class Chat:
    """A WebSocket, as far as the edge is concerned: an upgraded connection on which every word is answered."""

    def __init__(self, where: int | str, path: str, headers: dict[str, str] | None = None) -> None:
        self._socket = _connect(where, path, headers or {}, "Connection: Upgrade\r\nUpgrade: websocket\r\n")
        assert b" 101 " in _head(self._socket)

    def say(self, word: str) -> str:
        """Return the answer; "" when the connection is closed."""
        with contextlib.suppress(OSError):
            self._socket.sendall(word.encode())
            return self._socket.recv(4096).decode()
        return ""

    def close(self) -> None:
        self._socket.close()


class Events:
    """A stream of events, read by a thread: how many came, and when it ended."""

    def __init__(self, where: int | str, path: str, headers: dict[str, str] | None = None) -> None:
        self.count = 0
        self.version = ""
        self.ended: float | None = None  # monotonic seconds
        self._socket = _connect(where, path, headers or {}, "Accept: text/event-stream\r\nConnection: close\r\n")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._socket.recv(65536):
                self.count += data.count(b"data: ")
                if b"data: " in data:
                    self.version = data.rsplit(b"data: ", 1)[1].split(b"\n")[0].decode()
        self.ended = time.monotonic()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _connect(where: int | str, path: str, headers: dict[str, str], own_headers: str) -> socket.socket:
    address = ("127.0.0.1", where) if isinstance(where, int) else (where, HTTP_PORT)  # a port of this machine, or a host
    connection = socket.create_connection(address, timeout=30)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: azora.example\r\n{lines}{own_headers}\r\n".encode())
    return connection


def _head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(1)  # what follows belongs to the conversation
        assert data, head
        head += data
    return head
