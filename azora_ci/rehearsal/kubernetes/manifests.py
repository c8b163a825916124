"""The manifests of a rehearsed application, as its team would write them: a Rollout, two Services and an Ingress for each service. Pure.

Their pods are those of the version that production runs when the rehearsal begins, told what a deployment tells them: deploying that
version then starts nothing again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from azora_ci.core.config import RolloutNames, Service
from azora_ci.core.pipeline import STAGES
from azora_ci.targets.kubernetes.rollouts import RELEASE, VERSION
from azora_ci.targets.release import Release

Document = dict[str, Any]
SECRET = "application"  # noqa: S105 - the name of an object
FAULTS = "/faults"  # in the containers
# As long as one can go back: pods of the version before stay warm.
WINDOW_SECONDS = 3600
# The node of a rehearsal asks five times a second; a kubelet by default every ten seconds, and lets three failures pass. Pods that fail are
# to be seen by users before they are taken out of their Service, as there.
PATIENCE = 30  # failed probes


def names(service: str) -> Document:
    """Return what ``target.kubernetes.services`` says of a service."""
    name = service.replace("_", "-")
    return {"rollout": name, "container": "app", "stable_service": name, "canary_service": f"{name}-canary"}


def secret(values: Mapping[str, str]) -> Document:
    """Return the Secret with the services' secrets."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": dict(values)}


def of_service(service: Service, rollout: RolloutNames, release: Release, repository: str, faults: Path) -> Iterator[Document]:
    """Yield a service's manifests. ``release``: what it runs; ``faults``: the file that tells it to fail."""
    yield from (_service(str(name), rollout.rollout, service.port) for name in (rollout.stable_service, rollout.canary_service))
    backend = {"service": {"name": rollout.stable_service, "port": {"number": 80}}}
    rule = {"http": {"paths": [{"path": service.route_prefix, "pathType": "Prefix", "backend": backend}]}}
    yield {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": rollout.rollout}, "spec": {"rules": [rule]}}
    given = {"DEPLOYMENT_ID": release.id, "SERVICE": service.id, "VERSION": release.bare}
    container = _container(service, rollout.container, given, faults) | {
        "image": f"{repository}/{service.id}@{release.digests[service.id]}"
    }
    annotations = {RELEASE: given["DEPLOYMENT_ID"], VERSION: given["VERSION"]}
    yield _rollout(service, rollout, {"annotations": annotations}, container, faults.parent)


def _service(name: str, application: str, port: int) -> Document:
    spec = {"selector": {"app": application}, "ports": [{"port": 80, "targetPort": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def _container(service: Service, name: str, given: Mapping[str, str], faults: Path) -> Document:
    secrets = [{"name": key, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}} for key in service.secrets]
    variables = {"FAULT_FILE": f"{FAULTS}/{faults.name}", **given}
    return {
        "name": name,
        "env": [*secrets, *({"name": key, "value": value} for key, value in variables.items())],
        "ports": [{"containerPort": service.port}],
        "readinessProbe": {"httpGet": {"path": service.health_path, "port": service.port}, "failureThreshold": PATIENCE},
        "volumeMounts": [{"name": "faults", "mountPath": FAULTS, "readOnly": True}],
    }


def _rollout(service: Service, rollout: RolloutNames, meta: Document, container: Document, faults: Path) -> Document:
    labels = {"app": rollout.rollout}
    pods = {
        "terminationGracePeriodSeconds": int(service.stop_grace_seconds),
        "containers": [container],
        "volumes": [{"name": "faults", "hostPath": {"path": str(faults)}}],
    }
    steps: list[Document] = []
    for _, percent in STAGES:
        steps += [{"setWeight": percent}, {"pause": {}}]
    canary = {
        "stableService": rollout.stable_service,
        "canaryService": rollout.canary_service,
        "trafficRouting": {"nginx": {"stableIngress": rollout.rollout}},
        "steps": steps,
        "scaleDownDelaySeconds": WINDOW_SECONDS,
    }
    spec = {
        "replicas": service.instances,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels, **meta}, "spec": pods},
        "strategy": {"canary": canary},
    }
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": rollout.rollout}, "spec": spec}
