"""Operating curves of the verdict on traffic: simulated rollouts through the product's own test, tick by tick.

A rollout has the stages of the guide with a tick every 10 s: 30 at 5 %, 60 at 50 %, 90 at 100 %. ``rate`` is the mean number of requests
of the new version per tick of the canary stage; the other stages and the old version have what follows. Requests come as a Poisson process,
failures in clumps of a fixed size (1: independent). At the null, the new version's share of failures is the old one's plus the limit.
"""

from __future__ import annotations

import bisect
import json
import math
import random
import statistics
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import click

from azora_ci.health.traffic import Counters
from azora_ci.rollout.decision import Limits, trials
from azora_ci.rollout.sequential import Comparison
from azora_ci.rollout.statistics import share_bounds

LIMITS = Limits(error_points=1.0, latency_factor=3.0, minimum_requests=149)
LIMIT = LIMITS.error_points / 100
CANARY, PROGRESSIVE, FULL = 30, 60, 90  # ticks
TICKS = CANARY + PROGRESSIVE + FULL
SHARE_OF_BOTH_IN_A_STALL = 0.5
STALL_TICKS = 3
BEFORE = 2000  # requests of the old version before the rollout
PROCESSES = 2


@dataclass(frozen=True)
class Cell:
    """A setting: shares of failures (the old version's, and what the new one's lies above it), requests, clumps, and a course of time.

    ``end``: the old version's share after its trend, at tick ``until``; ``stall``: first tick at which both fail half of their requests;
    ``onset``: tick from which the new version is worse than the limit. ``attributable``: False where nothing runs beside that could
    tell whose fault it is. ``known``: the edge has counts of the old version from before the rollout.
    """

    base: float
    rate: int = 10
    clump: int = 1
    rise: float = LIMIT
    end: float | None = None
    until: int = TICKS
    stall: int | None = None
    onset: int = 0
    attributable: bool = True
    known: bool = True

    def shares(self, tick: int) -> tuple[float, float]:
        """Return the shares of failures of the new and the old version at a tick."""
        if self.stall is not None and self.stall <= tick < self.stall + STALL_TICKS:
            return SHARE_OF_BOTH_IN_A_STALL, SHARE_OF_BOTH_IN_A_STALL
        old = self.base if self.end is None else self.base + (self.end - self.base) * min(1.0, tick / self.until)
        return old + (self.rise if tick >= self.onset else 0.0), old

    def requests(self, tick: int) -> tuple[int, int]:
        """Return the mean requests of the new and the old version at a tick."""
        if tick < CANARY:
            return self.rate, 19 * self.rate
        return (10 * self.rate, 10 * self.rate) if tick < CANARY + PROGRESSIVE else (20 * self.rate, 0)


def null_cells() -> list[Cell]:
    """Return the cells in which the new version is just within the limit."""
    cells = [Cell(base, rate) for base in (0.0, 0.005, 0.02, 0.05) for rate in (1, 10, 100, 1000)]
    cells += [Cell(base, rate, rise=0.0) for base in (0.02, 0.05) for rate in (1, 10)]
    cells += [Cell(base, rate, clump=5) for base in (0.0, 0.005, 0.02, 0.05) for rate in (1, 10, 100, 1000)]
    cells += [Cell(base, rate, clump=clump) for clump in (2, 10) for base in (0.005, 0.05) for rate in (10, 100)]
    for rate in (10, 100):
        cells += [Cell(0.01, rate, end=0.05, until=CANARY + PROGRESSIVE), Cell(0.05, rate, end=0.01)]
        cells += [Cell(0.02, rate, stall=10), Cell(0.02, rate, stall=CANARY + 10)]
    unattributable = {"attributable": False}
    return [*cells, Cell(0.01, end=0.05, **unattributable), Cell(0.02, stall=CANARY + PROGRESSIVE + 10, **unattributable)]


