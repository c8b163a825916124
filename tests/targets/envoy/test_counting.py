"""What a real Envoy counts: each request once, by how it ended, for the version that owed the answer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest

from azora_ci.health.answers import ANY, CANARY, PROOF_HEADER, RELEASE_HEADER, pass_word
from azora_ci.health.traffic import Counters, slower_than
from azora_ci.targets.envoy import counting
from azora_ci.targets.envoy.state import EdgeRelease, EdgeService, EdgeState
from tests.support.edge_lab import Backend, Lab, refusing
from tests.support.edge_world import NEW, OLD, get
from tests.support.waiting import until


class Odd(Backend):
    """A version whose answers end in every way, by the path."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if "hang" in request.path:
            time.sleep(2)
        elif "cut" in request.path:
            request.send_response(200)
            request.send_header("content-length", "100")
            request.end_headers()
            request.wfile.write(b"half")
            self._hang_up(request)
        elif "kill" in request.path:
            self._hang_up(request)
        elif "missing" in request.path:
            request.send_error(404)
        elif "fail" in request.path:
            request.send_error(500)
        else:
            super().answer(request)

    @staticmethod
    def _hang_up(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path_factory.mktemp("edge"), timeout_seconds=0.8)
    yield edge_lab
    edge_lab.close()


@pytest.fixture(scope="module")
def odd() -> Iterator[Odd]:
    backend = Odd("1.1.0")
    yield backend
    backend.die()


def leave(lab: Lab, path: str, seconds: float = 0.1) -> None:
    """Send a request and hang up after some time."""
    with socket.create_connection(("127.0.0.1", lab.port), timeout=20) as user:
        user.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        time.sleep(seconds)


def counted(lab: Lab, release: str = NEW) -> Counters:
    return lab.edge.counters(lab.edge.state())["api", release]


def ended(lab: Lab, before: Counters, number: int) -> Counters:
    """Return the counts since ``before``, once so many requests have ended and their latencies are merged."""
    until(lambda: counted(lab).requests - before.requests >= number, "the requests have ended")
    until(lambda: counted(lab).since(before).buckets[-1][1] >= number, "their latencies are merged")
    return counted(lab).since(before)


def test_a_request_that_its_user_gave_up_is_a_failure_and_slow(lab, odd):
    lab.put([refusing()], [odd.address], 100)
    get(lab.port, "/")
    before = ended(lab, Counters(), 1)
    for _ in range(5):
        leave(lab, "/hang")
    counters = ended(lab, before, 5)
    assert (counters.requests, counters.given_up, counters.failed) == (5, 5, 5)
    assert slower_than(counters.buckets, 30_000) == (5, 5), "however long they waited, an answer would have taken longer"


def test_a_request_under_way_is_no_failure_yet(lab, odd):
    lab.put([refusing()], [odd.address], 100)
    before = counted(lab)
    with socket.create_connection(("127.0.0.1", lab.port), timeout=20) as user:
        user.sendall(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: lab.edge.under_way({odd.address}), "the request is under way")
        assert counted(lab).since(before).requests == 0
        assert user.recv(4096).startswith(b"HTTP/1.1 504")
    counters = ended(lab, before, 1)
    assert (counters.requests, counters.errors, counters.given_up, counters.timeouts) == (1, 1, 0, 1)


def test_an_answer_that_breaks_off_is_a_failure(lab, odd):
    lab.put([refusing()], [odd.address], 100)
    before = counted(lab)
    leave(lab, "/cut", 0.5)
    until(lambda: counted(lab).since(before).requests == 1, "the request has ended")
    assert counted(lab).since(before).broken == counted(lab).since(before).failed == 1


def test_answers_of_404_are_counted_apart(lab, odd):
    lab.put([refusing()], [odd.address], 100)
    before = counted(lab)
    for path in ("/", "/missing", "/missing/too"):
        get(lab.port, path)
    counters = ended(lab, before, 3)
    assert (counters.requests, counters.not_found, counters.failed) == (3, 2, 0)


def test_a_request_that_a_limit_refused_counts_for_the_version_that_owed_it(tmp_path, odd):
    lab = Lab(tmp_path, timeout_seconds=2, max_connections=1, max_pending_requests=1)
    old = Backend("1.0.0")
    try:
        lab.put([old.address], [odd.address], 100)
        with ThreadPoolExecutor(8) as pool:
            answers = [status for status, *_ in pool.map(lambda _: get(lab.port, "/hang"), range(8))]
        refused = answers.count(503)
        assert refused >= 4, "one is at work, one waits"
        until(lambda: counted(lab).requests == 8, "all requests have ended")
        assert (counted(lab).errors >= refused, counted(lab, OLD).requests) == (True, 0)
        names = [stat["name"] for stat in lab.edge._get("/stats?format=json&filter=requests.route")["stats"]]
        assert any(f".cluster.api-{NEW}.code.503.flags.UO" in name for name in names), names
    finally:
        lab.close()
        old.die()


