"""Waiting for a condition instead of sleeping a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], expected: str, seconds: float = 30.0) -> None:
    """Wait until ``condition`` is true; fail with ``expected`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {expected}"
        time.sleep(0.02)
