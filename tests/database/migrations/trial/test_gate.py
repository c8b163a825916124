"""What is expected of production is said with what the copy cannot know."""

from __future__ import annotations

from azora_ci.database.migrations.trial.gate import Tried

EVIDENCE = {
    "how": "full copy", "reason": None, "passed": True, "statements": [{}], "statement_seconds": 2.5, "seconds": 4.0,
    "blocked": [{"table": "t", "mode": "AccessExclusiveLock", "seconds": 2.4}], "rewritten": ["t"],
    "rows": [{"table": "t", "inserted": 0, "updated": 1200, "deleted": 3}],
}  # fmt: skip


def test_seconds_of_the_full_copy_are_the_least() -> None:
    assert [line.removeprefix("tried on a copy (full copy): ") for line in Tried(EVIDENCE).expectations()] == [
        "1 statements, 2.50 s in the server, 4.0 s in all",
        "nobody could read or write t for 2.40 s (AccessExclusiveLock)",
        "t: 1,200 rows updated, 3 rows deleted",
        "rewritten: t",
        "production waits for its disk and has users: it may take several times as long",
    ]


def test_nothing_is_claimed_of_rows_that_were_not_there() -> None:
    lines = Tried({**EVIDENCE, "how": "schema only", "rows": []}).expectations()
    assert [line.removeprefix("tried on a copy (schema only): ") for line in lines] == [
        "1 statements; how many seconds they take in production is not known: there were no rows",
        "nobody could read or write t (AccessExclusiveLock)",
        "rewritten: t",
    ]


def test_what_was_not_tried_is_said() -> None:
    assert Tried({"how": "off", "reason": "a test", "files": []}).expectations() == ["no trial: off, a test"]
