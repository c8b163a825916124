"""The judge of a cluster: Rollouts as they must be have no findings, and each kind of wrong ones has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from azora_ci.rehearsal.judge.cluster import by_release, findings, rollouts
from azora_ci.rehearsal.judge.evidence import RolloutFacts
from azora_ci.rehearsal.scenarios import SCENARIOS

OLD_ID, NEW_ID = "1764000000-01d01d", "1764000100-abc123"
ALIVE = 'RolloutAborted: Metric "runner-alive" assessed Failed'


def right(name: str) -> list[RolloutFacts]:
    """Return the Rollouts as a scenario must leave them."""
    demand = SCENARIOS[name].demand
    newest = demand.new if demand.unattended else demand.serving
    phase = "Degraded" if demand.unattended else "Healthy"
    facts = RolloutFacts(
        name="web", phase=phase, message=ALIVE if demand.lost_job else "", aborted=demand.unattended, stable=demand.serving, newest=newest,
        weight=0, ready={demand.old: 2, demand.new: 2}, selected={"web": NEW_ID, "web-canary": OLD_ID},
    )  # fmt: skip
    return [replace(facts, name=f"web-{service}") for service in demand.services]


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_rollouts_as_they_must_be_have_no_findings(name: str) -> None:
    assert list(findings(right(name), SCENARIOS[name].demand)) == []


WRONG: dict[str, tuple[str, Callable[[RolloutFacts], RolloutFacts], str]] = {
    "the old version is stable": ("success", lambda one: replace(one, stable="1.0.0"), "stable is 1.0.0"),
    "the new version is stable": ("canary", lambda one: replace(one, stable="1.1.0"), "stable is 1.1.0"),
    "weight is left": ("canary", lambda one: replace(one, weight=5), "5 % go to what is newest"),
    "no weight is known": ("canary", lambda one: replace(one, weight=None), "None % go to what is newest"),
    "the bad template stays": ("canary", lambda one: replace(one, newest="1.1.0"), "'1.1.0'"),
    "it still moves": ("success", lambda one: replace(one, phase="Progressing"), "'Progressing'"),
    "nothing took it back": ("runner", lambda one: replace(one, aborted=False), "('Degraded', False"),
    "another reason": ("runner", lambda one: replace(one, message="somebody aborted it"), "somebody aborted it, demanded the analysis"),
    "the version before is cold": ("success", lambda one: replace(one, ready={"1.1.0": 2}), "demanded 2 of 1.0.0"),
    "a pod is missing": ("success", lambda one: replace(one, ready={"1.0.0": 2, "1.1.0": 1}), "demanded 2 of 1.1.0"),
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_wrong_rollouts_have_a_finding(wrong: str) -> None:
    name, damage, expected = WRONG[wrong]
    first, *others = right(name)
    (finding,) = findings([damage(first), *others], SCENARIOS[name].demand)
    assert finding.startswith(f"Rollout {first.name}: ") and expected in finding


def test_a_missing_rollout_is_a_finding() -> None:
    (finding,) = findings(right("success")[1:], SCENARIOS["success"].demand)
    assert "demanded 4" in finding


class Api:
    """Answers as an API server with one Rollout in the middle of a canary."""

    def get(self, path: str) -> dict[str, Any]:
        kind = path.rpartition("/")[2]
        return {"items": {"replicasets": [replica_set("a", "1.0.0", OLD_ID), replica_set("b", "1.1.0", NEW_ID)], **OBJECTS}[kind]}


def replica_set(name: str, version: str, release: str) -> dict[str, Any]:
    env = [{"name": "VERSION", "value": version}, {"name": "DEPLOYMENT_ID", "value": release}]
    template = {"spec": {"containers": [{"env": env}]}}
    meta = {"labels": {"rollouts-pod-template-hash": name}, "ownerReferences": [{"name": "web"}]}
    return {"metadata": meta, "spec": {"template": template}, "status": {"readyReplicas": 2}}


OBJECTS: dict[str, list[dict[str, Any]]] = {
    "services": [
        {"metadata": {"name": "web"}, "spec": {"selector": {"rollouts-pod-template-hash": "a"}}},
        {"metadata": {"name": "web-canary"}, "spec": {"selector": {"rollouts-pod-template-hash": "b"}}},
    ],
    "rollouts": [
        {
            "metadata": {"name": "web"},
            "spec": {"strategy": {"canary": {"stableService": "web", "canaryService": "web-canary"}}},
            "status": {"phase": "Paused", "stableRS": "a", "currentPodHash": "b", "canary": {"weights": {"canary": {"weight": 5}}}},
        }
    ],
}


def test_what_a_cluster_says() -> None:
    (facts,) = rollouts(Api(), "production")  # type: ignore[arg-type] # of the client it needs ``get`` only
    assert (facts.phase, facts.aborted, facts.stable, facts.newest, facts.weight) == ("Paused", False, "1.0.0", "1.1.0", 5)
    assert facts.ready == {"1.0.0": 2, "1.1.0": 2} and facts.selected == {"web": OLD_ID, "web-canary": NEW_ID}
    served = by_release({"production.web.80": 7, "production.web-canary.80": 3}, [facts])
    assert served == {f"web-{OLD_ID}": 7, f"web-canary-{NEW_ID}": 3}
