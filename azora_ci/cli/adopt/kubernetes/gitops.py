"""What Argo CD and Flux are told in a repository: which folders they deploy and where, and who else writes images. Pure reading."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.merge import as_list
from azora_ci.cli.adopt.kubernetes import environments
from azora_ci.cli.adopt.kubernetes.helm.chart import Release
from azora_ci.cli.adopt.kubernetes.manifests import Manifest, Reader
from azora_ci.clients.kubernetes.objects import Document, member

ARGO_CD, FLUX = "Argo CD", "Flux"
_APPLICATIONS = {"Application", "ApplicationSet"}
_FLUX = {"HelmRelease", "Kustomization"}
_WRITERS = {"ImageUpdateAutomation": FLUX, "ImageUpdater": ARGO_CD}
_UPDATER = "argocd-image-updater.argoproj.io/image-list"


@dataclass(frozen=True)
class Deployer:
    """A GitOps tool that deploys a folder of this repository: the file that says so, folder, namespace, how a chart is installed."""

    tool: str
    file: str
    name: str
    folder: str
    namespace: str | None
    release: Release
    ignores: bool  # what azora-ci changes, already

    @property
    def rank(self) -> int:
        """Return which environment it speaks about."""
        return max(environments.rank(f"{self.folder}/"), environments.rank(self.name), environments.rank(self.namespace or ""), key=_weight)


def _weight(rank: int) -> int:
    """Order environments so that one that is named counts before none: another one first, then production."""
    return {environments.OTHER: 3, environments.PRODUCTION: 2}.get(rank, 0)


def deployers(reader: Reader, paths: Iterable[str]) -> list[Deployer]:
    """Return what deploys a folder of this repository, production's first."""
    found = [deployer for path in paths for manifest in reader.documents(path) for deployer in _of(reader, manifest)]
    return sorted(found, key=lambda deployer: (-deployer.rank, deployer.file))


def writers(reader: Reader, paths: Iterable[str]) -> list[str]:
    """Return a sentence for each thing that writes images by itself."""
    found = []
    for path in paths:
        for manifest in reader.documents(path):
            updater = _UPDATER in (member(manifest.document, "metadata", "annotations") or {})
            if manifest.kind in _WRITERS or updater:
                found.append(
                    f"{path}: {manifest.kind} {manifest.name} writes images by itself: take the images of these services out of it"
                )
    return found


def _of(reader: Reader, manifest: Manifest) -> Iterator[Deployer]:
    spec = manifest.document.get("spec")
    if not isinstance(spec, dict):
        return
    group = text(manifest.document.get("apiVersion")).partition("/")[0]
    if manifest.kind in _APPLICATIONS and group == "argoproj.io":
        template = member(spec, "template", "spec") if manifest.kind == "ApplicationSet" else spec
        yield from _applications(reader, manifest, template if isinstance(template, dict) else {})
    elif manifest.kind in _FLUX and group in {"helm.toolkit.fluxcd.io", "kustomize.toolkit.fluxcd.io"}:
        yield from _flux(reader, manifest, spec)


def _applications(reader: Reader, manifest: Manifest, spec: Document) -> Iterator[Deployer]:
    ignores = "spec/template" in str(spec.get("ignoreDifferences"))
    for source in (spec.get("source"), *as_list(spec.get("sources"))):
        if not isinstance(source, dict) or not reader.has(folder := os.path.normpath(text(source.get("path")) or "-")):
            continue
        helm = found if isinstance(found := source.get("helm"), dict) else {}
        values = tuple(
            path for name in as_list(helm.get("valueFiles")) if (path := os.path.normpath(f"{folder}/{text(name)}")) in reader.paths
        )
        namespace = text(member(spec, "destination", "namespace")) or None
        release = Release(
            _known(text(helm.get("releaseName")) or manifest.name), _known(namespace), values, _inline(helm.get("valuesObject"))
        )
        yield Deployer(ARGO_CD, manifest.path, manifest.name, folder, _known(namespace), release, ignores)


def _flux(reader: Reader, manifest: Manifest, spec: Document) -> Iterator[Deployer]:
    written = text(spec.get("path")) if manifest.kind == "Kustomization" else text(member(spec, "chart", "spec", "chart"))
    folder = os.path.normpath(written or "-")
    if not reader.has(folder):
        return
    namespace = _known(text(spec.get("targetNamespace")) or (manifest.namespace if manifest.kind == "HelmRelease" else "") or None)
    values = tuple(
        path for name in as_list(member(spec, "chart", "spec", "valuesFiles")) if (path := os.path.normpath(text(name))) in reader.paths
    )
    release = Release(_known(text(spec.get("releaseName")) or manifest.name), namespace, values, _inline(spec.get("values")))
    ignores = "/spec/template" in str(spec.get("driftDetection"))
    yield Deployer(FLUX, manifest.path, manifest.name, folder, namespace, release, ignores)


def _inline(values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(values.items()) if isinstance(values, dict) else ()


def _known(value: str | None) -> str | None:
    """Return a text without placeholders, such as those of an ApplicationSet; None for one with some."""
    return None if not value or "{" in value or "$" in value else value


def advice(deployer: Deployer) -> str:
    """Return what to tell a tool, so that it does not set an image back in the middle of a release."""
    what = f"{deployer.file}: {deployer.tool} deploys {deployer.folder}"
    if deployer.ignores:
        return f"{what}, and leaves the Rollouts' spec.template alone"
    if deployer.tool == ARGO_CD:
        return (
            f"{what}, and would set a release's image back. Under its spec: ignoreDifferences: [{{group: argoproj.io, kind: Rollout, "
            "jsonPointers: [/spec/template]}], and syncPolicy.syncOptions: [RespectIgnoreDifferences=true]"
        )
    return (
        f"{what}, and would set a release's image back. Annotate the Rollouts with kustomize.toolkit.fluxcd.io/ssa: IfNotPresent, "
        "or, of a HelmRelease, ignore /spec/template in spec.driftDetection and upgrade the chart between releases only"
    )
