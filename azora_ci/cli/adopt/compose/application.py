"""All services of a compose model that are built here -> the services of a configuration, and what is left out with the reason."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.compose import dockerfile, endpoints
from azora_ci.cli.adopt.compose import kind as kinds
from azora_ci.cli.adopt.compose import service as reading
from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.environment import Environment, environment, named, pairs
from azora_ci.cli.adopt.compose.found import JOB, WEB, WORKER, FoundService
from azora_ci.cli.adopt.compose.kind import Kind, Signs
from azora_ci.cli.adopt.compose.merge import as_build, as_list, as_mapping
from azora_ci.cli.adopt.compose.model import UNKNOWN, Model
from azora_ci.cli.adopt.migrations import migrators
from azora_ci.core.config.names import EDGE_VOLUME, NETWORK

_DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # what Docker takes as the name of a volume or network


@dataclass(frozen=True)
class Part:
    """A service that is deployed, in the middle of being read."""

    id: str
    name: str
    service: Mapping[str, Any]
    image: reading.Image
    env: Environment
    ports: Sequence[int]
    health: tuple[int | None, str | None, str]
    kind: Kind = Kind(WEB)


@dataclass(frozen=True)
class Read:
    """The services of a configuration, and ``left_out``: compose service, or a part of one -> the reason that it is not deployed."""

    services: tuple[FoundService, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def identifier(value: str, joint: str, taken: Iterable[str] = ()) -> str:
    """Return a name of lower case letters, digits and ``joint`` that starts with a letter, has at most 31 characters and is not taken."""
    plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    cleaned = re.sub(r"[^a-z0-9]+", joint, plain.lower()).strip(joint)
    base = (cleaned if cleaned[:1].isalpha() else f"app{joint}{cleaned}")[:31].rstrip(joint)
    candidates = [base, *(f"{base[:27].rstrip(joint)}{joint}{number}" for number in range(2, 1000))]
    return next(candidate for candidate in candidates if candidate not in set(taken))


def of_image(name: str, image: dockerfile.Image) -> FoundService:
    """Return the service of a Dockerfile that no compose file speaks about."""
    port, path = endpoints.asked(image.health or "", name, {})
    where = "HEALTHCHECK of the Dockerfile"
    sources = {"health_path": where} if path else {}
    if path and port:
        sources["port"] = where
    elif image.ports:
        port, sources["port"] = image.ports[0], "EXPOSE of the Dockerfile"
    return FoundService(name, ".", "Dockerfile", source="the Dockerfile", starts=image.starts, port=port, health_path=path, sources=sources)


def read(root: Path, model: Model, profiles: Sequence[str], own: Iterable[str], own_images: Collection[str] = ()) -> Read:
    """Return what a compose model deploys. ``profiles``: those that are chosen; ``own``: names of variables that azora-ci reads itself;
    ``own_images``: what images of this repository are called, which its Dockerfile builds where no compose file says how.
    """
    left_out: dict[str, str] = {}
    parts: list[Part] = []
    images = _images(model) or _own_image(root, model, own_images)
    for name, service in model.services.items():
        try:
            image = _built(root, service, model, profiles, images)
        except reading.LeftOutError as reason:
            left_out[name] = str(reason)
            continue
        env = environment(root, service, model)
        part_id = identifier(name, "_", [part.id for part in parts])
        ports = reading.published(service, env, model)
        parts.append(Part(part_id, name, service, image, env, ports, reading.asked_of(name, service, image, env, model)))
    parts = _with_kinds(parts, model)
    secrets = named({part.id: part.env.secrets for part in parts}, frozenset(own))
    services = _without_circles([_found(part, parts, model, secrets[part.id]) for part in parts])
    left_out |= {f"{service.id}: {what}": reason for service in services for what, reason in service.left.items()}
    return Read(tuple(services), left_out)


def _images(model: Model) -> dict[str, Mapping[str, Any]]:
    """Return image -> build of the services that name both: what another service runs from such an image is built here, too."""
    built = ((model.plain(service.get("image")), service.get("build")) for service in model.services.values())
    return {image: as_build(build) for image, build in built if image and build}


def _own_image(root: Path, model: Model, names: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Return the image that is called like this repository, with the build of the Dockerfile at its top; nothing when there is none."""
    if any(service.get("build") for service in model.services.values()) or not (root / "Dockerfile").is_file():
        return {}
    images = [model.plain(service.get("image")) or "" for service in model.services.values()]
    return {image: {"context": "."} for image in images if re.split("[:@]", image.rpartition("/")[2])[0] in names}


