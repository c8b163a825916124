"""Keeps the memory of this process small while hundreds of gigabytes pass through it in blocks of one mebibyte."""

from __future__ import annotations

import contextlib

M_MMAP_THRESHOLD = -3  # mallopt(3)
M_ARENA_MAX = -8
THRESHOLD_BYTES = 128 * 1024


def return_large_blocks() -> None:
    """Make glibc return every large block to the system when it is freed.

    By default it raises the limit with each block and keeps them in one arena per thread, 20 MiB in all. Other C libraries: no effect.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
        mallopt(M_ARENA_MAX, 1)  # small blocks of a dozen threads need no arena each
