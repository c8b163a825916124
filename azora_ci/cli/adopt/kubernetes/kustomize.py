"""Build what a folder with a kustomization.yaml makes: resources, components, patches, images, names. Starts and fetches nothing.

Generators, plug-ins, replacements and charts are not built; what lies at an address is noted.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.merge import as_list
from azora_ci.cli.adopt.compose.model import REMOTE
from azora_ci.cli.adopt.kubernetes import patches
from azora_ci.cli.adopt.kubernetes.images import LONGEST, repository_of
from azora_ci.cli.adopt.kubernetes.manifests import Manifest, Reader, folder_of
from azora_ci.clients.kubernetes.objects import member

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_DEPTH = 12  # of folders that name one another
_OBJECTS = 3000  # of one folder
_PATCHES = 500
_NAME = 253  # characters of an object's name
_RESOURCES = ("resources", "bases", "components")
_NO_NAMESPACE = re.compile(r"(?:Namespace|Cluster\w*|CustomResourceDefinition|PersistentVolume|StorageClass|\w+WebhookConfiguration)")


def folders(reader: Reader) -> list[str]:
    """Return the folders that are built by themselves: those that no other one names."""
    files = {folder_of(str(path)): str(path) for path in reader.files.named(*NAMES)}
    named = {path for folder, file in files.items() for path in _named(reader.mapping(file), folder)}
    return sorted(folder for folder, file in files.items() if folder not in named and reader.mapping(file).get("kind") != "Component")


def files_of(reader: Reader) -> set[str]:
    """Return all files that belong to kustomizations: theirs, and what they name."""
    files = {folder_of(str(path)): str(path) for path in reader.files.named(*NAMES)}
    return {
        path
        for folder, file in files.items()
        for path in [file, *_named(reader.mapping(file), folder), *_patched(reader.mapping(file), folder)]
    }


def _named(document: Mapping[str, Any], folder: str) -> Iterator[str]:
    for key in _RESOURCES:
        for entry in as_list(document.get(key)):
            if not REMOTE.match(text(entry)):
                yield _path(folder, text(entry))


def _patched(document: Mapping[str, Any], folder: str) -> Iterator[str]:
    entries = [entry for key in ("patchesStrategicMerge", "patches", "patchesJson6902") for entry in as_list(document.get(key))]
    for entry in entries:
        path = entry.get("path") if isinstance(entry, dict) else entry
        if isinstance(path, str) and "\n" not in path:
            yield _path(folder, path)


def _path(folder: str, path: str) -> str:
    return os.path.normpath(PurePosixPath(folder, path))


def build(reader: Reader, folder: str, depth: int = 0) -> list[Manifest]:
    """Return the objects that a folder makes."""
    file = next((path for name in NAMES if (path := _path(folder, name)) in reader.paths), None)
    if file is None or depth > _DEPTH or not reader.may_build():
        reader.note(folder, "folders name one another without end" if file else "it has no kustomization.yaml")
        return []
    return _built(reader, reader.mapping(file), [], folder, depth)


def _built(reader: Reader, document: Mapping[str, Any], before: list[Manifest], folder: str, depth: int) -> list[Manifest]:
    found = list(before)
    for key in _RESOURCES:
        for entry in dict.fromkeys(map(text, as_list(document.get(key)))):
            path = _path(folder, entry)
            if len(found) > _OBJECTS:
                reader.note(folder, f"it makes more than {_OBJECTS} objects")
                return []
            if REMOTE.match(entry) or path.startswith(".."):
                reader.note(f"{entry} of {folder}", "it is outside of this repository")
            elif path.endswith((".yaml", ".yml")) and path in reader.paths:
                found += reader.documents(path)
            elif key == "components":
                found = _component(reader, path, found, depth)
            else:
                found += build(reader, path, depth + 1)
    if document.get("helmCharts"):
        reader.note(f"helmCharts of {folder}", "charts that Kustomize inflates are not rendered")
    for patch in list(_patches(reader, document, folder))[:_PATCHES]:
        found = [changed for manifest in found if (changed := _patch(reader, manifest, patch, folder)) is not None]
    if not reader.may_copy(*(manifest.document for manifest in found)):
        reader.note(folder, "builds of Kustomize copy too much")
        return []
    return _renamed([_with_namespace(_with_images(manifest, document), document) for manifest in found], document)


def _component(reader: Reader, folder: str, found: list[Manifest], depth: int) -> list[Manifest]:
    file = next((path for name in NAMES if (path := _path(folder, name)) in reader.paths), None)
    if file is None or depth > _DEPTH or not reader.may_build():
        reader.note(folder, "it is no component")
        return found
    return _built(reader, reader.mapping(file), found, folder, depth + 1)


# --- patches --------------------------------------------------------------------------------------------------------------


def _patches(reader: Reader, document: Mapping[str, Any], folder: str) -> Iterator[tuple[Mapping[str, Any] | None, Any]]:
    """Yield (target, patch): a document to merge, or a list of operations. Without a target, a document says itself what it changes."""
    for entry in as_list(document.get("patchesStrategicMerge")):
        yield from ((None, patch) for patch in _read(reader, text(entry), folder))
    for key in ("patches", "patchesJson6902"):
        for entry in as_list(document.get(key)):
            if isinstance(entry, dict):
                target = entry.get("target")
                written = text(entry.get("patch")) or text(entry.get("path"))
                yield from ((target if isinstance(target, dict) else None, patch) for patch in _read(reader, written, folder))


def _read(reader: Reader, written: str, folder: str) -> list[Any]:
    """Return the patches of a file, or of a text that stands in the kustomization itself."""
    path = _path(folder, written) if "\n" not in written and ":" not in written else None
    content = reader.text(path) if path else written
    if content.lstrip().startswith(("- ", "-\n", "[")) or re.search(r"^- op:", content, re.MULTILINE):
        wrapped = "operations:\n" + "\n".join(f"  {line}" for line in content.splitlines() if line.strip() != "---")
        return [document.get("operations") or [] for document in reader.mappings(path or folder, wrapped)]
    return reader.mappings(path or folder, content)


def _patch(reader: Reader, manifest: Manifest, patch: tuple[Mapping[str, Any] | None, Any], folder: str) -> Manifest | None:
    """Return an object after a patch; None for one that the patch deletes."""
    target, change = patch
    if not _is_meant(manifest, target if target is not None else change if isinstance(change, dict) else {}):
        return manifest
    if not reader.may_copy(change, [] if isinstance(change, dict) else manifest.document):
        reader.note(f"a patch of {folder}", "builds of Kustomize copy too much")
        return manifest
    if isinstance(change, dict):
        if change.get("$patch") == "delete":
            return None
        kept = {key: change[key] for key in change if key not in {"apiVersion", "kind"}}
        name = manifest.document.get("metadata")
        merged = patches.merge(manifest.document, kept)
        if isinstance(name, dict) and isinstance(merged.get("metadata"), dict):
            merged["metadata"] = {**merged["metadata"], "name": name.get("name")}
        return replace(manifest, document=merged)
    try:
        return replace(manifest, document=patches.changed(manifest.document, change))
    except ValueError as error:
        reader.note(f"a patch of {folder}", str(error))
        return manifest


def _is_meant(manifest: Manifest, target: Mapping[str, Any]) -> bool:
    """Say whether an object is a patch's target. Names are matched as they are: patterns of a target are patterns of few letters."""
    metadata = target.get("metadata")
    name = text(metadata.get("name")) if isinstance(metadata, dict) else text(target.get("name"))
    kind = text(target.get("kind"))
    if not kind and not name:
        return False
    matches = not name or name == manifest.name or bool(re.fullmatch(r"\.\*", name))
    return matches and (not kind or kind == manifest.kind)


