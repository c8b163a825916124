"""Discover an application from the files of its repository: services of its compose file, Prisma, build commands. Writes nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt import toolchain
from azora_ci.cli.adopt.toolchain import FoundToolchain
from azora_ci.core.config import names
from azora_ci.core.documents import Limits, UnreadableError, read_file
from azora_ci.core.errors import BadInputError

COMPOSE_FILES = (
    "docker-compose.production.yml",
    "docker-compose.prod.yml",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
)
NOT_OURS = frozenset({"node_modules", ".git", "dist", "build", "vendor", ".next"})  # folders that hold other people's files
_SECRET_NAME = re.compile(r"(?:^|_)(?:SECRET|PASSWORD|PASSWD|PASS|PWD|TOKEN|CREDENTIAL|KEY|APIKEY|DSN)S?(?:_|$)")
_HEALTH_URL = re.compile(r"https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::([0-9]+))?(/[^\s\"'|;&?#]*)?")


@dataclass(frozen=True)
class FoundService:
    """A service of the compose file that is built from this repository."""

    id: str
    context: str
    dockerfile: str
    port: int | None
    health_path: str | None
    memory: str | None
    instances: int | None
    env: dict[str, str]
    secrets: tuple[str, ...]
    depends_on: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)  # variable or volume that it may not have -> reason
    talks_to: tuple[str, ...] = ()  # ids of services that its environment names
    supports: tuple[str, ...] = ()  # names of services in its environment that are not built here, such as a cache
    volumes: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    read_only: bool = False
    build: dict[str, Any] = field(default_factory=dict)  # target and args of its image

    @property
    def title(self) -> str:
        """Return a name for people, ``API Gateway``."""
        return " ".join(word.upper() if word in {"api", "lms", "ui"} else word.capitalize() for word in self.id.split("_"))


@dataclass(frozen=True)
class Application:
    """What was discovered. ``left_out``: compose service that is not built here (a database, a cache) -> reason."""

    name: str
    compose_file: str | None = None
    services: tuple[FoundService, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    toolchain: FoundToolchain = FoundToolchain()
    build_script: bool = False
    prisma: tuple[str, ...] = ()
    prisma_dependency: bool = False


def discover(folder: Path) -> Application:
    """Return the application of a repository. Raises BadInputError for a compose file or package.json that cannot be read."""
    package = _package(folder)
    compose = next((name for name in COMPOSE_FILES if (folder / name).is_file()), None)
    services, left_out = _compose(folder / compose) if compose else ((), {})
    dependencies = {**_mapping(package.get("dependencies")), **_mapping(package.get("devDependencies"))}
    return Application(
        name=_identifier(str(package.get("name") or folder.resolve().name).rsplit("/", 1)[-1], "-"),
        compose_file=compose,
        services=services,
        left_out=left_out,
        toolchain=toolchain.discover(folder, package),
        build_script="build" in _mapping(package.get("scripts")),
        prisma=tuple(_prisma_folders(folder, package)),
        prisma_dependency=bool({"prisma", "@prisma/client"} & dependencies.keys()),
    )


def _package(folder: Path) -> dict[str, Any]:
    path = folder / "package.json"
    if not path.is_file():
        return {}
    try:
        document = read_file(path, Limits(unique_keys=False))  # npm takes the last of two
    except UnreadableError as error:
        raise BadInputError(
            "package.json is not read", what=str(error), where=str(path), next_step="correct it, then adopt again"
        ) from error
    return document if isinstance(document, dict) else {}


def _identifier(text: str, joint: str) -> str:
    """Return a name of lower case letters, digits and ``joint`` that starts with a letter and has at most 31 characters."""
    cleaned = re.sub(r"[^a-z0-9]+", joint, text.lower()).strip(joint)
    return (cleaned if cleaned[:1].isalpha() else f"app{joint}{cleaned}")[:31].rstrip(joint)


def _prisma_folders(folder: Path, package: dict[str, Any]) -> Iterable[str]:
    """Yield folders of Prisma migrations: next to the schema that package.json names, or else next to every schema.prisma."""
    named = package.get("prisma", {}).get("schema") if isinstance(package.get("prisma"), dict) else None
    schemas = [folder / named] if isinstance(named, str) else sorted(folder.glob("**/schema.prisma"))
    for schema in schemas:
        relative = schema.relative_to(folder)
        if schema.is_file() and not NOT_OURS & set(relative.parts):
            yield (relative.parent / "migrations").as_posix()


# --- compose ------------------------------------------------------------------------------------------------------------


def _compose(path: Path) -> tuple[tuple[FoundService, ...], dict[str, str]]:
    import yaml

    from azora_ci.steps.job import own_variables

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        services: dict[str, dict[str, Any]] = {name: service or {} for name, service in document["services"].items()}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            "Compose file cannot be read",
            what=f"it has no mapping of services: {type(error).__name__} {error}",
            where=str(path),
            next_step="correct it, or move it away: services can also be written into the configuration by hand",
        ) from error
    built = {name: service for name, service in services.items() if "build" in service}
    left_out = {name: f"not built here (image {services[name].get('image', 'unknown')})" for name in services if name not in built}
    own = own_variables()
    discovered = [_service(name, service, services, own) for name, service in built.items()]
    taken = {f"{service.id}: {name}": reason for service in discovered for name, reason in service.refused.items()}
    return tuple(discovered), left_out | taken


def _service(name: str, service: dict[str, Any], services: Mapping[str, dict[str, Any]], own: Collection[str]) -> FoundService:
    build = service["build"] if isinstance(service["build"], dict) else {"context": str(service["build"])}
    health_port, health_path = _health(service.get("healthcheck"))
    env, named = _environment(service.get("environment"))
    reason = "azora-ci or the runner reads a variable of that name: give the service's another one"
    refused = {secret: reason for secret in named if not names.may_be_secret(secret, own)}
    refused |= {variable: reason for variable in env if variable in names.OWN_SECRETS}
    volumes, host_paths = _volumes(service.get("volumes"))
    refused |= dict.fromkeys(host_paths, "a path of the host: name it in volumes and allow_host_paths, where the service must have it")
    called = [other for other in services if other != name and _is_named(other, service.get("environment"))]
    limits = _mapping(_mapping(_mapping(service.get("deploy")).get("resources")).get("limits"))
    replicas = _mapping(service.get("deploy")).get("replicas")
    return FoundService(
        id=_identifier(name, "_"),
        context=Path(str(build.get("context", "."))).as_posix(),
        dockerfile=str(build.get("dockerfile", "Dockerfile")),
        port=health_port or _port(service.get("ports"), service.get("expose")),
        health_path=health_path,
        memory=_memory(service.get("mem_limit") or limits.get("memory")),
        instances=replicas if isinstance(replicas, int) and replicas > 0 else None,
        env={variable: value for variable, value in env.items() if variable not in refused},
        secrets=tuple(secret for secret in named if secret not in refused),
        refused=refused,
        depends_on=tuple(_identifier(other, "_") for other in service.get("depends_on") or () if "build" in services.get(other, {})),
        talks_to=tuple(_identifier(other, "_") for other in called if "build" in services[other]),
        supports=tuple(other for other in called if "build" not in services[other]),
        volumes=volumes,
        cap_drop=tuple(capability for capability in _list(service.get("cap_drop")) if re.fullmatch("[A-Z_]+", str(capability))),
        read_only=service.get("read_only") is True,
        build=_build(build),
    )


def _is_named(service: str, environment: object) -> bool:
    """Say whether a value of an environment has a service as its host: ``redis``, ``redis:6379``, ``http://auth:3001/x``, ``…@db/…``."""
    host = re.compile(rf"(?:^|//|@|,){re.escape(service)}(?=$|[:/,])")
    return any(host.search(str(value)) for _, value in _pairs(environment))


