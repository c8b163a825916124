"""The charts of a rollout: traffic, failed requests, latency, samples and probes on one axis of time, and intervals per service. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from azora_ci.record.pages import svg
from azora_ci.record.pages.html import milliseconds, share

HEIGHT, TOP, BOTTOM = 84.0, 22.0, 20.0  # pixels of a panel: its drawing, the room above for marks, and below for the time
FARTHEST_LIMIT = 5  # times the highest value, beyond which a limit would press the lines flat and is told in words
VERDICTS = {"advance": "good", "abort": "bad"}

Tick = Mapping[str, Any]
Document = Mapping[str, Any]
Line = tuple[str, list[svg.Points]]  # class, one series of points a stage


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and its key: (class of the sample, words)."""

    caption: str
    drawing: Markup
    key: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Verdict:
    """The end of a stage: its number on the charts, the place on their axis, what was decided, on how many samples, and its tick."""

    number: int
    at: float
    stage: Document
    decision: str
    tone: str
    samples: int | None
    tick: int | None

    @property
    def anchor(self) -> str | None:
        """Return the id of its tick in the decision log."""
        return None if self.tick is None else f"tick-{self.stage['stage']}-{self.tick + 1}"


class Rollout:
    """The stages of a rollout on one axis of time."""

    def __init__(self, stages: Sequence[Document], new: str | None, limits: Document | None) -> None:
        self.stages = stages
        self.limits = limits
        names = list(dict.fromkeys(version for stage in stages for version in stage["requests"] or {}))
        self.new: str = new if new is not None and new in names else next(iter(names), new or "the new version")
        self.old = next((name for name in names if name != self.new), None)
        self._begin = min(_seconds(stage["started_at"]) for stage in stages)
        self._length = max(0.001, max(_seconds(stage["ended_at"]) for stage in stages) - self._begin)
        self.verdicts = list(self._verdicts())
        self.allowed = None if limits is None else points_text(limits)

    def figures(self) -> Iterator[Figure]:
        """Yield the charts. Those that need the ticks of the fragment are left out without them."""
        yield self._traffic()
        if any(stage.get("decisions") for stage in self.stages):
            yield self._errors()
            if any("p95_ms" in tick for stage in self.stages for tick in stage["decisions"]):
                yield self._latency()
            yield self._samples()
            if any(tick["probes"]["failed"] for stage in self.stages for tick in stage["decisions"]):
                yield self._probes()

    # --- what is drawn on every panel ---------------------------------------------------------------------------------------

    def _at(self, stage: Document, seconds: float = 0.0) -> float:
        return (_seconds(stage["started_at"]) + seconds - self._begin) / self._length

    def _end(self, stage: Document) -> float:
        return (_seconds(stage["ended_at"]) - self._begin) / self._length

    def _verdicts(self) -> Iterator[Verdict]:
        for number, stage in enumerate(self.stages, 1):
            ticks = stage.get("decisions") or []
            last = ticks[-1] if ticks else None
            known = {"healthy": "advance", "aborted": "abort"}.get(stage["status"], "cancelled")
            decision = last["decision"] if last and last["decision"] in VERDICTS else known
            samples = _samples_of(last, self.new) if last else (stage["requests"] or {}).get(self.new)
            at = self._at(stage, last["after_seconds"]) if last and decision == last["decision"] else self._end(stage)
            yield Verdict(number, at, stage, decision, VERDICTS.get(decision, "warn"), samples, len(ticks) - 1 if ticks else None)

    def _panel(self, label: str, *drawn: object, marks: bool = False) -> Markup:
        base = TOP + HEIGHT
        verdicts = [svg.upright(verdict.at, TOP - 4 if marks else TOP, base, f"verdict {verdict.tone}") for verdict in self.verdicts]
        if marks:
            for verdict in self.verdicts:
                verdicts.append(svg.dot(verdict.at, 9, f"fill-{verdict.tone}", 9))
                verdicts.append(svg.words(verdict.at, 13, str(verdict.number), anchor="middle", class_="mark"))
        first, last = self.stages[0]["started_at"], self.stages[-1]["ended_at"]
        times = [svg.words(0, base + 15, first[11:19]), svg.words(1, base + 15, f"{last[11:19]} UTC", anchor="end")]
        return svg.chart(label, int(TOP + HEIGHT + BOTTOM), svg.rule(base), *drawn, *verdicts, *times)

    def _lines(self, lines: Iterable[Line], top: float, form: Callable[[float], str]) -> list[Markup]:
        """Return lines below an axis whose top has this value, with the labels of the axis."""
        drawn = [(class_, [svg.path(points, top, HEIGHT) for points in series]) for class_, series in lines]
        return [svg.rule(TOP, form(top)), svg.lines(HEIGHT, TOP, *drawn)]

    def _series(self, value: Callable[[Tick], float | None]) -> list[svg.Points]:
        series: list[svg.Points] = []
        for stage in self.stages:
            points = [(self._at(stage, tick["after_seconds"]), value(tick)) for tick in stage.get("decisions") or []]
            series.append([(at, number) for at, number in points if number is not None])
        return series

    # --- the panels ---------------------------------------------------------------------------------------------------------

    def _traffic(self) -> Figure:
        areas, outlines, names = [], [], []
        for stage in self.stages:
            points = [(self._at(stage), float(stage["traffic_percentage"])), (self._end(stage), float(stage["traffic_percentage"]))]
            areas.append(svg.path(points, 100, HEIGHT, closed=True))
            outlines.append(svg.path(points, 100, HEIGHT))
            level = TOP + HEIGHT * (1 - stage["traffic_percentage"] / 100)
            names.append(svg.words(self._at(stage), min(level + 14, TOP + HEIGHT - 5), f" {stage['traffic_percentage']} %"))
        drawn = svg.lines(HEIGHT, TOP, ("area", areas), ("line new", outlines))
        steps = ", ".join(f"{stage['stage']} {stage['traffic_percentage']} % ({stage['status']})" for stage in self.stages)
        label = f"Share of traffic that went to {self.new} over time: {steps}"
        return Figure(f"Traffic to {self.new}; a number marks a verdict", self._panel(label, drawn, *names, marks=True), ())

    def _errors(self) -> Figure:
        new, old = self._series(lambda tick: _failed_share(tick, self.new)), self._series(lambda tick: _failed_share(tick, self.old))
        lines: list[Line] = [("line old", old)]
        key = [("line new", self.new), *([("line old", self.old)] if self.old else [])]
        values = [value for points in (*new, *old) for _, value in points]
        if self.limits is not None:
            points_allowed = self.limits["error_points"] / 100
            limit = self._series(lambda tick: points_allowed + (_failed_share(tick, self.old) or 0))
            lines.append(("line limit", limit))
            key.append(("line limit", f"limit: {self.allowed} above the old version, when proved"))
            values += [value for points in limit for _, value in points]
        top = min(1.0, svg.nice(max(values, default=0.0) * 1.05))
        worst = share(max((value for points in new for _, value in points), default=0))
        label = f"Share of failed requests over time, highest {worst} for {self.new}"
        drawn = self._lines([*lines, ("line new", new)], top, share)
        return Figure("Failed requests since the stage began", self._panel(label, *drawn), key)

    def _latency(self) -> Figure:
        new, old = self._series(lambda tick: _p95(tick, self.new)), self._series(lambda tick: _p95(tick, self.old))
        values = [value for points in (*new, *old) for _, value in points]
        key = [("line new", self.new), *([("line old", self.old)] if self.old else [])]
        caption, highest = "95 of 100 requests were faster than (p95)", max(values, default=0.0)
        lines: list[Line] = [("line old", old), ("line new", new)]
        if self.limits is not None and highest and old:
            limit = self._series(self._slow_limit)
            limits = [value for points in limit for _, value in points]
            text = f"limit: {self.limits['latency_factor']:g} times the old version's, at least {self.limits['latency_floor_ms']:g} ms more"
            if limits and max(limits) <= FARTHEST_LIMIT * highest:
                lines.insert(0, ("line limit", limit))
                key.append(("line limit", f"{text}, when proved"))
                values += limits
            elif limits:
                caption += f"; {text}, {milliseconds(min(limits))} and more, is above this chart"
        top = svg.nice(max(values, default=1.0) * 1.05)
        label = f"95th percentile of latency over time, highest {milliseconds(highest)}"
        return Figure(caption, self._panel(label, *self._lines(lines, top, milliseconds)), key)

    def _slow_limit(self, tick: Tick) -> float | None:
        old = _p95(tick, self.old)
        if old is None or self.limits is None:
            return None
        return max(old * float(self.limits["latency_factor"]), old + float(self.limits["latency_floor_ms"]))

    def _samples(self) -> Figure:
        new = self._series(lambda tick: float(_samples_of(tick, self.new)))
        lack = self._series(lambda tick: float(tick["lacking"]))
        values = [value for points in (*new, *lack) for _, value in points]
        top = svg.nice(max(values, default=1.0) * 1.05)
        lines: list[Line] = [("line limit", lack), ("line new", new)]
        key = [("line new", f"requests to {self.new}, users' and ours"), ("line limit", "requests that lack before a verdict is possible")]
        least = f": at least {self.limits['minimum_requests']:g} per service and version" if self.limits is not None else ""
        label = f"Number of samples of {self.new} over time, and how many lacked"
        return Figure(f"Samples{least}", self._panel(label, *self._lines(lines, top, lambda value: f"{value:,.0f}")), key)

    def _probes(self) -> Figure:
        ticks = [(stage, tick) for stage in self.stages for tick in stage.get("decisions") or []]
        most = max((tick["probes"]["failed"] for _, tick in ticks), default=0)
        bars = []
        for stage, tick in ticks:
            failed = tick["probes"]["failed"]
            height = HEIGHT * failed / most if failed else 2
            at = self._at(stage, tick["after_seconds"])
            bars.append(svg.bar(at, at, "fill-bad" if failed else "fill-good", y=TOP + HEIGHT - height, height=height))
        total = sum(tick["probes"]["total"] for _, tick in ticks)
        failed = sum(tick["probes"]["failed"] for _, tick in ticks)
        label = f"Failed probes of each tick: {failed} of {total} in all"
        return Figure("Failed probes of each tick", self._panel(label, svg.rule(TOP, f"{most}"), *bars), ())


