"""What the deployed workloads say together: registry, Prometheus, secrets, and what has to change before releases can move."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.kubernetes import routes
from azora_ci.cli.adopt.kubernetes import workload as reading
from azora_ci.cli.adopt.kubernetes.images import repository_of
from azora_ci.cli.adopt.kubernetes.manifests import Manifest, Reader
from azora_ci.cli.adopt.kubernetes.part import Part
from azora_ci.cli.adopt.migrations import migrators
from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.core.config import KubernetesSettings, RolloutNames
from azora_ci.targets.kubernetes.rollouts import obstacles, watch_name


def registry(parts: Sequence[Part]) -> tuple[str, str] | None:
    """Return registry and namespace of the images that are built here; without a registry's name that is Docker Hub's for a cluster."""
    found: Counter[str] = Counter()
    for part in parts:
        folder, _, _ = repository_of(text(part.container.get("image"))).rpartition("/")
        host = folder.partition("/")[0]
        if folder and re.fullmatch(r"[a-z0-9.:-]+(/[a-z0-9._-]+)*", folder) and not re.match(r"localhost|127\.", host):
            found[folder if "." in host or ":" in host else f"docker.io/{folder}"] += 1
    if not found:
        return None
    name = found.most_common(1)[0][0]
    example = next(part for part in parts if name.removeprefix("docker.io/") in text(part.container.get("image")))
    return name, f"as images are called in {example.workload.manifest.path}"


def prometheus(manifests: Sequence[Manifest]) -> tuple[str, str] | None:
    """Return the address at which an AnalysisTemplate asks Prometheus."""
    for manifest in manifests:
        for metric in _metrics(manifest) if manifest.kind in {"AnalysisTemplate", "ClusterAnalysisTemplate"} else ():
            address = text(member(metric, "provider", "prometheus", "address"))
            if re.fullmatch(r"https?://[A-Za-z0-9.:/_-]+", address):
                return address, f"AnalysisTemplate {manifest.name} in {manifest.path}"
    return None


def _metrics(manifest: Manifest) -> list[Document]:
    """Return the metrics of an AnalysisTemplate."""
    metrics = member(manifest.document, "spec", "metrics")
    return [metric for metric in metrics if isinstance(metric, dict)] if isinstance(metrics, list) else []


def preparing(reader: Reader, parts: Sequence[Part]) -> Iterator[tuple[str, str]]:
    """Yield the services whose pods migrate the database before they start."""
    for part in parts:
        for container in part.workload.prepares:
            entry, args = reading.words(container, "command"), reading.words(container, "args")
            build = part.build
            named = f"initContainer {text(container.get('name'))} in {part.workload.manifest.path}"
            if migrating := migrators.at_start(reader.files, build.context, build.dockerfile, args, entry, named):
                yield part.id, migrating


def advice(parts: Sequence[Part], namespace: str | None) -> Iterator[str]:
    """Yield what has to change in the manifests before releases can be moved."""
    settings = KubernetesSettings(namespace or "default", {})
    deployments = [part.workload.name for part in parts if not part.workload.is_rollout]
    if deployments:
        shown = ", ".join(deployments[:12]) + (f" and {len(deployments) - 12} more" if len(deployments) > 12 else "")
        yield f"Deployments to make Rollouts of (kubernetes.md has the lines): {shown}"
    for part in parts:
        if part.workload.is_rollout:
            split = routes.services_of(part.workload.manifest.document)
            names = RolloutNames(
                part.workload.name, text(part.container.get("name")), split.get("stable_service"), split.get("canary_service")
            )
            try:
                found = list(obstacles(part.workload.manifest.document, names, settings))
            except (TypeError, AttributeError, KeyError, ValueError):
                found = [f"{names.rollout}: its steps are not of the form that Argo Rollouts reads"]
            yield from (line for line in found if watch_name(settings) not in line)  # which edge install adds
        if part.workload.claims:
            yield f"{part.workload.name}: both versions mount {', '.join(part.workload.claims)} while a release moves"


def secrets(parts: Sequence[Part]) -> Iterator[str]:
    """Yield which secrets stay in the cluster, and which stand in a manifest."""
    for part in parts:
        found = reading.variables(part.container)
        held = [*(f"{name} ({place})" for name, place in found.kept.items()), *(f"all of {name}" for name in found.whole)]
        if held:
            yield f"{part.id}: stays in the cluster's Secrets: {', '.join(held)}"
        if found.open:
            yield f"{part.id}: looks like a secret and stands in {part.workload.manifest.path}: {', '.join(found.open)}"
