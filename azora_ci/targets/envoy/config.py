"""Envoy's configuration except for routes: bootstrap, listeners, certificate, clusters, addresses. Pure.

All weights are in the one route file, so that one rename changes them together.
Protocol: Envoy API v3, file-based xDS with ``path_config_source`` and ``watched_directory``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from azora_ci.targets.envoy import access_log, calls, checks, counting
from azora_ci.targets.envoy.routes import BUFFER, MAX_BODY, ROUTES, redirect_configuration, route_configuration
from azora_ci.targets.envoy.state import EdgeOptions, EdgeRelease, EdgeService, EdgeState, EdgeTls, cluster_name, socket_address

LISTENER, TLS_LISTENER, CERTIFICATE = "edge", "edge-tls", "edge"
# Milliseconds. Envoy's own buckets are too coarse to compare a p95 by a factor.
BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 100, 120, 150, 200, 250, 300, 400, 500, 600, 800,
           1000, 1500, 2000, 3000, 5000, 10000, 30000, 60000)  # fmt: skip
# Node.js closes an idle connection after 5 s: the edge must close it first, or a request is sent on a closing connection.
UPSTREAM_IDLE = "4s"
UNBOUNDED = 100_000
STAY = 100_000  # percent: a thousandth of a side's instances carry the whole side
MAX_USERS = 10_000  # connections of users at once
FIXED_HEAP = "envoy.resource_monitors.fixed_heap"
MAX_HEAP = 800 * 1024**2  # bytes
CONNECTION_BUFFER = 32 * 1024
# Envoy's own advice for an edge, https://www.envoyproxy.io/docs/envoy/latest/configuration/best_practices/edge: whoever sends half a
# request holds a connection, not the edge; and an instance sees the path by which its route was chosen.
HARDENING = {
    "request_headers_timeout": "10s",
    "common_http_protocol_options": {"idle_timeout": "75s", "headers_with_underscores_action": "REJECT_REQUEST"},
    "http2_protocol_options": {
        "max_concurrent_streams": 100,
        "initial_stream_window_size": 64 * 1024,
        "initial_connection_window_size": 1024 * 1024,
    },
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
}
_TYPE = "type.googleapis.com/envoy"


def bootstrap(config_dir: Path, admin: Path, mode: int, files: int) -> dict[str, Any]:
    """Return the static bootstrap: the Unix socket of the admin interface with its mode, and the paths of the files that change.

    ``files``: how many Envoy may open. Users get half of the connections that these make, so that each can have one to an instance, and
    that the admin socket, which has no limit, always answers.
    """
    return {
        "node": {"id": "azora-edge", "cluster": "azora"},
        "admin": {"address": {"pipe": {"path": str(admin), "mode": mode}}, "ignore_global_conn_limit": True},
        "overload_manager": _overload_manager(min(files // 2, MAX_USERS)),
        "dynamic_resources": {
            "lds_config": _source(config_dir, "listeners.json"),
            "cds_config": _source(config_dir, "clusters.json"),
        },
        "stats_flush_interval": "0.5s",  # histograms are merged when counters are flushed
        "stats_config": {"histogram_bucket_settings": [{"match": {"prefix": counting.PREFIX}, "buckets": list(BUCKETS)}]},
    }


def _overload_manager(connections: int) -> dict[str, Any]:
    """Return what happens when connections or memory run out.

    New connections are closed. The largest requests are reset (Envoy does that with HTTP/2 only), silent ones sooner, new ones refused.
    """

    def monitor(name: str, package: str, kind: str, **settings: int) -> dict[str, Any]:
        config = {"@type": f"{_TYPE}.extensions.resource_monitors.{package}.v3.{kind}", **settings}
        return {"name": f"envoy.resource_monitors.{name}", "typed_config": config}

    def action(name: str, **trigger: Any) -> dict[str, Any]:
        return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": FIXED_HEAP, **trigger}]}

    return {
        "refresh_interval": "0.1s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 16},  # the largest of its 8 classes begins at 8 MiB
        "resource_monitors": [
            monitor(
                "global_downstream_max_connections",
                "downstream_connections",
                "DownstreamConnectionsConfig",
                max_active_downstream_connections=connections,
            ),
            monitor("fixed_heap", "fixed_heap", "FixedHeapConfig", max_heap_size_bytes=MAX_HEAP),
        ],
        "actions": [
            action("shrink_heap", threshold={"value": 0.8}),
            action("reset_high_memory_stream", scaled={"scaling_threshold": 0.8, "saturation_threshold": 0.95}),
            {
                **action("reduce_timeouts", scaled={"scaling_threshold": 0.8, "saturation_threshold": 0.95}),
                "typed_config": {
                    "@type": f"{_TYPE}.config.overload.v3.ScaleTimersOverloadActionConfig",
                    "timer_scale_factors": [{"timer": "HTTP_DOWNSTREAM_STREAM_IDLE", "min_timeout": "3s"}],
                },
            },
            action("stop_accepting_requests", threshold={"value": 0.95}),
        ],
        # What is under way would go on sending: 100 requests of 15 MiB at once took 1.2 GiB, and take 0.84 now that a connection which
        # sends more is closed. What has been sent is held until its user sends the rest, or nothing for a while.
        "loadshed_points": [
            {"name": "envoy.load_shed_points.http1_server_abort_dispatch", "triggers": [{"name": FIXED_HEAP, "threshold": {"value": 0.95}}]}
        ],
    }


def render(state: EdgeState, config_dir: Path, generation: str) -> dict[str, dict[str, Any]]:
    """Return file name -> document of a generation: listeners, routes, clusters, one endpoint file per cluster, and the state.

    With TLS, another file names certificate and key.
    """
    names = [(service, release) for service in state.routed for release in state.releases if release.endpoints.get(service.id)]
    clusters = [_cluster(service, release, config_dir) for service, release in names]
    ways = [checks.open_way(service, release, config_dir) for service, release in names if service.liveness_path is not None]
    clusters += [*calls.clusters(state), *(cluster for cluster, _ in ways)]
    listeners = [*_listeners(state, config_dir), *filter(None, [calls.listener(state)]), *(listener for _, listener in ways)]
    files = {
        "listeners.json": _response(generation, listeners),
        "routes.json": _response(generation, [route_configuration(state, generation)]),
        "clusters.json": _response(generation, clusters),
        "edge.json": state.document(),
    }
    if state.options.tls is not None:
        files["secrets.json"] = _response(generation, [_secret(state.options.tls)])
    for service, release in names:
        other = state.release(state.failover(release.id))
        name = cluster_name(service.id, release.id)
        own = checks.own_endpoints(service, name, release.endpoints[service.id], config_dir)
        help_of = checks.endpoints(other.endpoints.get(service.id, ()) if other else ())
        files[f"endpoints-{name}.json"] = _response(generation, [_endpoints(name, own, help_of)])
    return files


def _source(config_dir: Path, name: str) -> dict[str, Any]:
    # "current" is a symbolic link: renaming a new one over it reloads every file at once.
    watched = {"path": str(config_dir / "current" / name), "watched_directory": {"path": str(config_dir)}}
    return {"resource_api_version": "V3", "path_config_source": watched}


def _response(generation: str, resources: list[dict[str, Any]]) -> dict[str, Any]:
    return {"version_info": generation, "resources": resources}


def _listeners(state: EdgeState, config_dir: Path) -> list[dict[str, Any]]:
    routes = {"rds": {"route_config_name": ROUTES, "config_source": _source(config_dir, "routes.json")}}
    tls = state.options.tls
    if tls is None:
        return [_listener(LISTENER, state.listen, _manager(state.options, routes))]
    plain = {"route_config": redirect_configuration(tls.port)} if tls.redirect else routes
    return [
        _listener(LISTENER, state.listen, _manager(state.options, plain)),
        _listener(TLS_LISTENER, tls.listen, _manager(state.options, routes), _transport(config_dir)),
    ]


def _manager(options: EdgeOptions, routes: dict[str, Any]) -> dict[str, Any]:
    mutation = _filter("header_mutation", "HeaderMutation", mutations={"request_mutations": _removed_headers(options)})
    router = _filter("router", "Router")
    return {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        **routes,
        "use_remote_address": True,  # the edge sets x-forwarded-for and x-forwarded-proto, unless a trusted proxy does
        "xff_num_trusted_hops": options.trusted_proxies,
        "access_log": [*counting.loggers(), *access_log.loggers(options.log)],
        "server_header_transformation": "PASS_THROUGH",
        **HARDENING,
        "upgrade_configs": [{"upgrade_type": "websocket", "filters": [mutation, router]}],  # what is upgraded has no end to wait for
        # An instance gets a request when all of it is there: who sends slowly holds up the edge alone.
        "http_filters": [mutation, _filter(BUFFER, "Buffer", max_request_bytes=MAX_BODY), router],
    }


def _filter(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.{name}.v3.{kind}", **settings}}


def _removed_headers(options: EdgeOptions) -> list[dict[str, Any]]:
    """Return the removal of what users say of themselves. Their address is in x-forwarded-for; a trusted proxy may say it elsewhere."""
    own = [] if options.trusted_proxies else [{"remove": name} for name in ("x-real-ip", "forwarded")]
    return [*own, {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}}]


def _listener(name: str, listen: str, manager: dict[str, Any], transport: dict[str, Any] | None = None) -> dict[str, Any]:
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if transport is not None:
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": transport}
    return {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": name,
        "address": socket_address(listen),
        "filter_chains": [chain],
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER,
    }


def _transport(config_dir: Path) -> dict[str, Any]:
    secret = {"name": CERTIFICATE, "sds_config": _source(config_dir, "secrets.json")}
    return {
        "@type": f"{_TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificate_sds_secret_configs": [secret], "alpn_protocols": ["h2", "http/1.1"]},
    }


def _secret(tls: EdgeTls) -> dict[str, Any]:
    return {
        "@type": f"{_TYPE}.extensions.transport_sockets.tls.v3.Secret",
        "name": CERTIFICATE,
        "tls_certificate": {
            "certificate_chain": {"filename": tls.certificate},
            "private_key": {"filename": tls.key},
            "watched_directory": {"path": str(Path(tls.certificate).parent)},
        },
    }


def _cluster(service: EdgeService, release: EdgeRelease, config_dir: Path) -> dict[str, Any]:
    """Return the cluster of one release of one service.

    What waits is bounded: with an endless queue, an overload leaves only requests that come too late. A request beyond the bounds is
    refused with 503 at once and not tried again. Each instance has its own bound, so that one that hangs holds no other's connections.
    """
    name, (connections, pending) = cluster_name(service.id, release.id), service.bounds(len(release.endpoints[service.id]))
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
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER,
        "connect_timeout": "0.25s",  # edge and instances are on one machine; whoever waits for a dead one takes a place in the queue
        "health_checks": checks.health_checks(service),
        "common_lb_config": {"update_merge_window": "0s"},  # an instance that is new counts as dead until its first check is known
        "ignore_health_on_host_removal": True,  # whoever takes an instance out means it, also while it is healthy
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": UNBOUNDED,
                    "max_pending_requests": pending or UNBOUNDED,
                    "max_requests": UNBOUNDED,
                    "max_retries": UNBOUNDED,  # the default is 3 at once: a dead instance under load needs more
                }
            ],
            "per_host_thresholds": [{"max_connections": connections or UNBOUNDED}],
        },
    }


def _endpoints(name: str, own: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the endpoints of both sides. The factor keeps users on their side as long as one of its endpoints is healthy."""
    localities: list[dict[str, Any]] = [{"priority": 0, "lb_endpoints": own}]
    if others:
        localities.append({"priority": 1, "lb_endpoints": [{**endpoint, "metadata": counting.OF_FAILOVER} for endpoint in others]})
    return {
        "@type": f"{_TYPE}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": localities,
        "policy": {"overprovisioning_factor": STAY},
    }
