"""What strangers send to an edge: paths that look like others, methods and headers that nobody needs, connections that say nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from azora_ci.targets.envoy import config
from azora_ci.targets.envoy.state import EdgeRelease, EdgeService
from tests.support.edge_lab import Backend, Lab
from tests.support.edge_world import OLD, get
from tests.support.waiting import until

SLOW, MOST = min(8000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] * 2 // 5), 64  # connections; users may have half of the files
PREFIXES = {"web": "/", "api": "/api", "education": "/api/education"}


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    by_service = {name: Backend(name) for name in PREFIXES}
    yield by_service
    for backend in by_service.values():
        backend.die()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, backends: dict[str, Backend]) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path_factory.mktemp("edge"))
    services = tuple(EdgeService(name, prefix, 15) for name, prefix in PREFIXES.items())
    endpoints = {name: (backend.address,) for name, backend in backends.items()}
    try:
        edge_lab.edge.apply(
            replace(edge_lab.edge.state(), services=services, releases=(EdgeRelease(OLD, "v1.0.0", endpoints),), stable=OLD)
        )
        yield edge_lab
    finally:
        edge_lab.close()


def exchange(port: int, text: str) -> str:
    """Return the beginning of the answer to a request as it is sent, byte by byte."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        return connection.recv(4096).decode()


@pytest.mark.parametrize(
    ("path", "service", "seen"),
    [
        ("/api/education/../admin", "api", "/api/admin"),
        ("//api/admin", "api", "/api/admin"),
        ("/api/education/%2e%2e%2fadmin", "api", "/api/admin"),
        ("/api%2Fadmin", "api", "/api/admin"),
        ("/api/./education//courses?of=a%2Fb", "education", "/api/education/courses?of=a%2Fb"),
        ("/api/../../../etc/passwd", "web", "/etc/passwd"),
    ],
)
def test_an_instance_sees_the_path_by_which_it_was_chosen(lab, backends, path, service, seen):
    for backend in backends.values():
        backend.requests.clear()
    answer = exchange(lab.port, f"GET {path} HTTP/1.1\nhost: edge\nconnection: close\n\n")
    if "%2" in path.partition("?")[0]:  # an escaped slash is asked for again as a slash
        assert answer.startswith("HTTP/1.1 307")
        assert f"location: {seen}\r\n" in answer
        assert not any(backend.requests for backend in backends.values())
    else:
        assert backends[service].requests == [("GET", seen)]


@pytest.mark.parametrize("request_line", ["TRACE /api/x", "CONNECT edge:443", "TRACE //api/x"])
def test_methods_that_nobody_needs_are_refused(lab, backends, request_line):
    before = [list(backend.requests) for backend in backends.values()]
    answer = exchange(lab.port, f"{request_line} HTTP/1.1\nhost: edge\nconnection: close\n\n")
    assert answer[9:12] in {"403", "404", "405"}
    assert [backend.requests for backend in backends.values()] == before


def test_what_a_stranger_says_of_itself_reaches_no_service(lab):
    said = {
        "x-real-ip": "203.0.113.9",
        "forwarded": "for=203.0.113.9;proto=https",
        "x-envoy-original-path": "/admin",
        "x-envoy-internal": "true",
        "x-envoy-attempt-count": "7",
        "x-envoy-decorator-operation": "admin",
        "x-envoy-original-dst-host": "203.0.113.9:80",
        "x-envoy-external-address": "203.0.113.9",
        "x-envoy-upstream-alt-stat-name": "admin",
        "x-envoy-peer-metadata": "admin",
        "x-envoy-made-up": "admin",
    }
    heard = json.loads(get(lab.port, "/api/x", headers=said)[2])["headers"]
    assert not [name for name, value in said.items() if heard.get(name) == value]


def test_a_header_that_another_server_reads_as_another_is_refused(lab):
    assert get(lab.port, "/api/x", headers={"x_azora_release": "canary"})[0] == 400


@contextlib.contextmanager
def half_sent(port: int, number: int) -> Iterator[list[socket.socket]]:
    """Have connections that begin a request and do not end it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(number)]
            for connection in connections:
                connection.sendall(b"GET /api/x HTTP/1.1\r\nhost: edge\r\nx-half: ")
            yield connections
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_that_say_nothing_hold_up_nobody(lab):
    with half_sent(lab.port, SLOW):
        assert get(lab.port, "/api/x")[0] == 200
        lab.edge.apply(lab.edge.state(), 2)
        assert lab.edge.counters(lab.edge.state())["api", OLD].requests > 0
        assert get(lab.port, "/api/x")[0] == 200


def test_more_connections_than_there_may_be_hold_up_no_route_change(tmp_path, monkeypatch, backends):
    monkeypatch.setattr(config, "MAX_USERS", MOST)
    lab = Lab(tmp_path)
    try:
        lab.put([backends["api"].address], None)
        with half_sent(lab.port, 4 * MOST) as connections:
            assert not is_served(lab), "there is no room for another"
            lab.edge.apply(lab.edge.state(), 2)
            lab.edge.counters(lab.edge.state())
            closed = [connection for connection in connections if is_closed(connection)]
            assert len(closed) >= 3 * MOST
        until(lambda: is_served(lab), "users are served when they have gone")
    finally:
        lab.close()


def is_served(lab: Lab) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return get(lab.port, "/")[0] == 200
    return False


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.02)
    try:
        return not connection.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.faults
def test_half_a_request_is_given_up_after_some_seconds(lab):
    with half_sent(lab.port, 1) as (connection,):
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
