"""Watching one stage: every interval probe everything at once, read the edge's counters, decide, say so.

Uses edges (probes, the target) and decisions (health, rollout); it moves nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azora_ci import rollout_report
from azora_ci.clock import Clock, rfc3339
from azora_ci.config import Service
from azora_ci.envoy import RELEASE_HEADER
from azora_ci.errors import UnreachableError
from azora_ci.health import NEW, OLD, PUBLIC, Answer, Endpoint, Finding, Record, Verdict, classify, judge
from azora_ci.probes import Prober, Request, request_of
from azora_ci.process import Processes
from azora_ci.rollout import (
    Action,
    Counters,
    Decision,
    Limits,
    Pair,
    Progress,
    Stage,
    Traffic,
    judge_traffic,
    next_action,
    synthetic_now,
    unseen,
)
from azora_ci.targets import Instance, Observation, Release, Target

HOLD_INTERVALS = 3  # a stage whose verdict is open is held for at least so many intervals beyond its end
LONGEST_HOLD = 300.0  # seconds
LONGEST_PROBE = 5.0  # seconds for one probe
SYNTHETIC_AT_ONCE = 50  # per service, version and tick: making up samples must neither attack a service nor delay the probes


Counts = Mapping[tuple[str, str], Counters]  # (service, release id) -> counters


@dataclass(frozen=True)
class Rules:
    """How a stage is watched: seconds between ticks, failures in a row, limits, and what an open verdict means."""

    interval: float
    retries: int
    limits: Limits
    inconclusive: str


@dataclass(frozen=True)
class Subject:
    """What is compared: the new release and the one before (None on a first deployment).

    ``added``: ids of services that the one before has not; of them there is nothing to compare with.
    """

    new: Release
    old_id: str | None
    old_version: str | None
    services: tuple[Service, ...]
    added: frozenset[str] = frozenset()

    def old_of(self, service_id: str) -> str | None:
        """Return the id of the release that a service is compared with."""
        return None if service_id in self.added else self.old_id

    @property
    def ids(self) -> dict[str, str]:
        """Return version -> release id, the new one first."""
        found = {self.new.version: self.new.id}
        if self.old_id and self.old_version:
            found[self.old_version] = self.old_id
        return found

    def public_endpoints(self, percent: int) -> list[Endpoint]:
        """Return the public endpoints; while traffic is split either version is right, at 100 % only the new one."""
        right = {self.new.bare}
        if percent < 100 and self.old_version:
            right.add(self.old_version.removeprefix("v"))
        return [Endpoint(f"{one.id} public", one.id, PUBLIC, one.public_health_url, frozenset(right)) for one in self.services]


@dataclass
class Tally:
    """What has been counted in a stage so far."""

    probes: int = 0
    failed: int = 0
    public: int = 0
    public_failed: int = 0
    synthetic: int = 0
    decisions: list[dict[str, Any]] = field(default_factory=list)  # one a tick, with the numbers it was made from
    failures: dict[str, str] = field(default_factory=dict)  # endpoint -> its last failure


@dataclass
class Bake:
    """Watches the stages of one rollout. Failures in a row and the old version's baseline span stages, so they live here."""

    target: Target
    subject: Subject
    rules: Rules
    processes: Processes
    clock: Clock
    prober: Prober = field(init=False)
    record: Record = field(init=False)
    base: Counts = field(init=False)  # when the rollout began: the start of the old version's baseline
    running: _Stage | None = None

    def __post_init__(self) -> None:
        self.prober = Prober(self.clock)
        self.record = Record(self.subject.new.id)
        self.base = self.target.observe().counters

    def begin(self, stage: Stage) -> None:
        """Note that a stage begins, before its weight is moved: what interrupts it from then on finds it in the evidence."""
        self.running = _Stage(self, stage)

    def watch(self, weights: Mapping[str, Mapping[str, int]]) -> tuple[Decision, dict[str, Any]]:
        """Watch the stage that began, and return (advance or abort, its evidence). CancelledError may interrupt it.

        ``weights`` are those that were read back from the edge.
        """
        assert self.running is not None  # noqa: S101 - begin() comes first
        self.running.count_from_here(weights)
        decision = self.running.watch()
        evidence = self.running.evidence("healthy" if decision.action is Action.ADVANCE else "aborted", decision.reason)
        self.running = None
        return decision, evidence

    def interrupted(self, status: str, reason: str) -> list[dict[str, Any]]:
        """Return the evidence of the stage that had begun when something else ended it; empty between stages."""
        return [self.running.evidence(status, reason)] if self.running else []

    def pairs(self, observation: Observation, start: Counts) -> dict[str, Pair]:
        """Return what is compared of every service; ``start``: the counts when the stage began."""
        found = {}
        for service in self.subject.services:
            old = self.subject.old_of(service.id)
            new = self._since(observation, start, service.id, self.subject.new.id)
            if old is None:
                found[service.id] = Pair(new, None)
            else:
                baseline, beside = (self._since(observation, since, service.id, old) for since in (self.base, start))
                found[service.id] = Pair(new, baseline, beside)
        return found

    def by_version(self, observation: Observation, start: Counts) -> dict[str, Counters]:
        """Return version -> counters of all services since the stage began."""
        return {
            version: rollout_report.total(self._since(observation, start, one.id, release) for one in self.subject.services)
            for version, release in self.subject.ids.items()
        }

    @staticmethod
    def _since(observation: Observation, start: Counts, service: str, release: str) -> Counters:
        now = observation.counters.get((service, release), Counters())
        return now.since(start.get((service, release), Counters()))


