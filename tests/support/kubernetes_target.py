"""A namespace of a real cluster with Rollouts, as the target ``kubernetes`` drives it; a namespace of its own for each test."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret, load
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from azora_ci.targets.base import Owner, TargetContext
from azora_ci.targets.kubernetes import manifests
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.target import Kubernetes
from azora_ci.targets.release import Release
from tests.support import deploy_config
from tests.support.kubernetes import ROLLOUTS, STEPS, ask
from tests.support.waiting import until

# Answers the contract with the version that its target told it; "sick" is never ready, "later-sick" from two seconds on no more.
APP = """#!{python} -S
import json, os, signal, sys, threading, time
BEGUN = time.monotonic()
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_GET(self):
        sick = "{behaviour}" == "sick" or ("{behaviour}" == "later-sick" and time.monotonic() - BEGUN > 2 and self.path == "/health")
        body = json.dumps({{"status": "unhealthy" if sick else "healthy", "version": os.environ.get("VERSION", "0.0.1")}}).encode()
        self.send_response(500 if sick else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(ThreadingHTTPServer):
    request_queue_size = 512
server = Server((os.environ["POD_IP"], 8080), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(0.02)
"""


@dataclass
class World:
    """One namespace with a Rollout per service. ``routed``: an Ingress shares its traffic; else a Service leads to all its pods."""

    cluster: Cluster
    folder: Path
    services: tuple[str, ...] = ("api_gateway", "auth_service")
    routed: bool = True
    replicas: int = 2
    lease_seconds: int = 20
    inconclusive: str = "pass"
    timeout: float = 60.0
    canary: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    needs: tuple[dict[str, Any], ...] = ()  # objects that are there before the Rollouts
    clock: Clock = field(default_factory=Clock)  # of the runner
    namespace: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        self.log = io.StringIO()
        self.digests = {name: self.image(name) for name in ("good", "sick", "later-sick")}
        for text in (*map(json.dumps, self.needs), *map(self.manifests, self.services)):
            self.cluster.apply(text, self.namespace)
        for service in self.services:
            self.wait_healthy(service)

    def image(self, behaviour: str) -> str:
        """Return the digest of the application."""
        path = self.folder / f"app-{behaviour}"
        path.write_text(APP.format(python=sys.executable, behaviour=behaviour))
        path.chmod(0o755)
        return self.cluster.image(path).partition("@")[2]

    @staticmethod
    def rollout_name(service: str) -> str:
        return service.replace("_", "-")

    def route(self, service: str) -> str:
        """Return the path at which the edge of all tests leads to a service."""
        return f"/{self.namespace}/{self.rollout_name(service)}"

    def manifests(self, service: str) -> str:
        name = self.rollout_name(service)
        probe = {"httpGet": {"path": "/health", "port": 8080}}
        image = f"registry.example/{service}@{self.digests['good']}"
        container = {
            "name": "app",
            "image": image,
            "ports": [{"containerPort": 8080}],
            "readinessProbe": probe,
            "env": [{"name": "URL", "value": "a&b<é>"}],
        }
        routing = {
            "trafficRouting": {"nginx": {"stableIngress": name}},
            "stableService": f"{name}-stable",
            "canaryService": f"{name}-canary",
        }
        spec = {
            "replicas": self.replicas,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 3, "containers": [container]}},
            "strategy": {"canary": {"steps": STEPS, **(routing if self.routed else {}), **self.canary}},
            **self.spec,
        }
        services = [f"{name}-stable", f"{name}-canary"] if self.routed else [name]
        backend = {"service": {"name": services[0], "port": {"number": 80}}}
        rule = {"http": {"paths": [{"path": self.route(service), "pathType": "Prefix", "backend": backend}]}}
        ports = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
        documents = [
            *({"apiVersion": "v1", "kind": "Service", "metadata": {"name": each}, "spec": ports} for each in services),
            {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": {"rules": [rule]}},
            {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": name}, "spec": spec},
        ]
        return "\n---\n".join(map(json.dumps, documents))

    # --- the target ----------------------------------------------------------------------------------------------------

    def config(self, **changes: Any) -> config.DeployConfig:
        entries = {}
        for service in self.services:
            name = self.rollout_name(service)
            services = {"stable_service": f"{name}-stable", "canary_service": f"{name}-canary"} if self.routed else {}
            entries[service] = {"rollout": name, "container": "app", **services}
        table = {
            "namespace": self.namespace, "lease_seconds": self.lease_seconds, "api_server": self.cluster.api.server, "services": entries,
        }  # fmt: skip
        prefixes = {service: f"/{self.rollout_name(service)}" for service in self.services}
        path = deploy_config.write(
            self.folder / f"{self.namespace}.toml",
            target={"kind": "kubernetes", "kubernetes": table | changes},
            registry={"repository": "registry.example"},
            rollout={"inconclusive": self.inconclusive},
            services={
                service: {
                    **deploy_config.service(service, f"http://{self.cluster.edge}{self.route(service)}/health"),
                    "route_prefix": prefix,
                    "instances": self.replicas,
                }
                for service, prefix in prefixes.items()
            },
        )
        return config.load(path)

    def context(self, kubeconfig: Path | None = None, **changes: Any) -> TargetContext:
        clock = self.clock
        processes = Processes(JobLog(Actions(stream=self.log), clock))
        access = load(ProductionHosts, {"KUBECONFIG_DATA": (kubeconfig or self.cluster.kubeconfig).read_text()})
        assert isinstance(access.kubeconfig_data, Secret)
        return TargetContext(self.config(**changes), processes, clock, self.folder / "logs", self.timeout, access=access)

    def target(self, kubeconfig: Path | None = None, **changes: Any) -> Kubernetes:
        return Kubernetes(self.context(kubeconfig, **changes))

    def install(self) -> str:
        """Install our objects, as a person with all rights; return the text for people."""
        text = self.target().install_edge(owner("edge-install"), None)
        for service in self.services:
            self.wait_healthy(service)
        return text

    def restricted(self, without: tuple[str, ...] = ()) -> Path:
        """Return the kubeconfig of our account with exactly the rights that are needed, but for those of some texts."""
        names = Names(self.config().target.kubernetes)
        rights = tuple(right for right in manifests.rights(names, proxy=True) if str(right) not in without)
        return self.cluster.user(f"deployer-{len(without)}", manifests.rules(rights), self.namespace)

    def release(self, number: int, image: str = "good") -> Release:
        return Release(f"{1764000000 + number}-{number:06x}", f"v1.0.{number}", dict.fromkeys(self.services, self.digests[image]))

    # --- what others see and do ------------------------------------------------------------------------------------------

    def path(self, service: str) -> str:
        return f"{ROLLOUTS.format(self.namespace)}/{self.rollout_name(service)}"

    def rollout(self, service: str) -> dict[str, Any]:
        return self.cluster.api.get(self.path(service))

    def phase(self, service: str) -> str:
        document = self.rollout(service)
        status = document.get("status", {})
        return status.get("phase", "") if str(document["metadata"]["generation"]) == status.get("observedGeneration") else ""

    def wait_healthy(self, service: str) -> None:
        until(lambda: self.phase(service) == "Healthy", f"{service} is healthy", 60)

    def weights(self) -> dict[str, int]:
        """Return the weight of each service's new version, as its status says."""
        statuses = {service: self.rollout(service)["status"] for service in self.services}
        return {service: status["canary"]["weights"]["canary"]["weight"] for service, status in statuses.items()}

    def version(self, service: str) -> str:
        """Return the version that the template names."""
        annotations = self.rollout(service)["spec"]["template"]["metadata"].get("annotations", {})
        return str(annotations.get("azora-ci/version", ""))

    def ask(self, service: str, number: int = 1) -> Counter[str]:
        """Send requests as users do; return how many each version answered."""
        return ask(self.cluster, self.cluster.edge, number, f"{self.route(service)}/health")

    @contextmanager
    def users(self, service: str):
        """Send requests all the while; yield the counter of the answers."""
        answers: Counter[str] = Counter()
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                answers.update(self.ask(service, 10))
                time.sleep(0.02)

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        try:
            yield answers
        finally:
            stop.set()
            thread.join(30)


def owner(name: str, fence: str | None = None) -> Owner:
    """Return the owner of a lock."""
    return Owner(name, f"https://github.example/runs/{name}", "octocat", fence)


def deploy(world: World, release: Release, target: Kubernetes | None = None) -> Kubernetes:
    """Deploy a release through every stage."""
    target = target or world.target()
    with target.locked(owner(release.id)):
        target.plan(release)
        for percent in (5, 50, 100):
            target.deploy(release, percent)
            target.set_weight(release, percent)
            target.finish_stage(release, {"stage": percent})
        target.promote(release)
    return target
