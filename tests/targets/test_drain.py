"""Going back under load: when it counts as done, that nothing follows, and what becomes of what is still open."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.clock import Clock
from azora_ci.targets.base import Owner
from azora_ci.targets.drain import QUIET_SECONDS, await_standstill, prove
from azora_ci.targets.node import PROOF_SECONDS
from tests.support.edge_talk import Chat, Events
from tests.support.edge_world import NEW, World
from tests.support.waiting import until

OWNER = Owner(NEW, "https://runs.example/2", "tests")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    production = World(tmp_path, instances=1)
    try:
        production.deploy_old()
        yield production
    finally:
        production.close()


class Storm:
    """As many requests as a few kept connections carry: when each was sent, and which version answered."""

    def __init__(self, port: int, threads: int = 6) -> None:
        self.answers: list[tuple[float, str]] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Storm:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._stop.is_set():
            sent = time.monotonic()
            connection.request("GET", "/api/work")
            response = connection.getresponse()
            body = response.read()
            self.answers.append((sent, json.loads(body)["version"] if response.status == 200 else f"HTTP {response.status}"))


def test_going_back_is_done_when_the_last_request_was_counted(world):
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(OWNER), Storm(world.port) as storm:
        target.deploy(release, 100)
        target.set_weight(release, 50)
        time.sleep(1)
        begun = time.monotonic()
        returned = target.abort(release, "a test")
    assert (returned.proved, returned.requests_after) == (True, 0)
    assert {version for _, version in storm.answers} == {"1.0.0", "1.1.0"}
    late = [sent - begun for sent, version in storm.answers if version == "1.1.0" and sent > begun + returned.seconds]
    assert late == []
    rate = sum(sent > begun for sent, _ in storm.answers) / (time.monotonic() - begun)
    assert rate > 40  # a second: with fewer this would show nothing


class Workers:
    """An edge whose workers take new routes up for a while after it was read back."""

    def __init__(self, seconds: float) -> None:
        self._begun, self._seconds = time.monotonic(), seconds

    def requests_to(self, addresses: set[str]) -> int:
        return int(1000 * min(self._seconds, time.monotonic() - self._begun))

    def waiting(self, addresses: set[str]) -> int:
        return 0

    def under_way(self, addresses: set[str]) -> int:
        return 0


class Connecting(Workers):
    """An edge with one request, chosen for an instance before the change, that gets its connection only later."""

    def requests_to(self, addresses: set[str]) -> int:
        return int(time.monotonic() - self._begun > self._seconds)

    def waiting(self, addresses: set[str]) -> int:
        return 1 - self.requests_to(addresses)


def test_a_request_that_waits_for_its_connection_is_waited_for():
    begun = time.monotonic()
    proof = prove(Connecting(0.5), {"x"}, Clock(), settle=2, seconds=0.3, ask=lambda: [])
    assert proof.requests_after == 0
    assert 0.4 < proof.last_request - begun < 1.5


def test_the_moment_is_the_last_request_not_the_configuration():
    begun = time.monotonic()
    proof = prove(Workers(0.5), {"x"}, Clock(), settle=5, seconds=0.3, ask=lambda: [])
    assert 0.4 < proof.last_request - begun < 1.5
    assert proof.requests_after == 0


def test_what_does_not_stand_still_is_not_proved_and_not_waited_for_without_end():
    begun = time.monotonic()
    proof = prove(Workers(60), {"x"}, Clock(), settle=0.5, seconds=0.3, ask=lambda: [])
    assert proof.requests_after > 0
    assert time.monotonic() - begun < 5


def test_a_count_that_never_moves_is_still_since_it_was_first_asked():
    begun = time.monotonic()
    assert await_standstill(lambda: 7, Clock(), 2) - begun < 0.1
    assert time.monotonic() - begun > QUIET_SECONDS


# --- what is still open ------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[World]:
    """A production whose open connections get a second and a half."""
    production = World(tmp_path, instances=1, rollout={"drain_seconds": 1.5})
    try:
        production.deploy_old()
        yield production
    finally:
        production.close()


def test_long_connections_survive_weights_and_are_drained_then_closed_by_an_abort(patient):
    target, release = patient.target(), patient.release("1.1.0", NEW)
    with target.locked(OWNER):
        target.deploy(release, 100)
        target.set_weight(release, 5)
        chat, events, kept = (
            Chat(patient.port, "/api/chat", patient.release_header("canary")),
            Events(patient.port, "/api/events", patient.release_header("canary")),
            Chat(patient.port, "/api/chat", patient.release_header("stable")),
        )
        target.set_weight(release, 50)
        assert chat.say("hello") == "1.1.0 heard hello"
        until(lambda: events.count > 3, "events arrive")
        begun = time.monotonic()
        returned = target.abort(release, "a test")
    assert returned.proved
    until(lambda: events.ended is not None, "the stream is closed")
    assert returned.seconds + PROOF_SECONDS + 1.4 < events.ended - begun < 60  # not before it was drained
    assert chat.say("hello") == ""
    assert kept.say("hello") == "1.0.0 heard hello"


def test_connections_to_both_versions_survive_a_promotion(patient):
    target, release = patient.target(), patient.release("1.1.0", NEW)
    with target.locked(OWNER):
        target.deploy(release, 100)
        target.set_weight(release, 50)
        old, new = (
            Chat(patient.port, "/api/chat", patient.release_header("stable")),
            Chat(patient.port, "/api/chat", patient.release_header("canary")),
        )
        stream = Events(patient.port, "/api/events", patient.release_header("stable"))
        target.set_weight(release, 100)
        target.promote(release)
    assert (old.say("hello"), new.say("hello")) == ("1.0.0 heard hello", "1.1.0 heard hello")
    before = stream.count
    until(lambda: stream.count > before + 5, "the old version goes on to stream")
    assert (stream.version, stream.ended) == ("1.0.0", None)


@pytest.mark.faults
def test_nobody_waits_for_connections_that_end_by_themselves(tmp_path):
    world = World(tmp_path, instances=1, rollout={"drain_seconds": 300})
    try:
        world.deploy_old()
        target, release = world.target(), world.release("1.1.0", NEW)
        with target.locked(OWNER):
            target.deploy(release, 100)
            target.set_weight(release, 50)
            chat = Chat(world.port, "/api/chat", world.release_header("canary"))
            leaving = threading.Timer(3, chat.close)
            begun = time.monotonic()
            leaving.start()
            target.abort(release, "a test")
        assert 3 < time.monotonic() - begun < 120
    finally:
        world.close()


@pytest.mark.faults
def test_a_cancelled_run_does_not_wait_for_them(tmp_path):
    world = World(tmp_path, instances=1, rollout={"drain_seconds": 300})
    try:
        world.deploy_old()
        target, release = world.target(), world.release("1.1.0", NEW)
        with target.locked(OWNER):
            target.deploy(release, 100)
            target.set_weight(release, 50)
            chat = Chat(world.port, "/api/chat", world.release_header("canary"))
            begun = time.monotonic()
            target.abort(release, "cancelled", hurry=True)
        assert time.monotonic() - begun < 30
        assert chat.say("hello") == ""
    finally:
        world.close()
