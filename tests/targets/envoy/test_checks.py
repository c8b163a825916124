"""Which instances the edge leaves out because they take no connection, and whose users stay where they are all the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.edge_lab import Backend, Lab, refusing, send
from tests.support.edge_world import NEW, OLD
from tests.support.waiting import until


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
