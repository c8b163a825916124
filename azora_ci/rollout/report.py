"""Texts about a rollout for people: the plan, a line per tick, a table per stage. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from azora_ci.core.markdown import escaped
from azora_ci.health.traffic import Counters, percentile
from azora_ci.rollout.decision import LATENCY_FLOOR_MS, SLOW_SHARE, Decision, Limits, Pair, Stage, Trial
from azora_ci.rollout.statistics import share_bounds

NOTICED_POINTS = (20, 5, 2)  # rises of the share of failed requests of which the outlook tells
SIDE_CONFIDENCE = 0.975  # of each of two bounds: with 95 % the truth lies between them


def plan_lines(
    stages: Sequence[Stage],
    *,
    new: str,
    old: str | None,
    limits: Limits,
    counts: Mapping[str, Sequence[int]],
    workers: Sequence[str] = (),
) -> list[str]:
    """Return the plan that is printed before anything moves; ``counts``: service -> instances of the new version per stage.

    ``workers``: those of the services that have no route.
    """
    lines = [f"Plan: {old or 'nothing (first deployment)'} -> {new}, services in this order: {', '.join(counts)}"]
    for number, stage in enumerate(stages):
        instances = ", ".join(f"{service} {numbers[number]}" for service, numbers in counts.items())
        lines.append(f"  {stage.name}: {stage.percent} % of traffic for {stage.seconds / 60:g} minutes; new instances: {instances}")
    if workers and old:
        lines.append(f"  workers ({', '.join(workers)}): those of {old} run until the promotion and are stopped then;")
        lines.append("    going back stops the new ones, then starts the old ones again")
    conditions = "an endpoint keeps failing" + ("; a worker ends, is started again or is unhealthy" if workers else "")
    not_found = f"or its share of 404 answers more than {limits.not_found_points:g}, " if limits.not_found_points is not None else ""
    lines.append(
        f"  back to {old or 'no version'} when: {conditions}; or the new version's share of failed requests is more than "
        f"{limits.error_points:g} points above the old one's, {not_found}"
        f"or its p95 more than {limits.latency_factor:g} times the old one's "
        f"and at least {LATENCY_FLOOR_MS:g} ms more, "
        f"with {limits.confidence} confidence for the whole rollout (a sequential test); "
        f"{limits.minimum_requests} requests per service and version needed"
    )
    return lines


def fallback(version: str, warm_until: str | None) -> str:
    """Return what is kept to go back to. ``warm_until``: when it stops running; None: as long as it is kept."""
    if warm_until is None:
        return f"{version} keeps running at 0 % as the rollback target"
    return f"{version} keeps running at 0 % until {warm_until}; going back later starts it again first"


def outlook_lines(stage: Stage, trials: Mapping[str, Trial], interval: float) -> list[str]:
    """Return, for each service, which rise of failures this stage can notice with the traffic so far. ``interval``: seconds of a tick."""
    lines = []
    for service, trial in trials.items():
        test = trial.errors
        a_tick = (test.new.requests + test.old.requests) / test.ticks if test.ticks else 0.0
        requests = int(a_tick * stage.percent / 100 * stage.seconds / interval)
        parts = []
        for points in NOTICED_POINTS:
            needed = test.requests_needed(points / 100)
            late = ", not within this stage" if test.ticks and needed > requests else ""
            parts.append(f"limit + {points} points after about {needed:,} requests{late}")
        expected = f"about {requests:,} requests of the new version expected" if test.ticks else "no traffic counted yet"
        lines.append(f"  {service}: {expected}; noticed: {'; '.join(parts)}")
    return lines


def tick_line(stage: Stage, elapsed: float, probes: tuple[int, int], sides: Mapping[str, Counters], text: str) -> str:
    """Return the live line of a tick. ``probes``: (passed, all); ``sides``: version -> counters of this stage."""
    traffic = " | ".join(f"{version} {_traffic(counters)}" for version, counters in sides.items())
    return f"{stage.name} {elapsed:6.1f} s  {stage.percent:3} %  probes {probes[0]}/{probes[1]}  {traffic}  {text}"


def _traffic(counters: Counters) -> str:
    p95 = percentile(counters.buckets, 0.95)
    latency = f", p95 {p95:.0f} ms" if p95 is not None else ""
    not_found = f", {counters.not_found} 404 ({counters.not_found_share:.1%})" if counters.not_found else ""
    ours = f", beside {counters.ours} of ours" if counters.ours else ""
    return f"{counters.requests} requests, {counters.failed} failed ({counters.failed_share:.1%}){not_found}{latency}{ours}"


def stage_table(evidence: Mapping[str, Any]) -> str:
    """Return the Markdown table of a stage from its evidence."""
    probes = evidence["probes"]
    rate = (probes["total"] - probes["failed"]) / probes["total"] if probes["total"] else 0.0
    rows = [
        f"**{evidence['stage']}**: {evidence['traffic_percentage']} % for {evidence['duration_minutes']:g} minutes, {evidence['status']}; "
        f"probes {probes['total'] - probes['failed']} of {probes['total']} healthy ({rate:.2%}), "
        f"availability at the public endpoints {evidence['availability']:.2%}",
        "",
        "| version | weight | requests | 5xx | given up by users | made good by failover | failed | 404 | p50 | p95 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for version, row in evidence["traffic"].items():
        rows.append(
            f"| {escaped(version)} | {_percent(row['weight'])} | {row['requests']} | {row['errors_5xx']} | {row.get('given_up', 0)} "
            f"| {row['failover']} | {row['error_rate']:.2%} | {row.get('not_found', 0)} "
            f"| {_milliseconds(row['p50_ms'])} | {_milliseconds(row['p95_ms'])} |"
        )
    return "\n".join(rows)


def cause_lines(cause: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell why a rollout went back, from its evidence."""
    where = cause["endpoint"] or f"requests to {cause['service']}"
    lines = [f"Cause ({cause['kind']}): {where}, since {cause['since']}"]
    for version, row in cause["versions"].items():
        failed = f"{row['failed']} of {row['requests']} requests failed ({row['error_rate']:.1%})"
        lines.append(f"  {version}: {failed}, p95 {_milliseconds(row['p95_ms'])}")
    lines.append(f"  {cause['test']}")
    if cause["instance"]:
        lines.append(f"  nearly all of it on one instance: {cause['instance']}")
    if cause["paths"]:
        paths = ", ".join(f"{row['path']} ({row['requests']})" for row in cause["paths"])
        lines.append(f"  most often, of {cause['logged']} in the edge's log: {paths}")
    if cause["log_problem"]:
        lines.append(f"  {cause['log_problem']}")
    elif not cause["logged"]:
        lines.append("  the edge's log tells of no such request")
    return [*lines, *(f"  for example {example}" for example in cause["examples"])]


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def _percent(value: int | None) -> str:
    return "–" if value is None else f"{value} %"