class _Stage:
    """One stage being watched."""

    def __init__(self, bake: Bake, stage: Stage) -> None:
        self._bake = bake
        self._stage = stage
        self.weights: Mapping[str, Mapping[str, int]] = {}
        self._target, self._subject, self._rules = bake.target, bake.subject, bake.rules
        self._clock = bake.clock
        self._tally = Tally()
        self._started_at = rfc3339(self._clock.now())
        self._last, self._failing = (0, 0), list[str]()  # of the latest tick: (passed, all) probes, texts of the failed ones
        self._start_time = self._clock.monotonic()
        self._start: Counts | None = None  # until the edge's counters could be read
        self._observation: Observation | None = None
        self._instances: tuple[Instance, ...] = self._target.instances(self._subject.new.id)
        services = {one.id for one in self._subject.services}
        old = self._target.instances(self._subject.old_id) if self._subject.old_id else ()
        self._old = [one for one in old if one.service in services]  # a service that the configuration dropped is not compared

    def count_from_here(self, weights: Mapping[str, Mapping[str, int]]) -> None:
        """Count from the moment at which the weights were read back; what came before belongs to the stage before."""
        self.weights = weights
        self._start_time, self._started_at = self._clock.monotonic(), rfc3339(self._clock.now())
        self._start = self._observation = None
        self._observe()  # a connection lost at this moment is no worse than one lost at a tick

    def watch(self) -> Decision:
        """Tick until the stage is over or must be aborted."""
        interval = min(self._rules.interval, self._stage.seconds) or self._rules.interval
        hold = max(HOLD_INTERVALS * interval, min(self._stage.seconds, LONGEST_HOLD))
        wanted: dict[tuple[str, str], int] = {}
        decision = Decision(Action.ABORT, "no tick came")
        # Two intervals more than the longest hold: the last tick must find that the hold is over.
        for elapsed in self._clock.ticks(interval, self._stage.seconds + hold + 2 * interval):
            self._target.renew()
            health, traffic = self._tick(wanted, min(LONGEST_PROBE, max(1.0, interval)))
            progress = Progress(elapsed, self._stage.seconds, hold)
            decision = next_action(progress, health, traffic, inconclusive=self._rules.inconclusive)
            self._note(elapsed, decision, traffic)
            if decision.action in {Action.ADVANCE, Action.ABORT}:
                return decision
            wanted = self._wanted(traffic, elapsed, interval)
        return Decision(Action.ABORT, f"no verdict in time: {decision.reason}")

    def _tick(self, wanted: Mapping[tuple[str, str], int], timeout: float) -> tuple[Verdict, Traffic]:
        endpoints = [self._target.endpoint(one, NEW) for one in self._instances]
        endpoints += [self._target.endpoint(one, OLD) for one in self._old]
        endpoints += self._subject.public_endpoints(self._stage.percent)
        requests = [request_of(endpoint) for endpoint in endpoints] + self._synthetic(wanted)
        answers = self._bake.prober.fetch_all(requests, timeout)
        findings = [classify(endpoint, answer) for endpoint, answer in zip(endpoints, answers, strict=False)]
        findings += self._observe()
        self._count(findings, len(requests) - len(endpoints))
        self._bake.record.add(findings)
        health = judge(self._bake.record, self._rules.retries)
        if self._observation is None:
            pairs = [(one.id, self._subject.old_of(one.id) is not None) for one in self._subject.services]
            return health, unseen(pairs, self._rules.limits)
        return health, judge_traffic(self._bake.pairs(self._observation, self._start or {}), self._rules.limits, health.doubt)

    def _observe(self) -> list[Finding]:
        endpoint = Endpoint("edge counters", "edge", NEW, "", frozenset())
        try:
            self._observation = self._target.observe()
        except UnreachableError as error:
            return [classify(endpoint, Answer(0.0, failure="broken", detail=error.what))]
        if self._start is None:
            self._start = self._observation.counters
        return [Finding(endpoint, "healthy", "", 0.0)]

    def _synthetic(self, wanted: Mapping[tuple[str, str], int]) -> list[Request]:
        words = {NEW: "canary", OLD: "stable"}
        urls = {one.id: one.public_health_url for one in self._subject.services}
        return [
            Request(urls[service], {RELEASE_HEADER: words[side]})
            for (service, side), number in wanted.items()
            for _ in range(min(number, SYNTHETIC_AT_ONCE))
        ]

    def _wanted(self, traffic: Traffic, elapsed: float, interval: float) -> dict[tuple[str, str], int]:
        if self._observation is None:
            return {}
        pairs = self._bake.pairs(self._observation, self._start or {})
        left = self._stage.seconds - elapsed
        found = {}
        for (service, side), missing in traffic.missing.items():
            seen = (pairs[service].new if side == NEW else pairs[service].old) or Counters()
            found[service, side] = synthetic_now(missing, seen.requests, elapsed=elapsed, left=left, interval=interval)
        return found

    def _count(self, findings: list[Finding], synthetic: int) -> None:
        tally = self._tally
        tally.synthetic += synthetic
        for finding in findings:
            tally.probes += 1
            tally.failed += not finding.passed
            if finding.endpoint.side == PUBLIC:
                tally.public += 1
                tally.public_failed += not finding.passed
            if not finding.passed:
                tally.failures[finding.endpoint.name] = finding.detail
        self._last = (sum(finding.passed for finding in findings), len(findings))
        times = ", ".join(f"{one.endpoint.name} {one.outcome} {one.milliseconds:.0f} ms" for one in findings)
        self._bake.processes.log_line(f"{self._stage.name} health: {times}")
        self._failing = [f"{finding.endpoint.name}: {finding.detail}" for finding in findings if not finding.passed]

    def _note(self, elapsed: float, decision: Decision, traffic: Traffic) -> None:
        sides = self._bake.by_version(self._observation, self._start or {}) if self._observation else {}
        self._tally.decisions.append(
            {
                "after_seconds": round(elapsed, 3),
                "decision": decision.action.value,
                "reason": decision.reason,
                "probes": {"total": self._last[1], "failed": self._last[1] - self._last[0]},
                "requests": {version: found.requests for version, found in sides.items()},
                "failed": {version: found.failed for version, found in sides.items()},
                "lacking": sum(traffic.missing.values()),
            }
        )
        self._say(elapsed, decision, traffic, sides)

    def _say(self, elapsed: float, decision: Decision, traffic: Traffic, sides: Mapping[str, Counters]) -> None:
        parts = [] if decision.action is Action.WATCH else [decision.action.value.upper()]
        parts.append(decision.reason)
        parts += [f"failing: {', '.join(self._failing)}"] if self._failing else []
        lacking = sum(traffic.missing.values())
        parts += [f"inconclusive yet: {lacking} requests lack"] if lacking and decision.action is Action.WATCH else []
        parts += [f"process ended: {one.name}" for one in self._observation.dead] if self._observation else []
        line = rollout_report.tick_line(self._stage, elapsed, self._last, sides, "; ".join(filter(None, parts)))
        self._bake.processes.say(line)

    def evidence(self, status: str, reason: str) -> dict[str, Any]:
        """Return what the stage observed so far."""
        tally = self._tally
        sides = self._bake.by_version(self._observation, self._start or {}) if self._observation else {}
        return {
            "stage": self._stage.name,
            "traffic_percentage": self._stage.percent,
            "started_at": self._started_at,
            "ended_at": rfc3339(self._clock.now()),
            "duration_minutes": round((self._clock.monotonic() - self._start_time) / 60, 4),
            "planned_minutes": self._stage.seconds / 60,
            "status": status,
            "reason": reason,
            "weights": {route: dict(found) for route, found in self.weights.items()},
            "instances": [one.name for one in self._instances],
            "probes": {"total": tally.probes, "failed": tally.failed},
            "ticks": len(tally.decisions),
            "decisions": tally.decisions,
            "last_failures": dict(tally.failures),
            "availability": round(1 - tally.public_failed / tally.public, 6) if tally.public else 0.0,
            "requests": {version: found.requests for version, found in sides.items()},
            "error_rate": {version: round(found.failed_share, 6) for version, found in sides.items()},
            "traffic": {
                version: rollout_report.traffic_evidence(found, rollout_report.weight_of(self._subject.ids[version], self.weights))
                for version, found in sides.items()
            },
            "synthetic_requests": tally.synthetic,
        }
