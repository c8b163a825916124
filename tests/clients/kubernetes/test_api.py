"""Requests to servers that are slow, and through proxies that want a login."""

from __future__ import annotations

import base64
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from azora_ci.clients.kubernetes import api as module
from azora_ci.clients.kubernetes import stream
from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.kubeconfig import ClusterAccess
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from tests.support import certificates

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"kind":"x"}'


class Server:
    """A server with TLS; ``act`` is what it does with each connection."""

    def __init__(self, folder: Path) -> None:
        certificates.renew(folder)
        self.ca = (folder / "certificate.pem").read_text()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.act: Callable[[ssl.SSLSocket], None] = lambda connection: connection.sendall(ANSWER)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def access(self) -> ClusterAccess:
        return ClusterAccess(f"https://localhost:{self._listener.getsockname()[1]}", ca=self.ca)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with self._context.wrap_socket(client, server_side=True) as connection:
                while connection.recv(65536):
                    self.act(connection)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.close()


def client_of(access: ClusterAccess, clock: Clock | None = None) -> Api:
    clock = clock or Clock()
    return Api(access, Processes(JobLog(Actions(stream=io.StringIO()), clock)), clock)


def dripping(begin: bytes) -> Callable[[ssl.SSLSocket], None]:
    def act(connection: ssl.SSLSocket) -> None:
        connection.sendall(begin)
        for _ in range(60):
            time.sleep(0.1)
            connection.sendall(b" ")

    return act


DRIPS = {
    "head": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
}


@pytest.mark.parametrize("part", DRIPS)
def test_a_request_to_a_server_that_drips_ends(server, monkeypatch, part):
    monkeypatch.setattr(module, "SECONDS", 0.7)
    client = client_of(server.access)
    server.act = dripping(DRIPS[part])
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="does not answer"):
        client.create("/x", {})
    assert time.monotonic() - begun < 3


def test_a_handshake_of_a_stream_with_a_server_that_drips_ends(server, monkeypatch):
    monkeypatch.setattr(stream, "HANDSHAKE_SECONDS", 0.7)
    server.act = dripping(DRIPS["head"])
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="No connection through the API server"):
        stream.Stream(client_of(server.access), "n", "p", 5432)
    assert time.monotonic() - begun < 3


def test_a_time_limit_begins_anew_with_each_request_of_a_connection(server, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.7)
    client = client_of(server.access)
    for _ in range(3):
        assert client.create("/x", {})["kind"] == "x"
        time.sleep(0.8)
    assert client._connections().connection_from_url(server.access.server).num_connections == 1


class Fast(Clock):
    """A clock whose answers take long, as nobody waits for them. ``step``: seconds between two looks."""

    def __init__(self, step: float) -> None:
        self.step, self.looks = step, 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.looks * self.step


def dated(seconds: float) -> bytes:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return ANSWER.replace(b"\r\n\r\n", f"\r\nDate: {format_datetime(moment, usegmt=True)}\r\n\r\n".encode())


@pytest.mark.parametrize(
    ("took", "apart", "noted"),
    [(0.1, 60, 60), (1.9, 2.4, 0), (0.1, 4, 4), (2.1, 60, 0), (8, 8, 0)],
)
def test_a_slow_answer_does_not_move_our_clock(server, took, apart, noted):
    client = client_of(server.access, Fast(took))
    server.act = lambda connection: connection.sendall(dated(apart))
    client.create("/x", {})
    assert abs(client._skew.total_seconds() - noted) <= (1.5 if noted else 0)


def test_a_proxy_with_a_login_is_told_it_and_the_password_is_masked():
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        proxy = f"http://me:p%40ssw%C3%B6rd@127.0.0.1:{listener.getsockname()[1]}"
        log = JobLog(Actions(stream=io.StringIO()), Clock())
        client = Api(ClusterAccess("https://api.example", proxy=proxy), Processes(log), Clock())
        with pytest.raises(UnreachableError):
            client.create("/x", {})
        with pytest.raises(OSError, match="407"):
            client.dial("", 0, 5)
    login = b"Proxy-Authorization: Basic " + base64.b64encode("me:p@sswörd".encode())
    assert [login in each for each in asked] == [True, True]
    assert log.masked(f"{proxy} p@sswörd p%40ssw%C3%B6rd") == "*** *** ***"
