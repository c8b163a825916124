"""Watching one stage: at every interval, probe everything at once, read the edge's counters, decide, and print the decision.

Uses edges (probes, the target) and decisions (health, rollout). It moves no traffic itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.config import Service
from azora_ci.core.errors import UnreachableError
from azora_ci.core.process import Processes
from azora_ci.health.answers import (
    CANARY,
    NEW,
    OLD,
    PUBLIC,
    RELEASE_HEADER,
    STABLE,
    Answer,
    EdgeProof,
    Endpoint,
    ProbeResult,
    classify,
    pass_word,
    public_endpoint,
)
from azora_ci.health.log import FILE_NAME as HEALTH_LOG
from azora_ci.health.log import check_line
from azora_ci.health.probes import Prober, ProbeRequest, request_of
from azora_ci.health.traffic import Counters
from azora_ci.rollout import report
from azora_ci.rollout.cause import Beginnings, Cause, of_probes
from azora_ci.rollout.decision import (
    Action,
    Decision,
    Limits,
    Pair,
    Stage,
    StageProgress,
    Traffic,
    Trial,
    both_trials,
    judge_traffic,
    next_action,
    synthetic_requests,
    uncounted_traffic,
)
from azora_ci.rollout.tally import Tally
from azora_ci.rollout.verdict import HealthVerdict, Record, judge
from azora_ci.targets.base import Instance, Observation, Watched
from azora_ci.targets.release import Release
from azora_ci.targets.workers import look

HOLD_INTERVALS = 3  # a stage without a verdict is held for at least this many intervals beyond its end
LONGEST_HOLD = 300.0  # seconds
LONGEST_PROBE = 5.0  # seconds for one probe
SYNTHETIC_AT_ONCE = 50  # per service, version and tick: synthetic requests must neither overload a service nor delay the probes


Counts = Mapping[tuple[str, str], Counters]  # (service, release id) -> counters


@dataclass(frozen=True)
class Rules:
    """How a stage is watched: seconds between ticks, failures in a row that abort, limits, and the action without a verdict."""

    interval: float
    retries: int
    limits: Limits
    inconclusive: str


@dataclass(frozen=True)
class Subject:
    """The releases that are compared: the new release and the previous one (None on a first deployment).

    ``services``: those with a route; ``added``: ids of those that the previous release does not have: nothing is compared with them.
    ``workers``: ids of services without a route.
    """

    new: Release
    old_id: str | None
    old_version: str | None
    services: tuple[Service, ...]
    added: frozenset[str] = frozenset()
    workers: frozenset[str] = frozenset()

    def old_of(self, service_id: str) -> str | None:
        """Return the id of the release that a service is compared with, or None."""
        return None if service_id in self.added else self.old_id

    @property
    def ids(self) -> dict[str, str]:
        """Return version -> release id, the new release first."""
        ids = {self.new.version: self.new.id}
        if self.old_id and self.old_version:
            ids[self.old_version] = self.old_id
        return ids

    def public_endpoints(self, percent: int, edge: EdgeProof | None = None) -> list[Endpoint]:
        """Return the public endpoints. Either version may answer while traffic is split, only the new one at 100 %."""
        old = [self.old_version] if percent < 100 and self.old_version else []
        return [public_endpoint(service, f"{service.id} public", [self.new.version, *old], edge) for service in self.services]


@dataclass
class StageWatch:
    """Watches the stages of one rollout. Failures in a row and the old version's baseline span stages, so they are kept here."""

    target: Watched
    subject: Subject
    rules: Rules
    processes: Processes
    clock: Clock
    prober: Prober = field(init=False)
    record: Record = field(init=False)
    base: Counts = field(init=False)  # counters when the rollout began: the start of the old version's baseline
    running: _Stage | None = None
    restarts: dict[str, int] = field(default_factory=dict)  # worker -> how often it had been started again before it was watched
    edge: EdgeProof | None = None  # what proves which release answers in public
    trials: dict[str, Trial] = field(init=False)  # service -> the tests of users' requests; their evidence spans stages
    own_trials: dict[str, Trial] = field(init=False)  # of our own requests
    seen: Counts = field(default_factory=dict)  # the counters at the latest tick
    beginnings: Beginnings = field(init=False)
    cause: Cause | None = None  # why the latest stage was aborted

    def __post_init__(self) -> None:
        self.prober = Prober(self.clock)
        self.record = Record(self.subject.new.id)
        self.base = self.target.observe().counters
        self.beginnings = Beginnings(rfc3339(self.clock.now()))
        old = {service.id: self.subject.old_of(service.id) for service in self.subject.services}
        before = {service: self.base.get((service, release), Counters()) if release else None for service, release in old.items()}
        self.trials, self.own_trials = both_trials(self.rules.limits, before)

    def begin(self, stage: Stage) -> None:
        """Note that a stage begins, before its weight is moved: if it is interrupted from then on, evidence tells of it."""
        self.running = _Stage(self, stage)

    def watch(self, weights: Mapping[str, Mapping[str, int]]) -> tuple[Decision, dict[str, Any]]:
        """Watch the stage that began, and return (advance or abort, its evidence). CancelledError may interrupt it.

        ``weights``: route -> cluster -> percent, as read back from the edge.
        """
        assert self.running is not None  # noqa: S101 - begin() comes first
        self.running.start_counting(weights)
        decision = self.running.watch()
        evidence = self.running.evidence("healthy" if decision.action is Action.ADVANCE else "aborted", decision.reason)
        self.cause = self.running.cause() if decision.action is Action.ABORT else None
        self.running = None
        return decision, evidence

    def interrupted(self, status: str, reason: str) -> list[dict[str, Any]]:
        """Return the evidence of the stage that was running when the rollout was interrupted; empty between stages."""
        return [self.running.evidence(status, reason)] if self.running else []

    @property
    def sick_workers(self) -> tuple[str, ...]:
        """Return the workers of which an instance of the new version failed at the last tick."""
        failing = {self.record.endpoints[name] for name, streak in self.record.streaks.items() if streak.failures}
        return tuple(sorted({endpoint.service for endpoint in failing if endpoint.side == NEW} & self.subject.workers))

    def pairs(self, observation: Observation, start: Counts) -> dict[str, Pair]:
        """Return service -> counters that are compared. ``start``: the counters when the stage began."""
        pairs = {}
        for service in self.subject.services:
            old = self.subject.old_of(service.id)
            new = self._since(observation, start, service.id, self.subject.new.id)
            if old is None:
                pairs[service.id] = Pair(self.trials[service.id], new, None)
            else:
                baseline, old_in_stage = (self._since(observation, since, service.id, old) for since in (self.base, start))
                pairs[service.id] = Pair(self.trials[service.id], new, baseline, old_in_stage)
        return pairs

    def add_tick(self, observation: Observation, *, alone: bool) -> None:
        """Add to the tests what was counted since the tick before; ``alone``: all traffic goes to the new version."""
        for service, trial in self.trials.items():
            releases = (self.subject.new.id, self.subject.old_of(service) or "")
            new, old = (self._since(observation, self.seen, service, release) for release in releases)
            trial.add(new, old, alone=alone and trial.has_old)
            self.own_trials[service].add(new.of_ours(), old.of_ours(), alone=False)
        self.seen = observation.counters
        self.note_evidence(rfc3339(self.clock.now()))

    def note_evidence(self, at: str) -> None:
        """Note how much evidence the tests have at a moment: whatever is proved later has grown since."""
        self.beginnings.note(at, self.trials, self.own_trials)

    def by_version(self, observation: Observation, start: Counts) -> dict[str, Counters]:
        """Return version -> counters of all services since the stage began."""
        return {
            version: report.total(self._since(observation, start, service.id, release) for service in self.subject.services)
            for version, release in self.subject.ids.items()
        }

    @staticmethod
    def _since(observation: Observation, start: Counts, service: str, release: str) -> Counters:
        current = observation.counters.get((service, release), Counters())
        return current.since(start.get((service, release), Counters()))


