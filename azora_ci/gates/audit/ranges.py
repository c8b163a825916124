"""Ranges of versions as advisories name them: ``>=1.0.0 <1.2.3 || <0.2.4``. Pure.

A comparator that is not understood counts as met: what cannot be compared is taken for vulnerable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import semver

_COMPARATOR = re.compile(r"(<=|>=|<|>|=)?\s*v?(\d+(?:\.\d+){0,2}(?:-[0-9A-Za-z.-]+)?)(?:\+\S+)?")
_COMPARE: dict[str, Callable[[int], bool]] = {
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    ">=": lambda order: order >= 0,
    "=": lambda order: order == 0,
}


def contains(vulnerable: str, version: str) -> bool:
    """Say whether a version lies in a range, pre-releases included."""
    return any(all(_meets(version, comparator) for comparator in _comparators(part)) for part in vulnerable.split("||"))


def fixed_in(vulnerable: str, version: str) -> str | None:
    """Return the first version after the vulnerable range around ``version``, where the range names one (``<1.2.3``)."""
    for part in vulnerable.split("||"):
        comparators = _comparators(part)
        upper = [match[2] for match in map(_COMPARATOR.fullmatch, comparators) if match and match[1] == "<"]
        if upper and all(_meets(version, comparator) for comparator in comparators):
            return min(upper, key=_parsed)
    return None


def _comparators(part: str) -> list[str]:
    return re.sub(r"([<>=])\s+", r"\1", part).split()


def _meets(version: str, comparator: str) -> bool:
    match = _COMPARATOR.fullmatch(comparator)
    if match is None:
        return True
    try:
        return _COMPARE[match[1] or "="](_parsed(version).compare(_parsed(match[2])))
    except ValueError:
        return True


def _parsed(text: str) -> semver.Version:
    import semver

    return semver.Version.parse(text, optional_minor_and_patch=True)
