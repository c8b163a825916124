"""The only module that reads the time or sleeps."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime


def rfc3339(moment: datetime) -> str:
    """Return a moment as RFC 3339 in UTC with milliseconds, ``2026-11-24T11:03:16.123Z``.

    Raises ValueError for a moment without a time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> datetime:
    """Return the moment in UTC that an RFC 3339 text names. Raises ValueError for another text and for a missing time zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.astimezone(UTC)


@dataclass
class Attempt:
    """Attempt ``number`` of ``most``. ``wait``: seconds before the next one; the loop may set it, to what a server's Retry-After asks."""

    number: int
    most: int
    wait: float

    @property
    def last(self) -> bool:
        """Return whether no attempt follows."""
        return self.number == self.most

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.most}"


class Clock:
    """The machine's clock. Pass a clock as a parameter instead of reading the time inside a decision."""

    def now(self) -> datetime:
        """Return the present moment in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the seconds of a clock that never jumps."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds; a negative number counts as 0."""
        time.sleep(max(0.0, seconds))

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event for at most ``seconds``; return whether it was set."""
        return event.wait(max(0.0, seconds))

    def ticks(self, interval: float, duration: float) -> Iterator[float]:
        """Yield the elapsed seconds at 0, interval, 2 x interval, … up to ``duration``, on a schedule that does not drift.

        A late tick does not delay the later ones; ticks that were missed altogether are left out.
        """
        start = self.monotonic()
        number = 0
        while number * interval <= duration:
            self.sleep(start + number * interval - self.monotonic())
            yield self.monotonic() - start
            number = max(number + 1, int((self.monotonic() - start) / interval))

    def attempts(
        self, most: int, wait: float = 1.0, *, growth: float = 2.0, patience: float = math.inf, stop: threading.Event | None = None
    ) -> Iterator[Attempt]:
        """Yield attempt 1, 2, … ``most`` and wait in between; a loop over them leaves it when an attempt succeeds.

        The first wait is ``wait`` seconds, each later one ``growth`` times the one before. The attempts end early when the waits together
        would pass ``patience`` seconds, and when ``stop`` is set before a wait is over.
        """
        waited = 0.0
        for number in range(1, most + 1):
            attempt = Attempt(number, most, wait * growth ** (number - 1))
            yield attempt
            waited += attempt.wait
            if attempt.last or waited > patience:
                return
            if stop is None:
                self.sleep(attempt.wait)
            elif self.wait(stop, attempt.wait):
                return
