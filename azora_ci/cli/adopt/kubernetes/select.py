"""Which manifests of a repository are read: production's, by where they lie, what deploys them and which images they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from azora_ci.cli.adopt.kubernetes import environments, kustomize
from azora_ci.cli.adopt.kubernetes.gitops import Deployer
from azora_ci.cli.adopt.kubernetes.helm import chart
from azora_ci.cli.adopt.kubernetes.manifests import ROLLOUT, WORKLOADS, Manifest, Reader, folder_of
from azora_ci.clients.kubernetes.objects import member

KUSTOMIZE, PLAIN, HELM = "Kustomize", "manifests", "Helm"
_ORDER = {KUSTOMIZE: 2, PLAIN: 1, HELM: 0}
_PARTS = {*WORKLOADS, "Service", "Ingress", "HTTPRoute", "Namespace", "List", "AnalysisTemplate"}


@dataclass(frozen=True)
class Unit:
    """Manifests that are deployed together: a folder of Kustomize, a chart, or a file. ``deployer``: the GitOps tool's entry for it."""

    how: str
    path: str
    rank: int
    manifests: Sequence[Manifest]
    deployer: Deployer | None = None
    values: tuple[str, ...] = ()

    @property
    def workloads(self) -> set[tuple[str, str, bool]]:
        """Return namespace and name of everything that runs pods, and whether its pods' template is another's (workloadRef)."""
        running = (manifest for manifest in self.manifests if manifest.is_workload)
        return {(each.namespace, each.name, member(each.document, "spec", "workloadRef") is not None) for each in running}


@dataclass(frozen=True)
class Selection:
    """``units``: to be read; ``reason``: why these; ``others``: paths that hold workloads, too; ``certain``: they are production's."""

    units: tuple[Unit, ...] = ()
    reason: str = ""
    others: tuple[str, ...] = ()
    certain: bool = False
    deployers: tuple[Deployer, ...] = field(default=())

    @property
    def files(self) -> tuple[str, ...]:
        """Return the paths of the units, a folder in place of its files."""
        return tuple(dict.fromkeys(unit.path if unit.how != PLAIN else folder_of(unit.path) for unit in self.units))


def candidates(reader: Reader, deployers: Sequence[Deployer], named: Sequence[str]) -> tuple[list[Unit], list[str]]:
    """Return the units that may be production's, and the paths of the others. ``named``: all that is read where a person chose."""
    wanted = _wanted(named)
    found: list[Unit] = []
    aside: list[str] = []
    roots = kustomize.folders(reader)
    for folder in sorted({*roots, *(path for path in named if any(f"{path}/{name}" in reader.paths for name in kustomize.NAMES))}):
        rank = environments.rank(f"{folder}/")
        if (named and not wanted(folder)) or (not named and rank == environments.ASIDE):
            aside.append(folder)
            continue
        deployer = _deployer(deployers, folder)
        found.append(Unit(KUSTOMIZE, folder, _ranked(rank, deployer), kustomize.build(reader, folder), deployer))
    for folder in chart.charts(reader):
        rank = environments.rank(f"{folder}/")
        if (named and not wanted(folder)) or (not named and rank == environments.ASIDE):
            aside.append(folder)
            continue
        deployer = _deployer(deployers, folder)
        values = deployer.release.values if deployer and deployer.release.values else chart.values_files(reader, folder)
        release = deployer.release if deployer else chart.Release()
        made = chart.render(reader, folder, chart.Release(release.name, release.namespace, values, release.inline))
        rank = environments.PRODUCTION if values and environments.rank(values[0]) == environments.PRODUCTION else rank
        found.append(Unit(HELM, folder, _ranked(rank, deployer), made, deployer, values))
    plain, beside = _plain(reader, deployers, named, {unit.path for unit in found} | set(aside))
    return [*found, *plain], [*aside, *beside]


