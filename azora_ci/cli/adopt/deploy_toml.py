"""Render a first ``.github/deploy-production.toml`` for a discovered application. Pure; guesses are marked to be filled in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from azora_ci.cli.adopt.compose.found import WEB, FoundRollout, FoundService
from azora_ci.cli.adopt.discover import KUBERNETES, Application
from azora_ci.cli.adopt.kubernetes.found import Cluster
from azora_ci.cli.adopt.migrations.prisma import Prisma
from azora_ci.cli.adopt.toolchain import EXAMPLES, FoundToolchain
from azora_ci.gates.readiness import FILL_IN, NO_DIGEST

DEFAULT_PORT = 8080
_WIDTH = 44  # column of the comments
_OPTIONAL = (
    "when",
    "singleton",
    "entrypoint",
    "command",
    "instances",
    "memory",
    "stop_grace_seconds",
    "env",
    "secrets",
    "depends_on",
    "talks_to",
    "networks",
    "volumes",
    "cap_drop",
    "read_only",
)


def render(application: Application) -> str:
    """Return the text of the configuration. Lines that end in ``# fill in: …`` hold guesses or examples."""
    services = application.services or (_example_service(application),)
    web = [service for service in services if service.kind == WEB]
    on_cluster = application.target == KUBERNETES
    parts = [_head(application), _gates(application), _data(application), _smoke(web[0])]
    parts += [_service(service, web, with_containers=not on_cluster) for service in services]
    parts += _rollouts(services) if on_cluster else []
    return "\n\n".join(parts) + "\n"


def _toml(value: object) -> str:
    """Return a value as TOML: texts, whole numbers, truth, lists and flat tables (JSON's escapes are TOML's)."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(name: str, value: object, comment: str = "") -> str:
    text, comment = f"{name} = {_toml(value)}", _one_line(comment)
    return f"{text:<{_WIDTH}}{comment}" if comment and len(text) < _WIDTH else f"{text}  {comment}".rstrip()


def _one_line(comment: str) -> str:
    """Return a comment that ends where its line does, whatever names of files and services are in it."""
    return "".join(letter if letter.isprintable() else "?" for letter in comment)


def _fill(name: str, value: object, hint: str) -> str:
    return _line(name, value, f"{FILL_IN}: {hint}")


CALENDAR = """\
# [calendar]  # when deployments may begin; a rollback is never frozen
# timezone = "Europe/Berlin"
# frozen = [{ days = ["fri"], from = "14:00", why = "nobody is on call over the weekend" }, { days = ["sat", "sun"] }]"""
# Proposed, not switched on: the services need values in place of their secrets, which only a person knows.
_OLD_VERSION = """\
# Before migrations reach production, the version there can be tried on a migrated copy of its database: then it is tested, not guessed,
# whether the code can go back without the database. Take the # away, and set the variable MIGRATIONS_OLD_VERSION=true.
# [migrations.old_version]
# env = { SESSION_KEY = "made-up" }      # what the services need to become healthy in place of their secrets and of other servers
# read = ["/"]                           # requests that must answer as before the migration
# write = [{ path = "/items", body = '{"title": "a test"}', expect = 201 }]  # on the copy alone, last of all"""


def _table(name: str, lines: Iterable[str]) -> str:
    return "\n".join([f"[{name}]", *lines])


def _head(application: Application) -> str:
    return "\n".join(
        [
            "# What is deployed where. Every key is described in azora-ci's schemas/deploy-config.schema.json; unknown keys are refused.",
            f"# A line with `{FILL_IN}` holds a guess: correct it and remove the comment.",
            _line("schema_version", 1),
            _line("application", application.name),
            _public_url(application),
            _fill("on_call", "#on-call on Slack", "how the on-call engineer is reached"),
        ]
    )


def _public_url(application: Application) -> str:
    cluster = application.cluster
    if application.target == KUBERNETES and cluster.public_url:
        return _line("public_url", cluster.public_url, f"# {cluster.public_url_from}")
    return _fill("public_url", f"https://{application.name}.example", "the public address")


