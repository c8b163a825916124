"""What ``edge status`` prints: a line per route and release, with weights, counters and instances. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from azora_ci.rollout import Counters, percentile
from azora_ci.targets import Instance, Observation
from azora_ci.targets.journal import PROMOTED, History

HEAD = ("route", "service", "version", "deployment", "role", "weight", "requests", "failed", "p95")


def text(history: History, seen: Observation, instances: Mapping[str, Sequence[Instance]]) -> str:
    """Return the whole page. ``instances``: deployment id -> those that were started and not stopped."""
    rows = sorted(_rows(history, seen))
    parts = [table([HEAD, *rows]) if rows else "The edge routes nothing: nothing was deployed yet."]
    shown = [f"{_name(history, name)}: {counted(found)}" for name, found in instances.items() if found]
    parts += ["\n".join(shown)] if shown else []
    parts += ["\n".join(f"✗ {one.name} does not run" for one in seen.dead)] if seen.dead else []
    left = history.unfinished
    if left is not None and left.outcome == PROMOTED:
        again = f'python -m azora_ci rollback --deployment-id {left.id} --reason "…"'
        parts.append(f"✗ {_name(history, left.id)} was taken back, but not everywhere. Run the same rollback again:\n  {again}")
    elif left is not None:
        parts.append(f"{_name(history, left.id)} is under way, or its run died: {left.percent} %")
    return "\n\n".join(parts)


def counted(found: Sequence[Instance]) -> str:
    """Return how many instances there are, on each host where there are several."""
    hosts = Counter(one.host for one in found)
    where = f" ({', '.join(f'{number} on {host}' for host, number in sorted(hosts.items()))})" if len(hosts) > 1 else ""
    return f"{len(found)} instances{where}"


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as columns that are as wide as their widest cell."""
    found = list(rows)
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in found)


def _rows(history: History, seen: Observation) -> Iterable[tuple[str, ...]]:
    for route, clusters in seen.weights.items():
        for cluster, weight in clusters.items():
            service, seconds, commit = cluster.rsplit("-", 2)
            name = f"{seconds}-{commit}"
            found = history.releases.get(name)
            facts = (route, service, found.version if found else "?", name, _role(history, name), f"{weight} %")
            yield (*facts, *_counted(seen.counters.get((service, name), Counters())))


def _counted(counters: Counters) -> tuple[str, str, str]:
    p95 = percentile(counters.buckets, 0.95)
    failed = f"{counters.failed} ({counters.failed_share:.1%})"
    return str(counters.requests), failed, "–" if p95 is None else f"{p95:.0f} ms"


def _role(history: History, name: str) -> str:
    before = history.before(history.serving) if history.serving else None
    if name == history.serving:
        return "stable"
    if name in history.releases and history.releases[name].outcome == PROMOTED and history.releases[name].going_back:
        return "goes back"
    return "rollback target" if before and before.id == name else "canary"


def _name(history: History, name: str) -> str:
    return f"{history.releases[name].version} ({name}, {_role(history, name)})"
