"""Rollout targets: where instances run and how traffic reaches them. A small Protocol, and one dict of its kinds.

What is true about a target is on the target: its journal and its edge files. Nothing depends on what a runner remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from azora_ci.clock import Clock
from azora_ci.config import DeployConfig
from azora_ci.errors import BadInputError
from azora_ci.health import Endpoint
from azora_ci.process import Processes
from azora_ci.rollout import Counters
from azora_ci.settings import ProductionHosts, Secret
from azora_ci.targets.journal import History


@dataclass(frozen=True)
class Release:
    """What is deployed: deployment id, version with v, and service id -> digest of its image or archive.

    ``sizes``: service id -> bytes of its unpacked image, where the build said so.
    """

    id: str
    version: str
    digests: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def bare(self) -> str:
        """Return the version without v, as health endpoints answer it."""
        return self.version.removeprefix("v")


@dataclass(frozen=True)
class Owner:
    """Who holds the lock: deployment id, address of the run, and who started it.

    ``fence`` is the reason for taking the lock from a deployment that holds it; None waits for nobody and takes from nobody.
    """

    deployment_id: str
    run_url: str
    actor: str
    fence: str | None = None


@dataclass(frozen=True)
class Held:
    """A lock that somebody holds. ``alive``: its owner still runs, as far as can be told; ``fence``: why it was taken from another.

    ``silent``: seconds since it was renewed, where that is all that can be told.
    """

    owner: Owner
    renewed_at: str
    expires_at: str
    alive: bool
    silent: float | None = None


@dataclass(frozen=True)
class Instance:
    """A running instance: its address as the edge reaches it (``host:port``), and on which of several production hosts it is."""

    release: str
    version: str
    service: str
    number: int
    address: str
    host: str = ""

    @property
    def name(self) -> str:
        """Return a name for tables."""
        return f"{self.service}#{self.number} {self.version} ({self.address}{' on ' + self.host if self.host else ''})"


@dataclass(frozen=True)
class Observation:
    """One look at the target: counters by (service, release id), effective weights, instances that no longer run."""

    counters: Mapping[tuple[str, str], Counters]
    weights: Mapping[str, Mapping[str, int]]
    dead: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Returned:
    """How going back went. ``seconds``: until the last request reached the new version; ``requests_after``: that did during the proof.

    ``lost``: hosts that were not reached, so that nothing is known of them but what ``detail`` says.
    """

    to: str | None
    seconds: float
    proved: bool
    requests_after: int | None
    detail: str
    lost: tuple[str, ...] = ()


class Target(Protocol):
    """A place to deploy to. Everything but ``current`` and ``observe`` needs the lock."""

    def locked(self, owner: Owner) -> AbstractContextManager[None]:
        """Hold the target's lock. Raises NotTrueError naming the owner when somebody else holds it and ``owner.fence`` is None.

        A rollback fences a deployment, never another rollback: whoever was fenced is refused everything from then on.
        """

    def renew(self) -> None:
        """Extend the lock's expiry; call it every interval. Raises NotTrueError when it was taken over."""

    def current(self) -> History:
        """Return what was deployed here, from the target's journal."""

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release that were started and not stopped."""

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Have that share of instances of a release running, healthy with its version, and warm at the edge; weights stay.

        Returns all of the release's instances. Raises NotTrueError when one does not become healthy in time.
        """

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Give a release that share of traffic and return the weights that were read back."""

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Keep a stage's evidence in the journal, so that a rerun can show it."""

    def promote(self, release: Release) -> None:
        """Make a release the one in production. The one before keeps running at weight 0: it is what a rollback goes back to."""

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> Returned:
        """Give all traffic back to the version before, prove it, and stop the release's instances.

        ``hurry``: the run was cancelled, everything must be over within 5 seconds.
        """

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return the address at which an instance itself answers for its health and version."""

    def observe(self) -> Observation:
        """Return counters, effective weights and dead instances. Raises UnreachableError."""


@runtime_checkable
class Planning(Protocol):
    """What a target knows about a deployment beyond its stages. ``notes``: what happened that its evidence has to tell."""

    notes: list[str]

    def plan(self, release: Release) -> list[str]:
        """Return lines for the plan. Raises NotTrueError for what would go wrong; nothing was started then."""


@runtime_checkable
class Tended(Protocol):
    """What a person at a keyboard can do about a target, beyond what the jobs do."""

    def holder(self) -> Held | None:
        """Return who holds the lock, or None."""

    def unlock(self, reason: str, actor: str) -> Held | None:
        """Take the lock away from whoever holds it, and note why; return who that was. Its owner is refused from then on."""

    def remove(self, release_id: str) -> None:
        """Take a release that gets no traffic from the edge, drain and stop its instances. Needs the lock."""


@dataclass(frozen=True)
class Wiring:
    """What a target is given: configuration, edges, folder for instances' logs, seconds to health, secrets by name, and the
    minutes in which going back is supported. ``spare_lost_hosts``: of several hosts, those that cannot be reached are left out, said
    and counted as not proved; for going back only, which helps the users of every host that it reaches.
    """

    config: DeployConfig
    processes: Processes
    clock: Clock
    log_dir: Path
    health_timeout: float
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    rollback_window_minutes: float = 60.0
    access: ProductionHosts | None = None  # to the machines of targets that are elsewhere
    spare_lost_hosts: bool = False
    recorded_host_keys: str = ""  # what hosts showed earlier, as the text of a known_hosts file; counts where no key is pinned


def _local_processes(wiring: Wiring) -> Target:
    from azora_ci.targets.local_processes import LocalProcesses

    return LocalProcesses(wiring)


def _docker_hosts(wiring: Wiring) -> Target:
    from azora_ci.targets.docker_hosts import DockerHosts

    return DockerHosts(wiring)


TARGETS: dict[str, Callable[[Wiring], Target]] = {"local_processes": _local_processes, "docker_hosts": _docker_hosts}


def target_of(kind: str, wiring: Wiring) -> Target:
    """Return the target of ``target.kind``. Raises BadInputError for a kind that is not there."""
    if kind not in TARGETS:
        raise BadInputError(
            "Target is not available",
            what=f"target.kind {kind!r} is not among {', '.join(TARGETS)}",
            where="the deployment configuration",
            next_step="choose an available target",
        )
    return TARGETS[kind](wiring)


def host_keys(target: Target) -> list[dict[str, Any]]:
    """Return the host keys that a target's connections have seen, as evidence; empty for a target without any."""
    return list(getattr(target, "host_keys", ()))


def left_out(target: object) -> Mapping[str, str]:
    """Return the hosts of a target that were not reached and are left out (``spare_lost_hosts``), with the reason."""
    found: Mapping[str, str] = getattr(target, "left_out", {})
    return found


def holders(target: Tended) -> Mapping[str, Held | None]:
    """Return who holds the lock of each of a target's hosts, by the host's name; "" where there are no several hosts."""
    ask: Callable[[], Mapping[str, Held | None]] = getattr(target, "holders", lambda: {"": target.holder()})
    return ask()


def edges(target: Target) -> list[str]:
    """Return a line about the edge of each host; empty for a target that does not install its edge."""
    found = getattr(target, "edges", None)
    return list(found()) if found else []


def reached(target: Target) -> AbstractContextManager[object]:
    """Keep the connections to a target open while several things are asked of it without the lock."""
    connected = getattr(target, "connected", None)
    found: AbstractContextManager[object] = connected() if connected else nullcontext()
    return found