class _Stage:
    """One stage that is watched."""

    def __init__(self, stage_watch: StageWatch, stage: Stage) -> None:
        self._watch = stage_watch
        self._stage = stage
        self.weights: Mapping[str, Mapping[str, int]] = {}
        self._target, self._subject, self._rules = stage_watch.target, stage_watch.subject, stage_watch.rules
        self._clock = stage_watch.clock
        self._tally = Tally()
        self._started_at = rfc3339(self._clock.now())
        self._probe_counts, self._failing = (0, 0), list[str]()  # of the latest tick: (passed, all) probes, texts of failed probes
        self._start_time = self._clock.monotonic()
        self._verdicts = HealthVerdict(), Traffic()  # of the latest tick
        self._start: Counts | None = None  # until the edge's counters could be read
        self._observation: Observation | None = None
        self._instances: tuple[Instance, ...] = self._target.instances(self._subject.new.id)
        services = {service.id for service in self._subject.services} | self._subject.workers
        old = self._target.instances(self._subject.old_id) if self._subject.old_id else ()
        # Without services that the configuration dropped.
        self._old = [instance for instance in old if instance.service in services and not instance.resting]

    def start_counting(self, weights: Mapping[str, Mapping[str, int]]) -> None:
        """Start the counts when the weights were read back; earlier requests belong to the previous stage."""
        self.weights = weights
        self._start_time, self._started_at = self._clock.monotonic(), rfc3339(self._clock.now())
        self._start = self._observation = None
        self._watch.note_evidence(self._started_at)
        self._observe()  # an UnreachableError is tolerated here as at a tick

    def watch(self) -> Decision:
        """Tick until the stage is over or must be aborted."""
        interval = min(self._rules.interval, self._stage.seconds) or self._rules.interval
        hold = max(HOLD_INTERVALS * interval, min(self._stage.seconds, LONGEST_HOLD))
        synthetic: dict[tuple[str, str], int] = {}
        decision = Decision(Action.ABORT, "no tick came")
        # Two intervals more than the hold: at the last tick, the hold must be over.
        for elapsed in self._clock.ticks(interval, self._stage.seconds + hold + 2 * interval):
            self._target.renew()
            health, traffic = self._verdicts = self._tick(synthetic, min(LONGEST_PROBE, max(1.0, interval)))
            progress = StageProgress(elapsed, self._stage.seconds, hold)
            decision = next_action(progress, health, traffic, inconclusive=self._rules.inconclusive)
            self._record_decision(elapsed, decision, traffic)
            if decision.action in {Action.ADVANCE, Action.ABORT}:
                return decision
            synthetic = self._plan_synthetic(traffic, elapsed, interval)
        return Decision(Action.ABORT, f"no verdict in time: {decision.reason}")

    def _tick(self, synthetic: Mapping[tuple[str, str], int], timeout: float) -> tuple[HealthVerdict, Traffic]:
        endpoints = [self._target.endpoint(instance, NEW) for instance in self._instances if instance.address]
        endpoints += [self._target.endpoint(instance, OLD) for instance in self._old if instance.address]
        endpoints += self._subject.public_endpoints(self._stage.percent, self._watch.edge)
        requests = [request_of(endpoint) for endpoint in endpoints] + self._synthetic_probes(synthetic)
        answers = self._watch.prober.fetch_all(requests, timeout)
        findings = [classify(self._by_release(endpoint, answer), answer) for endpoint, answer in zip(endpoints, answers, strict=False)]
        findings += self._observe() + self._look_at_workers()
        self._count(findings, len(requests) - len(endpoints))
        self._watch.record.add(findings, rfc3339(self._clock.now()))
        health = judge(self._watch.record, self._rules.retries)
        if self._observation is None:
            return health, uncounted_traffic(self._watch.trials, self._rules.limits)
        self._watch.add_tick(self._observation, alone=self._stage.percent == 100)
        pairs = self._watch.pairs(self._observation, self._start or {})
        users = judge_traffic(pairs, self._rules.limits, health.doubt)
        own = {service: pair.of_ours(self._watch.own_trials[service]) for service, pair in pairs.items()}
        reasons = tuple(f"of our own requests, {reason}" for reason in judge_traffic(own, self._rules.limits, health.doubt).abort)
        return health, replace(users, abort=users.abort + reasons)

    def _by_release(self, endpoint: Endpoint, answer: Answer) -> Endpoint:
        """Return a public endpoint as the old release was configured, where that answered."""
        if endpoint.side != PUBLIC or self._subject.old_id is None or answer.deployment != self._subject.old_id:
            return endpoint
        settings = {instance.service: instance.health for instance in self._old}
        return replace(endpoint, health=settings.get(endpoint.service, endpoint.health))

    def _observe(self) -> list[ProbeResult]:
        endpoint = Endpoint("edge counters", "edge", NEW, "", frozenset())
        try:
            self._observation = self._target.observe()
        except UnreachableError as error:
            return [classify(endpoint, Answer(0.0, failure="broken", detail=error.what))]
        if self._start is None:
            self._start = self._watch.seen = self._observation.counters
        return [ProbeResult(endpoint, "healthy", "", 0.0)]

    def _look_at_workers(self) -> list[ProbeResult]:
        sides = {instance: NEW for instance in self._instances if instance.worker}
        sides |= {instance: OLD for instance in self._old if instance.worker}
        try:
            states = self._target.states(list(sides)) if sides else ()
        except UnreachableError as error:
            return [classify(Endpoint("workers", "workers", NEW, ""), Answer(0.0, failure="broken", detail=error.what))]
        findings = []
        for (instance, side), state in zip(sides.items(), states, strict=True):
            before = self._watch.restarts.setdefault(instance.name, state.restarts if side == OLD else 0)
            findings.append(look(instance, side, state, before))
        return findings

    def _synthetic_probes(self, counts: Mapping[tuple[str, str], int]) -> list[ProbeRequest]:
        if self._watch.edge is None:
            return []
        words = {NEW: pass_word(self._watch.edge.secret, CANARY), OLD: pass_word(self._watch.edge.secret, STABLE)}
        urls = {service.id: service.public_health_url for service in self._subject.services}
        return [
            ProbeRequest(urls[service], {RELEASE_HEADER: words[side]})
            for (service, side), number in counts.items()
            for _ in range(min(number, SYNTHETIC_AT_ONCE))
        ]

    def _plan_synthetic(self, traffic: Traffic, elapsed: float, interval: float) -> dict[tuple[str, str], int]:
        if self._observation is None:
            return {}
        pairs = self._pairs()
        left = self._stage.seconds - elapsed
        counts = {}
        for (service, side), missing in traffic.missing.items():
            counters = (pairs[service].new if side == NEW else pairs[service].old) or Counters()
            counts[service, side] = synthetic_requests(missing, counters.samples, elapsed=elapsed, left=left, interval=interval)
        return counts

    def _count(self, findings: list[ProbeResult], synthetic: int) -> None:
        self._tally.synthetic += synthetic
        self._tally.add(findings, {service.id for service in self._subject.services})
        self._probe_counts = (sum(finding.passed for finding in findings), len(findings))
        times = ", ".join(f"{finding.endpoint.name} {finding.outcome} {finding.milliseconds:.0f} ms" for finding in findings)
        self._watch.processes.log.write(f"{self._stage.name} health: {times}")
        self._watch.processes.log.write_json(HEALTH_LOG, (check_line(self._stage.name, finding) for finding in findings))
        self._failing = [f"{finding.endpoint.name}: {finding.detail}" for finding in findings if not finding.passed]

    def _record_decision(self, elapsed: float, decision: Decision, traffic: Traffic) -> None:
        sides = self._watch.by_version(self._observation, self._start or {}) if self._observation else {}
        lacking = sum(traffic.missing.values())
        self._tally.decisions.append(report.tick_evidence(elapsed, decision, self._probe_counts, sides, lacking))
        self._print_tick(elapsed, decision, traffic, sides)

    def _print_tick(self, elapsed: float, decision: Decision, traffic: Traffic, sides: Mapping[str, Counters]) -> None:
        parts = [] if decision.action is Action.WATCH else [decision.action.value.upper()]
        parts.append(decision.reason)
        parts += [f"failing: {', '.join(self._failing)}"] if self._failing else []
        lacking = sum(traffic.missing.values())
        parts += [f"inconclusive yet: {lacking} requests lack"] if lacking and decision.action is Action.WATCH else []
        parts += [f"process ended: {instance.name}" for instance in self._observation.dead] if self._observation else []
        line = report.tick_line(self._stage, elapsed, self._probe_counts, sides, "; ".join(filter(None, parts)))
        self._watch.processes.log.say(line)

    def _pairs(self) -> dict[str, Pair]:
        return self._watch.pairs(self._observation, self._start or {}) if self._observation else {}

    def cause(self) -> Cause | None:
        """Return what decided that the stage is aborted; None where it was that too little could be seen."""
        (health, traffic), watch = self._verdicts, self._watch
        if traffic.abort and not health.abort and not health.hold:
            finding = watch.beginnings.finding(traffic.abort, self._rules.limits, watch.trials, watch.own_trials)
        else:
            finding = of_probes(watch.record, self._rules.retries)
        if finding is None:
            return None
        pair = self._pairs().get(finding.service)
        sides = zip(self._subject.ids, (pair.new, pair.old), strict=False) if pair else ()
        counters = {version: counted.of_ours() if finding.ours else counted for version, counted in sides if counted is not None}
        own = {(each.address, each.host): each.name for each in self._instances if each.service == finding.service}
        return Cause(finding, self._subject.new.id, self._started_at, counters, own)

    def evidence(self, status: str, reason: str) -> dict[str, Any]:
        """Return the evidence of the stage so far."""
        sides = self._watch.by_version(self._observation, self._start or {}) if self._observation else {}
        return {
            "stage": self._stage.name,
            "traffic_percentage": self._stage.percent,
            "started_at": self._started_at,
            "ended_at": rfc3339(self._clock.now()),
            "duration_minutes": round((self._clock.monotonic() - self._start_time) / 60, 4),
            "planned_minutes": self._stage.seconds / 60,
            "status": status,
            "reason": reason,
            "weights": {route: dict(clusters) for route, clusters in self.weights.items()},
            "instances": [instance.name for instance in self._instances],
            **self._tally.evidence(),
            "requests": {version: counters.requests for version, counters in sides.items()},
            "error_rate": {version: round(counters.failed_share, 6) for version, counters in sides.items()},
            "traffic": {
                version: report.traffic_evidence(counters, report.weight_of(self._subject.ids[version], self.weights))
                for version, counters in sides.items()
            },
            "by_service": report.service_evidence(self._subject.ids, self._pairs()),
        }
