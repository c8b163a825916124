"""What Envoy is told and what its admin port answers: rendering and reading, pure. ``edge.py`` does the input and output.

The edge is described by one value, ``EdgeState``. Each release of a service is a cluster of its own, ``<service>-<deployment id>``,
so that counters are continuous through a promotion; weights are in the one route file, so that one rename moves all of them.
Protocol: Envoy API v3, file-based xDS with ``path_config_source`` and ``watched_directory``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from azora_ci.rollout import Counters

RELEASE_HEADER = "x-azora-release"  # request header, canary|stable: a test through the real edge
DEPLOYMENT_HEADER = "x-azora-deployment"  # response header: the release that was first chosen, also when failover answered
SAFE_METHODS = "GET|HEAD|OPTIONS"  # only these are tried again: nothing may happen twice
ROUTES, LISTENER = "edge", "edge"
# Milliseconds. Envoy's own buckets are too coarse to compare a p95 by a factor.
BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 100, 120, 150, 200, 250, 300, 400, 500, 600, 800,
           1000, 1500, 2000, 3000, 5000, 10000, 30000, 60000)  # fmt: skip
# Node.js closes an idle connection after 5 s: the edge must be the one that closes first, or a request meets the closing.
UPSTREAM_IDLE = "4s"
_TYPE = "type.googleapis.com/envoy"


@dataclass(frozen=True)
class EdgeService:
    """How requests of one service are recognised; ``timeout_seconds`` 0 is for streams."""

    id: str
    route_prefix: str
    timeout_seconds: float


@dataclass(frozen=True)
class EdgeRelease:
    """Where a release's instances listen: service id -> ("host:port", …)."""

    id: str
    version: str
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EdgeState:
    """The whole edge. ``percent`` of requests go to ``canary``, the rest to ``stable``; ``previous`` is kept warm at weight 0."""

    services: tuple[EdgeService, ...]
    listen: str
    releases: tuple[EdgeRelease, ...] = ()
    stable: str | None = None
    canary: str | None = None
    previous: str | None = None
    percent: int = 0

    def document(self) -> dict[str, Any]:
        """Return the state as JSON; ``from_document`` reads it back."""
        return asdict(self)

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> EdgeState:
        """Return the state that a document describes. Raises KeyError and TypeError for another format."""
        releases = tuple(
            EdgeRelease(one["id"], one["version"], {name: tuple(found) for name, found in one["endpoints"].items()})
            for one in document["releases"]
        )
        return EdgeState(**{**document, "releases": releases, "services": tuple(EdgeService(**one) for one in document["services"])})

    def release(self, release_id: str | None) -> EdgeRelease | None:
        """Return a release by its id, or None."""
        return next((one for one in self.releases if one.id == release_id), None)

    def with_release(self, release: EdgeRelease) -> EdgeState:
        """Return the state with a release added or replaced."""
        return replace(self, releases=(*(one for one in self.releases if one.id != release.id), release))

    def without(self, release_id: str) -> EdgeState:
        """Return the state without a release; its roles become empty."""
        kept = tuple(one for one in self.releases if one.id != release_id)
        roles = {name: None for name in ("stable", "canary", "previous") if getattr(self, name) == release_id}
        return replace(self, releases=kept, **roles)  # type: ignore[arg-type] # only role names are keys

    def weights(self, service: str) -> dict[str, int]:
        """Return release id -> percent for a service. A release without instances of it gets nothing, the other everything."""
        shares = {self.stable: 100 - self.percent, self.canary: self.percent}
        there = {one: share for one, share in shares.items() if one is not None and self._addresses(one, service)}
        if len(there) == 1:
            only = next(iter(there))
            return {only: 100} if there[only] > 0 or only == self.stable else {}
        return there

    def failover(self, release_id: str) -> str | None:
        """Return the release that answers when no instance of this one can be reached."""
        if release_id == self.stable:
            return self.canary or self.previous
        return self.stable

    def _addresses(self, release_id: str | None, service: str) -> tuple[str, ...]:
        found = self.release(release_id)
        return found.endpoints.get(service, ()) if found else ()


def cluster_name(service: str, release_id: str) -> str:
    """Return the name of the cluster of one release of one service; no dots, which separate parts of counter names."""
    return f"{service}-{release_id}"


def command(bootstrap_file: Path, *, binary: str = "envoy") -> tuple[str, ...]:
    """Return the command that starts Envoy with a bootstrap file."""
    return (binary, "-c", str(bootstrap_file), "--disable-hot-restart", "--log-level", "warning", "--concurrency", "2")


def bootstrap(config_dir: Path, admin: str) -> dict[str, Any]:
    """Return the static bootstrap: admin address (``host:port``) and where the files are that change."""
    return {
        "node": {"id": "azora-edge", "cluster": "azora"},
        "admin": {"address": _address(admin)},
        "dynamic_resources": {
            "lds_config": _source(config_dir, "listeners.json"),
            "cds_config": _source(config_dir, "clusters.json"),
        },
        "stats_flush_interval": "0.5s",  # histograms are merged when counters are flushed
        "stats_config": {"histogram_bucket_settings": [{"match": {"suffix": "upstream_rq_time"}, "buckets": list(BUCKETS)}]},
    }


