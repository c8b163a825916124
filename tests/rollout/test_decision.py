"""Stages, statistics, and what happens next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core.config import start_groups
from azora_ci.core.pipeline import instances_at
from azora_ci.health.answers import NEW, OLD
from azora_ci.health.traffic import Counters, percentile, slower_than
from azora_ci.rollout import report
from azora_ci.rollout.decision import (
    Action,
    Limits,
    Pair,
    StageProgress,
    Traffic,
    Trial,
    both_trials,
    judge_traffic,
    next_action,
    stages,
    synthetic_requests,
    trials,
    uncounted_traffic,
)
from azora_ci.rollout.statistics import share_bounds
from azora_ci.rollout.verdict import HealthVerdict

LIMITS = Limits(error_points=1.0, latency_factor=3.0, minimum_requests=149)


def test_the_plan_is_the_guides():
    plan = [(stage.name, stage.percent, stage.seconds) for stage in stages((5, 10, 15), first=False)]
    assert plan == [("canary", 5, 300), ("progressive", 50, 600), ("full", 100, 900)]


def test_a_first_deployment_shares_traffic_with_nobody():
    assert [stage.name for stage in stages((5, 10, 15), first=True)] == ["full"]


@pytest.mark.parametrize(
    ("percent", "total", "new"), [(5, 1, 1), (5, 20, 1), (5, 21, 2), (50, 1, 1), (50, 3, 2), (50, 4, 2), (100, 7, 7), (5, 100, 5)]
)
def test_instances_are_the_share_rounded_up_and_at_least_one(percent, total, new):
    assert instances_at(percent, total) == new


def test_services_start_after_what_they_depend_on():
    assert start_groups({"web": ["api", "auth"], "api": ["auth"], "auth": [], "mail": []}) == [["auth", "mail"], ["api"], ["web"]]
    with pytest.raises(ValueError, match="circle"):
        start_groups({"a": ["b"], "b": ["a"]})


# --- statistics --------------------------------------------------------------------------------------------------------


def binomial_tail(at_least: int, total: int, share: float) -> float:
    return math.fsum(math.comb(total, failed) * share**failed * (1 - share) ** (total - failed) for failed in range(at_least, total + 1))


@given(st.integers(1, 120).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_bounds_are_those_of_the_binomial_distribution(counts):
    failed, total = counts
    lower, upper = share_bounds(failed, total, 0.99)
    assert 0 <= lower <= failed / total <= upper <= 1
    if failed:  # at the lower bound, so many failures or more come with probability 1 %
        assert binomial_tail(failed, total, lower) == pytest.approx(0.01, rel=1e-6)
    if failed < total:
        assert 1 - binomial_tail(failed + 1, total, upper) == pytest.approx(0.01, rel=1e-6)


def test_bounds_of_large_counts_are_close_to_the_share():
    lower, upper = share_bounds(5_000, 1_000_000, 0.99)
    assert 0.0048 < lower < 0.005 < upper < 0.0052


def counters(requests: int, errors: int = 0, failovers: int = 0, milliseconds: float = 20.0) -> Counters:
    buckets = tuple((bound, requests if bound >= milliseconds else 0) for bound in (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0))
    return Counters(requests, errors, failovers, buckets=buckets)


def part(count: Counters, tick: int, ticks: int) -> Counters:
    """Return what came in one of some ticks, over which a count is spread evenly."""

    def total(number: int) -> Counters:
        buckets = tuple((bound, below * number // ticks) for bound, below in count.buckets)
        names = ("requests", "errors", "failovers", "not_found")
        return Counters(**{name: getattr(count, name) * number // ticks for name in names}, buckets=buckets)

    return total(tick + 1).since(total(tick))


def judged(
    new: Counters,
    old: Counters | None,
    meanwhile: Counters | None = None,
    *,
    ticks: int = 10,
    alone: bool = False,
    doubt: Sequence[str] = (),
    limits: Limits = LIMITS,
) -> Traffic:
    """Return the verdict on a stage after some ticks. ``old``: since the rollout began, ``meanwhile``: in the stage."""
    trial = Trial(limits, 1, Counters() if old is not None else None)
    if meanwhile is None:
        meanwhile = Counters() if alone else old or Counters()
    if old is not None and meanwhile != old:
        trial.add(Counters(), old, alone=False)
    for tick in range(ticks):
        trial.add(part(new, tick, ticks), part(meanwhile, tick, ticks), alone=alone)
    return judge_traffic({"api": Pair(trial, new, old, meanwhile)}, limits, doubt)


counts = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda pair: counters(sum(pair), pair[0]))


@pytest.mark.parametrize(
    ("new", "old", "ticks", "aborts"),
    [
        (counters(1, 1), counters(1000), 1, False),  # one failure in one request proves nothing
        (counters(5, 5), counters(1000), 1, False),  # they may have one cause
        (counters(40, 40), counters(1000), 1, True),  # no cause takes so many
        (counters(4, 4), counters(1000), 4, True),
        (counters(200, 3), counters(4000), 10, False),
        (counters(200, 20), counters(4000), 10, True),
        (counters(200, 20), counters(4000, 400), 10, False),  # the old version is no better
        (counters(200, 0, failovers=20), counters(4000), 10, True),  # made good by failover, still failed
        (counters(20, 20), counters(0), 10, False),  # nothing to compare with
        (counters(10_000, 90), counters(10_000), 10, False),  # below one point
        (counters(100_000, 1400), counters(100_000), 10, True),
        (counters(200, 150), counters(4000, 2000), 10, True),
        (counters(200, 100), counters(4000, 2000), 10, False),
    ],
)
def test_errors_abort_when_there_are_enough_samples_to_say_so(new, old, ticks, aborts):
    verdict = judged(new, old, ticks=ticks)
    assert bool(verdict.abort) is aborts
    if aborts:
        assert "99% confidence for the whole rollout" in verdict.abort[0]
        assert f"{new.failed} of {new.requests}" in verdict.abort[0]


def test_without_an_old_version_the_share_itself_is_judged():
    assert judged(counters(100, 30), None).abort != ()
    assert judged(counters(200), None) == Traffic()


def test_latency_aborts_beyond_the_factor_and_not_for_scheduling_noise():
    old = counters(1000, milliseconds=40.0)
    assert judged(counters(200, milliseconds=640.0), old).abort != ()
    assert judged(counters(200, milliseconds=80.0), old).abort == ()
    assert judged(counters(200, milliseconds=80.0), counters(1000, milliseconds=10.0)).abort == ()  # 8 times, but 70 ms


def test_the_reason_for_slowness_is_a_sentence_with_both_versions_numbers():
    slow_and_left = replace(counters(200, milliseconds=320.0), given_up=20).with_the_slowest()
    old = counters(1000, milliseconds=40.0)
    trial = Trial(LIMITS, 1, Counters())
    for tick in range(10):
        trial.add(part(slow_and_left, tick, 10), part(old, tick, 10), alone=False)
    (reason,) = judge_traffic({"api": Pair(trial, slow_and_left, old)}, LIMITS).abort
    assert reason == (
        "api: new version's p95 is 464 ms, old 39 ms; 220 of 220 requests took longer than 139 ms, the limit (factor 3, "
        "at least 100 ms more), or were given up, old 0 of 1000; more than 5 points worse, with 99% confidence for the whole rollout"
    )


def test_a_trouble_that_befalls_both_versions_at_once_is_not_the_new_ones():
    long_before = counters(5000, 4)  # of the old version, since the rollout began
    assert judged(counters(40, 30), long_before, counters(60, 4)).abort != ()
    assert judged(counters(40, 30), long_before, counters(60, 44)) == Traffic(missing={("api", NEW): 109})
    slow, fast = counters(200, milliseconds=640.0), counters(5000, milliseconds=20.0)
    assert judged(slow, fast, counters(200, milliseconds=20.0)).abort != ()
    assert judged(slow, fast, counters(200, milliseconds=640.0)).abort == ()


def test_the_comparison_is_told_with_both_counts_of_the_old_version():
    (reason,) = judged(counters(40, 30), counters(5000, 4), counters(60, 1)).abort
    assert "new version failed 30 of 40 requests (75.0%), old 4 of 5000 (0.1%), of which in this stage 1 of 60; more than 1 p" in reason


def test_where_no_old_traffic_runs_beside_the_record_is_compared_with_and_the_reason_says_so():
    assert judged(counters(2000, 50), counters(5000, 100), alone=True).abort == ()
    (reason,) = judged(counters(2000, 160), counters(5000, 100), alone=True).abort
    assert "no old traffic runs beside it, it is compared with the old version's record, at most 2." in reason
    assert reason.endswith("%: what troubles both versions is held against it")
    (reason,) = judged(counters(200, milliseconds=640.0), counters(5000), alone=True).abort
    assert "no old traffic runs beside it" in reason


def test_users_and_our_own_requests_share_one_budget():
    of_users, own = both_trials(LIMITS, {"api": Counters(), "auth": Counters(1000, 50, ours=200, ours_failed=4)})
    assert (of_users["auth"].errors.known, own["auth"].errors.known) == ((50, 1000), (4, 200))
    whole = Trial(LIMITS, 1, Counters()).errors.budget
    assert sum(trial.errors.budget for tests in (of_users, own) for trial in tests.values()) == pytest.approx(whole)


def test_eight_users_among_149_requests_decide_when_half_of_them_fail():
    new, old = replace(counters(8, 4), ours=141), replace(counters(2000), ours=0)
    trial = Trial(LIMITS, 1, Counters())
    for tick in range(8):
        trial.add(Counters(1, tick % 2, ours=18), part(old, tick, 8), alone=False)
    verdict = judge_traffic({"api": Pair(trial, new, old)}, LIMITS)
    assert "failed 4 of 8 requests (50.0%)" in verdict.abort[0]
    assert verdict.missing == {}, "ours make up the number of samples"


def test_404_answers_are_judged_when_a_limit_is_configured():
    new, old = replace(counters(400), not_found=80), replace(counters(4000), not_found=40)
    judging = replace(LIMITS, not_found_points=5.0)
    assert judged(new, old).abort == ()
    (reason,) = judged(new, old, limits=judging).abort
    assert reason.startswith("api: new version answered 80 of 400 requests with 404 (20.0%), old 40 of 4000 (1.0%); more than 5 points")
    assert judged(new, None, limits=judging).abort == (), "no number of 404 answers is right in itself"
    assert judged(new, replace(old, not_found=800), limits=judging).abort == ()
    assert judged(replace(counters(8000), not_found=1600), old, alone=True, limits=judging).abort != ()
    assert "404 answers: more than 5 points" in judging.test


def test_judging_404_answers_takes_a_part_of_the_same_budget():
    plain, judging = Trial(LIMITS, 1, Counters()), Trial(replace(LIMITS, not_found_points=5.0), 1, Counters())
    assert judging.not_found is not None
    assert judging.errors.budget + judging.not_found.budget + judging.record_budget == pytest.approx(plain.errors.budget)
    assert plain.errors.budget + plain.slow.budget + 2 * plain.record_budget == pytest.approx(0.01)


def test_an_error_budget_is_shared_by_services_and_a_smaller_one_asks_for_more():
    new, old = counters(60, 5), counters(1000)
    assert judged(new, old).abort != ()
    assert judged(new, old, limits=replace(LIMITS, false_abort_percent=0.01)).abort == ()
    assert Trial(LIMITS, 4, Counters()).errors.budget == pytest.approx(Trial(LIMITS, 1, Counters()).errors.budget / 4)


def test_traffic_is_not_judged_of_a_service_whose_old_version_fails_its_probes():
    assert len(judged(counters(40, 30), counters(5000)).abort) == 1
    verdict = judged(counters(40, 30), counters(5000), doubt={"api"})
    assert (len(verdict.abort), len(verdict.doubtful)) == (0, 1)


def test_latency_of_too_few_requests_is_not_judged():
    verdict = judged(counters(100, milliseconds=640.0), counters(1000))
    assert verdict.abort == ()
    assert verdict.missing == {("api", NEW): 49}


def test_missing_samples_are_named_per_service_and_side():
    trial = Trial(LIMITS, 2, Counters())
    pairs = {"api": Pair(trial, counters(140), counters(10)), "auth": Pair(trial, counters(149), counters(149))}
    verdict = judge_traffic(pairs, LIMITS)
    assert verdict.missing == {("api", NEW): 9, ("api", OLD): 139}


def test_percentiles_are_linear_inside_a_bucket():
    assert percentile(((10.0, 50), (20.0, 100)), 0.95) == pytest.approx(19.0)
    assert percentile(((10.0, 100), (20.0, 100)), 0.5) == pytest.approx(5.0)
    assert percentile((), 0.95) is None
    assert slower_than(((10.0, 50), (20.0, 90), (40.0, 100)), 15.0) == (10, 100)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_a_higher_share_never_has_a_lower_percentile(counts):
    total, buckets = 0, []
    for number, count in enumerate(counts):
        total += count
        buckets.append((float(10 * (number + 1)), total))
    percentiles = [percentile(buckets, share) for share in (0.1, 0.5, 0.9, 0.95, 1.0)]
    assert all((lower is None and higher is None) or lower <= higher for lower, higher in pairwise(percentiles))


def test_counters_since_a_moment_survive_a_restart_of_the_edge():
    before, after = counters(100, 5), counters(130, 6)
    assert after.since(before).requests == 30
    assert after.since(before).errors == 1
    assert counters(7).since(before) == counters(7)
    assert counters(3).plus(counters(4, 1)).requests == 7


def test_synthetic_requests_make_up_what_users_do_not_send():
    assert synthetic_requests(0, 500, elapsed=10, left=20, interval=10) == 0
    assert synthetic_requests(100, 0, elapsed=0, left=60, interval=10) == 0  # first wait for the users' own requests
    assert synthetic_requests(100, 0, elapsed=10, left=50, interval=10) == 20
    assert synthetic_requests(100, 50, elapsed=10, left=50, interval=10) == 0  # users will send 250 more
    assert synthetic_requests(100, 0, elapsed=70, left=-10, interval=10) == 100  # held: all at once


@given(counts, counts)
def test_what_is_counted_after_a_moment_is_what_came_since(before, after):
    assert before.plus(after) == after.plus(before)
    since = before.plus(after).since(before)
    if after.requests:
        assert (since.requests, since.errors) == (after.requests, after.errors)
    assert 0 <= since.failed <= since.requests


@given(st.integers(-5, 500), st.integers(0, 5000), st.floats(0, 600), st.floats(-100, 600), st.sampled_from([0.25, 1.0, 10.0]))
def test_no_more_synthetic_requests_are_sent_than_are_missing(missing, observed, elapsed, remaining, interval):
    requests = synthetic_requests(missing, observed, elapsed=elapsed, left=remaining, interval=interval)
    assert 0 <= requests <= max(0, missing)
    if missing > 0 and observed == 0 and elapsed >= interval:
        assert requests > 0  # otherwise nothing replaces the missing requests


# --- what happens next -------------------------------------------------------------------------------------------------

FINE, LACKING = Traffic(), Traffic(missing={("api", NEW): 9})


@pytest.mark.parametrize(
    ("elapsed", "health", "traffic", "inconclusive", "action"),
    [
        (10, HealthVerdict(), FINE, "abort", Action.WATCH),
        (60, HealthVerdict(), FINE, "abort", Action.ADVANCE),
        (0, HealthVerdict(abort=("x",)), FINE, "pass", Action.ABORT),
        (0, HealthVerdict(), Traffic(abort=("x",)), "pass", Action.ABORT),
        (0, HealthVerdict(hold=("x",)), Traffic(abort=("x",)), "pass", Action.WATCH),  # both versions fail: nobody is to blame
        (60, HealthVerdict(hold=("x",)), FINE, "pass", Action.HOLD),
        (90, HealthVerdict(hold=("x",)), FINE, "pass", Action.ABORT),
        (0, HealthVerdict(), Traffic(doubtful=("x",)), "pass", Action.WATCH),
        (60, HealthVerdict(), Traffic(doubtful=("x",)), "pass", Action.HOLD),
        (90, HealthVerdict(), Traffic(doubtful=("x",)), "pass", Action.ABORT),
        (10, HealthVerdict(), LACKING, "abort", Action.WATCH),
        (60, HealthVerdict(), LACKING, "pass", Action.HOLD),
        (90, HealthVerdict(), LACKING, "pass", Action.ADVANCE),
        (90, HealthVerdict(), LACKING, "abort", Action.ABORT),
        (60, HealthVerdict(notes=("old",)), FINE, "abort", Action.ADVANCE),
        (10, HealthVerdict(failing=("x",)), FINE, "abort", Action.WATCH),
        (60, HealthVerdict(failing=("x",)), FINE, "pass", Action.HOLD),  # no stage ends on a failed probe
        (90, HealthVerdict(failing=("x",)), FINE, "pass", Action.ABORT),
        (
            60,
            HealthVerdict(),
            uncounted_traffic({"api": Trial(LIMITS, 1, Counters())}, LIMITS),
            "pass",
            Action.HOLD,
        ),  # counters never read are no pass
    ],
)
def test_what_happens_next(elapsed, health, traffic, inconclusive, action):
    decision = next_action(StageProgress(elapsed, 60, 30), health, traffic, inconclusive=inconclusive)
    assert decision.action is action
    assert decision.reason


@given(
    st.floats(0, 1000),
    st.builds(HealthVerdict, *[st.sampled_from([(), (word,)]) for word in ("because a", "because h", "because n", "because f")]),
    st.sampled_from([FINE, LACKING, Traffic(abort=("t",)), Traffic(doubtful=("d",))]),
    st.sampled_from(["pass", "abort"]),
)
def test_no_verdict_with_a_reason_to_abort_ever_advances(elapsed, health, traffic, inconclusive):
    decision = next_action(StageProgress(elapsed, 60, 30), health, traffic, inconclusive=inconclusive)
    if health.abort or health.hold or health.failing or traffic.abort or traffic.doubtful or elapsed < 60:
        assert decision.action is not Action.ADVANCE
    if elapsed >= 90:
        assert decision.action in {Action.ADVANCE, Action.ABORT}
    if elapsed >= 60 and traffic.missing and not (health.abort or health.hold or health.failing):
        assert "inconclusive" in decision.reason  # never silent
    if not health.abort and not (traffic.abort and not health.hold):
        assert all(text in decision.reason for text in health.hold)
    if decision.action is Action.ADVANCE:
        assert all(text in decision.reason for text in health.notes)


def test_counters_that_were_never_read_lack_everything():
    missing = {("api", NEW): 149, ("api", OLD): 149, ("auth", NEW): 149}
    assert uncounted_traffic(trials(LIMITS, {"api": Counters(), "auth": None}), LIMITS) == Traffic(missing=missing)


def test_traffic_that_is_not_judged_while_the_old_version_fails_is_said():
    decision = next_action(
        StageProgress(10, 60, 30), HealthVerdict(hold=("both fail",)), Traffic(abort=("api: 5 of 9",)), inconclusive="pass"
    )
    assert decision.reason == "both fail; not judged while the old version fails too: api: 5 of 9"


@given(counts, counts)
def test_a_version_that_fails_no_more_often_than_the_old_one_is_not_taken_back(new, old):
    if new.failed_share <= old.failed_share:
        assert judged(new, old).abort == ()


# --- what people read --------------------------------------------------------------------------------------------------


def test_the_plan_names_order_shares_and_limits():
    lines = report.plan_lines(
        stages((5, 10, 15), first=False), new="v1.1.0", old="v1.0.0", limits=LIMITS, counts={"auth": [1, 1, 2], "api": [1, 2, 4]}
    )
    assert lines[0] == "Plan: v1.0.0 -> v1.1.0, services in this order: auth, api"
    assert lines[2] == "  progressive: 50 % of traffic for 10 minutes; new instances: auth 1, api 2"
    assert "back to v1.0.0 when: an endpoint keeps failing; or the new" in lines[-1]
    counts = {"api": [1, 2, 4], "mailer": [1, 1, 2]}
    *_, rest, back, last = report.plan_lines(
        stages((5, 10, 15), first=False), new="v1.1.0", old="v1.0.0", limits=LIMITS, counts=counts, workers=["mailer"]
    )
    assert "workers (mailer): those of v1.0.0 run until the promotion" in rest
    assert "going back stops the new ones, then starts the old ones again" in back
    assert "; a worker ends, is started again or is unhealthy; or" in last


def test_the_outlook_tells_what_a_stage_can_notice():
    trial, (canary, *_) = Trial(LIMITS, 1, Counters()), stages((5, 10, 15), first=False)
    (line,) = report.outlook_lines(canary, {"api": trial}, 10)
    assert "api: no traffic counted yet; noticed: limit + 20 points after about" in line
    for _ in range(10):
        trial.add(counters(10), counters(190, 4), alone=False)
    (line,) = report.outlook_lines(canary, {"api": trial}, 10)
    assert "api: about 300 requests of the new version expected; noticed: limit + 20 points after about 2" in line
    assert line.endswith(" requests, not within this stage")
    assert "limit + 5 points after about 2" in line  # simulated: 200
    assert line.count("not within this stage") == 1


def test_a_stage_table_has_a_row_per_version():
    evidence = {
        "stage": "canary",
        "traffic_percentage": 5,
        "duration_minutes": 5.01,
        "status": "healthy",
        "probes": {"total": 200, "failed": 3},
        "availability": 0.99,
        "traffic": {"v1.1.0": report.traffic_evidence(counters(10, 1), 5), "v1.0.0": report.traffic_evidence(Counters())},
    }
    table = report.stage_table(evidence)
    assert "probes 197 of 200 healthy (98.50%)" in table
    assert "| v1.1.0 | 5 % | 10 | 1 | 0 | 0 | 10.00% | 0 | 15 ms | 20 ms |" in table
    assert "| v1.0.0 | – | 0 | 0 | 0 | 0 | 0.00% | 0 | – | – |" in table


def test_a_weight_is_the_least_that_a_release_has_on_any_route():
    weights = {"/api": {"api-1-a": 95, "api-2-b": 5}, "/auth": {"auth-1-a": 97, "auth-2-b": 3}}
    assert report.weight_of("2-b", weights) == 3
    assert report.weight_of("1-a", {"/api": {"api-2-b": 100}}) == 0
    assert report.weight_of("2-b", {}) is None
