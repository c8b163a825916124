"""``.github/deploy-production.toml`` -> frozen configuration, validated by ``schemas/deploy-config.schema.json``.

Every key is described, with an example, in that schema. Unknown keys are refused.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from azora_ci.core import schemas
from azora_ci.core.errors import BadInputError

pass

Command = tuple[str, ...]


@dataclass(frozen=True)
class CheckSettings:
    """Gates of the release commit: required checks, checks that may be skipped, minutes to wait, commands of audit and build."""

    required: tuple[str, ...]
    rulesets: bool
    allow_skipped: tuple[str, ...]
    wait_minutes: float
    audit: tuple[Command, ...]
    build: tuple[Command, ...]


@dataclass(frozen=True)
class BuildSettings:
    """The production build of the application, before images are made."""

    commands: tuple[Command, ...]


@dataclass(frozen=True)
class RegistrySettings:
    """Where images go: ``<repository>/<service>:<version>``; ``insecure`` (plain HTTP) is for loopback only."""

    repository: str
    insecure: bool


@dataclass(frozen=True)
class DatabaseSettings:
    """How migrations are applied: preparing commands, the migration command, the folder of the migrations, the schema, and whether
    the database is reached through the production host over SSH.
    """

    prepare: tuple[Command, ...]
    migrate: Command
    migrations_dir: Path
    schema: str
    via_ssh: bool


@dataclass(frozen=True)
class BackupSettings:
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
class RolloutSettings:
    """Limits of the rollout's verdict: how many percentage points the new version's error share may exceed the old one's, by what
    factor its p95 latency may, how many requests are needed, what fewer mean, and how long connections drain.

    ``rollout.order`` is in each service's ``depends_on``.
    """

    error_rate_points: float = 1.0
    latency_factor: float = 3.0
    minimum_requests: int = 149
    inconclusive: str = "abort"  # "pass" | "abort"
    drain_seconds: float = 30


@dataclass(frozen=True)
class TlsSettings:
    """Certificate and key in one folder of the host that runs the edge, the port that users know, and what plain HTTP does."""

    certificate: Path
    key: Path
    port: int
    redirect_http: bool


@dataclass(frozen=True)
class EdgeSettings:
    """The Envoy edge: folder of its dynamic configuration files and its admin address (local_processes target), TLS, the number of
    trusted proxies in front of it, and the cookie that keeps users on a version.
    """

    config_dir: Path | None
    admin_url: str | None
    tls: TlsSettings | None
    trusted_proxies: int
    sticky_cookie: str | None


@dataclass(frozen=True)
class LocalProcessesSettings:
    """Folders of the loopback target: state (instances, journal) and content-addressed archives."""

    state_dir: Path
    archive_dir: Path


@dataclass(frozen=True)
class DockerHostsSettings:
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
class TargetSettings:
    """The rollout target, always named by ``target.kind``; never inferred from missing tables."""

    kind: str
    local_processes: LocalProcessesSettings | None
    docker_hosts: DockerHostsSettings | None = None


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
class SmokeEndpoint:
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
    checks: CheckSettings
    build: BuildSettings
    registry: RegistrySettings | None
    database: DatabaseSettings
    backup: BackupSettings
    rollout: RolloutSettings
    edge: EdgeSettings
    target: TargetSettings
    smoke: tuple[SmokeEndpoint, ...]
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
        what, next_step = str(error), "correct the named line"
        raise BadInputError("Deployment configuration is not TOML", what=what, where=str(path), next_step=next_step) from error
    schemas.validate(document, "deploy-config", where=str(path))
    try:
        return _parse(document)
    except ValueError as error:
        what, next_step = str(error), "correct the named keys"
        raise BadInputError("Deployment configuration contradicts itself", what=what, where=str(path), next_step=next_step) from error


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
        checks=CheckSettings(
            required=tuple(checks["required"]),
            rulesets=checks.get("rulesets", True),
            allow_skipped=tuple(checks.get("allow_skipped", [])),
            wait_minutes=checks.get("wait_minutes", 15),
            audit=_commands(checks["audit"]),
            build=_commands(checks["build"]),
        ),
        build=BuildSettings(_commands(build["commands"])),
        registry=RegistrySettings(registry["repository"].rstrip("/"), registry.get("insecure", False)) if registry else None,
        database=DatabaseSettings(
            prepare=_commands(database.get("prepare", [["npm", "ci"]])),
            migrate=tuple(database.get("migrate", ["npx", "prisma", "migrate", "deploy"])),
            migrations_dir=Path(database.get("migrations_dir", "prisma/migrations")),
            schema=database.get("schema", "public"),
            via_ssh=database.get("via_ssh", False),
        ),
        backup=BackupSettings(backup["location"], backup.get("lock_mode", "GOVERNANCE"), backup.get("lock_days", 365)),
        rollout=RolloutSettings(**{key: value for key, value in rollout.items() if key != "order"}),
        edge=_edge(edge),
        target=target,
        smoke=tuple(
            SmokeEndpoint(endpoint["name"], endpoint["url"], endpoint.get("status", 200), endpoint.get("contains"))
            for endpoint in document.get("smoke", {}).get("endpoints", [])
        ),
        services=_ordered({name: _service(name, table) for name, table in document["services"].items()}, rollout.get("order", [])),
    )


def _edge(table: dict[str, Any]) -> EdgeSettings:
    folder = Path(table["config_dir"]) if "config_dir" in table else None
    return EdgeSettings(folder, table.get("admin_url"), _tls(table), table.get("trusted_proxies", 0), table.get("sticky_cookie"))


def _tls(table: dict[str, Any]) -> TlsSettings | None:
    if "tls_certificate" not in table and "tls_key" not in table:
        return None
    if "tls_certificate" not in table or "tls_key" not in table:
        raise ValueError("edge.tls_certificate and edge.tls_key: one does nothing without the other")
    certificate, key = Path(table["tls_certificate"]), Path(table["tls_key"])
    if certificate.parent != key.parent:
        raise ValueError(f"edge.tls_certificate, edge.tls_key: {certificate} and {key} must be in one folder, which the edge watches")
    return TlsSettings(certificate, key, table.get("https_port", 443), table.get("redirect_http", True))


def _check_redirect(document: dict[str, Any]) -> None:
    """Raise ValueError for probed addresses that the edge would redirect to HTTPS, because probes follow no redirect."""
    tls = _tls(document.get("edge", {}))
    if tls is None or not tls.redirect_http:
        return
    probed = {f"services.{name}.public_health_url": service["public_health_url"] for name, service in document["services"].items()}
    probed |= {f"smoke.endpoints {endpoint['name']}": endpoint["url"] for endpoint in document.get("smoke", {}).get("endpoints", [])}
    plain = [name for name, url in probed.items() if url.startswith("http:")]
    if plain:
        raise ValueError(f"{', '.join(plain)}: plain HTTP leads to HTTPS (edge.redirect_http), and probes follow no redirect: say https:")


def _target(document: dict[str, Any]) -> TargetSettings:
    kind = document["kind"]
    table = document.get("local_processes")
    if kind == "local_processes" and table is None:
        raise ValueError("target.local_processes: is required by target.kind local_processes")
    local_processes = LocalProcessesSettings(Path(table["state_dir"]), Path(table["archive_dir"])) if table else None
    return TargetSettings(kind, local_processes, _docker_hosts(document.get("docker_hosts")))


def _docker_hosts(table: dict[str, Any] | None) -> DockerHostsSettings | None:
    if table is None:
        return None
    network, admin_network = table.get("network", "10.212.0.0/16"), table.get("admin_network", "10.213.0.0/24")
    for name, text in (("network", network), ("admin_network", admin_network)):
        try:
            size = ipaddress.IPv4Network(text).num_addresses
        except ValueError as error:
            raise ValueError(f"target.docker_hosts.{name}: {error}") from error
        if size < 64:
            raise ValueError(f"target.docker_hosts.{name}: {text} has {size} addresses, at least 64 are needed")
    if ipaddress.IPv4Network(network).overlaps(ipaddress.IPv4Network(admin_network)):
        raise ValueError(f"target.docker_hosts: network {network} and admin_network {admin_network} overlap")
    return DockerHostsSettings(
        edge_image=table["edge_image"],
        guard_image=table["guard_image"],
        http_port=table.get("http_port", 80),
        network=network,
        admin_network=admin_network,
        lease_seconds=table.get("lease_seconds", 45),
        disk_reserve=table.get("disk_reserve", "1g"),
        take_over=table.get("take_over"),
    )


def _service(name: str, table: dict[str, Any]) -> Service:
    return Service(
        id=name,
        title=table["title"],
        route_prefix=table["route_prefix"],
        health_path=table["health_path"],
        public_health_url=table["public_health_url"],
        port=table.get("port", 8080),
        instances=table.get("instances", 1),
        context=Path(table.get("context", ".")),
        dockerfile=Path(table.get("dockerfile", "Dockerfile")),
        command=tuple(table.get("command", [])),
        env=dict(table.get("env", {})),
        secrets=tuple(table.get("secrets", [])),
        volumes=tuple(table.get("volumes", [])),
        memory=table.get("memory"),
        stop_grace_seconds=table.get("stop_grace_seconds", 30),
        timeout_seconds=table.get("timeout_seconds", 15),
        depends_on=tuple(table.get("depends_on", [])),
    )


def _ordered(services: dict[str, Service], order: list[str]) -> tuple[Service, ...]:
    """Return the services with each after those that it depends on; ``order`` makes each depend on its predecessor in the list.

    Raises ValueError for unknown names and cycles.
    """
    named = [("rollout.order", tuple(order)), *((f"services.{name}.depends_on", service.depends_on) for name, service in services.items())]
    for key, names in named:
        for name in names:
            if name not in services:
                raise ValueError(f"{key}: no service {name!r}")
    predecessors = {name: (predecessor,) for name, predecessor in zip(order[1:], order, strict=False)}
    dependencies = {name: tuple(dict.fromkeys((*service.depends_on, *predecessors.get(name, ())))) for name, service in services.items()}
    try:
        groups = start_groups(dependencies)
    except ValueError as error:
        raise ValueError(f"rollout.order and services.*.depends_on: a cycle, {error}") from None
    return tuple(replace(services[name], depends_on=dependencies[name]) for group in groups for name in group)


def start_groups(depends_on: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return services in groups, each of which depends on earlier groups only. Raises ValueError for a cycle."""
    names = list(depends_on)
    sorter = TopologicalSorter({name: [need for need in needs if need in depends_on] for name, needs in depends_on.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"services depend on each other in a circle: {' -> '.join(error.args[1])}") from None
    groups = []
    while sorter.is_active():
        ready = sorter.get_ready()
        groups.append(sorted(ready, key=names.index))
        sorter.done(*ready)
    return groups
