"""Why a rollout went back, so that a person believes it: who fails where and since when, both versions' numbers, and requests that failed.

What the verdict knows is a ``Cause``. The edge's log, which is read once traffic is back, adds paths, an instance and examples. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from azora_ci.health.answers import OLD
from azora_ci.health.failures import OURS, USERS, Failure
from azora_ci.health.traffic import Counters, percentile
from azora_ci.rollout.decision import SLOW_SHARE, Limits, Trial
from azora_ci.rollout.sequential import AT_ONCE, Comparison
from azora_ci.rollout.verdict import Record

HEALTH, ERRORS, LATENCY, NOT_FOUND = "health", "errors", "latency", "not_found"
PATHS = 3  # at most
# Failures of one instance by chance: of two instances, eight requests meet the same one once in 128 times.
CONCENTRATED, CONCENTRATED_SHARE = 8, 0.9
MILLION = 1e6
# Near its lowest is evidence below twice that, which a failed request exceeds, or below what enters the bets tick by tick in any case.
NEAR, NONE = 2.0, 1 - AT_ONCE
_ID = re.compile(r"(?<=/)(?:\d+|[0-9a-fA-F-]{16,})(?=/|$)")  # a part of a path that names one thing among many


@dataclass(frozen=True)
class Finding:
    """What decided: an endpoint that was probed, or a test of a service's requests. ``ours``: of our own requests, not of users'."""

    kind: str
    service: str
    since: str
    test: str
    endpoint: str | None = None
    ours: bool = False


@dataclass(frozen=True)
class Cause:
    """A finding, and what is known of it when a stage is aborted. ``began``: when the stage did; ``release``: the new version's id.

    ``versions``: version -> its counters, the new one's in the stage, the old one's since the rollout began; ``instances``: (``host:port``,
    host) -> name of the new version's instances.
    """

    finding: Finding
    release: str
    began: str
    versions: Mapping[str, Counters]
    instances: Mapping[tuple[str, str], str]

    def explained(self, read: Callable[[str], Sequence[Failure]]) -> dict[str, Any]:
        """Return the cause as evidence, with what ``read`` finds in the edges' logs since the stage began; the verdict stands without."""
        try:
            return self.document(read(self.began))
        except Exception as error:
            return self.document(None, f"the edge's log could not be read: {error}")

    def document(self, failures: Sequence[Failure] | None, problem: str | None = None) -> dict[str, Any]:
        """Return the cause as evidence. ``failures``: by the edges' logs since the stage began; None: they could not be read."""
        own = [failure for failure in failures or () if self._is_about(failure)]
        paths = Counter(f"{failure.method} {_ID.sub('*', failure.path)}" for failure in own)
        return {
            "kind": self.finding.kind,
            "service": self.finding.service,
            "endpoint": self.finding.endpoint,
            "since": self.finding.since,
            "test": self.finding.test,
            "versions": {version: _numbers(counters) for version, counters in self.versions.items()},
            "logged": None if failures is None else len(own),
            "paths": [{"path": path, "requests": number} for path, number in paths.most_common(PATHS)],
            "instance": self._concentration(own),
            "examples": [own[index].line(self._name(own[index])) for index in sorted({0, len(own) // 2, len(own) - 1})] if own else [],
            "log_problem": problem,
        }

    def _is_about(self, failure: Failure) -> bool:
        finding = self.finding
        kinds = {OURS} if finding.ours else {USERS, OURS} if finding.kind == HEALTH else {USERS}
        return (failure.service, failure.release) == (finding.service, self.release) and failure.kind in kinds

    def _name(self, failure: Failure) -> str:
        return self.instances.get((failure.instance, failure.host), failure.instance or "no instance")

    def _concentration(self, failures: Sequence[Failure]) -> str | None:
        """Return the instance of which nearly all failures are; None without one, or where there is only one.

        Where several instances were tried, the log names the last, which says nothing.
        """
        named = Counter(self._name(failure) for failure in failures if failure.instance and failure.attempts <= 1)
        name, number = named.most_common(1)[0] if named else ("", 0)
        enough = number >= CONCENTRATED and number >= CONCENTRATED_SHARE * len(failures)
        return name if enough and len(self.instances) > 1 else None


def _numbers(counters: Counters) -> dict[str, Any]:
    p95 = percentile(counters.buckets, 0.95)
    share, rounded = round(counters.failed_share, 6), None if p95 is None else round(p95, 1)
    return {"requests": counters.requests, "failed": counters.failed, "error_rate": share, "p95_ms": rounded}


@dataclass
class Beginnings:
    """Since when the evidence of each test grows: the latest tick at which it was near its lowest. ``began``: before all ticks."""

    began: str
    lowest: dict[tuple[bool, str, str], tuple[float, str]] = field(default_factory=dict)  # (evidence, tick)

    def note(self, now: str, *tests: Mapping[str, Trial]) -> None:
        """Note the tests of users' requests and of ours after a tick."""
        for ours, trials in enumerate(tests):
            for service, trial in trials.items():
                for kind, comparison in _comparisons(trial):
                    key, evidence = (bool(ours), service, kind), sum(comparison.wealth) if comparison.ticks else 1.0
                    lowest, _ = self.lowest.get(key, (1.0, self.began))
                    if evidence <= max(NEAR * lowest, NONE):
                        self.lowest[key] = (min(evidence, lowest), now)

    def finding(self, reasons: Iterable[str], limits: Limits, *tests: Mapping[str, Trial]) -> Finding | None:
        """Return the first test with a proof that ``reasons`` name, of users' requests before ours; None without one."""
        text = "; ".join(reasons)
        for ours, trials in enumerate(tests):
            for service, trial in trials.items():
                for kind, comparison in _comparisons(trial):
                    if comparison.proved and f"{service}: " in text:
                        _, since = self.lowest.get((bool(ours), service, kind), (1.0, self.began))
                        return Finding(kind, service, since, sentence(kind, comparison, limits), ours=bool(ours))
        return None


def _comparisons(trial: Trial) -> list[tuple[str, Comparison]]:
    tests = ((ERRORS, trial.errors), (LATENCY, trial.slow), (NOT_FOUND, trial.not_found))
    return [(kind, comparison) for kind, comparison in tests if comparison is not None]


def of_probes(record: Record, retries: int) -> Finding | None:
    """Return the endpoint, other than the old version's, that failed most often in a row; None without one."""
    failing = {name: streak for name, streak in record.streaks.items() if streak.failures and record.endpoints[name].side != OLD}
    if not failing:
        return None
    name = max(failing, key=lambda name: failing[name].failures)
    streak = failing[name]
    test = f"Probed at every tick: {streak.failures} failures in a row, {retries} take a rollout back; the last one: {streak.detail}"
    return Finding(HEALTH, record.endpoints[name].service, streak.since, test, name)


def sentence(kind: str, comparison: Comparison, limits: Limits) -> str:
    """Return in one sentence what was tested, what evidence was found, and how often such evidence may deceive."""
    evidence, needed = sum(comparison.wealth), 1 / comparison.budget
    against = "its record" if comparison.ceiling is not None else "the old version"
    what = {
        ERRORS: f"share of failed requests is more than {limits.error_points:g} points",
        LATENCY: f"share of slow requests is more than {SLOW_SHARE:.0%}",
        NOT_FOUND: f"share of 404 answers, which the log leaves out, is more than {limits.not_found_points or 0:g} points",
    }[kind]
    odds = f"{evidence:,.0f}" if evidence < MILLION else "more than a million"
    return (
        f"Tested after each of {comparison.ticks} ticks, whether its {what} above that of {against}: "
        f"the evidence is {odds} to 1, {needed:,.0f} to 1 was needed, "
        f"so that at most {limits.false_abort_percent:g} % of rollouts within the limits are taken back"
    )