def share_text(release_id: str, version: str, weights: Mapping[str, Mapping[str, int]], percent: int) -> str:
    """Return what was read back of a release's share. Where nothing routes traffic by percent, pods are named, whatever was asked for."""
    shares = {route: weight_of(release_id, {route: clusters}) or 0 for route, clusters in weights.items()}
    if all(route.startswith("/") and share == percent for route, share in shares.items()):
        return f"the edge answers that {percent} % of traffic goes to {version}"
    parts = ", ".join(f"{share} % of {route}" for route, share in shares.items())
    return f"{percent} % were asked for; {version} has {parts}"


def weight_of(release_id: str, weights: Mapping[str, Mapping[str, int]]) -> int | None:
    """Return a release's percent of traffic by the weights that were read back from the edge (route -> cluster -> percent).

    The lowest, where routes differ; None before weights were read back.
    """
    shares = [sum(share for name, share in clusters.items() if name.endswith(f"-{release_id}")) for clusters in weights.values()]
    return min(shares, default=None)


def traffic_evidence(counters: Counters, weight: int | None = None) -> dict[str, Any]:
    """Return the evidence of one version's traffic in a stage; ``weight``: its percent as read back from the edge."""
    latencies = {name: percentile(counters.buckets, share) for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95))}
    return {
        "weight": weight,
        "requests": counters.requests,
        "errors_5xx": counters.errors,
        "failover": counters.failovers,
        "given_up": counters.given_up,
        "resets": counters.broken,
        "not_found": counters.not_found,
        "connect_failures": counters.connect_failures,
        "ours": counters.ours,
        "ours_failed": counters.ours_failed,
        "failed": counters.failed,
        "error_rate": round(counters.failed_share, 6),
        **{name: None if value is None else round(value, 1) for name, value in latencies.items()},
    }


def tick_evidence(
    elapsed: float, decision: Decision, probes: tuple[int, int], sides: Mapping[str, Counters], lacking: int
) -> dict[str, Any]:
    """Return the evidence of a tick. ``probes``: (passed, all); ``sides``: version -> counters of this stage."""
    p95 = {version: percentile(counters.buckets, 0.95) for version, counters in sides.items()}
    return {
        "after_seconds": round(elapsed, 3),
        "decision": decision.action.value,
        "reason": decision.reason,
        "probes": {"total": probes[1], "failed": probes[1] - probes[0]},
        "requests": {version: counters.requests for version, counters in sides.items()},
        "failed": {version: counters.failed for version, counters in sides.items()},
        "ours": {version: counters.ours for version, counters in sides.items()},
        "p95_ms": {version: None if value is None else round(value, 1) for version, value in p95.items()},
        "lacking": lacking,
    }


def service_evidence(versions: Iterable[str], pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """Return service -> version -> what was counted of it in a stage, with bounds. ``versions``: the new one, then the old one, if any."""
    return {
        service: {
            version: _bounded(counters)
            for version, counters in zip(versions, (pair.new, pair.old_in_stage if pair.old is not None else None), strict=False)
            if counters is not None
        }
        for service, pair in pairs.items()
    }


def _bounded(counters: Counters) -> dict[str, Any]:
    """Return counts with exact bounds of the share of failed requests, and with those of the p95, by the share of slower requests."""
    names = ("requests", "failed", "error_rate", "not_found", "p50_ms", "p95_ms")
    timed = counters.buckets[-1][1] if counters.buckets else 0
    fewest, most = share_bounds(SLOW_SHARE * timed, timed, SIDE_CONFIDENCE)
    p95 = [percentile(counters.buckets, 1 - share) for share in (most, fewest)]
    evidence = traffic_evidence(counters)
    return {
        **{name: evidence[name] for name in names},
        "error_bounds": [round(bound, 6) for bound in share_bounds(counters.failed, counters.requests, SIDE_CONFIDENCE)],
        "p95_bounds_ms": [None if bound is None else round(bound, 1) for bound in p95],
    }


def total(counters: Iterable[Counters]) -> Counters:
    """Return the sum of counters."""
    return functools.reduce(Counters.plus, counters, Counters())
