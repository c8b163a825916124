"""Do the same work on several hosts at once, in daemon threads, so that a host that hangs does not hold up a cancelled job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from azora_ci.core.clock import Clock

AT_ONCE = 64  # threads, which mostly wait: with fifty hosts, none may wait until another has gone back, which takes seconds to prove
END_SECONDS = 3.0  # that work may take to end after it was halted; then it is left behind

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class HostOutcome(Generic[Item, Result]):
    """The outcome of the work for an item: a result, an error, or neither while ``finished`` is false."""

    item: Item
    result: Result | None = None
    error: BaseException | None = None
    finished: bool = False


def outcomes(  # noqa: PLR0913 - what ends the wait, all by keyword
    items: Iterable[Item],
    work: Callable[[Item], Result],
    clock: Clock,
    *,
    seconds: float | None = None,
    halt: Callable[[], None] | None = None,
    lost: Callable[[Item], bool] = lambda _item: False,
    reads: bool = False,
    at_once: int = AT_ONCE,
) -> list[HostOutcome[Item, Result]]:
    """Do ``work`` for every item, ``at_once`` at a time, and return the outcomes in the order of the items.

    Work is not waited for any longer (its outcome is not ``finished``) after ``seconds``, or when its item is ``lost``, which is checked
    repeatedly. When an item fails or this thread is interrupted, ``halt`` is called to stop the other work. An interrupted thread waits
    up to END_SECONDS for that work, so that nothing is changed after it ends, unless the work only ``reads``.
    """
    pending: list[HostOutcome[Item, Result]] = [HostOutcome(item) for item in items]
    slots, completed = threading.Semaphore(at_once), threading.Semaphore(0)

    def process(outcome: HostOutcome[Item, Result]) -> None:
        with slots:
            try:
                outcome.result = work(outcome.item)
            except BaseException as error:
                outcome.error = error
                if halt is not None:
                    halt()
            outcome.finished = True
            completed.release()

    for outcome in pending:
        threading.Thread(target=process, args=(outcome,), daemon=True).start()
    try:
        _await(pending, completed, clock, seconds, lost)
    except BaseException:
        if halt is not None:
            halt()
        if not reads:
            _await(pending, completed, clock, END_SECONDS, lost)
        raise
    return pending


def _await(
    pending: list[HostOutcome[Item, Result]],
    completed: threading.Semaphore,
    clock: Clock,
    seconds: float | None,
    lost: Callable[[Item], bool],
) -> None:
    deadline = None if seconds is None else clock.monotonic() + seconds
    while not all(outcome.finished or lost(outcome.item) for outcome in pending):
        remaining = None if deadline is None else deadline - clock.monotonic()
        if remaining is not None and remaining <= 0:
            return
        completed.acquire(timeout=0.5 if remaining is None else min(0.5, remaining))


def results(finished: list[HostOutcome[Item, Result]]) -> list[Result]:
    """Return all results, or raise the first error; a HaltedError only when there is no other, since another error causes it."""
    errors = [outcome.error for outcome in finished if outcome.error is not None]
    causes = [error for error in errors if not isinstance(error, HaltedError)]
    if errors:
        raise (causes or errors)[0]
    return [outcome.result for outcome in finished]  # type: ignore[misc] # no error, so this is a Result, which may itself be None


class HaltedError(Exception):
    """Work was abandoned because other work failed or the run was cancelled."""