# --- names and images -------------------------------------------------------------------------------------------------------


def _with_namespace(manifest: Manifest, document: Mapping[str, Any]) -> Manifest:
    namespace = document.get("namespace")
    if not isinstance(namespace, str) or _NO_NAMESPACE.fullmatch(manifest.kind):
        return manifest
    metadata = manifest.document.get("metadata")
    changed = {**(metadata if isinstance(metadata, dict) else {}), "namespace": namespace}
    return replace(manifest, document={**manifest.document, "metadata": changed})


def _with_images(manifest: Manifest, document: Mapping[str, Any]) -> Manifest:
    images = {text(entry.get("name")): entry for entry in as_list(document.get("images")) if isinstance(entry, dict)}
    counts = {text(entry.get("name")): entry.get("count") for entry in as_list(document.get("replicas")) if isinstance(entry, dict)}
    if not images and manifest.name not in counts:
        return manifest
    changed = copy.deepcopy(manifest.document)
    if manifest.name in counts and isinstance(changed.get("spec"), dict):
        changed["spec"]["replicas"] = counts[manifest.name]
    for container in _containers(changed):
        image = text(container.get("image"))
        name = repository_of(image)
        entry = images.get(name)
        if entry is not None and name and len(new := text(entry.get("newName")) or name) <= LONGEST:
            container["image"] = f"{new}{image[len(name) :]}"
    return replace(manifest, document=changed)


def _containers(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the containers anywhere in a document, changeable in place."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in {"containers", "initContainers"} and isinstance(item, list):
                yield from (container for container in item if isinstance(container, dict))
            else:
                yield from _containers(item)


def _renamed(found: list[Manifest], document: Mapping[str, Any]) -> list[Manifest]:
    """Return the objects with prefix and suffix at their names, and at the names of Services and workloads by which others call them."""
    prefix, suffix = text(document.get("namePrefix")), text(document.get("nameSuffix"))
    if (not prefix and not suffix) or len(prefix) + len(suffix) > _NAME:  # no object has a longer name
        return found
    called = {manifest.name for manifest in found if manifest.kind == "Service" or manifest.is_workload}
    return [
        replace(manifest, document=_with_name(_calling(manifest.document, called, prefix, suffix), prefix, suffix)) for manifest in found
    ]


def _with_name(document: dict[str, Any], prefix: str, suffix: str) -> dict[str, Any]:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or _NO_NAMESPACE.fullmatch(text(document.get("kind"))):
        return document
    name = text(metadata.get("name"))
    return {**document, "metadata": {**metadata, "name": f"{prefix}{name}{suffix}" if len(name) <= _NAME else name}}


_REFERENCES = ("stableService", "canaryService", "activeService", "previewService", "serviceName", "stableIngress")


def _calling(value: Any, called: set[str], prefix: str, suffix: str, key: str = "") -> Any:
    if isinstance(value, dict):
        is_reference = key in {"service", "workloadRef", "scaleTargetRef"}
        return {
            name: f"{prefix}{item}{suffix}"
            if isinstance(item, str) and item in called and (name in _REFERENCES or (is_reference and name == "name"))
            else _calling(item, called, prefix, suffix, name)
            for name, item in value.items()
        }
    return [_calling(item, called, prefix, suffix, key) for item in value] if isinstance(value, list) else value


def namespace_of(reader: Reader, folder: str) -> str | None:
    """Return the namespace that a folder's own kustomization says."""
    for name in NAMES:
        value = member(reader.mapping(_path(folder, name)), "namespace")
        if isinstance(value, str):
            return value
    return None
