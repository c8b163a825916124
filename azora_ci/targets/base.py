"""What every kind of target is: the Protocol, and what goes in and comes out of it.

A target's state is stored on the target itself, in its journal and its edge files. Nothing depends on the memory of a runner.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from azora_ci.core.clock import Clock
from azora_ci.core.config import DeployConfig, HealthSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret
from azora_ci.health.answers import CONTRACT, Endpoint
from azora_ci.health.failures import Failure
from azora_ci.health.traffic import Counters
from azora_ci.health.workers import WorkerState
from azora_ci.targets.findings import Finding
from azora_ci.targets.journal import History
from azora_ci.targets.release import Release
from azora_ci.targets.trial.base import Apart, Means

IMAGES, ARCHIVES = "images", "archives"  # the artifacts of a build


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
    """An instance that was started. ``address``: ``host:port`` as it is asked, "" for a worker that nobody asks; ``host``: its production
    host, "" where there is only one. ``resting``: a worker that was stopped and starts again when its release comes back.
    """

    release: str
    version: str
    service: str
    number: int
    address: str
    host: str = ""
    worker: bool = False
    resting: bool = False
    health: HealthSettings = CONTRACT  # what its release answers: another release's configuration may expect something else

    @property
    def name(self) -> str:
        """Return the name that tables show."""
        where = " on ".join(filter(None, (self.address, self.host)))
        return f"{self.service}#{self.number} {self.version}{f' ({where})' if where else ''}{', at rest' if self.resting else ''}"


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


class Watched(Protocol):
    """The members of a target that a rollout watches. ``renew`` needs the lock, the others do not."""

    def renew(self) -> None:
        """Extend the lock's expiry; to be called in every interval. Raises NotTrueError when the lock was taken over."""

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release that were started and not stopped, and its workers that are at rest."""

    def states(self, workers: Sequence[Instance]) -> Sequence[WorkerState]:
        """Return the state of each worker, in their order. Raises UnreachableError."""

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return the address at which an instance itself reports its health and version."""

    def observe(self) -> Observation:
        """Return counters, effective weights and dead instances. Raises UnreachableError."""


class Target(Watched, Protocol):
    """A place to deploy to. The methods from ``deploy`` on change it and need the lock.

    ``notes``: events that a deployment's evidence must mention; ``host_keys``: the host keys that connections have seen, as evidence;
    ``left_out``: host -> reason for the unreachable hosts that are left out (``TargetContext.spare_lost_hosts``).
    """

    notes: list[str]
    host_keys: list[dict[str, Any]]
    left_out: dict[str, str]

    def connected(self) -> AbstractContextManager[None]:
        """Keep the connections to the target open over several queries without the lock."""

    def locked(self, owner: Owner) -> AbstractContextManager[None]:
        """Hold the target's lock. Raises NotTrueError naming the owner when somebody else holds it and ``owner.fence`` is None.

        A rollback fences a deployment, never another rollback. From then on, every change by the fenced owner is refused.
        """

    def holder(self) -> LockHolder | None:
        """Return who holds the lock, or None."""

    def holders(self) -> Mapping[str, LockHolder | None]:
        """Return host name -> holder of the host's lock; the name is "" for a target that is not made of hosts."""

    def unlock(self, reason: str, actor: str) -> LockHolder | None:
        """Take the lock away from its holder and note the reason. Return the former holder, whose changes are refused from then on."""

    def install_edge(self, owner: Owner, listen: str | None) -> str:
        """Install the edge, or replace one that is configured anew; return a text about it for people.

        ``listen``: ``host:port`` for an edge that a person starts; None: that of the public health URLs. Takes the lock where it needs it.
        """

    def edge_secret(self) -> str | None:
        """Return the secret with which the edge is asked to prove which release answers; None where it has none. Needs ``connected``."""

    def edges(self) -> list[str]:
        """Return a line about the edge of each host; empty for a target whose edge is installed by a person."""

    def edge_log(self, since: str) -> list[Failure]:
        """Return what went wrong at the edges since a moment (RFC 3339), the oldest first; of much, the latest. Raises UnreachableError."""

    def current(self) -> History:
        """Return the history of deployments from the target's journal."""

    def plan(self, release: Release) -> list[str]:
        """Return lines for the plan. Raises NotTrueError, before anything is started, when the deployment would fail."""

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Have ``percent`` of a release's instances running, healthy with its version, and warm at the edge; weights stay unchanged.

        Returns all of the release's instances. Raises NotTrueError when an instance does not become healthy in time.
        """

    def run_once(self, service_id: str, release: Release) -> None:
        """Do on one host what a release does once: run a job to its end, or exchange a singleton; or go on with what an earlier run left.

        The journal holds how a job ended. Raises NotTrueError when nothing tells how it ended, and when a singleton is not healthy and the
        old one was started again. Going back ends a job that runs, and starts the old singleton when the new one was stopped.
        """

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Give a release ``percent`` of the traffic and return the weights that were read back."""

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Store a stage's evidence in the journal, so that a rerun can show it."""

    def promote(self, release: Release) -> None:
        """Put a release in production. The previous release keeps running at weight 0, so that a rollback can return to it.

        Its workers are stopped, and stay.
        """

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> AbortResult:
        """Give all traffic back to the previous version, prove it, stop the release's workers, then start those that are at rest of the
        previous version, and stop the release's other instances.

        ``hurry``: the run was cancelled, so this must end within 5 seconds.
        """

    def remove(self, release_id: str) -> None:
        """Drain a release that gets no traffic, remove it from the edge, and stop its instances."""


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
    edge_secret: Secret = field(default_factory=lambda: Secret(secrets.token_hex(32)))  # for the edge; see ``proofs``
    recorded_host_keys: str = ""  # host keys seen earlier, as the text of a known_hosts file; used where no key is pinned

    @property
    def log(self) -> JobLog:
        """Return the job's log."""
        return self.processes.log


class TargetKind(Protocol):
    """A kind of target: all that must be known of it before a target is opened. It imports heavy libraries only in its methods.

    ``artifact``: IMAGES or ARCHIVES, which the build makes for it; ``needs_host_keys``: jobs connect to it over SSH;
    ``needs_login``: asking it anything uses credentials of production, which only an approved release may.
    """

    artifact: ClassVar[str]
    needs_host_keys: ClassVar[bool]
    needs_login: ClassVar[bool]

    def check(self, config: DeployConfig) -> None:
        """Raise BadInputError when the configuration lacks something that is only needed after the migrations."""

    def open(self, context: TargetContext) -> Target:
        """Return the target of a configuration. Raises BadInputError when the configuration or the access does not suffice."""

    def apart(self, means: Means) -> Apart:
        """Return what starts services of a release on this machine, to try them on a copy of the database."""

    def findings(self, context: TargetContext) -> Iterable[Finding]:
        """Yield the findings of doctor and validation about what the target needs. Changes nothing."""


class FencedError(NotTrueError):
    """The lock belongs to somebody else by now: its former owner may change nothing, not even to take traffic back."""
