"""The cluster itself: pods are processes that live as under a kubelet, weights are shares of counted requests, and nothing outlives it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import requests

from azora_ci.core.process import is_alive
from azora_ci.rehearsal.kubernetes import cluster as clusters
from azora_ci.rehearsal.kubernetes.api import Api, RefusedError
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from tests.support import ROOT
from tests.support.docker_engine import BUSYBOX
from tests.support.kubernetes import Watched, app, ask, container, shop
from tests.support.waiting import until

pytestmark = pytest.mark.kubernetes
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def pod(image: str, name: str = "alone", grace: int = 5, **more: Any) -> str:
    spec = {"terminationGracePeriodSeconds": grace, "containers": [container(image, **more)]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


class Pod:
    """A pod as the API server has it."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "alone") -> None:
        self.cluster, self.path = cluster, f"/api/v1/namespaces/{namespace}/pods/{name}"

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.cluster.api.get(self.path)["status"]
        return status

    @property
    def container(self) -> dict[str, Any]:
        return (self.status.get("containerStatuses") or [{}])[0]

    @property
    def waits_for(self) -> str | None:
        reason: str | None = self.container.get("state", {}).get("waiting", {}).get("reason")
        return reason

    def exists(self) -> bool:
        try:
            self.cluster.api.get(self.path)
        except RefusedError as error:
            assert error.status == 404
            return False
        return True


def test_users_are_shared_as_the_rollout_says(kubernetes: Cluster, tmp_path: Path):
    one, two, three = (kubernetes.image(app(tmp_path, version)) for version in ("1", "2", "3"))
    host, rollout = "shares.example", Watched(kubernetes, "shares")
    kubernetes.apply(shop(one, host=host, scaleDownDelaySeconds=1), "shares")
    rollout.wait_healthy()
    until(lambda: ask(kubernetes, host) == {"1": 1}, "users get the first version")

    rollout.release(two)
    for step, low, high in ((1, 3, 7), (3, 47, 53), (5, 100, 100)):
        rollout.wait_paused(step)
        percent = rollout.status()["canary"]["weights"]["canary"]["weight"]
        wanted = {"web-stable": 100 - percent, "web-canary": percent}
        until(lambda wanted=wanted: kubernetes.edge_weights(host) == wanted, f"the edge has {percent} %")
        answers = ask(kubernetes, host, 2000)
        assert set(answers) <= {"1", "2"}
        assert low <= answers["2"] / 20 <= high, answers
        rollout.go_on()
    rollout.wait_healthy()
    until(lambda: ask(kubernetes, host, 200) == {"2": 200}, "the edge has followed, and all users get the new version")

    rollout.release(three)
    rollout.wait_paused(1)
    rollout.abort()
    rollout.wait(lambda status: status.get("abortedAt") and status["canary"]["weights"]["canary"]["weight"] == 0, "aborted")
    until(lambda: ask(kubernetes, host, 100) == {"2": 100}, "after the abort users get the old version")


def test_a_killed_pod_costs_no_user_an_answer(kubernetes: Cluster, tmp_path: Path):
    host, rollout = "killed.example", Watched(kubernetes, "killed")
    kubernetes.apply(shop(kubernetes.image(app(tmp_path, "1")), host=host), "killed")
    rollout.wait_healthy()
    rollout.release(kubernetes.image(app(tmp_path, "2")))
    rollout.wait_paused(1)
    until(lambda: ask(kubernetes, host, 50)["2"], "users get the new version")
    new = rollout.status()["currentPodHash"]
    pods = kubernetes.api.get("/api/v1/namespaces/killed/pods", labelSelector=f"rollouts-pod-template-hash={new}")["items"]
    kubernetes.kill_pod(pods[0])  # the only new one
    assert sum(count for version, count in ask(kubernetes, host, 500).items() if version.startswith("HTTP")) == 0
    until(lambda: ask(kubernetes, host, 50)["2"], "its container was started again, and has users")