def render(state: EdgeState, config_dir: Path, generation: str) -> dict[str, dict[str, Any]]:
    """Return file name -> document of one generation: listeners, routes, clusters, one endpoint file per cluster, and the state."""
    names = [(service.id, release) for service in state.services for release in state.releases if release.endpoints.get(service.id)]
    clusters = [_cluster(cluster_name(service, release.id), config_dir) for service, release in names]
    files = {
        "listeners.json": _response(generation, [_listener(state.listen, config_dir)]),
        "routes.json": _response(generation, [_route_configuration(state, generation)]),
        "clusters.json": _response(generation, clusters),
        "edge.json": state.document(),
    }
    for service, release in names:
        other = state.release(state.failover(release.id))
        groups = [release.endpoints[service], other.endpoints.get(service, ()) if other else ()]
        name = cluster_name(service, release.id)
        files[f"endpoints-{name}.json"] = _response(generation, [_endpoints(name, groups)])
    return files


def _source(config_dir: Path, name: str) -> dict[str, Any]:
    # "current" is a symbolic link: renaming a new one over it reloads every file at once.
    watched = {"path": str(config_dir / "current" / name), "watched_directory": {"path": str(config_dir)}}
    return {"resource_api_version": "V3", "path_config_source": watched}


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _response(generation: str, resources: list[dict[str, Any]]) -> dict[str, Any]:
    return {"version_info": generation, "resources": resources}


def _listener(listen: str, config_dir: Path) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "rds": {"route_config_name": ROUTES, "config_source": _source(config_dir, "routes.json")},
        "use_remote_address": True,  # x-forwarded-for and x-forwarded-proto are ours
        "server_header_transformation": "PASS_THROUGH",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"}}],
    }
    return {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": LISTENER,
        "address": _address(listen),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _cluster(name: str, config_dir: Path) -> dict[str, Any]:
    limit = 100_000  # the default allows 3 retries at once: a dead instance under load needs more
    options = {
        "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": UPSTREAM_IDLE},
    }
    return {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _source(config_dir, f"endpoints-{name}.json")},
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "circuit_breakers": {
            "thresholds": [{"max_connections": limit, "max_pending_requests": limit, "max_requests": limit, "max_retries": limit}]
        },
    }


def _endpoints(name: str, groups: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    localities = [
        {"priority": priority, "lb_endpoints": [{"endpoint": {"address": _address(one)}} for one in addresses]}
        for priority, addresses in enumerate(groups)
        if addresses
    ]
    return {"@type": f"{_TYPE}.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": name, "endpoints": localities}


def _route_configuration(state: EdgeState, generation: str) -> dict[str, Any]:
    # Envoy takes the first match: the longest prefix comes first.
    ordered = sorted(state.services, key=lambda service: (-len(service.route_prefix), service.route_prefix))
    routes = [route for service in ordered for route in _routes(state, service)]
    return {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        # Envoy passes over an update without a difference; with the generation in it, each one can be read back.
        "virtual_hosts": [{"name": f"generation-{generation}", "domains": ["*"], "routes": routes}],
    }


def _routes(state: EdgeState, service: EdgeService) -> list[dict[str, Any]]:
    weights = state.weights(service.id)
    if not weights:
        text = {"inline_string": f"no release of {service.id} is deployed\n"}
        return [{"match": _match(service.route_prefix), "direct_response": {"status": 503, "body": text}}]
    # A canary at 0 % can be reached by header as soon as it is warm; after an abort there is no canary, and no such route.
    ways: list[tuple[list[dict[str, Any]], dict[str, int]]] = []
    for word, release_id in (("canary", state.canary), ("stable", state.stable)):
        release = state.release(release_id)
        if release and release.endpoints.get(service.id):
            ways.append(([_header(RELEASE_HEADER, {"exact": word})], {release.id: 100}))
    ways.append(([], weights))
    safe = _header(":method", {"safe_regex": {"regex": SAFE_METHODS}})
    found = []
    for headers, shares in ways:
        for method, retry in (([safe], True), ([], False)):
            action = _action(service, shares, retry=retry)
            found.append({"match": _match(service.route_prefix, [*headers, *method]), "route": action})
    return found


def _match(prefix: str, headers: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    # "/api" is not "/apis"; a prefix that ends in a slash says so itself.
    path = {"prefix": prefix} if prefix.endswith("/") else {"path_separated_prefix": prefix}
    return {**path, "headers": headers} if headers else path


def _header(name: str, match: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "string_match": match}


def _action(service: EdgeService, shares: Mapping[str, int], *, retry: bool) -> dict[str, Any]:
    clusters = [
        {
            "name": cluster_name(service.id, release_id),
            "weight": weight,
            "response_headers_to_add": [
                {"header": {"key": DEPLOYMENT_HEADER, "value": release_id}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            ],
        }
        for release_id, weight in shares.items()
    ]
    action: dict[str, Any] = {"weighted_clusters": {"clusters": clusters}, "timeout": f"{service.timeout_seconds:g}s"}
    if service.timeout_seconds == 0:
        action["idle_timeout"] = "0s"  # streams and upgraded connections may be silent for long
    if retry:
        action["retry_policy"] = _RETRY
    return action


# Retries never leave the weighted cluster that was chosen. The other side is priority 1 inside it, and a retry goes there.
_RETRY = {
    "retry_on": "connect-failure,refused-stream,reset",
    "num_retries": 2,
    "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": {
            "@type": f"{_TYPE}.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": 1,
        },
    },
}


# --- what the admin port answers ---------------------------------------------------------------------------------------


def effective_weights(dump: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, int]]]:
    """Return (generation, service route prefix -> cluster name -> weight) of ``/config_dump?resource=dynamic_route_configs``.

    Only the routes without header conditions count: they carry the users' traffic. ("", {}) when there is no configuration yet.
    """
    for config in dump.get("configs", []):
        routes = config.get("route_config", {})
        if routes.get("name") == ROUTES:
            found = {}
            host = routes["virtual_hosts"][0]
            for route in host.get("routes", []):
                match = route["match"]
                if "headers" not in match and "route" in route:
                    shares = route["route"]["weighted_clusters"]["clusters"]
                    found[match.get("path_separated_prefix") or match["prefix"]] = {one["name"]: one.get("weight", 0) for one in shares}
            return host["name"].removeprefix("generation-"), found
    return "", {}


