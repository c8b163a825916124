"""A cluster to measure releases on: a real control plane, Argo Rollouts and Envoy as processes, services as pods, and their users."""

from __future__ import annotations

import http.client
import importlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal.kubernetes import build
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from azora_ci.targets.base import Owner, Target
from azora_ci.targets.journal import PROMOTED
from azora_ci.targets.release import Release
from tests.bench.kubernetes.audit import Audited
from tests.bench.kubernetes.seen import RELEASE, Seen
from tests.bench.rollout import service as rollout_service
from tests.bench.rollout.world import DATABASE, OWNER_URL, SERVICE, Steps, database, until

NODES = 2
REPLICAS = 4  # so that 5 % of them is a pod, and 50 % are two
REQUESTS = 40  # that must all be answered by one version
LEASE_SECONDS = 6
ACCOUNT = "deployer-0"  # as whom our process speaks to the API server


class ClusterWorld:
    """One service on a real cluster, with 1.1.0 in production. ``close`` ends the pods' followers; the cluster is the place's.

    It implements ``scenes.World`` and ``kills.HostsWorld``. ``revives``: the node starts a killed pod's process again, but where it was the
    only new pod, Argo Rollouts may give its traffic back first, and then the release goes back.
    """

    revives = None
    hold_seconds = LEASE_SECONDS + 6.0  # until a watch over a dead runner would have taken back what it must leave

    def __init__(self, cluster: Cluster, folder: Path, processes: Processes) -> None:
        self.clock, self.cluster, self.folder, self.processes = Clock(), cluster, folder, processes
        self.sick = folder / "sick"
        self._stack = ExitStack()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        postgres = self._stack.enter_context(database(self.folder / "database", self.processes))
        variables = {"DATABASE_URL": postgres.url(DATABASE), "SICK": str(self.sick), "PORT": "8080", "VERSION": "0.0.1"}
        self._inner = namespace(self.cluster, self.folder, variables, lease_seconds=LEASE_SECONDS)
        self._inner.install()
        self.seen = Seen(self.cluster.api, self._inner.namespace, self.clock)
        self._stack.callback(self.seen.close)
        self.steps = steps(self._inner, self.folder, self.processes)
        self.stable = self.steps.next_release()
        promote(self.target(), self.stable)

    def target(self) -> Target:
        """Return the target, to be moved without a step, with the rights of our account and no others."""
        target: Target = self._inner.target(self._inner.restricted())
        return target

    @staticmethod
    def owner(release: Release) -> Owner:
        """Return the owner of a lock."""
        return Owner(release.id, OWNER_URL, "bench")

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Return where users come in."""
        host, _, port = self.cluster.edge.partition(":")
        return [(host, int(port))]

    def at(self, release: Release, percent: int) -> bool:
        """Say whether that share of traffic goes to a release."""
        return all((each.release, each.percent) == (release.id, percent) and each.resting for each in self.seen.rollouts())

    def states(self) -> list[dict[str, Any]]:
        """Return which release the stable pods and the canary of each Rollout have; "" is one that its template does not name."""
        return [
            {"stable": each.release if each.stable else "", "canary": None if each.stable else each.release, "percent": each.percent}
            for each in self.seen.rollouts()
        ]

    def at_rest(self) -> bool:
        """Say whether no Rollout moves any more by itself; one that waits for its dead runner at a weight counts as at rest, too."""
        return all(each.resting for each in self.seen.rollouts())

    def await_lock(self) -> None:
        """Wait until the lease of a dead run has run out: another run is refused until then."""
        target = self.target()
        until(lambda: (holder := target.holder()) is None or not holder.alive, "the lease runs out", self.clock)

    def promoted(self, release: Release) -> bool:
        """Say whether the promotion is noted: in the journal, or in the lease, where a later run reads it."""
        if "promote" in self.seen.events(release.id):
            return True
        return self.seen.promoting(release.id) and self.target().current().releases[release.id].outcome == PROMOTED

    def left(self, release: Release) -> bool:
        """Say whether the lease says that the release is being promoted: Argo Rollouts takes nothing back then, journalled or not."""
        return self.seen.promoting(release.id)

    def versions_now(self) -> set[str]:
        """Return the versions that answer users now."""
        connection = http.client.HTTPConnection(*self.addresses[0], timeout=30)
        answers: Counter[str] = Counter()
        try:
            for _ in range(REQUESTS):
                connection.request("GET", "/work")
                answer = connection.getresponse()
                body = answer.read()
                answers[json.loads(body)["version"] if answer.status == 200 else f"HTTP {answer.status}"] += 1
        finally:
            connection.close()
        return set(answers)

    def kill_new_instance(self, release: Release) -> None:
        """Kill the process of a ready new pod; its node starts it again. Raises NotTrueError when there is none."""
        listed = self.cluster.api.get(f"/api/v1/namespaces/{self._inner.namespace}/pods")["items"]
        for pod in listed:
            ready = any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))
            if ready and (pod["metadata"].get("annotations") or {}).get(RELEASE) == release.id:
                self.cluster.kill_pod(pod)
                return
        raise NotTrueError("No pod to kill", what=f"{release.version} has no ready pod", where="bench kubernetes", next_step="see above")

    def make_sick(self, version: str) -> None:
        """Have the pods of a version say that they are not healthy."""
        self.sick.write_text(version.removeprefix("v"), encoding="utf-8")

    def started(self, release: Release) -> list[datetime]:
        """Return nothing: what a cluster takes is measured by ``Seen``."""
        del release
        return []

    def close(self) -> None:
        """Remove the pods, and end what was started beside the cluster."""
        with ExitStack() as stack:
            stack.callback(self._stack.close)
            if hasattr(self, "_inner"):
                stack.callback(remove, self.cluster, self._inner.namespace, self.clock)


def promote(target: Target, release: Release) -> None:
    """Bring a release into production, without a step."""
    with target.locked(ClusterWorld.owner(release)):
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)


def steps(inner: Any, folder: Path, processes: Processes) -> Steps:
    """Return what runs the real step for a namespace's services, as our account."""
    inner.config()
    access = {"KUBECONFIG_DATA": inner.restricted().read_text(encoding="utf-8")}
    path, digest = folder / f"{inner.namespace}.toml", inner.digests["good"]
    return Steps(folder, path, processes, access=access, digest=lambda _version: digest, services=inner.services)


