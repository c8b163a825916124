"""The edge's log of what went wrong, written by a real Envoy."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from azora_ci.health.failures import LONGEST, Failure
from azora_ci.targets.envoy import access_log
from azora_ci.targets.envoy.state import EdgeOptions
from tests.support.edge_lab import Backend, Lab
from tests.support.edge_world import OLD
from tests.support.waiting import until


class Instance(Backend):
    """Answers by the path: 200, 500, after a while, half, or not at all."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path.startswith("/fails"):
            request.send_error(500)
        elif path == "/closes":
            request.connection.shutdown(socket.SHUT_RDWR)
        elif path == "/half":
            request.send_response(200)
            request.send_header("content-length", "1000")
            request.end_headers()
            request.wfile.write(b"half")
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
        elif path == "/stream":
            request.send_response(101)
            request.send_header("connection", "upgrade")
            request.send_header("upgrade", "websocket")
            request.end_headers()
            request.wfile.flush()
            request.close_connection = True
        else:
            time.sleep({"/hangs": 2, "/slow": access_log.SLOW_SECONDS + 0.5}.get(path, 0))
            super().answer(request)


class Logged:
    """A lab whose edge logs."""

    def __init__(self, folder: Path, **service: Any) -> None:
        self.file = folder / "log.jsonl"
        self.lab = Lab(folder, **service)
        self.instance = Instance("v1.0.0")
        self.lab.put([self.instance.address], None, options=EdgeOptions(log=str(self.file)))

    def get(
        self, path: str, method: str = "GET", *, patience: float = 20, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.lab.port, timeout=patience)
        try:
            connection.request(method, path, body, headers or {})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()

    def failures(self, number: int) -> list[Failure]:
        """Return what was logged, when it is as much as that."""

        def read() -> list[Failure]:
            return access_log.read(self.file.read_text().split("\n") if self.file.exists() else [], since="")

        until(lambda: len(read()) >= number, f"{number} requests are logged")
        return read()


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Logged]:
    logged = Logged(tmp_path)
    yield logged
    logged.lab.close()


def test_each_way_to_fail_is_logged_in_plain_words_and_healthy_traffic_is_not(logged):
    for path in ("/", "/work", "/stream"):
        logged.get(path, headers={"connection": "upgrade", "upgrade": "websocket"} if path == "/stream" else {})
    logged.get("/fails", "POST")
    logged.get("/closes")
    logged.get("/half")
    logged.get("/large", "POST", body=b"x" * (17 * 1024**2))
    logged.get("/hangs", patience=0.5)
    logged.get("/slow")
    logged.get("/fails/last")
    failures = {failure.path: failure for failure in logged.failures(7)}
    assert {path: (failure.status, failure.reason) for path, failure in failures.items()} == {
        "/fails": (500, "the service answered so"),
        "/closes": (503, "the instance closed the connection"),
        "/half": (200, "cut off: the instance's answer broke off"),
        "/large": (413, "refused: its body is too large"),
        "/hangs": (0, "given up"),
        "/slow": (200, "slow"),
        "/fails/last": (500, "the service answered so"),
    }
    failed, hung = failures["/fails"], failures["/hangs"]
    assert (failed.method, failed.service, failed.release, failed.kind, failed.attempts) == ("POST", "api", OLD, "user", 1)
    assert failed.instance == logged.instance.address
    assert hung.words == f"given up after {hung.milliseconds / 1000:.1f} s"
    assert 400 < hung.milliseconds < 2000
    assert (failures["/closes"].attempts, failures["/closes"].helped) == (2, False)


def test_what_a_limit_refuses_is_logged(tmp_path):
    logged = Logged(tmp_path, max_connections=1, max_pending_requests=1)
    try:
        users = [threading.Thread(target=logged.get, args=("/hangs",)) for _ in range(8)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        (reason,) = {failure.reason for failure in logged.failures(2)}  # the others get their answer
        assert reason == "refused: too many requests wait for an instance"
    finally:
        logged.lab.close()


def test_an_answer_that_another_instance_gave_is_logged(logged):
    class Broken(Backend):
        def answer(self, request: BaseHTTPRequestHandler) -> None:
            request.connection.shutdown(socket.SHUT_RDWR)

    logged.lab.put([logged.instance.address, Broken("v1.0.0").address], None)
    for _ in range(8):
        logged.get("/work")
    failure = logged.failures(1)[0]
    assert (failure.status, failure.reason, failure.attempts, failure.helped) == (200, "another instance answered", 2, True)


def test_a_line_holds_nothing_personal_and_is_short(logged):
    for path in ("/fails", f"/fails/{'a' * 30_000}"):
        logged.get(f"{path}?token=geheim", headers={"cookie": "session=geheim", "user-agent": "geheim", "authorization": "geheim"})
    short, long = logged.failures(2)
    assert (short.path, len(long.path)) == ("/fails", LONGEST["path"])
    text = logged.file.read_text()
    assert "geheim" not in text
    assert "127.0.0.1" not in text.replace(logged.instance.address, "")
    assert max(map(len, text.splitlines())) < 1000


@pytest.mark.parametrize(
    "path", ["/fails/%0a::error::x", "/fails/::error::x", "/fails/\x1b[31m", '/fails/"\\', "/fails/\x85::error::", "/fails/\n::error::x"]
)
def test_paths_stay_text(logged, path):
    with socket.create_connection(("127.0.0.1", logged.lab.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode("latin-1"))
        while connection.recv(4096):
            pass
    logged.get("/fails/then")
    failures = logged.failures(1)
    until(lambda: logged.failures(1)[-1].path == "/fails/then", "the last request is logged")
    assert all(failure.path.isprintable() for failure in failures)


def test_what_is_no_line_of_the_log_is_passed_over():
    lines = ["[2026-11-30 23:50:40][warning] Deprecated", "", "[1, 2]", '{"time": "2026', "[" * 100_000, json.dumps({"time": "x"})]
    assert access_log.read(lines, since="") == []


def test_text_of_users_is_cut_and_printable():
    line = {
        "time": "2026-11-24T11:03:16.123Z", "cluster": f"call:api_gateway-{OLD}", "route": None, "instance": None, "other": None,
        "method": "GET\n::error::", "path": "/\x1b[2J\u202e\n" + "a" * 1000, "status": 503, "flags": "UO", "details": "overflow",
        "milliseconds": 1, "attempts": 0,
    }  # fmt: skip
    (failure,) = access_log.read([json.dumps(line)], since="2026-11-24T11:03:16.000Z")
    assert (failure.kind, failure.service, failure.release) == ("call", "api_gateway", OLD)
    assert failure.path == "/?[2J??" + "a" * (LONGEST["path"] - 7)
    assert failure.method == "GET?::error::"
    assert failure.reason == "refused: too many requests wait for an instance"
    assert access_log.read([json.dumps(line)], since="2026-11-24T11:03:17.000Z") == []
