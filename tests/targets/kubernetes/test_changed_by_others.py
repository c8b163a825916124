"""What people and Argo change beside us: another image or template, counters that vanish, what is injected. No cluster is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from azora_ci.core.config import KubernetesSettings, RolloutNames
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.journal import replay
from azora_ci.targets.kubernetes import manifests, rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.others import Others
from azora_ci.targets.kubernetes.releases import Releases
from azora_ci.targets.kubernetes.returning import Return, name_before
from azora_ci.targets.release import Release
from tests.targets.kubernetes.test_rollouts import document

NAMES = Names(KubernetesSettings("shop", {"web": RolloutNames("web", "app", "web-stable", "web-canary")}))
RELEASE = Release("2-b", "v1.1.0", {"web": "sha256:good"})
IMAGE = "registry.example/web@sha256:good"


def seen(release: str = "2-b", image: str = IMAGE, generation: str = "3", **status: Any) -> rollouts.RolloutState:
    made = document()
    made["spec"]["template"]["metadata"]["annotations"] = {rollouts.RELEASE: release}
    made["spec"]["template"]["spec"]["containers"][0]["image"] = image
    paused = {"phase": "Paused", "currentStepIndex": 1, "pauseConditions": [{"reason": "CanaryPauseStep"}], "controllerPause": True}
    weights = {"canary": {"weights": {"canary": {"weight": 5}}}}
    made["status"] = {"observedGeneration": generation, "stableRS": "h1", "currentPodHash": "h2", **paused, **weights, **status}
    return rollouts.state(made)


class FakeFleet:
    """Has the ReplicaSets that are kept."""

    def __init__(self, **kept: dict[str, Any]) -> None:
        self.names, self.kept = NAMES, kept
        self.others = Others(None, NAMES, None, lambda _line: None)  # type: ignore[arg-type] # nothing is asked of the cluster

    def replica_sets(self, hashes):
        return {hash_: self.kept[hash_] for hash_ in hashes if hash_ in self.kept}


def releases(fleet: FakeFleet | None = None, **more: Any) -> Releases:
    config = SimpleNamespace(registry=SimpleNamespace(repository="registry.example"), services=[])
    return Releases(more.get("journal"), fleet or FakeFleet(), more.get("pods"), config, more.get("counting"))


def test_an_image_of_somebody_else_under_our_annotation_is_not_ours():
    known = releases()
    known.require_own("web", RELEASE, seen())
    foreign = seen(image="registry.example/web:latest", currentPodHash="h3")
    assert foreign.held_at(5)
    assert not known.is_own("web", RELEASE, foreign)
    with pytest.raises(NotTrueError, match="Somebody changed a Rollout"):
        known.require_own("web", RELEASE, foreign)


def test_another_template_with_our_image_is_not_ours_once_a_hash_is_noted():
    known = releases()
    known._noted = {"2-b": {"web": "h2"}}
    known.require_own("web", RELEASE, seen())
    known.require_own("web", RELEASE, seen(currentPodHash="h1", generation="2"))  # the controller has not seen our change yet
    with pytest.raises(NotTrueError, match="Somebody changed a Rollout"):
        known.require_own("web", RELEASE, seen(currentPodHash="h3"))


def test_a_pause_of_another_template_is_not_ended():
    change = rollouts.going_on(seen())
    assert change(seen(), "token")[-1] == {"op": "remove", "path": "/status/pauseConditions"}
    assert change(seen(currentPodHash="h3"), "token") is None
    assert change(seen(currentStepIndex=3), "token") is None


def journal(*entries: tuple[str, str, dict[str, Any]]) -> Any:
    """Return a journal with entries (event, deployment id, facts)."""
    lines = [json.dumps({"at": "2026-11-24T11:00:00Z", "event": event, "deployment_id": name, **facts}) for event, name, facts in entries]
    return SimpleNamespace(history=lambda: replay(lines))


def begun(name: str, previous: str | None) -> tuple[str, str, dict[str, Any]]:
    return "begin", name, {"version": f"v{name}", "digests": {"web": "sha256:good"}, "previous": previous}


FIRST = (begun("1-a", None), ("instance", "1-a", {"service": "web", "number": 1, "hash": "hA"}), ("promote", "1-a", {}))
SECOND = (*FIRST, begun("2-b", "1-a"), ("instance", "2-b", {"service": "web", "number": 1, "base": "hX", "hash": "h2"}))
KEPT = {"hX": {"metadata": {"labels": {}}, "spec": {"replicas": 2}}}


def test_what_is_kept_before_a_release_is_what_was_stable_when_it_began():
    known = releases(FakeFleet(**KEPT), journal=journal(*SECOND, ("promote", "2-b", {})))
    history = known.history()
    state = seen(stableRS="h2", currentPodHash="h2")
    assert not known.kept("1-a", {"web": state}, datetime.now(UTC))["gone"]
    assert known.hashes("1-a") == {"web": "hA"}
    on_its_way = seen(stableRS="hX")
    assert [each.id for each in known.shown(history, {"web": on_its_way})] == ["1-a", "2-b"]  # so that there is a baseline
    assert name_before(history.releases["1-a"], {"web": on_its_way}, "2-b", known.hashes("1-a")) == "what ran before (hX)"
    assert name_before(history.releases["1-a"], {"web": seen(stableRS="hA")}, "2-b", known.hashes("1-a")) == "v1-a"


def test_pods_of_what_was_stable_are_those_of_the_release_before():
    pods = SimpleNamespace(of=lambda hashes: {each: [{}] if each == "hX" else [] for each in hashes})
    known = releases(FakeFleet(**KEPT), journal=journal(*SECOND), pods=pods)
    assert [(each.number, each.resting) for each in known.instances("1-a")] == [(1, False)]


def test_a_release_that_began_again_has_its_own_pods():
    again = ("instance", "1-a", {"service": "web", "number": 1, "base": "h2", "hash": "hB"})
    known = releases(journal=journal(*SECOND, begun("1-a", "2-b"), again))
    known.history()
    assert known._hashes == {"2-b": {"web": "h2"}, "1-a": {"web": "hB"}}


def test_a_plan_says_when_something_else_is_stable():
    known = releases(journal=journal(*FIRST))
    (line,) = known.changed_since({"web": seen(stableRS="hX")})
    assert "web: hX serves, and not hA, which 1-a left" in line
    assert known.changed_since({"web": seen(stableRS="hA")}) == []


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"dryRun": [{"metricName": "latency"}]}, True),
        ({"dryRun": [{"metricName": ".*"}]}, False),
        ({"lease_seconds": 40}, False),  # the AnalysisTemplate is of other settings
        ({"metrics": []}, False),
    ],
)
def test_a_watch_that_would_not_take_the_release_back_is_found(changes, passes):
    settings = replace(NAMES.settings, lease_seconds=changes.pop("lease_seconds", NAMES.settings.lease_seconds))
    spec = manifests.watch(Names(settings))["spec"] | changes
    meta = {"name": "run-1", "creationTimestamp": "2026-11-24T11:00:00Z", "ownerReferences": [{"name": "web"}]}
    api = SimpleNamespace(get=lambda _path, **_selector: {"items": [{"metadata": meta, "spec": spec}]})
    others = Others(api, NAMES, None, lambda _line: None)  # type: ignore[arg-type] # it does not wait
    state = seen(canary={"currentBackgroundAnalysisRunStatus": {"name": "run-1"}})
    if passes:
        others.require_watch([state])
        return
    with pytest.raises(NotTrueError, match="The watch over the runner is another one"):
        others.require_watch([state])


@pytest.mark.parametrize(("numbers", "after"), [((500, 500), 0), ((500, 503), 3), ((500, 0), None), ((500, None), None)])
def test_counters_that_fall_prove_nothing(numbers, after):
    left = iter(numbers)

    def counters(_ids, _states):
        number = next(left)
        return (
            {}
            if number is None
            else {("web", "2-b"): SimpleNamespace(requests=number), ("api", "2-b"): SimpleNamespace(requests=number or 900)}
        )

    fleet = FakeFleet()
    fleet.states = dict  # type: ignore[attr-defined] # they are passed on
    known = releases(fleet, counting=SimpleNamespace(delay=0))
    known.counters = counters  # type: ignore[method-assign]
    expected = after * 2 if after else after
    assert known.requests_after("2-b", SimpleNamespace(sleep=lambda _seconds: None), 0) == expected


def test_what_argo_injected_is_not_put_back():
    noted = json.dumps({"labels": {"role": "stable"}, "annotations": {"note": "stable"}})
    meta = {"labels": {"app": "web", "role": "stable", rollouts.HASH_LABEL: "h1"}, "annotations": {"note": "stable", "mine": "kept"}}
    template = {"metadata": meta, "spec": {"containers": []}}
    replica_set = {"metadata": {"annotations": {rollouts.EPHEMERAL: noted}}, "spec": {"template": template}}
    (*_, change) = rollouts.put_template(document(), "token", replica_set)
    assert change["value"] == {"metadata": {"labels": {"app": "web"}, "annotations": {"mine": "kept"}}, "spec": {"containers": []}}
    assert meta["labels"]["role"] == "stable"


@pytest.mark.parametrize(("current", "said"), [("h1", 0), ("h9", 1)])
def test_a_new_canary_after_the_template_was_put_back_is_said(current, said):
    back = {"pauseConditions": None, "controllerPause": False, "abort": True, "abortedAt": "2026-11-24T11:00:00Z", "phase": "Degraded"}
    rest = {"pauseConditions": None, "controllerPause": False, "phase": "Healthy", "canary": {"weights": {"canary": {"weight": 0}}}}
    states = [{"web": seen(**back)}, {"web": seen(**back)}, {"web": seen(release="1-a", **rest | {"currentPodHash": current})}]
    fleet = FakeFleet()
    fleet.present = lambda: states.pop(0) if len(states) > 1 else states[0]  # type: ignore[attr-defined]
    fleet.change = lambda *_, **__: None  # type: ignore[attr-defined]
    way, seconds = Return(fleet, "2-b", {"web": "h1"}), count()  # type: ignore[arg-type]
    way.put_back(["web"], SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _seconds: None), 5)  # type: ignore[arg-type]
    assert len([note for note in way.notes if "not at rest" in note]) == said
