"""The test that is looked at after every tick: its guarantee, exactly for a tick and by simulation, and what it does about clumps."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.rollout.sequential import BETS, Comparison

BUDGET = 0.01


def probability(failed: int, requests: int, share: float) -> float:
    return math.comb(requests, failed) * share**failed * (1 - share) ** (requests - failed)


@given(
    st.tuples(st.integers(1, 8), st.integers(1, 12)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from([(0, 0), (0, 900), (30, 100), (95, 100)]),
    st.booleans(),
)
def test_the_expectation_of_a_factor_is_at_most_one_wherever_the_null_holds(sizes, old_share, portion, margin, record, alone):
    share = portion * min(1.0, old_share + margin)
    comparison = Comparison(margin, BUDGET, old_share if alone else None)
    comparison.add((0, 0), record)
    new, old = sizes
    for bet in range(len(BETS)):
        expectation = math.fsum(
            probability(failed, new, share) * probability(old_failed, old, old_share) * math.exp(factors[bet])
            for failed in range(new + 1)
            for old_failed in range(old + 1)
            if (factors := comparison._factors((failed, new), (old_failed, old)))
        )
        assert expectation <= 1 + 1e-9


def found_at(
    share: float, old_share: float, generator: random.Random, *, clump: int = 1, requests: int = 10, ticks: int = 60
) -> int | None:
    """Return the tick at which a new version is found to be worse, of a rollout whose old version gets twice the requests."""
    comparison = Comparison(0.01, BUDGET)

    def failures(number: int, probability: float) -> int:
        return clump * sum(generator.random() < probability for _ in range(number // clump))

    for tick in range(ticks):
        comparison.add((failures(requests, share), requests), (failures(2 * requests, old_share), 2 * requests))
        if comparison.proved:
            return tick + 1
    return None


@pytest.mark.parametrize(("clump", "most"), [(1, 6), (5, 12)])
def test_versions_at_the_limit_are_seldom_found_worse(clump, most):
    generator = random.Random(1)
    assert sum(found_at(0.06, 0.05, generator, clump=clump) is not None for _ in range(200)) <= most


def test_a_much_worse_version_is_found_within_a_few_ticks():
    generator = random.Random(1)
    found = sorted(found_at(0.23, 0.02, generator) or 1000 for _ in range(100))
    assert found[50] <= 5
    assert found[98] <= 15


def test_a_fault_that_begins_late_is_found_as_well():
    comparison = Comparison(0.01, BUDGET)
    for _ in range(1000):
        comparison.add((1, 100), (1, 100))
    for _ in range(6):
        comparison.add((30, 100), (1, 100))
    assert comparison.proved


def test_failures_that_come_in_clumps_weigh_less():
    steady, clumpy = Comparison(0.01, BUDGET), Comparison(0.01, BUDGET)
    for tick in range(10):
        steady.add((1, 10), (1, 100))
        clumpy.add((5 * (tick in {3, 7}), 10), (5 * (tick % 5 == 0), 100))
    assert steady.new.failed == clumpy.new.failed
    assert steady.proved
    assert not clumpy.proved
    assert clumpy.design_effect > 2 * steady.design_effect


def test_trouble_of_both_is_no_evidence():
    comparison = Comparison(0.0, BUDGET)
    for _ in range(20):
        comparison.add((45, 50), (450, 500))
    assert not comparison.proved


def test_evidence_has_an_end():
    comparison = Comparison(0.0, BUDGET)
    for _ in range(50):
        comparison.add((50_000, 50_000), (0, 50_000))
    assert comparison.proved
    assert all(math.isfinite(wealth) for wealth in comparison.wealth)


def test_a_record_that_became_worse_lately_is_taken_at_its_worst():
    comparison = Comparison(0.01, BUDGET)
    for tick in range(100):
        comparison.add((0, 100), (1 if tick < 90 else 10, 100))
    comparison.compare_with_record((comparison.old.failed, comparison.old.requests), 0.001)
    assert comparison.ceiling is not None
    assert 0.10 < comparison.ceiling < 0.25


def test_a_record_of_nothing_proves_nothing():
    comparison = Comparison(0.01, BUDGET)
    comparison.compare_with_record((0, 0), 0.001)
    comparison.add((100, 100), (0, 0))
    assert not comparison.proved


def test_the_latest_ticks_of_little_traffic_do_not_hide_a_worse_version():
    comparison = Comparison(0.01, BUDGET)
    for tick in range(100):
        comparison.add((0, 10), (int(tick % 5 == 0), 10))
    comparison.compare_with_record((comparison.old.failed, comparison.old.requests), 0.001)
    assert comparison.ceiling is not None
    assert comparison.ceiling < 0.05
