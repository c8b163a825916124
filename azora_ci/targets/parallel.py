"""The same on several hosts at once: daemon threads, so that a host that hangs does not hold up a cancelled job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from azora_ci.clock import Clock

AT_ONCE = 64  # threads that mostly wait: of fifty hosts none may wait for another's way back, which takes some seconds to prove
END_SECONDS = 3.0  # that work which was told to stop may take before it is left behind

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Outcome(Generic[Item, Result]):
    """What came of one item: a result, an error, or neither yet."""

    item: Item
    result: Result | None = None
    error: BaseException | None = None
    done: bool = False


def outcomes(  # noqa: PLR0913 - what ends the wait, all by keyword
    items: Iterable[Item],
    work: Callable[[Item], Result],
    clock: Clock,
    *,
    seconds: float | None = None,
    halt: Callable[[], None] | None = None,
    lost: Callable[[Item], bool] = lambda _item: False,
    reads: bool = False,
) -> list[Outcome[Item, Result]]:
    """Do ``work`` for every item, ``AT_ONCE`` at a time, and return what came of each, in order; ``done`` is false after ``seconds``,
    or when the item is ``lost``, which is asked again and again while its work goes on.

    When this thread is interrupted, or an item fails, ``halt`` is called: it tells the others to stop. Whoever is interrupted waits for
    them a moment, so that nothing moves any more afterwards, unless the work only ``reads``.
    """
    found: list[Outcome[Item, Result]] = [Outcome(item) for item in items]
    places, finished = threading.Semaphore(AT_ONCE), threading.Semaphore(0)

    def do(one: Outcome[Item, Result]) -> None:
        with places:
            try:
                one.result = work(one.item)
            except BaseException as error:
                one.error = error
                if halt is not None:
                    halt()
            one.done = True
            finished.release()

    for one in found:
        threading.Thread(target=do, args=(one,), daemon=True).start()
    try:
        _await(found, finished, clock, seconds, lost)
    except BaseException:
        if halt is not None:
            halt()
        if not reads:
            _await(found, finished, clock, END_SECONDS, lost)
        raise
    return found


def _await(
    found: list[Outcome[Item, Result]], finished: threading.Semaphore, clock: Clock, seconds: float | None, lost: Callable[[Item], bool]
) -> None:
    deadline = None if seconds is None else clock.monotonic() + seconds
    while not all(one.done or lost(one.item) for one in found):
        left = None if deadline is None else deadline - clock.monotonic()
        if left is not None and left <= 0:
            return
        finished.acquire(timeout=0.5 if left is None else min(0.5, left))


def results(found: list[Outcome[Item, Result]]) -> list[Result]:
    """Return all results, or raise the first error that is not the answer to another one's."""
    errors = [one.error for one in found if one.error is not None]
    causes = [error for error in errors if not isinstance(error, HaltedError)]
    if errors:
        raise (causes or errors)[0]
    return [one.result for one in found]  # type: ignore[misc] # done without an error: it is a Result, which may be None


class HaltedError(Exception):
    """Work was given up because something else failed or the run was cancelled."""
