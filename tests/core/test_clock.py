"""Time: RFC 3339, a schedule that does not drift, attempts with waits in between."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest

from azora_ci.core.clock import Clock, parse_rfc3339, rfc3339


class SlowClock(Clock):
    """A clock on which every tick's work takes a while; sleeping moves it exactly."""

    def __init__(self) -> None:
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += max(0.0, seconds)


def test_rfc3339_is_utc_with_milliseconds_and_reads_back():
    moment = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(moment) == "2026-11-24T10:00:00.123Z"
    assert parse_rfc3339("2026-11-24T10:00:00.123Z") == moment.astimezone(UTC).replace(microsecond=123000)


@pytest.mark.parametrize("bad", ["2026-11-24T10:00:00", "yesterday", ""])
def test_a_moment_without_a_zone_is_refused(bad):
    with pytest.raises(ValueError):
        parse_rfc3339(bad)
    with pytest.raises(ValueError):
        rfc3339(datetime(2026, 1, 1))


def test_ticks_do_not_drift_when_work_takes_time():
    clock = SlowClock()
    ticks = []
    for elapsed in clock.ticks(10, 60):
        ticks.append(round(elapsed, 6))
        clock.time += 3.7
    assert ticks == [0, 10, 20, 30, 40, 50, 60]


def test_a_late_tick_does_not_move_the_others_and_missed_ones_are_left_out():
    clock = SlowClock()
    ticks = []
    for elapsed, work in zip(clock.ticks(10, 60), itertools.chain([1, 25], itertools.repeat(1)), strict=False):
        ticks.append(round(elapsed, 6))
        clock.time += work
    assert ticks == [0, 10, 35, 40, 50, 60]


def test_the_real_clock_moves():
    clock = Clock()
    before = clock.monotonic()
    clock.sleep(0.01)
    clock.sleep(-5)
    assert 0.01 <= clock.monotonic() - before < 5
    assert clock.now().tzinfo is UTC


def test_attempts_wait_longer_each_time_and_not_after_the_last():
    clock = SlowClock()
    assert [(str(attempt), attempt.last, clock.time - 100) for attempt in clock.attempts(3, 1.5)] == [
        ("attempt 1 of 3", False, 0),
        ("attempt 2 of 3", False, 1.5),
        ("attempt 3 of 3", True, 4.5),
    ]
    assert clock.time == 104.5


def test_attempts_wait_as_long_as_a_server_asks():
    clock = SlowClock()
    for attempt in clock.attempts(3):
        attempt.wait = 30 if attempt.number == 1 else attempt.wait
    assert clock.time == 132


def test_attempts_end_before_a_wait_that_passes_the_patience():
    clock = SlowClock()
    assert [attempt.number for attempt in clock.attempts(9, 20, growth=1, patience=60)] == [1, 2, 3, 4]
    assert clock.time == 160


def test_attempts_end_when_they_are_stopped_while_waiting():
    clock, stop = SlowClock(), threading.Event()
    threading.Timer(0.05, stop.set).start()
    assert [attempt.number for attempt in clock.attempts(9, 60, stop=stop)] == [1]
