"""Discover an application from the files of its repository: services, Prisma, build commands, checks. Writes and starts nothing of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from azora_ci.cli.adopt import checks, development, programs, toolchain
from azora_ci.cli.adopt.compose import application as compose
from azora_ci.cli.adopt.compose import dockerfile, document, model, plugin, select
from azora_ci.cli.adopt.compose.found import WEB, FoundService
from azora_ci.cli.adopt.compose.merge import as_build, as_list
from azora_ci.cli.adopt.files import NOT_OURS, regular, walk
from azora_ci.cli.adopt.kubernetes import application as kubernetes
from azora_ci.cli.adopt.kubernetes.found import Cluster
from azora_ci.cli.adopt.kubernetes.images import Build, repository_of
from azora_ci.cli.adopt.kubernetes.manifests import Reader
from azora_ci.cli.adopt.migrations import migrators, prisma
from azora_ci.cli.adopt.migrations.migrators import Migrator
from azora_ci.cli.adopt.migrations.prisma import Prisma
from azora_ci.cli.adopt.repository import Files
from azora_ci.cli.adopt.toolchain import FoundToolchain
from azora_ci.core.documents import Limits, UnreadableError, read_file
from azora_ci.core.errors import BadInputError

__all__ = ["NOT_OURS", "Application", "FoundService", "discover"]
_HEALTH = r"(?:health|healthz|healthcheck|health-check|live|livez|readyz|ready)"
_LIVE = re.compile(r"/livez?$")
_ROUTE = re.compile(
    rf"(?:^|/)(?:app/(?P<app>(?:[\w().-]+/)*{_HEALTH})/route|pages/(?P<pages>api/(?:[\w.-]+/)*{_HEALTH}(?=\.|/index)))(?:/index)?\.[jt]s$"
)
_DOCKERFILE = re.compile(r"(?:[\w-]+\.)?Dockerfile(?!\.dockerignore)(?:[.-][\w.-]+)?", re.IGNORECASE)
_ASIDE = re.compile(r"(?:^|[/._-])(?:dev|devel|development|debug|local|devcontainer|e2e|tests?|examples?|ci)(?:[/._-]|$)", re.IGNORECASE)
_FOLDERS_OF_DOCKERFILES = {"docker", ".docker", "deploy", "deployment", "infra", "ops", "production"}
_REPOSITORY = re.compile(r"[a-z0-9.:-]+(/[a-z0-9._-]+)*")  # as in schemas/deploy-config.schema.json
HOSTS, KUBERNETES = "docker_hosts", "kubernetes"  # targets that adopt can write
OUR_WORKFLOWS = ("deploy-production.yml", "rollback-production.yml", "restore-drill.yml")


@dataclass(frozen=True)
class Application:
    """What was discovered.

    ``compose_files`` were read, for ``compose_reason``; ``other_compose_files`` were not. ``left_out``: compose service, or a part of
    one -> why it is not deployed; ``notes``: what could not be read. ``checks``: names of checks, from the workflows ``checks_from``.
    ``registry``: repository of the images, from ``registry_from``. ``tags``: the newest ones, newest first. ``target``: where it runs, for
    ``target_reason``; ``cluster``: what Kubernetes manifests say, also where they were not chosen.
    """

    name: str
    compose_files: tuple[str, ...] = ()
    compose_reason: str = ""
    other_compose_files: tuple[str, ...] = ()
    services: tuple[FoundService, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()  # without one of them nothing is deployed
    dockerfiles: tuple[str, ...] = ()  # that are there, where none of them was chosen
    notes: tuple[str, ...] = ()
    toolchain: FoundToolchain = FoundToolchain()
    build_script: bool = False
    prisma: Prisma = Prisma()
    prisma_dependency: bool = False
    migrator: Migrator | None = None
    self_migrating: dict[str, str] = field(default_factory=dict)  # service -> what migrates the database when it starts
    checks: tuple[str, ...] = ()
    checks_from: tuple[str, ...] = ()
    registry: str | None = None
    registry_from: str = ""
    tags: tuple[str, ...] = ()
    target: str = HOSTS
    target_reason: str = ""
    cluster: Cluster = Cluster()


@dataclass(frozen=True)
class Wanted:
    """What a person chose: compose files to merge, in this order; profiles; the target; manifests. Empty: what looks like production's."""

    compose_files: Sequence[str] = ()
    profiles: Sequence[str] = ()
    target: str | None = None
    manifests: Sequence[str] = ()


