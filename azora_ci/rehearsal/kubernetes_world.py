"""The world of ``scripts/rehearse --kubernetes``: production is a namespace of a real control plane, and services are Rollouts.

Database, S3, GitHub, Slack, the sample application and the load are the same as in ``world``, the registry as in ``images_world``. The
cluster is a process of its own: it goes on after the harness where that keeps the world.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.plan import CONFIG
from azora_ci.core import config
from azora_ci.core.process import send_signal
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import load
from azora_ci.rehearsal.applications.sample import SERVICES
from azora_ci.rehearsal.images_world import ImagesWorld
from azora_ci.rehearsal.judge.cluster import rollouts
from azora_ci.rehearsal.judge.evidence import RolloutFacts
from azora_ci.rehearsal.kubernetes import build, credentials, manifests
from azora_ci.rehearsal.kubernetes.api import Api, Document, RefusedError
from azora_ci.rehearsal.kubernetes.cluster import CONTROLLER
from azora_ci.rehearsal.scenarios import LEASE_SECONDS
from azora_ci.rehearsal.world import OLD_DEPLOYMENT
from azora_ci.targets.base import TargetContext
from azora_ci.targets.kubernetes.cluster import Names, settings_of
from azora_ci.targets.kubernetes.target import Kubernetes
from azora_ci.targets.release import Release

NAMESPACE = "production"
TOKEN_SECONDS = 24 * 3600
PODS_SECONDS = 180.0  # for a control plane, or for pods whose images a node unpacks one by one, on a busy machine
CLUSTER = "cluster"  # folder in the run's, and the name of the process


@dataclass(frozen=True)
class KubernetesPlaces:
    """A namespace of a cluster: addresses of edge and API server, Envoy's socket and a way to it by TCP, the repository of the registry,
    the file of faults.
    """

    edge: str
    admin: str
    api_server: str
    admin_socket: Path
    repository: str
    fault_file: Path
    path: str | None = None

    @property
    def public_url(self) -> str:
        """Return the address of the cluster's edge."""
        return f"http://{self.edge}"

    def tables(self) -> dict[str, dict[str, object]]:
        """Return the tables of registry and target."""
        cluster = {
            "namespace": NAMESPACE,
            "lease_seconds": int(LEASE_SECONDS),
            "api_server": self.api_server,
            "services": {service: manifests.names(service) for service in SERVICES},
            "edge": {"admin": [f"http://{self.admin}"], "stable": "$namespace.$rollout.80", "canary": "$namespace.$rollout-canary.80"},
        }
        return {
            "registry": {"repository": self.repository, "insecure": True},
            "target": {"kind": "kubernetes"},
            "target.kubernetes": cluster,
            "rollout": {"minimum_requests": 10, "inconclusive": "pass"},  # of users alone: in the seconds at 5 % there are a few
        }

    def service(self, folder: str) -> dict[str, object]:
        """Return the build context of a service; everything else is in its manifests."""
        return {"context": f"services/{folder}"}


