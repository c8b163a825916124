"""Pods of releases: which run, whether they are well, and how they are asked for their health."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.core.clock import Clock
from azora_ci.core.config import DeployConfig
from azora_ci.core.config.kubernetes import PROXY
from azora_ci.health.answers import FROM_IMAGE, Endpoint, bare
from azora_ci.health.workers import WorkerState
from azora_ci.targets.base import Instance
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.rollouts import HASH_LABEL

FRESH_SECONDS = 1.5  # a list of pods is used again for this long: every probe of a tick asks for its pod
WAITS_FOR_A_START = frozenset({"ContainerCreating", "PodInitializing"})


class Pods:
    """The pods of a namespace, by the hash of their template."""

    def __init__(self, api: Api, names: Names, config: DeployConfig, clock: Clock) -> None:
        self._api, self._names, self._config, self._clock = api, names, config, clock
        self._kept: dict[str, list[Document]] = {}
        self._asked: frozenset[str] = frozenset()
        self._read_at = 0.0

    def of(self, hashes: Collection[str], *, fresh: bool = True) -> dict[str, list[Document]]:
        """Return the pods by hash, oldest first, without those that are being deleted or replaced."""
        wanted = frozenset(hashes)
        if fresh or not wanted <= self._asked or self._clock.monotonic() - self._read_at > FRESH_SECONDS:
            self._asked = wanted if fresh else wanted | self._asked
            self._kept = self._read(self._asked)
            self._read_at = self._clock.monotonic()
        return {each: self._kept.get(each, []) for each in wanted}

    def _read(self, hashes: Collection[str]) -> dict[str, list[Document]]:
        found: dict[str, list[Document]] = {}
        if not hashes:
            return found
        items = self._api.get(self._names.core("pods"), labelSelector=f"{HASH_LABEL} in ({','.join(sorted(hashes))})")["items"]
        for pod in sorted(items, key=lambda each: (each["metadata"]["creationTimestamp"], each["metadata"]["name"])):
            if not pod["metadata"].get("deletionTimestamp") and member(pod, "status", "phase") not in {"Failed", "Succeeded"}:
                found.setdefault(pod["metadata"]["labels"][HASH_LABEL], []).append(pod)
        return found

    def endpoint(self, instance: Instance, side: str, pod: Document | None, image: str) -> Endpoint:
        """Return where a pod answers; ``pod`` is None where it is gone and no other one took its place."""
        service = self._config.service(instance.service)
        expected, observed = frozenset({bare(instance.version)}), None
        if instance.health.version_from == FROM_IMAGE and pod is not None:
            runs = image_of(pod, self._names.settings.rollouts[instance.service].container)
            observed = instance.version if runs == image else "of another image"
        name, path = instance.name, service.health_path
        ip = member(pod, "status", "podIP")
        if self._names.settings.probes != PROXY:
            address = f"[{ip}]" if ip and ":" in ip else ip or "0.0.0.0"  # noqa: S104 - connecting there is refused, as to a pod without address
            return Endpoint(name, service.id, side, f"http://{address}:{service.port}{path}", expected, None, instance.health, observed)
        pod_name = pod["metadata"]["name"] if pod else instance.address
        url = f"http://{self._api.host}{self._api.base_path}{self._names.core('pods')}/{pod_name}:{service.port}/proxy{path}"
        headers = self._api.headers()
        return Endpoint(name, service.id, side, url, expected, self._api.dial, instance.health, observed, headers=headers)


def place(number: int, present: int, wanted: int) -> int | None:
    """Return which of the pods that are present (from 0) is asked as instance ``number``; None where that vanished.

    ``wanted``: pods that the ReplicaSet is to have. Above them an autoscaler or a step took it away, and another one is asked instead.
    """
    if number <= present:
        return number - 1
    return (number - 1) % present if present and number > wanted else None


def image_of(pod: Document, container: str) -> str:
    """Return the image with which a pod's container was made."""
    return next((str(each["image"]) for each in pod["spec"]["containers"] if each["name"] == container), "")


def is_ready(pod: Document) -> bool:
    """Return whether Services send requests to a pod."""
    conditions = member(pod, "status", "conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def trouble(pod: Document) -> str | None:
    """Return what keeps a pod from working, None where nothing is known."""
    for status in member(pod, "status", "containerStatuses") or ():
        waiting, ended = member(status, "state", "waiting"), member(status, "state", "terminated")
        if waiting and waiting.get("reason") not in WAITS_FOR_A_START:
            return f"{waiting.get('reason')}: {str(waiting.get('message', ''))[:300]}"
        if ended:
            return f"its process ended with exit code {ended.get('exitCode')} ({ended.get('reason')})"
    conditions = {each["type"]: each for each in member(pod, "status", "conditions") or ()}
    if member(conditions.get("PodScheduled"), "status") == "False":
        return f"it is on no node: {member(conditions['PodScheduled'], 'message')}"
    return None


def worker_state(pod: Document | None) -> WorkerState:
    """Return the state of a worker's pod."""
    if pod is None:
        return WorkerState(False, detail="its pod is gone")
    problem = trouble(pod)
    restarts = sum(int(each.get("restartCount", 0)) for each in member(pod, "status", "containerStatuses") or ())
    return WorkerState(
        problem is None and member(pod, "status", "phase") == "Running", restarts, detail=problem or "its pod is not running"
    )


def explain(pods: Sequence[Document]) -> str:
    """Return a sentence about why pods are not ready."""
    if not pods:
        return "It has no new pod yet: a quota, a webhook or the controller keeps it from one"
    problems: Mapping[str, str] = {each["metadata"]["name"]: trouble(each) or "it is not ready" for each in pods if not is_ready(each)}
    return "; ".join(f"pod {name}: {problem}" for name, problem in problems.items()) or "All its new pods are ready"