def _built(
    root: Path, service: Mapping[str, Any], model: Model, profiles: Sequence[str], images: Mapping[str, Mapping[str, Any]]
) -> reading.Image:
    build, image = service.get("build"), model.plain(service.get("image"))
    needed = [text(profile) for profile in as_list(service.get("profiles"))]
    if not build and image not in images:
        raise reading.LeftOutError(f"not built here (image {re.sub(r'^[^/@]*@', '', image or 'unknown')})")
    if needed and not {"*", *needed} & set(profiles):
        raise reading.LeftOutError(f"only with the profile {' or '.join(needed)}: adopt with --profile {needed[0]}")
    if reading.replicas(service, model) == 0:
        raise reading.LeftOutError("it has 0 replicas")
    described = reading.image_of(root, service, as_build(build) if build else images[image or ""], model)
    started = described.says.starts if described.says else ""
    reached = any(service.get(key) for key in ("ports", "expose", "labels", "healthcheck"))
    if migrators.only_migrates(_command(service, model) or started) and not reached:
        raise reading.LeftOutError("its command applies migrations: the job database-migrations does that, after the backup")
    return described


def _command(service: Mapping[str, Any], model: Model) -> str:
    return " ".join(word for key in ("entrypoint", "command") for word in reading.words(service.get(key), model) or ())


def _with_kinds(parts: Sequence[Part], model: Model) -> list[Part]:
    """Return the parts with their kinds; there is always one that takes requests, marked when nothing says which."""
    decided = [replace(part, kind=kinds.decide(_signs(part, parts, model))) for part in parts]
    if decided and not any(part.kind.kind == WEB for part in decided):
        first = next((part for part in decided if part.kind.kind == WORKER and not part.kind.singleton), decided[0])
        mark = "no service has a port, and one has to take requests: is it this one?"
        decided = [replace(part, kind=Kind(WEB, mark=mark)) if part is first else part for part in decided]
    return decided


def _signs(part: Part, parts: Sequence[Part], model: Model) -> Signs:
    own_command = bool(part.service.get("command") or part.service.get("entrypoint"))
    host = re.compile(rf"(?:https?|wss?)://{re.escape(part.name)}(?::\d+)?(?=$|/)")
    waiting = [other.name for other in parts if _waits_for_end(other.service, part.name)]
    waiting += [other for other, service in model.services.items() if other not in waiting and _waits_for_end(service, part.name)]
    labels = [label for label, _ in pairs(part.service.get("labels"))]
    return Signs(
        name=part.name,
        command=_command(part.service, model),
        published=bool(part.ports)
        or reading.has_unknown_port(part.service, model)
        or any(label.endswith((".rule", ".loadbalancer.server.port")) for label in labels),
        exposed=bool(part.image.says and part.image.says.ports) and not own_command,
        asked=part.health[1] is not None and not (own_command and part.health[2].startswith("HEALTHCHECK")),
        called=any(host.search(value) for other in parts if other is not part for value in other.env.values.values()),
        restart=reading.restart(part.service, model),
        awaited_by=waiting,
        alone=len(parts) == 1,
    )


def _waits_for_end(service: Mapping[str, Any], name: str) -> bool:
    condition = as_mapping(service.get("depends_on")).get(name)
    return isinstance(condition, dict) and condition.get("condition") == "service_completed_successfully"


