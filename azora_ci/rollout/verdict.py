"""The verdict on probes: failures in a row of the new version, and whether the old one fails as well. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from azora_ci.health.answers import NEW, OLD, PUBLIC, Endpoint, ProbeResult


@dataclass(frozen=True)
class Streak:
    """Consecutive failures of one endpoint, and how many of these requests the edge had sent to the old version."""

    failures: int = 0
    of_old: int = 0
    detail: str = ""
    since: str = ""  # when the first of them was seen


@dataclass(frozen=True)
class HealthVerdict:
    """Reasons to abort, reasons to hold (both versions fail: not the fault of the new one), and notes that change nothing.

    ``failing``: endpoints that fail, but not often enough yet to abort; a stage does not end on such a probe. ``doubt``: services of
    which no old instance answered the last probe: which version is at fault for failed requests cannot be told now.
    """

    abort: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    doubt: frozenset[str] = frozenset()


@dataclass
class Record:
    """The consecutive failures of every endpoint, updated at every tick. ``release`` is the new deployment's id."""

    release: str
    streaks: dict[str, Streak] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)

    def add(self, findings: Iterable[ProbeResult], at: str = "") -> None:
        """Add the findings of one tick at a moment. Endpoints that are no longer probed are dropped."""
        by_name = {finding.endpoint.name: finding for finding in findings}
        self.streaks = {name: self._continue_streak(finding, at) for name, finding in by_name.items()}
        self.endpoints = {name: finding.endpoint for name, finding in by_name.items()}

    def _continue_streak(self, finding: ProbeResult, at: str) -> Streak:
        if finding.passed:
            return Streak()
        streak = self.streaks.get(finding.endpoint.name, Streak())
        old = finding.deployment is not None and finding.deployment != self.release
        return Streak(streak.failures + 1, streak.of_old + old, finding.detail, streak.since or at)


def judge(record: Record, retries: int) -> HealthVerdict:
    """Return the verdict: an endpoint that failed ``retries`` times in a row aborts unless the new version is not at fault."""
    abort: list[str] = []
    hold: list[str] = []
    notes: list[str] = []
    failing: list[str] = []
    endpoints, streaks = record.endpoints, record.streaks
    old_failing = _services_down(record, OLD, 1)
    new_failing = {endpoint.service for name, endpoint in endpoints.items() if endpoint.side == NEW and streaks[name].failures}
    old_down = _services_down(record, OLD, max(1, retries - 1))
    new_down = _services_down(record, NEW, max(1, retries - 1))
    for name, streak in streaks.items():
        endpoint = endpoints[name]
        text = f"{name} failed {streak.failures} of {retries} probes in a row ({streak.detail})"
        if endpoint.side == OLD:
            if streak.failures and endpoint.service not in new_failing:
                notes.append(f"the old version fails alone, not the new one's fault: {text}")
        elif streak.failures == 0:
            continue
        elif streak.failures < retries:
            if endpoint.side == NEW or (streak.of_old < streak.failures and endpoint.service not in old_failing):
                failing.append(text)
        elif endpoint.service in old_down and (endpoint.side == NEW or endpoint.service in new_down):
            hold.append(f"old and new version both fail, not the new one's fault: {text}")
        elif endpoint.side == PUBLIC and (streak.of_old == streak.failures or endpoint.service in old_down):
            notes.append(f"the old version fails alone, not the new one's fault: {text}")
        else:
            abort.append(text)
    return HealthVerdict(tuple(abort), tuple(hold), tuple(notes), tuple(failing), frozenset(old_failing))


def _services_down(record: Record, side: str, failures: int) -> set[str]:
    """Return the services of which every instance of a side has failed at least ``failures`` times in a row."""
    down: dict[str, list[bool]] = {}
    for name, endpoint in record.endpoints.items():
        if endpoint.side == side:
            down.setdefault(endpoint.service, []).append(record.streaks[name].failures >= failures)
    return {service for service, instances in down.items() if all(instances)}
