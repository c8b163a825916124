"""Probe answers -> verdict. Pure: no network, no clock.

Three sides are probed: every new instance directly, every old instance directly (whose fault is it?), and every public endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NEW, OLD, PUBLIC = "new", "old", "public"
LONGEST = 200  # characters of what a service says its version is; no release's has more (release.LONGEST)


@dataclass(frozen=True)
class Answer:
    """What came back from one request: an HTTP answer, or ``failure`` (timeout, refused, broken) and its detail."""

    milliseconds: float
    status: int | None = None
    content_type: str = ""
    body: bytes = b""
    deployment: str | None = None  # which release the edge chose, from its response header
    failure: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Endpoint:
    """One address that is probed; ``versions`` are those (without v) that are right there; empty: any.

    ``via``: how a connection to it is made (``probes.Dial``) where this machine cannot connect by itself.
    """

    name: str
    service: str
    side: str  # new | old | public
    url: str
    versions: frozenset[str] = frozenset()
    via: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Finding:
    """One probe's result. ``outcome``: healthy, status, html, not-json, unhealthy, wrong-version, timeout, refused, broken."""

    endpoint: Endpoint
    outcome: str
    detail: str
    milliseconds: float
    status: int | None = None
    version: str | None = None
    deployment: str | None = None

    @property
    def passed(self) -> bool:
        """Say whether the endpoint is healthy."""
        return self.outcome == "healthy"


def classify(endpoint: Endpoint, answer: Answer) -> Finding:
    """Return what an answer means: healthy is 200 with ``{"status": "healthy", "version": …}`` and a right version."""
    version: str | None = None
    if answer.failure is not None:
        outcome, detail = answer.failure, answer.detail
    elif answer.status != 200:
        outcome, detail = "status", f"HTTP {answer.status}"
    elif "html" in answer.content_type.lower():
        outcome, detail = "html", f"HTTP 200 with {answer.content_type}, not JSON"
    else:
        outcome, detail, version = _read(answer.body, endpoint.versions)
    return Finding(endpoint, outcome, detail, answer.milliseconds, answer.status, version, answer.deployment)


def _read(body: bytes, versions: frozenset[str]) -> tuple[str, str, str | None]:
    try:
        document = json.loads(body)
    except ValueError:
        return "not-json", f"HTTP 200 with a body that is not JSON: {_short(body)}", None
    if not isinstance(document, dict):
        return "not-json", f"HTTP 200 with a body that is no JSON object: {_short(body)}", None
    version = document["version"][:LONGEST] if isinstance(document.get("version"), str) else None
    if document.get("status") != "healthy":
        return "unhealthy", f"says status {str(document.get('status'))[:80]!r}", version
    if version is None:
        return "wrong-version", "names no version", None
    if versions and version not in versions:
        return "wrong-version", f"answers version {' '.join(version[:80].split())}, expected {' or '.join(sorted(versions))}", version
    return "healthy", f"version {version}", version


def _short(body: bytes) -> str:
    return repr(body[:60].decode("utf-8", "replace"))


@dataclass(frozen=True)
class Streak:
    """Consecutive failures of one endpoint, and how many of them the edge had given to the old version."""

    failures: int = 0
    of_old: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """Reasons to abort; reasons to hold (both versions fail: not the new one's fault); notes that change nothing.

    ``failing``: endpoints that fail, but not often enough yet to abort; a stage does not end on such a probe. ``doubt``: services of
    which no old instance answered the last probe: whose fault their failed requests are cannot be told just now.
    """

    abort: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    doubt: frozenset[str] = frozenset()


@dataclass
class Record:
    """The consecutive failures of every endpoint, fed tick by tick. ``release`` is the new deployment's id."""

    release: str
    streaks: dict[str, Streak] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Take one tick's findings. Endpoints that are no longer probed are forgotten."""
        found = list(findings)
        self.streaks = {finding.endpoint.name: self._after(finding) for finding in found}
        self.endpoints = {finding.endpoint.name: finding.endpoint for finding in found}

    def _after(self, finding: Finding) -> Streak:
        if finding.passed:
            return Streak()
        before = self.streaks.get(finding.endpoint.name, Streak())
        old = finding.deployment is not None and finding.deployment != self.release
        return Streak(before.failures + 1, before.of_old + old, finding.detail)


def judge(record: Record, retries: int) -> Verdict:
    """Return the verdict: an endpoint that failed ``retries`` times in a row aborts, unless that is not the new version's fault."""
    abort: list[str] = []
    hold: list[str] = []
    notes: list[str] = []
    failing: list[str] = []
    old_failing = _services_down(record, OLD, 1)
    new_failing = {one.service for name, one in record.endpoints.items() if one.side == NEW and record.streaks[name].failures}
    old_down = _services_down(record, OLD, max(1, retries - 1))
    new_down = _services_down(record, NEW, max(1, retries - 1))
    for name, streak in record.streaks.items():
        endpoint = record.endpoints[name]
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
    return Verdict(tuple(abort), tuple(hold), tuple(notes), tuple(failing), frozenset(old_failing))


def _services_down(record: Record, side: str, failures: int) -> set[str]:
    """Return services of which every instance of a side has failed that often in a row."""
    healthy: Mapping[str, list[bool]] = {}
    down: dict[str, list[bool]] = dict(healthy)
    for name, endpoint in record.endpoints.items():
        if endpoint.side == side:
            down.setdefault(endpoint.service, []).append(record.streaks[name].failures >= failures)
    return {service for service, found in down.items() if all(found)}
