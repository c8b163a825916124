"""What else users get from the edge: their address handed on, timeouts per route, connections that stay open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.edge_lab import Backend, Lab
from tests.support.edge_talk import Chat, Events
from tests.support.edge_world import get
from tests.support.waiting import until


class Talking(Backend):
    """Answers slowly at ``/slow``, streams at ``/events``, echoes at ``/chat``."""

    def answer(self, request):
        if request.path == "/slow":
            time.sleep(10)
        if request.path not in {"/events", "/chat"}:
            super().answer(request)
            return
        request.close_connection = True
        request.send_response(101 if request.path == "/chat" else 200)
        for name, value in {"connection": "Upgrade", "upgrade": "websocket"}.items() if request.path == "/chat" else ():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.flush()
        while request.path == "/events":
            request.wfile.write(b"data: tick\n\n")
            time.sleep(0.1)
        while heard := request.connection.recv(4096):
            request.wfile.write(b"heard " + heard)


@pytest.fixture
def talking() -> Iterator[Backend]:
    backend = Talking("1.0.0")
    yield backend
    backend.die()


@pytest.fixture
def lab(tmp_path: Path, talking: Backend, request: pytest.FixtureRequest) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path, timeout_seconds=getattr(request, "param", 1))
    try:
        edge_lab.put([talking.address], None)
        yield edge_lab
    finally:
        edge_lab.close()


def test_a_service_learns_who_asks(lab):
    headers = json.loads(get(lab.port, "/", headers={"x-forwarded-for": "203.0.113.9", "x-request-id": "made-up"})[2])["headers"]
    claimed, observed = headers["x-forwarded-for"].split(",")
    assert claimed == "203.0.113.9"
    assert observed.strip() != claimed  # the last address is the peer that the edge itself observed
    assert headers["x-forwarded-proto"] == "http"
    assert len(headers["x-request-id"]) == 36
    assert headers["host"] == f"127.0.0.1:{lab.port}"


def test_a_slow_answer_is_given_up_after_the_routes_own_time(lab):
    begun = time.monotonic()
    assert get(lab.port, "/slow")[0] == 504
    assert 0.9 < time.monotonic() - begun < 9
    assert get(lab.port, "/quick")[0] == 200


def test_an_upgraded_connection_outlives_the_routes_time(lab):
    chat = Chat(lab.port, "/chat")
    time.sleep(1.5)
    assert chat.say("hello") == "heard hello"


def test_a_stream_is_cut_by_the_time_of_a_service_that_is_not_one_of_streams(lab):
    events = Events(lab.port, "/events")
    until(lambda: events.ended is not None, "the stream is cut")


@pytest.mark.faults
@pytest.mark.parametrize("lab", [0], indirect=True)
def test_a_service_of_streams_has_no_time_limit(lab):
    """Without a setting of ours, Envoy ends a request after 15 s."""
    events, chat = Events(lab.port, "/events"), Chat(lab.port, "/chat")
    time.sleep(17)
    assert events.ended is None
    assert events.count > 100
    assert chat.say("hello") == "heard hello"
