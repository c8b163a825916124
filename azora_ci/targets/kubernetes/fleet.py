"""All Rollouts of a configuration, driven together: one list is read at a time, and every change is fenced.

A change that the API server refuses is judged by reading again: the lock may be somebody else's, somebody may have changed the Rollout,
or the controller wrote its status in between; only then it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from azora_ci.clients.kubernetes.api import Api, ConflictError
from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.base import TargetContext
from azora_ci.targets.kubernetes import rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.lock import ClusterLock, stamp_each
from azora_ci.targets.kubernetes.others import Others, silent
from azora_ci.targets.kubernetes.rollouts import FENCE, Change, RolloutState

POLL_SECONDS = 0.25
OWED_SECONDS = 9.0  # in which the controller does what it does at once when it runs
BEAT_SECONDS = 3.0  # between two looks at the controller's sign of life
CONFLICTS = 5  # with the controller's own writes, which come in bursts of two or three

States = Mapping[str, RolloutState]  # by service id


class Fleet:
    """The Rollouts by service id. ``explain``: service id and state -> what its new pods lack, for the error of one that is not ready."""

    def __init__(self, api: Api, names: Names, context: TargetContext, explain: Callable[[str, RolloutState], str]) -> None:
        self._api, self.names, self._clock, self._explain = api, names, context.clock, explain
        self._settings = names.settings
        self.others = Others(api, names, context.clock, context.log.say)
        self.lock: ClusterLock | None = None  # while a change is allowed

    def states(self) -> dict[str, RolloutState]:
        """Return every Rollout's state. Raises NotTrueError when one is missing."""
        states = self.present()
        self.require_all(states)
        return states

    def require_all(self, states: States) -> None:
        """Raise NotTrueError when a Rollout is missing."""
        missing = [entry.rollout for service, entry in self._settings.rollouts.items() if service not in states]
        if missing:
            present = ", ".join(seen.name for seen in states.values())
            raise NotTrueError(
                "A Rollout is missing",
                what=f"namespace {self._settings.namespace} has no Rollout {', '.join(missing)}, but {present or 'none'}",
                where="target.kubernetes.services",
                next_step="create it (kubectl apply), or correct namespace and names; an absent namespace has no Rollouts, either",
            )

    def present(self) -> dict[str, RolloutState]:
        """Return the states of the Rollouts that are there."""
        documents = {each["metadata"]["name"]: each for each in self._api.get(self.names.rollouts)["items"]}
        entries = {service: entry.rollout for service, entry in self._settings.rollouts.items() if entry.rollout in documents}
        states = {service: rollouts.state(documents[name]) for service, name in entries.items()}
        self.others.watched = next(filter(None, (seen.background for seen in states.values())), None)
        return states

    def replica_sets(self, hashes: Collection[str]) -> dict[str, Document]:
        """Return ReplicaSets by the hash of their template."""
        if not hashes:
            return {}
        path = self.names.group("apps/v1", "replicasets")
        items = self._api.get(path, labelSelector=f"{rollouts.HASH_LABEL} in ({','.join(sorted(hashes))})")["items"]
        return {each["metadata"]["labels"][rollouts.HASH_LABEL]: each for each in items}

    def stamp(self, token: str, confirm: Callable[[], None]) -> None:
        """Write the lock's token on every Rollout: from now on its former owner can change none of them. See ``lock.stamp_each``.

        One that is missing is not waited for: the others may have to go back.
        """
        for seen in self.present().values():
            stamp_each(self._api, self._clock, f"{self.names.rollouts}/{seen.name}", token, confirm)

    # --- changes -------------------------------------------------------------------------------------------------------

    def change(self, service: str, make: Change, *, status: bool = True) -> None:
        """Change a Rollout by what ``make`` returns of its state and the lock's token; None: nothing is to be changed any more.

        Raises FencedError, and NotTrueError when somebody else changes it again and again.
        """
        assert self.lock is not None  # noqa: S101 - ``locked`` comes first
        path = f"{self.names.rollouts}/{self._settings.rollouts[service].rollout}"
        for attempt in self._clock.attempts(CONFLICTS, 0.1):
            document = self._api.get(path)
            operations = make(rollouts.state(document), self.lock.token)
            if operations is None:
                return
            try:
                self._api.patch(path + ("/status" if status else ""), list(operations))
            except ConflictError:
                self.lock.confirm()
                if attempt.last:
                    raise
                if not member(document, "metadata", "annotations", FENCE):  # somebody applied a manifest without it
                    stamp_each(self._api, self._clock, path, self.lock.token, self.lock.confirm)
            else:
                return

    # --- waiting -------------------------------------------------------------------------------------------------------

    def await_all(
        self,
        services: Collection[str],
        done: Callable[[str, RolloutState], bool],
        meanwhile: Callable[[str, RolloutState], None],
        *,
        seconds: float,
        purpose: str,
        partly: bool = False,
    ) -> States:
        """Wait until all are done, and return their states; ``meanwhile`` is called with each that is not, and may raise.

        ``partly``: as far as they are there. Raises NotTrueError when one is not done in time, UnreachableError when the controller does
        nothing.
        """
        begun = heard = self._clock.monotonic()
        owed: dict[str, float] = {}  # since when the controller owes something
        while True:
            states = self.present() if partly else self.states()
            waiting = {service: states[service] for service in services if service in states and not done(service, states[service])}
            if not waiting:
                return states
            now = self._clock.monotonic()
            owed = {service: owed.get(service, now) for service, seen in waiting.items() if seen.owed}
            late = [waiting[service] for service, since in owed.items() if now - since > OWED_SECONDS]
            if late:
                raise silent(late[0].text, OWED_SECONDS)
            if now - heard > BEAT_SECONDS:
                self.require_controller()
                heard = now
            if any(seen.analysing for seen in waiting.values()):
                begun = now  # a user's own analysis between our stages takes the time that it takes
            for service, seen in waiting.items():
                meanwhile(service, seen)
            if now - begun > seconds:
                service, seen = next(iter(waiting.items()))
                raise NotTrueError(
                    f"A Rollout is not {purpose}",
                    what=f"{seen.text}; not within {seconds:g} s. {self._explain(service, seen)}",
                    where=f"{self._settings.namespace}/{seen.name}",
                    next_step="look at its pods and events (kubectl argo rollouts get rollout, kubectl describe pod)",
                )
            self._clock.sleep(POLL_SECONDS)

    def require_controller(self) -> None:
        """Raise UnreachableError when the controller has fallen silent."""
        if error := self.others.silence():
            raise error
