"""The parts of a ``node.Node``, and their interfaces: the runner of instances and jobs, the lock, the journal and the edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from azora_ci.core.config import Service
from azora_ci.health.probes import Dial
from azora_ci.health.traffic import Counters
from azora_ci.health.workers import WorkerState
from azora_ci.targets.drain import RequestCounts
from azora_ci.targets.envoy.edge import READ_BACK_SECONDS
from azora_ci.targets.envoy.state import EdgeOptions, EdgeState
from azora_ci.targets.journal import History
from azora_ci.targets.release import Release

Facts = Mapping[str, Any]  # an instance or a job as the journal records it
CREATED, RUNNING, ENDED = "created", "running", "ended"  # a job


@dataclass(frozen=True)
class JobStatus:
    """What is seen of a job: CREATED and not started, RUNNING, or ENDED with an exit code after some seconds."""

    name: str
    exit_code: int | None = None
    seconds: float = 0.0


class Runner(Protocol):
    """Starts and stops instances. ``attempts``: how often an instance that ends before its first answer is started."""

    attempts: int

    def prepare(self, service: Service, release: Release) -> None:
        """Fetch what ``start`` needs. This may take long and may be interrupted."""

    def start(self, service: Service, release: Release, number: int) -> Facts:
        """Start an instance and return the facts about it that the journal has to record."""

    def address(self, facts: Facts) -> str:
        """Return ``host:port`` at which the edge reaches the instance."""

    def dead(self, instances: Sequence[Facts]) -> list[Facts]:
        """Return the instances that no longer run. Raises UnreachableError."""

    def state(self, facts: Facts) -> WorkerState:
        """Return what is seen of a worker. Raises UnreachableError."""

    def resume(self, facts: Facts) -> Facts:
        """Start a worker again that was stopped, unless it runs; return the facts that changed. Raises an AzoraError when it cannot."""

    def runs(self, facts: Facts, digest: str) -> bool | None:
        """Return whether an instance runs the image or archive of this digest, by what is seen of it now; None: that is not known."""

    def stop(self, instances: Iterable[tuple[Facts, float]], meanwhile: Callable[[], None]) -> None:
        """Stop instances, pairs of facts and seconds of grace; ``meanwhile`` is called while waiting."""

    def running(self, service_id: str) -> list[Facts]:
        """Return the instances of a singleton that run, also those that no journal knows, as facts that tell them from others."""

    def create_job(self, service: Service, release: Release) -> Facts:
        """Have the container or folder of a job, which is not started, and return the facts about it; one that is there is taken."""

    def start_job(self, service: Service, release: Release) -> None:
        """Start a job that was created. Of two calls, only one starts it."""

    def job_status(self, facts: Facts) -> JobStatus | None:
        """Return the state of a job, or None when nothing is left that tells it."""

    def end_job(self, facts: Facts, grace: float) -> None:
        """End a job that runs: SIGTERM, and SIGKILL after ``grace`` seconds."""

    def keep_log(self, facts: Facts, path: Path) -> None:
        """Copy the log of an instance or a job, masked, into the job's artifact."""

    def log_tail(self, facts: Facts) -> str:
        """Return the end of the log of an instance or a job, masked."""

    def discard(self, facts: Facts) -> None:
        """Kill an instance that could not be recorded in the journal."""

    def clear(self, release_id: str) -> None:
        """Remove the remains of a release whose instances were stopped."""


class NodeLock(Protocol):
    """A deployment lock."""

    def renew(self) -> None:
        """Extend the lock. Raises NotTrueError when it was taken over."""


class NodeJournal(Protocol):
    """An append-only journal."""

    def history(self) -> History:
        """Return the history that the entries record."""

    def add(self, at: str, event: str, deployment_id: str, **facts: Any) -> None:
        """Append an entry; it is stored durably when this returns."""


class NodeEdge(RequestCounts, Protocol):
    """An edge whose files are switched by a single rename; see ``edge.Edge``."""

    def state(self) -> EdgeState:
        """Return the state in force."""

    def switch(self, state: EdgeState) -> str:
        """Put a state in force and return the generation."""

    def apply(self, state: EdgeState) -> None:
        """Put a state in force and wait until the edge reports it."""

    def confirm(self, state: EdgeState, generation: str, seconds: float = READ_BACK_SECONDS) -> None:
        """Wait until the edge reports a state."""

    def certificate_days(self) -> int | None:
        """Return for how many days the edge's certificate is still valid; None for an edge without a certificate."""

    def weights(self) -> dict[str, dict[str, int]]:
        """Return the effective weights: route prefix -> cluster -> weight."""

    def counters(self, state: EdgeState) -> dict[tuple[str, str], Counters]:
        """Return (service id, release id) -> counters."""


@dataclass(frozen=True)
class Parts:
    """The parts of a node, and the options of its edge. ``host`` is its name among several hosts.

    ``dial`` connects to instances that this machine cannot reach. ``checkpoint`` is called where work may be abandoned; it raises an error
    when the work must end.
    """

    lock: NodeLock
    journal: NodeJournal
    edge: NodeEdge
    runner: Runner
    options: EdgeOptions
    host: str = ""
    dial: Dial | None = None
    checkpoint: Callable[[], None] = lambda: None
