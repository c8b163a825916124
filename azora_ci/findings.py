"""What a look at production finds: one thing that it needs, whether it is there, and what to do when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from azora_ci.errors import AzoraError


@dataclass(frozen=True)
class Finding:
    """One thing that production needs: whether it is there, what was seen, and what to do when it is not."""

    name: str
    passed: bool
    detail: str
    next_step: str = ""


def asked(name: str, ask: Callable[[], str], next_step: str = "") -> Finding:
    """Return what came of a question; an error of the family is a thing that is missing."""
    try:
        return Finding(name, True, ask())
    except AzoraError as error:
        return failed(name, error, next_step)


def failed(name: str, error: AzoraError, next_step: str = "") -> Finding:
    """Return an error of the family as a thing that is missing."""
    return Finding(name, False, f"{error.title}: {error.what}", next_step or error.next_step)
