"""What the edge's own counters prove about instances that must get no requests any more: since when, and that it stays so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from azora_ci.clock import Clock
from azora_ci.errors import UnreachableError
from azora_ci.health import Finding

# Seconds in which a count must not change to stand still. Envoy's workers take new routes up after the admin port names them, and
# retries are still on their way: at 1,500 requests a second, hundreds reached the new version after the configuration was read back.
QUIET_SECONDS = 0.2
SETTLE_SECONDS, HURRIED_SETTLE_SECONDS = 2.0, 0.6  # at most until the count stands still; a cancelled run has less time
POLL_SECONDS = 0.05


class Counted(Protocol):
    """What counts: see ``edge.Edge``."""

    def requests_to(self, addresses: set[str]) -> int:
        """Return how many requests went to these addresses."""

    def under_way(self, addresses: set[str]) -> int:
        """Return how many requests and upgraded connections are open at these addresses."""


@dataclass(frozen=True)
class Proof:
    """``since``: monotonic seconds at which the last request was counted; ``after``: requests in the ``seconds`` that followed."""

    since: float
    after: int
    seconds: float
    sick: tuple[Finding, ...]


def still_since(count: Callable[[], int], clock: Clock, seconds: float) -> float:
    """Wait until a count stands still, at most ``seconds``; return the monotonic moment from which it did, or last moved."""
    last, since = count(), clock.monotonic()
    deadline = since + seconds
    while (now := clock.monotonic()) - since < QUIET_SECONDS and now < deadline:
        clock.sleep(POLL_SECONDS)
        found = count()
        if found != last:
            since, last = clock.monotonic(), found
    return since


def prove(
    edge: Counted, addresses: set[str], clock: Clock, *, settle: float, seconds: float, ask: Callable[[], Sequence[Finding]]
) -> Proof:
    """Wait until requests to ``addresses`` stand still, then count for ``seconds`` whether any follows; ``ask`` probes meanwhile.

    Raises UnreachableError when the edge does not answer.
    """
    since = still_since(lambda: edge.requests_to(addresses), clock, settle)
    before = edge.requests_to(addresses)
    deadline = clock.monotonic() + seconds
    while True:
        sick = tuple(finding for finding in ask() if not finding.passed)
        left = deadline - clock.monotonic()
        if left <= 0:
            return Proof(since, edge.requests_to(addresses) - before, seconds, sick)
        clock.sleep(min(0.2, left))


def drain(edge: Counted, addresses: set[str], clock: Clock, *, seconds: float, meanwhile: Callable[[], None]) -> int:
    """Wait until nothing is open at ``addresses``, at most ``seconds``; return how much still is.

    An edge that does not answer has nothing open that could be waited for.
    """
    deadline = clock.monotonic() + seconds
    try:
        while (left := edge.under_way(addresses)) and clock.monotonic() < deadline:
            meanwhile()
            clock.sleep(0.05)
    except UnreachableError:
        return 0
    return left
