"""Rules of a rollout: its stages, the comparison of two versions' traffic, and the action after each tick. Pure.

The new version's failed requests are compared with the old one's by a sequential test (``sequential.py``) that may be looked at after every
tick; so is the share of requests that take longer than the latency limit, and that of 404 answers, if a limit is configured. All services,
tests and stages share one error budget: of rollouts whose new version is within the limits, at most that share is taken back, if failures
are independent. A failed request is a 5xx answer, one that only failover could answer, one that its user gave up, or one whose answer broke
off.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum

from azora_ci.core.config import RolloutSettings
from azora_ci.core.pipeline import STAGES
from azora_ci.health.answers import NEW, OLD
from azora_ci.health.traffic import Counters, percentile, slower_than
from azora_ci.rollout.sequential import Comparison
from azora_ci.rollout.verdict import HealthVerdict

LATENCY_FLOOR_MS = 100.0  # differences of p95 below this are scheduling noise of a small machine, whatever their factor
SLOW_SHARE = 0.05  # by definition of the p95
# Shares of a service's error budget: both tests, and the old version's record, with which both are compared when it gets no more requests.
ERROR_BUDGET, LATENCY_BUDGET, RECORD_BUDGET = 0.86, 0.1, 0.02
NOT_FOUND_BUDGET = 0.15  # of which the share of 404 answers, where it is judged, takes its tests and record from failed requests
OWN_SHARE = 0.05  # of the whole budget, for the tests of our own requests: the probes among them are judged one by one, too


@dataclass(frozen=True)
class Stage:
    """A stage: its share of traffic and of instances in percent, and its length in seconds."""

    name: str
    percent: int
    seconds: float


def stages(minutes: Sequence[float], *, first: bool) -> tuple[Stage, ...]:
    """Return the plan for (canary, progressive, full) minutes. A first deployment has only the last stage: there is no other version."""
    plan = tuple(Stage(name, percent, length * 60) for (name, percent), length in zip(STAGES, minutes, strict=True))
    return plan[-1:] if first else plan


# --- the verdict on traffic --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Limits of the verdict: percentage points of failed requests above the old version, factor of its p95, samples needed.

    ``false_abort_percent``: the error budget, the percentage of rollouts within the limits that may be taken back.
    ``not_found_points``: percentage points of 404 answers above the old version; None: they are shown, not judged.
    """

    error_points: float
    latency_factor: float
    minimum_requests: int
    false_abort_percent: float = 1.0
    not_found_points: float | None = None

    @classmethod
    def of(cls, settings: RolloutSettings) -> Limits:
        """Return the limits that a deployment configuration sets."""
        names = ("error_rate_points", "latency_factor", "minimum_requests", "false_abort_percent", "not_found_points")
        return cls(*(getattr(settings, name) for name in names))

    @property
    def confidence(self) -> str:
        """Return the probability with which a rollout within the limits is not taken back, as a text."""
        return f"{100 - self.false_abort_percent:g}%"

    @property
    def evidence(self) -> dict[str, float | None]:
        """Return the limits by name, for the record."""
        return {**asdict(self), "latency_floor_ms": LATENCY_FLOOR_MS}

    @property
    def test(self) -> str:
        """Return the tests in words, for the record."""
        not_found = "" if self.not_found_points is None else f"404 answers: more than {self.not_found_points:g} points above; "
        return (
            f"sequential, valid at every tick: a betting martingale of both versions' requests, paired per tick; one-sided, "
            f"{self.confidence} confidence for the whole rollout, all services and stages together; "
            f"failed requests: more than {self.error_points:g} points above the old version's; {not_found}"
            f"p95: {SLOW_SHARE:.0%} more of the new "
            f"version's requests than of the old one's slower than the limit (the factor, and {LATENCY_FLOOR_MS:g} ms more); "
            f"at 100 % compared with the old version's record"
        )


@dataclass(frozen=True)
class Traffic:
    """The verdict on traffic: reasons to abort, and (service, new|old) -> number of requests that lack for a comparison.

    ``doubtful``: reasons that do not count now, because the service's old version fails its probes, too.
    """

    abort: tuple[str, ...] = ()
    missing: Mapping[tuple[str, str], int] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()


