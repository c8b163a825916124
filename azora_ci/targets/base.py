"""What every kind of target is: the Protocol, and what goes in and comes out of it.

A target's state is stored on the target itself, in its journal and its edge files. Nothing depends on the memory of a runner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from azora_ci.core.clock import Clock
from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret
from azora_ci.health.answers import Endpoint
from azora_ci.health.traffic import Counters
from azora_ci.targets.journal import History
from azora_ci.targets.release import Release


@dataclass(frozen=True)
class Owner:
    """The owner of a lock: deployment id, address of the run, and the account that started it.

    ``fence`` is the reason for taking the lock from a deployment that holds it; with None the lock is never taken from its holder.
    """

    deployment_id: str
    run_url: str
    actor: str
    fence: str | None = None


@dataclass(frozen=True)
class LockHolder:
    """A lock that is held. ``alive``: its owner still runs, as far as this can be determined.

    ``silent``: seconds since the last renewal, for locks whose owner's process cannot be checked; else None.
    """

    owner: Owner
    renewed_at: str
    expires_at: str
    alive: bool
    silent: float | None = None


@dataclass(frozen=True)
class Instance:
    """A running instance. ``address``: ``host:port`` as the edge reaches it; ``host``: its production host, "" where there is only one."""

    release: str
    version: str
    service: str
    number: int
    address: str
    host: str = ""

    @property
    def name(self) -> str:
        """Return the name that tables show."""
        return f"{self.service}#{self.number} {self.version} ({self.address}{' on ' + self.host if self.host else ''})"


@dataclass(frozen=True)
class Observation:
    """The observed state of a target: counters by (service, release id), effective weights, instances that no longer run."""

    counters: Mapping[tuple[str, str], Counters]
    weights: Mapping[str, Mapping[str, int]]
    dead: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class AbortResult:
    """The result of going back to version ``to`` (None: there was no earlier version). ``seconds``: until the last request reached the
    new version; ``requests_after``: requests that reached it during the proof; ``lost``: hosts that could not be reached, whose state
    is unknown (``detail`` says what is expected of them).
    """

    to: str | None
    seconds: float
    proved: bool
    requests_after: int | None
    detail: str
    lost: tuple[str, ...] = ()


class Target(Protocol):
    """A place to deploy to. All methods except ``current`` and ``observe`` need the lock."""

    def locked(self, owner: Owner) -> AbstractContextManager[None]:
        """Hold the target's lock. Raises NotTrueError naming the owner when somebody else holds it and ``owner.fence`` is None.

        A rollback fences a deployment, never another rollback. From then on, every change by the fenced owner is refused.
        """

    def renew(self) -> None:
        """Extend the lock's expiry; to be called in every interval. Raises NotTrueError when the lock was taken over."""

    def current(self) -> History:
        """Return the history of deployments from the target's journal."""

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release that were started and not stopped."""

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Have ``percent`` of a release's instances running, healthy with its version, and warm at the edge; weights stay unchanged.

        Returns all of the release's instances. Raises NotTrueError when an instance does not become healthy in time.
        """

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Give a release ``percent`` of the traffic and return the weights that were read back."""

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Store a stage's evidence in the journal, so that a rerun can show it."""

    def promote(self, release: Release) -> None:
        """Put a release in production. The previous release keeps running at weight 0, so that a rollback can return to it."""

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> AbortResult:
        """Give all traffic back to the previous version, prove it, and stop the release's instances.

        ``hurry``: the run was cancelled, so this must end within 5 seconds.
        """

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return the address at which an instance itself reports its health and version."""

    def observe(self) -> Observation:
        """Return counters, effective weights and dead instances. Raises UnreachableError."""


@runtime_checkable
class Planning(Protocol):
    """A target that checks a deployment before its first stage. ``notes``: events that the deployment's evidence must mention."""

    notes: list[str]

    def plan(self, release: Release) -> list[str]:
        """Return lines for the plan. Raises NotTrueError, before anything is started, when the deployment would fail."""


@runtime_checkable
class Administrable(Protocol):
    """The actions on a target that are for people at a keyboard; the jobs do not use them."""

    def holder(self) -> LockHolder | None:
        """Return who holds the lock, or None."""

    def unlock(self, reason: str, actor: str) -> LockHolder | None:
        """Take the lock away from its holder and note the reason. Return the former holder, whose changes are refused from then on."""

    def remove(self, release_id: str) -> None:
        """Drain a release that gets no traffic, remove it from the edge, and stop its instances. Needs the lock."""


@dataclass(frozen=True)
class TargetContext:
    """The inputs of a target: configuration, process starter, clock, folder for instances' logs, seconds until instances must be healthy,
    secrets by name, and the minutes in which going back is supported. ``spare_lost_hosts``: of several hosts, those that cannot be
    reached are left out, reported, and counted as not proved; for going back, which helps the users of every host that it reaches.
    """

    config: DeployConfig
    processes: Processes
    clock: Clock
    log_dir: Path
    health_timeout: float
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    rollback_window_minutes: float = 60.0
    access: ProductionHosts | None = None  # how to reach the machines of remote targets
    spare_lost_hosts: bool = False
    recorded_host_keys: str = ""  # host keys seen earlier, as the text of a known_hosts file; used where no key is pinned

    @property
    def log(self) -> JobLog:
        """Return the job's log."""
        return self.processes.log


def host_keys(target: Target) -> list[dict[str, Any]]:
    """Return the host keys that a target's connections have seen, as evidence; empty for a target without connections."""
    return list(getattr(target, "host_keys", ()))


def left_out(target: object) -> Mapping[str, str]:
    """Return the unreachable hosts of a target that are left out (``spare_lost_hosts``): name -> reason."""
    reasons: Mapping[str, str] = getattr(target, "left_out", {})
    return reasons


def holders(target: Administrable) -> Mapping[str, LockHolder | None]:
    """Return host name -> holder of the host's lock; the name is "" for a target that is not made of hosts."""
    read_holders: Callable[[], Mapping[str, LockHolder | None]] = getattr(target, "holders", lambda: {"": target.holder()})
    return read_holders()


def edges(target: Target) -> list[str]:
    """Return a line about the edge of each host; empty for a target that does not install its edge."""
    describe = getattr(target, "edges", None)
    return list(describe()) if describe else []


def reached(target: Target) -> AbstractContextManager[object]:
    """Return a context that keeps the connections to a target open over several queries without the lock."""
    connected = getattr(target, "connected", None)
    context: AbstractContextManager[object] = connected() if connected else nullcontext()
    return context


class FencedError(NotTrueError):
    """The lock belongs to somebody else by now: its former owner may change nothing, not even to take traffic back."""
