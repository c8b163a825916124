"""Keeps our own memory small while hundreds of gigabytes pass through blocks of a mebibyte."""

from __future__ import annotations

import contextlib

M_MMAP_THRESHOLD = -3  # mallopt(3)
M_ARENA_MAX = -8
THRESHOLD_BYTES = 128 * 1024


def return_large_blocks() -> None:
    """Make glibc give every large block back when it is freed.

    By itself it raises the limit with each block and then keeps them in one arena per thread, 20 MiB in all. Elsewhere: nothing.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
        mallopt(M_ARENA_MAX, 1)  # small blocks of a dozen threads need no arena each
