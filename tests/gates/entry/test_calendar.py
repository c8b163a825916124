from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azora_ci.core.config.calendar import DAYS, calendar_settings
from azora_ci.gates.entry import calendar

FRIDAY = {"days": ["fri"], "from": "14:00", "why": "nobody is on call"}
WEEKEND = {"days": ["sat", "sun"]}
HOLIDAYS = {"from": "12-20", "to": "01-02", "why": "the holidays"}
NIGHT = {"from": "22:00", "to": "06:00"}
OFFICE = {"days": ["tue", "thu"], "from": "09:00", "to": "16:00"}
ONCE = {"from": "2027-03-01T18:00:00", "to": "2027-03-03"}


def berlin(*frozen, **more):
    return calendar_settings({"timezone": "Europe/Berlin", "frozen": list(frozen), **more})


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("windows", "moment", "opens"),
    [
        ([FRIDAY], "2026-12-04T12:59", "2026-12-04T12:59"),
        ([FRIDAY], "2026-12-04T13:00", "2026-12-04T23:00"),  # 14:00 in winter
        ([FRIDAY], "2026-07-03T12:00", "2026-07-03T22:00"),  # 14:00 in summer
        ([FRIDAY, WEEKEND], "2026-12-04T13:00", "2026-12-06T23:00"),
        ([FRIDAY, WEEKEND, HOLIDAYS], "2026-12-18T13:00", "2027-01-03T23:00"),  # into the weekend behind the holidays
        ([HOLIDAYS], "2027-01-02T22:59", "2027-01-02T23:00"),  # through the last day
        ([HOLIDAYS], "2027-12-19T22:59", "2027-12-19T22:59"),
        ([NIGHT], "2026-12-01T21:00", "2026-12-02T05:00"),
        ([NIGHT], "2026-12-02T04:59", "2026-12-02T05:00"),
        ([NIGHT | {"days": ["fri"]}], "2026-12-05T04:59", "2026-12-05T05:00"),  # begins on a Friday
        ([NIGHT | {"days": ["fri"]}], "2026-12-05T22:00", "2026-12-05T22:00"),
        ([{"from": "06:00", "to": "00:00"}], "2026-12-01T06:00", "2026-12-01T23:00"),
        ([ONCE], "2027-03-01T17:00", "2027-03-03T23:00"),
        ([{"from": "02-29", "to": "03-01"}], "2027-03-01T12:00", "2027-03-01T23:00"),
        # In spring 02:00 is followed by 03:00, in autumn 03:00 by 02:00.
        ([{"from": "02:00", "to": "03:00"}], "2027-03-28T01:00", "2027-03-28T01:00"),
        ([{"from": "01:00", "to": "02:30"}], "2027-03-28T00:30", "2027-03-28T01:00"),
        ([{"from": "02:30", "to": "03:00"}], "2027-10-31T00:30", "2027-10-31T01:00"),  # open again when it is 02:00 again
        ([{"from": "02:30", "to": "03:00"}], "2027-10-31T01:30", "2027-10-31T02:00"),
        ([{"from": "01:00", "to": "03:00"}], "2027-10-31T00:30", "2027-10-31T02:00"),
        ([{"from": "01:00", "to": "02:30"}], "2027-10-31T01:10", "2027-10-31T01:30"),  # frozen again, until it is 02:30 again
    ],
)
def test_the_next_open_moment(windows, moment, opens):
    assert calendar.next_open(berlin(*windows), utc(moment)) == utc(opens)
    assert (calendar.closed_by(berlin(*windows), utc(moment)) is None) == (moment == opens)


def test_open_windows_are_the_only_ones_but_for_what_is_frozen():
    office = berlin(HOLIDAYS, open=[OFFICE])
    assert calendar.next_open(office, utc("2026-12-03T15:00")) == utc("2026-12-08T08:00")  # Thursday 16:00 to Tuesday 09:00
    assert calendar.next_open(office, utc("2026-12-22T10:00")) == utc("2027-01-05T08:00")
    assert calendar.closed_by(office, utc("2026-12-03T15:00")) == "it is open tue, thu 09:00–16:00, and not else"
    assert calendar.closed_by(office, utc("2026-12-22T10:00")) == "it is frozen, each year 12-20 through 01-02 (the holidays)"
    assert calendar.in_both(office.timezone, utc("2026-12-08T08:00")) == "Tue 2026-12-08 09:00 in Europe/Berlin (2026-12-08T08:00Z)"


def test_what_never_opens_or_never_closes_has_no_such_moment():
    always = berlin({"days": list(DAYS)})
    assert calendar.next_open(always, utc("2026-12-01T00:00")) is None
    assert calendar.next_closed(berlin({"from": "2020-01-01", "to": "2020-01-02"}), utc("2026-12-01T00:00")) is None
    assert calendar.next_closed(berlin(FRIDAY), utc("2026-12-01T00:00")) == utc("2026-12-04T13:00")
    assert calendar.next_closed(berlin({"from": "02:30", "to": "03:00"}), utc("2027-10-31T01:00")) == utc("2027-10-31T01:30")


