"""Rules of a rollout: its stages, the comparison of two versions' traffic, and the action after each tick. Pure.

The error test: one-sided, 99 %. Exact (Clopper-Pearson) bounds of each version's share of failed requests are combined to a bound of
their difference (Newcombe 1998, method 10, which takes any pair of bounds). A rollout aborts when the lower bound of ``new - old`` is
above the limit both for the old version's requests since the rollout began (its baseline) and for those in the same stage: trouble of
both versions is not the fault of the new one. A failed request is a 5xx answer, or one that only failover could answer. The latency
test: the new version's p95 is above the limit when, with the same confidence, more than 5 % of its requests took longer than the limit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from azora_ci.core.pipeline import STAGES
from azora_ci.health.answers import NEW, OLD
from azora_ci.health.traffic import Counters, percentile, slower_than
from azora_ci.rollout.statistics import CONFIDENCE, difference_lower_bound, share_bounds
from azora_ci.rollout.verdict import HealthVerdict

LATENCY_FLOOR_MS = 100.0  # differences of p95 below this are scheduling noise of a small machine, whatever their factor
TEST = (
    f"failed requests: one-sided, {CONFIDENCE:.0%}, exact (Clopper-Pearson) bounds combined by Newcombe's method 10, "
    f"compared with the old version since the rollout began and in the same stage; "
    f"p95: share of requests slower than the limit (the factor, and {LATENCY_FLOOR_MS:g} ms more) above 5 % with the same confidence"
)


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
    """Limits of the verdict: percentage points of failed requests above the old version, factor of its p95, samples needed."""

    error_points: float
    latency_factor: float
    minimum_requests: int


@dataclass(frozen=True)
class Traffic:
    """The verdict on traffic: reasons to abort, and (service, new|old) -> number of requests that lack for a comparison.

    ``doubtful``: reasons that do not count now, because the service's old version fails its probes, too.
    """

    abort: tuple[str, ...] = ()
    missing: Mapping[tuple[str, str], int] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Counters of a service that are compared: of the new version since the stage began, of the old one since the rollout began (its
    baseline; None on a first deployment), and of the old one since the stage began: trouble of both is not the new version's fault.
    """

    new: Counters
    old: Counters | None
    old_in_stage: Counters = field(default_factory=Counters)


def uncounted_traffic(pairs: Iterable[tuple[str, bool]], limits: Limits) -> Traffic:
    """Return the verdict while no counter could be read: all requests lack. ``pairs``: service, and whether it has an old version."""
    sides = [(service, side) for service, has_old in pairs for side in ((NEW, OLD) if has_old else (NEW,))]
    return Traffic(missing=dict.fromkeys(sides, limits.minimum_requests))


def judge_traffic(pairs: Mapping[str, Pair], limits: Limits, doubt: Collection[str] = ()) -> Traffic:
    """Compare both versions of every service. ``doubt``: services whose old version fails its probes now."""
    abort: list[str] = []
    doubtful: list[str] = []
    missing: dict[tuple[str, str], int] = {}
    for service, pair in pairs.items():
        reasons = [f"{service}: {reason}" for reason in (_errors(pair, limits), _latency(pair, limits)) if reason]
        (doubtful if service in doubt else abort).extend(reasons)
        for side, counters in ((NEW, pair.new), (OLD, pair.old)):
            if counters is not None and counters.requests < limits.minimum_requests:
                missing[service, side] = limits.minimum_requests - counters.requests
    return Traffic(tuple(abort), missing, tuple(doubtful))


def _errors(pair: Pair, limits: Limits) -> str | None:
    new, old, old_in_stage = pair.new, pair.old, pair.old_in_stage
    if old is None:  # nothing to compare with: the share itself must stay below the limit
        lower_bound, against = share_bounds(new.failed, new.requests)[0], "no old version"
    else:
        samples = [old, old_in_stage] if old_in_stage.requests else [old]
        lower_bound = min(difference_lower_bound((new.failed, new.requests), (sample.failed, sample.requests)) for sample in samples)
        against = f"old {old.failed} of {old.requests} ({old.failed_share:.1%})"
        against += f", of which in this stage {old_in_stage.failed} of {old_in_stage.requests}" if old_in_stage.requests else ""
    if lower_bound * 100 <= limits.error_points:
        return None
    return (
        f"new version failed {new.failed} of {new.requests} requests ({new.failed_share:.1%}), {against}; with {CONFIDENCE:.0%} confidence "
        f"that is more than {lower_bound * 100:.1f} points worse, limit {limits.error_points:g} points"
    )


def _latency(pair: Pair, limits: Limits) -> str | None:
    new, old = pair.new, pair.old
    if old is None or min(new.requests, old.requests) < limits.minimum_requests:
        return None
    old_p95, new_p95 = percentile(old.buckets, 0.95), percentile(new.buckets, 0.95)
    if old_p95 is None or new_p95 is None:
        return None
    old_p95 = max(old_p95, percentile(pair.old_in_stage.buckets, 0.95) or 0.0)
    limit = max(old_p95 * limits.latency_factor, old_p95 + LATENCY_FLOOR_MS)
    slow, total = slower_than(new.buckets, limit)
    if share_bounds(slow, total)[0] <= 0.05:
        return None
    return (
        f"new version's p95 is {new_p95:.0f} ms, old {old_p95:.0f} ms; {slow} of {total} requests took longer than {limit:.0f} ms "
        f"(factor {limits.latency_factor:g}), with {CONFIDENCE:.0%} confidence more than 5 % do"
    )


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
