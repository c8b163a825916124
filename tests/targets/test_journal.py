"""The journal: what a rerun after any crash reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.targets.journal import ABORTED, Journal, replay

OLD, NEW = "1764000000-aaaaaa", "1764000100-bbbbbb"
AT = "2026-11-24T11:00:00.000Z"


def begin(name: str, previous: str | None) -> dict[str, object]:
    return {"event": "begin", "deployment_id": name, "version": "v1", "digests": {}, "previous": previous}


def promoted(name: str, previous: str | None) -> list[dict[str, object]]:
    return [begin(name, previous), {"event": "weight", "deployment_id": name, "percent": 100}, {"event": "promote", "deployment_id": name}]


def history(*entries: dict[str, object]):
    return replay(json.dumps(entry) for entry in entries)


def test_what_was_promoted_last_serves_and_the_one_before_is_the_way_back():
    replayed = history(*promoted(OLD, None), *promoted(NEW, OLD))
    assert replayed.serving == NEW
    assert replayed.before(NEW).id == OLD
    assert replayed.before(OLD) is None
    assert replayed.unfinished is None


def test_what_began_and_did_not_end_is_unfinished():
    replayed = history(*promoted(OLD, None), begin(NEW, OLD), {"event": "weight", "deployment_id": NEW, "percent": 5})
    assert replayed.unfinished.id == NEW
    assert replayed.unfinished.percent == 5
    assert replayed.serving == OLD
    assert replayed.before(NEW).id == OLD


def test_an_abort_leaves_what_served_before():
    abort = {"event": "abort", "deployment_id": NEW, "reason": "sick"}
    climbing = history(*promoted(OLD, None), begin(NEW, OLD), abort)
    after_promotion = history(*promoted(OLD, None), *promoted(NEW, OLD), abort)
    for replayed in (climbing, after_promotion):
        assert replayed.serving == OLD
        assert (replayed.releases[NEW].outcome, replayed.releases[NEW].reason, replayed.releases[NEW].percent) == ("aborted", "sick", 0)


def test_a_way_back_that_was_not_finished_is_unfinished():
    going = {"event": "going-back", "deployment_id": NEW, "reason": "smoke"}
    replayed = history(*promoted(OLD, None), *promoted(NEW, OLD), going)
    assert replayed.unfinished.id == NEW
    assert replayed.before(NEW).id == OLD
    assert history(*promoted(OLD, None), *promoted(NEW, OLD), going, {**going, "event": "abort"}).unfinished is None


def test_an_instance_number_is_never_used_again():
    entries = [begin(NEW, None)]
    for number in (1, 2):
        entries.append({"event": "instance", "deployment_id": NEW, "service": "api", "number": number, "pid": number})
        entries.append({"event": "stopped", "deployment_id": NEW, "service": "api", "number": number})
    entries += [{"event": "abort", "deployment_id": NEW, "reason": "x"}, begin(NEW, None)]
    release = history(*entries).releases[NEW]
    assert release.instances == {}
    assert release.started == 2
    assert release.outcome == "deploying"


def test_entries_of_a_later_version_are_passed_over():
    assert history(begin(NEW, None), {"event": "blessed", "deployment_id": NEW}).unfinished.id == NEW


def test_an_absent_file_is_an_empty_history(tmp_path):
    assert Journal(tmp_path / "journal.jsonl").history().releases == {}


@given(cut=st.integers(0, 400))
def test_a_writer_that_dies_in_the_middle_of_a_line_loses_that_line_only(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path)
    journal.add(AT, "begin", OLD, version="v1", digests={}, previous=None)
    journal.add(AT, "promote", OLD)
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(begin(NEW, OLD)).encode()[:cut])
    journal.add(AT, "begin", "1764000200-cccccc", version="v3", digests={}, previous=OLD)
    replayed = journal.history()
    assert replayed.serving == OLD
    assert "1764000200-cccccc" in replayed.releases


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_a_reason_may_have_any_separator_of_lines(tmp_path, separator):
    journal, reason = Journal(tmp_path / "journal.jsonl"), f"customers see{separator}errors"
    journal.add(AT, "begin", NEW, version="v1", digests={}, previous=None)
    journal.add(AT, "abort", NEW, reason=reason)
    release = journal.history().releases[NEW]
    assert (release.outcome, release.reason) == (ABORTED, reason)


def test_what_nobody_goes_back_to_any_more_is_superseded_once_the_window_has_closed():
    def at(minute: int, entries: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{**entry, "at": f"2026-11-24T11:{minute:02}:00.000Z"} for entry in entries]

    third, fourth = "1764000200-cccccc", "1764000300-dddddd"
    abort = {"event": "abort", "deployment_id": fourth, "reason": "sick"}
    entries = [*at(0, promoted(OLD, None)), *at(10, promoted(NEW, OLD)), *at(20, promoted(third, NEW)), begin(fourth, third)]

    def superseded(minute: int, *more: dict[str, object]) -> list[str]:
        now = datetime(2026, 11, 24, 11, minute, tzinfo=UTC)
        return [release.id for release in history(*entries, *more).superseded(now, 30)]

    assert superseded(39) == []  # the window of NEW is open: two rollbacks are possible
    assert superseded(40) == [OLD]  # never the release that serves, the one a rollback goes back to, or the one under way
    assert superseded(59, abort) == [OLD, fourth]
    assert superseded(59, abort, {"event": "removed", "deployment_id": OLD}) == [fourth]
