"""Going back: every Rollout to the ReplicaSet that was stable before, whatever state somebody else or a dead run left it in.

Before a promotion that is ``status.abort``, which moves traffic in one step, then the stable template is put back, since an aborted
Rollout still names the release. After it, the template of the ReplicaSet that was stable before is put back and all steps are skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from azora_ci.clients.kubernetes.objects import Document
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.base import FencedError
from azora_ci.targets.journal import Deployed
from azora_ci.targets.kubernetes import rollouts
from azora_ci.targets.kubernetes.fleet import POLL_SECONDS, Fleet, States
from azora_ci.targets.kubernetes.rollouts import Change, RolloutState

REFUSALS = 20  # of a change, at one look each, until Argo Rollouts is left to take the release back


class Return:
    """The way back of one release. ``bases``: service id -> hash of what was stable before it, where the journal has one."""

    def __init__(self, fleet: Fleet, release_id: str, bases: Mapping[str, str]) -> None:
        self._fleet, self._release_id, self._bases = fleet, release_id, bases
        self._kept: dict[str, Document] = {}  # hash -> ReplicaSet
        self._gone: NotTrueError | None = None
        self._refused: dict[str, int] = {}  # service id -> how often it could not be changed since it last could
        self._services: list[str] = []
        self.notes: list[str] = []

    def require_goals(self) -> None:
        """Read what every Rollout goes back to. Raises NotTrueError, before anything is changed, where that is not kept.

        Where other Rollouts are on their way to the release, these go back first: see ``finish``.
        """
        states = self._fleet.present()
        goals = {service: goal for service, seen in states.items() if self._is_ours(seen) and (goal := self._goal(service, seen))}
        self._kept = self._fleet.replica_sets(set(goals.values()))
        gone = {service: f"{states[service].name}: ReplicaSet {goal}" for service, goal in goals.items() if goal not in self._kept}
        self._services = [service for service in states if service not in gone or self._is_on_its_way(states[service])]
        if gone:
            others = any(self._is_on_its_way(seen) for seen in states.values())
            done = "the others went back" if others else "nothing was changed"
            self._gone = NotTrueError(
                "The version before is not kept any more",
                what=f"{', '.join(gone.values())} is gone (spec.revisionHistoryLimit); {done}",
                where="ReplicaSets of the namespace",
                next_step="deploy the version before again",
            )
            if not others:
                raise self._gone
        for service, seen in states.items():
            if not self._is_ours(seen) and seen.current not in {seen.stable, self._bases.get(service)}:
                self.notes.append(f"{seen.name} has another change under way, which is somebody else's and stays: {seen.text}")

    def _is_ours(self, seen: RolloutState) -> bool:
        return seen.release == self._release_id

    def _is_on_its_way(self, seen: RolloutState) -> bool:
        return self._is_ours(seen) and bool(seen.stable) and seen.stable != seen.current

    def go(self, seconds: float) -> States:
        """Have the Rollouts that are there go back, and return their states. Raises NotTrueError when one is not back in time.

        One that cannot be changed is tried again, and keeps none of the others from going back.
        """
        return self._fleet.await_all(self._services, self.is_safe, self._try, seconds=seconds, purpose="back", partly=True)

    def finish(self, states: States, clock: Clock, seconds: float) -> None:
        """Put the stable template back where it belongs. Raises NotTrueError when a Rollout is missing, or what it was before.

        ``seconds``: see ``put_back``.
        """
        self.put_back(states, clock, seconds)
        self._fleet.require_all(states)
        if self._gone is not None:
            raise self._gone

    def _try(self, service: str, seen: RolloutState) -> None:
        try:
            self.move(service, seen)
        except FencedError:
            raise
        except NotTrueError:
            self._refused[service] = self._refused.get(service, 0) + 1
            if self._refused[service] > REFUSALS:
                raise
        else:
            self._refused.pop(service, None)

    def _goal(self, service: str, seen: RolloutState) -> str:
        """Return the hash of what a Rollout goes back to, "" where there was nothing before."""
        return seen.stable if seen.stable and seen.stable != seen.current else self._bases.get(service, "")

    def is_safe(self, service: str, seen: RolloutState) -> bool:
        """Return whether no traffic of a service reaches the release."""
        base = self._bases.get(service)
        if not self._is_ours(seen):
            return seen.settled and (not base or seen.stable == base)
        return not self._goal(service, seen) or (seen.stable != seen.current and seen.safe)

    def move(self, service: str, seen: RolloutState) -> None:
        """Have a Rollout do what it has not been asked for yet."""
        if self._take_back(seen, "") is not None:
            self._fleet.change(service, self._take_back)
        elif self._is_ours(seen) and seen.stable == seen.current:
            self._fleet.change(service, self._put(service), status=False)
        elif self._skip(service)(seen, "") is not None:
            self._fleet.change(service, self._skip(service))

    def _take_back(self, seen: RolloutState, token: str) -> Sequence[Document] | None:
        asked = (seen.document.get("status") or {}).get("abort")
        return rollouts.take_back(seen, token) if self._is_on_its_way(seen) and not asked else None

    def _put(self, service: str) -> Change:
        def put(seen: RolloutState, token: str) -> Sequence[Document] | None:
            goal = self._kept.get(self._goal(service, seen))
            return rollouts.put_template(seen.document, token, goal) if goal is not None and self._is_ours(seen) else None

        return put

    def _skip(self, service: str) -> Change:
        """Return the change that skips the steps of a Rollout that has the template of the version before."""

        def skip(seen: RolloutState, token: str) -> Sequence[Document] | None:
            skipping = (seen.document.get("status") or {}).get("promoteFull")
            returns = seen.settled and seen.current == self._bases.get(service) != seen.stable and not self._is_ours(seen)
            return rollouts.skip_steps(seen, token) if returns and not skipping else None

        return skip

    def put_back(self, services: Collection[str], clock: Clock, seconds: float) -> None:
        """Put the stable template back where an aborted Rollout still names the release: its next change would start from that.

        Argo is to find the ReplicaSet of that template, and no new one: where it does not within ``seconds``, a note says so.
        """
        states = self._fleet.present()
        goals = {
            service: goal
            for service, seen in states.items()
            if service in services and self._is_ours(seen) and (goal := self._goal(service, seen))
        }
        for service in services:
            self._fleet.change(service, self._put(service), status=False)
        deadline = clock.monotonic() + seconds
        while True:
            states = self._fleet.present()
            waited = {service: seen for service, seen in states.items() if service in goals}
            restless = [seen for service, seen in waited.items() if not (seen.finished and seen.current == goals[service])]
            if not restless or clock.monotonic() >= deadline:
                break
            clock.sleep(POLL_SECONDS)
        self.notes += [f"{seen.text}: its stable template was put back, and it is not at rest with it yet" for seen in restless if seconds]


def name_before(previous: Deployed | None, states: States, release_id: str, hashes: Mapping[str, str]) -> str | None:
    """Return the version to which traffic went; of a first deployment what ran before us, None where that was nothing.

    ``hashes``: service id -> hash of the version before; where another one is stable, somebody has changed its template since.
    """
    if previous is not None and all(seen.stable == hashes.get(service, seen.stable) for service, seen in states.items()):
        return previous.version
    stable = sorted(
        {seen.stable for seen in states.values() if seen.stable and (seen.release != release_id or seen.stable != seen.current)}
    )
    return f"what ran before ({', '.join(stable)})" if stable else None


def serving_pods(states: States, hashes: Mapping[str, str], release_id: str) -> set[str]:
    """Return the hashes of the release whose pods get requests as long as they are ready, since traffic is not routed.

    ``hashes``: service id -> hash of the release, where the journal has one.
    """
    found = set()
    for service, seen in states.items():
        own = {hashes.get(service, ""), seen.current if seen.release == release_id else ""} - {"", seen.stable}
        found |= set() if seen.routed else own
    return found


def read_back(states: States, ready: int, release_id: str, hashes: Mapping[str, str]) -> tuple[str, bool]:
    """Return what is read of the weights after going back, and whether that is a proof.

    ``ready``: pods of ``serving_pods``; ``hashes``: service id -> hash of the release, where the journal has one. A weight is that of the
    newest template: what is stable gets the rest, and is no proof where it is the release itself, as when there was nothing before.
    Nor is it one where somebody else's template is on its way: it has 0 % only until its pods are ready.
    """
    routed = [seen for seen in states.values() if seen.routed]
    zero = [seen for seen in routed if seen.reads(0)]
    unread = [seen.name for seen in routed if seen.weight is None or not seen.verified]
    other = [seen.text for seen in routed if seen not in zero and seen.name not in unread]
    unrouted = [seen.name for seen in states.values() if not seen.routed]
    others = [seen for seen in states.values() if seen.release != release_id and not seen.aborted]
    begun = [seen.name for seen in others if seen.stable and seen.current != seen.stable]
    still = [seen.name for service, seen in states.items() if seen.stable and seen.stable == _own(seen, hashes.get(service), release_id)]
    texts = (
        f"the weight of the new version reads 0 on {len(zero)} of {len(states)} Rollouts" if routed else "",
        f"not 0 is the weight of {', '.join(other)}" if other else "",
        f"the weight of {', '.join(unread)} cannot be read back" if unread else "",
        f"traffic of {', '.join(unrouted)} is not routed: {ready} pods of the new version are ready" if unrouted else "",
        f"the release itself is what is stable on {', '.join(still)}, and has its traffic: nothing was before" if still else "",
        f"a change of somebody else is under way on {', '.join(begun)}, and its traffic moves by itself" if begun else "",
    )
    return "; ".join(filter(None, texts)), len(zero) == len(routed) and not still and not begun and ready == 0


def _own(seen: RolloutState, noted: str | None, release_id: str) -> str | None:
    """Return the hash of a release's template on a Rollout."""
    return seen.current if seen.release == release_id else noted
