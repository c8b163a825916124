"""May we go back, until when, and how."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.record import evidence
from azora_ci.rollback.window import check, plan

DONE = datetime(2026, 11, 24, 11, 40, tzinfo=UTC)
RECORD = {
    "rollback_available": True,
    "rollback_deadline": "2026-11-24T12:40:00.000Z",
    "previous_version": "v1.2.2",
    "previous_deployment_id": "1763000000-0f0f0f",
    "migrations_applied": 2,
    "database_backup": {"location": "s3://b/k", "proof": {"depth": "full"}},
}


def test_deadline_is_timestamp_plus_window():
    assert evidence.rollback_deadline("2026-11-24T11:40:00.125Z", 60) == "2026-11-24T12:40:00.125Z"
    assert evidence.rollback_deadline("2026-11-24T12:40:00+01:00", 30) == "2026-11-24T12:10:00.000Z"


def test_deadline_needs_a_time_zone():
    with pytest.raises(ValueError, match="time zone"):
        evidence.rollback_deadline("2026-11-24T11:40:00", 60)


@given(st.integers(1, 10080), st.integers(-20000, 20000))
def test_window_is_open_exactly_until_its_deadline(window, minutes_later):
    record = {**RECORD, "rollback_deadline": evidence.rollback_deadline("2026-11-24T11:40:00.000Z", window)}
    verdict = check(record, DONE + timedelta(minutes=minutes_later))
    assert verdict.allowed is (minutes_later < window)


def test_reasons_hold_the_numbers():
    assert check(RECORD, DONE).reason == "the window is open until 2026-11-24T12:40:00.000Z, 60 minutes from now"
    late = check(RECORD, DONE + timedelta(minutes=75))
    assert late.reason == "the window closed at 2026-11-24T12:40:00.000Z, 15 minutes ago"


def test_nothing_to_go_back_to():
    verdict = check({**RECORD, "rollback_available": False}, DONE)
    assert not verdict.allowed
    assert "no previous version" in verdict.reason
    assert not check({**RECORD, "rollback_deadline": None}, DONE).allowed


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        ({"rollout_status": "completed", "previous": {"version": "v1"}, "rollback_available": True}, True),
        ({"rollout_status": "completed", "previous": None, "rollback_available": True}, False),
        ({"rollout_status": "completed", "previous": {"version": "v1"}, "rollback_available": False}, False),
        ({"rollout_status": "rolled_back", "previous": {"version": "v1"}, "rollback_available": True}, False),
        ({}, False),
    ],
)
def test_available_needs_a_completed_rollout_and_a_kept_previous_version(rollout, expected):
    assert evidence.can_go_back(rollout) is expected


def test_way_back():
    rollback_plan = plan(RECORD)
    assert (rollback_plan.version, rollback_plan.deployment_id) == ("v1.2.2", "1763000000-0f0f0f")
    assert rollback_plan.restore_useful
    assert rollback_plan.restore_possible


def test_restore_is_of_no_use_without_migrations_and_not_possible_without_proof():
    assert not plan({**RECORD, "migrations_applied": 0}).restore_useful
    assert plan({**RECORD, "migrations_applied": None}).restore_useful  # the number of migrations is unknown, so a restore may be needed
    assert not plan({**RECORD, "database_backup": None}).restore_possible
    assert not plan({**RECORD, "database_backup": {"location": "s3://b/k", "proof": {"depth": "none"}}}).restore_possible
    assert plan({**RECORD, "rollback_available": False}).version is None