def _gates(application: Application) -> str:
    toolchain = application.toolchain
    shown, made = _build_commands(application)
    checks = [
        _line("required", application.checks, f"# jobs of {', '.join(application.checks_from)}")
        if application.checks
        else _fill("required", [], "names of checks of a release commit; empty is refused unless a ruleset names some"),
        _line("rulesets", True, "# and what the default branch's rulesets require"),
        shown,
    ]
    no_lock = "the security audit reads lock files, and none was found: commit one, or write none and a line reason"
    audit = [_line("level", "high") if toolchain.lock_file else _fill("level", "high", no_lock)]
    registry = [
        _line("repository", application.registry, f"# {application.registry_from}")
        if application.registry
        else _fill("repository", f"docker.io/{application.name}", "registry and namespace of the images")
    ]
    tables = [_table("checks", checks), _table("validation.audit", audit), CALENDAR, *_toolchain(toolchain)]
    return "\n\n".join([*tables, _table("build", [made]), _table("registry", registry)])


def _build_commands(application: Application) -> tuple[str, str]:
    """Return the lines of ``checks.build``, what shows that a commit builds, and of ``build.commands``, what is run before the images."""
    toolchain = application.toolchain
    if not toolchain.found and not application.build_script:
        shown = _fill("build", [("true",)], "no package.json: what fails when the commit does not build, as go build ./... does")
        return shown, _fill("commands", [], "what must run before the images are made; empty where their Dockerfiles do all of it")
    own = [toolchain.install, (toolchain.name, "run", "build")] if application.build_script else [toolchain.install]
    build = [(*toolchain.within, *command) for command in own]
    if toolchain.manager is not None and application.build_script:
        return _line("build", build), _line("commands", build)
    reason = "the commands of the production build"
    return _fill("build", build, reason), _fill("commands", build, reason)


def _toolchain(toolchain: FoundToolchain) -> list[str]:
    """Return the table of what commands need on a runner; none for an application without packages. npm comes with Node.js."""
    if not toolchain.found:
        return []
    node = _line("node", toolchain.node) if toolchain.node else _fill("node", "22", "the version of Node.js that the application runs on")
    lines = [node]
    if toolchain.version:
        lines.append(_line("package_manager", f"{toolchain.manager}@{toolchain.version}"))
    elif toolchain.name != "npm":
        lines.append(_fill("package_manager", f"{toolchain.name}@{EXAMPLES[toolchain.name]}", "its exact version; no file names one"))
    return [_table("toolchain", lines)]


def _data(application: Application) -> str:
    backup = [_fill("location", f"s3://{application.name}-backups/prod", "bucket and prefix; records are archived beside it")]
    return "\n\n".join([*_migrations(application), _OLD_VERSION, _table("backup", backup), _target(application)])


def _migrations(application: Application) -> list[str]:
    """Return the tables that say how the database is migrated: by Prisma, by another tool, or a question."""
    if application.prisma:
        return [_table("database", _prisma(application.prisma, application.toolchain))]
    tool = application.migrator
    if tool is None:
        missing = (
            "Prisma 8 is not supported yet: its own command"
            if application.prisma.next
            else "no Prisma and no other tool was found: the command"
        )
        return [
            _table("database", []),
            _table("migrations", [_fill("command", [], f"{missing} that applies migrations, or [] when the application has none")]),
        ]
    variables = dict.fromkeys(tool.variables or ("DATABASE_URL",), "url")
    database = [
        _line("prepare", tool.prepare),
        _line("variables", variables, f"# {tool.variables_from}")
        if tool.variables
        else _fill("variables", variables, "the names by which the application finds its database; libpq's PGHOST, … are set, too"),
    ]
    source = f"{tool.tool}, found by {tool.source}"
    command = _fill("command", tool.command, f"{source}; {tool.doubt}") if tool.doubt else _line("command", tool.command, f"# {source}")
    return [_table("database", database), _table("migrations", [command])]


def _prisma(found: Prisma, toolchain: FoundToolchain) -> list[str]:
    schema = found.schemas[0]
    folders = ", ".join(other.migrations for other in found.schemas)
    command, variables = schema.command(toolchain), dict.fromkeys(schema.variables or ("DATABASE_URL",), "url")
    lines = [_line("prepare", schema.prepare(toolchain))]
    lines.append(
        _fill("migrate", command, "add --schema: no file says where the schema is")
        if "schema" in schema.open
        else _line("migrate", command)
    )
    if not found.certain:
        lines.append(_fill("migrations_dir", schema.migrations, f"one of {folders}; prepare and migrate belong to it"))
    elif "migrations.path" in schema.open:
        lines.append(_fill("migrations_dir", schema.migrations, "the folder that Prisma's configuration computes"))
    elif not schema.applied:
        lines.append(
            _fill("migrations_dir", schema.migrations, "no migrations are there: prisma migrate dev makes them; or write [migrations]")
        )
    else:
        lines.append(_line("migrations_dir", schema.migrations))
    if "url" in schema.open:
        lines.append(_fill("variables", variables, "the variables in which Prisma looks for the address: no file names them"))
    elif schema.variables != ("DATABASE_URL",):
        lines.append(_line("variables", variables))
    return lines


