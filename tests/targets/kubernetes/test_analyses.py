"""AnalysisRuns that the user has, beside our watch over the runner: they are shown, waited for, and end a release with their name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from azora_ci.core.errors import NotTrueError
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from azora_ci.targets.kubernetes.others import measured
from tests.support.kubernetes import STEPS
from tests.support.kubernetes_target import World, deploy, owner
from tests.support.waiting import until

SHARE, GOOD, BAD, UNCLEAR = "error-share", 0, 100, 50


class Shop(ThreadingHTTPServer):
    """What the user's metric measures: ``share`` percent of errors."""

    share = GOOD


@pytest.fixture
def shop() -> Iterator[Shop]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"share": self.server.share}).encode())

        def log_message(self, *_) -> None:
            pass

    made = Shop(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def made(cluster: Cluster, folder, shop: Shop, *, inline: bool, timeout: float = 60, **metric: object) -> World:
    """Return a world whose Rollout has an analysis of the user's own: before the second stage, or beside all."""
    ask = {"web": {"url": f"http://127.0.0.1:{shop.server_port}/", "jsonPath": "{$.share}"}}
    verdict = {"successCondition": f"result < {UNCLEAR}", "failureCondition": f"result > {UNCLEAR}"}
    template = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": {"name": "errors"},
        "spec": {"metrics": [{"name": SHARE, "provider": ask, **verdict, **metric}]},
    }
    analysis = {"templates": [{"templateName": "errors"}]}
    canary = {"steps": [*STEPS[:2], {"analysis": analysis}, *STEPS[2:]]} if inline else {"analysis": analysis}
    world = World(cluster, folder, services=("api_gateway",), timeout=timeout, canary=canary, needs=(template,))
    world.install()
    deploy(world, world.release(1))
    return world


@pytest.mark.kubernetes
@pytest.mark.parametrize("inline", [False, True])
def test_an_analysis_that_fails_takes_all_back_with_its_name(cluster, tmp_path, shop, inline):
    world = made(cluster, tmp_path, shop, inline=inline, **({} if inline else {"interval": "1s"}))
    target, second = world.target(), world.release(2)
    with target.locked(owner(second.id)):
        target.deploy(second, 5)
        target.set_weight(second, 5)
        target.finish_stage(second, {})
        shop.share = BAD
        with pytest.raises(NotTrueError, match="Rollout") as raised:
            if inline:
                target.deploy(second, 50)
            until(lambda: target.observe() is None, "the analysis failed")
        assert raised.value.title == "An analysis took a Rollout back"
        assert f"metric {SHARE} is Failed" in raised.value.what
        assert "failed (1) > failureLimit (0); last value 100" in raised.value.what
        assert target.abort(second, raised.value.what).proved
    assert set(world.ask("api_gateway", 10)) == {"1.0.1"}
    if not inline:
        assert f"metric {SHARE} is Running (last value 0" in world.log.getvalue()  # shown when the stage was finished


@pytest.mark.kubernetes
def test_an_analysis_that_measures_is_waited_for_longer_than_pods(cluster, tmp_path, shop):
    world = made(cluster, tmp_path, shop, inline=True, timeout=8, interval="5s", count=3)
    target = deploy(world, world.release(2))
    assert "api-gateway: an analysis of its own measures: its end is waited for" in world.log.getvalue()
    (note,) = [note for note in target.notes if SHARE in note]
    assert f"metric {SHARE} is Successful (last value 0; 3 measurements)" in note


@pytest.mark.kubernetes
@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("decides", [False, True])
def test_an_analysis_without_a_verdict_pauses_until_a_person_decides(cluster, tmp_path, shop, inline, decides):
    world = made(cluster, tmp_path, shop, inline=inline, **({} if inline else {"interval": "1s"}))
    target, second = world.target(), world.release(2)
    said = "an analysis of its own has no verdict: Argo pauses until a person decides"
    with target.locked(owner(second.id)):
        target.deploy(second, 5)
        target.set_weight(second, 5)
        shop.share = UNCLEAR
        if not inline:
            until(lambda: target._fleet.states()["api_gateway"].undecided, "the analysis has no verdict")
            target.observe()  # the stage is watched on
        target._context = world.context()
        object.__setattr__(target._context, "health_timeout", 60 if decides else 5)
        person = threading.Thread(target=resume, args=(world, shop, said), daemon=True)
        if decides:
            person.start()
            target.deploy(second, 50)
            person.join()
        else:
            with pytest.raises(NotTrueError, match=f"an analysis has no verdict; AnalysisRun .*: metric {SHARE} is Inconclusive"):
                target.deploy(second, 50)
        assert any(said in note for note in target.notes)
        assert target.abort(second, "a test").proved
    assert set(world.ask("api_gateway", 10)) == {"1.0.1"}


def resume(world: World, shop: Shop, said: str) -> None:
    """Do what ``kubectl argo rollouts promote`` does, once the run says that it waits for it."""
    until(lambda: said in world.log.getvalue(), "it is said")
    shop.share = GOOD  # an analysis in a step is measured again
    world.cluster.api.patch(world.path("api_gateway") + "/status", {"status": {"pauseConditions": None}})


def test_a_run_that_measured_nothing_says_why():
    run = {"metadata": {"name": "web-1"}, "status": {"phase": "Error", "message": "secret not found"}}
    assert [each.text for each in measured(run)] == ["AnalysisRun web-1: metric (none measured) is Error (secret not found)"]


def test_our_watch_is_told_apart_and_who_decided_comes_first():
    results = [{"name": "errors", "phase": "Successful", "count": 2}, {"name": "runner-alive", "phase": "Failed", "measurements": []}]
    run = {"metadata": {"name": "web-1"}, "status": {"phase": "Failed", "message": "why", "metricResults": results}}
    assert [(each.ours, each.detail) for each in measured(run)] == [(True, "why"), (False, "2 measurements")]
