"""An API server in memory, for what a target does in states that a real cluster does not reach by itself. It applies JSON patches."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from azora_ci.clients.kubernetes.api import ConflictError, NotFoundError
from azora_ci.core.clock import Clock
from azora_ci.core.config.kubernetes import KubernetesSettings, RolloutNames
from azora_ci.targets.kubernetes import rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.fleet import Fleet
from azora_ci.targets.kubernetes.journal import ClusterJournal
from azora_ci.targets.kubernetes.lock import ClusterLock
from azora_ci.targets.kubernetes.releases import Releases
from azora_ci.targets.kubernetes.target import Kubernetes

RELEASE, BASE, HASH = "1764000000-aaaaaa", "h1", "h2"


class Quick(Clock):
    """A clock that does not wait."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def monotonic(self) -> float:
        return self._seconds

    def sleep(self, seconds: float) -> None:
        self._seconds += seconds


def rollout(name: str, percent: int = 50) -> dict[str, Any]:
    """Return a Rollout that waits with a release at a weight."""
    steps = [step for share in (5, 50, 100) for step in ({"setWeight": share}, {"pause": {}})]
    canary = {"stableService": name, "canaryService": f"{name}-canary", "trafficRouting": {"nginx": {}}, "steps": steps}
    containers = [{"name": "app", "image": "registry.example/app@sha256:2"}]
    return {
        "metadata": {"name": name, "generation": 3, "resourceVersion": "1", "annotations": {}},
        "spec": {
            "template": {"metadata": {"labels": {}, "annotations": {rollouts.RELEASE: RELEASE}}, "spec": {"containers": containers}},
            "strategy": {"canary": canary},
        },
        "status": {
            "observedGeneration": "3", "phase": "Paused", "stableRS": BASE, "currentPodHash": HASH,
            "currentStepIndex": 2 * (5, 50, 100).index(percent) + 1, "pauseConditions": [{"reason": "CanaryPauseStep"}],
            "controllerPause": True, "canary": {"weights": {"canary": {"weight": percent}}},
        },
    }  # fmt: skip


class Memory:
    """Objects by path. A Rollout whose status says ``abort`` goes back at once, and one that got another template is at rest."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, Exception] = {}  # path -> what a patch of it raises

    def now(self) -> datetime:
        return datetime.now(UTC)

    def get(self, path: str, **_: str) -> dict[str, Any]:
        inside = [document for name, document in sorted(self.objects.items()) if name.rpartition("/")[0] == path]
        if path not in self.objects and (inside or path.endswith(("rollouts", "replicasets", "analysisruns"))):
            return {"items": copy.deepcopy(inside)}
        if path not in self.objects:
            raise NotFoundError("No such object", what=path, where=path, next_step="-")
        return copy.deepcopy(self.objects[path])

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self.objects[f"{path}/{document['metadata']['name']}"] = {**document, "metadata": {"resourceVersion": "1", **document["metadata"]}}
        return document

    def replace(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self.objects[path] = copy.deepcopy(document)
        return document

    def patch(self, path: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
        path = path.removesuffix("/status")
        if path in self.refused:
            raise self.refused[path]
        document = self.get(path)
        for operation in operations:
            *way, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
            place = document
            for part in way:
                place = place[part]
            if operation["op"] == "test" and place.get(last) != operation["value"]:
                raise ConflictError("The cluster changed in the meantime", what=operation["path"], where=path, next_step="-")
            if operation["op"] == "remove":
                del place[last]
            elif operation["op"] != "test":
                place[last] = copy.deepcopy(operation["value"])
        document["metadata"]["resourceVersion"] += "1"
        self.objects[path] = document
        self._control(document)
        return document

    def _control(self, document: dict[str, Any]) -> None:
        status = document.get("status", {})
        if status.get("abort") and not status.get("abortedAt"):
            status |= {"abortedAt": "2026-11-24T11:00:00Z", "phase": "Degraded", "controllerPause": False, "pauseConditions": None}
            status["canary"] = {"weights": {"canary": {"weight": 0}}}


class World:
    """A target on such an API server, with a release at 50 % on each of some Rollouts."""

    def __init__(self, *services: str) -> None:
        self.settings = KubernetesSettings("prod", {each: RolloutNames(each, "app", each, f"{each}-canary") for each in services})
        self.names, self.api, self.clock = Names(self.settings), Memory(), Quick()
        for each in services:
            self.api.objects[self.path(each)] = rollout(each)
        template = rollout("old")["spec"]["template"] | {"metadata": {"labels": {}}}
        kept = {"metadata": {"labels": {rollouts.HASH_LABEL: BASE}}, "spec": {"template": template}}
        self.api.objects[self.names.group("apps/v1", "replicasets") + "/kept"] = kept
        self.lines: list[str] = []
        target = Kubernetes.__new__(Kubernetes)  # without a connection
        target._api, target._names, target._settings, target._clock = self.api, self.names, self.settings, self.clock  # type: ignore[assignment]
        target.log = self  # type: ignore[attr-defined]
        target._context = self  # type: ignore[assignment]
        self.log = self
        target._fleet = Fleet(self.api, self.names, self, lambda *_: "")  # type: ignore[arg-type]
        target._lock = ClusterLock(self.api, self.names, self.clock, target._stamp, lambda: target._releases.under_way)  # type: ignore[arg-type]
        target._journal = ClusterJournal(self.api, self.names, self.clock, target._lock)  # type: ignore[arg-type]
        target._counting, target._expected, target.notes = None, None, []
        target._releases = Releases(target._journal, target._fleet, NoPods(), None, None)  # type: ignore[arg-type]
        self.target = target

    def say(self, line: str) -> None:
        self.lines.append(line)

    def path(self, service: str) -> str:
        return f"{self.names.rollouts}/{service}"

    @property
    def lease(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.api.objects[f"{self.names.leases}/{self.names.lease}"]["spec"]
        return spec

    def begin(self) -> None:
        """Note a release as ``deploy`` does. Call it inside ``locked``."""
        self.target._note("begin", RELEASE, version="v1.1.0", digests={}, previous=None)
        for service in self.settings.rollouts:
            self.target._note("instance", RELEASE, service=service, number=1, base=BASE)

    def taken_back(self) -> list[str]:
        """Return the services whose Rollout was told to go back."""
        paths = {service: self.path(service) for service in self.settings.rollouts}
        return [service for service, path in paths.items() if self.api.objects.get(path, {}).get("status", {}).get("abort")]


class NoPods:
    """The pods of a namespace that has none."""

    def of(self, hashes: Any, **_: Any) -> dict[str, list[Any]]:
        return {each: [] for each in hashes}
