"""Decisions about migrations: pure, every bad history by name."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.database.migrations import history
from azora_ci.database.migrations.history import ExpectedMigrations, Migration, Row

START = datetime(2026, 11, 24, 11, 0, tzinfo=UTC)


def migration(name: str, sql: str = "SELECT 1;\n") -> Migration:
    return Migration(name, sql.encode())


def row(
    name: str, *, finished: bool = True, rolled_back: bool = False, sql: str = "SELECT 1;\n", at: int = 0, logs: str | None = None
) -> Row:
    began = START + timedelta(minutes=at)
    return Row(
        name=name,
        checksum=hashlib.sha256(sql.encode()).hexdigest(),
        started_at=began,
        finished_at=began + timedelta(seconds=1.5) if finished else None,
        rolled_back_at=began if rolled_back else None,
        steps=int(finished),
        logs=logs,
    )


def names(items: tuple[Row, ...] | tuple[Migration, ...]) -> list[str]:
    return [item.name for item in items]


def test_what_is_pending_is_what_the_table_lacks() -> None:
    plan = history.plan([migration("2_b"), migration("3_c"), migration("1_a")], [row("1_a")])
    assert (names(plan.applied), names(plan.pending)) == (["1_a"], ["2_b", "3_c"])
    assert history.refusal(plan) is None
    assert plan.late == ()


def test_an_empty_database_has_everything_pending() -> None:
    plan = history.plan([migration("1_a")], [])
    assert names(plan.pending) == ["1_a"]
    assert history.refusal(plan) is None


def test_a_failed_attempt_blocks_and_is_not_pending() -> None:
    plan = history.plan([migration("1_a"), migration("2_b")], [row("1_a", finished=False, logs="ERROR: no such table\n  0: frame\n")])
    assert (names(plan.failed), names(plan.pending)) == (["1_a"], ["2_b"])
    reason = history.refusal(plan)
    assert reason is not None
    assert "1_a: began 2026-11-24 11:00:00 UTC and did not finish: ERROR: no such table" in reason.what
    assert "frame" not in reason.what
    assert "migrate resolve --rolled-back" in reason.next_step


def test_an_attempt_ended_in_the_middle_says_so() -> None:
    assert "ended in the middle" in history.describe_failed(row("1_a", finished=False))


def test_a_rolled_back_attempt_is_pending_again() -> None:
    rows = [row("1_a", finished=False, rolled_back=True)]
    assert names(history.plan([migration("1_a")], rows).pending) == ["1_a"]
    again = history.plan([migration("1_a", "SELECT 2;\n")], [*rows, row("1_a", sql="SELECT 2;\n", at=1)])
    assert (names(again.applied), again.pending, again.failed, again.edited) == (["1_a"], (), (), ())


def test_an_edited_migration_is_refused_with_both_checksums() -> None:
    plan = history.plan([migration("1_a", "SELECT 2;\n"), migration("2_b")], [row("1_a")])
    reason = history.refusal(plan)
    assert reason is not None
    assert reason.title == "Applied migrations were edited"
    assert row("1_a").checksum[:12] in reason.what
    assert migration("1_a", "SELECT 2;\n").checksum[:12] in reason.what


@pytest.mark.parametrize(("applied", "released"), [("a\nb\n", "a\r\nb\r\n"), ("a\r\nb\r\n", "a\nb\n")])
def test_other_line_ends_are_no_edit(applied: str, released: str) -> None:
    assert history.plan([migration("1_a", released)], [row("1_a", sql=applied)]).edited == ()


def test_a_deleted_folder_is_refused() -> None:
    plan = history.plan([migration("1_a"), migration("3_c")], [row("1_a"), row("2_b")])
    reason = history.refusal(plan)
    assert (names(plan.deleted), reason and reason.title) == (["2_b"], "Applied migrations are gone from the release")


def test_an_older_release_is_behind_the_database_and_may_go_on() -> None:
    plan = history.plan([migration("1_a")], [row("1_a"), row("2_b")])
    assert (names(plan.ahead), plan.deleted, history.refusal(plan)) == (["2_b"], (), None)


def test_histories_that_diverged_are_refused() -> None:
    plan = history.plan([migration("1_a"), migration("2_hotfix")], [row("1_a"), row("3_c")])
    reason = history.refusal(plan)
    assert reason is not None
    assert reason.title == "Release and database have diverged"
    assert "3_c" in reason.what
    assert "2_hotfix" in reason.what


def test_a_late_migration_is_named() -> None:
    plan = history.plan([migration("1_a"), migration("2_b"), migration("3_c")], [row("1_a"), row("3_c")])
    assert (names(plan.late), history.refusal(plan)) == (["2_b"], None)


def test_applied_since_counts_what_finished_after_the_snapshot() -> None:
    rows = [row("3_c", at=9), row("1_a", at=-5), row("2_b", at=5), row("4_d", finished=False, at=10), row("5_e", rolled_back=True, at=11)]
    applied = history.applied_since(rows, START, rows)
    assert names(applied) == ["2_b", "3_c"]
    assert applied[0].seconds == 1.5


def test_applied_since_does_not_miss_what_a_slow_clock_recorded() -> None:
    applied = history.applied_since([row("1_a", at=-9), row("2_b", at=-5)], START, [row("1_a", at=-9), row("2_b", finished=False)])
    assert names(applied) == ["2_b"]


@given(st.sets(st.sampled_from("abcdefgh")), st.sets(st.sampled_from("abcdefgh")))
def test_every_migration_is_in_exactly_one_place(released: set[str], applied: set[str]) -> None:
    plan = history.plan(map(migration, released), map(row, applied))
    assert {*names(plan.applied)} == applied
    assert {*names(plan.pending)} == released - applied
    assert {*names(plan.deleted), *names(plan.ahead)} == applied - released
    assert plan.diverged == bool(plan.pending and plan.ahead)


@pytest.mark.parametrize(
    ("rows", "expected", "passed", "detail"),
    [
        ([row("1"), row("2")], ExpectedMigrations("left", 2, ("2",)), True, "2 migrations applied, left 2; the newest is 2"),
        ([row("1"), row("2"), row("3")], ExpectedMigrations("left", 2, ("2",)), True, "3 migrations applied, left 2; the newest is 3"),
        ([], ExpectedMigrations("left", 2), False, "0 migrations applied, left 2"),
        ([], history.AT_LEAST_ONE, False, "0 migrations applied, every release has at least 1"),
        ([row("1"), row("1", rolled_back=True)], ExpectedMigrations("left", 2), False, "1 migrations applied, left 2; the newest is 1"),
        ([row("1"), row("2", rolled_back=True)], ExpectedMigrations("left", 1, ("2",)), False, "not there: 2"),
        ([row("1"), row("3")], ExpectedMigrations("left", 2, ("2",)), False, "2 migrations applied, left 2; not there: 2; the newest is 3"),
        ([row("1"), row("2", finished=False)], ExpectedMigrations("left", 1), False, "begun and not finished: 2"),
        ([row("1", finished=False, rolled_back=True), row("1")], ExpectedMigrations("left", 1), True, "1 migrations applied"),
    ],
)
def test_a_table_is_compared_with_what_was_left(rows, expected, passed, detail):
    comparison = history.compare_with_expected(rows, expected)
    assert (comparison.passed, detail in comparison.detail) == (passed, True), comparison
