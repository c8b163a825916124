"""``[calendar]``: when deployments may begin, as windows on the clock of one time zone. ``gates/entry/calendar`` judges a moment by it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MIDNIGHT, END_OF_DAY = "00:00", "24:00"
_EVERY_YEAR = re.compile(r"([0-9]{2})-([0-9]{2})")
LEAP_YEAR = 2000  # any: it decides whether a day of every year is one at all


@dataclass(frozen=True)
class Weekly:
    """A window of each of these weekdays (0: Monday), from one time to another; None: to the end of the day.

    Where ``end`` is not after ``start``, the window ends on the next day; ``days`` are those on which it begins.
    """

    days: tuple[int, ...]
    start: time
    end: time | None
    why: str | None = None


@dataclass(frozen=True)
class Yearly:
    """A window of every year, through the day ``end``: (month, day). It goes across the new year where ``end`` is before ``start``."""

    start: tuple[int, int]
    end: tuple[int, int]
    why: str | None = None


@dataclass(frozen=True)
class Once:
    """A window between two readings of the clock on the wall; ``end`` is no part of it."""

    start: datetime
    end: datetime
    why: str | None = None


Window = Weekly | Yearly | Once


@dataclass(frozen=True)
class CalendarSettings:
    """When deployments may begin: always but in ``frozen`` windows; with ``open`` ones, only in those of them that are not frozen."""

    timezone: ZoneInfo
    frozen: tuple[Window, ...] = ()
    open: tuple[Window, ...] = ()


def calendar_settings(table: dict[str, Any] | None) -> CalendarSettings | None:
    """Return ``[calendar]`` of a valid document whose dates are texts.

    Raises ValueError for an unknown time zone and for a window that contradicts itself.
    """
    if table is None:
        return None
    frozen, opened = ([_window(f"calendar.{key}[{number}]", entry) for number, entry in enumerate(table.get(key, []))] for key in _KEYS)
    if not frozen and not opened:
        raise ValueError("calendar: names no window; write frozen or open, or leave [calendar] out")
    return CalendarSettings(_zone(table["timezone"]), tuple(frozen), tuple(opened))


_KEYS = ("frozen", "open")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no name of a zone; a folder of zones
        raise ValueError(
            f"calendar.timezone: {name} is no time zone of this machine's tz database; name one such as Europe/Berlin"
        ) from None


def _window(where: str, entry: dict[str, Any]) -> Window:
    start, end, why = entry.get("from"), entry.get("to"), entry.get("why")
    if _is_time(start) and _is_time(end):
        return _weekly(where, entry, start or MIDNIGHT, end or END_OF_DAY, why)
    if "days" in entry:
        raise ValueError(f"{where}.days: goes with times of the day, not with dates")
    if start is None or end is None:
        raise ValueError(f"{where}: a window of dates needs from and to")
    if _EVERY_YEAR.fullmatch(start) and _EVERY_YEAR.fullmatch(end):
        return Yearly(_day_of_year(where, start), _day_of_year(where, end), why)
    if _is_time(start) or _is_time(end) or _EVERY_YEAR.fullmatch(start) or _EVERY_YEAR.fullmatch(end):
        raise ValueError(f"{where}: from {start} and to {end} are not of one kind: times of the day, days of every year, or dates")
    window = Once(_moment(where, start), _moment(where, end, last=True), why)
    if window.end <= window.start:
        raise ValueError(f"{where}: ends ({end}) before it begins ({start})")
    return window


def _is_time(text: str | None) -> bool:
    return text is None or ":" in text[:3]


def _weekly(where: str, entry: dict[str, Any], start: str, end: str, why: str | None) -> Weekly:
    if start == END_OF_DAY:
        raise ValueError(f"{where}.from: 24:00 is the end of a day; name the next day and 00:00")
    until = None if end == END_OF_DAY else time.fromisoformat(end)
    window = Weekly(tuple(sorted(DAYS.index(day) for day in entry.get("days", DAYS))), time.fromisoformat(start), until, why)
    if window.end == window.start:
        raise ValueError(f"{where}: begins and ends at {start}; a whole day is from 00:00 to 24:00")
    return window


def _day_of_year(where: str, text: str) -> tuple[int, int]:
    month, day = (int(part) for part in text.split("-"))
    try:
        date(LEAP_YEAR, month, day)
    except ValueError as error:
        raise ValueError(f"{where}: {text} is no day of a year (month-day): {error}") from None
    return month, day


def _moment(where: str, text: str, *, last: bool = False) -> datetime:
    """Return the reading of the clock at which a window begins or ends; a date that ends it is its last day."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{where}: {text} is no date: {error}") from None
    return moment + timedelta(days=1) if last and "T" not in text else moment
