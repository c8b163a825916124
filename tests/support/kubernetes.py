"""A real cluster for tests, its applications, and what users of it see."""

from __future__ import annotations

import http.client
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal.kubernetes import build
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from tests.support.waiting import until

ROLLOUTS = "/apis/argoproj.io/v1alpha1/namespaces/{}/rollouts"
STEPS = [{"setWeight": 5}, {"pause": {}}, {"setWeight": 50}, {"pause": {}}, {"setWeight": 100}, {"pause": {}}]

# Answers its version; "sick" is never ready, "deaf" ignores SIGTERM, "brief" ends after a second.
APP = """#!{python} -S
import json, os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
VERSION, BEHAVIOUR = "{version}", "{behaviour}"
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_GET(self):
        sick = BEHAVIOUR == "sick" and self.path == "/healthz"
        body = json.dumps({{"version": VERSION, "pod": os.environ["HOSTNAME"], "secret": os.environ.get("SECRET")}}).encode()
        self.send_response(500 if sick else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(ThreadingHTTPServer):
    request_queue_size = 512
    def handle_error(self, *_):
        pass  # a client that hangs up is no news
server = Server((os.environ["POD_IP"], 8080), Handler)
def end(*_):
    print("SIGTERM", flush=True)
    if BEHAVIOUR != "deaf":
        threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, end)
print(VERSION, "listens", flush=True)
if BEHAVIOUR == "brief":
    threading.Timer(1, lambda: os._exit(3)).start()
server.serve_forever(0.02)
print("ended", flush=True)
"""


@contextmanager
def running_cluster(folder: Path, nodes: int = 1) -> Iterator[Cluster]:
    """Run a cluster; its programs are built first where nobody has built them."""
    processes, clock = Processes(JobLog(Actions(stream=io.StringIO()), Clock())), Clock()
    binaries = build.ensure(processes, clock, say=lambda line: print(line, file=sys.stderr, flush=True))
    with Cluster(folder, binaries, processes, clock, nodes=nodes) as cluster:
        yield cluster
    processes.end_all()


def app(folder: Path, version: str, behaviour: str = "") -> Path:
    """Write the executable of a version."""
    path = folder / f"app-{version}-{behaviour}"
    path.write_text(APP.format(python=sys.executable, version=version, behaviour=behaviour))
    path.chmod(0o755)
    return path


def container(image: str, **more: Any) -> dict[str, Any]:
    """Return a container with a readiness probe."""
    probe = {"httpGet": {"path": "/healthz", "port": "http"}}
    return {"name": "web", "image": image, "ports": [{"name": "http", "containerPort": 8080}], "readinessProbe": probe, **more}


def shop(image: str, *, name: str = "web", host: str, replicas: int = 4, **canary: Any) -> str:
    """Return the manifests of a Rollout whose traffic an Ingress of nginx shares."""
    routing = {"trafficRouting": {"nginx": {"stableIngress": name}}, "stableService": f"{name}-stable", "canaryService": f"{name}-canary"}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 5, "containers": [container(image)]}}
    spec = {
        "replicas": replicas,
        "progressDeadlineSeconds": 60,
        "selector": {"matchLabels": {"app": name}},
        "template": template,
        "strategy": {"canary": {"steps": STEPS, **routing, **canary}},
    }
    backend = {"service": {"name": f"{name}-stable", "port": {"number": 80}}}
    rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    service = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]}
    documents = [
        *(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{name}-{side}"}, "spec": service}
            for side in ("stable", "canary")
        ),
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": {"rules": [rule]}},
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": name}, "spec": spec},
    ]
    return "\n---\n".join(map(json.dumps, documents))


class Watched:
    """A Rollout as the API server has it; waits for what the controller makes of it, and patches it as a deployment does."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "web") -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self.path = f"{ROLLOUTS.format(namespace)}/{name}"

    def status(self) -> dict[str, Any]:
        """Return the status, or nothing while the controller has not seen the newest spec."""
        rollout = self.cluster.api.get(self.path)
        status = rollout.get("status", {})
        seen = str(rollout["metadata"]["generation"]) == status.get("observedGeneration")
        return status if seen and not (status.get("controllerPause") and not status.get("pauseConditions")) else {}

    def wait(self, condition: Callable[[dict[str, Any]], object], expected: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until the status is as expected."""
        until(lambda: condition(self.status()), f"{self.name}: {expected}, but {self.status()}", seconds)
        return self.status()

    def wait_healthy(self) -> None:
        self.wait(lambda status: status.get("phase") == "Healthy", "healthy")

    def wait_paused(self, step: int) -> None:
        self.wait(lambda status: (status.get("phase"), status.get("currentStepIndex")) == ("Paused", step), f"paused at step {step}")

    def release(self, image: str) -> None:
        change = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": image}]
        self.cluster.api.patch(self.path, change, "application/json-patch+json")

    def go_on(self) -> None:
        self.cluster.api.patch(f"{self.path}/status", {"status": {"pauseConditions": None}})

    def abort(self) -> None:
        self.cluster.api.patch(f"{self.path}/status", {"status": {"abort": True}})


def ask(cluster: Cluster, host: str, number: int = 1, path: str = "/") -> Counter[str]:
    """Send requests as users do; return how many each version answered, and how many answers had another status."""
    address, port = cluster.edge.split(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=30)
    answers: Counter[str] = Counter()
    for _ in range(number):
        connection.request("GET", path, headers={"host": host})
        answer = connection.getresponse()
        body = answer.read()
        answers[json.loads(body)["version"] if answer.status == 200 else f"HTTP {answer.status}"] += 1
    connection.close()
    return answers
