"""Ranges of vulnerable versions, as advisories of the public registry write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.gates.audit import ranges


@pytest.mark.parametrize(
    ("vulnerable", "version", "inside"),
    [
        ("<4.17.12", "4.17.11", True),
        ("<4.17.12", "4.17.12", False),
        ("< 4.17.12", "4.17.2", True),  # as numbers, not as texts
        (">=1.0.0 <1.2.3", "1.2.3", False),
        (">=1.0.0 <1.2.3", "1.2.2", True),
        (">= 1.0.0, < 1.2.3", "1.1.0", True),  # a comma is not understood, so the comparator counts as met
        ("<0.2.1 || >=1.0.0 <1.2.3", "0.2.1", False),
        ("<0.2.1 || >=1.0.0 <1.2.3", "0.2.0", True),
        ("<=2.0.0-beta.3", "2.0.0-beta.2", True),
        ("<2.0.0", "2.0.0-rc.1", True),  # pre-releases are included
        ("=3.3.6", "3.3.6", True),
        ("3.3.6", "3.3.7", False),
        (">=2", "10.0.0", True),
        ("<2", "10.0.0", False),
        ("*", "1.0.0", True),
        (">=0.0.0", "1.0.0", True),
        ("", "1.0.0", True),
        ("^1.2.3 ~oops", "9.0.0", True),  # not understood: taken for vulnerable
    ],
)
def test_a_version_lies_in_a_range_or_not(vulnerable, version, inside):
    assert ranges.contains(vulnerable, version) is inside


@pytest.mark.parametrize(
    ("vulnerable", "version", "fixed"),
    [
        ("<4.17.12", "4.17.11", "4.17.12"),
        ("<0.2.1 || >=1.0.0 <1.2.3", "1.1.0", "1.2.3"),
        ("<=1.0.0", "1.0.0", None),
        ("*", "1.0.0", None),
        ("<2 >=1", "1.5.0", "2"),
    ],
)
def test_the_first_version_without_it(vulnerable, version, fixed):
    assert ranges.fixed_in(vulnerable, version) == fixed


numbers = st.tuples(*[st.integers(0, 30)] * 3)


@given(numbers, numbers, numbers)
def test_bounds_compare_as_numbers_do(low, high, version):
    text, lower, upper = (".".join(map(str, number)) for number in (version, low, high))
    assert ranges.contains(f">={lower} <{upper}", text) is (low <= version < high)
    assert ranges.contains(f"<{lower} || >{upper}", text) is (version < low or version > high)


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_of_a_registry_ends_in_a_bug(vulnerable, version):
    assert isinstance(ranges.contains(vulnerable, version), bool)
    ranges.fixed_in(vulnerable, version)
