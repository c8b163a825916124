"""What a dead instance costs users: no request, no part of the other version's share, and no POST that is executed twice."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import pytest

from tests.support.edge_lab import Backend, Lab, black_hole, refusing, send
from tests.support.edge_world import NEW, OLD, get
from tests.support.waiting import until

REQUESTS = 1000
SPREAD = 0.035  # 5 standard deviations of a share of 5 % in so many requests


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path_factory.mktemp("edge"))
    yield edge_lab
    edge_lab.close()


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, list[Backend]]]:
    by_version = {"1.0.0": [Backend("1.0.0"), Backend("1.0.0")], "1.1.0": [Backend("1.1.0")]}
    yield by_version
    for backend in (*by_version["1.0.0"], *by_version["1.1.0"]):
        backend.die()


@pytest.fixture
def old(backends: dict[str, list[Backend]]) -> list[str]:
    return [backend.address for backend in backends["1.0.0"]]


@pytest.fixture
def new(backends: dict[str, list[Backend]]) -> list[str]:
    return [backend.address for backend in backends["1.1.0"]]


@pytest.mark.parametrize("dead", [1, 2])
def test_dead_old_instances_do_not_send_their_share_to_the_canary(lab, old, new, dead):
    lab.put([*(refusing() for _ in range(dead)), *old[: 3 - dead]], new, 5)
    before = lab.edge.counters(lab.edge.state())["api", OLD]
    answers = send(lab.port, REQUESTS)
    assert set(answers) == {"1.0.0", "1.1.0"}
    assert abs(answers["1.1.0"] / REQUESTS - 0.05) < SPREAD
    assert lab.edge.counters(lab.edge.state())["api", OLD].since(before).failed_share > 0.2  # hidden from users, not from us


def test_an_old_instance_that_does_not_even_refuse_keeps_its_share_too(lab, old, new):
    with black_hole() as silent:
        lab.put([*old, silent], new, 5)
        answers = send(lab.port, 96, threads=48)
    assert sum(answers.values()) == answers["1.0.0"] + answers["1.1.0"]  # none failed
    assert answers["1.1.0"] <= 20  # 7 standard deviations; a third of the requests met the silence


def test_a_dead_canary_costs_no_request_and_is_counted(lab, old):
    lab.put(old, [refusing()], 50)
    before = lab.edge.counters(lab.edge.state())["api", NEW]
    assert send(lab.port, 200) == {"1.0.0": 200}
    counters = lab.edge.counters(lab.edge.state())["api", NEW].since(before)
    assert 50 < counters.requests < 150
    assert counters.failed_share == 1.0


def test_a_canary_that_does_not_even_refuse_costs_no_request(lab, old):
    with black_hole() as silent:
        lab.put(old, [silent], 50)
        before = lab.edge.counters(lab.edge.state())["api", NEW]
        assert send(lab.port, 40, threads=20) == {"1.0.0": 40}  # no more at once than may wait for its silence
    assert lab.edge.counters(lab.edge.state())["api", NEW].since(before).failed_share == 1.0


def test_one_dead_canary_of_two_leaves_the_other_its_share(lab, old, new):
    lab.put(old, [refusing(), *new], 50)
    answers = send(lab.port, 400)
    assert 130 < answers["1.1.0"] < 270
    assert answers["1.0.0"] + answers["1.1.0"] == 400


@pytest.mark.parametrize("dead", ["an old one", "the canary"])
def test_a_post_that_was_never_sent_is_tried_elsewhere(lab, old, new, dead):
    lab.put([*old, refusing()] if dead == "an old one" else old, new if dead == "an old one" else [refusing()], 50)
    answers = send(lab.port, 200, "POST")
    assert answers["1.0.0"] + answers["1.1.0"] == 200


def test_a_large_post_that_was_never_sent_is_tried_elsewhere_too(lab, old):
    lab.put([refusing(), old[0]], None)
    for _ in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=20)
        connection.request("POST", "/", bytes(3 * 1024**2))
        assert connection.getresponse().status == 200
        connection.close()


def test_no_post_is_executed_twice_when_connections_break(lab):
    first, second = Breaking("1.0.0"), Breaking("1.1.0")
    try:
        lab.put([first.address], [second.address], 50)
        answers = send(lab.port, 300, "POST")
        executed = Counter(first.requests + second.requests)
        assert len(executed) == 300
        assert set(executed.values()) == {1}
        assert answers["HTTP 503"] == len([path for _, path in executed if breaks(path)])
        Breaking.met.clear()
        again = send(lab.port, 40)  # what is safe to repeat is repeated
        assert len(Breaking.met) == 4
        assert again["1.0.0"] + again["1.1.0"] == 40
    finally:
        first.die()
        second.die()


def test_no_header_of_a_client_makes_the_edge_repeat_its_post(lab):
    first, second = Breaking("1.0.0"), Breaking("1.1.0")
    try:
        lab.put([first.address], [second.address], 50)
        send(lab.port, 40, "POST", headers={"x-envoy-retry-on": "reset,5xx", "x-envoy-max-retries": "5"})
        assert set(Counter(first.requests + second.requests).values()) == {1}
    finally:
        first.die()
        second.die()


def breaks(path: str) -> bool:
    return path.endswith("7")


class Breaking(Backend):
    """Works on every request, and hangs up on some instead of answering; on a GET only the first time."""

    met: ClassVar[set[str]] = set()

    def answer(self, request):
        if breaks(request.path) and (request.command == "POST" or request.path not in self.met):
            self.met.add(request.path)
            request.close_connection = True
        else:
            super().answer(request)


def test_a_release_without_a_fallback_is_tried_as_often_as_it_has_instances(lab, old):
    lab.put([refusing(), refusing(), old[0]], None)
    assert send(lab.port, 100) == {"1.0.0": 100}


class Mortal(Backend):
    """Dies of a request for ``/poison``."""

    def answer(self, request):
        if request.path == "/poison":
            self.die()
        else:
            super().answer(request)


@pytest.mark.parametrize(("canaries", "killed"), [(3, {"1.0.0": 2, "1.1.0": 1}), (1, {"1.0.0": 2, "1.1.0": 1}), (0, {"1.0.0": 2})])
def test_a_get_that_kills_whoever_works_on_it_is_not_passed_through_all(tmp_path, canaries, killed):
    lab = Lab(tmp_path)
    old, new = [Mortal("1.0.0") for _ in range(3)], [Mortal("1.1.0") for _ in range(canaries)]
    try:
        lab.put([mortal.address for mortal in old], [mortal.address for mortal in new] or None)
        assert get(lab.port, "/poison")[0] == 503
        assert Counter(mortal.version for mortal in (*old, *new) if ("GET", "/poison") in mortal.requests) == killed
        until(lambda: send(lab.port, 20) == {"1.0.0": 20}, "the dead are left out", 5)
    finally:
        lab.close()
        for mortal in (*old, *new):
            mortal.die()
