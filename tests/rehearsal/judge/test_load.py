"""The load keeps its rate whatever the answers do, and notes version and status of every one."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from azora_ci.core.clock import Clock
from azora_ci.rehearsal.judge.load import Load, LoadAnswer, counts, read, version_in


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            Clock().sleep(0.5)
        if self.path == "/close":
            self.close_connection = True
            return
        body = b"<p>error page" if self.path == "/error" else json.dumps({"version": "1.1.0"}).encode()
        self.send_response(500 if self.path == "/error" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-azora-version", "1.0.0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def run(address: str, log: Path, paths: tuple[str, ...], seconds: float = 1.0, rate: float = 40) -> list[LoadAnswer]:
    stop = threading.Event()
    thread = threading.Thread(target=Load(address, log, rate=rate, paths=paths).run, args=(stop,))
    thread.start()
    Clock().sleep(seconds)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    return read(log)


def test_every_answer_is_noted_with_version_and_status(address: str, tmp_path: Path) -> None:
    answers = run(address, tmp_path / "log", ("/", "/error", "/close"))
    assert len(answers) >= 20
    assert {(answer.path, answer.status, answer.version, answer.failed) for answer in answers} == {
        ("/", 200, "1.1.0", False),
        ("/error", 500, "1.0.0", True),
        ("/close", 0, "none", True),
    }
    assert all(answer.error for answer in answers if answer.status == 0)


def test_slow_answers_do_not_slow_the_load(address: str, tmp_path: Path) -> None:
    answers = run(address, tmp_path / "log", ("/slow",), seconds=2.0)
    dues = sorted(answer.at for answer in answers)
    gaps = [later - earlier for earlier, later in itertools.pairwise(dues)]
    assert len(answers) >= 60, "requests must start on schedule though each answer takes half a second"
    assert sorted(gaps)[len(gaps) // 2] < 0.05
    assert all(answer.milliseconds >= 490 for answer in answers)


def test_versions_are_those_of_bodies() -> None:
    header = {"x-azora-version": "1.0.0", "x-build": "v3.0.0"}
    assert version_in(b'{"version": "2.0.0"}', header) == "2.0.0"
    assert version_in(b"[1]", header) == "1.0.0"
    assert version_in(b"<p>", {}) == "none"
    assert version_in(b'{"version": "v2.0.0"}', {}) == "2.0.0"
    assert version_in(b"ok", header, "header:x-build") == "3.0.0"
    assert version_in(b'{"build": {"version": "4.0.0"}, "version": "5"}', header, "json:build.version") == "4.0.0"
    assert version_in(b'{"build": "4.0.0"}', header, "json:build.version") == "none"
    assert version_in(b'{"version": "2.0.0"}', header, "image") == "none"


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read(log) == []
    line = json.dumps({"at": 1.0, "path": "/", "status": 200, "version": "1.0.0", "milliseconds": 3.0})
    log.write_text(f"{line}\n{line[:20]}", encoding="utf-8")
    assert counts(read(log)) == {"1.0.0": 1}
