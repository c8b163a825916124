"""What people and Argo change beside us: another image or template, counters that vanish, what is injected. No cluster is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from azora_ci.core.config import KubernetesSettings, RolloutNames
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.kubernetes import rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.others import Others
from azora_ci.targets.kubernetes.releases import Releases
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
    known._hashes = {"2-b": {"web": "h2"}}
    known.require_own("web", RELEASE, seen())
    known.require_own("web", RELEASE, seen(currentPodHash="h1", generation="2"))  # the controller has not seen our change yet
    with pytest.raises(NotTrueError, match="Somebody changed a Rollout"):
        known.require_own("web", RELEASE, seen(currentPodHash="h3"))


def test_a_pause_of_another_template_is_not_ended():
    change = rollouts.going_on(seen())
    assert change(seen(), "token")[-1] == {"op": "remove", "path": "/status/pauseConditions"}
    assert change(seen(currentPodHash="h3"), "token") is None
    assert change(seen(currentStepIndex=3), "token") is None
