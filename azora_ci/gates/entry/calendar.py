"""May a deployment begin at this moment, and if not, when? Pure; what counts is what a clock on the wall in the calendar's zone shows.

So an hour that the clock shows twice in autumn is frozen twice, and one that it skips in spring is not there at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from azora_ci.core.config.calendar import DAYS, END_OF_DAY, CalendarSettings, Once, Weekly, Window, Yearly

HORIZON = timedelta(days=366)  # a calendar that does not open within it is a mistake
_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)


def is_in(window: Window, wall: datetime) -> bool:
    """Say whether a window holds what the clock on the wall shows (a moment without a zone)."""
    if isinstance(window, Once):
        return window.start <= wall < window.end
    if isinstance(window, Yearly):
        day, (start, end) = (wall.month, wall.day), (window.start, window.end)
        return start <= day <= end if start <= end else day >= start or day <= end
    return _is_in_week(window, wall)


def _is_in_week(window: Weekly, wall: datetime) -> bool:
    begins_today, began_yesterday = wall.weekday() in window.days, (wall.weekday() - 1) % 7 in window.days
    after_start = wall.time() >= window.start
    if window.end is None:
        return begins_today and after_start
    before_end = wall.time() < window.end
    if window.start < window.end:
        return begins_today and after_start and before_end
    return (begins_today and after_start) or (began_yesterday and before_end)


def closed_by(calendar: CalendarSettings, moment: datetime) -> str | None:
    """Return why no deployment may begin at this moment; None: one may."""
    wall = moment.astimezone(calendar.timezone).replace(tzinfo=None)
    for window in calendar.frozen:
        if is_in(window, wall):
            return f"it is frozen, {describe(window)}"
    if calendar.open and not any(is_in(window, wall) for window in calendar.open):
        return f"it is open {'; '.join(map(describe, calendar.open))}, and not else"
    return None


def next_open(calendar: CalendarSettings, moment: datetime) -> datetime | None:
    """Return the first moment (UTC) from this one on at which a deployment may begin; None: none within HORIZON."""
    return _next(calendar, moment, open_=True)


def next_closed(calendar: CalendarSettings, moment: datetime) -> datetime | None:
    """Return the first moment (UTC) from this one on at which none may begin; None: none within HORIZON."""
    return _next(calendar, moment, open_=False)


def _next(calendar: CalendarSettings, moment: datetime, *, open_: bool) -> datetime | None:
    candidates = (moment.astimezone(UTC), *_turns(calendar, moment.astimezone(UTC)))
    return next((candidate for candidate in candidates if (closed_by(calendar, candidate) is None) == open_), None)


def _turns(calendar: CalendarSettings, after: datetime) -> Iterator[datetime]:
    """Yield, in order, every moment (UTC) within HORIZON behind this one at which the calendar may open or close."""
    first = after.astimezone(calendar.timezone).date() - _DAY
    readings = _readings(calendar)
    moments: set[datetime] = set()
    for number in range((HORIZON // _DAY) + 3):
        midnight = datetime.combine(first + number * _DAY, time.min)
        walls = [midnight, *(datetime.combine(midnight, reading) for reading in readings)]
        walls += [wall for wall in _dated(calendar) if midnight <= wall < midnight + _DAY]
        for wall in walls:
            moments |= {wall.replace(tzinfo=calendar.timezone, fold=fold).astimezone(UTC) for fold in (0, 1)}
        changed = _change_of_offset(calendar, midnight)
        moments |= {changed} if changed else set()
    return iter(sorted(moment for moment in moments if after < moment <= after + HORIZON))


def _readings(calendar: CalendarSettings) -> set[time]:
    weekly = [window for window in (*calendar.frozen, *calendar.open) if isinstance(window, Weekly)]
    return {reading for window in weekly for reading in (window.start, window.end) if reading is not None}


def _dated(calendar: CalendarSettings) -> list[datetime]:
    once = [window for window in (*calendar.frozen, *calendar.open) if isinstance(window, Once)]
    return [wall for window in once for wall in (window.start, window.end)]


def _change_of_offset(calendar: CalendarSettings, midnight: datetime) -> datetime | None:
    """Return the minute (UTC) of this day at which the zone's clocks are put forward or back, or None."""

    def offset(moment: datetime) -> timedelta | None:
        return moment.astimezone(calendar.timezone).utcoffset()

    low = midnight.replace(tzinfo=calendar.timezone).astimezone(UTC)
    high = (midnight + _DAY).replace(tzinfo=calendar.timezone).astimezone(UTC)
    if offset(low) == offset(high):
        return None
    while high - low > _MINUTE:
        middle = low + (high - low) // 2 // _MINUTE * _MINUTE
        low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
    return high


# --- for people -----------------------------------------------------------------------------------------------------------


def describe(window: Window) -> str:
    """Return a window as a text: fri 14:00–24:00 (why)."""
    why = f" ({window.why})" if window.why else ""
    if isinstance(window, Once):
        return f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M}{why}"
    if isinstance(window, Yearly):
        (month, day), (last_month, last_day) = window.start, window.end
        return f"each year {month:02}-{day:02} through {last_month:02}-{last_day:02}{why}"
    days = "every day" if len(window.days) == len(DAYS) else ", ".join(DAYS[day] for day in window.days)
    end = f"{window.end:%H:%M}" if window.end else END_OF_DAY
    return f"{days} {window.start:%H:%M}–{end}{why}"


def in_both(zone: ZoneInfo, moment: datetime) -> str:
    """Return a moment as this zone and UTC show it: Mon 2026-11-30 09:00 in Europe/Berlin (2026-11-30T08:00Z)."""
    local = moment.astimezone(zone)
    return f"{DAYS[local.weekday()].capitalize()} {local:%Y-%m-%d %H:%M} in {zone} ({moment.astimezone(UTC):%Y-%m-%dT%H:%MZ})"
