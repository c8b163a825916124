"""All workloads of the chosen manifests whose images are built here -> the services of a configuration and their Rollouts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from azora_ci.cli.adopt.compose.application import identifier
from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.endpoints import asked as asked_of_text
from azora_ci.cli.adopt.compose.found import JOB, WEB, WORKER, FoundRollout, FoundService
from azora_ci.cli.adopt.compose.service import keeps_data
from azora_ci.cli.adopt.kubernetes import environments, gitops, remarks, routes, select
from azora_ci.cli.adopt.kubernetes import workload as reading
from azora_ci.cli.adopt.kubernetes.found import Cluster
from azora_ci.cli.adopt.kubernetes.images import Build, Images, discover, repository_of
from azora_ci.cli.adopt.kubernetes.manifests import DEPLOYMENT, ROLLOUT, Manifest, Reader
from azora_ci.cli.adopt.kubernetes.part import Part, with_kinds
from azora_ci.cli.adopt.kubernetes.workload import Workload
from azora_ci.cli.adopt.migrations import migrators
from azora_ci.clients.kubernetes.objects import Document

_GITOPS = {"Application", "ApplicationSet", "HelmRelease", "Kustomization", "ImageUpdateAutomation", "ImageUpdater"}
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SERVICES = 200
_ANYBODY = {"", "api", "app", "application", "container", "main", "server", "web"}  # names of containers that say nothing


def read(
    reader: Reader, dockerfiles: Sequence[str], composed: Mapping[str, Build], own_names: Collection[str], named: Sequence[str] = ()
) -> Cluster:
    """Return what the manifests of a repository say about production. ``named``: paths to read, by default those that look like it.

    ``dockerfiles``: paths of Dockerfiles; ``composed``: image -> how compose files build it; ``own_names``: of the repository's images.
    """
    entries = [path for path in reader.below(".") if environments.rank(path) != environments.ASIDE and reader.kinds(path) & _GITOPS]
    deployers = gitops.deployers(reader, entries)
    units, aside = select.candidates(reader, deployers, named)
    if not any(unit.workloads for unit in units):
        return Cluster(others=tuple(aside), notes=_unread(reader))
    run = (container for unit in units for workload in reading.workloads(unit.manifests) for container in workload.containers)
    images = discover(reader, dockerfiles, composed, own_names).of_run(text(container.get("image")) for container in run)
    selection = select.choose(units, aside, lambda unit: _count_own(unit, images), named=bool(named))
    manifests = [manifest for unit in selection.units for manifest in unit.manifests]
    used = [unit.deployer for unit in selection.units if unit.deployer is not None]
    parts, left_out = _parts(manifests, images)
    parts, namespace, source, doubt = _in_one_namespace(parts, selection, manifests, left_out)
    parts = with_kinds(parts)
    services = tuple(_found(part, parts) for part in parts)
    public = routes.public([route for part in parts for route in part.reached.routes])
    registry = remarks.registry(parts)
    prometheus = remarks.prometheus(manifests)
    return Cluster(
        files=selection.files,
        how=" and ".join(dict.fromkeys(unit.how for unit in selection.units)),
        reason=selection.reason,
        others=selection.others,
        certain=selection.certain,
        namespace=namespace,
        namespace_from=source,
        namespace_doubt=doubt,
        public_url=public[0] if public else None,
        public_url_from=public[1] if public else "",
        registry=registry[0] if registry else None,
        registry_from=registry[1] if registry else "",
        prometheus=prometheus[0] if prometheus else None,
        prometheus_from=prometheus[1] if prometheus else "",
        services=services,
        left_out=left_out,
        self_migrating=dict(remarks.preparing(reader, parts)),
        advice=tuple(remarks.advice(parts, namespace)),
        notes=(
            *_of_values(selection),
            *dict.fromkeys(map(gitops.advice, used)),
            *gitops.writers(reader, entries),
            *remarks.secrets(parts),
            *_unread(reader),
        ),
    )


def _unread(reader: Reader) -> tuple[str, ...]:
    notes = [f"not read: {path}: {reason}" for path, reason in reader.notes.items()]
    return (*notes[:9], f"not read: {len(notes) - 9} more") if len(notes) > 9 else tuple(notes)


def _of_values(selection: select.Selection) -> Iterator[str]:
    for unit in selection.units:
        if unit.how == select.HELM:
            values = ", ".join(dict.fromkeys((f"{unit.path}/values.yaml", *unit.values)))
            yield f"{unit.path}: rendered without helm, from {values}: compare with helm template, where it does more"


def _count_own(unit: select.Unit, images: Images) -> int:
    return sum(_own(workload, images) is not None for workload in reading.workloads(unit.manifests) if _moves(workload))


def _moves(workload: Workload) -> bool:
    return workload.manifest.kind in {ROLLOUT, DEPLOYMENT}


def _own(workload: Workload, images: Images) -> tuple[Document, Build] | None:
    """Return the container whose image is built here, a certain one first, with its build."""
    found = [
        (container, build)
        for container in workload.containers
        if (build := images.of(text(container.get("image")), workload.name, text(container.get("name")))) is not None
    ]
    return min(found, key=lambda pair: bool(pair[1].doubt), default=None)


def _parts(manifests: Sequence[Manifest], images: Images) -> tuple[list[Part], dict[str, str]]:
    left_out: dict[str, str] = {}
    parts: list[Part] = []
    found_routes = routes.routes(manifests)
    for workload in reading.workloads(manifests):
        own = _own(workload, images)
        reason = _reason(workload, own)
        if reason or own is None or len(parts) >= _SERVICES:
            left_out[f"{workload.manifest.kind} {workload.name}"] = reason or f"more than {_SERVICES} services are there"
            continue
        part_id = identifier(_called(workload, own[0]), "_", [part.id for part in parts])
        parts.append(Part(part_id, workload, *own, routes.reached(workload, manifests, found_routes)))
    return parts, left_out


def _called(workload: Workload, container: Document) -> str:
    """Return what a service is called: like its workload, or, where that name is a guess, like its container or image."""
    if not workload.manifest.guessed:
        return workload.name
    name = text(container.get("name"))
    return repository_of(text(container.get("image"))).rpartition("/")[2] if name.lower() in _ANYBODY else name


def _reason(workload: Workload, own: tuple[Document, Build] | None) -> str:
    """Return why a workload is not deployed; nothing when it is."""
    kind = workload.manifest.kind
    commands = [
        " ".join([*reading.words(container, "command"), *reading.words(container, "args")])
        or (own[1].says.starts if own and own[1].says else "")
        for container in workload.containers
    ]
    if own is None:
        shown = ", ".join(re.sub(r"^[^/@]*@", "", text(container.get("image"))) or "unknown" for container in workload.containers)
        return f"not built here (image {shown or 'unknown'})"
    if reason := keeps_data(own[1].says):
        return reason
    if kind == "Job" and (any(map(migrators.only_migrates, commands)) or "migrat" in workload.name):
        return "it applies migrations: the job database-migrations does that, after the backup; take it out of what is deployed"
    if not _moves(workload):
        return f"a {kind} stays with what deploys it now; its image is built here, and a release does not move it"
    if workload.recreates:
        return "its strategy is Recreate: two versions may not run at once, and a Rollout starts the new beside the old"
    if workload.stands_still:
        return "it has 0 replicas"
    return ""


def _in_one_namespace(
    parts: list[Part], selection: select.Selection, manifests: Sequence[Manifest], left_out: dict[str, str]
) -> tuple[list[Part], str | None, str, str]:
    """Return the parts of the namespace that has most of them, with its name, what says so, and what a person has to look at."""
    told = {unit.path: unit.deployer.namespace for unit in selection.units if unit.deployer is not None and unit.deployer.namespace}
    counted = Counter(part.workload.manifest.namespace for part in parts if part.workload.manifest.namespace)
    if counted:
        namespace = counted.most_common(1)[0][0]
        first = next(part for part in parts if part.workload.manifest.namespace == namespace)
        for part in parts:
            if part.workload.manifest.namespace not in {"", namespace}:
                other = part.workload.manifest.namespace
                left_out[f"{part.workload.manifest.kind} {part.workload.name}"] = f"in namespace {other}: this target drives one"
        kept = [part for part in parts if part.workload.manifest.namespace in {"", namespace}]
        unit = next((unit for unit in selection.units if first.workload.manifest in unit.manifests), None)
        source = unit.path if unit is not None and unit.how == select.KUSTOMIZE else first.workload.manifest.path
        doubt = "" if not selection.reason.startswith("another environment") else f"that of {source}: production's"
        return kept, _valid(namespace), source, doubt
    if told:
        namespace = next(iter(told.values()))
        file = next(unit.deployer.file for unit in selection.units if unit.deployer is not None and unit.deployer.namespace == namespace)
        return parts, _valid(namespace), file, ""
    alone = [manifest for manifest in manifests if manifest.kind == "Namespace"]
    if len(alone) == 1:
        return parts, _valid(alone[0].name), alone[0].path, f"{alone[0].path} makes it, and no workload names it"
    return parts, None, "", ""


def _valid(namespace: str) -> str | None:
    return namespace if _NAMESPACE.fullmatch(namespace) else None


# --- one service ------------------------------------------------------------------------------------------------------------


def _found(part: Part, parts: Sequence[Part]) -> FoundService:
    """Return the service of a configuration. Only what is known is in it: the renderer marks what is needed and missing."""
    manifest, build, container = part.workload.manifest, part.build, part.container
    marks = {"kind": part.mark} if part.mark else {}
    sources = {"kind": part.source, "context": build.source, "rollout.rollout": manifest.path}
    port, path = _port_and_path(part, sources, marks)
    if part.kind == WORKER and path is None:
        port = None
    marks |= {"context": build.context_doubt} if build.context_doubt else {}
    marks |= {"dockerfile": build.doubt} if build.doubt else {}
    prefix, public, public_source = _public(part, parts, path)
    sources |= {"public_health_url": public_source} if public_source else {}
    sources |= {"route_prefix": part.source} if prefix and part.source else {}
    return FoundService(
        id=part.id,
        context=build.context,
        dockerfile=build.dockerfile,
        source=f"{manifest.kind} {manifest.name} in {manifest.path}",
        starts=build.says.starts if build.says else "",
        kind=part.kind,
        port=port,
        health_path=path,
        public_health_url=public,
        route_prefix=prefix,
        entrypoint=reading.words(container, "command"),
        command=reading.words(container, "args"),
        build=dict(build.build),
        rollout=_rollout(part, sources, marks),
        sources={key: value for key, value in sources.items() if value},
        marks=marks,
    )


def _rollout(part: Part, sources: dict[str, str], marks: dict[str, str]) -> FoundRollout:
    guessed = f"its name is made of {part.workload.manifest.guessed}" if part.workload.manifest.guessed else ""
    workload, names = part.workload, [text(container.get("name")) for container in part.workload.containers]
    if workload.refers_to:
        marks["rollout.rollout"] = f"it refers to Deployment {workload.refers_to} (workloadRef): move the pods' template into the Rollout"
    elif not workload.is_rollout:
        marks["rollout.rollout"] = f"{workload.manifest.path} has a Deployment: make it a Rollout{f'; {guessed}' if guessed else ''}"
    elif guessed:
        marks["rollout.rollout"] = f"{guessed}: kubectl get rollouts"
    sources["rollout.container"] = "its only container" if len(names) == 1 else "its image is built here"
    split = routes.services_of(workload.manifest.document)
    for key in split:
        sources[f"rollout.{key}"] = workload.manifest.path
        if workload.manifest.guessed:
            marks[f"rollout.{key}"] = guessed
    return FoundRollout(workload.name, text(part.container.get("name")), split.get("stable_service"), split.get("canary_service"))


def _port_and_path(part: Part, sources: dict[str, str], marks: dict[str, str]) -> tuple[int | None, str | None]:
    """Return where the pods' health is asked: by a probe, or by the image's own check; else the port that requests come in at."""
    health = reading.asked(part.container)
    says = part.build.says
    number, path, source = health.port, health.path, health.source
    if path is None and says is not None and says.health:
        number, path = asked_of_text(says.health, part.workload.name, dict(reading.plain(part.container)))
        source = "HEALTHCHECK of its Dockerfile"
    if path is not None:
        sources["health_path"] = source
    if health.doubt:
        marks["health_path"] = health.doubt
    if number is not None and path is not None:
        sources["port"] = source
        return number, path
    targets = (reading.port(part.container, value) for service in part.reached.services for value in routes.target_ports(service))
    candidates = {
        "the Service's targetPort": [value for value in targets if value is not None],
        "its containerPort": reading.ports(part.container),
        "EXPOSE of its Dockerfile": list(says.ports) if says else [],
    }
    for name, values in candidates.items():
        if values:
            sources["port"] = name
            return values[0], path
    return None, path


def _public(part: Part, parts: Sequence[Part], path: str | None) -> tuple[str | None, str | None, str]:
    """Return the route's prefix where only this service has it, the public health address where known, and its source."""
    if part.kind != WEB:
        return None, None, ""
    prefix = part.reached.prefix
    prefixes = [other.reached.prefix for other in parts if other.kind == WEB]
    route = next((route for route in part.reached.routes if route.path == prefix), None)
    alone = prefix if prefixes.count(prefix) == 1 else None
    if prefix is not None and route is None and path is not None and part.reached.open:
        return alone, path if alone else None, part.reached.open
    if prefix is None or route is None or path is None or route.loses:
        return alone, None, ""
    reaches = f"{'' if prefix == '/' else prefix}{path}" if route.rewrites else path
    known = route.rewrites or prefix in {"/", path} or path.startswith(f"{prefix}/")
    main = routes.public([each for other in parts for each in other.reached.routes])
    address = routes.public([route])
    if address and main and address[0] != main[0]:
        reaches = f"{address[0]}{reaches}"  # under a name of its own
    return alone, reaches if known else None, route.source


def of_others(services: Sequence[FoundService], left_out: Mapping[str, str]) -> tuple[tuple[FoundService, ...], dict[str, str]]:
    """Return services that no manifest here speaks about, with Rollouts to fill in; what this target does not run is left out."""
    left = dict(left_out)
    kept: list[FoundService] = []
    for service in services:
        if service.kind == JOB or service.singleton:
            left[service.id] = f"a {'singleton' if service.singleton else 'job'} stays with Helm, Argo CD or a Kubernetes Job"
            continue
        name = service.id.replace("_", "-")
        marks = {f"rollout.{key}": "no manifest of it is here: as kubectl get rollouts shows it" for key in ("rollout", "container")}
        kept.append(replace(service, rollout=FoundRollout(name, name), marks=service.marks | marks))
    return tuple(kept), left
