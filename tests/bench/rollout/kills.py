"""A runner that is killed at many moments of a rollout: seconds until one version has all the traffic, and a rerun that finishes.

The moments are spread over the phases of a rollout, so that some lie in each of them however short it is: a first rollout, left alone,
says how long each phase lasts; in the others the kill waits for the beginning of its phase and then for a fraction of that time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.process import Child
from azora_ci.targets.release import Release
from tests.bench.rollout import scenes
from tests.bench.rollout.scenes import Size
from tests.bench.rollout.world import Client, until

LEASE_SECONDS = 5.0
STAGE, RERUN_STAGE = 1.0, 0.5  # seconds of each stage
SETTLE_SECONDS = 60.0  # after which a recovery is given up
RATE = 50.0  # users' requests a second meanwhile
MOST_FAILURES = 3
TRIES = 3  # of a moment that came after the step's end
OLD, NEW = "old", "new"


class Phase(NamedTuple):
    """A part of a rollout: from one mark to the next. ``weight``: of how many moments in 25 lie in it."""

    name: str
    begins: str
    ends: str
    weight: int


PHASES = (
    Phase("before the first weight", "start", "5 %", 5),
    Phase("5 %", "5 %", "50 %", 5),
    Phase("50 %", "50 %", "100 %", 5),
    Phase("100 %", "100 %", "promoted", 5),
    Phase("promoted", "promoted", "end", 5),
)


class HostsWorld(scenes.World, Protocol):
    """Where a journal and routes can be read from outside. ``hold_seconds``: for which a promoted release is watched after a kill."""

    hold_seconds: float

    def states(self) -> list[dict[str, Any]]:
        """Return the routes in force on each host."""

    def left(self, release: Release) -> bool:
        """Say whether a dead run left a release so that nobody takes it back, although its promotion is not journalled."""

    def at_rest(self) -> bool:
        """Say whether no route is on its way, as one may be after a kill where something else than the runner moves them."""

    def await_lock(self) -> None:
        """Wait until a run may begin, where a dead one keeps the lock for as long as its lease runs."""

    def promoted(self, release: Release) -> bool:
        """Say whether a host's journal holds the promotion."""

    def versions_now(self) -> set[str]:
        """Return the versions that answer users now."""


class Moment(NamedTuple):
    """When to kill: a fraction of a phase."""

    phase: Phase
    fraction: float


def moments(number: int) -> list[Moment]:
    """Return so many moments, in each phase about as many as in the others and evenly spread over it."""
    total = sum(phase.weight for phase in PHASES)
    shares = [phase.weight * number / total for phase in PHASES]
    counts = [math.floor(share) for share in shares]
    for index in sorted(range(len(PHASES)), key=lambda nth: counts[nth] - shares[nth])[: number - sum(counts)]:
        counts[index] += 1
    return [Moment(phase, (position + 0.5) / count) for phase, count in zip(PHASES, counts, strict=True) for position in range(count)]


@dataclass
class Kills:
    """Results of all kills. ``moments``: facts of each kill whose rerun finished. ``old``: the version in production."""

    old: str
    lengths: Mapping[str, float]
    moments: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    too_late: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def kills(world: HostsWorld, size: Size) -> dict[str, Any]:
    """Kill the step at each of the moments; see which version gets the traffic, and that a rerun finishes."""
    lengths = measure(world)
    results = Kills(world.steps.last.bare, lengths)
    begun = world.clock.monotonic()
    for moment in moments(size.moments):
        if world.clock.monotonic() - begun > size.seconds or len(results.failures) >= MOST_FAILURES:
            results.failures.append("given up after so many failures or seconds")
            break
        for attempt in range(TRIES):
            if kill(world, results, moment._replace(fraction=moment.fraction / 2**attempt)):  # the next attempt kills earlier
                break
            results.too_late += 1
    recoveries = [facts["recovery_seconds"] for facts in results.moments]
    return {
        "kill_moments": len(results.moments),
        "worst_recovery_seconds": max(recoveries, default=None),
        "lease_seconds": LEASE_SECONDS,
        "by_phase": dict(Counter(facts["phase"] for facts in results.moments)),
        "phase_seconds": {name: round(seconds, 2) for name, seconds in lengths.items()},
        "moments": results.moments,
        "failures": results.failures,
        "killed_too_late": results.too_late,
        "kill_requests": dict(results.sent),
        "kill_requests_failed": dict(results.failed),
    }


def _marks(world: HostsWorld, release: Release, step: Child) -> dict[str, Callable[[], bool]]:
    """Return when each mark of a rollout is reached."""
    return {
        "start": lambda: True,
        **{f"{percent} %": lambda percent=percent: world.at(release, percent) for percent in scenes.PERCENTS},  # type: ignore[misc] # bound now
        "promoted": lambda: world.promoted(release),
        "end": lambda: step.poll() is not None,
    }


def measure(world: HostsWorld) -> dict[str, float]:
    """Let one rollout finish and return how many seconds each phase of it lasted. Raises NotTrueError when it ends otherwise."""
    begun = world.clock.monotonic()
    release = world.steps.next_release()
    step = world.steps.start(release, (STAGE,) * 3)
    at: dict[str, float] = {}
    for name, reached in _marks(world, release, step).items():
        until(lambda reached=reached: reached() or step.poll() is not None, f"mark {name}", world.clock)  # type: ignore[misc] # bound now
        at[name] = world.clock.monotonic() - begun
    world.steps.finish(step, 0)
    return {phase.name: at[phase.ends] - at[phase.begins] for phase in PHASES}


