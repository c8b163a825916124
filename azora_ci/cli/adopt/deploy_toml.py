"""Render a first ``.github/deploy-production.toml`` for a discovered application. Pure; guesses are marked to be filled in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from azora_ci.cli.adopt.discover import Application, FoundService
from azora_ci.cli.adopt.toolchain import EXAMPLES, FoundToolchain
from azora_ci.gates.readiness import FILL_IN, NO_DIGEST

DEFAULT_PORT = 8080
_WIDTH = 44  # column of the comments


def render(application: Application) -> str:
    """Return the text of the configuration. Lines that end in ``# fill in: …`` hold guesses or examples."""
    public_url = f"https://{application.name}.example"
    services = application.services or (_example_service(),)
    parts = [_head(application, public_url), _gates(application), _data(application), _smoke(public_url)]
    parts += [_service(service, public_url, services, listed=bool(application.services)) for service in services]
    return "\n\n".join(parts) + "\n"


def _toml(value: object) -> str:
    """Return a value as TOML: texts, whole numbers, truth, lists and flat tables (JSON's escapes are TOML's)."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _line(name: str, value: object, comment: str = "") -> str:
    text = f"{name} = {_toml(value)}"
    return f"{text:<{_WIDTH}}{comment}" if comment and len(text) < _WIDTH else f"{text}  {comment}".rstrip()


def _fill(name: str, value: object, hint: str) -> str:
    return _line(name, value, f"{FILL_IN}: {hint}")


def _table(name: str, lines: Iterable[str]) -> str:
    return "\n".join([f"[{name}]", *lines])


def _head(application: Application, public_url: str) -> str:
    return "\n".join(
        [
            "# What is deployed where. Every key is described in azora-ci's schemas/deploy-config.schema.json; unknown keys are refused.",
            f"# A line with `{FILL_IN}` holds a guess: correct it and remove the comment.",
            _line("schema_version", 1),
            _line("application", application.name),
            _fill("public_url", public_url, "the public address"),
            _fill("on_call", "#on-call on Slack", "how the on-call engineer is reached"),
        ]
    )


def _gates(application: Application) -> str:
    toolchain = application.toolchain
    build = [toolchain.install, (toolchain.name, "run", "build")] if application.build_script else [toolchain.install]
    certain = toolchain.manager is not None and application.build_script
    commands = _line if certain else lambda name, value: _fill(name, value, "the commands of the production build")
    checks = [
        _fill("required", [], "names of checks of a release commit; empty is refused unless a ruleset names some"),
        _line("rulesets", True, "# and what the default branch's rulesets require"),
        commands("build", build),
    ]
    no_lock = "the security audit reads lock files, and none was found: commit one, or write none and a line reason"
    audit = [_line("level", "high") if toolchain.lock_file else _fill("level", "high", no_lock)]
    registry = [_fill("repository", f"docker.io/{application.name}", "registry and namespace of the images")]
    tables = [_table("checks", checks), _table("validation.audit", audit), *_toolchain(toolchain)]
    return "\n\n".join([*tables, _table("build", [commands("commands", build)]), _table("registry", registry)])


def _toolchain(toolchain: FoundToolchain) -> list[str]:
    """Return the table of what commands need on a runner; none for an application without packages. npm comes with Node.js."""
    if toolchain.manager is None and toolchain.node is None:
        return []
    node = _line("node", toolchain.node) if toolchain.node else _fill("node", "22", "the version of Node.js that the application runs on")
    lines = [node]
    if toolchain.version:
        lines.append(_line("package_manager", f"{toolchain.manager}@{toolchain.version}"))
    elif toolchain.name != "npm":
        lines.append(_fill("package_manager", f"{toolchain.name}@{EXAMPLES[toolchain.name]}", "its exact version; no file names one"))
    return [_table("toolchain", lines)]


def _data(application: Application) -> str:
    folders = application.prisma
    migrations = (
        _line("migrations_dir", folders[0])
        if len(folders) == 1
        else _fill("migrations_dir", folders[0], f"one of {', '.join(folders)}")
        if folders
        else _fill("migrations_dir", "prisma/migrations", "the folder of Prisma's migrations; none was found")
    )
    install = _line("prepare", [list(application.toolchain.install)])
    database = [install, _line("migrate", [*application.toolchain.execute, "prisma", "migrate", "deploy"]), migrations]
    backup = [_fill("location", f"s3://{application.name}-backups/prod", "bucket and prefix; records are archived beside it")]
    return "\n\n".join([_table("database", database), _table("backup", backup), _hosts()])


def _hosts() -> str:
    pinned = "pinned by digest, as crane digest prints it"
    images = [
        _fill("edge_image", f"docker.io/envoyproxy/envoy@{NO_DIGEST}", f"Envoy, {pinned}"),
        _fill("guard_image", f"docker.io/library/python@{NO_DIGEST}", f"Python 3.11 or newer, {pinned}"),
    ]
    return "\n\n".join([_table("target", [_line("kind", "docker_hosts")]), _table("target.docker_hosts", images)])


def _smoke(public_url: str) -> str:
    hint = "what must answer when a deployment is done; at least one"
    return _table("smoke", [_fill("endpoints", [{"name": "front page", "url": f"{public_url}/"}], hint)])


def _example_service() -> FoundService:
    return FoundService(
        id="app",
        context=".",
        dockerfile="Dockerfile",
        port=None,
        health_path=None,
        memory=None,
        instances=None,
        env={},
        secrets=("PROD_DATABASE_URL",),
        depends_on=(),
    )


def _service(service: FoundService, public_url: str, services: Sequence[FoundService], *, listed: bool) -> str:
    prefix = "/" if len(services) == 1 else f"/{service.id.removesuffix('_service').replace('_', '-')}"
    health = service.health_path or "/health"
    public = public_url + (health if prefix == "/" or health.startswith(f"{prefix}/") else prefix + health)
    lines = [
        _line("title", service.title) if listed else _fill("title", service.title, "no compose file was found; one table for each service"),
        _fill("route_prefix", prefix, "the path prefix that the edge sends here"),
        _line("health_path", health) if service.health_path else _fill("health_path", health, "the health endpoint of an instance"),
        _fill("public_health_url", public, "the same endpoint as the public reaches it"),
        _line("port", service.port) if service.port else _fill("port", DEFAULT_PORT, "the port inside the container"),
        _line("context", service.context),
        _line("dockerfile", service.dockerfile),
    ]
    optional = {name: getattr(service, name) for name in ("instances", "memory", "env", "secrets", "depends_on")}
    lines += [_line(name, value) for name, value in optional.items() if value]
    lines += _surroundings(service)
    tables = [_table(f"services.{service.id}", lines)]
    if service.build:
        tables.append(_table(f"services.{service.id}.build", [_line(name, value) for name, value in service.build.items()]))
    return "\n\n".join(tables)


def _surroundings(service: FoundService) -> list[str]:
    """Return the lines about what a container reaches and may do: each has a network of its own."""
    lines = []
    if service.talks_to:
        addresses = ", ".join(f"http://{callee.replace('_', '-')}" for callee in service.talks_to)
        lines.append(_fill("talks_to", service.talks_to, f"env must call {addresses}, without a port; remove what it does not call"))
    if service.supports:
        supports = ", ".join(service.supports)
        lines.append(_fill("networks", [], f"the hosts' Docker networks that hold {supports}; none where its address is another one"))
    if service.volumes:
        lines.append(_fill("volumes", service.volumes, "as docker volume ls names them: compose put its project's name in front"))
    lines += [_line("cap_drop", service.cap_drop)] if service.cap_drop else []
    return lines + ([_line("read_only", True)] if service.read_only else [])
