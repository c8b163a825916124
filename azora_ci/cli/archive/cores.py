"""Spread work over the machine's cores: schemas and pages of a thousand records are seconds of computing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

LEAST = 100  # items for which other processes are worth their start
MOST_PROCESSES = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the result of a module's function for each item, in their order. It must not be called while threads run."""
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    if len(items) < LEAST or processes < 2:
        return [work(item) for item in items]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(work, items, chunksize=max(1, min(25, len(items) // (4 * processes)))))
