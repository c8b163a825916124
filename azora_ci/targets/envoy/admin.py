"""Readers of the answers of Envoy's admin socket, and what it must answer once a state is in force. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azora_ci.health.traffic import Counters
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
            address = host["address"]["socket_address"]
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


def counters(stats: Mapping[str, Any], state: EdgeState) -> dict[tuple[str, str], Counters]:
    """Return (service id, release id) -> counters, from ``/stats?format=json&histogram_buckets=cumulative``.

    A request counts for the release that was chosen first, also where failover answered it: failover is priority 1 of the same cluster.
    """
    values: dict[str, int] = {}
    histograms: dict[str, list[dict[str, Any]]] = {}
    for stat in stats.get("stats", []):
        if "histograms" in stat:
            for histogram in _histograms(stat["histograms"]):
                histograms[histogram["name"]] = histogram.get("buckets", [])
        else:
            values[stat["name"]] = int(stat["value"])
    result = {}
    for service in state.routed:
        for release in state.releases:
            if release.endpoints.get(service.id):
                prefix = f"cluster.{cluster_name(service.id, release.id)}"
                result[service.id, release.id] = _counters(prefix, values, histograms.get(f"{prefix}.upstream_rq_time", []))
    return result


def _histograms(document: Any) -> list[dict[str, Any]]:
    # Envoy answers a list for bucket modes and an object with "details" or "computed_quantiles" for others.
    return list(document if isinstance(document, list) else document.get("details", []))


def _counters(prefix: str, values: Mapping[str, int], buckets: list[dict[str, Any]]) -> Counters:
    def value(name: str) -> int:
        return values.get(f"{prefix}.{name}", 0)

    retries = value("upstream_rq_retry")
    return Counters(
        requests=max(0, value("upstream_rq_total") + value("upstream_rq_pending_failure_eject") - retries),
        errors=value("upstream_rq_5xx"),
        failovers=retries,
        resets=value("upstream_rq_rx_reset"),
        connect_failures=value("upstream_cx_connect_fail"),
        buckets=tuple((float(bucket["upper_bound"]), int(bucket["cumulative"])) for bucket in buckets),
    )
