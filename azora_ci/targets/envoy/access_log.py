"""The edge's log of what went wrong: a line of JSON for each request that failed, was given up, refused or slow. Pure.

Envoy's filters choose the lines, so healthy traffic writes none. A line holds nothing personal: no header, no address of a user, and a path
without its query, cut. On hosts it goes to the container's output, which Docker bounds; else to a file that whoever reads it bounds.
Protocol: Envoy API v3, ``envoy.access_loggers.file``; what its own filters cannot tell is told by ``extension_filters.cel``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from azora_ci.core.documents import Limits, read_json
from azora_ci.health import failures
from azora_ci.health.failures import LONGEST, NO_ANSWER, Failure
from azora_ci.targets.envoy import counting

STDOUT = "/dev/stdout"
CALL = "call:"  # before the names of clusters for calls between services
LIMITS = Limits(size=4096, depth=2, values=100)  # of a line; Envoy's are shorter
# To the first byte of an answer, so that streams and large downloads are not slow. Few users wait that long, and whoever does holds one of
# the connections that an instance has.
SLOW_SECONDS = 5
_UPSTREAM = ["LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "URX", "SI", "UMSDR", "UPE", "OM", "DT"]
_TOO_LARGE = "request_payload_too_large"
_EXPRESSION = (
    f"upstream.request_attempt_count > 1 || response.code_details == '{_TOO_LARGE}'"
    f" || response.backend_latency > duration('{SLOW_SECONDS}s')"
)
_UPGRADED = 101  # what is upgraded may end in any way
_FORMAT = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "route": "%ROUTE_NAME%",
    "instance": "%UPSTREAM_HOST%",
    "other": "%UPSTREAM_METADATA(azora:other)%",
    "method": f"%REQ(:METHOD):{LONGEST['method']}%",
    "path": f"%PATH(NQ:PATH):{LONGEST['path']}%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "milliseconds": "%DURATION%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
}
# The first flag that is there gives the words.
_WORDS = {
    "OM": "refused: the edge is overloaded",
    "UO": "refused: too many requests wait for an instance",
    "UT": "no answer within the time limit of its route",
    "SI": "nothing was sent for too long",
    "UH": "no instance to send it to",
    "UF": "no connection to an instance",
    "UC": "the instance closed the connection",
    "UR": "the instance closed the connection",
    "UPE": "the instance's answer broke off",
    "LR": "the edge closed the connection",
}
_KINDS = {counting.USERS: failures.USERS, counting.OURS: failures.OURS}
_TYPE = "type.googleapis.com/envoy"


def loggers(path: str | None) -> list[dict[str, Any]]:
    """Return the access log of a listener that writes to a file; none without a path."""
    if path is None:
        return []
    broken = {"and_filter": {"filters": [{"response_flag_filter": {"flags": _UPSTREAM}}, _status("NE", _UPGRADED)]}}
    expression = {"@type": f"{_TYPE}.extensions.access_loggers.filters.cel.v3.ExpressionFilter", "expression": _EXPRESSION}
    told = {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": expression}}
    config = {"@type": f"{_TYPE}.extensions.access_loggers.file.v3.FileAccessLog", "path": path, "log_format": {"json_format": _FORMAT}}
    return [
        {
            "name": "envoy.access_loggers.file",
            "filter": {"or_filter": {"filters": [_status("GE", 500), _status("EQ", NO_ANSWER), broken, told]}},
            "typed_config": config,
        }
    ]


def _status(comparison: str, status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": "none"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}


def read(lines: Iterable[str], since: str, host: str = "") -> list[Failure]:
    """Return the requests that a log tells of since a moment (RFC 3339), in its order; what is no line of ours is passed over."""
    return [failure for failure in _read(lines, host) if failure.time >= since]


def _read(lines: Iterable[str], host: str) -> Iterator[Failure]:
    for line in lines:
        try:
            yield _failure(read_json(line, LIMITS), host)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # Envoy's own messages, and a line that was cut


def _failure(document: Mapping[str, Any], host: str) -> Failure:
    cluster, flags = document["cluster"] or "", document["flags"].split(",")
    service, *release = cluster.removeprefix(CALL).rsplit("-", 2)
    status, attempts = int(document["status"] or NO_ANSWER), int(document["attempts"] or 0)
    helped = status not in {NO_ANSWER, *range(500, 600)} and (attempts > 1 or bool(document["other"]))
    return Failure(
        time=str(document["time"])[:30],
        service=service,
        release="-".join(release),
        kind=failures.CALL if cluster.startswith(CALL) else _KINDS.get(document["route"], failures.USERS),
        method=document["method"] or "",
        path=document["path"] or "",
        status=status,
        reason=_reason(document, flags, status, helped=helped),
        milliseconds=int(document["milliseconds"] or 0),
        attempts=attempts,
        instance=document["instance"] or "",
        host=host,
        helped=helped,
    )


def _reason(document: Mapping[str, Any], flags: list[str], status: int, *, helped: bool) -> str:
    if status == NO_ANSWER and "DC" in flags:
        return failures.GIVEN_UP
    if helped:
        return "the other version answered" if document["other"] else "another instance answered"
    if document["details"] == _TOO_LARGE:
        return "refused: its body is too large"
    words = next((words for flag, words in _WORDS.items() if flag in flags), None)
    if words is not None:
        return words if status >= 500 else f"cut off: {words}"
    if status >= 500:
        return "the service answered so" if document["instance"] else "no version of the service is deployed"
    return "no answer" if status == NO_ANSWER else "slow"
