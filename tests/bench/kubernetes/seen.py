"""What anybody sees of a namespace: its Rollouts, the journal and the lease, followed by a watch, without a line of the target's own code.

A watch costs the API server nothing while nothing changes, unlike a loop of requests, and tells the moment of each change.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import requests

from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError
from azora_ci.rehearsal.kubernetes.api import Api

RELEASE = "azora-ci/deployment-id"  # annotation of a template
OWNER = "azora-ci/owner"  # annotation of the lease
PROMOTING = 1  # as its leaseTransitions: who holds it promotes, and Argo Rollouts takes nothing back
AGAIN_SECONDS = 0.2

Document = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """A Rollout at one moment. ``release``: deployment id of its template; ``weight``: percent of traffic to the pods of that template as a
    canary; None where the controller has not said it.
    """

    name: str
    release: str
    stable: bool  # its template is the stable one
    weight: int | None
    resting: bool  # the controller has nothing left to do: it waits in a pause, is finished, or took the release back

    @property
    def percent(self) -> int:
        """Return the percent of traffic of its template's pods."""
        return 100 if self.stable else self.weight or 0


def rollout(document: Document) -> Rollout:
    """Return what a Rollout's document says."""
    status, template = document.get("status") or {}, document["spec"]["template"]
    weights = (status.get("canary") or {}).get("weights") or {}
    weight = weights.get("canary", {}).get("weight")
    current, stable = status.get("currentPodHash", ""), status.get("stableRS", "")
    observed = str(document["metadata"]["generation"]) == str(status.get("observedGeneration"))
    waits = any(pause["reason"] == "CanaryPauseStep" for pause in status.get("pauseConditions") or ())
    finished = status.get("phase") == "Healthy" and current == stable and not weight
    taken_back = bool(status.get("abort") and status.get("abortedAt")) and not weight
    return Rollout(
        name=document["metadata"]["name"],
        release=(template["metadata"].get("annotations") or {}).get(RELEASE, ""),
        stable=observed and bool(stable) and current == stable,
        weight=weight,
        resting=observed and (waits or finished or taken_back),
    )


class Seen:
    """Follows a namespace until ``close``. Moments are seconds of the monotonic clock.

    ``changes``: (moment, Rollout) of every event since the last ``forget``.
    """

    def __init__(self, api: Api, namespace: str, clock: Clock) -> None:
        self._api, self._clock = api, clock
        self._rollouts: dict[str, Rollout] = {}
        self._journals: dict[str, str] = {}
        self._promoting: dict[str, str] = {}  # name of a lease -> the deployment whose holder promotes
        self.changes: list[tuple[float, Rollout]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        for path, take in (
            (f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/rollouts", self._take_rollout),
            (f"/api/v1/namespaces/{namespace}/configmaps", self._take_journal),
            (f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", self._take_lease),
        ):
            threading.Thread(target=self._follow, args=(path, take), daemon=True).start()

    def close(self) -> None:
        """Follow no longer. The threads end with their connections, at the latest when the API server does."""
        self._ended.set()

    def _follow(self, path: str, take: Any) -> None:
        while not self._ended.is_set():
            try:
                listed = self._api.get(path)
                for document in listed["items"]:
                    take(document)
                for kind, document in self._api.watch(path, listed["metadata"]["resourceVersion"]):
                    if kind == "ERROR" or self._ended.is_set():  # too old: list again
                        break
                    if kind != "BOOKMARK":
                        take(document)
            except (AzoraError, requests.RequestException):  # the API server restarts
                pass
            self._clock.wait(self._ended, AGAIN_SECONDS)

    def _take_rollout(self, document: Document) -> None:
        now, seen = self._clock.monotonic(), rollout(document)
        with self._lock:
            self._rollouts[seen.name] = seen
            self.changes.append((now, seen))

    def _take_journal(self, document: Document) -> None:
        with self._lock:
            self._journals[document["metadata"]["name"]] = (document.get("data") or {}).get("journal", "")

    def _take_lease(self, document: Document) -> None:
        owner = json.loads((document["metadata"].get("annotations") or {}).get(OWNER, "{}"))
        promotes = document["spec"].get("leaseTransitions") == PROMOTING
        with self._lock:
            self._promoting[document["metadata"]["name"]] = owner.get("deployment_id", "") if promotes else ""

    def promoting(self, release_id: str) -> bool:
        """Say whether the lease says that a release is being promoted, or was."""
        with self._lock:
            return release_id in self._promoting.values()

    def rollouts(self) -> list[Rollout]:
        """Return every Rollout as it was last seen."""
        with self._lock:
            return list(self._rollouts.values())

    def events(self, release_id: str) -> set[str]:
        """Return the names of a release's entries in the journal."""
        with self._lock:
            lines = [line for text in self._journals.values() for line in text.splitlines()]
        entries = [json.loads(line) for line in lines if release_id in line]
        return {entry["event"] for entry in entries if entry["deployment_id"] == release_id}

    def forget(self) -> None:
        """Begin a new list of changes, with every Rollout as it is now."""
        now = self._clock.monotonic()
        with self._lock:
            self.changes = [(now, seen) for seen in self._rollouts.values()]

    def moving_seconds(self) -> float:
        """Return the seconds since ``forget`` in which at least one Rollout was not at rest: the cluster was at work."""
        resting: dict[str, bool] = {}
        total, since = 0.0, None
        with self._lock:
            changes = list(self.changes)
        for moment, seen in changes:
            resting[seen.name] = seen.resting
            if since is None and not all(resting.values()):
                since = moment
            elif since is not None and all(resting.values()):
                total, since = total + moment - since, None
        return total + (self._clock.monotonic() - since if since is not None else 0.0)
