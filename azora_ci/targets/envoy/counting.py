"""What the edge counts: each request once, when it ends, by its route, the release that was chosen first, and how it ended. Pure.

Envoy's own counters of a cluster count attempts: one failing request that is tried six times counts six times, one that its user gave up
does not count at all, and nothing tells users' requests from others. Envoy's access log can count whole requests instead.
Protocol: Envoy API v3, ``envoy.access_loggers.stats``. All parts of a counter's name are the edge's own words or numbers, no user's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from azora_ci.health.traffic import Counters
from azora_ci.targets.envoy.state import EdgeState, cluster_name

USERS, OURS = "users", "ours"  # names of routes: of users' requests, and of those that carry the deployment's secret
PREFIX = "ended"
ANSWERED, LEFT = "answered", "left"  # histograms: milliseconds to the end of the answer, and until the user left amid an answer
STATS = rf"^{PREFIX}\.(requests\.route\.({USERS}|{OURS})|({ANSWERED}|{LEFT})\.route\.{USERS})\.|^cluster\..*\.upstream_cx_connect_fail$"
_REQUESTS = re.compile(
    rf"{PREFIX}\.requests\.route\.({USERS}|{OURS})\.cluster\.([^.]+)\.code\.(\d+)\.flags\.([^.]+)\.attempts\.(\d*)\.other\.(\w*)"
)
_UPGRADED, _NOT_FOUND = 101, 404
OF_FAILOVER = {"filter_metadata": {"azora": {"other": "release"}}}  # of instances of the other release in a release's cluster
_TYPE = "type.googleapis.com/envoy"


def loggers() -> list[dict[str, Any]]:
    """Return the access logs of a listener that count requests when they end."""
    route = [{"name": "route", "value_format": "%ROUTE_NAME%"}, {"name": "cluster", "value_format": "%UPSTREAM_CLUSTER%"}]
    end = {
        "code": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "other": "%UPSTREAM_METADATA(azora:other)%",
    }
    tags = [*route, *({"name": name, "value_format": value} for name, value in end.items())]
    left_amid_answer = [
        {"response_flag_filter": {"flags": ["DC"]}},
        {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 200, "runtime_key": "none"}}}},
    ]
    # Without the time in which a slow client sends its request.
    answered = _histogram(ANSWERED, route, "%COMMON_DURATION(DS_RX_END:US_RX_END:ms)%")
    return [
        _logger(counters=[{"stat": {"name": "requests", "tags": tags}, "value_fixed": 1}], histograms=[answered]),
        {**_logger(histograms=[_histogram(LEFT, route, "%DURATION%")]), "filter": {"and_filter": {"filters": left_amid_answer}}},
    ]


def _logger(**stats: Any) -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.stats",
        "typed_config": {"@type": f"{_TYPE}.extensions.access_loggers.stats.v3.Config", "stat_prefix": PREFIX, **stats},
    }


def _histogram(name: str, tags: list[dict[str, str]], value: str) -> dict[str, Any]:
    return {"stat": {"name": name, "tags": tags}, "unit": "Milliseconds", "value_format": value}


def counters(stats: Mapping[str, Any], state: EdgeState) -> dict[tuple[str, str], Counters]:
    """Return (service id, release id) -> counters, from ``/stats?format=json&histogram_buckets=cumulative``.

    A request counts for the release that was chosen first, also where failover answered it: failover is priority 1 of the same cluster.
    """
    values = {stat["name"]: int(stat["value"]) for stat in stats.get("stats", []) if "value" in stat}
    by_name = dict(histograms(stats))
    result = {}
    for service in state.routed:
        streams = service.timeout_seconds == 0
        for release in state.releases:
            if release.endpoints.get(service.id):
                name = cluster_name(service.id, release.id)
                counted = _ended(values, name, streams=streams)
                for histogram in (ANSWERED,) if streams else (ANSWERED, LEFT):
                    buckets = by_name.get(f"{PREFIX}.{histogram}.route.{USERS}.cluster.{name}", ())
                    counted = counted.plus(Counters(buckets=buckets))
                failures = values.get(f"cluster.{name}.upstream_cx_connect_fail", 0)
                result[service.id, release.id] = replace(counted.with_the_slowest(), connect_failures=failures)
    return result


def _ended(values: Mapping[str, int], cluster: str, *, streams: bool) -> Counters:
    """Return a cluster's counts, without latencies. A user who leaves a stream, whenever, is no failure."""
    counts: dict[str, Any] = Counter()
    for name, number in values.items():
        match = _REQUESTS.fullmatch(name)
        if match is None or match[2] != cluster:
            continue
        code, flags = int(match[3]), match[4].split(",")
        if code == 0 and streams:
            continue
        helped = match[5] not in {"", "1"} or match[6] != ""
        outcome = _outcome(code, flags, helped=helped, whole=not streams and code != _UPGRADED)
        if match[1] == OURS:
            counts["ours"] += number
            counts["ours_failed"] += number * (outcome is not None)
            continue
        counts["requests"] += number
        counts["timeouts"] += number * ("UT" in flags)
        counts["not_found"] += number * (code == _NOT_FOUND)
        if outcome is not None:
            counts[outcome] += number
    return Counters(**counts)


def _outcome(code: int, flags: list[str], *, helped: bool, whole: bool) -> str | None:
    """Return which counter of failures a request belongs to; None for a success.

    ``helped``: another attempt, or the other release, gave the answer; ``whole``: the answer must have come to its end.

    Flags that begin with U tell of the upstream side: the connection broke, or the time was over.
    """
    if code == 0:
        return "given_up"
    if code >= 500:
        return "errors"
    if helped:
        return "failovers"
    return "broken" if whole and any(flag.startswith("U") for flag in flags) else None


def histograms(stats: Mapping[str, Any]) -> Iterator[tuple[str, tuple[tuple[float, int], ...]]]:
    """Yield the name of each histogram and its buckets: (upper bound, values up to it), cumulative."""
    for stat in stats.get("stats", []):
        document = stat.get("histograms", [])
        # Envoy answers a list for bucket modes and an object with "details" or "computed_quantiles" for others.
        for histogram in document if isinstance(document, list) else document.get("details", []):
            buckets = histogram.get("buckets", [])
            yield histogram["name"], tuple((float(bucket["upper_bound"]), int(bucket["cumulative"])) for bucket in buckets)
