"""What the configuration says about the edge, in the edge's own words."""

from __future__ import annotations

from pathlib import Path

from azora_ci.config import DeployConfig
from azora_ci.envoy import EdgeOptions, EdgeService, EdgeTls

TLS_PORT, TLS_FOLDER = 8443, Path("/tls")  # inside the edge's container
LOOPBACK = "127.0.0.1"


def edge_services(config: DeployConfig) -> tuple[EdgeService, ...]:
    """Return what the edge needs to know of the services."""
    return tuple(EdgeService(one.id, one.route_prefix, one.timeout_seconds) for one in config.services)


def edge_options(config: DeployConfig) -> EdgeOptions:
    """Return how the edge is configured, whatever releases there are."""
    tls = _tls(config)
    return EdgeOptions(tls, config.edge.trusted_proxies, config.edge.sticky_cookie, secure_cookie=_by_https(config, tls))


def _by_https(config: DeployConfig, tls: EdgeTls | None) -> bool:
    if config.edge.sticky_cookie is None:
        return False
    return config.public_url.startswith("https:") or (tls is not None and tls.redirect)


def _tls(config: DeployConfig) -> EdgeTls | None:
    edge = config.edge
    if edge.tls is None:
        return None
    certificate, key = edge.tls.certificate, edge.tls.key
    if config.target.kind == "local_processes":
        return EdgeTls(f"{LOOPBACK}:{edge.tls.port}", str(certificate), str(key), edge.tls.port, edge.tls.redirect_http)
    inside = (str(TLS_FOLDER / certificate.name), str(TLS_FOLDER / key.name))
    return EdgeTls(f"0.0.0.0:{TLS_PORT}", *inside, edge.tls.port, edge.tls.redirect_http)
