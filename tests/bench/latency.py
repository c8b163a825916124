"""Operating curves of the verdict on latency: simulated rollouts through the product's own tests, from the edge's histograms.

Latencies are lognormal (median 40 ms). Some requests are stalls: their users leave before an answer comes, several at once in a clump.
The stages, and the requests of each tick, are those of the verdict on failures. Only the latency test decides here.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
import statistics
import zlib
from dataclasses import asdict, dataclass
from typing import Any

from azora_ci.health.traffic import Counters
from azora_ci.rollout.decision import trials
from azora_ci.rollout.statistics import share_bounds
from azora_ci.targets.envoy.config import BUCKETS
from tests.bench.verdict import CANARY, FULL, LIMITS, PROGRESSIVE, TICKS, Cell, poisson

MEDIAN_MS = 40.0
BOUNDS = tuple(bound for bound in BUCKETS if bound >= 80)  # those that are never near a p95 make one


@dataclass(frozen=True)
class LatencyCell:
    """A setting: ``spread``: standard deviation of the logarithm of the latency; ``factor``: of the new version's latencies;
    ``stalled``: share of requests of both versions that stall, in clumps; ``hanging``: share that stalls in the new version beyond that.
    """

    spread: float = 0.6
    rate: int = 10
    factor: float = 1.0
    stalled: float = 0.0
    clump: int = 1
    hanging: float = 0.0

    @property
    def name(self) -> str:
        """Return the setting in words."""
        text = f"p95 {MEDIAN_MS * math.exp(1.645 * self.spread):.0f} ms, times {self.factor:g}, {self.rate} a tick"
        text += f", {self.stalled:.0%} stall in clumps of {self.clump}" if self.stalled else ""
        return text + (f", {self.hanging:.0%} more hang" if self.hanging else "")


def null_cells() -> list[LatencyCell]:
    """Return the cells in which the new version is within the limit: equal, also with heavy tails and stalls, and just at the factor."""
    cells = [LatencyCell(spread, rate) for spread in (0.6, 1.2) for rate in (10, 100)]
    cells += [LatencyCell(stalled=0.03, clump=clump) for clump in (1, 5, 10)]
    return [*cells, LatencyCell(factor=LIMITS.latency_factor)]


def worse_cells() -> list[LatencyCell]:
    """Return the cells in which the new version is too slow."""
    cells = [LatencyCell(factor=factor) for factor in (4.0, 6.0, 12.0)] + [LatencyCell(1.2, factor=6.0)]
    return [*cells, LatencyCell(rate=1, factor=6.0), LatencyCell(rate=100, factor=6.0), LatencyCell(hanging=0.3)]


def false_aborts(cell: LatencyCell, rollouts: int) -> dict[str, Any]:
    """Return how many rollouts are taken back, with the upper 95 % bound."""
    aborts = sum(tick is not None for tick in _simulate(cell, rollouts))
    return {**asdict(cell), "name": cell.name, "share": aborts / rollouts, "upper": round(share_bounds(aborts, rollouts, 0.95)[1], 5)}


def detections(cell: LatencyCell, rollouts: int) -> dict[str, Any]:
    """Return how many rollouts are taken back, and the median tick."""
    ticks = [math.inf if tick is None else tick + 1 for tick in _simulate(cell, rollouts)]
    median = statistics.median(ticks)
    found = sum(math.isfinite(tick) for tick in ticks) / rollouts
    return {**asdict(cell), "name": cell.name, "found": found, "median": None if math.isinf(median) else median}


def _simulate(cell: LatencyCell, rollouts: int) -> list[int | None]:
    generator = random.Random(zlib.crc32(repr(cell).encode()))
    sizes = Cell(0.0, cell.rate)
    plans = {}
    for tick in (0, CANARY, CANARY + PROGRESSIVE):
        new, old = sizes.requests(tick)
        hanging = cell.stalled + cell.hanging
        plans[tick] = (_tables(new, cell, cell.factor, hanging), _tables(old, cell, 1.0, cell.stalled))
    return [_rollout(plans, cell.clump, generator) for _ in range(rollouts)]


Tables = tuple[list[list[float]], list[float]]  # per bucket, and of clumps of stalls


def _tables(requests: int, cell: LatencyCell, factor: float, stalled: float) -> Tables:
    """Return the distributions of a version's requests in a tick."""
    normal = statistics.NormalDist(math.log(MEDIAN_MS * factor), cell.spread)
    below = [0.0, *(normal.cdf(math.log(bound)) for bound in BOUNDS)]
    shares = [upper - lower for lower, upper in itertools.pairwise(below)]
    return [poisson(requests * (1 - stalled) * share) for share in shares], poisson(requests * stalled / cell.clump)


def _rollout(plans: dict[int, tuple[Tables, Tables]], clump: int, generator: random.Random) -> int | None:
    trial = trials(LIMITS, {"api": Counters()})["api"]
    requests = 0
    for tick in range(TICKS):
        new_tables, old_tables = plans[max(begin for begin in plans if begin <= tick)]
        new, old = _drawn(new_tables, clump, generator), _drawn(old_tables, clump, generator)
        if tick in plans:
            requests = 0
        requests += new.requests
        trial.add(new, old, alone=tick >= TICKS - FULL)
        if trial.slow.proved and requests >= LIMITS.minimum_requests:
            return tick
    return None


def _drawn(tables: Tables, clump: int, generator: random.Random) -> Counters:
    total, buckets = 0, []
    for bound, table in zip(BOUNDS, tables[0], strict=True):
        if table:
            total += bisect.bisect(table, generator.random())
        buckets.append((bound, total))
    stalls = clump * bisect.bisect(tables[1], generator.random())
    return Counters(total + stalls, given_up=stalls, buckets=tuple(buckets)).with_the_slowest()
