"""Keeps our own memory small while hundreds of gigabytes pass through blocks of a mebibyte."""

from __future__ import annotations

import contextlib

M_MMAP_THRESHOLD = -3  # mallopt(3)
THRESHOLD_BYTES = 128 * 1024


def return_large_blocks() -> None:
    """Make glibc give every large block back when it is freed.

    By itself it raises the limit with each block and then keeps them in one arena per thread, 20 MiB in all. Elsewhere: nothing.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
