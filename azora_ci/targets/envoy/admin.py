"""Readers of the answers of Envoy's admin socket, and what it must answer once a state is in force. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azora_ci.targets.envoy import calls
from azora_ci.targets.envoy.routes import ROUTES
from azora_ci.targets.envoy.state import EdgeState, cluster_name


def effective_weights(dump: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, int]]]:
    """Return (generation, route prefix of a service -> cluster name -> weight) from ``/config_dump?resource=dynamic_route_configs``.

    Only routes without header conditions count: they carry the users' traffic. ("", {}) when there is no configuration yet.
    """
    for config in dump.get("configs", []):
        routes = config.get("route_config", {})
        if routes.get("name") == ROUTES:
            weights = {}
            host = routes["virtual_hosts"][0]
            for route in host.get("routes", []):
                match = route["match"]
                if "headers" not in match and "route" in route:
                    prefix = match.get("path_separated_prefix") or match["prefix"]
                    clusters = route["route"]["weighted_clusters"]["clusters"]
                    weights[prefix] = {cluster["name"]: cluster.get("weight", 0) for cluster in clusters}
            return host["name"].removeprefix("generation-"), weights
    return "", {}


def expected_weights(state: EdgeState) -> dict[str, dict[str, int]]:
    """Return the weights that ``effective_weights`` must return once a state is in force."""
    result = {}
    for service in state.routed:
        if weights := state.weights(service.id):
            result[service.route_prefix] = {cluster_name(service.id, release_id): share for release_id, share in weights.items()}
    return result


def certificate_days(certs: Mapping[str, Any]) -> int | None:
    """Return for how many whole days the edge's certificate is still valid, from ``/certs``; None without a certificate."""
    chains = [chain for certificate in certs.get("certificates", []) for chain in certificate.get("cert_chain", [])]
    return min((int(chain["days_until_expiration"]) for chain in chains), default=None)


def cluster_hosts(clusters: Mapping[str, Any], stat: str = "rq_total") -> dict[str, dict[str, int]]:
    """Return cluster name -> "host:port" -> users' requests sent to it so far, from ``/clusters?format=json``.

    With ``stat`` "rq_active": -> requests that are under way, upgraded connections among them.
    """
    requests: dict[str, dict[str, int]] = {}
    for cluster in clusters.get("cluster_statuses", []):
        if cluster["name"].startswith(calls.PREFIX):
            continue
        hosts = requests.setdefault(cluster["name"], {})
        for host in cluster.get("host_statuses", []):
            if (address := host["address"].get("socket_address")) is None:
                continue  # the open way, see ``checks``: what it leads to is in a cluster of its own
            total = next((int(counter.get("value", 0)) for counter in host.get("stats", []) if counter["name"] == stat), 0)
            hosts[f"{address['address']}:{address['port_value']}"] = total
    return requests


def waiting_requests(stats: Mapping[str, Any]) -> dict[str, int]:
    """Return cluster name -> how many requests wait for a connection, where any does, from ``/stats?format=json``."""
    gauges = {stat["name"]: int(stat["value"]) for stat in stats["stats"] if "name" in stat}
    return {name.removeprefix("cluster.").rpartition(".")[0]: value for name, value in gauges.items() if value}


def expected_hosts(state: EdgeState) -> dict[str, set[str]]:
    """Return cluster name -> addresses that ``cluster_hosts`` must return once a state is in force."""
    hosts = {}
    for service in state.routed:
        for release in state.releases:
            own = release.endpoints.get(service.id, ())
            other = state.release(state.failover(release.id))
            if own:
                hosts[cluster_name(service.id, release.id)] = {*own, *(other.endpoints.get(service.id, ()) if other else ())}
    return hosts