def _target(application: Application) -> str:
    return _cluster(application.cluster) if application.target == KUBERNETES else _hosts()


def _cluster(cluster: Cluster) -> str:
    """Return the tables of the target without those of its services, which stand behind the services."""
    where = f"# {cluster.namespace_from}"
    namespace = cluster.namespace or "default"
    unsaid = "no manifest here names it: kubectl get rollouts --all-namespaces"
    lines = [
        _line("namespace", namespace, where)
        if cluster.namespace and not cluster.namespace_doubt
        else _fill("namespace", namespace, cluster.namespace_doubt or unsaid)
    ]
    address = f"as the runner reaches it; {cluster.prometheus_from} has this address" if cluster.prometheus else "as the runner reaches it"
    instead = 'or, without this table, inconclusive = "pass" in [rollout]: probes alone are judged'
    queries = [
        _fill("prometheus", cluster.prometheus or "http://prometheus.example:9090", f"{address}; {instead}"),
        _fill("requests", 'sum(requests_total{pod_hash="$hash"})', "what counts a ReplicaSet's requests, without those to its health path"),
        _fill("errors", 'sum(requests_total{pod_hash="$hash",code=~"5.."}) or vector(0)', "and those that failed"),
    ]
    tables = [
        _table("target", [_line("kind", KUBERNETES)]),
        _table("target.kubernetes", lines),
        _table("target.kubernetes.counters", queries),
    ]
    return "\n\n".join(tables)


def _rollouts(services: Sequence[FoundService]) -> list[str]:
    """Return the tables that name the services' Rollouts."""
    tables = []
    for service in services:
        rollout = service.rollout or FoundRollout(service.id.replace("_", "-"), service.id.replace("_", "-"))
        values = {name: getattr(rollout, name) for name in ("rollout", "container", "stable_service", "canary_service")}
        lines = [
            _fill(name, value, "as kubectl get rollouts shows it") if service.rollout is None else _said(service, name, value, "rollout.")
            for name, value in values.items()
            if value
        ]
        tables.append(_table(f"target.kubernetes.services.{service.id}", lines))
    return tables


def _hosts() -> str:
    pinned = "pinned by digest, as crane digest prints it"
    images = [
        _fill("edge_image", f"docker.io/envoyproxy/envoy@{NO_DIGEST}", f"Envoy 1.37 or newer, tried with 1.40, {pinned}"),
        _fill("guard_image", f"docker.io/library/python@{NO_DIGEST}", f"Python 3.11 or newer, {pinned}"),
    ]
    return "\n\n".join([_table("target", [_line("kind", "docker_hosts")]), _table("target.docker_hosts", images)])


def _smoke(service: FoundService) -> str:
    """Return the smoke tests: what is known to answer, until a person adds what matters."""
    health = service.health_path or "/health"
    comment = "# below public_url; add what users do first"
    return _table("smoke", [_line("endpoints", [{"name": f"{service.title} health", "url": health}], comment)])


def _example_service(application: Application) -> FoundService:
    """Return a service to fill in; it finds the database by the names that Prisma or another tool has for it."""
    tool = application.prisma.schemas[0] if application.prisma else application.migrator
    names = (tool.variables if tool else ()) or ("PROD_DATABASE_URL",)
    found = f"choose of {', '.join(application.dockerfiles[:9])}" if application.dockerfiles else "no Dockerfile was found"
    if application.profiles:
        found = f"nothing is deployed without a profile: adopt with --profile {application.profiles[0]}"
    marks = {"title": f"no compose file that builds, and {found}; one table for each service"}
    return FoundService("app", ".", "Dockerfile", secrets=dict.fromkeys(names, "PROD_DATABASE_URL"), marks=marks)


