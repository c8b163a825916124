"""The course of each measure over the months, as columns. A month without a value has a dash, not a column of height zero. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from azora_ci.record.dora import Measures
from azora_ci.record.pages import html, svg
from azora_ci.record.pages.deployment import duration

HEIGHT, TOP, BASE = 150, 22, 122  # pixels: of the chart, of its highest column, of its base line
UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Figure:
    """A measure: its headline, its value in the period as text, what it rests on, how it is computed, and its chart."""

    name: str
    title: str
    value: str
    basis: str
    definition: str
    caption: str
    chart: Markup


def columns(label: str, starts: Sequence[datetime], values: Sequence[float | None], bad: Sequence[float] | None = None) -> Markup:
    """Return a column for each month; ``bad``: the part of each that failed, at its foot."""
    highest = svg.nice(max((value for value in values if value is not None), default=0.0))
    parts = [svg.rule(TOP, f"{highest:g}"), svg.rule(BASE)]
    for number, (start, value) in enumerate(zip(starts, values, strict=True)):
        left, right = (number + 0.18) / len(values), (number + 0.82) / len(values)
        middle = (left + right) / 2
        year = f" {start:%y}" if number == 0 or start.month == 1 else ""
        parts.append(svg.words(middle, BASE + 16, f"{start:%b}", anchor="middle"))
        if year:
            parts.append(svg.words(middle, BASE + 28, f"{start:%Y}", anchor="middle"))
        if value is None:
            parts.append(svg.words(middle, BASE - 5, "–", anchor="middle"))
            continue
        height = (BASE - TOP) * value / highest
        parts.append(svg.bar(left, right, "fill-new", y=BASE - height, height=height))
        if bad and bad[number]:
            foot = (BASE - TOP) * bad[number] / highest
            parts.append(svg.bar(left, right, "fill-bad", y=BASE - foot, height=foot))
    return svg.chart(label, HEIGHT, *parts)


def in_unit(values: Sequence[float | None]) -> tuple[str, list[float | None]]:
    """Return durations in the largest unit of which the longest has two, and the unit's name."""
    longest = max((value for value in values if value is not None), default=0.0)
    size, name = next(((size, name) for size, name in UNITS if longest >= 2 * size), UNITS[-1])
    return name, [None if value is None else value / size for value in values]


def rate(value: float | None) -> str:
    """Return deployments a week as people say them: 7.5 a week, 2.1 a month; not known for None."""
    if value is None:
        return "not known"
    return f"{value:.1f} a week" if value >= 1 or value == 0 else f"{value * 52 / 12:.1f} a month"


def known(text: str, value: float | None) -> str:
    """Return a text about a value, and for None that it is not known."""
    return "not known" if value is None else text


def figures(period: Measures, monthly: Sequence[Measures], definitions: dict[str, tuple[str, str]]) -> list[Figure]:
    """Return the five measures of a period, each with its course over the months."""
    starts = [month.begin for month in monthly]
    lead_unit, leads = in_unit([month.lead for month in monthly])
    back_unit, recoveries = in_unit([month.recovery for month in monthly])
    failed = f"{period.failed} of {html.plural(period.reached, 'deployment')} that reached users"
    lead_basis = f"{period.without_lead} without a known commit date" if period.without_lead else "every deployment has its commit's date"
    counts: list[float | None] = [float(month.reached) if month.frequency is not None else None for month in monthly]
    shares = {
        name: [None if (value := getattr(month, name)) is None else 100 * value for month in monthly] for name in ("failure", "rework")
    }
    drawn = {
        "frequency": (rate(period.frequency), f"{period.reached} reached users, {period.stopped} were stopped before any traffic",
                      "Deployments that reached users, by month; the red foot failed", counts),
        "lead": (known(duration(period.lead or 0.0), period.lead), lead_basis, f"Median by month, in {lead_unit}", leads),
        "failure": (known(html.share(period.failure), period.failure), failed, "Percent by month", shares["failure"]),
        "recovery": (known(duration(period.recovery or 0.0), period.recovery),
                     f"{html.plural(period.failed, 'failure')}, {period.lasting} not mended yet", f"Median by month, in {back_unit}",
                     recoveries),
        "rework": (known(html.share(period.rework), period.rework), f"{period.reworked} of {html.plural(period.reached, 'deployment')}",
                   "Percent by month", shares["rework"]),
    }  # fmt: skip
    foot = [float(month.failed) for month in monthly]
    return [
        Figure(
            name,
            definitions[name][0],
            value,
            basis,
            definitions[name][1],
            caption,
            columns(f"{definitions[name][0]}: {caption}", starts, values, foot if name == "frequency" else None),
        )
        for name, (value, basis, caption, values) in drawn.items()
    ]
