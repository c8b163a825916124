"""Judge what a rehearsal left in a Kubernetes cluster: the Rollouts' status, their ReplicaSets, and what Services select.

The module imports none of the steps and decisions that it judges, and not their client of Kubernetes. Every finding is a sentence with
the evidence and the demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from azora_ci.rehearsal.judge.deployment import Demand
from azora_ci.rehearsal.judge.evidence import RolloutFacts
from azora_ci.rehearsal.judge.load import NO_VERSION
from azora_ci.rehearsal.kubernetes.api import Api

HASH = "rollouts-pod-template-hash"  # label of ReplicaSets, in the selectors of Services
INSTANCES = 2  # of each service


def rollouts(api: Api, namespace: str) -> tuple[RolloutFacts, ...]:
    """Return every Rollout of a namespace. Raises the errors of ``api``."""
    sets = api.get(f"/apis/apps/v1/namespaces/{namespace}/replicasets")["items"]
    services = {item["metadata"]["name"]: item["spec"] for item in api.get(f"/api/v1/namespaces/{namespace}/services")["items"]}
    items = api.get(f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/rollouts")["items"]
    return tuple(_facts(item, sets, services) for item in items)


def _facts(rollout: Mapping[str, Any], sets: Iterable[Mapping[str, Any]], services: Mapping[str, Mapping[str, Any]]) -> RolloutFacts:
    name, status, canary = rollout["metadata"]["name"], rollout.get("status", {}), rollout["spec"]["strategy"]["canary"]
    own = {
        each["metadata"]["labels"][HASH]: each
        for each in sets
        if any(owner["name"] == name for owner in each["metadata"].get("ownerReferences", []))
    }
    versions = {key: _variable(each, "VERSION") for key, each in own.items()}
    ready: dict[str, int] = {}
    for key, each in own.items():
        ready[versions[key]] = ready.get(versions[key], 0) + each.get("status", {}).get("readyReplicas", 0)
    hashes = {side: services[side]["selector"].get(HASH, "") for side in (canary["stableService"], canary["canaryService"])}
    return RolloutFacts(
        name=name,
        phase=status.get("phase", ""),
        message=status.get("message", ""),
        aborted=bool(status.get("abort") and status.get("abortedAt")),
        stable=versions.get(status.get("stableRS", ""), NO_VERSION),
        newest=versions.get(status.get("currentPodHash", ""), NO_VERSION),
        weight=((status.get("canary") or {}).get("weights") or {}).get("canary", {}).get("weight"),
        ready=ready,
        selected={side: _variable(own[key], "DEPLOYMENT_ID") if key in own else NO_VERSION for side, key in hashes.items()},
    )


def _variable(replica_set: Mapping[str, Any], name: str) -> str:
    variables = replica_set["spec"]["template"]["spec"]["containers"][0].get("env", [])
    return next((str(each.get("value", "")) for each in variables if each["name"] == name), NO_VERSION)


def by_release(served: Mapping[str, int], facts: Iterable[RolloutFacts]) -> dict[str, int]:
    """Return ``<Service>-<deployment id>`` -> requests, of the edge's clusters ``<namespace>.<Service>.<port>`` -> requests."""
    selected = {service: release for each in facts for service, release in each.selected.items()}
    names = {cluster: cluster.split(".")[1] for cluster in served}
    return {f"{names[cluster]}-{selected.get(names[cluster], NO_VERSION)}": requests for cluster, requests in served.items()}


def findings(facts: Iterable[RolloutFacts], demand: Demand) -> Iterator[str]:
    """Yield a sentence for every contradiction between the cluster and the demand."""
    found = tuple(facts)
    if len(found) != len(demand.services):
        yield f"the namespace has the Rollouts {[each.name for each in found]}, demanded {len(demand.services)}"
    for each in found:
        where = f"Rollout {each.name}"
        if (each.stable, each.weight) != (demand.serving, 0):
            yield f"{where}: stable is {each.stable}, and {each.weight} % go to what is newest; demanded {demand.serving} and 0 %"
        expected = ("Degraded", True, demand.new) if demand.unattended else ("Healthy", False, demand.serving)
        if (each.phase, each.aborted, each.newest) != expected:
            yield f"{where}: {(each.phase, each.aborted, each.newest)} ({each.message}), demanded (phase, aborted, newest) {expected}"
        if demand.lost_job is not None and "runner-alive" not in each.message:
            yield f"{where}: {each.message or 'no message'}, demanded the analysis of the lease as the reason"
        warm = {demand.serving, demand.old}  # the version before can take over at once
        cold = [version for version in sorted(warm) if each.ready.get(version, 0) < INSTANCES]
        if cold:
            yield f"{where}: ready pods {dict(each.ready)}, demanded {INSTANCES} of {' and of '.join(cold)}"
