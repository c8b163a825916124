"""A pod's port on loopback, through a real API server and a node that forwards as a kubelet does."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from azora_ci.clients.kubernetes import stream
from azora_ci.clients.kubernetes.api import ForbiddenError, NotFoundError
from azora_ci.rehearsal.kubernetes.cluster import API_SERVER
from tests.support.forwarding import Place
from tests.support.waiting import until

pytestmark = pytest.mark.kubernetes
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def place(kubernetes, tmp_path_factory) -> Place:
    made = Place(kubernetes, tmp_path_factory.mktemp("pods"))
    made.add("talker")
    return made


def opened(port: int, word: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.sendall(word)
    return connection


def everything(connection: socket.socket) -> bytes:
    parts = []
    while more := connection.recv(MIB):
        parts.append(more)
    return b"".join(parts)


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_connections_at_once_carry_what_they_are_given(place):
    digests: dict[int, tuple[str, str]] = {}

    def talk(port: int, number: int) -> None:
        data, received = os.urandom(4 * MIB), b""
        with opened(port, b"e") as connection:
            sender = threading.Thread(target=connection.sendall, args=(data,))
            sender.start()
            while len(received) < len(data) and (more := connection.recv(MIB)):
                received += more
            sender.join()
        digests[number] = hashlib.sha256(data).hexdigest(), hashlib.sha256(received).hexdigest()

    with place.forward() as forward:
        threads = [threading.Thread(target=talk, args=(forward.port, number)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(digests) == 12
    assert all(sent == received for sent, received in digests.values())
    assert forward.broken == []


def test_a_slow_reader_lets_the_pod_wait(place):
    with place.forward() as forward, opened(forward.port, b"g") as connection:
        connection.recv(1)
        before = resident()
        time.sleep(3)
        assert resident() - before < 20 * MIB  # of the 96 that the pod gives
        assert len(everything(connection)) == 96 * MIB - 1


def test_silence_is_broken_by_pings_that_are_answered(place, monkeypatch):
    monkeypatch.setattr(stream, "PING_SECONDS", 0.2)
    read, kinds = stream.Stream._frame, []

    def noting(self):
        frame = read(self)
        kinds.append(frame and frame[0] & stream.OPCODE)
        return frame

    monkeypatch.setattr(stream.Stream, "_frame", noting)
    with place.forward() as forward, opened(forward.port, b"e1") as connection:
        assert connection.recv(1) == b"1"
        time.sleep(1.5)
        connection.sendall(b"2")
        assert connection.recv(1) == b"2"
    assert kinds.count(stream.PONG) >= 3
    assert forward.broken == []


def test_a_pod_that_goes_away_breaks_a_connection_and_the_next_one_finds_another(place):
    place.add("first")
    said: list[str] = []
    with place.forward(pod="first", say=said.append) as forward, opened(forward.port, b"e1") as connection:
        assert connection.recv(1) == b"1"
        place.remove("first")
        assert everything(connection) == b""
        until(lambda: said, "it is said")
    assert f"a connection through pod {place.namespace}/first, port 5432 ended: pod first closed it first: " in said[0]
    with place.forward() as other, opened(other.port, b"n") as connection:
        assert everything(connection) == b"talker"


def test_an_api_server_that_restarts_breaks_connections_and_later_ones_are_made(place):
    with place.forward() as forward:
        with opened(forward.port, b"e1") as connection:
            assert connection.recv(1) == b"1"
            place.cluster.kill(API_SERVER)
            with pytest.raises(ConnectionResetError):
                everything(connection)
            until(lambda: forward.broken, "it is noted")
        place.cluster.restart(API_SERVER)
        with opened(forward.port, b"n") as connection:
            assert everything(connection) == b"talker"
    assert "API server" in forward.broken[0]


def test_what_refuses_is_said(place, tmp_path):
    with place.forward(port=5433) as forward, opened(forward.port, b"e") as connection:
        with pytest.raises(ConnectionResetError):
            everything(connection)
        until(lambda: forward.broken, "it is noted")
    assert "connection refused" in forward.broken[0]
    with pytest.raises(NotFoundError, match='pods "nobody" not found'):
        place.forward(pod="nobody").dial()
    with pytest.raises(NotFoundError, match='services "nothing" not found'):
        place.forward(service="nothing").dial()


def test_these_rights_are_enough_and_none_is_superfluous(place):
    with place.forward(place.user("all")) as forward, opened(forward.port, b"n") as connection:
        assert everything(connection) == b"talker"
    for number, missing in enumerate(("get services postgres", "list pods", "get pods/portforward")):
        with pytest.raises(ForbiddenError, match=missing.split()[1].partition("/")[0]):
            place.forward(place.user(f"poor-{number}", (missing,))).dial()
    only = place.user("only", pod="talker")
    with place.forward(only, pod="talker").dial():
        pass
    place.add("other")
    with pytest.raises(ForbiddenError, match='"other"'):
        place.forward(only, pod="other").dial()


def test_a_service_without_ready_pods_is_said(place):
    empty = Place(place.cluster, place.folder)
    with pytest.raises(NotFoundError, match="0 pods match app=postgres"):
        empty.forward().dial()
