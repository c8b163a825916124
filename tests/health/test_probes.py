"""HTTP probes against real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from azora_ci.core.clock import Clock
from azora_ci.health.answers import NEW, Endpoint
from azora_ci.health.probes import Prober, ProbeRequest, fetch


@contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve every connection with ``talk`` and yield the address."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)

    def serve_one(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(4096)
                talk(connection)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/health?deep=1"
    finally:
        listening.close()


def healthy(connection: socket.socket) -> None:
    body = b'{"status": "healthy", "version": "1.1.0"}'
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-azora-deployment: 1-abc\r\n\r\n" + body)


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b"x")
        time.sleep(0.05)


def test_an_answer_is_read_with_its_headers():
    with server(healthy) as url:
        answer = fetch(ProbeRequest(url), 20, Clock())
    assert (answer.status, answer.content_type, answer.deployment) == (200, "application/json", "1-abc")
    assert answer.body == b'{"status": "healthy", "version": "1.1.0"}'
    assert answer.milliseconds > 0


def test_headers_are_sent_and_redirects_are_not_followed():
    requests: list[bytes] = []

    def redirect(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")

    def record(connection: socket.socket) -> None:
        requests.append(connection.recv(4096))
        redirect(connection)

    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: record(listening.accept()[0]), daemon=True)
    thread.start()
    answer = fetch(ProbeRequest(f"http://127.0.0.1:{listening.getsockname()[1]}/a?b=c", {"x-azora-release": "canary"}), 20, Clock())
    listening.close()
    assert answer.status == 302
    assert requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"x-azora-release: canary" in requests[0]


@pytest.mark.parametrize("talk", [lambda _: time.sleep(30), trickle], ids=["silent", "trickling"])
def test_an_answer_that_takes_too_long_is_a_timeout(talk):
    start = time.monotonic()
    with server(talk) as url:
        answer = fetch(ProbeRequest(url), 0.4, Clock())
    assert answer.failure == "timeout"
    assert answer.detail == "no answer within 0.4 s"
    assert time.monotonic() - start < 10


def test_what_is_no_http_is_broken():
    with server(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n")) as url:
        assert fetch(ProbeRequest(url), 20, Clock()).failure == "broken"


def test_nobody_listening_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert fetch(ProbeRequest(f"http://127.0.0.1:{port}/"), 20, Clock()).failure == "refused"


def test_many_are_probed_at_once_and_answers_keep_their_order():
    def slow(connection: socket.socket) -> None:
        time.sleep(0.3)
        healthy(connection)

    with server(slow) as good, server(lambda _: time.sleep(60)) as silent:
        endpoints = [Endpoint(str(number), "api", NEW, silent if number == 7 else good) for number in range(32)]
        start = time.monotonic()
        findings = Prober(Clock()).probe(endpoints, 5)
        seconds = time.monotonic() - start
    assert [finding.endpoint.name for finding in findings] == [str(number) for number in range(32)]
    assert [number for number, finding in enumerate(findings) if not finding.passed] == [7]
    assert seconds < 9  # one after the other would take at least 14


def test_a_large_body_is_cut():
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with server(endless) as url:
        answer = fetch(ProbeRequest(url), 20, Clock())
    assert answer.status == 200
    assert len(answer.body) == 64 * 1024
