"""Envoy's routes: which version gets a request, in what share, and which requests are retried. Pure.

Protocol: Envoy API v3, ``RouteConfiguration``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azora_ci.core.pipeline import STAGES
from azora_ci.health.answers import ANY, CANARY, DEPLOYMENT_HEADER, PROOF_HEADER, RELEASE_HEADER, STABLE, pass_word, seal
from azora_ci.targets.envoy.counting import OURS, USERS
from azora_ci.targets.envoy.state import EdgeService, EdgeState, cluster_name

ROUTES = "edge"
FULL = 100  # percent
DRAWN_AT = tuple(percent for _, percent in STAGES)  # the weights at which users may have been drawn
TICKET_LENGTH = 32  # hexadecimal digits: 128 bits
HTTPS_PORT = 443
BUFFER = "buffer"  # the filter that waits for the end of a request
MAX_BODY = 16 * 1024**2  # bytes of a request, unless its service is one of streams
SAFE_METHODS = "GET|HEAD|OPTIONS"
# Conditions of a retry. A request that may change data is retried only when no part of it was sent: no change may happen twice.
SAFE_RETRY, UNSENT_RETRY = "connect-failure,refused-stream,reset", "connect-failure,reset-before-request"
ATTEMPTS_PER_SIDE = 3  # at most; each may wait for a connect timeout
SAFE_ATTEMPTS_PER_SIDE = 2  # at most, of requests that an instance may have worked on
_TYPE = "type.googleapis.com/envoy"
STREAMED = {"typed_per_filter_config": {BUFFER: {"@type": f"{_TYPE}.extensions.filters.http.buffer.v3.BufferPerRoute", "disabled": True}}}


@dataclass(frozen=True)
class Split:
    """Requests with these headers are split among releases by ``shares``. ``cookies``: release id -> the cookie that its users get."""

    headers: tuple[dict[str, Any], ...]
    shares: Mapping[str, int]
    cookies: Mapping[str, str] = field(default_factory=dict)
    sealed: bool = False  # the answer proves which release gave it
    users: bool = True  # they are users' requests


def route_configuration(state: EdgeState, generation: str) -> dict[str, Any]:
    """Return the routes of all services in one document, which one rename puts in force."""
    # Envoy takes the first match: the longest prefix comes first.
    ordered = sorted(state.routed, key=lambda service: (-len(service.route_prefix), service.route_prefix))
    trace = _header(":method", {"exact": "TRACE"})  # echoes what scripts shall not see, such as cookies
    refused: dict[str, Any] = {"direct_response": {"status": 405}, **STREAMED}
    routes = [{"match": _match("/", [trace]), **refused}, {"match": {"connect_matcher": {}}, **refused}]
    routes += [route for service in ordered for route in _routes(state, service)]
    return {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        **({"request_headers_to_remove": [PROOF_HEADER, RELEASE_HEADER]} if state.secret else {}),  # no service may see secrets
        # Envoy ignores an update without a difference. With the generation in it, each update can be read back.
        "virtual_hosts": [
            {
                "name": f"generation-{generation}",
                "domains": ["*"],
                "routes": routes,
                "request_body_buffer_limit": MAX_BODY,  # a larger one cannot be sent again
            }
        ],
    }


def redirect_configuration(port: int) -> dict[str, Any]:
    """Return the routes of plain HTTP when it only redirects to HTTPS; method and body are kept (308)."""
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
        if state.stable is not None:  # the stable release has no such service: a shorter prefix may match
            return []
        text = {"inline_string": f"no release of {service.id} is deployed\n"}
        return [{"match": _match(service.route_prefix), "direct_response": {"status": 503, "body": text}}]
    safe = _header(":method", {"safe_regex": {"regex": SAFE_METHODS}})
    routes = []
    splits = [*_header_splits(state, service, weights), *_cookie_splits(state, weights), Split((), weights, _draw_cookies(state, weights))]
    for split in [*_sealed_splits(state, service, weights), *splits]:
        for method, conditions in [([safe], SAFE_RETRY)] + [([], UNSENT_RETRY)] * (not split.sealed):
            action = _action(state, service, split, conditions)
            match = _match(service.route_prefix, [*split.headers, *method])
            streamed = {} if service.timeout_seconds else STREAMED
            routes.append({"name": USERS if split.users else OURS, "match": match, "route": action, **streamed})
    return routes


def _header_splits(state: EdgeState, service: EdgeService, weights: Mapping[str, int]) -> list[Split]:
    """Return a split for each value of the release header that the deployment's secret makes; any other value is no condition.

    It reaches a canary at 0 % as soon as that is warm, and none after an abort.
    """
    if state.secret is None:
        return []
    shares = {ANY: weights} | {
        side: {release_id: FULL}
        for side, release_id in ((CANARY, state.canary), (STABLE, state.stable))
        if release_id is not None and state.addresses(release_id, service.id)
    }
    return [
        Split((_header(RELEASE_HEADER, {"exact": pass_word(state.secret, side)}),), share, users=False) for side, share in shares.items()
    ]


def _sealed_splits(state: EdgeState, service: EdgeService, weights: Mapping[str, int]) -> list[Split]:
    """Return the splits of requests that carry the secret of the deployment: of the same shares, and with the seal on each answer."""
    if state.secret is None:
        return []
    secret = _header(PROOF_HEADER, {"exact": state.secret})
    splits = (*_header_splits(state, service, weights), Split((), weights))
    return [Split((secret, *split.headers), split.shares, sealed=True, users=False) for split in splits]


# --- users who stay on a version -----------------------------------------------------------------------------------------


def _cookie_splits(state: EdgeState, weights: Mapping[str, int]) -> list[Split]:
    """Return the splits of users whose cookie names the version that was drawn for them.

    Users of the canary keep it. Users who got the old version when ``drawn`` % got the canary keep it while the weight stays. When the
    weight has risen to ``percent``, they are drawn again: the canary with (percent - drawn) / (100 - drawn), so that ``percent`` % of all
    users have it. Nobody can guess a cookie: it belongs to the deployment, its attempt and its secret. After an abort it matches nothing,
    and is deleted.
    """
    name, canary, stable = state.options.sticky_cookie, state.canary, state.stable
    if name is None:
        return []
    if canary is None or state.percent == 0 or state.secret is None:
        return [Split((_cookie(name),), weights, dict.fromkeys(weights, f"{name}=; Max-Age=0"))]
    if stable is None or set(weights) != {canary, stable}:
        return []  # only one version has this service: there is nothing to draw
    splits = [Split((_cookie(name, _ticket(state, canary)),), {canary: FULL})]
    for drawn in DRAWN_AT:
        if drawn < state.percent:
            shares = {stable: FULL - state.percent, canary: state.percent - drawn}
            splits.append(Split((_cookie(name, _ticket(state, stable, drawn)),), shares, _draw_cookies(state, weights)))
    if state.percent < FULL:
        splits.append(Split((_cookie(name, _ticket(state, stable, state.percent)),), {stable: FULL}))
    return splits


def _draw_cookies(state: EdgeState, weights: Mapping[str, int]) -> dict[str, str]:
    """Return release id -> the cookie of users for whom that release is drawn now."""
    name, canary, stable = state.options.sticky_cookie, state.canary, state.stable
    if name is None or canary is None or stable is None or state.percent == 0 or state.secret is None or set(weights) != {canary, stable}:
        return {}
    return {canary: f"{name}={_ticket(state, canary)}", stable: f"{name}={_ticket(state, stable, state.percent)}"}


def _ticket(state: EdgeState, release_id: str, drawn: int | None = None) -> str:
    """Return the value of the cookie of users for whom a release was drawn; ``drawn``: the canary's percent then, for the stable one."""
    return seal(state.secret or "", "cookie", f"{state.canary} {state.attempt} {release_id} {drawn}")[:TICKET_LENGTH]


