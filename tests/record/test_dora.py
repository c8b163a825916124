"""DORA's five measures, each against figures that were worked out by hand; what records do not say is not known, never zero."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from azora_ci.core import schemas
from azora_ci.record import dora
from azora_ci.record.history import kind_of
from tests.support.years import aborted, chained, deployed, failed_smoke, history, stopped, taken_back

MONDAY = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
PLACE = ("s3://bucket/records/production/1/1.json", "0" * 64)
MINUTE = 60.0


def day(number: float) -> datetime:
    return MONDAY + timedelta(days=number)


def measured(*records, days: float = 28) -> dora.Measures:
    for record in records:
        assert schemas.problems(record, kind_of(record)) == []
    return dora.measures(dora.deliveries(records), MONDAY, MONDAY + timedelta(days=days))


def lead(record, seconds):
    return record | {"metrics": record["metrics"] | {"lead_time_seconds": seconds}}


def test_frequency_counts_what_users_saw_from_the_first_record_on():
    records = [deployed(day(0)), aborted(day(1)), failed_smoke(day(2)), stopped(day(3)), deployed(day(13))]
    found = measured(*records, days=14)
    assert (found.reached, found.stopped, found.frequency) == (4, 1, 2.0)
    late = dora.measures(dora.deliveries(records), MONDAY - timedelta(days=100), day(14))
    assert late.frequency == 2.0  # the archive is 14 days old, not 114
    assert dora.measures(dora.deliveries(records), day(100), day(107)).frequency == 0.0  # nobody deployed, and that is known
    assert measured().frequency is None


def test_lead_time_is_the_median_of_what_got_all_traffic():
    records = [
        lead(deployed(day(0)), 100.0), lead(deployed(day(1)), 300.0), lead(deployed(day(2)), 900.0), lead(aborted(day(3)), 5.0),
        lead(deployed(day(4)), None), lead(deployed(day(5)), -7.0),
    ]  # fmt: skip
    found = measured(*records)
    assert (found.lead, found.without_lead) == (300.0, 2)
    assert measured(lead(deployed(day(0)), None)).lead is None


def test_failures_are_what_went_back_failed_its_smoke_tests_or_was_rolled_back():
    first = deployed(day(0))
    records = [first, aborted(day(1)), failed_smoke(day(2)), deployed(day(3)), stopped(day(4)), taken_back(first, day(0.5), PLACE)]
    found = measured(*records)
    assert (found.reached, found.failed, found.failure) == (4, 3, 0.75)
    assert measured(stopped(day(0))).failure is None
    reasons = [delivery.failure for delivery in dora.deliveries(records)]
    assert reasons == ["rolled back", "taken back by the rollout: 4 of 30 probes failed", "smoke tests failed", None, None]


@pytest.mark.parametrize(
    ("records", "seconds", "lasting"),
    [
        ([aborted(day(0))], 5.01 * MINUTE + 2.0, 0),  # a stage of 5.01 minutes, 2 s to safety
        ([deployed(day(0)), taken_back(deployed(day(0)), day(0) + timedelta(minutes=12), PLACE)], (30 + 12) * MINUTE, 0),
        ([failed_smoke(day(0)), deployed(day(1))], (24 * 60 + 30) * MINUTE, 0),  # the next success mends it
        ([failed_smoke(day(0)), aborted(day(1)), deployed(day(2))], (2880 + 30 + 5.01) / 2 * MINUTE + 1.0, 0),  # median of two
        ([failed_smoke(day(0)), stopped(day(1))], None, 1),
        ([deployed(day(0))], None, 0),
    ],
)
def test_recovery_lasts_from_the_first_traffic_until_users_are_without_the_fault(records, seconds, lasting):
    found = measured(*records)
    assert found.recovery == (None if seconds is None else pytest.approx(seconds, abs=0.01))
    assert found.lasting == lasting


def test_a_return_that_was_not_proved_is_none():
    record = aborted(day(0))
    record["rollout"]["abort"]["proved"] = False
    assert (measured(record).recovery, measured(record).lasting) == (None, 1)
    back = taken_back(deployed(day(0)), day(0.1), PLACE) | {"proved": False}
    assert measured(deployed(day(0)), back).recovery is None


def test_rework_is_an_emergency_or_what_follows_a_failure():
    urgent = deployed(day(4)) | {"emergency": {"reason": "login fails", "by": "ada", "review_due": "2026-03-07T12:00:00.000Z"}}
    records = [deployed(day(0)), aborted(day(1)), stopped(day(1.5)), deployed(day(2)), deployed(day(3)), urgent, deployed(day(5))]
    found = measured(*records)
    assert (found.reached, found.reworked, found.rework) == (6, 2, pytest.approx(2 / 6))
    assert measured().rework is None


def test_of_several_attempts_one_deployment_counts_with_what_users_saw():
    failed, again = failed_smoke(day(0)), deployed(day(0) + timedelta(hours=1))
    again |= {"deployment_id": failed["deployment_id"], "run_attempt": 2}
    found = measured(failed, again)
    assert (found.reached, found.failed, found.lasting, found.recovery) == (1, 1, 0, 90 * MINUTE)
    gate = stopped(day(0))
    passed = deployed(day(0) + timedelta(hours=1)) | {"deployment_id": gate["deployment_id"], "run_attempt": 2}
    assert (measured(gate, passed).reached, measured(gate, passed).failed, measured(gate, passed).stopped) == (1, 0, 0)


def test_every_deployment_is_in_one_month_and_empty_months_are_not_zero():
    made = dora.deliveries([record.document for record in chained(history(150))])
    end = made[-1].ended_at + timedelta(days=40)
    monthly = dora.months(made, end, 24)
    assert sum(month.reached + month.stopped for month in monthly) == len(made)
    assert [(month.begin.day, month.begin.hour) for month in monthly] == [(1, 0)] * 24
    assert all(a.end == b.begin for a, b in pairwise(monthly)) and monthly[-1].end == end
    empty = [month for month in monthly if not month.reached]
    assert empty and {(month.lead, month.failure, month.recovery, month.rework) for month in empty} == {(None,) * 4}
    assert monthly[0].frequency is None, "before the first record"


def test_rates_agree_with_the_shares_that_the_history_was_made_with():
    made = dora.deliveries(history(1000))
    found = dora.measures(made, made[0].ended_at, made[-1].ended_at + timedelta(days=1))
    assert 0.05 < found.failure < 0.2 and 0.02 < found.rework < 0.2 and 0.02 < found.stopped / 1000 < 0.09
    assert found.lead and 10_000 < found.lead < 80_000 and found.lasting <= 1
