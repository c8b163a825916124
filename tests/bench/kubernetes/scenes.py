"""What is measured on a cluster beside ``bench rollout``'s own scenes: going back at each stage, kills, and what the step itself costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from azora_ci.core.errors import NotTrueError
from azora_ci.rollout.watch import HOLD_INTERVALS
from tests.bench.kubernetes.world import LEASE_SECONDS, ClusterWorld
from tests.bench.rollout import kills as rollout_kills
from tests.bench.rollout import scenes as rollout_scenes
from tests.bench.rollout.kills import NEW, OLD, Killed, Kills
from tests.bench.rollout.scenes import PERCENTS, SETTLE
from tests.bench.rollout.world import Client, ended, until
from tests.support import ROOT

OVERHEAD_INTERVAL = 0.5  # seconds between probes; much less and a busy machine gives no verdict in time
WEIGHT_SECONDS = 30.0  # for a weight of 0 to be seen from outside
_TARGET = "azora_ci.targets.kubernetes"
# Points between two requests to the API server that no spread of moments would hit; see tests/support/killer.
POINTS = {
    "the lock is taken": f"after {_TARGET}.lock:ClusterLock.acquire",
    "the release is begun in the journal": f"after {_TARGET}.journal:ClusterJournal.add begin",
    "the first Rollout is changed": f"after {_TARGET}.fleet:Fleet.change",
    "all is ready for the promotion": f"before {_TARGET}.lock:ClusterLock.stop_watch",
    "the watch is stopped, the promotion is noted in the lease alone": f"before {_TARGET}.journal:ClusterJournal.add promote",
    "the promotion is noted": f"after {_TARGET}.journal:ClusterJournal.add promote",
}


@dataclass(frozen=True)
class Size(rollout_scenes.Size):
    """As on hosts, and: Rollouts that are driven at once, how often and how long they are watched, and points of kills."""

    requests: int = 50_000
    share_requests: int = 20_000
    rate: float = 300.0
    share_rate: float = 300.0
    rounds: int = 5
    moments: int = 16
    seconds: float = 1500.0
    points: int = len(POINTS)
    rollouts: int = 50
    fleet_stage: float = 40.0
    fleet_interval: float = 10.0


SMALL = Size(
    requests=300,
    share_requests=200,
    rate=100.0,
    share_rate=100.0,
    stage=0.6,
    interval=0.5,
    rounds=1,
    back=1,
    moments=1,
    points=1,
    rollouts=2,
    fleet_stage=1.0,
    fleet_interval=0.5,
)  # for tests: everything runs, nothing is proved


def verdict(world: ClusterWorld, size: Size) -> dict[str, Any]:
    """Go back from each stage under load, several times. Seconds from the call, which follows a verdict at once, until

    - ``read_back``: the target itself has read that the weight is 0 everywhere,
    - ``outside``: a watch of ours has seen the same,
    - ``last_request``: the last request that the new version got was sent, which also depends on the router.
    """
    stages: dict[str, Any] = {}
    seconds: list[float] = []
    for percent in PERCENTS:
        rounds = [_go_back(world, size, percent) for _ in range(size.rounds)]
        seconds += [max(each["read_back"], each["outside"]) for each in rounds]
        stages[f"{percent} %"] = {name: _spread([each[name] for each in rounds]) for name in rounds[0]}
    return {"verdict_seconds": max(seconds), "verdict_seconds_median": round(statistics.median(seconds), 3), "by_stage": stages}


def _go_back(world: ClusterWorld, size: Size, percent: int) -> dict[str, float]:
    target, release = world.target(), world.steps.next_release()
    with target.locked(world.owner(release)):
        target.deploy(release, percent)
        target.set_weight(release, percent)
        client = Client(world.processes, world.addresses, rate=min(size.rate, 100.0))
        world.clock.sleep(min(SETTLE, size.stage))
        world.seen.forget()
        begun, verdict_at = world.clock.monotonic(), world.clock.now().timestamp()
        returned = target.abort(release, "measured")
        until(lambda: _back_at(world, release.id) is not None, "the weight is seen as 0", world.clock, WEIGHT_SECONDS)
        answers = client.finish(60)
    if not returned.proved:
        raise NotTrueError("Going back was not proved", what=returned.detail, where=f"{percent} %", next_step="see the cluster's logs")
    back_at = _back_at(world, release.id)
    assert back_at is not None
    last = answers["last_sent"].get(release.bare, 0.0) - verdict_at
    return {"read_back": round(returned.seconds, 3), "outside": round(back_at - begun, 3), "last_request": round(max(0.0, last), 3)}


def _back_at(world: ClusterWorld, release_id: str) -> float | None:
    """Return when all Rollouts were first seen without traffic to a release, since ``forget``; None while one has some."""
    percents: dict[str, int] = {}
    for moment, seen in world.seen.changes:
        percents[seen.name] = seen.percent if seen.release == release_id else 0
        if not any(percents.values()):
            return moment
    return None


def _spread(values: Sequence[float]) -> Mapping[str, float]:
    return {"median": round(statistics.median(values), 3), "worst": max(values)}


def kills(world: ClusterWorld, size: Size) -> dict[str, Any]:
    """Kill the step at moments spread over a rollout and at the points of ``POINTS``; see which version gets the traffic, and rerun it.

    A moment counts by what the journal says: until the promotion is noted, all traffic has to come back to the old version, at
    most the lease and 5 s after the kill. From then on the new version keeps it, which is told apart (``moments_promoted``). A release
    that has all traffic, and that nobody takes back although its promotion is not noted, is neither: ``kills_left_unnoted``.
    """
    figures = rollout_kills.kills(world, size)
    results = Kills(next(iter(world.versions_now())), {})
    for name, point in list(POINTS.items())[: size.points]:
        _kill_at(world, results, name, point)
    moments = [*figures["moments"], *results.moments]
    back = [each["recovery_seconds"] for each in moments if each["traffic"] == OLD]
    kept = [each["recovery_seconds"] for each in moments if each["traffic"] == NEW and each["journalled"]]
    return {
        **figures,
        "kill_moments": len(moments),
        "kills_before_promotion": len(back),
        "worst_recovery_seconds": max(back, default=None),
        "median_recovery_seconds": round(statistics.median(back), 2) if back else None,
        "lease_seconds": LEASE_SECONDS,
        "moments_promoted": len(kept),
        "kills_left_unnoted": len(moments) - len(back) - len(kept),
        "worst_seconds_promoted": max(kept, default=None),
        "moments": moments,
        "failures": [*figures["failures"], *results.failures],
    }


def _kill_at(world: ClusterWorld, results: Kills, name: str, point: str) -> None:
    """Have a step kill itself at a point, and see what becomes of its release."""
    release = world.steps.next_release()
    client = Client(world.processes, world.addresses, rate=rollout_kills.RATE, post_every=rollout_scenes.POST_EVERY)
    begun = world.clock.monotonic()
    killer = f"{ROOT / 'tests/support/killer'}:{ROOT}"
    step = world.steps.start(release, (rollout_kills.STAGE,) * 3, KILL_AT=point, PYTHONPATH=killer)
    code = ended(step, 120)
    at, seconds = world.clock.now().timestamp(), world.clock.monotonic() - begun
    if code >= 0:
        results.failures.append(f"{name}: {point} was not reached, exit code {code}: {''.join(step.lines['stdout'])[-800:]}")
        with suppress(NotTrueError):
            client.finish(60)
        results.old = release.bare if code == 0 else results.old
        return
    rollout_kills.recover(world, results, client, Killed(release, name, at, round(seconds, 3)), counts=True)


def overhead(world: ClusterWorld, size: Size) -> dict[str, Any]:
    """Time whole rollouts as processes, with stages of no length, less what is not ours:

    - the seconds in which the cluster was at work: at least one Rollout was not at rest, as a watch from outside sees it, from our change
      of the template, or our end of a pause, until the controller waits in the next pause or is finished;
    - the seconds for which the rules hold a stage without counted requests, as there are none here: three intervals a stage.

    What is left is ours: starting Python, lock, journal, probes, reading back, and noticing that a Rollout is ready.
    """
    holding = len(PERCENTS) * HOLD_INTERVALS * OVERHEAD_INTERVAL
    own, cluster, held = [], [], []
    for _ in range(size.rounds):
        world.seen.forget()
        begun = world.clock.monotonic()
        release = world.steps.next_release()
        step = world.steps.start(release, (0.0,) * 3, HEALTH_CHECK_INTERVAL=str(OVERHEAD_INTERVAL))
        evidence = world.steps.finish(step, 0)
        whole = world.clock.monotonic() - begun
        moving = world.seen.moving_seconds()
        own.append(whole - moving - holding)
        cluster.append(moving)
        held.append(sum(stage["duration_minutes"] * 60 for stage in evidence["stages"]))
    return {
        "overhead_seconds": round(statistics.median(own), 2),
        "overhead_seconds_each": [round(seconds, 2) for seconds in own],
        "cluster_seconds": [round(seconds, 2) for seconds in cluster],
        "holding_seconds": holding,
        "stages_seconds": [round(seconds, 2) for seconds in held],  # by the step's own evidence
    }