def _cookie(name: str, value: str | None = None) -> dict[str, Any]:
    pattern = ".*" if value is None else f"{re.escape(value)}(?:\\s*;.*)?"
    return _header("cookie", {"safe_regex": {"regex": f"(?:.*;\\s*)?{re.escape(name)}={pattern}"}})


# --- parts of a route ----------------------------------------------------------------------------------------------------


def _match(prefix: str, headers: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    # "/api" must not match "/apis"; a prefix that ends in a slash does not.
    path = {"prefix": prefix} if prefix.endswith("/") else {"path_separated_prefix": prefix}
    return {**path, "headers": headers} if headers else path


def _header(name: str, match: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "string_match": match}


def _action(state: EdgeState, service: EdgeService, split: Split, conditions: str) -> dict[str, Any]:
    clusters = [
        {
            "name": cluster_name(service.id, release_id),
            "weight": weight,
            "response_headers_to_add": _response_headers(state, service, release_id, split),
        }
        for release_id, weight in split.shares.items()
    ]
    action: dict[str, Any] = {"weighted_clusters": {"clusters": clusters}, "timeout": f"{service.timeout_seconds:g}s"}
    if service.timeout_seconds == 0:
        action["idle_timeout"] = "0s"  # streams and upgraded connections may be silent for long
    has_other = any(state.addresses(state.failover(release_id), service.id) for release_id in split.shares)
    attempts = _attempts(state, service)
    if conditions == SAFE_RETRY:
        attempts = min(attempts, SAFE_ATTEMPTS_PER_SIDE)
        retries = attempts - 1 if split.sealed else attempts if has_other else 1
    else:
        retries = max(2, 2 * attempts - 1)
    action["retry_policy"] = _retry(conditions, attempts, retries)
    return action


def _response_headers(state: EdgeState, service: EdgeService, release_id: str, split: Split) -> list[dict[str, Any]]:
    values = {DEPLOYMENT_HEADER: release_id}
    if split.sealed and state.secret:
        values[PROOF_HEADER] = seal(state.secret, service.id, release_id)
    headers = [{"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"} for key, value in values.items()]
    cookie = split.cookies.get(release_id)
    if cookie is not None:
        value = f"{cookie}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if state.options.secure_cookie else ''}"
        headers.append({"header": {"key": "set-cookie", "value": value}, "append_action": "APPEND_IF_EXISTS_OR_ADD"})
    return headers


def _attempts(state: EdgeState, service: EdgeService) -> int:
    """Return how often a request is tried on the chosen side: once per instance, so that one that runs is found, up to a limit."""
    largest = max(len(release.endpoints.get(service.id, ())) for release in state.releases)
    return min(largest, ATTEMPTS_PER_SIDE)


def _retry(conditions: str, attempts: int, retries: int) -> dict[str, Any]:
    """Return the policy: first another instance of the chosen side, then the other side, which is priority 1 of the same cluster.

    Retries never leave the weighted cluster that was chosen. If the other side were tried first, one dead instance among several would
    send its whole share there: with one of three dead, a third of the users would get a canary at 5 %. Without ``retries`` beyond
    ``attempts`` the other side is never tried, as where the answer is to prove which side gave it.

    A GET that kills whoever works on it kills two instances of its side and one of the other, and then it fails. What this costs: while
    two of a side are dead and not left out yet, for some seconds, a GET that meets both goes to the other side, and fails without one.
    What was never sent kills nobody, and is tried at each instance of both sides, up to a limit.
    """
    priorities = f"{_TYPE}.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    hosts = f"{_TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": conditions,
        "num_retries": retries,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {"@type": priorities, "update_frequency": attempts},  # attempts before a priority is left
        },
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": hosts}}],
        "host_selection_retry_max_attempts": 10,  # attempts to find an instance that was not tried yet; then any is taken
    }
