"""What is measured on one machine: failed requests, shares, seconds back, and what the step itself costs.

Each scene takes a world and returns the figures of the JSON object that it measures, and more under its own names.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.process import Child, Processes
from azora_ci.rollout.decision import stages
from azora_ci.targets.base import Owner, Target
from azora_ci.targets.release import Release
from tests.bench.rollout.world import Client, Steps, seconds_of_starts, until

PERCENTS = (5, 50, 100)
POST_EVERY = 20  # one request in so many is a POST
LONG = 600.0  # seconds of a stage that something else ends
SETTLE = 1.0  # seconds at a stage before it is disturbed
PATIENT = {"HEALTH_CHECK_RETRIES": "1000"}  # a killed instance must cost nobody anything, and the rollout goes on


class World(Protocol):
    """Where a scene plays."""

    clock: Clock
    processes: Processes
    steps: Steps

    @property
    def revives(self) -> bool | None:
        """Return whether a killed instance is started again; None: something else may take the release back before that."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Return where users come in."""

    def at(self, release: Release, percent: int) -> bool:
        """Say whether that share of traffic goes to a release."""

    def kill_new_instance(self, release: Release) -> None:
        """Kill a new instance."""

    def make_sick(self, version: str) -> None:
        """Have the instances of a version say that they are not healthy."""

    def started(self, release: Release) -> list[datetime]:
        """Return when the instances of a release were started."""

    def target(self) -> Target:
        """Return the target."""

    def owner(self, release: Release) -> Owner:
        """Return the owner of a lock."""


@dataclass(frozen=True)
class Size:
    """How much is measured: GETs in all and requests per share, requests a second, seconds of a stage, rounds per median."""

    requests: int = 100_000
    share_requests: int = 30_000
    rate: float = 1080.0  # with the services' latency more than 50 requests in flight
    share_rate: float = 1000.0
    stage: float = 3.0
    interval: float = 1.0  # seconds between probes in those stages
    rounds: int = 3
    post_every: int = POST_EVERY
    back: int = 3  # stages from which a release goes back
    seconds: float = 900.0  # after which a scene is given up
    moments: int = 27  # more than are needed: one may come after a step's end
    endpoints: int = 1000
    probe_seconds: float = 180.0
    probe_interval: float = 10.0
    hosts: int = 50
    latency: float = 0.05  # seconds before each answer of one of them


SMALL = Size(
    requests=300,
    share_requests=200,
    rate=200.0,
    share_rate=200.0,
    stage=0.6,
    interval=0.5,
    rounds=1,
    back=1,
    moments=1,
    endpoints=50,
    probe_seconds=1.0,
    probe_interval=0.5,
    hosts=3,
    latency=0.01,
)  # for tests: everything runs, nothing is proved


def load(world: World, size: Size) -> dict[str, Any]:
    """Send while releases climb and go back, one from each stage, and while a new instance is killed at each stage.

    Where killed instances are started again the release goes on; where they are not, it goes back; where something else decides, it does
    one of both. That is one round; rounds are repeated until all requests were due. A rollout that ends otherwise than it should is listed
    in ``failures``.
    """
    begun, rounds = world.clock.monotonic(), 0
    failures: list[str] = []
    outcomes: Counter[str] = Counter()
    requests = math.ceil(size.requests * size.post_every / (size.post_every - 1))  # so many that the GETs among them suffice
    client = Client(world.processes, world.addresses, rate=size.rate, requests=requests, post_every=size.post_every)
    while rounds == 0 or (world.clock.monotonic() - begun) < min(requests / size.rate, size.seconds):
        for name, move in _round(world, size):
            try:
                outcomes[f"{name}: {move()['rollout_status']}"] += 1
            except AzoraError as error:
                world.steps.stop()
                world.make_sick("")
                failures.append(f"{name}: {error.title}: {error.what[-1500:]}")
        rounds += 1
        if failures:
            break
    spent = world.clock.monotonic() - begun
    counts = client.finish(max(60.0, requests / size.rate * 3))
    return {
        "requests": counts["sent"].get("GET", 0),
        "failed": counts["failed"].get("GET", 0),
        "posts": counts["sent"].get("POST", 0),
        "posts_failed": counts["failed"].get("POST", 0),
        "killed_at_each_stage": {True: "goes on", False: "goes back", None: "goes on or back"}[world.revives],
        "outcomes": dict(outcomes),
        "versions": dict(sum((Counter(versions) for versions in counts["versions"]), Counter())),
        "rounds": rounds,
        "failures": failures,
        "rollout_seconds": round(spent, 1),
        **account(counts),
    }


