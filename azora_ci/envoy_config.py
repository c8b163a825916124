"""What Envoy is told, except for routes: bootstrap, listener, clusters, addresses. Pure.

Weights are in the one route file, so that one rename moves all of them.
Protocol: Envoy API v3, file-based xDS with ``path_config_source`` and ``watched_directory``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from azora_ci.envoy import EdgeState, cluster_name
from azora_ci.envoy_routes import ROUTES, route_configuration

LISTENER = "edge"
# Milliseconds. Envoy's own buckets are too coarse to compare a p95 by a factor.
BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 100, 120, 150, 200, 250, 300, 400, 500, 600, 800,
           1000, 1500, 2000, 3000, 5000, 10000, 30000, 60000)  # fmt: skip
# Node.js closes an idle connection after 5 s: the edge must be the one that closes first, or a request meets the closing.
UPSTREAM_IDLE = "4s"
_TYPE = "type.googleapis.com/envoy"


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
        "routes.json": _response(generation, [route_configuration(state, generation)]),
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
