"""``.github/deploy-production.toml`` -> frozen configuration, validated by ``schemas/deploy-config.schema.json``.

Every key is described, with an example, in that schema. Unknown keys are refused.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from azora_ci import schemas
from azora_ci.errors import BadInputError
from azora_ci.rollout import levels

Command = tuple[str, ...]


@dataclass(frozen=True)
class Checks:
    """Gates of the release commit: names of required checks, what may be skipped, commands of the audit and the build."""

    required: tuple[str, ...]
    rulesets: bool
    allow_skipped: tuple[str, ...]
    wait_minutes: float
    audit: tuple[Command, ...]
    build: tuple[Command, ...]


@dataclass(frozen=True)
class Build:
    """The production build of the application, before images are made."""

    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Registry:
    """Where images go: ``<repository>/<service>:<version>``; ``insecure`` (plain HTTP) is for loopback only."""

    repository: str
    insecure: bool


@dataclass(frozen=True)
class Database:
    """How migrations are applied: what is run before, the command, the folder of the migrations, and whether the database is
    behind the SSH host.
    """

    prepare: tuple[Command, ...]
    migrate: Command
    migrations_dir: Path
    schema: str
    via_ssh: bool


@dataclass(frozen=True)
class Backup:
    """Where backups go (``s3://bucket/prefix``) and how they are locked."""

    location: str
    lock_mode: str
    lock_days: int

    @property
    def bucket(self) -> str:
        """Return the bucket of the location."""
        return urlsplit(self.location).netloc

    @property
    def prefix(self) -> str:
        """Return the key prefix of the location, without slashes at its ends."""
        return urlsplit(self.location).path.strip("/")

    def key(self, name: str) -> str:
        """Return the object key of a file name below the location."""
        return f"{self.prefix}/{name}" if self.prefix else name


@dataclass(frozen=True)
class Rollout:
    """Limits of the verdict: error share above the old version in percentage points, p95 factor, samples, what few samples mean.

    ``rollout.order`` is in each service's ``depends_on``.
    """

    error_rate_points: float
    latency_factor: float
    minimum_requests: int
    inconclusive: str  # "pass" | "abort"
    drain_seconds: float


@dataclass(frozen=True)
class Tls:
    """Certificate and key in one folder of the host that runs the edge, the port that users know, and what plain HTTP does."""

    certificate: Path
    key: Path
    port: int
    redirect_http: bool


@dataclass(frozen=True)
class Edge:
    """The Envoy edge: folder of its dynamic configuration files and its admin address (local_processes target), TLS in the edge,
    how many proxies in front of it are believed, and the cookie that keeps users on a version.
    """

    config_dir: Path | None
    admin_url: str | None
    tls: Tls | None
    trusted_proxies: int
    sticky_cookie: str | None


@dataclass(frozen=True)
class LocalProcesses:
    """Folders of the loopback target: state (instances, journal) and content-addressed archives."""

    state_dir: Path
    archive_dir: Path


@dataclass(frozen=True)
class DockerHosts:
    """Production hosts: pinned images of edge and guard, the port that users reach, subnets of the two networks, seconds of the lease,
    the disk (``1g``) that stays free beside the images of both versions, and the compose project whose port the edge may take over.
    """

    edge_image: str
    guard_image: str
    http_port: int
    network: str
    admin_network: str
    lease_seconds: float
    disk_reserve: str = "1g"
    take_over: str | None = None


@dataclass(frozen=True)
class Target:
    """Which rollout target is used; never inferred from what is missing."""

    kind: str
    local_processes: LocalProcesses | None
    docker_hosts: DockerHosts | None = None


@dataclass(frozen=True)
class Service:
    """One deployed service."""

    id: str
    title: str
    route_prefix: str
    health_path: str
    public_health_url: str
    port: int
    instances: int
    context: Path
    dockerfile: Path
    command: Command
    env: dict[str, str]
    secrets: tuple[str, ...]
    volumes: tuple[str, ...]
    memory: str | None
    stop_grace_seconds: float
    timeout_seconds: float
    depends_on: tuple[str, ...]


@dataclass(frozen=True)
class Endpoint:
    """A critical endpoint of the smoke tests: expected status and, optionally, a text its body must contain."""

    name: str
    url: str
    status: int
    contains: str | None


@dataclass(frozen=True)
class DeployConfig:
    """The whole configuration. ``services`` are in rollout order: what a service depends on comes first."""

    application: str
    public_url: str
    on_call: str
    checks: Checks
    build: Build
    registry: Registry | None
    database: Database
    backup: Backup
    rollout: Rollout
    edge: Edge
    target: Target
    smoke: tuple[Endpoint, ...]
    services: tuple[Service, ...]

    def service(self, service_id: str) -> Service:
        """Return a service by its id. Raises KeyError."""
        return {service.id: service for service in self.services}[service_id]


def load(path: Path) -> DeployConfig:
    """Read and validate a configuration file. Raises BadInputError that names the file and every bad key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(
            "No deployment configuration",
            what=f"{path} does not exist",
            where="DEPLOY_CONFIG",
            next_step="run this in the application's folder, or name the file (--config); python -m azora_ci adopt PATH writes a first one",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(
            "Deployment configuration is not TOML", what=str(error), where=str(path), next_step="correct the named line"
        ) from error
    schemas.validate(document, "deploy-config", where=str(path))
    try:
        return _parse(document)
    except ValueError as error:
        raise BadInputError(
            "Deployment configuration contradicts itself",
            what=str(error),
            where=str(path),
            next_step="correct the named keys",
        ) from error


def _commands(values: list[list[str]]) -> tuple[Command, ...]:
    return tuple(tuple(command) for command in values)


def _parse(document: dict[str, Any]) -> DeployConfig:
    checks, rollout = document["checks"], document.get("rollout", {})
    database, backup, registry = document["database"], document["backup"], document.get("registry")
    edge, build = document.get("edge", {}), document["build"]
    target = _target(document["target"])
    if target.kind != "local_processes" and registry is None:
        raise ValueError("registry: [registry] is required unless target.kind is local_processes")
    if target.kind == "local_processes" and "config_dir" not in edge:
        raise ValueError("edge.config_dir: is required by target.kind local_processes")
    _check_redirect(document)
    return DeployConfig(
        application=document["application"],
        public_url=document["public_url"].rstrip("/"),
        on_call=document["on_call"],
        checks=Checks(
            required=tuple(checks["required"]),
            rulesets=checks.get("rulesets", True),
            allow_skipped=tuple(checks.get("allow_skipped", [])),
            wait_minutes=checks.get("wait_minutes", 15),
            audit=_commands(checks["audit"]),
            build=_commands(checks["build"]),
        ),
        build=Build(_commands(build["commands"])),
        registry=Registry(registry["repository"].rstrip("/"), registry.get("insecure", False)) if registry else None,
        database=Database(
            prepare=_commands(database.get("prepare", [["npm", "ci"]])),
            migrate=tuple(database.get("migrate", ["npx", "prisma", "migrate", "deploy"])),
            migrations_dir=Path(database.get("migrations_dir", "prisma/migrations")),
            schema=database.get("schema", "public"),
            via_ssh=database.get("via_ssh", False),
        ),
        backup=Backup(backup["location"], backup.get("lock_mode", "GOVERNANCE"), backup.get("lock_days", 365)),
        rollout=Rollout(
            error_rate_points=rollout.get("error_rate_points", 1.0),
            latency_factor=rollout.get("latency_factor", 3.0),
            minimum_requests=rollout.get("minimum_requests", 149),
            inconclusive=rollout.get("inconclusive", "abort"),
            drain_seconds=rollout.get("drain_seconds", 30),
        ),
        edge=_edge(edge),
        target=target,
        smoke=tuple(
            Endpoint(one["name"], one["url"], one.get("status", 200), one.get("contains"))
            for one in document.get("smoke", {}).get("endpoints", [])
        ),
        services=_ordered({name: _service(name, one) for name, one in document["services"].items()}, rollout.get("order", [])),
    )


def _edge(found: dict[str, Any]) -> Edge:
    folder = Path(found["config_dir"]) if "config_dir" in found else None
    return Edge(folder, found.get("admin_url"), _tls(found), found.get("trusted_proxies", 0), found.get("sticky_cookie"))


def _tls(found: dict[str, Any]) -> Tls | None:
    if "tls_certificate" not in found and "tls_key" not in found:
        return None
    if "tls_certificate" not in found or "tls_key" not in found:
        raise ValueError("edge.tls_certificate and edge.tls_key: one does nothing without the other")
    certificate, key = Path(found["tls_certificate"]), Path(found["tls_key"])
    if certificate.parent != key.parent:
        raise ValueError(f"edge.tls_certificate, edge.tls_key: {certificate} and {key} must be in one folder, which the edge watches")
    return Tls(certificate, key, found.get("https_port", 443), found.get("redirect_http", True))


def _check_redirect(document: dict[str, Any]) -> None:
    """Raise ValueError for addresses that would be answered with a redirect, which no probe follows."""
    tls = _tls(document.get("edge", {}))
    if tls is None or not tls.redirect_http:
        return
    probed = {f"services.{name}.public_health_url": one["public_health_url"] for name, one in document["services"].items()}
    probed |= {f"smoke.endpoints {one['name']}": one["url"] for one in document.get("smoke", {}).get("endpoints", [])}
    plain = [name for name, url in probed.items() if url.startswith("http:")]
    if plain:
        raise ValueError(f"{', '.join(plain)}: plain HTTP leads to HTTPS (edge.redirect_http), and probes follow no redirect: say https:")


def _target(document: dict[str, Any]) -> Target:
    kind = document["kind"]
    local = document.get("local_processes")
    if kind == "local_processes" and local is None:
        raise ValueError("target.local_processes: is required by target.kind local_processes")
    found = LocalProcesses(Path(local["state_dir"]), Path(local["archive_dir"])) if local else None
    return Target(kind, found, _docker_hosts(document.get("docker_hosts")))


def _docker_hosts(found: dict[str, Any] | None) -> DockerHosts | None:
    if found is None:
        return None
    network, admin_network = found.get("network", "10.212.0.0/16"), found.get("admin_network", "10.213.0.0/24")
    for name, text in (("network", network), ("admin_network", admin_network)):
        try:
            smallest = ipaddress.IPv4Network(text).num_addresses
        except ValueError as error:
            raise ValueError(f"target.docker_hosts.{name}: {error}") from error
        if smallest < 64:
            raise ValueError(f"target.docker_hosts.{name}: {text} has {smallest} addresses, at least 64 are needed")
    if ipaddress.IPv4Network(network).overlaps(ipaddress.IPv4Network(admin_network)):
        raise ValueError(f"target.docker_hosts: network {network} and admin_network {admin_network} overlap")
    return DockerHosts(
        edge_image=found["edge_image"],
        guard_image=found["guard_image"],
        http_port=found.get("http_port", 80),
        network=network,
        admin_network=admin_network,
        lease_seconds=found.get("lease_seconds", 45),
        disk_reserve=found.get("disk_reserve", "1g"),
        take_over=found.get("take_over"),
    )


def _service(name: str, one: dict[str, Any]) -> Service:
    return Service(
        id=name,
        title=one["title"],
        route_prefix=one["route_prefix"],
        health_path=one["health_path"],
        public_health_url=one["public_health_url"],
        port=one.get("port", 8080),
        instances=one.get("instances", 1),
        context=Path(one.get("context", ".")),
        dockerfile=Path(one.get("dockerfile", "Dockerfile")),
        command=tuple(one.get("command", [])),
        env=dict(one.get("env", {})),
        secrets=tuple(one.get("secrets", [])),
        volumes=tuple(one.get("volumes", [])),
        memory=one.get("memory"),
        stop_grace_seconds=one.get("stop_grace_seconds", 30),
        timeout_seconds=one.get("timeout_seconds", 15),
        depends_on=tuple(one.get("depends_on", [])),
    )


def _ordered(services: dict[str, Service], order: list[str]) -> tuple[Service, ...]:
    """Return services with what they wait for before them; ``order`` makes each wait for the one named before it.

    ValueError for unknown names and cycles.
    """
    named = {"rollout.order": tuple(order)} | {f"services.{one.id}.depends_on": one.depends_on for one in services.values()}
    for key, names in named.items():
        for name in names:
            if name not in services:
                raise ValueError(f"{key}: no service {name!r}")
    before = dict(zip(order[1:], order, strict=False))
    waits = {one.id: tuple(dict.fromkeys((*one.depends_on, *filter(None, [before.get(one.id)])))) for one in services.values()}
    try:
        groups = levels(waits)
    except ValueError as error:
        raise ValueError(f"rollout.order and services.*.depends_on: a cycle, {error}") from None
    return tuple(replace(services[name], depends_on=waits[name]) for group in groups for name in group)


def is_loopback(url: str) -> bool:
    """Say whether a URL's host is a loopback address or ``localhost``."""
    return bool(re.fullmatch(r"localhost|127(?:\.[0-9]{1,3}){3}|::1", urlsplit(url).hostname or ""))
