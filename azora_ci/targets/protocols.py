"""What a ``site.Site`` is made of, as it sees them: who runs instances, a lock, a journal and an edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from azora_ci.config import Service
from azora_ci.edge import READ_BACK_SECONDS
from azora_ci.envoy import EdgeState
from azora_ci.rollout import Counters
from azora_ci.targets import Release
from azora_ci.targets.journal import History

Facts = Mapping[str, Any]  # what the journal keeps of an instance


class Runner(Protocol):
    """Starts and stops instances. ``attempts``: how often one that ended before its first answer is started."""

    attempts: int

    def prepare(self, service: Service, release: Release) -> None:
        """Fetch what ``start`` needs; may take long, and may be interrupted."""

    def start(self, service: Service, release: Release, number: int) -> Facts:
        """Start an instance and return what to keep of it."""

    def address(self, facts: Facts) -> str:
        """Return ``host:port`` at which the edge reaches it."""

    def dead(self, found: Sequence[Facts]) -> list[Facts]:
        """Return those that no longer run. Raises UnreachableError."""

    def stop(self, found: Iterable[tuple[Facts, float]], meanwhile: Callable[[], None]) -> None:
        """Stop (instance, seconds of grace) pairs; ``meanwhile`` is called while waiting."""

    def keep_log(self, facts: Facts, path: Path) -> None:
        """Copy an instance's log, masked, into the job's artifact."""

    def log_tail(self, facts: Facts) -> str:
        """Return the end of its log, masked."""

    def discard(self, facts: Facts) -> None:
        """End an instance at once that the journal does not know."""

    def clear(self, release_id: str) -> None:
        """Remove what is left of a release whose instances were stopped."""


class SiteLock(Protocol):
    """A deployment lock."""

    def renew(self) -> None:
        """Prolong it. Raises NotTrueError when it was taken over."""


class SiteJournal(Protocol):
    """An append-only journal."""

    def history(self) -> History:
        """Return what it tells."""

    def add(self, at: str, event: str, deployment_id: str, **facts: Any) -> None:
        """Append an entry that is kept when this returns."""


class SiteEdge(Protocol):
    """An edge whose files are switched by one rename; see ``edge.Edge``."""

    def state(self) -> EdgeState:
        """Return the state in force."""

    def switch(self, state: EdgeState) -> str:
        """Put a state in force and return the generation."""

    def apply(self, state: EdgeState) -> None:
        """Put a state in force and wait until it is read back."""

    def confirm(self, state: EdgeState, generation: str, seconds: float = READ_BACK_SECONDS) -> None:
        """Wait until a state is read back."""

    def certificate_days(self) -> int | None:
        """Return for how many days its certificate is still valid; None where it has none."""

    def weights(self) -> dict[str, dict[str, int]]:
        """Return the effective weights."""

    def counters(self, state: EdgeState) -> dict[tuple[str, str], Counters]:
        """Return counters by service and release."""

    def requests_to(self, addresses: set[str]) -> int:
        """Return how many requests went to these addresses."""

    def under_way(self, addresses: set[str]) -> int:
        """Return how many requests and upgraded connections are open at these addresses."""