def _found(part: Part, parts: Sequence[Part], model: Model, secrets: Mapping[str, str]) -> FoundService:
    """Return the service of a configuration. Only what is known is in it: the renderer marks what is needed and missing."""
    service, decided = part.service, part.kind
    ids = {other.name: other for other in parts}
    marks: dict[str, str] = {}
    sources: dict[str, str] = {"kind": decided.source, "when": decided.when_source}
    left = part.image.left | part.env.left | dict(reading.not_carried(service, model))
    port, health_path = _port_and_path(part, sources)
    if decided.kind == WEB and health_path and port and reading.listed_ports(service, model) and port != part.ports[0]:
        marks["port"] = f"its health is asked at {port}, and requests come in at {part.ports[0]}: one port has to do both"
        port = part.ports[0]
    mounts = reading.mounts(service, model)
    left |= mounts.left
    commands = _commands(service, model, left)
    callees = {other.name: other.id for other in parts if other is not part and other.kind.kind == WEB}
    rewritten, calling = reading.calls(part.env.values, callees)
    if rewritten:
        sources["talks_to"] = f"named by {', '.join(calling)}, there without a port: the edge leads to the caller's own version"
    if part.env.example:
        marks["env"] = f"the values are those of {part.env.example}"
    marks |= {"kind": decided.mark} if decided.mark else {}
    marks |= {"when": decided.when_mark} if decided.when_mark else {}
    supports = tuple(other for other in model.services if other not in ids and _is_named(other, service, part.env))
    prefix = reading.prefix_of(service, model)
    singleton = decided.kind == WORKER and decided.singleton
    says = part.image.says
    return FoundService(
        id=part.id,
        context=part.image.context,
        dockerfile=part.image.dockerfile,
        source=f"service {part.name}",
        starts=says.starts if says else "",
        kind=decided.kind,
        port=port,
        health_path=health_path,
        liveness_path=None,  # no compose file tells it
        route_prefix=prefix,
        memory=reading.memory_limit(service, model),
        instances=_instances(part, singleton, model),
        singleton=singleton,
        when=decided.when,
        env=part.env.values | rewritten,
        secrets=dict(secrets),
        depends_on=tuple(ids[other].id for other in as_mapping(service.get("depends_on")) if _precedes(ids.get(other), part)),
        talks_to=tuple(dict.fromkeys(calling.values())),
        supports=supports,
        networks=_networks(supports, model),
        volumes=_volumes(mounts, model, sources, marks, left),
        stop_grace_seconds=reading.seconds(model.plain(service.get("stop_grace_period"))),
        cap_drop=tuple(name for name in map(text, as_list(service.get("cap_drop"))) if re.fullmatch("[A-Z_]+", name)),
        read_only=service.get("read_only") is True,
        build=part.image.build,
        sources={key: value for key, value in sources.items() if value},
        marks=marks,
        left=left,
        entrypoint=commands.get("entrypoint", ()),
        command=commands.get("command", ()),
    )


def _without_circles(services: Sequence[FoundService]) -> list[FoundService]:
    """Return the services without what would have two of them wait for one another, which is named."""
    above: dict[str, set[str]] = {}
    result = []
    for service in services:
        kept = [other for other in service.depends_on if service.id not in _all_above(other, above)]
        dropped = {f"depends_on {other}": "they would wait for one another" for other in service.depends_on if other not in kept}
        above[service.id] = set(kept)
        result.append(replace(service, depends_on=tuple(kept), left=service.left | dropped))
    return result


def _all_above(service: str, above: Mapping[str, set[str]]) -> set[str]:
    reached, waiting = set(), [service]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting += above.get(current, ())
    return reached


def _precedes(other: Part | None, part: Part) -> bool:
    return other is not None and other is not part and JOB not in {other.kind.kind, part.kind.kind}


