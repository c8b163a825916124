"""Singletons: workers of which two never run at once, on all hosts together, such as a scheduler.

They do not follow the stages. After the promotion the old one is stopped, and seen not to run, before the new one is started. When the new
one is not healthy it is stopped, and the old one starts again. The promotion in the journal is the intention: whoever comes later finds
the old one, at rest or not, and the new one or none, and does what is left. What runs is asked of the host, because a runner that died
may have started what no journal knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from azora_ci.core.config import Service
from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.process import undisturbed
from azora_ci.targets.base import AbortResult, FencedError
from azora_ci.targets.journal import REMOVED, Deployed
from azora_ci.targets.node_parts import Facts, Parts
from azora_ci.targets.release import Release
from azora_ci.targets.workers import Grace, Workers

WITHDRAWN_SECONDS = 1.0  # of grace for what gives way to the old one, at the end of a cancelled run, too


class Starter(Protocol):
    """The members of a node that start and stop its instances."""

    def start(self, service: Service, release: Release) -> None:
        """Start an instance."""

    def await_health(self, services: list[str], release: Release) -> None:
        """Wait until the instances of these services are healthy. Raises NotTrueError."""

    def stop(self, deployed: Deployed, instances: list[Facts], *, quickly: bool) -> None:
        """Stop instances of a release."""


class Singletons:
    """The singletons of one node. ``release_id``: the release that goes up, or goes back, whose instance is the new one."""

    def __init__(self, parts: Parts, workers: Workers, node: Starter, grace: Grace) -> None:
        self._journal, self._runner, self._lock, self._host = parts.journal, parts.runner, parts.lock, parts.host
        self._workers, self._node, self._grace = workers, node, grace

    def _of(self, service_id: str) -> Iterator[tuple[Deployed, Facts]]:
        for deployed in list(self._journal.history().releases.values()):
            if deployed.outcome != REMOVED:
                yield from ((deployed, facts) for facts in list(deployed.instances.values()) if facts["service"] == service_id)

    def present(self, service_id: str, release_id: str) -> tuple[bool, bool, bool]:
        """Return whether the new one is here, an old one that is not at rest, an old one that is."""
        present = [(deployed.id == release_id, bool(facts.get("resting"))) for deployed, facts in self._of(service_id)]
        return (True, False) in present, (False, False) in present, (False, True) in present

    def leave(self, service_id: str, release_id: str) -> None:
        """Stop what is old. Raises NotTrueError when something of it still runs then."""
        for deployed, facts in self._of(service_id):
            if deployed.id != release_id:
                self._workers.rest(deployed, [facts], self._grace)
        self._clear(service_id, [facts for deployed, facts in self._of(service_id) if deployed.id == release_id])

    def _clear(self, service_id: str, kept: Sequence[Facts], longest: float = math.inf) -> None:
        """Stop every instance but those ``kept``, in ``longest`` seconds. Raises NotTrueError when one still runs then."""
        for attempt in range(2):
            running = [facts for facts in self._runner.running(service_id) if not any(facts.items() <= other.items() for other in kept)]
            if running and attempt == 0:
                self._runner.stop([(facts, min(longest, self._grace(service_id))) for facts in running], self._lock.renew)
        if running:
            raise NotTrueError(
                "An instance of a singleton cannot be stopped",
                what=f"{service_id}: {len(running)} still run, so no other one was started",
                where=self._host or "this machine",
                next_step="end it there, then re-run the job",
            )

    def enter(self, service: Service, release: Release) -> None:
        """Have the new one run and be healthy."""
        if not self.present(service.id, release.id)[0]:
            self._node.start(service, release)
        self._node.await_health([service.id], release)

    def withdraw(self, service_id: str, release_id: str) -> None:
        """Stop the new one, also one that is in no journal. Raises NotTrueError when it still runs then."""
        for deployed, facts in list(self._of(service_id)):
            if deployed.id == release_id:
                self._node.stop(deployed, [facts], quickly=True)
        self._clear(service_id, [facts for _, facts in self._of(service_id) if not facts.get("resting")], WITHDRAWN_SECONDS)

    def resting(self, service_id: str, release_id: str) -> tuple[int, Deployed, Facts] | None:
        """Return the newest old one at rest, as the time in its release's id, release, and facts; None where what serves has none."""
        history = self._journal.history()
        if history.serving is None or service_id not in history.releases[history.serving].digests:
            return None
        old = [(deployed, facts) for deployed, facts in self._of(service_id) if deployed.id != release_id and facts.get("resting")]
        return max(((int(each.id.partition("-")[0]), each, facts) for each, facts in old), key=lambda found: found[0], default=None)

    def bring_back(self, deployed: Deployed, facts: Facts, returned: AbortResult, *, hurry: bool) -> AbortResult:
        """Start an old one again."""
        return self._workers.bring_back(deployed, [facts], returned, hurry=hurry)


def exchange(nodes: Sequence[Singletons], service: Service, release: Release) -> None:
    """Exchange a singleton: on the node that has it, else on the first. Raises NotTrueError when the old one had to be started again."""
    chosen = max(nodes, key=lambda node: node.present(service.id, release.id))
    try:
        for node in nodes:
            node.leave(service.id, release.id)
        chosen.enter(service, release)
    except FencedError:
        raise  # whoever fenced this run decides what runs
    except BaseException as error:
        returned = AbortResult(None, 0.0, True, None, "the new one does not run")
        with undisturbed(deliver=False):
            returned = come_back(nodes, service.id, release.id, returned, hurry=True)
        if not isinstance(error, AzoraError):  # the run was cancelled
            raise
        raise NotTrueError(
            f"{service.title} was not exchanged",
            what=f"{error.what}\n{returned.detail}",
            where=error.where,
            next_step="read instances/ in the job's artifact; re-run the job to try again, or go back with the rollback instructions",
        ) from error


def come_back(nodes: Sequence[Singletons], service_id: str, release_id: str, returned: AbortResult, *, hurry: bool) -> AbortResult:
    """Stop the new one, then start the old one again, unless one runs; return ``returned`` with what came of it."""
    try:
        for node in nodes:
            node.withdraw(service_id, release_id)
        if any(node.present(service_id, release_id)[1] for node in nodes):
            return returned
    except AzoraError as error:
        return replace(returned, proved=False, detail=f"{returned.detail}; {service_id}: {error.title}, {error.what}")
    resting = [(*old, node) for node in nodes if (old := node.resting(service_id, release_id)) is not None]
    if not resting:
        return returned
    _, deployed, facts, node = max(resting, key=lambda found: found[0])
    return node.bring_back(deployed, facts, returned, hurry=hurry)


def after_going_back(
    nodes: Sequence[Singletons], services: Sequence[Service], release_id: str, returned: AbortResult, *, hurry: bool
) -> AbortResult:
    """Return ``returned`` with what came of the singletons of a release that went back."""
    for service in services:
        returned = come_back(nodes, service.id, release_id, returned, hurry=hurry)
    return returned
