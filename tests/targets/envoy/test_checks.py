"""Which instances the edge leaves out because they take no connection, and whose users stay where they are all the same."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.targets.envoy.state import cluster_name
from tests.support import load
from tests.support.edge_lab import Backend, Lab, refusing, send
from tests.support.edge_world import NEW, OLD
from tests.support.waiting import until

LIVE = "/live"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path_factory.mktemp("edge"))
    yield edge_lab
    edge_lab.close()


@pytest.fixture(scope="module")
def alive() -> Iterator[tuple[str, str]]:
    old, new = Backend("1.0.0"), Backend("1.1.0")
    yield old.address, new.address
    old.die()
    new.die()


def failed_connections(lab: Lab, release_id: str) -> int:
    before = lab.edge.counters(lab.edge.state())["api", release_id]
    assert "HTTP 503" not in send(lab.port, 24)
    return lab.edge.counters(lab.edge.state())["api", release_id].since(before).connect_failures


def test_a_dead_instance_is_left_out_and_its_side_keeps_its_users(lab, alive):
    lab.put([alive[0], refusing(), refusing()], [alive[1]], 5)
    until(lambda: failed_connections(lab, OLD) == 0, "the dead ones are left out")
    answers = send(lab.port, 1000)
    assert answers["1.0.0"] + answers["1.1.0"] == 1000
    assert answers["1.1.0"] < 85  # 5 standard deviations above 5 %


def test_a_side_that_is_dead_as_a_whole_is_asked_and_counted_all_the_same(lab, alive):
    """Its users are served by the other side, but only after it failed: otherwise nobody would notice."""
    lab.put([alive[0]], [refusing(), refusing()], 50)
    time.sleep(3)  # until the second of them is left out
    before = lab.edge.counters(lab.edge.state())["api", NEW]
    assert send(lab.port, 100) == Counter({"1.0.0": 100})
    counters = lab.edge.counters(lab.edge.state())["api", NEW].since(before)
    assert 20 < counters.requests < 80
    assert counters.failed_share == 1.0


class Hanging(Backend):
    """Takes every request, and once it ``hangs`` answers none."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.works = threading.Event()
        self.works.set()

    def answer(self, request):
        self.works.wait()
        super().answer(request)

    @property
    def users(self) -> int:
        return sum(path != LIVE for _, path in self.requests)


@pytest.fixture
def versions() -> Iterator[tuple[list[Hanging], list[Hanging]]]:
    old, new = [Hanging("1.0.0") for _ in range(3)], [Hanging("1.1.0")]
    yield old, new
    for instance in (*old, *new):
        instance.works.set()
        instance.die()


@pytest.fixture
def asked(tmp_path: Path, versions: tuple[list[Hanging], list[Hanging]]) -> Iterator[Lab]:
    lab = Lab(tmp_path, liveness_path=LIVE)
    try:
        lab.put(*([instance.address for instance in version] for version in versions))
        yield lab
    finally:
        lab.close()


def answer(lab: Lab) -> str:
    """Return the version that answers a user who leaves after a moment, or "" without an answer."""
    try:
        return json.loads(load.get(("127.0.0.1", lab.port), "/", patience=0.5)[2])["version"]
    except TimeoutError:
        return ""


def left_out(lab: Lab) -> int:
    """Return how many instances of the old version the edge leaves out."""
    clusters = lab.edge._get("/clusters?format=json")["cluster_statuses"]
    hosts = next(cluster["host_statuses"] for cluster in clusters if cluster["name"] == cluster_name("api", OLD))
    return sum(bool(host["health_status"].get("failed_active_health_check")) for host in hosts)


def test_an_instance_that_hangs_is_left_out_and_no_user_changes_version(asked, versions):
    (hanging, *_), (new,) = versions
    hanging.works.clear()
    begun, last, answers = time.monotonic(), 0.0, Counter[str]()
    while time.monotonic() - begun < min(last + 3, 9):
        answers[version := answer(asked)] += 1
        last = last if version else time.monotonic() - begun
    assert answers[""] > 0
    assert last <= 6
    assert set(answers) == {"", "1.0.0"}
    assert new.users == 0
    hanging.works.set()
    users = hanging.users
    until(lambda: answer(asked) and hanging.users > users, "it is in turn again")


def test_a_side_that_hangs_as_a_whole_keeps_its_users(asked, versions):
    old, new = versions
    for instance in old:
        instance.works.clear()
    until(lambda: left_out(asked) == 3, "all of them are left out")
    before = sum(instance.users for instance in old)
    assert [answer(asked) for _ in range(3)] == [""] * 3
    assert sum(instance.users for instance in old) == before + 3
    assert new[0].users == 0
    old[1].works.set()
    until(lambda: left_out(asked) == 2, "the one that works is in turn again")
    assert [answer(asked) for _ in range(6)] == ["1.0.0"] * 6


def test_a_path_that_is_not_there_leaves_nobody_out(tmp_path, alive):
    lab = Lab(tmp_path, liveness_path=LIVE)
    try:
        lost = Lost("1.0.0")
        lab.put([lost.address], [alive[1]])
        until(lambda: lost.requests.count(("GET", LIVE)) >= 4, "it was asked")
        assert left_out(lab) == 0
    finally:
        lab.close()
        lost.die()


class Lost(Backend):
    def answer(self, request):
        request.send_error(404)