def _round(world: World, size: Size) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what happens in one round, each with its name. The last climb leaves no dead instance in production."""
    for percent in PERCENTS[: size.back]:
        yield f"back from {percent} %", lambda percent=percent: go_back(world, size, percent)  # type: ignore[misc] # bound now
    if world.revives:
        yield "an instance killed at each stage", lambda: climb(world, size, killing=True)
    else:
        killed = go_back if world.revives is False else survive
        for percent in PERCENTS[: size.back]:
            yield f"killed at {percent} %", lambda percent=percent: killed(world, size, percent, killing=True)  # type: ignore[misc] # bound now
    yield "up to 100 %", lambda: climb(world, size)


def account(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what became of every request that was due, and how the client itself did. Raises NotTrueError when one is missing."""
    sent, answered, failed = (sum(counts[name].values()) for name in ("sent", "answered", "failed"))
    if sent != answered + failed + counts["unanswered"]:
        what = f"{sent} sent, {answered} answered, {failed} failed, {counts['unanswered']} unanswered"
        raise NotTrueError("Requests are unaccounted for", what=what, where="rollout_client", next_step="this is a bug of the client")
    names = ("kinds", "unanswered", "in_flight", "milliseconds", "lag_ms", "wanted_rate", "rate", "connections", "examples")
    return {"answered": answered, **{name: counts[name] for name in names}}


def climb(world: World, size: Size, *, killing: bool = False) -> dict[str, Any]:
    """Bring the next release to 100 %, and with ``killing`` kill a new instance at each stage. Returns the evidence."""
    release = world.steps.next_release()
    more = {"HEALTH_CHECK_INTERVAL": str(size.interval), **(PATIENT if killing else {})}
    step = world.steps.start(release, (size.stage,) * 3, **more)
    if killing:
        for percent in PERCENTS:
            reach(world, step, release, percent)
            world.clock.sleep(size.stage / 3)
            world.kill_new_instance(release)
    return world.steps.finish(step, 0)


def go_back(world: World, size: Size, percent: int, *, killing: bool = False) -> dict[str, Any]:
    """Let the next release become sick at a stage, or kill one of its instances there, and see it go back. Returns the evidence."""
    release = world.steps.next_release()
    canary, progressive, full = (LONG if stage == percent else size.stage for stage in PERCENTS)
    step = world.steps.start(release, (canary, progressive, full), HEALTH_CHECK_INTERVAL=str(size.interval))
    reach(world, step, release, percent)
    world.clock.sleep(min(SETTLE, size.stage))
    if killing:
        world.kill_new_instance(release)
    else:
        world.make_sick(release.version)
    evidence = world.steps.finish(step, 1)
    world.make_sick("")
    if evidence["rollout_status"] != "rolled_back" or not evidence["abort"]["proved"]:
        raise NotTrueError("It did not go back", what=str(evidence["abort"]), where=f"{percent} %", next_step="read the step's log")
    return evidence


def survive(world: World, size: Size, percent: int, *, killing: bool = True) -> dict[str, Any]:
    """Kill an instance of the next release at a stage, and see it finish or go back. Returns the evidence."""
    release = world.steps.next_release()
    step = world.steps.start(release, (size.stage,) * 3, HEALTH_CHECK_INTERVAL=str(size.interval), **PATIENT)
    reach(world, step, release, percent)
    world.clock.sleep(size.stage / 3)
    if killing:
        world.kill_new_instance(release)
    evidence = world.steps.finish(step, None)
    if evidence["rollout_status"] != "completed" and not (evidence["abort"] and evidence["abort"]["proved"]):
        raise NotTrueError("It neither finished nor went back", what=str(evidence["abort"]), where=f"{percent} %", next_step="read its log")
    return evidence