TIMES = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from([0, 1, 30, 59]))
DAY_LISTS = st.lists(st.sampled_from(DAYS), min_size=1, unique=True)
WEEKLY = st.builds(lambda days, start, end: {"days": days, "from": start, "to": end}, DAY_LISTS, TIMES, TIMES).filter(
    lambda window: window["from"] != window["to"]
)
YEARLY = st.builds(
    lambda start, end: {"from": start, "to": end}, *[st.builds("{:02}-{:02}".format, st.integers(1, 12), st.integers(1, 28))] * 2
)
CALENDARS = st.builds(
    lambda zone, frozen, opened: calendar_settings({"timezone": zone, "frozen": frozen, "open": opened}),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago"]),
    st.lists(WEEKLY | YEARLY, min_size=1, max_size=3),
    st.lists(WEEKLY, max_size=2),
)
# Half of them around the nights on which clocks are put forward or back.
CHANGES = [utc(text) for text in ("2027-03-28T01:00", "2027-10-31T01:00", "2027-03-14T05:30", "2027-04-03T15:00", "2027-04-04T03:00")]
MOMENTS = st.builds(lambda day, minutes: day + timedelta(minutes=minutes), st.sampled_from(CHANGES), st.integers(-1500, 1500)) | st.builds(
    lambda minutes: utc("2026-12-01T00:00") + timedelta(minutes=minutes), st.integers(0, 600_000)
)


@settings(max_examples=30, deadline=None)
@given(CALENDARS, MOMENTS)
def test_the_next_open_moment_is_open_and_nothing_before_it_is(windows, moment):
    """Windows begin and end on minutes, and so every minute in between is looked at: of two days, then of every 17th minute."""
    opens = calendar.next_open(windows, moment)
    until = opens or moment + calendar.HORIZON
    assert opens is None or calendar.closed_by(windows, opens) is None
    minutes = int((until - moment).total_seconds() // 60)
    looked_at = {*range(min(minutes, 2880)), *range(0, min(minutes, 40_000), 17), *range(max(0, minutes - 1500), minutes)}
    assert all(calendar.closed_by(windows, moment + timedelta(minutes=number)) for number in looked_at)


@settings(max_examples=30, deadline=None)
@given(CALENDARS, MOMENTS)
def test_it_stays_open_until_the_next_moment_at_which_it_is_closed(windows, moment):
    closes = calendar.next_closed(windows, moment)
    minutes = int(((closes or moment + calendar.HORIZON) - moment).total_seconds() // 60)
    assert closes is None or calendar.closed_by(windows, closes)
    looked_at = {*range(min(minutes, 2880)), *range(max(0, minutes - 1500), minutes)}
    assert not any(calendar.closed_by(windows, moment + timedelta(minutes=number)) for number in looked_at)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"timezone": "Europe/Berlinn"}, "calendar.timezone: Europe/Berlinn is no time zone"),
        ({"timezone": "Europe"}, "Europe is no time zone"),
        ({"timezone": "../../etc/passwd"}, "is no time zone"),
        ({"timezone": "\0"}, "is no time zone"),
        ({"frozen": []}, "names no window"),
        ({"frozen": [FRIDAY, {"days": ["fri"], "from": "2026-12-20", "to": "2026-12-21"}]}, r"calendar.frozen\[1\].days: goes with times"),
        ({"frozen": [{"from": "14:00", "to": "2026-12-21"}]}, "not of one kind"),
        ({"frozen": [{"from": "12-20", "to": "2026-12-21"}]}, "not of one kind"),
        ({"open": [{"from": "2026-12-22", "to": "2026-12-20"}]}, r"calendar.open\[0\]: ends \(2026-12-20\) before it begins"),
        ({"frozen": [{"from": "02-30", "to": "03-01"}]}, "02-30 is no day of a year"),
        ({"frozen": [{"from": "2026-02-30", "to": "2026-03-01"}]}, "2026-02-30 is no date"),
        ({"frozen": [{"from": "14:00", "to": "14:00"}]}, "a whole day is from 00:00 to 24:00"),
        ({"frozen": [{"from": "24:00", "to": "14:00"}]}, "24:00 is the end of a day"),
    ],
)
def test_a_calendar_that_contradicts_itself_is_refused(table, reason):
    with pytest.raises(ValueError, match=reason):
        calendar_settings({"timezone": "Europe/Berlin", "frozen": [FRIDAY], **table})


def test_no_calendar_is_no_calendar():
    assert calendar_settings(None) is None
    assert berlin(FRIDAY).timezone == ZoneInfo("Europe/Berlin")