class Trial:
    """The tests of one service over the whole rollout. ``sharing``: how many share the error budget; ``before``: what was counted of
    the old version before the rollout, None where there is none to compare with.
    """

    def __init__(self, limits: Limits, sharing: float, before: Counters | None) -> None:
        budget = limits.false_abort_percent / 100 / sharing
        self._limits, self.record_budget, self.has_old = limits, RECORD_BUDGET * budget, before is not None
        known = (before.failed, before.requests) if before else (0, 0)
        self.not_found: Comparison | None = None
        error_budget = ERROR_BUDGET * budget
        if limits.not_found_points is not None and before is not None:  # no number of 404 answers is right or wrong in itself
            error_budget -= NOT_FOUND_BUDGET * budget
            known_404 = (before.not_found, before.requests)
            self.not_found = Comparison(limits.not_found_points / 100, (NOT_FOUND_BUDGET - RECORD_BUDGET) * budget, known=known_404)
        self.errors = Comparison(limits.error_points / 100, error_budget, None if self.has_old else 0.0, known)
        self.slow = Comparison(SLOW_SHARE, LATENCY_BUDGET * budget)
        self.slow_limit: float | None = None  # milliseconds, by the old version's record before this tick
        self._old = Counters()

    def add(self, new: Counters, old: Counters, *, alone: bool) -> None:
        """Add what was counted since the tick before. ``alone``: the old version gets no requests, its record is what is compared with."""
        if alone:
            old = Counters()
            if self.errors.ceiling is None:
                self.errors.compare_with_record((self._old.failed, self._old.requests), self.record_budget)
                if self.not_found:
                    self.not_found.compare_with_record((self._old.not_found, self._old.requests), self.record_budget)
                self.slow.compare_with_record(slower_than(self._old.buckets, self.slow_limit or 0.0), self.record_budget)
        self.errors.add((new.failed, new.requests), (old.failed, old.requests))
        if self.not_found:
            self.not_found.add((new.not_found, new.requests), (old.not_found, old.requests))
        if self.slow_limit is not None:
            self.slow.add(slower_than(new.buckets, self.slow_limit), slower_than(old.buckets, self.slow_limit))
        self._old = self._old.plus(old)
        old_p95 = percentile(self._old.buckets, 0.95)
        if old_p95 is not None and self._old.requests >= self._limits.minimum_requests:
            self.slow_limit = max(old_p95 * self._limits.latency_factor, old_p95 + LATENCY_FLOOR_MS)


def trials(limits: Limits, before: Mapping[str, Counters | None], share: float = 1 - OWN_SHARE) -> dict[str, Trial]:
    """Return the tests of services; ``before``: service -> what was counted of its old version, ``share``: of the error budget."""
    return {service: Trial(limits, len(before) / share, counted) for service, counted in before.items()}


def both_trials(limits: Limits, before: Mapping[str, Counters | None]) -> tuple[dict[str, Trial], dict[str, Trial]]:
    """Return the tests of services for users' requests, and for ours."""
    ours = {service: None if counted is None else counted.of_ours() for service, counted in before.items()}
    return trials(limits, before), trials(limits, ours, OWN_SHARE)


@dataclass(frozen=True)
class Pair:
    """What is known of a service: its tests, and counters: of the new version since the stage began, of the old one since the rollout
    began (its baseline; None on a first deployment), and of the old one since the stage began.
    """

    trial: Trial
    new: Counters
    old: Counters | None
    old_in_stage: Counters = field(default_factory=Counters)

    def of_ours(self, trial: Trial) -> Pair:
        """Return the counters of our own requests with their tests: they must not dilute those of users, and are judged apart."""
        return Pair(trial, self.new.of_ours(), self.old.of_ours() if self.old else None, self.old_in_stage.of_ours())


def uncounted_traffic(tests: Mapping[str, Trial], limits: Limits) -> Traffic:
    """Return the verdict while no counter could be read: all requests lack. ``tests``: those of each service."""
    sides = [(service, side) for service, trial in tests.items() for side in ((NEW, OLD) if trial.has_old else (NEW,))]
    return Traffic(missing=dict.fromkeys(sides, limits.minimum_requests))


def judge_traffic(pairs: Mapping[str, Pair], limits: Limits, doubt: Collection[str] = ()) -> Traffic:
    """Compare both versions of every service. ``doubt``: services whose old version fails its probes now."""
    abort: list[str] = []
    doubtful: list[str] = []
    missing: dict[tuple[str, str], int] = {}
    for service, pair in pairs.items():
        reasons = [f"{service}: {reason}" for reason in (_errors(pair, limits), _not_found(pair, limits), _latency(pair, limits)) if reason]
        (doubtful if service in doubt else abort).extend(reasons)
        for side, counters in ((NEW, pair.new), (OLD, pair.old)):
            if counters is not None and counters.samples < limits.minimum_requests:
                missing[service, side] = limits.minimum_requests - counters.samples
    return Traffic(tuple(abort), missing, tuple(doubtful))


def _errors(pair: Pair, limits: Limits) -> str | None:
    new, old, old_in_stage = pair.new, pair.old, pair.old_in_stage
    if not pair.trial.errors.proved:
        return None
    if old is None:  # nothing to compare with: the share itself must stay below the limit
        against = "no old version"
    else:
        against = f"old {old.failed} of {old.requests} ({old.failed_share:.1%})"
        against += f", of which in this stage {old_in_stage.failed} of {old_in_stage.requests}" if old_in_stage.requests else ""
    return (
        f"new version failed {new.failed} of {new.requests} requests ({new.failed_share:.1%}), {against}; "
        f"more than {limits.error_points:g} points worse, {_certainty(pair.trial.errors, limits)}"
    )