def reach(world: World, step: Child, release: Release, percent: int) -> None:
    """Wait until a step has come to a stage."""

    def at_stage() -> bool:
        if step.poll() is not None:
            output = "".join(step.lines["stdout"])[-3000:] + step.stderr_text[-1000:]
            raise NotTrueError("A rollout ended early", what=output, where=f"before {percent} %", next_step="see its output")
        return world.at(release, percent)

    until(at_stage, f"{percent} % for {release.version}", world.clock)


def shares(world: World, size: Size) -> dict[str, Any]:
    """Count who answers at 5 % and at 50 %, per address; then go back, and see when the last request reached the new version."""
    target, release = world.target(), world.steps.next_release()
    figures: dict[str, Any] = {}
    with target.locked(world.owner(release)):
        for percent in (5, 50):
            target.deploy(release, percent)
            target.set_weight(release, percent)
            client = Client(world.processes, world.addresses, rate=size.share_rate, requests=size.share_requests)
            counts = client.finish(60 + size.share_requests / size.share_rate * 3)
            figures[f"share_at_{percent}"] = share(counts["versions"], release.bare)
            figures[f"share_at_{percent}_by_host"] = [share([versions], release.bare) for versions in counts["versions"]]
            figures[f"share_at_{percent}_requests"] = {"by_host": counts["by_address"], **account(counts)}
        target.abort(release, "measured")
    return figures


def share(versions: Sequence[Mapping[str, int]], version: str) -> float:
    """Return the percentage of answers that came from a version."""
    total = sum(sum(counts.values()) for counts in versions)
    return round(100 * sum(counts.get(version, 0) for counts in versions) / max(1, total), 3)


def furthest(shares_measured: Sequence[float], expected: float) -> float:
    """Return the share that is furthest from the expected share."""
    return max(shares_measured, key=lambda measured: abs(measured - expected))


def abort(world: World, size: Size) -> dict[str, Any]:
    """Go back from 50 % under load, several times: seconds from the call until the last request that the new version got was sent."""
    last_requests, read_back = [], []
    for _ in range(size.rounds):
        target, release = world.target(), world.steps.next_release()
        with target.locked(world.owner(release)):
            target.deploy(release, 100)
            target.set_weight(release, 50)
            client = Client(world.processes, world.addresses, rate=min(size.rate, 500.0))
            world.clock.sleep(SETTLE)
            verdict = world.clock.now().timestamp()
            returned = target.abort(release, "measured")
            answers = client.finish(60)
        read_back.append(returned.seconds)
        last_requests.append(max(0.0, answers["last_sent"].get(release.bare, 0.0) - verdict))
    return {
        "abort_seconds_one_host": round(max(*read_back, *last_requests), 3),
        "abort_seconds_read_back": [round(seconds, 3) for seconds in read_back],
        "abort_seconds_last_request": [round(seconds, 3) for seconds in last_requests],
    }


def overhead(world: World, size: Size) -> dict[str, Any]:
    """Time whole rollouts as processes, less the stages' planned seconds and less the wait for instances to start."""
    whole, starts = [], []
    for _ in range(size.rounds):
        begun = world.clock.monotonic()
        evidence = climb(world, size)
        seconds = world.clock.monotonic() - begun
        planned = sum(stage["planned_minutes"] * 60 for stage in evidence["stages"])
        whole.append(seconds - planned)
        log = world.steps.logs(world.steps.attempt) / "gradual-rollout.log"
        starts.append(seconds_of_starts(log, world.started(world.steps.last)))
    own = [seconds - start for seconds, start in zip(whole, starts, strict=True)]
    return {
        "overhead_seconds": round(statistics.median(own), 2),
        "overhead_with_starts_seconds": round(statistics.median(whole), 2),
        "starts_seconds": round(statistics.median(starts), 2),
        "planned_stages": [stage.percent for stage in stages((1, 1, 1), first=False)],
    }