@dataclass
class KubernetesWorld(ImagesWorld):
    """A started world with a cluster."""

    api: Api = field(init=False)
    kubeconfig: str = ""  # of the account of the jobs
    cluster_pid: int = 0

    def start(self) -> None:
        """Start every part. Raises an AzoraError that names the part that did not start."""
        build.ensure(self.processes, self.clock, say=self.say)
        super().start()

    def remarks(self) -> tuple[str, ...]:
        """Return sentences about the cluster, the rights of the jobs, and who counts requests."""
        version = self.api.get("/version")["gitVersion"]
        return (
            f"its cluster is Kubernetes {version} with the official controller of Argo Rollouts; pods are processes in their images' files",
            "the jobs have the kubeconfig of the account azora-deployer, which edge install made, and no other",
            "requests are counted by the Envoy that stands for an ingress controller; a stage with too few is inconclusive, and passes",
        )

    def is_new(self, cluster: str) -> bool:
        """Return whether a cluster of the edge is that of the release to deploy: the one behind a canary's Service."""
        return cluster.split(".")[1].endswith("-canary")

    # --- the parts -----------------------------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        super()._start_servers()
        self._start_registry()
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(self._start_builder), pool.submit(self._start_cluster)]
            for start in starts:
                start.result()

    def _start_cluster(self) -> None:
        argv = [sys.executable, "-m", "azora_ci.rehearsal.kubernetes", str(self._folder)]
        self.cluster_pid = self._detached(CLUSTER, argv)
        self._until((self._folder / "cluster.json").exists, "the cluster", self.cluster_pid, PODS_SECONDS)
        self.api = Api(Path(self.cluster()["kubeconfig"]))

    @property
    def _folder(self) -> Path:
        return self.run.folder / CLUSTER

    def cluster(self) -> dict[str, Any]:
        """Return what the cluster says about itself."""
        document: dict[str, Any] = json.loads((self._folder / "cluster.json").read_text(encoding="utf-8"))
        return document

    def _start_edge(self) -> None:
        """Write the deployment configuration; the edge is the cluster's."""
        where = self.cluster()
        fault_file = self.run.path("faults/fault.json")
        admin = self._relay("relay-admin", "127.0.0.1:0", where["admin"])
        self.places = KubernetesPlaces(where["edge"], admin, self.api.server, Path(where["admin"]), self.repository, fault_file)
        self.application.adopt(self.scratch, self.places, self.registry_url)

    def _deploy_old(self) -> None:
        """Apply the manifests, have our objects installed as an administrator does, and deploy the old version as our account."""
        deploy_config = config.load(self.scratch.folder / CONFIG)
        release = Release(OLD_DEPLOYMENT, self.application.old, self._build_images(deploy_config))
        self._apply(deploy_config, release)
        administrator = {"KUBECONFIG_DATA": Path(self.cluster()["kubeconfig"]).read_text(encoding="utf-8")}
        self._target(deploy_config, administrator).install_edge(self._owner(), None)
        self.kubeconfig = self._deployer(Names(settings_of(deploy_config)).deployer)
        target = self._target(deploy_config, {"KUBECONFIG_DATA": self.kubeconfig})
        with target.locked(self._owner()):
            target.deploy(release, 100)
            target.set_weight(release, 100)
            target.promote(release)

    def _target(self, deploy_config: config.DeployConfig, access: dict[str, str]) -> Kubernetes:
        logs = self.run.path("logs/old")
        hosts = load(ProductionHosts, access)
        return Kubernetes(
            TargetContext(deploy_config, self.processes, self.clock, logs, PODS_SECONDS, self._service_secrets(), access=hosts)
        )

    def _apply(self, deploy_config: config.DeployConfig, release: Release) -> None:
        settings, faults = settings_of(deploy_config), self.places.fault_file
        self.api.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"  # without it no pod is admitted
        self._until(lambda: self._exists(account), "the controller manager", self.cluster_pid)
        self.api.apply([manifests.secret({name: value.reveal() for name, value in self._service_secrets().items()})], NAMESPACE)
        for service in deploy_config.services:
            documents = manifests.of_service(service, settings.rollouts[service.id], release, self.repository, faults)
            self.api.apply(documents, NAMESPACE)
        path = Names(settings).rollouts
        self._until(lambda: all(map(_is_healthy, self.api.get(path)["items"])), "the old version", self.cluster_pid, PODS_SECONDS)

    def _exists(self, path: str) -> bool:
        try:
            self.api.get(path)
        except RefusedError:
            return False
        return True

    def _deployer(self, account: str) -> str:
        """Return the kubeconfig that a person would make the secret KUBECONFIG_DATA."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_SECONDS}}
        answer = self.api.create(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token", request)
        self.keys["deployer"] = answer["status"]["token"]
        self.processes.log.add_secret(self.keys["deployer"])
        return credentials.portable_kubeconfig(self.api.server, Path(self.api.certificate), self.keys["deployer"], NAMESPACE)

    # --- for the judge -------------------------------------------------------------------------------------------------

    def rollouts(self) -> tuple[RolloutFacts, ...]:
        """Return the Rollouts, as an administrator of the cluster sees them."""
        return rollouts(self.api, NAMESPACE)

    # --- faults --------------------------------------------------------------------------------------------------------

    def stop_controller(self) -> None:
        """End the controller of Argo Rollouts at once, as a crash would."""
        send_signal(self.cluster()["components"][CONTROLLER], signal.SIGKILL)

    def start_controller(self) -> None:
        """Have the cluster start again what has ended."""
        os.kill(self.cluster_pid, signal.SIGHUP)

    # --- for act -------------------------------------------------------------------------------------------------------

    def secrets(self) -> dict[str, str]:
        """Return the repository's secrets; the kubeconfig is the only access to the cluster."""
        return {**super().secrets(), "KUBECONFIG_DATA": self.kubeconfig}

    def variables(self) -> dict[str, str]:
        """Return the repository's variables."""
        return {**super().variables(), "HEALTH_CHECK_TIMEOUT": f"{PODS_SECONDS:g}"}


def _is_healthy(rollout: Document) -> bool:
    status = rollout.get("status", {})
    return bool(status.get("phase") == "Healthy") and str(rollout["metadata"]["generation"]) == status.get("observedGeneration")