def _wanted(named: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a path is, or lies below, one that a person chose."""
    return lambda path: any(path == each or path.startswith(f"{each}/") or each == "." for each in named)


def _plain(reader: Reader, deployers: Sequence[Deployer], named: Sequence[str], folders: set[str]) -> tuple[list[Unit], list[str]]:
    """Return the files with manifests that belong to no kustomization and to no chart, and the folders of those that are left alone."""
    built = kustomize.files_of(reader)
    charts = tuple(f"{folder_of(str(path))}/" for path in reader.files.named("Chart.yaml"))
    units: list[Unit] = []
    aside: list[str] = []
    wanted = _wanted(named)
    for path in reader.below("."):
        kinds = reader.kinds(path)
        if not kinds & _PARTS or path in built or path.startswith(charts) or (folder_of(path) in folders and not named):
            continue
        rank = environments.rank(path)
        if (named and not wanted(path)) or (not named and rank == environments.ASIDE):
            aside += [folder_of(path)] if kinds & set(WORKLOADS) else []
            continue
        deployer = _deployer(deployers, folder_of(path))
        manifests = reader.documents(path)
        spoken = [environments.rank(manifest.namespace) for manifest in manifests if manifest.namespace]
        rank = rank if rank != environments.ANY or not spoken else max(spoken)
        units.append(Unit(PLAIN, path, _ranked(rank, deployer), manifests, deployer))
    return units, list(dict.fromkeys(aside))


def _deployer(deployers: Sequence[Deployer], folder: str) -> Deployer | None:
    exact = [deployer for deployer in deployers if deployer.folder == folder]
    above = [deployer for deployer in deployers if folder.startswith(f"{deployer.folder}/")]
    return next(iter([*exact, *above]), None)


def _ranked(rank: int, deployer: Deployer | None) -> int:
    """Return an environment's rank; what a GitOps tool deploys is production's, unless a name says another one."""
    if deployer is None or rank == environments.OTHER:
        return rank
    return environments.OTHER if deployer.rank == environments.OTHER else environments.PRODUCTION


def choose(units: Sequence[Unit], aside: Iterable[str], own: Callable[[Unit], int], *, named: bool = False) -> Selection:
    """Return which units to read. ``own``: how many workloads of a unit run images that are built here; ``named``: a person chose them."""
    groups: dict[tuple[str, int], list[Unit]] = {}
    for unit in units:
        groups.setdefault(("", 0) if named else (unit.how, unit.rank), []).append(unit)
    chosen: tuple[tuple[int, ...], list[Unit]] | None = None
    for (how, rank), group in groups.items():
        taken = _together(group, own)
        built = sum(map(own, taken))
        rollouts = any(manifest.kind == ROLLOUT for unit in taken for manifest in unit.manifests)
        worth = (int(built > 0), rank, int(rollouts), _ORDER.get(how, 0), built)
        if any(unit.workloads for unit in taken) and (chosen is None or worth > chosen[0]):
            chosen = worth, taken
    if chosen is None:
        return Selection(others=tuple(dict.fromkeys(aside)))
    taken = chosen[1]
    others = [unit.path if unit.how != PLAIN else folder_of(unit.path) for unit in units if unit not in taken and unit.workloads]
    read = {unit.path if unit.how != PLAIN else folder_of(unit.path) for unit in taken}
    others += [unit.path for unit in units if unit.how == PLAIN and unit not in taken and unit.workloads and folder_of(unit.path) in read]
    left = tuple(dict.fromkeys(path for path in [*others, *aside] if path not in read))
    reason, certain = ("--manifests", True) if named else _reason(taken)
    return Selection(tuple(taken), reason, left, certain)


def _together(group: Sequence[Unit], own: Callable[[Unit], int]) -> list[Unit]:
    """Return the units that are deployed together: what repeats a name is another variant. Files without workloads come along."""
    taken: list[Unit] = []
    names: set[tuple[str, str, bool]] = set()
    running = [unit for unit in group if unit.workloads]
    for unit in sorted(running, key=lambda unit: (-own(unit), unit.path.count("/"), -len(unit.workloads), unit.path)):
        if not unit.workloads & names:
            taken.append(unit)
            names |= unit.workloads
    folders = {folder_of(unit.path) for unit in taken if unit.how == PLAIN}
    near = {*folders, *(str(PurePosixPath(folder).parent) for folder in folders if "/" in folder)}
    taken += [unit for unit in group if not unit.workloads and unit.how == PLAIN and _is_near(folder_of(unit.path), near)]
    return taken


def _is_near(folder: str, folders: set[str]) -> bool:
    """Say whether a folder is one of these, or stands beside one of them."""
    return folder in folders or any(other != "." and folder.startswith(f"{other}/") for other in folders)


def _reason(taken: Sequence[Unit]) -> tuple[str, bool]:
    deployer = next((unit.deployer for unit in taken if unit.deployer is not None and unit.rank == environments.PRODUCTION), None)
    if any(unit.rank == environments.PRODUCTION and unit.deployer is None for unit in taken):
        return "production's, by its name", True
    if deployer is not None:
        return f"{deployer.tool} deploys it, by {deployer.file}", True
    if any(manifest.kind == ROLLOUT for unit in taken for manifest in unit.manifests):
        return "Rollouts are there", True
    if all(unit.rank == environments.OTHER for unit in taken):
        return "another environment's: none of production is here", False
    return "", False