def _not_found(pair: Pair, limits: Limits) -> str | None:
    new, old, test = pair.new, pair.old, pair.trial.not_found
    if old is None or test is None or not test.proved:
        return None
    return (
        f"new version answered {new.not_found} of {new.requests} requests with 404 ({new.not_found_share:.1%}), "
        f"old {old.not_found} of {old.requests} ({old.not_found_share:.1%}); "
        f"more than {limits.not_found_points:g} points more often, {_certainty(test, limits)}"
    )


def _latency(pair: Pair, limits: Limits) -> str | None:
    new, old, limit = pair.new, pair.old, pair.trial.slow_limit
    if old is None or limit is None or not pair.trial.slow.proved or new.requests < limits.minimum_requests:
        return None
    old_p95, new_p95 = percentile(old.buckets, 0.95) or 0.0, percentile(new.buckets, 0.95) or 0.0
    (slow, total), (old_slow, old_total) = slower_than(new.buckets, limit), slower_than(old.buckets, limit)
    return (
        f"new version's p95 is {new_p95:.0f} ms, old {old_p95:.0f} ms; {slow} of {total} requests took longer than {limit:.0f} ms, the "
        f"limit (factor {limits.latency_factor:g}, at least {LATENCY_FLOOR_MS:g} ms more), or were given up, "
        f"old {old_slow} of {old_total}; more than {SLOW_SHARE * 100:g} points worse, {_certainty(pair.trial.slow, limits)}"
    )


def _certainty(comparison: Comparison, limits: Limits) -> str:
    text = f"with {limits.confidence} confidence for the whole rollout"
    if comparison.ceiling:
        text += (
            f"; no old traffic runs beside it, it is compared with the old version's record, at most {comparison.ceiling:.1%}: "
            "what troubles both versions is held against it"
        )
    return text


def synthetic_requests(missing: int, received: int, *, elapsed: float, left: float, interval: float) -> int:
    """Return how many synthetic requests to send at this tick, so that they and users' requests make up ``missing`` in time.

    ``received`` requests came in ``elapsed`` seconds; ``left`` seconds remain. The first ticks only measure how many requests users send.
    """
    if missing <= 0 or (elapsed < interval and left > interval):
        return 0
    natural = received / elapsed * max(0.0, left) if elapsed > 0 else 0.0
    ticks_left = max(1.0, left // interval)
    return math.ceil(max(0.0, missing - natural) / ticks_left)


# --- the next action ---------------------------------------------------------------------------------------------------


class Action(Enum):
    """The action after a tick."""

    WATCH = "watch"
    HOLD = "hold"
    ADVANCE = "advance"
    ABORT = "abort"


@dataclass(frozen=True)
class StageProgress:
    """Progress of a stage in seconds: how long it has been watched, its length, and how long it may be held beyond that."""

    elapsed: float
    length: float
    hold: float


@dataclass(frozen=True)
class Decision:
    """An action with its reason; the reason is printed and recorded."""

    action: Action
    reason: str


def next_action(progress: StageProgress, health: HealthVerdict, traffic: Traffic, *, inconclusive: str) -> Decision:
    """Return the decision after a tick. ``inconclusive``: the action for too few samples after the hold, "pass" or "abort"."""
    if health.abort:
        return Decision(Action.ABORT, "; ".join(health.abort))
    if traffic.abort and not health.hold:
        return Decision(Action.ABORT, "; ".join(traffic.abort))
    open_reasons = (*traffic.doubtful, *traffic.abort)  # ``traffic.abort`` is not empty here only if both versions fail their probes
    hold = (*health.hold, *(f"not judged while the old version fails too: {reason}" for reason in open_reasons))
    if progress.elapsed < progress.length:
        return Decision(Action.WATCH, "; ".join((*hold, *health.notes)) or "healthy")
    held_out = progress.elapsed >= progress.length + progress.hold
    if hold or health.failing:  # a stage does not end on a failed probe: the next one would not be seen
        reason = "; ".join((*hold, *health.failing))
        return Decision(Action.ABORT, f"held {progress.hold:g} s, still: {reason}") if held_out else Decision(Action.HOLD, reason)
    if traffic.missing:
        lacking = ", ".join(f"{service} ({side} version) lacks {count}" for (service, side), count in traffic.missing.items())
        reason = "; ".join((f"inconclusive, too few requests to compare: {lacking}", *health.notes))
        if not held_out:
            return Decision(Action.HOLD, reason)
        return Decision(Action.ABORT if inconclusive == "abort" else Action.ADVANCE, f"{reason}; configured to {inconclusive}")
    return Decision(Action.ADVANCE, "; ".join(("healthy", *health.notes)))
