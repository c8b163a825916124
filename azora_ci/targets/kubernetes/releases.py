"""The releases of a namespace as they are seen: the journal's history, their pods, their shares of traffic, and their counters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.core.clock import Clock
from azora_ci.core.config import WORKER, DeployConfig
from azora_ci.health.answers import Endpoint
from azora_ci.health.traffic import Counters
from azora_ci.health.workers import WorkerState
from azora_ci.targets import proofs
from azora_ci.targets.base import Instance
from azora_ci.targets.journal import PROMOTED, Deployed, History
from azora_ci.targets.kubernetes import pods, rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.counters import CANARY, STABLE, Counting
from azora_ci.targets.kubernetes.fleet import POLL_SECONDS, Fleet, States
from azora_ci.targets.kubernetes.journal import ClusterJournal
from azora_ci.targets.kubernetes.rollouts import RolloutState
from azora_ci.targets.release import Release

NUMBER = 1  # of a service's entry in the journal: a Rollout is one thing


@dataclass(frozen=True)
class Expected:
    """Where every Rollout of a release was left: whoever moved one since was not us. ``first``: services that had nothing before."""

    release: Release
    percent: int
    first: frozenset[str]

    def holds(self, service: str, seen: RolloutState) -> bool:
        """Return whether a Rollout is where it was left. What had nothing before has no steps, and is finished at once."""
        return seen.waits_at(self.percent) or (service in self.first and seen.finished)


class Releases:
    """Reads releases. What it knows of their hashes and digests is of the last time that the journal was read."""

    def __init__(self, journal: ClusterJournal, fleet: Fleet, pods_of: pods.Pods, config: DeployConfig, counting: Counting | None) -> None:
        self._journal, self._fleet, self._pods, self._config, self._counting = journal, fleet, pods_of, config, counting
        self._names: Names = fleet.names
        self._noted: dict[str, dict[str, str]] = {}  # release id -> service id -> hash of its own template
        self._hashes: dict[str, dict[str, str]] = {}  # the same, but for a release before of what ran in its place, see ``_in_place``
        self._digests: dict[str, dict[str, str]] = {}

    def history(self) -> History:
        """Return the history of the journal."""
        history = self._journal.history()
        for deployed in history.releases.values():
            self._noted[deployed.id], self._digests[deployed.id] = facts_of(deployed, "hash"), deployed.digests
        self._hashes = self._in_place(history)
        return history

    @property
    def under_way(self) -> bool:
        """Return whether a release is unfinished for which a Rollout was changed, or may have been."""
        unfinished = self.history().unfinished
        return unfinished is not None and bool(unfinished.instances)

    def _in_place(self, history: History) -> dict[str, dict[str, str]]:
        """Return the hashes of releases; of one that another followed, those that were stable when that began: people change templates."""
        hashes: dict[str, dict[str, str]] = {}
        for deployed in history.releases.values():
            hashes[deployed.id] = self._noted[deployed.id].copy()
            before = hashes.get(deployed.previous or "", {})  # nothing where that was begun again since
            before |= {service: base for service, base in facts_of(deployed, "base").items() if service in before}
        return hashes

    def changed_since(self, states: States) -> list[str]:
        """Return a line about each Rollout whose stable template is not that of the release that serves."""
        serving = self.history().serving
        return [
            f"{states[service].name}: {states[service].stable} serves, and not {hash_}, which {serving} left: it was changed since; "
            "going back leads to what serves now"
            for service, hash_ in self._noted.get(serving or "", {}).items()
            if service in states and states[service].stable not in {"", hash_}
        ]

    # --- pods ----------------------------------------------------------------------------------------------------------

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return a release's pods; of a service whose pods were stopped, while its ReplicaSet is kept, one instance at rest."""
        deployed = self.history().releases.get(release_id)
        if deployed is None or not self._hashes[release_id]:
            return ()
        running = self._pods.of(self._hashes[release_id].values())
        found: list[Instance] = []
        for service, hash_ in self._hashes[release_id].items():
            found += [self._instance(deployed, service, number, pod) for number, pod in enumerate(running[hash_], start=1)]
            if not running[hash_] and deployed.outcome == PROMOTED:
                found.append(self._instance(deployed, service, NUMBER, None))
        return tuple(found)

    def _instance(self, deployed: Deployed, service_id: str, number: int, pod: Document | None) -> Instance:
        facts = deployed.instances[service_id, NUMBER]
        service = next((service for service in self._config.services if service.id == service_id), None)
        address = ""
        if pod is not None and service is not None and service.health_path:
            address = f"{member(pod, 'status', 'podIP') or 'no address'}:{service.port}"
        worker, health = facts.get("kind") == WORKER, proofs.settings_of(facts)
        return Instance(deployed.id, deployed.version, service_id, number, address, "", worker, pod is None, health)

    def _pod(self, instance: Instance) -> Document | None:
        """Return the pod of an instance, or the one in its place: pods come and go with nodes and autoscalers."""
        hash_ = self._hash(instance)
        present = self._pods.of([hash_], fresh=False)[hash_] if hash_ else []
        wanted = instance.number
        if 0 < len(present) < instance.number:
            wanted = member(self._fleet.replica_sets([hash_]).get(hash_), "spec", "replicas") or 0
        index = pods.place(instance.number, len(present), wanted)
        return None if index is None else present[index]

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return where a pod answers: through the API server, or at its address."""
        digest = self._digests.get(instance.release, {}).get(instance.service)
        image = self.image(instance.service, digest) if digest else ""
        endpoint = self._pods.endpoint(instance, side, self._pod(instance), image)
        own = self._noted.get(instance.release, {}).get(instance.service, "")
        # Of what people put in the place of a release no version is known: it is to be healthy.
        return endpoint if self._hash(instance) == own else replace(endpoint, versions=frozenset())

    def image(self, service: str, digest: str) -> str:
        """Return a service's image by digest."""
        assert self._config.registry is not None  # noqa: S101 - the configuration's own check
        return f"{self._config.registry.repository}/{service}@{digest}"

    def states(self, workers: Sequence[Instance]) -> list[WorkerState]:
        """Return the state of each worker's pod; of instances at rest, whether the ReplicaSet is there that starts them again."""
        kept = self._fleet.replica_sets({self._hash(each) for each in workers if each.resting} - {""})
        return [
            WorkerState(False, detail="its ReplicaSet is gone", gone=self._hash(each) not in kept)
            if each.resting
            else pods.worker_state(self._pod(each))
            for each in workers
        ]

    def _hash(self, instance: Instance) -> str:
        return self._hashes.get(instance.release, {}).get(instance.service, "")

    def kept(self, release_id: str, states: States, now: datetime) -> dict[str, Any]:
        """Return what the cluster keeps of the release before: whether a ReplicaSet is ``gone``, and until when all its pods run on."""
        hashes = self._hashes.get(release_id, {})
        found = self._fleet.replica_sets(hashes.values())
        ends = [rollouts.runs_until(found[hash_], states[service].document, now) for service, hash_ in hashes.items() if hash_ in found]
        return {"gone": not hashes or not found.keys() >= set(hashes.values()), "warm_until": min(ends, default=None)}

    # --- whose a Rollout is ---------------------------------------------------------------------------------------------

    def is_own(self, service: str, release: Release, seen: RolloutState) -> bool:
        """Return whether a Rollout has a release's template: its annotation, its image, and its hash as soon as that is noted.

        ``kubectl argo rollouts set image`` leaves our annotation on somebody else's image.
        """
        noted, container = self.hashes(release.id).get(service), self._names.settings.rollouts[service].container
        index = rollouts.container_index(seen.document, container)
        image = None if index is None else seen.document["spec"]["template"]["spec"]["containers"][index].get("image")
        same = image == self.image(service, release.digests[service])
        return seen.release == release.id and same and (noted is None or not seen.settled or seen.current == noted)

    def require_own(self, service: str, release: Release, seen: RolloutState) -> None:
        """Raise NotTrueError when a Rollout has another template by now, was taken back in the cluster, or cannot go on."""
        self._fleet.others.require_ours(release, seen)
        if not self.is_own(service, release, seen):
            raise self._fleet.others.changed(seen, f"its image or its template is not that of {release.version} any more: {seen.text}")

    # --- traffic -------------------------------------------------------------------------------------------------------

    def shown(self, history: History, states: States) -> list[Deployed]:
        """Return the releases that a Rollout has as its stable or its newest template."""
        hashes = {hash_ for seen in states.values() for hash_ in (seen.stable, seen.current)}
        return [deployed for deployed in history.releases.values() if hashes & set(self._hashes[deployed.id].values())]

    def troubled(self, shown: Sequence[Deployed]) -> tuple[Instance, ...]:
        """Return the instances whose process ended or cannot start."""
        present = self._pods.of({hash_ for deployed in shown for hash_ in self._hashes[deployed.id].values()})
        return tuple(
            self._instance(deployed, service, number, pod)
            for deployed in shown
            for service, hash_ in self._hashes[deployed.id].items()
            for number, pod in enumerate(present[hash_], start=1)
            if pods.trouble(pod)
        )

    def weights(self, states: States) -> dict[str, dict[str, int]]:
        """Return route -> version -> percent; of a Rollout without traffic routing its pods -> version -> percent of its ready pods."""
        ids = {hash_: release for release, hashes in self._hashes.items() for hash_ in hashes.values()}
        result = {}
        for service, seen in states.items():
            routed = self._names.settings.rollouts[service].stable_service is not None
            shares = self._shares(seen, routed=routed)
            # A worker has no route; its Rollout may have routing all the same.
            route = (self._config.service(service).route_prefix or seen.name) if routed else f"pods of {seen.name}"
            result[route] = {f"{service}-{ids.get(hash_, hash_)}": share for hash_, share in shares.items()}
        return result

    def _shares(self, seen: RolloutState, *, routed: bool) -> dict[str, int]:
        if seen.stable in {"", seen.current}:
            return {seen.current: 100}
        if routed:
            new = seen.weight or 0
        else:
            ready = {hash_: sum(map(pods.is_ready, found)) for hash_, found in self._pods.of([seen.current, seen.stable]).items()}
            new = round(100 * ready[seen.current] / (sum(ready.values()) or 1))
        return {seen.current: new, seen.stable: 100 - new}

    def counters(self, release_ids: Sequence[str], states: States) -> dict[tuple[str, str], Counters]:
        """Return (service id, release id) -> counters; nothing where requests are not counted. Raises UnreachableError."""
        if self._counting is None:
            return {}
        return {
            (service, release): self._counting.counters(asked(self._names, service, states[service], hash_))
            for release in release_ids
            for service, hash_ in self._hashes.get(release, {}).items()
            if service in states and self._config.service(service).route_prefix  # workers have no users
        }

    def hashes(self, release_id: str) -> dict[str, str]:
        """Return service id -> hash of a release's own template, where the journal has one."""
        return self._noted.get(release_id, {})

    def await_unready(self, hashes: Collection[str], clock: Clock, deadline: float) -> int:
        """Wait until no pod of these templates is ready; return how many still are at the deadline (monotonic seconds)."""
        while (left := self._ready(hashes)) and clock.monotonic() < deadline:
            clock.sleep(POLL_SECONDS)
        return left

    def _ready(self, hashes: Collection[str]) -> int:
        return sum(pods.is_ready(pod) for found in self._pods.of(hashes).values() for pod in found)

    def requests_after(self, release_id: str, clock: Clock, seconds: float) -> int | None:
        """Return the requests that reach a release from now on; None where a counter fell, which tells nothing. Raises UnreachableError.

        Those before now must be known first.
        """
        assert self._counting is not None  # noqa: S101 - the caller asked
        clock.sleep(self._counting.delay)
        before = self._requests(release_id)
        clock.sleep(self._counting.delay + seconds)
        after = self._requests(release_id)
        fell = any(after.get(service, 0) < count for service, count in before.items())
        return None if fell else sum(after.values()) - sum(before.values())

    def _requests(self, release_id: str) -> dict[str, int]:
        return {service: counted.requests for (service, _), counted in self.counters([release_id], self._fleet.states()).items()}


def asked(names: Names, service: str, seen: RolloutState, hash_: str) -> dict[str, str]:
    """Return what a count of a ReplicaSet is asked for."""
    side = STABLE if hash_ == seen.stable else CANARY
    return {"namespace": names.settings.namespace, "service": service, "rollout": seen.name, "hash": hash_, "side": side}


def facts_of(deployed: Deployed, name: str) -> dict[str, str]:
    """Return service id -> a fact of its entry in the journal, where it has one."""
    return {service: facts[name] for (service, _), facts in deployed.instances.items() if facts.get(name)}
