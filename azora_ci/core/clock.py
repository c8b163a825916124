"""The only module that reads the time or sleeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
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
