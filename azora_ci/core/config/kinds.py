"""Which keys a kind of service needs and which say nothing about it: web, worker, job. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from azora_ci.core.config.tables import JOB, WEB, WORKER

NEEDED = {WEB: ("route_prefix", "health_path", "public_health_url"), WORKER: (), JOB: ()}
_AT_THE_EDGE = ("route_prefix", "public_health_url", "max_connections", "max_pending_requests", "liveness_path", "expected_latency_ms")
_NO_ROUTE = dict.fromkeys(_AT_THE_EDGE, "it has no route at the edge")
_NO_MOMENT = {"when": "only a job has a moment at which it runs"}
REFUSED: dict[str, dict[str, str]] = {
    WEB: {"singleton": "two versions answer side by side while traffic moves; only a worker can be exchanged"} | _NO_MOMENT,
    WORKER: _NO_ROUTE | {"timeout_seconds": "it has no route at the edge"} | _NO_MOMENT,
    JOB: _NO_ROUTE
    | dict.fromkeys(("instances", "singleton"), "it runs once per deployment")
    | {"talks_to": "the edge takes calls of instances only, whose version it knows"}
    | dict.fromkeys(("health_path", "health", "port"), "it is judged by its exit code, nothing is asked of it"),
}


def check(services: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError that names every key that a service lacks, or that its kind cannot have. ``services``: id -> table."""
    problems = [problem for name, table in services.items() for problem in _problems(name, table, services)]
    if not any(_kind(table) == WEB for table in services.values()):
        problems.append('services: none is of kind "web": there is no traffic to move step by step, and nothing to compare')
    prefixes: dict[str, str] = {}
    for name, prefix in ((name, table["route_prefix"]) for name, table in services.items() if "route_prefix" in table):
        if (other := prefixes.setdefault(prefix, name)) != name:
            problems.append(f"services.{name}.route_prefix: {prefix} is that of {other}, too: requests would reach only one of them")
    if problems:
        raise ValueError("\n".join(problems))


def _kind(table: Mapping[str, Any]) -> str:
    return str(table.get("kind", WEB))


def _problems(name: str, table: Mapping[str, Any], services: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    kind = _kind(table)
    for key in NEEDED[kind]:
        if key not in table:
            yield f'services.{name}.{key}: is required of a web service; what has no route is kind = "worker" or kind = "job"'
    for key, reason in REFUSED[kind].items():
        if key in table:
            yield f"services.{name}.{key}: says nothing about a {kind}: {reason}"
    for key in ("port", "health") if kind == WORKER and "health_path" not in table else ():
        if key in table:
            yield f"services.{name}.{key}: nothing asks a worker without services.{name}.health_path"
    if table.get("singleton") and table.get("instances", 1) > 1:
        yield f"services.{name}.instances: {table['instances']} of a singleton would run at once; it has one instance"
    if kind == JOB and table.get("timeout_seconds") == 0:
        yield f"services.{name}.timeout_seconds: 0 would end the job before it starts"
    for callee in table.get("talks_to", []):
        if callee in services and _kind(services[callee]) != WEB:
            yield f"services.{name}.talks_to: {callee} is a {_kind(services[callee])}: it takes no calls through the edge"