def points_text(limits: Document) -> str:
    """Return how many percentage points of failed requests are allowed."""
    return f"{limits['error_points']:g} percentage point{'' if limits['error_points'] == 1 else 's'}"


def interval(bounds: Sequence[float | None], value: float | None, top: float, class_: str, limit: float | None = None) -> Markup:
    """Return a value with its bounds on an axis from 0 to ``top``; ``limit``: drawn across."""
    low, high = bounds
    drawn = [svg.rule(9)]
    if low is not None and high is not None and top:
        drawn.append(svg.element("line", x1=svg.percent(low / top), x2=svg.percent(high / top), y1="9", y2="9", class_=f"stroke-{class_}"))
    if value is not None and top:
        drawn.append(svg.dot(value / top, 9, f"fill-{class_}", 4))
    if limit is not None and top and limit <= top:
        drawn.append(svg.upright(limit / top, 1, 17, "stroke-limit"))
    return svg.chart(None, 18, *drawn)


def timeline(started_at: str, ended_at: str, first: str, last: str, tone: str) -> Markup:
    """Return the bar of a job between the first start and the last end of all."""
    begin, length = _seconds(first), max(0.001, _seconds(last) - _seconds(first))
    start, end = ((_seconds(moment) - begin) / length for moment in (started_at, ended_at))
    return svg.chart(None, 12, svg.rule(6), svg.bar(start, max(start, end), f"fill-{tone}", y=1))


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _samples_of(tick: Tick, version: str) -> int:
    return int(tick["requests"].get(version, 0)) + int((tick.get("ours") or {}).get(version, 0))


def _failed_share(tick: Tick, version: str | None) -> float | None:
    requests = tick["requests"].get(version) if version else None
    return tick["failed"].get(version, 0) / requests if requests else None


def _p95(tick: Tick, version: str | None) -> float | None:
    value: float | None = (tick.get("p95_ms") or {}).get(version)
    return value
