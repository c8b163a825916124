"""What Envoy is told about requests: which version gets them, in what share, and what is tried again. Pure.

Protocol: Envoy API v3, ``RouteConfiguration``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azora_ci.envoy import DEPLOYMENT_HEADER, RELEASE_HEADER, EdgeService, EdgeState, cluster_name

ROUTES = "edge"
HTTPS_PORT = 443
SAFE_METHODS = "GET|HEAD|OPTIONS"
# What is tried again. A request that may change something is so only where nothing of it was sent: nothing may happen twice.
SAFE_RETRY, UNSENT_RETRY = "connect-failure,refused-stream,reset", "connect-failure,reset-before-request"
ATTEMPTS_PER_SIDE = 3  # at most; each waits a connect timeout where an instance does not even refuse
_TYPE = "type.googleapis.com/envoy"


def route_configuration(state: EdgeState, generation: str) -> dict[str, Any]:
    """Return the routes of all services in one document, which one rename puts in force."""
    # Envoy takes the first match: the longest prefix comes first.
    ordered = sorted(state.services, key=lambda service: (-len(service.route_prefix), service.route_prefix))
    routes = [route for service in ordered for route in _routes(state, service)]
    return {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        # Envoy passes over an update without a difference; with the generation in it, each one can be read back.
        "virtual_hosts": [{"name": f"generation-{generation}", "domains": ["*"], "routes": routes}],
    }


def redirect_configuration(port: int) -> dict[str, Any]:
    """Return the routes of plain HTTP where it only leads to HTTPS; method and body stay what they were (308)."""
    redirect: dict[str, Any] = {"https_redirect": True, "response_code": "PERMANENT_REDIRECT"}
    if port != HTTPS_PORT:
        redirect["port_redirect"] = port
    return {
        "name": "redirect",
        "virtual_hosts": [{"name": "redirect", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "redirect": redirect}]}],
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
        for method, conditions in (([safe], SAFE_RETRY), ([], UNSENT_RETRY)):
            action = _action(service, shares, conditions, _attempts(state, service))
            found.append({"match": _match(service.route_prefix, [*headers, *method]), "route": action})
    return found


def _match(prefix: str, headers: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    # "/api" is not "/apis"; a prefix that ends in a slash says so itself.
    path = {"prefix": prefix} if prefix.endswith("/") else {"path_separated_prefix": prefix}
    return {**path, "headers": headers} if headers else path


def _header(name: str, match: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "string_match": match}


def _action(service: EdgeService, shares: Mapping[str, int], conditions: str, attempts: int) -> dict[str, Any]:
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
    action["retry_policy"] = _retry(conditions, attempts)
    return action


def _attempts(state: EdgeState, service: EdgeService) -> int:
    """Return how often a request is tried on the side that was chosen: once for each instance, so that a living one is found."""
    largest = max(len(release.endpoints.get(service.id, ())) for release in state.releases)
    return min(largest, ATTEMPTS_PER_SIDE)


def _retry(conditions: str, attempts: int) -> dict[str, Any]:
    """Return the policy: first other instances of the chosen side, then the other side, which is priority 1 of the same cluster.

    Retries never leave the weighted cluster that was chosen. Were the other side asked first, then one dead instance among several
    would send its whole share there: with one of three, a third of the users would have met a canary at 5 %.
    """
    priorities = f"{_TYPE}.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    hosts = f"{_TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": conditions,
        "num_retries": max(2, 2 * attempts - 1),
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {"@type": priorities, "update_frequency": attempts},  # attempts before a priority is left
        },
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": hosts}}],
        "host_selection_retry_max_attempts": 10,  # draws of an instance that was not tried yet; then it is any
    }