def kill(world: HostsWorld, results: Kills, moment: Moment) -> bool:
    """Kill the step of the next release at a moment, wait until one version has all traffic, and run it again.

    Returns False when the step had ended before it could be killed.
    """
    release = world.steps.next_release()
    client = Client(world.processes, world.addresses, rate=RATE, post_every=scenes.POST_EVERY)
    begun = world.clock.monotonic()
    step = world.steps.start(release, (STAGE,) * 3)
    reached = _marks(world, release, step)[moment.phase.begins]
    until(lambda: reached() or step.poll() is not None, f"{moment.phase.begins} of {release.version}", world.clock)
    with suppress(TimeoutError):
        step.wait(results.lengths[moment.phase.name] * moment.fraction)
    alive = step.poll() is None
    at, seconds = world.clock.now().timestamp(), world.clock.monotonic() - begun
    lose(step)
    recover(world, results, client, Killed(release, moment.phase.name, at, round(seconds, 3)), counts=alive)
    return alive


class Killed(NamedTuple):
    """A kill. ``planned``: phase or point; ``at``: seconds since the epoch; ``seconds``: after the step's start."""

    release: Release
    planned: str
    at: float
    seconds: float


def recover(world: HostsWorld, results: Kills, client: Client, killed: Killed, *, counts: bool) -> None:
    """Wait until one version has all traffic after a kill, run the step again, and note the facts when the kill ``counts``."""
    release = killed.release
    facts: dict[str, Any] = {"seconds": killed.seconds, "planned": killed.planned, "phase": phase_of(world, release)}
    try:
        forward, settled_at, confirmed_at = settle(world, release, results.old)
        noted = world.promoted(release)
        answers = client.finish(60)
        world.await_lock()
        world.steps.finish(world.steps.start(release, (RERUN_STAGE,) * 3), 0)
        if world.versions_now() != {release.bare}:
            raise NotTrueError("A rerun did not finish", what=str(world.versions_now()), where="users' answers", next_step="read its log")
    except AzoraError as error:
        results.failures.append(f"killed at {facts}: {error.title}: {error.what[-1500:]}")
        results.old = next(iter(world.versions_now()))
        return
    results.sent.update(answers["sent"])
    results.failed.update(answers["failed"])
    serving = release.bare if forward else results.old
    last_wrong = max((sent_at for version, sent_at in answers["last_sent"].items() if version != serving), default=0.0)
    wrongly = round(max(0.0, last_wrong - killed.at), 2)  # seconds in which users still got the version that is on its way out
    settled = max(round(settled_at - killed.at, 2), wrongly)
    facts |= {"traffic": NEW if forward else OLD, "journalled": noted, "recovery_seconds": settled, "last_wrong_answer": wrongly}
    facts["confirmed_seconds"] = round(confirmed_at - killed.at, 2)
    results.old = release.bare
    if counts:
        results.moments.append(facts)


def phase_of(world: HostsWorld, release: Release) -> str:
    """Return the phase of a release as hosts have it: by the journal and the routes in force."""
    if world.promoted(release):
        return PHASES[-1].name
    weights = {routes["percent"] for routes in world.states() if routes["canary"] == release.id and routes["percent"]}
    return f"{max(weights)} %" if weights else PHASES[0].name


def lose(step: Child) -> None:
    """Kill a step and its connections, as a machine that vanishes does."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(step.pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    step.wait(30)


def settle(world: HostsWorld, release: Release, old: str) -> tuple[bool, float, float]:
    """Wait until all traffic is where it belongs after a kill: on the old version, or, once promotion is journalled, on the new one.

    Returns whether it is on the new one; when routes were first seen there, after which one version alone answered; and when it had
    answered every request of the look (seconds since the epoch). Raises NotTrueError, also where a promoted release does not keep its
    traffic for the world's ``hold_seconds``.
    """
    forward, routed_at = False, 0.0

    def settled() -> bool:
        nonlocal forward, routed_at
        looked_at = world.clock.now().timestamp()
        forward = world.promoted(release) or world.left(release)
        for routes in world.states():
            on_new = routes["stable"] == release.id or (routes["canary"] == release.id and routes["percent"] == 100)
            on_old = routes["stable"] != release.id and (routes["canary"] is None or routes["percent"] == 0)
            if not (on_new if forward else on_old):
                return False
        if not world.at_rest() or world.versions_now() != {release.bare if forward else old}:
            return False
        routed_at = looked_at  # every answer of the look was after this
        return True

    until(settled, f"one version has all traffic after the kill of {release.id}", world.clock, SETTLE_SECONDS)
    first, confirmed_at = routed_at, world.clock.now().timestamp()
    held_until = world.clock.monotonic() + (world.hold_seconds if forward else 0.0)
    while world.clock.monotonic() < held_until:
        if not settled():
            what = f"{world.states()} and {world.versions_now()} answer"
            raise NotTrueError("A promoted release did not keep its traffic", what=what, where=release.id, next_step="see the journal")
        world.clock.sleep(0.5)
    return forward, first, confirmed_at