def worse_cells() -> list[Cell]:
    """Return the cells in which the new version is worse than the limit allows."""
    cells = [Cell(base, rise=LIMIT + points) for points in (0.05, 0.20) for base in (0.0, 0.01, 0.02, 0.05)]
    cells += [Cell(0.02, rate, rise=LIMIT + 0.05) for rate in (1, 100)] + [Cell(0.02, clump=5, rise=LIMIT + 0.05)]
    cells += [Cell(0.02, rise=LIMIT + 0.05, known=False)]
    return cells + [Cell(0.02, rise=LIMIT + points, onset=onset) for points in (0.05, 0.20) for onset in (CANARY + 10, TICKS - FULL + 10)]


def run(rollouts: int, *, as_json: bool) -> None:
    """Print false aborts, and how soon a worse version is found."""
    from tests.bench import latency  # which needs the stages of this module

    begun = time.monotonic()
    with ProcessPoolExecutor(PROCESSES) as pool:
        null = list(pool.map(_false_aborts, null_cells(), [rollouts] * len(null_cells())))
        worse = list(pool.map(_detections, worse_cells(), [rollouts] * len(worse_cells())))
        slow_null = list(pool.map(latency.false_aborts, latency.null_cells(), [rollouts] * len(latency.null_cells())))
        slow_worse = list(pool.map(latency.detections, latency.worse_cells(), [rollouts] * len(latency.worse_cells())))
    figures = {
        "rollouts": rollouts,
        "seconds": round(time.monotonic() - begun, 1),
        "worst_false_abort_independent": _worst([row for row in null if row["clump"] == 1 and row["attributable"]]),
        "worst_false_abort_clumps_of_5": _worst([row for row in null if row["clump"] == 5]),
        "worst_false_abort_latency": _worst(slow_null),
        "within_limit": null,
        "worse": worse,
        "latency_within_limit": slow_null,
        "latency_worse": slow_worse,
    }
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{rollouts} rollouts a cell, {figures['seconds']} s; new version within the limit: aborts (upper 95 % bound)")
    for row in null:
        click.echo(f"  {_name(row):<66} {row['share']:7.2%} ({row['upper']:.2%})")
    click.echo("new version worse: found, median tick (Wald's test, which knows both shares), within 3 ticks")
    for row in worse:
        click.echo(f"  {_name(row):<66} {row['found']:7.2%}  {row['median']:5} ({row['wald']})  {row['within_3']:7.2%}")
    click.echo("latency within the limit: aborts (upper 95 % bound); and worse: found, median tick")
    for row in slow_null:
        click.echo(f"  {row['name']:<66} {row['share']:7.2%} ({row['upper']:.2%})")
    for row in slow_worse:
        click.echo(f"  {row['name']:<66} {row['found']:7.2%}  {row['median']}")


def _worst(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: max(row[name] for row in rows) for name in ("share", "upper")}


def _name(row: dict[str, Any]) -> str:
    text = f"{row['base']:.1%} + {row['rise'] * 100:g} points, {row['rate']} a tick"
    text += f", clumps of {row['clump']}" if row["clump"] > 1 else ""
    text += f", trend to {row['end']:.1%} at tick {row['until']}" if row["end"] is not None else ""
    text += f", stall at tick {row['stall']}" if row["stall"] is not None else ""
    text += f", from tick {row['onset']}" if row["onset"] else ""
    text += "" if row["known"] else ", nothing known before"
    return text + ("" if row["attributable"] else " (nothing beside)")


def _false_aborts(cell: Cell, rollouts: int) -> dict[str, Any]:
    aborts = sum(tick is not None for tick in _simulate(cell, rollouts))
    return {**asdict(cell), "share": aborts / rollouts, "upper": round(share_bounds(aborts, rollouts, 0.95)[1], 5)}