def _volumes(value: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the named volumes of a service, and those that are paths of the host. Anonymous ones are left out."""
    texts = [
        f"{volume.get('source', '')}:{volume.get('target', '')}{':ro' if volume.get('read_only') else ''}"
        if isinstance(volume, dict)
        else str(volume)
        for volume in _list(value)
    ]
    named = tuple(text for text in texts if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*:/[^:]*(:ro)?", text))
    return named, tuple(text for text in texts if re.match(r"[./~$].*:", text))


def _build(build: dict[str, Any]) -> dict[str, Any]:
    """Return the stage and the literal arguments of an image; what is substituted or sounds like a secret is not copied."""
    args, _ = _environment(build.get("args"))
    target = {"target": build["target"]} if isinstance(build.get("target"), str) else {}
    return target | ({"args": args} if args else {})


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _health(check: object) -> tuple[int | None, str | None]:
    test = _mapping(check).get("test")
    url = _HEALTH_URL.search(" ".join(map(str, test)) if isinstance(test, list) else str(test or ""))
    if url is None:
        return None, None
    return int(url[1]) if url[1] else None, url[2]


def _port(ports: object, expose: object) -> int | None:
    """Return the container's port of the first mapping: ``"4000:4000/tcp"``, ``{target: 4000}``, or the first exposed one."""
    for mapping in [*(ports if isinstance(ports, list) else []), *(expose if isinstance(expose, list) else [])]:
        text = str(mapping.get("target", "")) if isinstance(mapping, dict) else str(mapping).split("/")[0].rsplit(":", 1)[-1]
        if text.isdigit():
            return int(text)
    return None


def _memory(value: object) -> str | None:
    size = re.fullmatch(r"([0-9]+)([kmg])(?:i?b)?", str(value or "").lower())
    return f"{size[1]}{size[2]}" if size else None


def _environment(value: object) -> tuple[dict[str, str], tuple[str, ...]]:
    """Split an environment into literal values and names of secrets. PORT is left out: the target sets it.

    A value that is substituted (``${X}``), missing, or that holds credentials is a secret; it is not copied.
    """
    env: dict[str, str] = {}
    secrets: list[str] = []
    for name, raw in _pairs(value):
        text = "" if raw is None else str(raw).lower() if isinstance(raw, bool) else str(raw)
        if name == "PORT" or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            continue
        if not text or "$" in text or _SECRET_NAME.search(name.upper()) or re.search(r"://[^/\s]*:[^/\s]*@", text):
            secrets.append(name.upper())
        else:
            env[name] = text
    return env, tuple(secrets)


def _pairs(value: object) -> Iterable[tuple[str, Any]]:
    """Return the variables of an environment, which is a mapping or a list of ``NAME=value``."""
    if isinstance(value, dict):
        return value.items()
    return [(name, text) for name, _, text in (str(line).partition("=") for line in _list(value))]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
