"""Calls from one service to another through the edge: who calls which name gets an instance of the caller's own release. Pure.

A service that ``talks_to`` others finds the edge under their names. Which release a caller belongs to is told by the address that its
packets come from, which it cannot choose: each release's callers have a filter chain of their own. Calls have clusters of their own as
well, without failover to the other version, and do not count as users' requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from azora_ci.targets.envoy import access_log
from azora_ci.targets.envoy.state import EdgeRelease, EdgeService, EdgeState, cluster_name, socket_address

LISTENER = "calls"
PORT = 80
PREFIX = access_log.CALL  # of the clusters' names; no other cluster has a colon in its name
_TYPE = "type.googleapis.com/envoy"


def names_of(service_id: str) -> tuple[str, ...]:
    """Return the names of a service for its callers. Not every program takes an underscore in the name of a host."""
    return tuple(dict.fromkeys((service_id, service_id.replace("_", "-"))))


def _targets(release: EdgeRelease, service_id: str) -> tuple[str, ...]:
    """Return where a release's instances of a called service listen: healthy ones, or before there are any those that were started."""
    return release.endpoints.get(service_id) or release.started.get(service_id, ())


def _called(state: EdgeState) -> list[EdgeService]:
    callees = {name for service in state.services for name in service.talks_to}
    return [service for service in state.services if service.id in callees]


def clusters(state: EdgeState) -> Iterator[dict[str, Any]]:
    """Yield a cluster for each called service of each release."""
    for release in state.releases:
        for service in _called(state):
            if targets := _targets(release, service.id):
                name = PREFIX + cluster_name(service.id, release.id)
                endpoints = [{"endpoint": {"address": socket_address(address)}} for address in targets]
                yield {
                    "@type": f"{_TYPE}.config.cluster.v3.Cluster",
                    "name": name,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
                }


def listener(state: EdgeState) -> dict[str, Any] | None:
    """Return the listener for calls; None where no service talks to another."""
    chains = [chain for release in state.releases for service in state.services if (chain := _chain(state, release, service))]
    if not chains:
        return None
    host = state.listen.rpartition(":")[0]
    address = {"socket_address": {"address": host, "port_value": PORT}}
    return {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": LISTENER,
        "address": address,
        "filter_chains": chains,
        "ignore_global_conn_limit": True,  # which users' connections may have reached
    }


def _chain(state: EdgeState, release: EdgeRelease, caller: EdgeService) -> dict[str, Any] | None:
    """Return the filter chain of a release's instances of a calling service; connections that match no chain are closed."""
    addresses = dict.fromkeys((*release.started.get(caller.id, ()), *release.endpoints.get(caller.id, ())))
    if not caller.talks_to or not addresses:
        return None
    hosts = [_virtual_host(release, service) for service in state.services if service.id in caller.talks_to]
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": LISTENER,
        # Listeners and clusters are files of their own, which may arrive in any order.
        "route_config": {"name": LISTENER, "validate_clusters": False, "virtual_hosts": hosts},
        "access_log": access_log.loggers(state.options.log),
        "server_header_transformation": "PASS_THROUGH",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"}}],
    }
    ranges = [{"address_prefix": address.rpartition(":")[0], "prefix_len": 32} for address in addresses]
    return {
        "name": cluster_name(caller.id, release.id),
        "filter_chain_match": {"source_prefix_ranges": ranges},
        "filters": [{"name": "http", "typed_config": manager}],
    }


def _virtual_host(release: EdgeRelease, service: EdgeService) -> dict[str, Any]:
    domains = [domain for name in names_of(service.id) for domain in (name, f"{name}:*")]
    route: dict[str, Any] = {"match": {"prefix": "/"}}
    if _targets(release, service.id):
        # Only what was not sent is tried again: no change may happen twice.
        retry = {"retry_on": "connect-failure,refused-stream", "num_retries": 2}
        cluster, timeout = PREFIX + cluster_name(service.id, release.id), f"{service.timeout_seconds:g}s"
        route["route"] = {"cluster": cluster, "timeout": timeout, "retry_policy": retry}
    else:
        text = {"inline_string": f"{release.version} has no instance of {service.id}\n"}
        route["direct_response"] = {"status": 503, "body": text}
    return {"name": service.id, "domains": domains, "routes": [route]}