def namespace(cluster: Cluster, folder: Path, variables: Mapping[str, str], **more: Any) -> Any:
    """Return a namespace of the project's own tests, with the service of ``bench rollout`` at the path ``/``, which no test takes."""
    tests: Any = importlib.import_module("tests.support.kubernetes_target")
    source = Path(rollout_service.__file__).read_text(encoding="utf-8")

    class Namespace(tests.World):  # type: ignore[misc] # of the tests, which have no types
        def image(self, behaviour: str) -> str:
            path = self.folder / f"app-{behaviour}"
            path.write_text(f"#!{sys.executable} -S\n{source}", encoding="utf-8")
            path.chmod(0o755)
            return str(self.cluster.image(path).partition("@")[2])

        def route(self, service: str) -> str:
            return ""

        def manifests(self, service: str) -> str:
            documents = [json.loads(text) for text in super().manifests(service).split("\n---\n")]
            for document in documents:
                if document["kind"] == "Ingress":
                    document["spec"]["rules"][0]["http"]["paths"][0]["path"] = "/"
                elif document["kind"] == "Rollout":
                    given: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in variables.items()]
                    given.append({"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
                    container = document["spec"]["template"]["spec"]["containers"][0]
                    container["env"] = given
                    container["readinessProbe"]["httpGet"]["path"] = "/work"  # what is sick stays ready: only a verdict takes it back
            return "\n---\n".join(map(json.dumps, documents))

    return Namespace(cluster, folder, services=(SERVICE,), replicas=REPLICAS, **more)


def remove(cluster: Cluster, name: str, clock: Clock) -> None:
    """Remove a namespace's Rollouts, and wait until their pods are gone: what is measured next has the machine for itself."""
    with suppress(AzoraError):  # what was measured counts all the same, and the cluster ends with its place
        cluster.api.delete(f"/apis/argoproj.io/v1alpha1/namespaces/{name}/rollouts")
        until(lambda: not cluster.api.get(f"/api/v1/namespaces/{name}/pods")["items"], f"the pods of {name} are gone", clock)


@contextmanager
def control_plane(folder: Path) -> Iterator[tuple[Audited, Processes]]:
    """Provide a cluster whose API server keeps an account of its requests."""
    clock = Clock()
    processes = Processes(JobLog(Actions(stream=io.StringIO()), clock, folder / "bench.log"))
    binaries = build.ensure(processes, clock, say=lambda line: print(line, file=sys.stderr, flush=True))
    cluster = Audited(folder / "cluster", binaries, processes, clock, nodes=NODES)
    try:
        with cluster:
            yield cluster, processes
    finally:
        processes.end_all()
