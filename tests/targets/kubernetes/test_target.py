"""Releases on a real API server with the real controller: stages, going back, the button, and what a later run finds."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.health.probes import ProbeRequest, fetch, unix_dial
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from azora_ci.targets.journal import ABORTED, DEPLOYING, PROMOTED
from azora_ci.targets.kubernetes import doctor
from azora_ci.targets.kubernetes.counters import LIMIT
from tests.support.kubernetes_target import World, deploy, owner

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def world(cluster: Cluster, tmp_path) -> World:
    made = World(cluster, tmp_path)
    made.install()
    return made


def test_a_release_moves_by_stages_and_back_by_the_button(world):
    first, second = world.release(1), world.release(2)
    deploy(world, first)
    target = world.target(world.restricted())  # with the rights that we ask for, and no others
    with world.users("api_gateway") as answers:
        with target.locked(owner(second.id)):
            assert "2 Rollouts in namespace" in target.plan(second)[0]
            for percent in (5, 50, 100):
                instances = target.deploy(second, percent)
                assert {instance.service for instance in instances} == {"api_gateway", "auth_service"}
                weights = target.set_weight(second, percent)
                assert weights["/api-gateway"] == {f"api_gateway-{second.id}": percent, f"api_gateway-{first.id}": 100 - percent}
                assert world.weights() == dict.fromkeys(world.services, percent)  # both moved together
                target.finish_stage(second, {"stage": percent})
                observation = target.observe()
                assert observation.dead == ()
            target.promote(second)
        assert set(world.ask("auth_service", 20)) == {"1.0.2"}
        history = target.current()
        assert (history.serving, history.releases[second.id].previous) == (second.id, first.id)
        assert [stage["stage"] for stage in history.releases[second.id].stages] == [5, 50, 100]
        reason = "checkout & cart fail <2026–11>: ü"  # characters that JSON may write in two ways
        with target.locked(owner(second.id, fence=reason)):
            returned = target.abort(second, f"rollback: {reason}")
        assert (returned.to, returned.proved) == ("v1.0.1", True), returned
        assert set(world.ask("api_gateway", 20)) == {"1.0.1"}
    assert set(answers) <= {"1.0.1", "1.0.2"}, answers  # no request failed all the while
    history = target.current()
    assert (history.serving, history.releases[second.id].outcome, history.unfinished) == (first.id, ABORTED, None)
    assert [world.version(service) for service in world.services] == ["1.0.1", "1.0.1"]


@contextmanager
def counting() -> Iterator[str]:
    """Answer as a Prometheus that counts one request more each time that it is asked for both numbers; yield its address."""
    asked = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            series = {"metric": {}, "value": [0, str(next(asked) // 2)]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "success", "data": {"resultType": "vector", "result": [series]}}).encode())

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def admin(cluster: Cluster) -> Iterator[str]:
    """Hand on what the edge's admin socket answers; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = fetch(ProbeRequest(f"http://admin{self.path}", dial=unix_dial(cluster._admin)), 5.0, Clock(), limit=LIMIT)
            self.send_response(answer.status)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_edge_that_shares_traffic_counts_both_versions(world):
    first, second = world.release(1), world.release(2)
    deploy(world, first)
    world.inconclusive = "abort"
    with admin(world.cluster) as address:
        edge = {"admin": [address], "stable": "$namespace.$rollout-stable.80", "canary": "$namespace.$rollout-canary.80"}
        target = world.target(edge=edge)
        with target.locked(owner(second.id)):
            assert "requests counted by the edge" in target.plan(second)[0]
            target.deploy(second, 50)
            target.set_weight(second, 50)
            before = target.observe().counters
            answers = world.ask("api_gateway", 60)
            counted = target.observe().counters
            seen = {
                release.bare: counted["api_gateway", release.id].since(before["api_gateway", release.id]) for release in (first, second)
            }
            assert {version: each.requests for version, each in seen.items()} == dict(answers)
            assert all(each.failed == 0 and each.buckets for each in seen.values())
            returned = target.abort(second, "a test")
        assert (returned.proved, returned.requests_after) == (True, 0), returned
        with pytest.raises(UnreachableError, match="no cluster typo"):
            world.target(edge=edge | {"stable": "typo"}).observe()
        finding = next(
            each for each in doctor.findings(world.context(edge=edge | {"admin": ["http://127.0.0.1:9"]})) if "counters" in each.name
        )
        assert not finding.passed


@pytest.mark.parametrize("percent", [5, 100])
def test_a_stage_that_fails_takes_all_services_back(world, percent):
    first, second = world.release(1), world.release(2)
    target = deploy(world, first)
    with target.locked(owner(second.id)):
        target.deploy(second, percent)
        target.set_weight(second, percent)
        returned = target.abort(second, "too many errors")
    assert (returned.to, returned.proved) == ("v1.0.1", True), returned
    assert "the weight of the new version reads 0 on 2 of 2 Rollouts" in returned.detail
    for service in world.services:
        world.wait_healthy(service)
        assert world.version(service) == "1.0.1"  # and a later change does not start from what failed
        assert set(world.ask(service, 10)) == {"1.0.1"}
    deploy(world, world.release(3), target)
    assert set(world.ask("api_gateway", 10)) == {"1.0.3"}