def _instances(part: Part, singleton: bool, model: Model) -> int | None:
    count = reading.replicas(part.service, model)
    return None if singleton or part.kind.kind == JOB or count is None or count > 100 else count


def _port_and_path(part: Part, sources: dict[str, str]) -> tuple[int | None, str | None]:
    """Return port and health path of a service that is asked: a web service, or a worker with a health check over HTTP."""
    asked_port, path, where = part.health
    of_image = part.image.says.ports if part.image.says else ()
    port = asked_port if path is not None and asked_port else next(iter([*part.ports, *of_image]), None)
    if part.kind.kind == JOB or (part.kind.kind == WORKER and (path is None or port is None)):
        return None, None
    if path is not None:
        sources["health_path"] = where
    if path is not None and asked_port:
        sources["port"] = where
    elif port is not None:
        sources["port"] = "PORT" if str(port) == part.env.port else "its ports" if part.ports else "EXPOSE of its Dockerfile"
    return port, path


def _commands(service: Mapping[str, Any], model: Model, left: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Return what replaces the image's ENTRYPOINT and CMD, as far as it is known."""
    found: dict[str, tuple[str, ...]] = {}
    for key in ("entrypoint", "command"):
        value = reading.words(service.get(key), model)
        if value is None or "" in value or (not value and service.get(key) is not None):
            left[key] = f"is not carried over: it {UNKNOWN}"
        elif value:
            found[key] = value
    return found


def _is_named(name: str, service: Mapping[str, Any], env: Environment) -> bool:
    """Say whether a value of an environment has a service as its host: ``redis``, ``redis:6379``, ``http://search:7700/x``, ``…@db/…``."""
    host = re.compile(rf"(?:^|//|@|,){re.escape(name)}(?=$|[:/,])")
    values = [*env.values.values(), *(wanted.expression for wanted in env.secrets.values())]
    return any(host.search(value) for value in [*values, *(value or "" for _, value in pairs(service.get("environment")))])


def _networks(supports: Sequence[str], model: Model) -> tuple[str, ...]:
    """Return the Docker networks that hold services which are not built here, when the compose files say what they are called there."""
    found = []
    for other in supports:
        for name in list(as_mapping(model.services[other].get("networks"))) or ["default"]:
            known = _real_name(name, model.networks.get(name), model)
            if known is None:
                return ()
            found.append(known)
    return tuple(name for name in dict.fromkeys(found) if NETWORK.fullmatch(name))


def _real_name(name: str, declared: Any, model: Model) -> str | None:
    """Return what Docker calls a volume or network; None where that is not known, or no name that Docker takes."""
    found = _compose_name(name, declared, model)
    return found if found is not None and _DOCKER_NAME.fullmatch(found) else None


def _compose_name(name: str, declared: Any, model: Model) -> str | None:
    """Return its own ``name``, itself when it is external, else one behind the project's name."""
    table = declared if isinstance(declared, dict) else {}
    own = model.plain(table.get("name"))
    if own or table.get("name") is not None:
        return own
    if table.get("external"):
        external = table["external"]
        return (model.plain(external.get("name")) if isinstance(external, dict) else None) or name
    return f"{model.name}_{name}" if model.name else None


def _volumes(mounts: reading.Mounts, model: Model, sources: dict[str, str], marks: dict[str, str], left: dict[str, str]) -> tuple[str, ...]:
    volumes = []
    for name, place in mounts.named:
        real = _real_name(name, model.volumes.get(name), model)
        if EDGE_VOLUME.fullmatch(real or name):
            left[f"volume {real or name}:{place}"] = "an edge's own volume is called like that: give this one another name"
            continue
        if real is None:
            marks["volumes"] = "as docker volume ls names them: compose put its project's name in front"
        volumes.append(f"{real or name}:{place}")
    if volumes and "volumes" not in marks:
        sources["volumes"] = "as compose names them"
    return tuple(dict.fromkeys(volumes))
