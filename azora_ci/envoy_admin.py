"""What Envoy's admin port answers, read; and what it must answer once a state is in force. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azora_ci.envoy import EdgeState, cluster_name
from azora_ci.envoy_routes import ROUTES
from azora_ci.rollout import Counters


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


def certificate_days(certs: Mapping[str, Any]) -> int | None:
    """Return for how many whole days the edge's certificate is still valid, from ``/certs``; None where it has none."""
    days = [int(chain["days_until_expiration"]) for one in certs.get("certificates", []) for chain in one.get("cert_chain", [])]
    return min(days, default=None)


def cluster_hosts(clusters: Mapping[str, Any], stat: str = "rq_total") -> dict[str, dict[str, int]]:
    """Return cluster name -> "host:port" -> requests sent to it so far, from ``/clusters?format=json``.

    With ``stat`` "rq_active": how many are under way, upgraded connections among them.
    """
    found: dict[str, dict[str, int]] = {}
    for cluster in clusters.get("cluster_statuses", []):
        hosts = found.setdefault(cluster["name"], {})
        for host in cluster.get("host_statuses", []):
            address = host["address"]["socket_address"]
            total = next((int(one.get("value", 0)) for one in host.get("stats", []) if one["name"] == stat), 0)
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
