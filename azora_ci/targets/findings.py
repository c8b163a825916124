"""Findings of the doctor: a requirement of production, whether it is met, and what to do when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from azora_ci.core.errors import AzoraError

UNKNOWN = "unknown: "  # how the detail begins of what could not be asked


@dataclass(frozen=True)
class Finding:
    """A requirement of production: whether it is met, the observed detail, and what to do when it is not met.

    ``stops``: whether a deployment would fail for it; one that does not stop is put right by a deployment, or is advice.
    """

    name: str
    passed: bool
    detail: str
    next_step: str = ""
    stops: bool = True

    @property
    def unknown(self) -> bool:
        """Return whether nobody could be asked."""
        return self.detail.startswith(UNKNOWN)


def check(name: str, question: Callable[[], str], next_step: str = "", *, stops: bool = True) -> Finding:
    """Return a passed finding with the answer of ``question``, or a failed one when it raises an AzoraError."""
    try:
        return Finding(name, True, question())
    except AzoraError as error:
        return failed(name, error, next_step, stops=stops)


def failed(name: str, error: AzoraError, next_step: str = "", *, stops: bool = True) -> Finding:
    """Return an AzoraError as a failed finding; ``next_step`` replaces the error's own."""
    return Finding(name, False, f"{error.title}: {error.what}", next_step or error.next_step, stops)
