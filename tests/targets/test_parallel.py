"""Several hosts at once: order, errors, time limits, and what an interruption leaves."""

from __future__ import annotations

import threading
import time

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.parallel import AT_ONCE, HaltedError, outcomes, results


def test_results_come_in_order_and_at_once():
    together = threading.Barrier(3, timeout=30)

    def work(number):
        together.wait()
        return number * 2

    assert results(outcomes([1, 2, 3], work, Clock())) == [2, 4, 6]


def test_no_more_than_the_limit_at_once():
    running, most, lock = 0, 0, threading.Lock()

    def work(_number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    outcomes(range(3 * AT_ONCE), work, Clock())
    assert 1 < most <= AT_ONCE


def test_an_error_stops_the_others_and_is_the_one_that_is_raised():
    halted = threading.Event()

    def work(number):
        if number == 1:
            raise NotTrueError("Broken", what="the cause", where="there", next_step="mend it")
        assert halted.wait(30)
        raise HaltedError("stopped")

    endings = outcomes([0, 1, 2], work, Clock(), halt=halted.set)
    assert [type(outcome.error) for outcome in endings] == [HaltedError, NotTrueError, HaltedError]
    with pytest.raises(NotTrueError, match="the cause"):
        results(endings)


def test_what_is_not_done_in_time_is_left_behind():
    never = threading.Event()
    endings = outcomes([0, 1], lambda number: never.wait(30) if number else "done", Clock(), seconds=0.3)
    never.set()
    assert (endings[0].finished, endings[0].result) == (True, "done")
    assert endings[1].result is None


def test_who_is_lost_is_left_behind_and_who_is_slow_is_not():
    never, silent = threading.Event(), threading.Event()

    def work(number):
        if number == 1:
            never.wait(30)
        else:
            time.sleep(0.3)  # longer than it takes to notice that the other host is lost
        return number

    silent.set()
    endings = outcomes([0, 1], work, Clock(), lost=lambda number: number == 1 and silent.is_set())
    never.set()
    assert [outcome.result for outcome in endings] == [0, None]


@pytest.mark.parametrize("reads", [True, False])
def test_who_is_interrupted_waits_for_what_moves_and_not_for_what_reads(reads):
    go, waited = threading.Event(), []

    class Interrupted(Clock):
        def monotonic(self):
            if not waited:
                waited.append(True)
                raise KeyboardInterrupt
            return super().monotonic()

    threading.Timer(0.3, go.set).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        outcomes([0], lambda _number: go.wait(30), Interrupted(), seconds=60, reads=reads)
    assert go.is_set() is not reads
    assert time.monotonic() - begun < 3
    go.wait(30)
