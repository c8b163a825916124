"""The tables of the configuration as frozen values. The schema says what each key means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

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
    """The Envoy edge: folder of its dynamic configuration files and admin socket (local_processes target), TLS, the number of trusted
    proxies in front of it, and the cookie that keeps users on a version.
    """

    config_dir: Path | None
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
    """Production hosts: pinned images of edge and guard, the port that users reach, the range of the instances' subnets, seconds of the
    lease, the disk (``1g``) that stays free beside the images of both versions, and the compose project whose port the edge may take over.
    """

    edge_image: str
    guard_image: str
    http_port: int
    network: str
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
    talks_to: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    read_only: bool = False


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
