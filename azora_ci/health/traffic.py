"""Counted traffic: what an edge counted for a release, and percentiles of its latency. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """The edge's counts for one release of one service since some moment.

    ``requests`` by users, each counted once; ``errors``: 5xx answers; ``failovers``: failed attempts that failover made good;
    ``buckets``: (upper bound in milliseconds, requests up to it), cumulative.
    """

    requests: int = 0
    errors: int = 0
    failovers: int = 0
    resets: int = 0
    connect_failures: int = 0
    buckets: tuple[tuple[float, int], ...] = ()

    @property
    def failed(self) -> int:
        """Return the number of requests that this release failed, at most ``requests``."""
        return min(self.requests, self.errors + self.failovers)

    @property
    def failed_share(self) -> float:
        """Return the share of failed requests, 0 without requests."""
        return self.failed / self.requests if self.requests else 0.0

    def since(self, earlier: Counters) -> Counters:
        """Return the counts after ``earlier``. A proxy that restarted counts from 0: then all of its counts are new."""
        if self.requests < earlier.requests:
            return self
        earlier_buckets = dict(earlier.buckets)
        numbers = {
            name: max(0, getattr(self, name) - getattr(earlier, name))
            for name in ("requests", "errors", "failovers", "resets", "connect_failures")
        }
        return Counters(**numbers, buckets=tuple((bound, max(0, count - earlier_buckets.get(bound, 0))) for bound, count in self.buckets))

    def plus(self, other: Counters) -> Counters:
        """Return the sum of two counts."""
        other_buckets, own_buckets = dict(other.buckets), dict(self.buckets)
        bounds = sorted({*other_buckets, *own_buckets})
        return Counters(
            self.requests + other.requests,
            self.errors + other.errors,
            self.failovers + other.failovers,
            self.resets + other.resets,
            self.connect_failures + other.connect_failures,
            tuple((bound, own_buckets.get(bound, 0) + other_buckets.get(bound, 0)) for bound in bounds),
        )


def percentile(buckets: Sequence[tuple[float, int]], share: float) -> float | None:
    """Return the latency in milliseconds below which ``share`` of requests stay, linear inside a bucket; None without requests."""
    total = buckets[-1][1] if buckets else 0
    if not total:
        return None
    rank, lower, below = share * total, 0.0, 0
    for upper, count in buckets:
        if count >= rank and count > below:
            return lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return buckets[-1][0]


def slower_than(buckets: Sequence[tuple[float, int]], milliseconds: float) -> tuple[int, int]:
    """Return (requests that certainly took longer, all requests): only buckets entirely above the limit count as longer."""
    total = buckets[-1][1] if buckets else 0
    within = next((count for bound, count in buckets if bound >= milliseconds), total)
    return total - within, total
