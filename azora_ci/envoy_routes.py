"""What Envoy is told about requests: which version gets them, in what share, and what is tried again. Pure.

Protocol: Envoy API v3, ``RouteConfiguration``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azora_ci.envoy import DEPLOYMENT_HEADER, RELEASE_HEADER, EdgeService, EdgeState, cluster_name
from azora_ci.rollout import PERCENT

ROUTES = "edge"
FULL = 100  # percent
DRAWN_AT = tuple(percent for _, percent in PERCENT)  # the weights at which users may have been drawn
HTTPS_PORT = 443
SAFE_METHODS = "GET|HEAD|OPTIONS"
# What is tried again. A request that may change something is so only where nothing of it was sent: nothing may happen twice.
SAFE_RETRY, UNSENT_RETRY = "connect-failure,refused-stream,reset", "connect-failure,reset-before-request"
ATTEMPTS_PER_SIDE = 3  # at most; each waits a connect timeout where an instance does not even refuse
_TYPE = "type.googleapis.com/envoy"


@dataclass(frozen=True)
class Way:
    """Requests with these headers go to these releases in these shares; who is drawn gets that release's cookie."""

    headers: tuple[dict[str, Any], ...]
    shares: Mapping[str, int]
    cookies: Mapping[str, str] = field(default_factory=dict)


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
        if state.stable is not None:  # dropped by the version in force, or new with a canary at 0 %: what a shorter prefix says holds
            return []
        text = {"inline_string": f"no release of {service.id} is deployed\n"}
        return [{"match": _match(service.route_prefix), "direct_response": {"status": 503, "body": text}}]
    safe = _header(":method", {"safe_regex": {"regex": SAFE_METHODS}})
    found = []
    for way in [*_asked_for(state, service), *_sticky(state, weights), Way((), weights, _drawn(state, weights))]:
        for method, conditions in (([safe], SAFE_RETRY), ([], UNSENT_RETRY)):
            action = _action(state, service, way, conditions)
            found.append({"match": _match(service.route_prefix, [*way.headers, *method]), "route": action})
    return found


def _asked_for(state: EdgeState, service: EdgeService) -> list[Way]:
    """Return the ways by header. A canary at 0 % can be asked for as soon as it is warm; after an abort there is none, and no such way."""
    sides = (("canary", state.canary), ("stable", state.stable))
    return [
        Way((_header(RELEASE_HEADER, {"exact": word}),), {release_id: FULL})
        for word, release_id in sides
        if release_id is not None and state.addresses(release_id, service.id)
    ]


# --- users who stay on a version -----------------------------------------------------------------------------------------


def _sticky(state: EdgeState, weights: Mapping[str, int]) -> list[Way]:
    """Return the ways of users whose cookie says what was drawn for them.

    Who got the canary keeps it. Who got the old version when ``drawn`` % got the canary keeps it while the weight stays, and is drawn
    again when it has risen to ``percent``: for the canary with (percent - drawn) / (100 - drawn), so that all in all ``percent`` % of
    the users have it. The cookie names the deployment and its attempt: after an abort it matches nothing, and is taken away.
    """
    name, canary, stable = state.options.sticky_cookie, state.canary, state.stable
    if name is None:
        return []
    if canary is None or state.percent == 0:
        return [Way((_cookie(name),), weights, dict.fromkeys(weights, f"{name}=; Max-Age=0"))]
    if stable is None or set(weights) != {canary, stable}:
        return []  # only one version has this service: nothing to draw
    found = [Way((_cookie(name, f"{canary}.{state.attempt}.canary"),), {canary: FULL})]
    for drawn in DRAWN_AT:
        if drawn < state.percent:
            again = {stable: FULL - state.percent, canary: state.percent - drawn}
            found.append(Way((_cookie(name, f"{canary}.{state.attempt}.stable.{drawn}"),), again, _drawn(state, weights)))
    if state.percent < FULL:
        found.append(Way((_cookie(name, f"{canary}.{state.attempt}.stable.{state.percent}"),), {stable: FULL}))
    return found


def _drawn(state: EdgeState, weights: Mapping[str, int]) -> dict[str, str]:
    """Return release id -> the cookie of users who are drawn now."""
    name, canary, stable = state.options.sticky_cookie, state.canary, state.stable
    if name is None or canary is None or stable is None or state.percent == 0 or set(weights) != {canary, stable}:
        return {}
    return {canary: f"{name}={canary}.{state.attempt}.canary", stable: f"{name}={canary}.{state.attempt}.stable.{state.percent}"}


def _cookie(name: str, value: str | None = None) -> dict[str, Any]:
    wanted = ".*" if value is None else f"{re.escape(value)}(?:\\s*;.*)?"
    return _header("cookie", {"safe_regex": {"regex": f"(?:.*;\\s*)?{re.escape(name)}={wanted}"}})


# --- parts of a route ----------------------------------------------------------------------------------------------------


def _match(prefix: str, headers: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    # "/api" is not "/apis"; a prefix that ends in a slash says so itself.
    path = {"prefix": prefix} if prefix.endswith("/") else {"path_separated_prefix": prefix}
    return {**path, "headers": headers} if headers else path


def _header(name: str, match: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "string_match": match}


def _action(state: EdgeState, service: EdgeService, way: Way, conditions: str) -> dict[str, Any]:
    clusters = [
        {
            "name": cluster_name(service.id, release_id),
            "weight": weight,
            "response_headers_to_add": _answered_with(state, release_id, way.cookies.get(release_id)),
        }
        for release_id, weight in way.shares.items()
    ]
    action: dict[str, Any] = {"weighted_clusters": {"clusters": clusters}, "timeout": f"{service.timeout_seconds:g}s"}
    if service.timeout_seconds == 0:
        action["idle_timeout"] = "0s"  # streams and upgraded connections may be silent for long
    action["retry_policy"] = _retry(conditions, _attempts(state, service))
    return action


def _answered_with(state: EdgeState, release_id: str, cookie: str | None) -> list[dict[str, Any]]:
    found = [{"header": {"key": DEPLOYMENT_HEADER, "value": release_id}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
    if cookie is not None:
        value = f"{cookie}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if state.options.secure_cookie else ''}"
        found.append({"header": {"key": "set-cookie", "value": value}, "append_action": "APPEND_IF_EXISTS_OR_ADD"})
    return found


def _attempts(state: EdgeState, service: EdgeService) -> int:
    """Return how often a request is tried on the side that was chosen: once for each instance, so that a living one is found."""
    largest = max(len(release.endpoints.get(service.id, ())) for release in state.releases)
    return min(largest, ATTEMPTS_PER_SIDE)


def _retry(conditions: str, attempts: int) -> dict[str, Any]:
    """Return the policy: first other instances of the chosen side, then the other side, which is priority 1 of the same cluster.

    Retries never leave the weighted cluster that was chosen. Were the other side asked first, then one dead instance among several
    would send its whole share there: with one of three, a third of the users would have met a canary at 5 %.
    Nothing but retries gets there: without health checks all instances count as healthy, so that priority 0 never overflows.
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
