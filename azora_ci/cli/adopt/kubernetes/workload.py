"""What a workload says about its pods: containers, ports, what its probes ask, variables, and what would keep two versions apart. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from azora_ci.cli.adopt.compose import endpoints, secret
from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.merge import as_list
from azora_ci.cli.adopt.kubernetes.manifests import DEPLOYMENT, ROLLOUT, Manifest
from azora_ci.clients.kubernetes.objects import Document, member

PROBES = ("readinessProbe", "startupProbe", "livenessProbe")  # the first that asks counts
_PATH = re.compile(r"/[^\s?#\"\\]*")


@dataclass(frozen=True)
class Workload:
    """A Rollout, a Deployment or another thing that runs pods. ``template``: that of its pods, of a Rollout also where it refers to one."""

    manifest: Manifest
    template: Document
    refers_to: str = ""  # the Deployment of a Rollout's workloadRef

    @property
    def name(self) -> str:
        """Return its name."""
        return self.manifest.name

    @property
    def is_rollout(self) -> bool:
        """Say whether Argo Rollouts moves it."""
        return self.manifest.kind == ROLLOUT

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of its pods."""
        labels = member(self.template, "metadata", "labels")
        return {key: text(value) for key, value in labels.items()} if isinstance(labels, dict) else {}

    @property
    def containers(self) -> list[Document]:
        """Return its containers, in their order."""
        return _containers(member(self.template, "spec", "containers"))

    @property
    def prepares(self) -> list[Document]:
        """Return what runs before its containers; sidecars are none."""
        return [each for each in _containers(member(self.template, "spec", "initContainers")) if each.get("restartPolicy") != "Always"]

    @property
    def recreates(self) -> bool:
        """Say whether its old pods end before new ones start."""
        return self.manifest.kind == DEPLOYMENT and member(self.manifest.document, "spec", "strategy", "type") == "Recreate"

    @property
    def stands_still(self) -> bool:
        """Say whether it has no pods."""
        return text(member(self.manifest.document, "spec", "replicas")) == "0"

    @property
    def claims(self) -> list[str]:
        """Return the volume claims that its pods mount."""
        volumes = as_list(member(self.template, "spec", "volumes"))
        claims = (text(member(volume, "persistentVolumeClaim", "claimName")) for volume in volumes if isinstance(volume, dict))
        return [claim for claim in claims if claim]


def _containers(value: Any) -> list[Document]:
    return [container for container in as_list(value) if isinstance(container, dict)]


def workloads(manifests: Sequence[Manifest]) -> list[Workload]:
    """Return what runs pods; a Deployment that a Rollout refers to counts as that Rollout."""
    deployments = {manifest.name: manifest for manifest in manifests if manifest.kind == DEPLOYMENT}
    found: list[Workload] = []
    for manifest in manifests:
        if manifest.is_workload:
            inside = ("spec", "jobTemplate", "spec", "template") if manifest.kind == "CronJob" else ("spec", "template")
            referred = text(member(manifest.document, "spec", "workloadRef", "name")) if manifest.kind == ROLLOUT else ""
            source = deployments.get(referred, manifest) if referred else manifest
            template = member(source.document, *inside)
            found.append(Workload(manifest, template if isinstance(template, dict) else {}, referred))
    referred_to = {workload.refers_to for workload in found} - {""}
    return [each for each in found if each.manifest.kind != DEPLOYMENT or each.name not in referred_to]


# --- what is asked ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Where a container's health is asked: port and path, which probe says so, and what a person has to look at."""

    port: int | None = None
    path: str | None = None
    source: str = ""
    doubt: str = ""


def asked(container: Document) -> Asked:
    """Return where the probes of a container ask; without a path where none asks over HTTP."""
    doubt = ""
    for name in PROBES:
        probe = container.get(name)
        if not isinstance(probe, dict):
            continue
        if isinstance(probe.get("httpGet"), dict):
            path = text(probe["httpGet"].get("path")) or "/"
            tls = "its probe asks over TLS, and azora-ci asks pods in the clear" if probe["httpGet"].get("scheme") == "HTTPS" else ""
            return Asked(port(container, probe["httpGet"].get("port")), path if _PATH.fullmatch(path) else None, name, tls)
        command = " ".join(map(text, as_list(member(probe, "exec", "command"))))
        number, path_asked = endpoints.asked(command, "localhost", dict(plain(container)))
        if path_asked is None and (short := re.search(r"\blocalhost:(\d{1,5})(/[^\s\"']*)", command)):
            number, path_asked = endpoints.port_number(short[1]), short[2]
        if path_asked is not None and _PATH.fullmatch(path_asked):
            return Asked(number, path_asked, name)
        spoken = "gRPC" if "grpc" in probe else "a port alone" if "tcpSocket" in probe else ""
        doubt = doubt or (f"an endpoint that answers over HTTP: its {name} asks {spoken}" if spoken else "")
    return Asked(doubt=doubt)


def port(container: Document, value: Any) -> int | None:
    """Return a port by its number, or by the name that the container gives it."""
    for entry in as_list(container.get("ports")):
        if isinstance(entry, dict) and value is not None and text(entry.get("name")) == text(value):
            return endpoints.port_number(text(entry.get("containerPort")))
    return endpoints.port_number(text(value))


def ports(container: Document) -> list[int]:
    """Return the ports of a container, those called like the web's first, without those of debuggers and of UDP."""
    entries = [entry for entry in as_list(container.get("ports")) if isinstance(entry, dict) and entry.get("protocol") in {None, "TCP"}]
    entries.sort(key=lambda entry: not re.fullmatch(r"https?|web|app|api", text(entry.get("name"))))
    numbers = (endpoints.port_number(text(entry.get("containerPort"))) for entry in entries)
    return [number for number in numbers if number is not None and number not in endpoints.DEBUG_PORTS]


def words(container: Document, key: str) -> tuple[str, ...]:
    """Return the words of ``command`` or ``args``."""
    return tuple(text(word) for word in as_list(container.get(key)))


# --- variables --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variables:
    """``kept``: variable -> the Secret and key that holds it, and stays in the cluster; ``whole``: Secrets that are handed over whole;
    ``open``: names of variables whose values stand in a manifest and look like secrets.
    """

    kept: dict[str, str] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


def plain(container: Document) -> Iterator[tuple[str, str]]:
    """Yield the variables whose values stand in the manifest."""
    for entry in as_list(container.get("env")):
        if isinstance(entry, dict) and "valueFrom" not in entry:
            yield text(entry.get("name")), text(entry.get("value"))


def variables(container: Document) -> Variables:
    """Return what the variables of a container say about secrets. No value is kept."""
    kept = {}
    for entry in as_list(container.get("env")):
        reference = member(entry, "valueFrom", "secretKeyRef") if isinstance(entry, dict) else None
        if isinstance(reference, dict):
            kept[text(entry.get("name"))] = f"{text(reference.get('name'))}/{text(reference.get('key'))}"
    whole = [text(member(entry, "secretRef", "name")) for entry in as_list(container.get("envFrom")) if isinstance(entry, dict)]
    shown = tuple(name for name, value in plain(container) if value and secret.is_secret(name, value) and "$(" not in value)
    return Variables(kept, tuple(name for name in whole if name), shown)