def test_a_pod_that_is_never_ready_gets_no_traffic(world):
    world.timeout = 8
    first, second = world.release(1), world.release(2, "sick")
    target = deploy(world, first)
    with target.locked(owner(second.id)):
        with pytest.raises(NotTrueError, match=r"not within 8 s\. pod .*: it is not ready"):
            target.deploy(second, 5)
        assert set(world.ask("api_gateway", 20)) == {"1.0.1"}
        assert target.abort(second, "not ready").proved
    assert target.current().unfinished is None


def test_a_run_that_died_is_found_and_taken_back_by_the_next(world):
    first, second = world.release(1), world.release(2)
    target = deploy(world, first)
    with target.locked(owner(second.id)):
        target.deploy(second, 50)
    later = world.target()
    unfinished = later.current().unfinished
    assert (unfinished.id, unfinished.percent, unfinished.outcome) == (second.id, 50, DEPLOYING)
    with later.locked(owner(second.id)):
        with pytest.raises(NotTrueError, match="it is not at rest"):
            later.plan(world.release(3))
        assert later.abort(unfinished.release, "its run died").proved
    deploy(world, second, later)
    assert later.current().releases[second.id].outcome == PROMOTED


def test_going_back_without_routing_waits_for_the_pods(cluster, tmp_path):
    world = World(cluster, tmp_path, services=("api_gateway",), routed=False)
    world.install()
    first, second = world.release(1), world.release(2)
    target = deploy(world, first)
    with target.locked(owner(second.id)):
        target.deploy(second, 100)
        assert target.set_weight(second, 100) == {"pods of api-gateway": {f"api_gateway-{second.id}": 100, f"api_gateway-{first.id}": 0}}
        assert len(target.instances(second.id)) == 2
        returned = target.abort(second, "too many errors")
        assert returned.proved, returned
        assert "traffic of api-gateway is not routed: 0 pods of the new version are ready" in returned.detail
        assert target.instances(second.id) == ()
    queries = dict.fromkeys(("requests", "errors"), '{hash="$hash"}') | {"scrape_seconds": 0.1}
    with counting() as address:
        counted = world.target(counters={"prometheus": address, **queries})
        with counted.locked(owner("again")):
            returned = counted.abort(second, "again")
    assert (returned.proved, returned.requests_after) == (False, 1), returned
    away = world.target(counters={"prometheus": address, **queries})
    with away.locked(owner("again")):
        returned = away.abort(second, "again")
    assert (returned.proved, returned.requests_after) == (False, None), returned
    assert "requests could not be counted" in returned.detail


def test_what_argo_adds_to_templates_does_not_begin_a_new_canary(cluster, tmp_path):
    added = {
        "stableMetadata": {"labels": {"role": "stable"}, "annotations": {"note": "stable"}},
        "canaryMetadata": {"labels": {"role": "canary"}},
    }
    world = World(cluster, tmp_path, services=("api_gateway",), canary=added)
    world.install()
    first, second, third = (world.release(number) for number in (1, 2, 3))
    deploy(world, first)
    target = deploy(world, second)
    hash_ = target._releases.hashes(second.id)["api_gateway"]
    with target.locked(owner(third.id)):
        target.deploy(third, 5)
        assert target.abort(third, "a test").proved
    state = target._fleet.states()["api_gateway"]
    assert (state.finished, state.current) == (True, hash_), (state, target.notes)
    with target.locked(owner(second.id, fence="a test")):
        assert target.abort(second, "a test").to == first.version
    state = target._fleet.states()["api_gateway"]
    assert (state.finished, state.current) == (True, target._releases.hashes(first.id)["api_gateway"]), (state, target.notes)


def test_a_watch_of_other_settings_and_a_foreign_image_are_found(cluster, tmp_path):
    world = World(cluster, tmp_path, services=("api_gateway",))
    world.install()
    first, second = world.release(1), world.release(2)
    deploy(world, first)
    world.lease_seconds = 40  # without edge install
    target = world.target()
    with target.locked(owner(second.id)):
        with pytest.raises(NotTrueError, match="The watch over the runner is another one"):
            target.deploy(second, 5)
        target.abort(second, "a test")
    world.lease_seconds = 20
    target = world.target()
    with target.locked(owner(second.id)):
        target.deploy(second, 5)
        target.set_weight(second, 5)
        image = [
            {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": f"registry.example/other@{world.digests['good']}"}
        ]
        target._api.patch(f"{target._names.rollouts}/{world.rollout_name('api_gateway')}", image)
        with pytest.raises(NotTrueError, match="Somebody changed a Rollout"):
            target.observe()
        with pytest.raises(NotTrueError, match="Somebody changed a Rollout"):
            target.deploy(second, 50)
        target.abort(second, "a test")
    assert set(world.ask("api_gateway", 10)) == {"1.0.1"}
