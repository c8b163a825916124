"""Proof from the edge's own counters that instances get no more requests: since when, and that none follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from azora_ci.core.clock import Clock
from azora_ci.core.errors import UnreachableError
from azora_ci.health.answers import ProbeResult

# Seconds without a change after which a count stands still. Envoy's workers adopt new routes after the admin port reports them, and
# retries are still in flight: at 1,500 requests a second, hundreds reached the new version after the configuration was read back.
QUIET_SECONDS = 0.2
SETTLE_SECONDS, HURRIED_SETTLE_SECONDS = 2.0, 0.6  # the longest wait for a count to stand still; a cancelled run has less time
POLL_SECONDS = 0.05


class RequestCounts(Protocol):
    """The counts of an edge; see ``edge.Edge``."""

    def requests_to(self, addresses: set[str]) -> int:
        """Return how many requests went to these addresses."""

    def waiting(self, addresses: set[str]) -> int:
        """Return how many requests wait for a connection to these addresses: they are not counted yet, and will be sent."""

    def under_way(self, addresses: set[str]) -> int:
        """Return how many requests and upgraded connections are open at these addresses."""


@dataclass(frozen=True)
class Proof:
    """``last_request``: monotonic seconds at which the last request was counted; ``requests_after``: requests during the proof.

    ``unhealthy``: the failed findings of the last probe.
    """

    last_request: float
    requests_after: int
    unhealthy: tuple[ProbeResult, ...]


def await_standstill(count: Callable[[], int], clock: Clock, seconds: float, waiting: Callable[[], int] = lambda: 0) -> float:
    """Wait until a count stands still and nothing waits to be counted, at most ``seconds``.

    Return the monotonic time when either was last seen otherwise, or of the start.
    """
    last, since = count(), clock.monotonic()
    deadline = since + seconds
    while (now := clock.monotonic()) - since < QUIET_SECONDS and now < deadline:
        clock.sleep(POLL_SECONDS)
        current = count()
        if current != last or waiting():
            since, last = clock.monotonic(), current
    return since


def prove(
    edge: RequestCounts, addresses: set[str], clock: Clock, *, settle: float, seconds: float, ask: Callable[[], Sequence[ProbeResult]]
) -> Proof:
    """Wait until no more requests go to ``addresses``, then count those that follow within ``seconds``; ``ask`` probes meanwhile.

    Raises UnreachableError when the edge does not answer.
    """
    last_request = await_standstill(lambda: edge.requests_to(addresses), clock, settle, lambda: edge.waiting(addresses))
    baseline = edge.requests_to(addresses)
    deadline = clock.monotonic() + seconds
    while True:
        unhealthy = tuple(finding for finding in ask() if not finding.passed)
        remaining = deadline - clock.monotonic()
        if remaining <= 0:
            return Proof(last_request, edge.requests_to(addresses) - baseline, unhealthy)
        clock.sleep(min(0.2, remaining))


def drain(edge: RequestCounts, addresses: set[str], clock: Clock, *, seconds: float, meanwhile: Callable[[], None]) -> int:
    """Wait until no request or connection is open at ``addresses``, at most ``seconds``; return how many are still open.

    Returns 0 when the edge does not answer: it has no open requests then.
    """
    deadline = clock.monotonic() + seconds
    try:
        while (open_requests := edge.under_way(addresses)) and clock.monotonic() < deadline:
            meanwhile()
            clock.sleep(0.05)
    except UnreachableError:
        return 0
    return open_requests
