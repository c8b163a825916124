"""Counters from a server that speaks Prometheus' protocol (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.config import CounterSettings, EnvoySettings
from azora_ci.core.errors import UnreachableError
from azora_ci.targets.kubernetes.counters import Envoys, Prometheus, of_cluster
from azora_ci.targets.kubernetes.doctor import _counted

GIVEN = {"namespace": "shop", "service": "web", "rollout": "web", "hash": "abc"}


def vector(*series: tuple[dict[str, str], str]) -> dict:
    result = [{"metric": labels, "value": [1764000000.0, value]} for labels, value in series]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


class Server(ThreadingHTTPServer):
    answers: dict[str, dict]
    everything: dict  # what an Envoy answers


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            answer = self.server.answers.get(asked["query"][0], vector()) if "query" in asked else self.server.everything
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    made = Server(("127.0.0.1", 0), Handler)
    made.answers = {}
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def prometheus(server: Server) -> Prometheus:
    queries = ('requests{hash="$hash"}', 'errors{hash="$hash"}', 'latency{hash="$hash"}')
    return Prometheus(CounterSettings(f"http://127.0.0.1:{server.server_port}", *queries), Clock())


def test_a_version_is_counted_by_its_hash(server):
    server.answers['requests{hash="abc"}'] = vector(({}, "1000"))
    server.answers['errors{hash="abc"}'] = vector(({}, "7"))
    server.answers['latency{hash="abc"}'] = vector(({"le": "+Inf"}, "1000"), ({"le": "0.25"}, "900"))
    counted = prometheus(server).counters(GIVEN)
    assert (counted.requests, counted.errors, counted.buckets) == (1000, 7, ((250.0, 900), (60_000.0, 1000)))


def test_what_has_no_series_yet_was_not_asked(server):
    assert prometheus(server).counters(GIVEN).samples == 0


def test_the_doctor_says_which_query_matches_nothing(server):
    found = _counted(prometheus(server), GIVEN)
    assert (found.passed, found.stops) == (False, False)
    assert "0 requests of abc, which serves: the query requests matches no series; the query errors matches no series" in found.detail
    server.answers['requests{hash="abc"}'] = vector(({}, "1000"))
    found = _counted(prometheus(server), GIVEN)
    assert found.passed
    assert "1000 requests of abc, which serves; the query errors matches no series" in found.detail
    server.answers['errors{hash="abc"}'] = vector(({}, "0"))
    assert _counted(prometheus(server), GIVEN).detail == "1000 requests of abc, which serves"
    server.answers['requests{hash="abc"}'] = vector(({}, "0"))
    assert not _counted(prometheus(server), GIVEN).passed


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (vector(({"pod": "a"}, "1"), ({"pod": "b"}, "2")), "2 series answer; the query must sum them up"),
        (vector(({}, "NaN")), "ValueError"),
        ({"status": "error", "error": "parse error"}, "KeyError|no vector"),
        ({"status": "success", "data": {"resultType": "scalar", "result": []}}, "the answer is no vector"),
    ],
)
def test_what_is_not_counted_is_an_error_and_no_zero(server, answer, words):
    server.answers['requests{hash="abc"}'] = answer
    with pytest.raises(UnreachableError, match=words):
        prometheus(server).counters(GIVEN)


def test_a_server_that_is_away_is_an_error(server):
    away = prometheus(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(UnreachableError, match="connection refused"):
        away.counters(GIVEN)


def stats(**numbers: int) -> dict:
    return {"stats": [{"name": f"cluster.shop.web.upstream_rq_{name}", "value": number} for name, number in numbers.items()]}


def test_a_request_of_the_edge_that_was_given_up_is_counted_as_failed():
    counted = of_cluster(stats(total=109, completed=100, active=2, retry=4, retry_success=3, **{"5xx": 7, "404": 1}), "shop.web")
    assert (counted.requests, counted.given_up, counted.errors, counted.failovers, counted.failed) == (103, 3, 7, 3, 13)
    assert of_cluster({"stats": []}, "shop.web") is None


def test_all_envoys_are_added_up_and_one_that_is_away_is_an_error(server):
    edge = EnvoySettings((f"http://127.0.0.1:{server.server_port}",) * 2, "shop.web", "shop.canary")
    server.everything = stats(total=10, completed=10)
    assert Envoys(edge, Clock()).counters(GIVEN | {"side": "stable"}).requests == 20
    with pytest.raises(UnreachableError, match=r"no cluster shop\.canary"):
        Envoys(edge, Clock()).counters(GIVEN | {"side": "canary"})
    with pytest.raises(UnreachableError, match="connection refused"):
        Envoys(replace(edge, admin=(*edge.admin, "http://127.0.0.1:9")), Clock()).counters(GIVEN | {"side": "stable"})
