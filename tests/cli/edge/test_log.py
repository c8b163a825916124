"""``edge log`` shows what an edge's log tells of to a person, whatever users wrote in it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from azora_ci.cli.edge import log
from azora_ci.health.failures import GIVEN_UP, Failure
from azora_ci.targets.base import Instance
from azora_ci.targets.journal import PROMOTED, Deployed, History

OLD, NEW = "1764000000-aaaaaa", "1764000100-bbbbbb"
HISTORY = History({OLD: Deployed(OLD, "v1.0.0", {}, None, PROMOTED), NEW: Deployed(NEW, "v1.1.0", {}, OLD, PROMOTED)}, NEW)
SINCE = "2026-11-24T11:00:00.000Z"
HUNG = Failure(
    time="2026-11-24T11:03:16.123Z", service="api", release=NEW, kind="user", method="GET", path="/api/orders", status=0,
    reason=GIVEN_UP, milliseconds=1004, attempts=1, instance="10.1.0.9:80", host="10.0.0.1",
)  # fmt: skip


def test_reasons_and_versions_are_counted_and_instances_are_named():
    failed = replace(HUNG, release=OLD, status=500, reason="the service answered so", instance="10.1.0.8:80")
    instances = {NEW: (Instance(NEW, "v1.1.0", "api", 3, "10.1.0.9:80", "10.0.0.1"),)}
    lines = log.text([failed, HUNG, HUNG], HISTORY, instances, SINCE).splitlines()
    assert lines[:3] == [f"3 requests went wrong since {SINCE}.", "  2 given up, 1 the service answered so", "  2 api v1.1.0, 1 api v1.0.0"]
    assert "api#3 on 10.0.0.1" in lines[-1]
    assert lines[-1].endswith("user  given up after 1.0 s")
    assert "10.1.0.8:80 on 10.0.0.1" in lines[-3]


def test_of_very_much_the_latest_are_shown():
    text = log.text([replace(HUNG, path=f"/{number}") for number in range(10_000)], HISTORY, {}, SINCE)
    assert text.startswith("10000 requests went wrong")
    assert "The latest 100:" in text
    assert "GET /9999 " in text
    assert "GET /9899 " not in text


@pytest.mark.parametrize("path", ["\n::error::x", "\x1b[2J", "##[error]x", "\u202e", "/" * 100_000])
def test_paths_of_users_stay_text(path):
    for text in (
        log.text([replace(HUNG, path=path)], HISTORY, {}, SINCE),
        log.lines_of_json([replace(HUNG, path=path)], HISTORY),
    ):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert not any(line.startswith("::") for line in text.splitlines())
        assert len(text) < 1000
    assert "##[" not in log.text([replace(HUNG, path=path)], HISTORY, {}, SINCE)


def test_a_release_that_the_journal_forgot_is_shown_by_its_id():
    assert log.version_of("1763000000-cccccc", HISTORY) == "1763000000-cccccc"
    assert log.version_of("", HISTORY) == "–"
    assert log.chosen([HUNG], HISTORY, host=None, release=NEW) == [HUNG]
    assert log.chosen([HUNG], HISTORY, host="10.0.0.2", release=None) == []


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", "2026-11-24T11:58:30"), ("15m", "2026-11-24T11:45:00"), ("2h", "2026-11-24T10:00:00"), ("1d", "2026-11-23T12:00:00"),
        ("2026-11-24T11:03", "2026-11-24T11:03:00"), ("2026-11-24T11:03:00+01:00", "2026-11-24T10:03:00"),
    ],
)  # fmt: skip
def test_moments(text, moment):
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert log.moment(text, now).astimezone(UTC) == datetime.fromisoformat(moment).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["yesterday", "", "5", "-5m", "999999d"])
def test_what_is_no_moment_is_refused(text):
    with pytest.raises((ValueError, OverflowError)):
        log.moment(text, datetime(2026, 11, 24, 12, tzinfo=UTC))