def test_leaving_a_stream_is_no_failure(tmp_path, odd):
    lab = Lab(tmp_path, timeout_seconds=0)
    try:
        lab.put([odd.address], None)
        leave(lab, "/hang")
        get(lab.port, "/")
        until(lambda: counted(lab, OLD).requests == 1, "the answered request is counted")
        assert counted(lab, OLD).failed == 0
    finally:
        lab.close()


def test_a_request_that_fails_at_every_attempt_is_one_failure(lab, odd):
    sibling = Odd("1.1.0")
    try:
        lab.put([refusing()], [odd.address, sibling.address], 100)
        before, asked = counted(lab), len(odd.requests)
        assert get(lab.port, "/kill")[0] == 503
        assert len(odd.requests) - asked + len(sibling.requests) == 2, "it was tried again"
        until(lambda: counted(lab).since(before).requests, "the request has ended")
        assert (counted(lab).since(before).requests, counted(lab).since(before).failed) == (1, 1)
    finally:
        sibling.die()


def test_what_the_old_version_answered_is_a_failure_of_the_new_one(lab, odd):
    old = Backend("1.0.0")
    try:
        lab.put([old.address], [refusing()], 100)
        before, before_old = counted(lab), counted(lab, OLD)
        assert json.loads(get(lab.port, "/")[2])["version"] == "1.0.0"
        until(lambda: counted(lab).since(before).requests, "the request has ended")
        assert (counted(lab).since(before).failovers, counted(lab, OLD).since(before_old).requests) == (1, 0)
        names = [stat["name"] for stat in lab.edge._get("/stats?format=json&filter=requests.route")["stats"]]
        assert any(name.endswith(".code.200.flags.-.attempts.2.other.release") for name in names)
    finally:
        old.die()


@pytest.mark.parametrize(
    ("ended_as", "counters"),
    [
        ("200.flags.-.attempts.1.other.", Counters(7)),
        ("404.flags.-.attempts.1.other.", Counters(7, not_found=7)),
        ("200.flags.DC.attempts.1.other.", Counters(7)),
        ("200.flags.-.attempts.2.other.", Counters(7, failovers=7)),
        ("200.flags.-.attempts.1.other.release", Counters(7, failovers=7)),  # no instance of its own was healthy
        ("503.flags.UO.attempts.1.other.", Counters(7, errors=7)),  # a limit refused it
        ("503.flags.URX,UC.attempts.6.other.", Counters(7, errors=7)),
        ("101.flags.UC.attempts.1.other.", Counters(7)),
        ("0.flags.DC.attempts..other.", Counters(7, given_up=7)),
    ],
)
def test_each_end_counts_once(ended_as, counters):
    state = EdgeState((EdgeService("api", "/", 15),), "127.0.0.1:1", (EdgeRelease(NEW, "v1.1.0", {"api": ("127.0.0.1:2",)}),))
    name = f"ended.requests.route.users.cluster.api-{NEW}.code.{ended_as}"
    read = counting.counters({"stats": [{"name": name, "value": 7}]}, state)["api", NEW]
    assert replace(read, buckets=()) == counters


SECRET = "5ec4e7" * 10


def test_the_header_is_nothing_without_the_secret(lab, odd):
    old = Backend("1.0.0")
    try:
        lab.put([old.address], [odd.address], 0, secret=SECRET)
        before, before_old = counted(lab), counted(lab, OLD)
        for outsider in ("canary", pass_word("x" * 60, CANARY), pass_word(SECRET, CANARY).upper(), SECRET):
            answer = json.loads(get(lab.port, "/", headers={RELEASE_HEADER: outsider})[2])
            assert answer["version"] == "1.0.0", "nobody reaches a canary at 0 %"
            assert RELEASE_HEADER not in answer["headers"]
        answer = json.loads(get(lab.port, "/", headers={RELEASE_HEADER: pass_word(SECRET, CANARY)})[2])
        assert (answer["version"], RELEASE_HEADER in answer["headers"]) == ("1.1.0", False), "no service sees what opens the edge"
        assert get(lab.port, "/fail", headers={RELEASE_HEADER: pass_word(SECRET, CANARY)})[0] == 500
        get(lab.port, "/", headers={RELEASE_HEADER: pass_word(SECRET, ANY)})
        get(lab.port, "/", headers={PROOF_HEADER: SECRET})
        until(lambda: counted(lab, OLD).since(before_old).samples == 6, "all requests have ended")
        new, stable = counted(lab).since(before), counted(lab, OLD).since(before_old)
        assert (new.requests, new.failed, new.ours, new.ours_failed) == (0, 0, 2, 1)
        assert (stable.requests, stable.ours) == (4, 2), "users are not diluted by our probes"
    finally:
        old.die()