def expected_weights(state: EdgeState) -> dict[str, dict[str, int]]:
    """Return what ``effective_weights`` must answer once a state is in force."""
    shares = {service.route_prefix: (service.id, state.weights(service.id)) for service in state.services}
    return {prefix: {cluster_name(name, one): share for one, share in found.items()} for prefix, (name, found) in shares.items() if found}


def cluster_hosts(clusters: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return cluster name -> "host:port" -> requests sent to it so far, from ``/clusters?format=json``."""
    found: dict[str, dict[str, int]] = {}
    for cluster in clusters.get("cluster_statuses", []):
        hosts = found.setdefault(cluster["name"], {})
        for host in cluster.get("host_statuses", []):
            address = host["address"]["socket_address"]
            total = next((int(stat.get("value", 0)) for stat in host.get("stats", []) if stat["name"] == "rq_total"), 0)
            hosts[f"{address['address']}:{address['port_value']}"] = total
    return found


def expected_hosts(state: EdgeState) -> dict[str, set[str]]:
    """Return cluster name -> addresses that ``cluster_hosts`` must answer once a state is in force."""
    found = {}
    for service in state.services:
        for release in state.releases:
            own = release.endpoints.get(service.id, ())
            other = state.release(state.failover(release.id))
            if own:
                found[cluster_name(service.id, release.id)] = {*own, *(other.endpoints.get(service.id, ()) if other else ())}
    return found


def counters(stats: Mapping[str, Any], state: EdgeState) -> dict[tuple[str, str], Counters]:
    """Return (service id, release id) -> counters, from ``/stats?format=json&histogram_buckets=cumulative``.

    A request counts for the release that was chosen first: its cluster also counts what failover had to do.
    """
    values: dict[str, int] = {}
    histograms: dict[str, list[dict[str, Any]]] = {}
    for one in stats.get("stats", []):
        if "histograms" in one:
            for histogram in _histograms(one["histograms"]):
                histograms[histogram["name"]] = histogram.get("buckets", [])
        else:
            values[one["name"]] = int(one["value"])
    found = {}
    for service in state.services:
        for release in state.releases:
            if release.endpoints.get(service.id):
                prefix = f"cluster.{cluster_name(service.id, release.id)}"
                found[service.id, release.id] = _counters(prefix, values, histograms.get(f"{prefix}.upstream_rq_time", []))
    return found


def _histograms(document: Any) -> list[dict[str, Any]]:
    # Envoy answers a list for bucket modes and an object with "details" or "computed_quantiles" for others.
    found = document if isinstance(document, list) else document.get("details", [])
    return list(found)


def _counters(prefix: str, values: Mapping[str, int], buckets: list[dict[str, Any]]) -> Counters:
    def value(name: str) -> int:
        return values.get(f"{prefix}.{name}", 0)

    retries = value("upstream_rq_retry")
    return Counters(
        requests=max(0, value("upstream_rq_total") + value("upstream_rq_pending_failure_eject") - retries),
        errors=value("upstream_rq_5xx"),
        hidden=retries,
        resets=value("upstream_rq_rx_reset"),
        connect_failures=value("upstream_cx_connect_fail"),
        buckets=tuple((float(one["upper_bound"]), int(one["cumulative"])) for one in buckets),
    )