def discover(folder: Path, compose_files: Sequence[str] = (), profiles: Sequence[str] = (), wanted: Wanted | None = None) -> Application:
    """Return the application of a repository. ``wanted``: all that a person chose, in place of compose files and profiles alone.

    Raises BadInputError for a compose file or package.json that cannot be read, and for a named file that is not there.
    """
    wanted = wanted or Wanted(compose_files, profiles)
    files = walk(folder)
    package = _package(folder)
    origin = _origin(folder)
    name = compose.identifier(str(package.get("name") or folder.resolve().name).rsplit("/", 1)[-1], "-")
    selection = _selection(folder, files, wanted.compose_files)
    own_names = {name, origin.rpartition("/")[2], folder.resolve().name} - {""}
    read = _read(folder, selection, wanted.profiles, own_names)
    needed = _needed_profiles(read)
    repository = Files(folder, files)
    named = tuple(_inside(folder, path, "--manifests") for path in wanted.manifests)
    cluster = kubernetes.read(Reader(repository, files), _dockerfiles(files), _composed(read), own_names, named)
    target, reason = _target(wanted, selection, read, cluster)
    on_cluster = target == KUBERNETES and bool(cluster.services)
    found = cluster.services if on_cluster else read.services or (() if needed else _of_dockerfile(folder, files, name))
    services = tuple(replace(service, marks=development.marks(service) | service.marks) for service in _with_routes(found, files))
    left_out = cluster.left_out if on_cluster else read.left_out
    if target == KUBERNETES and not on_cluster:
        services, left_out = kubernetes.of_others(services, left_out | cluster.left_out)
    found_prisma = prisma.discover(repository)
    owner, tools = _toolchain(repository, package, found_prisma)
    dependencies = {**_mapping(owner.get("dependencies")), **_mapping(owner.get("devDependencies"))}
    required, workflows = checks.found(folder, files, OUR_WORKFLOWS)
    registry, registry_from = (cluster.registry, cluster.registry_from) if on_cluster and cluster.registry else _registry(read, origin)
    return Application(
        name=name,
        compose_files=read.model.files,
        compose_reason=selection.reason,
        other_compose_files=selection.others,
        services=services,
        left_out=left_out,
        profiles=needed,
        dockerfiles=() if services else _dockerfiles(files),
        notes=read.model.notes,
        toolchain=tools,
        build_script="build" in _mapping(owner.get("scripts")),
        prisma=found_prisma,
        prisma_dependency=bool({"prisma", "@prisma/client"} & dependencies.keys()),
        migrator=None if found_prisma else migrators.discover(repository, owner, tools),
        self_migrating=dict(_self_migrating(repository, services)) | (cluster.self_migrating if on_cluster else {}),
        checks=required,
        checks_from=workflows,
        registry=registry,
        registry_from=registry_from,
        tags=_tags(folder),
        target=target,
        target_reason=reason,
        cluster=cluster,
    )


def _target(wanted: Wanted, selection: select.Selection, read: _Read, cluster: Cluster) -> tuple[str, str]:
    """Return where the application runs, and why: as a person says, else by what is production's of compose files and manifests."""
    if wanted.target is not None or wanted.manifests:
        return wanted.target or KUBERNETES, "--target" if wanted.target else "--manifests"
    if not cluster.services:
        return HOSTS, ""
    where = ", ".join(cluster.files)
    if not read.services:
        return KUBERNETES, f"{where} deploys what is built here, and no compose file does"
    composed = ", ".join(selection.files)
    if selection.reason.startswith("production") or wanted.compose_files:
        return HOSTS, f"{composed} is production's"
    if cluster.certain:
        return KUBERNETES, f"{where}: {cluster.reason}; {composed} is not said to be production's"
    if any(development.marks(service) for service in read.services):
        return KUBERNETES, f"{composed} has values of development"
    return HOSTS, f"nothing says that {where} is production's, nor that {composed} is development's"


def _composed(read: _Read) -> dict[str, Build]:
    """Return image -> how compose files build it, by the image's name and by its service's."""
    names = {service.source.removeprefix("service "): service for service in read.services}
    found: dict[str, Build] = {}
    for name, service in names.items():
        build = Build(service.context, service.dockerfile, f"{read.model.files[0]}, service {name}", build=service.build)
        image = read.model.plain(as_build(read.model.services.get(name)).get("image"))
        found |= {key: build for key in (name, repository_of(image or "")) if key}
    return found