def test_the_life_of_a_pod(kubernetes: Cluster, tmp_path: Path):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"key": "of the shop"}}
    kubernetes.apply(json.dumps(secret), "life")
    variable = {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}}
    kubernetes.apply(pod(kubernetes.image(app(tmp_path, "1")), env=[variable]), "life")
    alone = Pod(kubernetes, "life")
    until(lambda: alone.container.get("ready"), "ready")
    address = alone.status["podIP"]
    answer = requests.get(f"http://{address}:8080/", timeout=10).json()
    assert answer == {"version": "1", "pod": "alone", "secret": "of the shop"}
    if os.geteuid() == 0:  # other addresses are of loopback, to which the API server refuses to proxy
        assert json.loads(kubernetes.api.get(f"{alone.path}:8080/proxy/")) == answer
    assert kubernetes.api.get(f"{alone.path}/log") == "1 listens\n"

    kubernetes.api.delete(alone.path)
    until(lambda: not alone.exists(), "gone")
    log = kubernetes.folder / "pods" / "life_alone.log"
    assert log.read_text() == "1 listens\nSIGTERM\nended\n"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{address}:8080/", timeout=10)


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(kubernetes: Cluster, tmp_path: Path):
    kubernetes.apply(pod(kubernetes.image(app(tmp_path, "1", "deaf")), grace=1), "deaf")
    alone = Pod(kubernetes, "deaf")
    until(lambda: alone.container.get("ready"), "ready")
    kubernetes.api.delete(alone.path)
    until(lambda: not alone.exists(), "gone")
    assert (kubernetes.folder / "pods" / "deaf_alone.log").read_text() == "1 listens\nSIGTERM\n"


def test_pods_that_do_not_come_up(kubernetes: Cluster, tmp_path: Path):
    missing, sick, brief = (Pod(kubernetes, "bad", name) for name in ("missing", "sick", "brief"))
    unknown = app(tmp_path, "unknown")
    reference = "registry.example/app@sha256:" + "0" * 64
    kubernetes.apply(pod(reference, "missing"), "bad")
    kubernetes.apply(pod(kubernetes.image(app(tmp_path, "1", "sick")), "sick"), "bad")
    kubernetes.apply(pod(kubernetes.image(app(tmp_path, "1", "brief")), "brief"), "bad")
    until(lambda: missing.waits_for == "ErrImagePull", "an image that is not there is said so")
    assert reference in missing.container["state"]["waiting"]["message"]
    until(lambda: brief.container.get("restartCount", 0) >= 2, "a container that ends is started again")
    assert brief.container["lastState"]["terminated"]["exitCode"] == 3
    until(lambda: brief.waits_for == "CrashLoopBackOff", "with a pause")
    assert sick.container["state"]["running"]
    assert not sick.container["ready"]
    (kubernetes.folder / "images" / "sha256" / ("0" * 64)).symlink_to(unknown)
    until(lambda: missing.container.get("ready"), "and starts when its image is there")


def test_the_rights_of_a_user(kubernetes: Cluster):
    rules = [{"apiGroups": ["argoproj.io"], "resources": ["rollouts"], "verbs": ["list"]}]
    kubernetes.apply("", "rights")
    api = Api(kubernetes.user("deployer", rules, "rights"))
    assert api.get("/apis/argoproj.io/v1alpha1/namespaces/rights/rollouts")["items"] == []
    for method, path in (("GET", "/api/v1/namespaces/rights/secrets"), ("GET", "/apis/argoproj.io/v1alpha1/namespaces/default/rollouts")):
        with pytest.raises(RefusedError) as refused:
            api.request(method, path)
        assert refused.value.status == 403
    kubernetes.api.delete("/api/v1/namespaces/rights/serviceaccounts/deployer")

    def is_unknown() -> bool:  # soon: the API server remembers a token for 10 s
        try:
            api.get("/apis/argoproj.io/v1alpha1/namespaces/rights/rollouts")
        except RefusedError as error:
            return error.status == 401
        return False

    until(is_unknown, "a token ends with its account")


def test_the_controller_and_the_api_server_away_and_back(kubernetes: Cluster, tmp_path: Path):
    host, rollout = "away.example", Watched(kubernetes, "away")
    kubernetes.apply(shop(kubernetes.image(app(tmp_path, "1")), host=host, replicas=2), "away")
    rollout.wait_healthy()
    until(lambda: ask(kubernetes, host) == {"1": 1}, "users get the first version")
    kubernetes.kill(clusters.CONTROLLER)
    rollout.release(kubernetes.image(app(tmp_path, "2")))
    killed = kubernetes.api.get("/api/v1/namespaces/away/pods")["items"][0]
    kubernetes.kill(clusters.API_SERVER)
    kubernetes.kill_pod(killed)
    assert ask(kubernetes, host, 100) == {"1": 100}  # neither is in the way of users
    kubernetes.restart(clusters.API_SERVER)
    assert rollout.status() == {}  # nobody has looked at the change
    again = Pod(kubernetes, "away", killed["metadata"]["name"])
    until(lambda: again.container["restartCount"] == 1 and again.container["ready"], "what the node could not say is said then")
    kubernetes.restart(clusters.CONTROLLER)
    rollout.wait_paused(1)
    until(lambda: ask(kubernetes, host, 50)["2"], "the edge follows the API server again")


