"""``[target.kubernetes]`` as frozen values: which Rollouts are driven, how pods are asked, and where requests are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROXY, ADDRESSES = "proxy", "addresses"  # how pods are probed
IN_CLUSTER_API = "https://kubernetes.default.svc"


@dataclass(frozen=True)
class RolloutNames:
    """A service's Rollout, the container whose image is its release, and the Services between which traffic is split (None: it is not)."""

    rollout: str
    container: str
    stable_service: str | None = None
    canary_service: str | None = None


@dataclass(frozen=True)
class CounterSettings:
    """A Prometheus server and the queries that count one ReplicaSet's requests; each may name $namespace, $service, $rollout and $hash.

    Every query returns one counter (or, ``latency``, a histogram's buckets by ``le`` in seconds), which only grows.
    ``scrape_seconds``: how old what it counted may be.
    """

    prometheus: str
    requests: str
    errors: str
    latency: str | None = None
    scrape_seconds: float = 15.0


@dataclass(frozen=True)
class ForwardSettings:
    """A port of a pod that leads to the database: of a pod by name, or of one that a Service selects (``port`` is the pod's, too)."""

    namespace: str
    port: int
    service: str | None = None
    pod: str | None = None


@dataclass(frozen=True)
class EnvoySettings:
    """The admin addresses of every Envoy that shares traffic, and the names of its clusters of a Rollout's stable and canary Service;
    each may name $namespace, $service and $rollout.
    """

    admin: tuple[str, ...]
    stable: str
    canary: str


@dataclass(frozen=True)
class KubernetesSettings:
    """The namespace and its Rollouts by service id; the context of the kubeconfig (None: its current one) or the pod's own account;
    how pods are probed; seconds of the lease after which a dead runner's release is taken back; the API server as the Argo Rollouts
    controller reaches it; what the names of our own objects begin with; the way to the database (None: not through the cluster).
    """

    namespace: str
    rollouts: Mapping[str, RolloutNames]
    context: str | None = None
    in_cluster: bool = False
    probes: str = PROXY
    lease_seconds: int = 60
    api_server: str = IN_CLUSTER_API
    name: str = "azora"
    counters: CounterSettings | None = None
    database: ForwardSettings | None = None
    edge: EnvoySettings | None = None  # in the place of counters


def parse(table: Mapping[str, Any] | None) -> KubernetesSettings | None:
    """Return the settings of a table. Raises ValueError for keys that contradict each other."""
    if table is None:
        return None
    services: Mapping[str, Mapping[str, Any]] = table["services"]
    half = [name for name, entry in services.items() if ("stable_service" in entry) != ("canary_service" in entry)]
    if half:
        raise ValueError(
            f"target.kubernetes.services.{half[0]}: stable_service and canary_service: traffic is split between both, or not at all"
        )
    if table.get("in_cluster") and "context" in table:
        raise ValueError("target.kubernetes.context: a pod's own account (in_cluster) has no contexts")
    taken: dict[str, str] = {}
    for name, entry in services.items():
        if (other := taken.setdefault(entry["rollout"], name)) != name:
            raise ValueError(f"target.kubernetes.services.{name}.rollout: {entry['rollout']} is that of {other}, too")
    counters, edge, database = table.get("counters"), table.get("edge"), table.get("database")
    if counters and edge:
        raise ValueError("target.kubernetes.edge: requests are counted by Prometheus (counters) or by the edge, not by both")
    if database and ("service" in database) == ("pod" in database):
        raise ValueError("target.kubernetes.database: names a service or a pod, and not both")
    plain = {key: value for key, value in table.items() if key not in {"services", "counters", "edge", "database"}}
    return KubernetesSettings(
        rollouts={name: RolloutNames(**entry) for name, entry in services.items()},
        counters=CounterSettings(**counters) if counters else None,
        edge=EnvoySettings(tuple(edge["admin"]), edge["stable"], edge["canary"]) if edge else None,
        database=ForwardSettings(**{"namespace": table["namespace"], "port": 5432, **database}) if database else None,
        **plain,
    )


def check(settings: KubernetesSettings | None, services: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError where ``target.kind`` is kubernetes and a service is not described, or is of a kind that a Rollout cannot be."""
    if settings is None:
        raise ValueError("target.kubernetes: is required by target.kind kubernetes")
    problems = [f"target.kubernetes.services.{name}: is not among the services" for name in settings.rollouts if name not in services]
    for name, table in services.items():
        if table.get("kind") == "job":
            problems.append(
                f"services.{name}.kind: a job does not run on this target: give it to Helm, Argo CD (a hook) or Kubernetes' Job"
            )
        elif table.get("singleton"):
            problems.append(
                f"services.{name}.singleton: a Rollout starts the new version beside the old: use a StatefulSet outside of releases"
            )
        elif name not in settings.rollouts:
            problems.append(f"target.kubernetes.services.{name}: is missing: it names the service's Rollout and container")
    if problems:
        raise ValueError("\n".join(problems))
