"""Probe answers -> verdict. Pure: no network, no clock.

Three sides are probed: every new instance directly, every old one directly (which version is at fault?), and every public endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

RELEASE_HEADER = "x-azora-release"  # request header, canary|stable: a test through the real edge
DEPLOYMENT_HEADER = "x-azora-deployment"  # response header: the release that was chosen first, even if failover answered
NEW, OLD, PUBLIC = "new", "old", "public"
LONGEST = 200  # characters of a service's answer that are kept as its version; no release has more (release.LONGEST)


@dataclass(frozen=True)
class Answer:
    """The answer to one request: an HTTP response, or ``failure`` (timeout, refused, broken) and its detail."""

    milliseconds: float
    status: int | None = None
    content_type: str = ""
    body: bytes = b""
    deployment: str | None = None  # the release that the edge chose, from its response header
    failure: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Endpoint:
    """One address that is probed. ``versions``: the versions (without v) that it may answer; empty: any.

    ``via``: how to connect to it (``probes.Dial``) when this machine cannot connect directly.
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
        """Return whether the endpoint is healthy."""
        return self.outcome == "healthy"


def classify(endpoint: Endpoint, answer: Answer) -> Finding:
    """Return the finding of an answer: healthy is 200 with ``{"status": "healthy", "version": …}`` and an expected version."""
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
    """Consecutive failures of one endpoint, and how many of these requests the edge had sent to the old version."""

    failures: int = 0
    of_old: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
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

    def add(self, findings: Iterable[Finding]) -> None:
        """Add the findings of one tick. Endpoints that are no longer probed are dropped."""
        by_name = {finding.endpoint.name: finding for finding in findings}
        self.streaks = {name: self._continue_streak(finding) for name, finding in by_name.items()}
        self.endpoints = {name: finding.endpoint for name, finding in by_name.items()}

    def _continue_streak(self, finding: Finding) -> Streak:
        if finding.passed:
            return Streak()
        streak = self.streaks.get(finding.endpoint.name, Streak())
        old = finding.deployment is not None and finding.deployment != self.release
        return Streak(streak.failures + 1, streak.of_old + old, finding.detail)


def judge(record: Record, retries: int) -> Verdict:
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
    return Verdict(tuple(abort), tuple(hold), tuple(notes), tuple(failing), frozenset(old_failing))


def _services_down(record: Record, side: str, failures: int) -> set[str]:
    """Return the services of which every instance of a side has failed at least ``failures`` times in a row."""
    down: dict[str, list[bool]] = {}
    for name, endpoint in record.endpoints.items():
        if endpoint.side == side:
            down.setdefault(endpoint.service, []).append(record.streaks[name].failures >= failures)
    return {service for service, instances in down.items() if all(instances)}
