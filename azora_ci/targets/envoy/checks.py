"""Which instances the edge leaves out because they are dead or hang, and how their users stay on their version all the same. Pure.

Without a liveness path only connections are checked: an instance that takes them and never answers stays in turn. With one, an instance
that does not answer it is left out after two checks, also where it is the only one left, so a release needs a way that is always open.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from azora_ci.targets.envoy.state import EdgeRelease, EdgeService, cluster_name, socket_address

PREFIX = "open:"  # of names of clusters and listeners; no other has it
# An instance that takes no connection is left out after two checks, at most 4 s, and taken back after one.
_CONNECTIONS = {"interval": "1s", "timeout": "1s", "unhealthy_threshold": 2, "healthy_threshold": 1}
# One that hangs after at most 5 s; a busy one may take a second for its answer.
_ANSWERS = {**_CONNECTIONS, "timeout": "1.5s"}
_OWN_WEIGHT = 1_000_000  # of an instance, against 1 of the open way
_TYPE = "type.googleapis.com/envoy"


def health_checks(service: EdgeService) -> list[dict[str, Any]]:
    """Return the health checks of a release's cluster. An answer below 500 shows a life: a wrong path leaves nobody out."""
    if service.liveness_path is None:
        return [{**_CONNECTIONS, "no_traffic_interval": "1s", "tcp_health_check": {}}]
    asked = {"path": service.liveness_path, "host": "localhost", "expected_statuses": [{"start": 200, "end": 500}]}
    return [{**_ANSWERS, "no_traffic_interval": "1s", "http_health_check": asked}]


def own_endpoints(service: EdgeService, name: str, addresses: tuple[str, ...], config_dir: Path) -> list[dict[str, Any]]:
    """Return the endpoints of a release's own instances in its cluster.

    A side of which nothing is healthy would lose its users to the other. Where connections are checked, its first instance always counts
    as healthy: one dead instance at most is in turn, then, and a retry finds another. Where answers are, a way of its own does, which
    leads to all instances, and which has nothing to do while one of them is healthy.
    """
    if service.liveness_path is None:
        return endpoints(addresses)
    own = [{"endpoint": {"address": socket_address(address)}, "load_balancing_weight": _OWN_WEIGHT} for address in addresses]
    way = {"endpoint": {"address": _pipe(name, config_dir), **_UNCHECKED}, "load_balancing_weight": 1}
    return [*own, way]


_UNCHECKED = {"health_check_config": {"disable_active_health_check": True}}


def endpoints(addresses: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return endpoints of which all but the first are checked."""
    return [
        {"endpoint": {"address": socket_address(address), **({} if number else _UNCHECKED)}} for number, address in enumerate(addresses)
    ]


def open_way(service: EdgeService, release: EdgeRelease, config_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return cluster and listener of the way to all of a release's instances, healthy or not. It listens where only this machine can."""
    name = cluster_name(service.id, release.id)
    hosts = [{"endpoint": {"address": socket_address(address)}} for address in release.endpoints[service.id]]
    cluster = {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": PREFIX + name,
        "type": "STATIC",
        "connect_timeout": "0.5s",
        "load_assignment": {"cluster_name": PREFIX + name, "endpoints": [{"lb_endpoints": hosts}]},
    }
    proxy = {"@type": f"{_TYPE}.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "open", "cluster": PREFIX + name}
    listener = {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": PREFIX + name,
        "address": _pipe(name, config_dir),
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
        "ignore_global_conn_limit": True,  # which users' connections may have reached
    }
    return cluster, listener


def _pipe(name: str, config_dir: Path) -> dict[str, Any]:
    """Return the address of the open way: a Unix socket without a file, whose name no other edge of the machine has."""
    return {"pipe": {"path": f"@azora-{hashlib.sha256(f'{config_dir} {name}'.encode()).hexdigest()[:16]}"}}
