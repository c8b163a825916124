"""Counted traffic: what an edge counted for a release, and percentiles of its latency. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

NUMBERS = ("requests", "errors", "failovers", "given_up", "broken", "timeouts", "not_found", "connect_failures", "ours", "ours_failed")
SLOWEST_MS = 60_000.0  # the highest bound of a bucket


@dataclass(frozen=True)
class Counters:
    """The edge's counts for one release of one service since some moment.

    ``requests`` by users that have ended, each counted once. Those that failed, each in one of four: ``errors``: 5xx answers;
    ``failovers``: only another attempt was answered; ``given_up``: the user left before an answer came; ``broken``: the answer broke off.
    ``timeouts``: failed requests that nothing answered in the route's time. ``not_found``: 404 answers, no failures in themselves.
    ``ours``: probes and synthetic requests, which are none of ``requests``. ``buckets``: (upper bound in milliseconds, requests up to
    it), cumulative.
    """

    requests: int = 0
    errors: int = 0
    failovers: int = 0
    given_up: int = 0
    broken: int = 0
    timeouts: int = 0
    not_found: int = 0
    connect_failures: int = 0
    ours: int = 0
    ours_failed: int = 0
    buckets: tuple[tuple[float, int], ...] = ()

    @property
    def failed(self) -> int:
        """Return the number of requests that this release failed, at most ``requests``."""
        return min(self.requests, self.errors + self.failovers + self.given_up + self.broken)

    @property
    def failed_share(self) -> float:
        """Return the share of failed requests, 0 without requests."""
        return self.failed / self.requests if self.requests else 0.0

    @property
    def not_found_share(self) -> float:
        """Return the share of requests that were answered with 404, 0 without requests."""
        return self.not_found / self.requests if self.requests else 0.0

    @property
    def samples(self) -> int:
        """Return how many requests, of users and ours, show what this release does."""
        return self.requests + self.ours

    def of_ours(self) -> Counters:
        """Return the counts of our own requests."""
        return Counters(self.ours, self.ours_failed)

    def with_the_slowest(self) -> Counters:
        """Return the counts with requests that nothing answered in the slowest bucket: they took longer than anybody waited."""
        unanswered = self.given_up + self.timeouts
        bound, count = self.buckets[-1] if self.buckets else (SLOWEST_MS, 0)
        return replace(self, buckets=(*self.buckets[:-1], (bound, count + unanswered))) if unanswered else self

    def since(self, earlier: Counters) -> Counters:
        """Return the counts after ``earlier``. A proxy that restarted counts from 0: then all of its counts are new."""
        if self.samples < earlier.samples:
            return self
        earlier_buckets = dict(earlier.buckets)
        numbers = {name: max(0, getattr(self, name) - getattr(earlier, name)) for name in NUMBERS}
        return Counters(**numbers, buckets=tuple((bound, max(0, count - earlier_buckets.get(bound, 0))) for bound, count in self.buckets))

    def plus(self, other: Counters) -> Counters:
        """Return the sum of two counts."""
        other_buckets, own_buckets = dict(other.buckets), dict(self.buckets)
        bounds = sorted({*other_buckets, *own_buckets})
        return Counters(
            **{name: getattr(self, name) + getattr(other, name) for name in NUMBERS},
            buckets=tuple((bound, own_buckets.get(bound, 0) + other_buckets.get(bound, 0)) for bound in bounds),
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
