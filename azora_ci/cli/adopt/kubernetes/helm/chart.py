"""A chart in a repository: its values, those of production over them, and the manifests that it makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from azora_ci.cli.adopt.kubernetes import environments
from azora_ci.cli.adopt.kubernetes.helm.evaluation import Templates
from azora_ci.cli.adopt.kubernetes.helm.functions import merged
from azora_ci.cli.adopt.kubernetes.helm.syntax import Block, TemplateError, parse
from azora_ci.cli.adopt.kubernetes.manifests import Manifest, Reader

_VALUES = re.compile(r"(?:values[._-])?(?P<variant>[\w.-]+?)(?:[._-]values)?\.ya?ml")
_CHARTS = 50
_OTHER = "another-release"  # a release of this name shows which names are made of the release's


@dataclass(frozen=True)
class Release:
    """How a chart is installed: its release's name (None: nobody says) and namespace, and files of values over its own."""

    name: str | None = None
    namespace: str | None = None
    values: tuple[str, ...] = ()
    inline: tuple[tuple[str, Any], ...] = ()  # values that the one who installs it has written


def charts(reader: Reader) -> list[str]:
    """Return the folders of charts that have templates, those of other charts' ``charts`` folders without their own ones."""
    found = [str(path.parent) for path in reader.files.named("Chart.yaml")]
    if len(found) > _CHARTS:
        reader.note("Chart.yaml", f"of {len(found)} charts the first {_CHARTS} are read")
        found = found[:_CHARTS]
    return [folder for folder in found if any(_templates(reader, folder)) and "/charts/" not in f"/{folder.partition('charts/')[2]}"]


def values_files(reader: Reader, folder: str) -> tuple[str, ...]:
    """Return the chart's files of values for production, beside its own or in a folder for them."""
    beside = [
        path for path in reader.paths if PurePosixPath(path).parent.as_posix() in {folder, *(f"{folder}/{name}" for name in _FOLDERS)}
    ]
    named = [path for path in beside if _VALUES.fullmatch(PurePosixPath(path).name) and path != f"{folder}/values.yaml"]
    return tuple(path for path in named if "value" in path.removeprefix(folder) and environments.rank(PurePosixPath(path).name) == 2)[:1]


_FOLDERS = ("values", "environments", "envs")


def render(reader: Reader, folder: str, release: Release) -> list[Manifest]:
    """Return the manifests of a chart. A name that is made of an unknown release's is marked so (``Manifest.guessed``)."""
    found = list(_rendered(reader, folder, release, release.name))
    if release.name is not None:
        return found
    others = {(manifest.path, place): manifest.name for place, manifest in enumerate(_rendered(reader, folder, release, _OTHER))}
    return [
        manifest.with_guess("the release's name") if others.get((manifest.path, place)) != manifest.name else manifest
        for place, manifest in enumerate(found)
    ]


def _rendered(reader: Reader, folder: str, release: Release, name: str | None) -> Iterator[Manifest]:
    about = reader.mapping(f"{folder}/Chart.yaml")
    values = reader.mapping(f"{folder}/values.yaml")
    for path in release.values:
        values = merged(values, reader.mapping(path))
    values = merged(values, dict(release.inline))
    chart = {key[:1].upper() + key[1:]: value for key, value in about.items()}
    root = {
        "Values": values,
        "Chart": chart,
        "Release": {
            "Name": name or (called if isinstance(called := about.get("name"), str) else ""),
            "Namespace": release.namespace or "",
            "Service": "Helm",
            "IsInstall": True,
            "Revision": 1,
        },
        "Template": {"BasePath": f"{folder}/templates"},
        "Capabilities": {"KubeVersion": {"Version": "v1.34.4", "Major": "1", "Minor": "34"}},
    }
    templates = Templates()
    files = dict(_parsed(reader, _templates(reader, folder)))
    for blocks in files.values():
        templates.add(blocks)
    for path, blocks in files.items():
        if path.endswith((".yaml", ".yml")):
            yield from _documents(reader, path, blocks, templates, root)


def _documents(reader: Reader, path: str, blocks: Sequence[Block], templates: Templates, root: dict[str, Any]) -> list[Manifest]:
    try:
        return reader.parse(path, templates.render(blocks, root))
    except TemplateError as error:
        reader.note(path, str(error))
        return []


def _parsed(reader: Reader, paths: Iterable[str]) -> Iterator[tuple[str, list[Block]]]:
    for path in paths:
        try:
            yield path, parse(reader.text(path))
        except TemplateError as error:
            reader.note(path, str(error))


def _templates(reader: Reader, folder: str) -> Iterator[str]:
    for path in reader.paths:
        if path.startswith(f"{folder}/templates/") and path.endswith((".yaml", ".yml", ".tpl")) and "/templates/tests/" not in path:
            yield path