def _toolchain(files: Files, package: dict[str, Any], found: Prisma) -> tuple[dict[str, Any], FoundToolchain]:
    """Return the package.json of the application's package, and its toolchain; what the folder does not say, the top does."""
    place = toolchain.place(files, package, found.schemas[0].package if found else ".")
    tools = toolchain.discover(files.folder, package)
    if place == PurePosixPath():
        return package, tools
    own = files.mapping(place / "package.json")
    found_there = toolchain.discover(files.folder / place, own)
    return own, replace(found_there, node=found_there.node or tools.node, folder=str(place))


def _self_migrating(files: Files, services: Iterable[FoundService]) -> Iterator[tuple[str, str]]:
    for service in services:
        named = "command of the compose file" if service.rollout is None else f"command of {service.source}"
        if migrating := migrators.at_start(files, service.context, service.dockerfile, service.command, service.entrypoint, named):
            yield service.id, migrating


def _package(folder: Path) -> dict[str, Any]:
    path = regular(folder, "package.json")
    if path is None:
        return {}
    try:
        document = read_file(path, Limits(unique_keys=False))  # npm takes the last of two
    except UnreadableError as error:
        raise BadInputError(
            "package.json is not read", what=str(error), where=str(path), next_step="correct it, then adopt again"
        ) from error
    return document if isinstance(document, dict) else {}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# --- compose ------------------------------------------------------------------------------------------------------------


def _selection(folder: Path, files: Sequence[str], named: Sequence[str]) -> select.Selection:
    if named:
        paths = tuple(_inside(folder, name, "--compose") for name in named)
        return select.Selection(paths, "--compose", tuple(path for path in select.compose_files(files) if path not in paths))
    own = model.variables_of(folder, "").get("COMPOSE_FILE")
    if own:
        paths = tuple(os.path.normpath(path) for path in re.split(r"[:;]", own) if path)
        if all(regular(folder, path) for path in paths):
            return select.Selection(paths, "COMPOSE_FILE in .env", tuple(path for path in select.compose_files(files) if path not in paths))
    return select.select(files, lambda path: _services_of(folder, path))


def _inside(folder: Path, name: str, option: str) -> str:
    """Return the path of a named file relative to the repository. Raises BadInputError for one that is not there, or outside."""
    candidates = [folder / name, Path(name)]
    is_meant = Path.exists if option == "--manifests" else Path.is_file
    found = next((path.resolve() for path in candidates if is_meant(path) and path.resolve().is_relative_to(folder.resolve())), None)
    if found is None:
        raise BadInputError(
            "No such manifests" if option == "--manifests" else "No such compose file",
            what=f"{name} is no file of {folder}",
            where=option,
            next_step="give paths relative to the repository",
        )
    return found.relative_to(folder.resolve()).as_posix()


def _services_of(folder: Path, path: str) -> select.Services:
    """Return the services of one compose file as they stand there; none when it cannot be read: whoever reads it says so."""
    try:
        return {name: service for name, service in model.load(folder, [path]).services.items() if isinstance(service, dict)}
    except BadInputError:
        return {}