@pytest.mark.faults  # half a minute passes until a silent node counts as lost
def test_a_lost_node(kubernetes: Cluster, tmp_path: Path):
    host, rollout = "lost.example", Watched(kubernetes, "lost")
    kubernetes.apply(shop(kubernetes.image(app(tmp_path, "1")), host=host, replicas=6), "lost")
    rollout.wait_healthy()
    until(lambda: ask(kubernetes, host) == {"1": 1}, "users get the version")
    pods = kubernetes.api.get("/api/v1/namespaces/lost/pods")["items"]
    assert {each["spec"]["nodeName"] for each in pods} == set(kubernetes.nodes)
    lost = kubernetes.nodes[-1]
    kubernetes.kill(lost)
    assert ask(kubernetes, host, 200) == {"1": 200}
    rollout.wait(lambda status: status.get("availableReplicas", 6) < 6, "the loss is noticed", 90)
    rollout.wait(lambda status: status.get("availableReplicas") == 6, "and made good on the other node")
    kubernetes.restart(lost)
    until(lambda: _is_ready(kubernetes, lost), "the node is back")


def _is_ready(cluster: Cluster, node: str) -> bool:
    conditions = cluster.api.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def test_nothing_outlives_whoever_started_it(tmp_path: Path):
    argv = [sys.executable, "-m", "azora_ci.rehearsal.kubernetes", str(tmp_path / "cluster")]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        cluster = json.loads(process.stdout.readline())
        api = Api(Path(cluster["kubeconfig"]))
        image = app(tmp_path, "1")
        known = Path(cluster["images"]) / "sha256" / ("1" * 64)
        known.write_bytes(image.read_bytes())
        known.chmod(0o755)
        api.apply(pod(f"app@sha256:{'1' * 64}"))
        path = "/api/v1/namespaces/default/pods/alone"
        until(lambda: api.get(path)["status"].get("podIP"), "the pod has an address")
        address = api.get(path)["status"]["podIP"]
        until(lambda: _answers(address), "the pod answers")
        process.send_signal(signal.SIGKILL)
    until(lambda: not any(map(is_alive, cluster["components"].values())), "every component has ended")
    until(lambda: not _answers(address), "and so has the pod")
    # What is no process stays until the next cluster takes it over.
    shutil.rmtree(Path(cluster["admin"]).parent)
    if os.geteuid() == 0:
        route = f"{address.rpartition('.')[0]}.0/24"
        subprocess.run(["ip", "route", "del", "local", route, "dev", "lo"], check=True)


def _answers(address: str) -> bool:
    try:
        return requests.get(f"http://{address}:8080/healthz", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def test_an_image_of_a_registry(kubernetes: Cluster, docker_registry: str):
    root = io.BytesIO()
    with tarfile.open(fileobj=root, mode="w:gz") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        page = tarfile.TarInfo("pages/healthz")
        page.size = 4
        tar.addfile(page, io.BytesIO(b"here"))
    layer = push(docker_registry, root.getvalue())
    words = ["/bin/busybox", "sh", "-c", "exec /bin/busybox httpd -f -p $HOST:$PORT -h $PWD"]
    config = push(docker_registry, json.dumps({"config": {"Cmd": words, "WorkingDir": "/pages", "Env": ["PORT=8080"]}}).encode())
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    address = f"http://{docker_registry}/v2/shop/manifests/{digest}"
    assert requests.put(address, manifest, headers={"content-type": MANIFEST}, timeout=10).status_code == 201

    kubernetes.apply(pod(f"{docker_registry}/shop@{digest}"), "pulled")
    alone = Pod(kubernetes, "pulled")
    until(lambda: alone.container.get("ready"), "an image is pulled and runs in its own root file system")
    assert requests.get(f"http://{alone.status['podIP']}:8080/healthz", timeout=10).text == "here"
    kubernetes.apply(pod(f"{docker_registry}/shop@sha256:{'1' * 64}", "unknown"), "pulled")
    unknown = Pod(kubernetes, "pulled", "unknown")
    until(lambda: unknown.waits_for == "ErrImagePull", "an image that the registry does not have is said so")
    assert "404" in unknown.container["state"]["waiting"]["message"]


def push(registry: str, content: bytes) -> dict[str, Any]:
    """Push a blob; return how a manifest names it."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    begun = requests.post(f"http://{registry}/v2/shop/blobs/uploads/", timeout=10)
    assert requests.put(begun.headers["location"], content, params={"digest": digest}, timeout=10).status_code == 201
    return {"mediaType": "application/octet-stream", "size": len(content), "digest": digest}
