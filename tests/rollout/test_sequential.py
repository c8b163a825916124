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
    st.sampled_from([(0, 0), (0, 5000), (4000, 5000)]),
    st.booleans(),
)
def test_the_expectation_of_a_factor_is_at_most_one_wherever_the_null_holds(sizes, old_share, portion, margin, record, known, alone):
    share = portion * min(1.0, old_share + margin)
    comparison = Comparison(margin, BUDGET, old_share if alone else None, known)
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
    share: float, old_share: float, generator: random.Random, *, clump: int = 1, requests: int = 10, times: int = 2, ticks: int = 60
) -> int | None:
    """Return the tick at which a new version is found to be worse, of a rollout whose old version gets ``times`` the requests."""
    comparison = Comparison(0.01, BUDGET, known=(int(1000 * old_share), 1000))

    def failures(number: int, probability: float) -> int:
        return clump * sum(generator.random() < probability for _ in range(number // clump))

    for tick in range(ticks):
        comparison.add((failures(requests, share), requests), (failures(times * requests, old_share), times * requests))
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


@pytest.mark.parametrize(("old_share", "ticks"), [(0.0, 12), (0.02, 20), (0.05, 33)])
def test_a_rise_of_five_points_above_the_limit_is_found_about_as_soon_as_can_be(old_share, ticks):
    generator = random.Random(2)
    found = sorted(found_at(old_share + 0.06, old_share, generator, times=19, ticks=180) or 1000 for _ in range(200))
    assert found[100] <= ticks
    assert found[198] <= 180, "99 % are found by the end"


def test_what_was_known_before_makes_the_first_tick_count():
    def growth(comparison: Comparison) -> float:
        """Return what the first tick of a version 5 points worse than allowed adds to the evidence on average."""
        return math.fsum(
            probability(failed, 10, 0.11) * probability(old_failed, 190, 0.05) * comparison._factors((failed, 10), (old_failed, 190))[1]
            for failed in range(11)
            for old_failed in range(40)
        )

    assert growth(Comparison(0.01, BUDGET, known=(500, 10_000))) > growth(Comparison(0.01, BUDGET)) + 0.1


def test_failures_of_one_moment_are_half_a_proof_at_most():
    comparison = Comparison(0.01, BUDGET)
    comparison.add((9, 10), (0, 190))
    assert sum(comparison.wealth) <= BUDGET**-0.5


def test_lone_failures_are_no_sign_of_clumps_nor_is_chance():
    lone, by_chance = Comparison(0.01, BUDGET), Comparison(0.01, BUDGET)
    generator = random.Random(1)
    for tick in range(40):
        lone.add((tick % 7 == 0, 10), (tick % 3 == 0, 190))
        by_chance.add((sum(generator.random() < 0.1 for _ in range(10)), 10), (sum(generator.random() < 0.05 for _ in range(190)), 190))
    assert lone.design_effect == 1.0
    assert by_chance.design_effect < 1.1


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
