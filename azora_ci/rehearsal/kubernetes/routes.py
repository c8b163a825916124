"""What an ingress controller makes of Kubernetes' objects: Envoy's documents for Ingresses, Services and pods. Pure.

Canaries are those of ingress-nginx, which Argo Rollouts writes: a second Ingress of the same rules, with annotations, whose backend gets
``canary-weight`` percent. Protocol: Envoy API v3, files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Objects = Mapping[str, Document]  # uid -> object

_TYPE = "type.googleapis.com/envoy"
_CANARY = "nginx.ingress.kubernetes.io/canary"
FULL = 100  # percent
STAY = 100_000  # percent: a thousandth of a side's pods carry the whole side
SAFE_METHODS = "GET|HEAD|OPTIONS"


@dataclass(frozen=True)
class Backend:
    """A port of a Service, which an Ingress names."""

    namespace: str
    service: str
    port: str  # a number or a name

    @property
    def cluster(self) -> str:
        """Return the name of its cluster in Envoy."""
        return f"{self.namespace}.{self.service}.{self.port}"


@dataclass
class Route:
    """A host and path of users: the backend, that of the canary, and the canary's percentage."""

    stable: Backend | None = None
    canary: Backend | None = None
    percent: int = 0

    @property
    def shares(self) -> dict[Backend, int]:
        """Return the percentage of each backend."""
        if self.stable is None:
            return {}
        if self.canary is None or self.canary == self.stable:
            return {self.stable: FULL}
        return {self.stable: FULL - self.percent, self.canary: self.percent}


@dataclass
class Seen:
    """The objects that there are now."""

    ingresses: dict[str, Document] = field(default_factory=dict)
    services: dict[str, Document] = field(default_factory=dict)
    pods: dict[str, Document] = field(default_factory=dict)


def routes(ingresses: Objects) -> dict[tuple[str, str], Route]:
    """Return (host, path prefix) -> route. A canary without an Ingress beside it serves nobody."""
    table: dict[tuple[str, str], Route] = {}
    for ingress in ingresses.values():
        annotations = ingress["metadata"].get("annotations", {})
        for host, path, backend in _backends(ingress):
            route = table.setdefault((host, path), Route())
            if annotations.get(_CANARY) == "true":
                route.canary, route.percent = backend, min(FULL, int(annotations.get(f"{_CANARY}-weight", "0")))
            else:
                route.stable = backend
    return {place: route for place, route in table.items() if route.stable is not None}


def _backends(ingress: Document) -> Iterator[tuple[str, str, Backend]]:
    for rule in ingress["spec"].get("rules", []):
        for path in rule.get("http", {}).get("paths", []):
            service = path["backend"]["service"]
            port = service["port"].get("name") or str(service["port"]["number"])
            yield rule.get("host", "*"), path.get("path", "/"), Backend(ingress["metadata"]["namespace"], service["name"], port)


def addresses(backend: Backend, seen: Seen) -> list[tuple[str, int]]:
    """Return address and port of each ready pod that the backend's Service selects, and that is not being deleted."""
    for service in seen.services.values():
        if (service["metadata"]["namespace"], service["metadata"]["name"]) == (backend.namespace, backend.service):
            selector = service["spec"].get("selector") or {}
            ports = [port for port in service["spec"]["ports"] if backend.port in {port.get("name"), str(port["port"])}]
            pods = [pod for pod in seen.pods.values() if selector and _is_selected(pod, backend.namespace, selector)]
            ready = [(pod["status"]["podIP"], _number(pod, port)) for pod in pods if _is_ready(pod) for port in ports[:1]]
            return sorted((address, number) for address, number in ready if number)
    return []


def _is_selected(pod: Document, namespace: str, selector: Mapping[str, str]) -> bool:
    labels = pod["metadata"].get("labels", {})
    return bool(pod["metadata"]["namespace"] == namespace and selector.items() <= labels.items())


def _is_ready(pod: Document) -> bool:
    conditions = pod["status"].get("conditions", [])
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"] and "podIP" in pod["status"]


def _number(pod: Document, service_port: Document) -> int:
    target = service_port.get("targetPort", service_port["port"])
    if isinstance(target, int):
        return target
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    return next((port["containerPort"] for port in ports if port.get("name") == target), 0)


# --- Envoy ---------------------------------------------------------------------------------------------------------------