def _detections(cell: Cell, rollouts: int) -> dict[str, Any]:
    ticks = [math.inf if tick is None else tick for tick in _simulate(cell, rollouts)]
    early = sum(tick < cell.onset for tick in ticks)
    after = [tick - cell.onset + 1 for tick in ticks if tick >= cell.onset]
    median = statistics.median(after)
    return {
        **asdict(cell),
        "found": sum(math.isfinite(tick) for tick in after) / len(after),
        "before_onset": early / rollouts,
        "median": None if math.isinf(median) else median,
        "within_3": sum(tick <= 3 for tick in after) / len(after),
        "wald": _wald_median(cell, min(rollouts, 2000)),
    }


def _simulate(cell: Cell, rollouts: int) -> list[int | None]:
    """Return the tick at which each rollout was aborted, or None."""
    generator = random.Random(zlib.crc32(repr(cell).encode()))
    tables: dict[float, list[float]] = {}
    plan = [_tables_of(cell, tick, tables) for tick in range(TICKS)]
    bad_before = poisson(BEFORE * cell.base / cell.clump if cell.known else 0.0)
    return [_rollout(plan, cell, bad_before, generator) for _ in range(rollouts)]


def _rollout(plan: list[tuple[list[float], ...]], cell: Cell, bad_before: list[float], generator: random.Random) -> int | None:
    draw, place, clump = generator.random, bisect.bisect, cell.clump
    before = Counters(BEFORE, clump * place(bad_before, draw())) if cell.known else Counters()
    trial = trials(LIMITS, {"api": before})["api"]
    test: Comparison = trial.errors
    for tick, (good, bad, old_good, old_bad) in enumerate(plan):
        if tick == TICKS - FULL:
            test.compare_with_record((test.old.failed, test.old.requests), trial.record_budget)
        failed, old_failed = clump * place(bad, draw()), clump * place(old_bad, draw())
        test.add((failed, failed + place(good, draw())), (old_failed, old_failed + place(old_good, draw())))
        if test.proved:
            return tick
    return None


def _tables_of(cell: Cell, tick: int, tables: dict[float, list[float]]) -> tuple[list[float], ...]:
    """Return the distributions at a tick of the new version's good requests and clumps of failures, and of the old one's."""
    means = []
    for share, requests in zip(cell.shares(tick), cell.requests(tick), strict=True):
        means += [requests * (1 - share), requests * share / cell.clump]
    for mean in means:
        if mean not in tables:
            tables[mean] = poisson(mean)
    return tuple(tables[mean] for mean in means)


def poisson(mean: float) -> list[float]:
    """Return the cumulative probabilities of a Poisson distribution: a uniform number's place among them is a draw."""
    if mean <= 0:
        return []
    width = 9 * math.sqrt(mean) + 12
    first = max(0, int(mean - width))
    probabilities = [math.exp(number * math.log(mean) - mean - math.lgamma(number + 1)) for number in range(first, int(mean + width))]
    cumulative, total = [0.0] * first, 0.0
    for probability in probabilities:
        total += probability
        cumulative.append(total)
    return cumulative


def _wald_median(cell: Cell, rollouts: int) -> float:
    """Return the median tick of Wald's sequential probability ratio test with the whole error budget, which knows both shares."""
    worse, old = cell.shares(cell.onset)
    null = old + LIMIT
    failure, success = math.log(worse / null), math.log((1 - worse) / (1 - null))
    needed = -math.log(LIMITS.false_abort_percent / 100)
    generator, tables, ticks = random.Random(1), {}, []  # type: ignore[var-annotated] # filled by _tables_of
    for _ in range(rollouts):
        ratio, tick = 0.0, cell.onset
        while ratio < needed and tick < TICKS:
            good, bad, *_ = _tables_of(cell, tick, tables)
            ratio += failure * cell.clump * bisect.bisect(bad, generator.random()) + success * bisect.bisect(good, generator.random())
            tick += 1
        ticks.append(tick - cell.onset)
    return statistics.median(ticks)