@dataclass(frozen=True)
class _Read:
    model: model.Model = model.Model()
    services: tuple[FoundService, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def _read(folder: Path, selection: select.Selection, profiles: Sequence[str], own_images: set[str]) -> _Read:
    from azora_ci.steps.job import own_variables

    if not selection.files:
        return _Read()
    variables = (PurePosixPath(selection.files[0]).parent / ".env").as_posix()
    merged = plugin.ask(folder, model.load(folder, selection.files, untracked=_is_untracked(folder, variables)), programs.run)
    chosen = [*profiles, *filter(None, merged.variables.get("COMPOSE_PROFILES", "").split(","))]
    read = compose.read(folder, merged, chosen, own_variables(), own_images)
    return _Read(merged, read.services, read.left_out)


def _needed_profiles(read: _Read) -> tuple[str, ...]:
    """Return the profiles of what is built here, where nothing is deployed without one."""
    services = [] if read.services else [service for service in read.model.services.values() if service.get("build")]
    return tuple(dict.fromkeys(document.text(profile) for service in services for profile in as_list(service.get("profiles"))))


def _dockerfiles(files: Sequence[str]) -> tuple[str, ...]:
    """Return the Dockerfiles of a repository, without those of examples, tests and development."""
    found = [path for path in files if _DOCKERFILE.fullmatch(path.rpartition("/")[2]) and not _ASIDE.search(path)]
    return tuple(found)


def _of_dockerfile(folder: Path, files: Sequence[str], name: str) -> tuple[FoundService, ...]:
    """Return the one service of a repository whose compose files build nothing: of the Dockerfile at its top, or of the only one."""
    found = _dockerfiles(files)
    production = [path for path in found if ".prod" in path.lower()]
    path = next((path for path in (["Dockerfile"] if "Dockerfile" in found else [], found, production) if len(path) == 1), [""])[0]
    content = model.read_text(folder, path) if path else None
    image = dockerfile.image(content, None) if content is not None else None
    if image is None:
        return ()
    below, _, file = path.rpartition("/")
    apart = below.rpartition("/")[2] in _FOLDERS_OF_DOCKERFILES
    service = replace(
        compose.of_image(compose.identifier(name, "_"), image),
        context="." if apart else below or ".",
        dockerfile=path if apart else file,
        source=path if below else "the Dockerfile",
    )
    marks = {"context": "the folder that its COPY lines start from"} if apart else {}
    return (replace(service, marks=marks),)


def _with_routes(services: Sequence[FoundService], files: Sequence[str]) -> tuple[FoundService, ...]:
    """Return the services with the paths of files that are named like them, as Next has them: ``app/api/health/route.ts``, ``live``."""
    return tuple(_with_route(service, files) if _may_have_route(service, services) else service for service in services)


def _may_have_route(service: FoundService, services: Sequence[FoundService]) -> bool:
    alone = not any(other.context == service.context for other in services if other is not service and other.kind == WEB)
    return service.kind == WEB and alone


def _with_route(service: FoundService, files: Sequence[str]) -> FoundService:
    below = "" if service.context == "." else f"{service.context}/"
    routes = {route: path for path in files if path.startswith(below) and (route := _route_of(path))}
    live = [route for route in routes if _LIVE.search(route) and route != service.health_path]
    health = [route for route in routes if route not in live] or [route for route in live if route.endswith("z")]
    found: dict[str, str] = {}
    if service.health_path is None and len(health) == 1:
        found["health_path"] = health[0]
    if len(live) == 1 and found.get("health_path", service.health_path) not in {None, live[0]}:
        found["liveness_path"] = live[0]
    sources = service.sources | {key: routes[route] for key, route in found.items()}
    return replace(service, **found, sources=sources)  # type: ignore[arg-type] # found has paths only


def _route_of(path: str) -> str | None:
    """Return the address of a file's route, when it is called like a health endpoint; groups, such as ``(internal)``, are no part of it."""
    match = _ROUTE.search(path)
    if match is None:
        return None
    return "/" + re.sub(r"\([^/()]*\)/", "", match["app"] or match["pages"])


# --- what git knows -------------------------------------------------------------------------------------------------------


def _is_untracked(folder: Path, path: str) -> bool:
    """Say whether git does not track a file, as one that is ignored; so it is as well where git does not say."""
    if not regular(folder, path) or not (folder / ".git").exists():
        return False
    listed = _asked(folder, "--literal-pathspecs", "ls-files", "--others", "--", path)
    return listed is None or bool(listed)


def _git(folder: Path, *arguments: str) -> str:
    return _asked(folder, *arguments) or ""


def _asked(folder: Path, *arguments: str) -> str | None:
    no_programs = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")  # which the repository's own .git/config may name
    return programs.run(["git", *no_programs, "-C", str(folder.resolve()), *arguments])


def _origin(folder: Path) -> str:
    """Return ``owner/name`` of the repository's origin on GitHub; nothing when it is elsewhere."""
    match = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", _git(folder, "config", "--get", "remote.origin.url").strip())
    return match[1] if match else ""


def _tags(folder: Path) -> tuple[str, ...]:
    return tuple(_git(folder, "for-each-ref", "--sort=-creatordate", "--count=3", "--format=%(refname:strip=2)", "refs/tags").split())


def _registry(read: _Read, origin: str) -> tuple[str | None, str]:
    """Return where images go, and what says so: the images that services with a build are called, or else the origin's own registry."""
    found = dict.fromkeys(
        repository
        for service in read.model.services.values()
        if service.get("build") and (repository := _repository(read.model.plain(service.get("image")) or ""))
    )
    if len(found) == 1:
        return next(iter(found)), f"as images are called in {read.model.files[0]}"
    return (f"ghcr.io/{origin.lower()}", "the registry of the repository's origin") if origin else (None, "")


def _repository(image: str) -> str | None:
    """Return registry and namespace of an image, ``ghcr.io/acme`` of ``ghcr.io/acme/web:1``; None of one that names no registry."""
    host, _, path = image.partition("@")[0].partition("/")
    repository = f"{host}/{path}".rpartition("/")[0]
    named = "." in host and not re.fullmatch(r"[\d.]+(?::\d+)?", host)
    return repository if path and named and _REPOSITORY.fullmatch(repository) else None