def bootstrap(folder: Path, listen: str, admin: Path) -> Document:
    """Return what Envoy starts with; everything else is read from ``folder/current``, a link whose renaming changes all at once."""
    host, _, port = listen.rpartition(":")
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "rds": {"route_config_name": "routes", "config_source": _source(folder, "routes.json")},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"}}],
    }
    listener = {
        "name": "edge",
        "address": {"socket_address": {"address": host, "port_value": int(port)}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {
        "node": {"id": "kubernetes-edge", "cluster": "kubernetes"},
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "dynamic_resources": {"cds_config": _source(folder, "clusters.json")},
        "static_resources": {"listeners": [listener]},
    }


def files(seen: Seen, folder: Path, generation: str) -> dict[str, Document]:
    """Return name -> document of each file."""
    table = routes(seen.ingresses)
    others: dict[Backend, Backend | None] = {}  # backend -> the other side of its route
    for route in table.values():
        sides = list(route.shares)
        others |= {side: sides[1 - number] if len(sides) > 1 else None for number, side in enumerate(sides)}
    where = {backend: addresses(backend, seen) for backend in others}
    documents = {
        "routes.json": _response(generation, [_routes(table, generation)]),
        "clusters.json": _response(generation, [_cluster(backend, folder) for backend in others]),
    }
    for backend, other in others.items():
        endpoints = _endpoints(backend, where[backend], where[other] if other else [])
        documents[f"endpoints-{backend.cluster}.json"] = _response(generation, [endpoints])
    return documents


def _source(folder: Path, name: str) -> Document:
    watched = {"path": str(folder / "current" / name), "watched_directory": {"path": str(folder)}}
    return {"resource_api_version": "V3", "path_config_source": watched}


def _response(generation: str, resources: Iterable[Document]) -> Document:
    return {"version_info": generation, "resources": list(resources)}


def _routes(table: Mapping[tuple[str, str], Route], generation: str) -> Document:
    hosts: dict[str, list[Document]] = {}
    for (host, path), route in sorted(table.items(), key=lambda item: -len(item[0][1])):  # Envoy takes the first match
        hosts.setdefault(host, []).extend(_alternatives(path, route))
    virtual_hosts = [{"name": host, "domains": [host], "routes": alternatives} for host, alternatives in hosts.items()]
    # Envoy ignores an update without a difference; with the generation in it, each can be seen.
    virtual_hosts.append({"name": f"generation-{generation}", "domains": ["generation.invalid"], "routes": []})
    return {"@type": f"{_TYPE}.config.route.v3.RouteConfiguration", "name": "routes", "virtual_hosts": virtual_hosts}


def _alternatives(path: str, route: Route) -> Iterator[Document]:
    """Yield the route of requests that may be sent twice, and that of the others, which are sent again when no part was sent before."""
    safe = [{"name": ":method", "string_match": {"safe_regex": {"regex": SAFE_METHODS}}}]
    for headers, conditions in ((safe, "connect-failure,refused-stream,reset"), ([], "connect-failure,reset-before-request")):
        clusters = [{"name": backend.cluster, "weight": percent} for backend, percent in route.shares.items()]
        match = {"prefix": "/"} if path == "/" else {"path_separated_prefix": path.rstrip("/")}
        action = {"weighted_clusters": {"clusters": clusters}, "timeout": "15s", "retry_policy": _retry(conditions)}
        yield {"match": {**match, **({"headers": headers} if headers else {})}, "route": action}


def _retry(conditions: str) -> Document:
    """Return the policy: another pod of the same side, then the other side, so that a pod that dies costs no user an answer."""
    priorities = f"{_TYPE}.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    hosts = f"{_TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": conditions,
        "num_retries": 4,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {"@type": priorities, "update_frequency": 2},  # attempts before a side is left
        },
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": hosts}}],
        "host_selection_retry_max_attempts": 5,
    }


def _cluster(backend: Backend, folder: Path) -> Document:
    options = {
        "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": "4s"},  # Node.js closes an idle connection after 5 s
    }
    unbounded = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 100_000)
    return {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": backend.cluster,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _source(folder, f"endpoints-{backend.cluster}.json")},
        "connect_timeout": "0.25s",
        "common_lb_config": {"update_merge_window": "0s"},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "circuit_breakers": {"thresholds": [unbounded]},
    }


def _endpoints(backend: Backend, own: list[tuple[str, int]], other: list[tuple[str, int]]) -> Document:
    """Return the endpoints of a side, and those of the other one for when it has none that answers."""
    localities = [
        {
            "priority": priority,
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}} for address, port in side
            ],
        }
        for priority, side in enumerate((own, other))
    ]
    return {
        "@type": f"{_TYPE}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": backend.cluster,
        "endpoints": localities,
        "policy": {"overprovisioning_factor": STAY},
    }