def _service(service: FoundService, web: Sequence[FoundService], *, with_containers: bool) -> str:
    """Return the tables of one service. ``web``: those that take requests. ``with_containers``: and how its containers run, which on
    Kubernetes is the manifests'.
    """
    lines = [_said(service, "title", service.title)]
    if service.kind != WEB or "kind" in service.marks:
        lines.append(_said(service, "kind", service.kind))
    lines += _route(service, web) if service.kind == WEB else _checked(service)
    lines += [_said(service, name, getattr(service, name)) for name in ("context", "dockerfile")]
    secrets = [secret if variable == secret else {"env": variable, "secret": secret} for variable, secret in service.secrets.items()]
    values = {name: getattr(service, name) for name in _OPTIONAL} | {"secrets": secrets}
    lines += [_said(service, name, value) for name, value in values.items() if value and with_containers]
    if service.supports and not service.networks and with_containers:
        supports = ", ".join(service.supports)
        lines.append(_fill("networks", [], f"the hosts' Docker networks that hold {supports}; none where its address is another one"))
    heading = [_one_line(f"# {service.source}")] if service.source else []
    tables = ["\n".join([*heading, _table(f"services.{service.id}", lines)])]
    if service.build:
        tables.append(
            _table(f"services.{service.id}.build", [_said(service, name, value, "build.") for name, value in service.build.items()])
        )
    return "\n\n".join(tables)


def _said(service: FoundService, name: str, value: object, table: str = "") -> str:
    """Return the line of a key with what is to be filled in, or else where its value was found. ``table``: its subtable, ``build.``."""
    if table + name in service.marks:
        return _fill(name, value, service.marks[table + name])
    return _line(name, value, f"# {service.sources[table + name]}" if table + name in service.sources else "")


def _route(service: FoundService, web: Sequence[FoundService]) -> list[str]:
    prefix, certain = _prefixes(web)[service.id]
    health = service.health_path or "/health"
    reached = prefix in {"/", health} or health.startswith(f"{prefix}/")
    labels = service.sources.get("route_prefix", "PathPrefix of its labels")
    source = f"# {labels}" if service.route_prefix else "# the only service that takes requests"
    hint = f"the path that reaches {health} through the edge, which takes no prefix off"
    prefix_hint = "the path prefix that the edge sends here"
    if service.rollout is not None:
        hint = f"the public path, or a whole address, that reaches {health} of its pods"
        prefix_hint = "the path at which users reach it, each service its own"
    return [
        _line("route_prefix", prefix, source) if certain else _fill("route_prefix", prefix, prefix_hint),
        _said(service, "health_path", health)
        if service.health_path
        else _fill("health_path", health, "the health endpoint of an instance"),
        *([_said(service, "liveness_path", service.liveness_path)] if service.liveness_path and service.rollout is None else []),
        _public_health(service, prefix, health, hint, reached=reached),
        _said(service, "port", service.port) if service.port else _fill("port", DEFAULT_PORT, "the port inside the container"),
    ]


def _public_health(service: FoundService, prefix: str, health: str, hint: str, *, reached: bool) -> str:
    if service.public_health_url:
        return _said(service, "public_health_url", service.public_health_url)
    if reached and service.rollout is None:
        return _line("public_health_url", health, "# below public_url")
    return _fill("public_health_url", health if reached else prefix.rstrip("/") + health, hint)


def _prefixes(web: Sequence[FoundService]) -> dict[str, tuple[str, bool]]:
    """Return service -> the path prefix that only it has, and whether that is known or a guess."""
    said = [service.route_prefix for service in web if service.route_prefix]
    found = {service.id: (service.route_prefix, True) for service in web if service.route_prefix and said.count(service.route_prefix) == 1}
    if len(web) == 1:
        return {web[0].id: (web[0].route_prefix or "/", True)}
    for service in web:
        path = service.id.replace("_", "-")
        candidates = [f"/{path.removesuffix('-service')}", f"/{path}", *(f"/{path}-{number}" for number in range(2, len(web) + 2))]
        taken = {prefix for prefix, _ in found.values()}
        found.setdefault(service.id, (next(candidate for candidate in candidates if candidate not in taken), False))
    return found


def _checked(service: FoundService) -> list[str]:
    return [_said(service, name, getattr(service, name)) for name in ("health_path", "port") if getattr(service, name)]
