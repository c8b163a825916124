"""The tables of the configuration as frozen values. The schema says what each key means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from azora_ci.core.config.calendar import CalendarSettings
from azora_ci.core.config.kubernetes import ForwardSettings, KubernetesSettings
from azora_ci.core.config.old_version import OldVersionSettings
from azora_ci.core.variables import Secret

Command = tuple[str, ...]
WEB, WORKER, JOB = "web", "worker", "job"  # kinds of services
BEFORE_ROLLOUT, AFTER_ROLLOUT = "before-rollout", "after-rollout"  # moments of a job


@dataclass(frozen=True)
class RequiredCheck:
    """A check that the configuration requires, and the slug of the only app whose result counts (None: any)."""

    name: str
    app: str | None = None

    def __str__(self) -> str:
        return f"{self.name} of {self.app}" if self.app else self.name


@dataclass(frozen=True)
class CheckSettings:
    """Gates of the release commit: required checks, checks that may be skipped, minutes to wait, commands that show that it builds."""

    required: tuple[RequiredCheck, ...]
    rulesets: bool
    allow_skipped: tuple[str, ...]
    wait_minutes: float
    build: tuple[Command, ...]


@dataclass(frozen=True)
class AuditException:
    """An advisory that does not close the gate, through the day ``expires`` (UTC)."""

    id: str
    reason: str
    expires: date

    def __str__(self) -> str:
        return f"{self.id} (expires {self.expires.isoformat()}: {self.reason})"


@dataclass(frozen=True)
class AuditSettings:
    """The mildest severity of a known vulnerability that closes the gate (``none``: none does, with a reason), what is excepted from
    it, and the registry that is asked (None: npm's own setting).
    """

    level: str = "high"
    reason: str | None = None
    exceptions: tuple[AuditException, ...] = ()
    registry: str | None = None


@dataclass(frozen=True)
class ValidationSettings:
    """What pre-deployment-validation checks beside the checks of the commit."""

    audit: AuditSettings


@dataclass(frozen=True)
class ToolchainSettings:
    """What the application's commands need on a runner: a version of Node.js, and a package manager (``pnpm@9.12.0``); None: nothing."""

    node: str | None = None
    package_manager: str | None = None

    @property
    def manager(self) -> str | None:
        """Return the name of the package manager, which is that of its program."""
        return self.package_manager.partition("@")[0] if self.package_manager else None

    @property
    def version(self) -> str | None:
        """Return the exact version of the package manager."""
        return self.package_manager.partition("@")[2] if self.package_manager else None

    @property
    def package(self) -> str | None:
        """Return what npm installs for it: Yarn 2 and newer are published under another name than Yarn 1."""
        if self.manager == "yarn" and not str(self.version).startswith(("0.", "1.")):
            return f"@yarnpkg/cli-dist@{self.version}"
        return self.package_manager


@dataclass(frozen=True)
class BuildSettings:
    """The production build of the application, before images are made, and the reason for building in a job that holds secrets.

    ``isolation`` is "job" (images are built in a job without secrets) or "none" (in place, by build-and-push).
    """

    commands: tuple[Command, ...]
    isolation: str = "job"
    isolation_reason: str | None = None


@dataclass(frozen=True)
class ImageSettings:
    """How a service's image is built: stage, arguments and platform of its Dockerfile, names of the secrets that it mounts."""

    target: str | None = None
    args: dict[str, str] = field(default_factory=dict)
    platform: str | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegistrySettings:
    """Where images go: ``<repository>/<service>:<version>``; ``insecure`` (plain HTTP) is for loopback only."""

    repository: str
    insecure: bool

    def holds(self, reference: str) -> bool:
        """Say whether an image is in this registry: the login is for no other one."""
        return reference.partition("/")[0] == self.repository.partition("/")[0]


@dataclass(frozen=True)
class DatabaseSettings:
    """How migrations are applied: preparing commands, Prisma's command, the folder of its migrations, the schema of its table, whether
    the database is reached through the production host over SSH, and in which variables the command finds it (name -> form).

    ``command`` is ``migrations.command``: another tool's instead of Prisma's, empty where the application has no migrations.
    """

    prepare: tuple[Command, ...]
    migrate: Command
    migrations_dir: Path
    schema: str
    via_ssh: bool
    variables: dict[str, str]
    command: Command | None = None
    old_version: OldVersionSettings | None = None

    @property
    def tool(self) -> str:
        """Return whose migrations are applied: prisma, command (another tool's), or none."""
        return "prisma" if self.command is None else "command" if self.command else "none"


@dataclass(frozen=True)
class BackupSettings:
    """Where backups go (``s3://bucket/prefix``), how they are locked, and who signs the documents of this bucket: ``kms:<key>`` or none.

    The last is ``evidence.signing``; it stands here because manifests and records lie in this bucket.
    """

    location: str
    lock_mode: str
    lock_days: int
    signing: str = "none"
    checksums: str = "full-object"  # or read-back: the store lacks checksums of whole objects

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
    factor its p95 latency may, the error budget of both tests, how many requests are needed, what fewer mean, how long connections drain.

    ``rollout.order`` is in each service's ``depends_on``.
    """

    error_rate_points: float = 1.0
    not_found_points: float | None = None  # None: 404 answers are shown, not judged
    latency_factor: float = 3.0
    false_abort_percent: float = 1.0
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
    lease, the disk (``1g``) that stays free beside the images of both versions, the compose project whose port the edge may take over,
    and what the names of everything on the hosts begin with.
    """

    edge_image: str
    guard_image: str
    http_port: int
    network: str
    lease_seconds: float
    disk_reserve: str = "1g"
    take_over: str | None = None
    name: str = "azora"


@dataclass(frozen=True)
class TargetSettings:
    """The rollout target, always named by ``target.kind``; never inferred from missing tables."""

    kind: str
    local_processes: LocalProcessesSettings | None
    docker_hosts: DockerHostsSettings | None = None
    kubernetes: KubernetesSettings | None = None


@dataclass(frozen=True)
class HealthSettings:
    """When a service is healthy: the words that say so, where its answer says them (``json:a.b`` or ``status-code``), and where its
    version is known from (``answer``, ``header:x-version``, ``json:a.b`` or ``image``). The defaults are the contract.
    """

    healthy: tuple[str, ...] = ("healthy",)
    status_from: str = "json:status"
    version_from: str = "answer"


@dataclass(frozen=True)
class Service:
    """One deployed service. ``route_prefix``, ``health_path`` and ``public_health_url`` are "" where its kind has none.

    ``secrets``: names of secrets; ``secret_variables``: variable of an instance -> the secret that it holds.

    ``entrypoint`` and ``command`` are empty where the image's own count. ``when``: the moment of a job. ``timeout_seconds``: of a route,
    or of a job. ``max_connections`` to each instance and ``max_pending_requests`` bound what the edge takes; None: the edge's defaults,
    which follow ``expected_latency_ms``.
    ``liveness_path``: what the edge asks each instance every second; None: it only connects.
    """

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
    build: ImageSettings = ImageSettings()
    talks_to: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    read_only: bool = False
    secret_variables: dict[str, str] = field(default_factory=dict)
    kind: str = WEB
    entrypoint: Command = ()
    singleton: bool = False
    when: str = BEFORE_ROLLOUT
    health: HealthSettings = HealthSettings()
    max_connections: int | None = None
    max_pending_requests: int | None = None
    liveness_path: str | None = None
    expected_latency_ms: int | None = None

    def secret_values(self, secrets: Mapping[str, Secret]) -> dict[str, str]:
        """Return variable -> value of the secrets that an instance gets. ``secrets``: those of the step by name."""
        return {variable: secrets[name].reveal() for variable, name in self.secret_variables.items()}

    @property
    def argv(self) -> Command:
        """Return the whole command of the service where it has no image."""
        return (*self.entrypoint, *self.command)


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
    validation: ValidationSettings
    toolchain: ToolchainSettings
    build: BuildSettings
    registry: RegistrySettings | None
    database: DatabaseSettings
    backup: BackupSettings
    rollout: RolloutSettings
    edge: EdgeSettings
    target: TargetSettings
    smoke: tuple[SmokeEndpoint, ...]
    services: tuple[Service, ...]
    calendar: CalendarSettings | None = None

    @property
    def database_forward(self) -> ForwardSettings | None:
        """Return the way to the database through the cluster, None where it is reached otherwise."""
        return self.target.kubernetes.database if self.target.kind == "kubernetes" and self.target.kubernetes else None

    @property
    def web(self) -> tuple[Service, ...]:
        """Return the services that the edge routes requests to; there is at least one."""
        return tuple(service for service in self.services if service.kind == WEB)

    @property
    def workers(self) -> tuple[Service, ...]:
        """Return the services that run without a route."""
        return tuple(service for service in self.services if service.kind == WORKER)

    @property
    def jobs(self) -> tuple[Service, ...]:
        """Return the services that run once per deployment."""
        return tuple(service for service in self.services if service.kind == JOB)

    @property
    def singletons(self) -> tuple[Service, ...]:
        """Return the workers of which two never run at once."""
        return tuple(service for service in self.services if service.singleton)

    @property
    def staged(self) -> tuple[Service, ...]:
        """Return the services whose instances follow the stages of a rollout: neither jobs nor singletons."""
        return tuple(service for service in self.services if service.kind != JOB and not service.singleton)

    def service(self, service_id: str) -> Service:
        """Return a service by its id. Raises KeyError."""
        return {service.id: service for service in self.services}[service_id]
