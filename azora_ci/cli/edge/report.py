"""The text of ``edge status``: a line per route and release, with weights, counters and instances. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from azora_ci.health.traffic import Counters, percentile
from azora_ci.targets.base import Instance, Observation
from azora_ci.targets.journal import PROMOTED, History

HEAD = ("route", "service", "version", "deployment", "role", "weight", "requests", "failed", "p95")


def text(history: History, observation: Observation, instances: Mapping[str, Sequence[Instance]]) -> str:
    """Return the whole text. ``instances``: deployment id -> its instances that were started and not stopped."""
    rows = sorted(_rows(history, observation))
    parts = [table([HEAD, *rows]) if rows else "The edge routes nothing: nothing was deployed yet."]
    counts = [f"{_name(history, name)}: {counted(started)}" for name, started in instances.items() if started]
    parts += ["\n".join(counts)] if counts else []
    parts += ["\n".join(f"✗ {instance.name} does not run" for instance in observation.dead)] if observation.dead else []
    unfinished = history.unfinished
    if unfinished is not None and unfinished.outcome == PROMOTED:
        command = f'python -m azora_ci rollback --deployment-id {unfinished.id} --reason "…"'
        parts.append(f"✗ {_name(history, unfinished.id)} was taken back, but not everywhere. Run the same rollback again:\n  {command}")
    elif unfinished is not None:
        parts.append(f"{_name(history, unfinished.id)} is under way, or its run died: {unfinished.percent} %")
    return "\n\n".join(parts)


def counted(instances: Sequence[Instance]) -> str:
    """Return the number of instances as text; with several hosts, also the number on each."""
    hosts = Counter(instance.host for instance in instances)
    where = f" ({', '.join(f'{number} on {host}' for host, number in sorted(hosts.items()))})" if len(hosts) > 1 else ""
    resting = sum(instance.resting for instance in instances)
    return f"{len(instances)} instances{where}{f', {resting} of them workers at rest' if resting else ''}"


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as columns that are as wide as their widest cell."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines)


def _rows(history: History, observation: Observation) -> Iterable[tuple[str, ...]]:
    for route, clusters in observation.weights.items():
        for cluster, weight in clusters.items():
            service, seconds, commit = cluster.rsplit("-", 2)
            name = f"{seconds}-{commit}"
            release = history.releases.get(name)
            facts = (route, service, release.version if release else "?", name, _role(history, name), f"{weight} %")
            yield (*facts, *_counter_cells(observation.counters.get((service, name), Counters())))


def _counter_cells(counters: Counters) -> tuple[str, str, str]:
    p95 = percentile(counters.buckets, 0.95)
    failed = f"{counters.failed} ({counters.failed_share:.1%})"
    return str(counters.requests), failed, "–" if p95 is None else f"{p95:.0f} ms"


def _role(history: History, name: str) -> str:
    target = history.before(history.serving) if history.serving else None
    if name == history.serving:
        return "stable"
    if name in history.releases and history.releases[name].outcome == PROMOTED and history.releases[name].going_back:
        return "goes back"
    return "rollback target" if target and target.id == name else "canary"


def _name(history: History, name: str) -> str:
    return f"{history.releases[name].version} ({name}, {_role(history, name)})"
