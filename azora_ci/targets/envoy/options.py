"""The edge's services and options, from the deployment configuration."""

from __future__ import annotations

from dataclasses import replace

from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.envoy.access_log import STDOUT
from azora_ci.targets.envoy.state import EdgeOptions, EdgeService, EdgeState, EdgeTls


def edge_services(config: DeployConfig) -> tuple[EdgeService, ...]:
    """Return what the edge needs to know about each service. Processes on loopback reach each other without it."""
    calls = config.target.kind == "docker_hosts"
    callers = tuple(service for service in config.workers if service.talks_to) if calls else ()
    return tuple(
        EdgeService(
            service.id,
            service.route_prefix,
            service.timeout_seconds,
            service.talks_to if calls else (),
            service.max_connections,
            service.max_pending_requests,
            service.liveness_path,
            service.expected_latency_ms,
        )
        for service in (*config.web, *callers)
    )


def with_services(state: EdgeState, configured: tuple[EdgeService, ...]) -> EdgeState:
    """Return a state with the configured services, and those of its own that must stay.

    A service that the configuration drops stays while a release at the edge has instances of it: until the promotion, the old
    version gets all its requests. After that it has no route, so that a shorter prefix may match; a rollback restores its route.
    """
    ids, prefixes = {service.id for service in configured}, {service.route_prefix for service in configured if service.route_prefix}
    served = {service for release in state.releases for service, addresses in release.endpoints.items() if addresses}
    kept = [service for service in state.services if service.id in served - ids and service.route_prefix not in prefixes]
    # What the version in production calls, it goes on calling, too.
    called = {service.id: service.talks_to for service in state.services}
    configured = tuple(
        replace(service, talks_to=tuple(dict.fromkeys((*service.talks_to, *called.get(service.id, ()))))) for service in configured
    )
    return replace(state, services=(*configured, *kept))


def require_kept_prefixes(state: EdgeState, config: DeployConfig) -> None:
    """Raise NotTrueError where a route prefix would move to or from a service that the stable release has.

    One route file serves both versions: users of the old version would be led to the new prefix, or to another service.
    """
    for service in config.web:
        for present in state.routed:
            moved = (service.id == present.id) != (service.route_prefix == present.route_prefix)
            if moved and state.addresses(state.stable, present.id):
                raise NotTrueError(
                    "A route prefix moves while a version in production has it",
                    what=f"service {service.id} at {service.route_prefix}; in force: service {present.id} at {present.route_prefix}",
                    where=f"services.{service.id}.route_prefix in the deployment configuration",
                    next_step="move the prefix in two releases: first one that adds a service of a new name at a new prefix, or drops the "
                    "service that has this prefix; when it is promoted, the other",
                )


def edge_options(config: DeployConfig, tls: EdgeTls | None, log: str | None = STDOUT) -> EdgeOptions:
    """Return the options of the edge that do not depend on releases; ``tls``, ``log``: with addresses and paths as the edge sees them."""
    return EdgeOptions(tls, config.edge.trusted_proxies, config.edge.sticky_cookie, secure_cookie=_is_cookie_secure(config, tls), log=log)


def _is_cookie_secure(config: DeployConfig, tls: EdgeTls | None) -> bool:
    if config.edge.sticky_cookie is None:
        return False
    return config.public_url.startswith("https:") or (tls is not None and tls.redirect)
