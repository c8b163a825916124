"""``.github/deploy-production.toml`` -> tables, validated by ``schemas/deploy-config.schema.json``."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from azora_ci.core import schemas
from azora_ci.core.config import gates, kinds, kubernetes, names
from azora_ci.core.config.calendar import calendar_settings
from azora_ci.core.config.old_version import old_version
from azora_ci.core.config.order import in_order
from azora_ci.core.config.tables import (
    BEFORE_ROLLOUT,
    JOB,
    WEB,
    BackupSettings,
    BuildSettings,
    CheckSettings,
    Command,
    DatabaseSettings,
    DeployConfig,
    DockerHostsSettings,
    EdgeSettings,
    HealthSettings,
    ImageSettings,
    LocalProcessesSettings,
    RegistrySettings,
    RolloutSettings,
    Service,
    SmokeEndpoint,
    TargetSettings,
    TlsSettings,
    ToolchainSettings,
    ValidationSettings,
)
from azora_ci.core.documents import UnreadableError, content, read_toml
from azora_ci.core.errors import BadInputError

VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a named volume: Docker takes everything else for a path of the host
JOB_SECONDS = 900  # a job may take, unless its timeout_seconds says otherwise


def load(path: Path) -> DeployConfig:
    """Read and validate a configuration file. Raises BadInputError that names the file and every bad key."""
    try:
        document = read_toml(content(path))
    except FileNotFoundError:
        raise BadInputError(
            "No deployment configuration",
            what=f"{path} does not exist",
            where="DEPLOY_CONFIG",
            next_step="run this in the application's folder, or name the file (--config); python -m azora_ci adopt PATH writes a first one",
        ) from None
    except UnreadableError as error:
        what, next_step = str(error), "correct the named line"
        raise BadInputError("Deployment configuration is not TOML", what=what, where=str(path), next_step=next_step) from error
    _refuse_replaced_keys(document, path)
    _complete_addresses(document)
    schemas.validate(gates.dates_as_text(document), "deploy-config", where=str(path))
    try:
        loaded = _parse(document)
        names.check(loaded.services)
    except ValueError as error:
        what, next_step = str(error), "correct the named keys"
        raise BadInputError("Deployment configuration contradicts itself", what=what, where=str(path), next_step=next_step) from error
    return loaded


def _refuse_replaced_keys(document: dict[str, Any], path: Path) -> None:
    """Raise BadInputError that says what to write in place of a key that no longer exists."""
    checks = document.get("checks")
    if isinstance(checks, dict) and "audit" in checks:
        raise BadInputError(
            "checks.audit is replaced by validation.audit",
            what=f"checks.audit = {checks['audit']}: the audit reads the lock files itself and runs no command of the application",
            where=str(path),
            next_step='remove checks.audit; in its place write a table [validation.audit] with level = "high" (the default; or critical, '
            "moderate, low, none with a reason)",
        )


def _complete_addresses(document: dict[str, Any]) -> None:
    """Put ``public_url`` before addresses that are only a path. The schema judges what comes out."""
    public_url, services, smoke = document.get("public_url"), document.get("services"), document.get("smoke")
    tables = [*services.values()] if isinstance(services, dict) else []
    endpoints = smoke.get("endpoints") if isinstance(smoke, dict) else None
    tables += endpoints if isinstance(endpoints, list) else []
    if not isinstance(public_url, str):
        return
    for table in (table for table in tables if isinstance(table, dict)):
        for key in ("public_health_url", "url"):
            if str(table.get(key)).startswith("/"):
                table[key] = public_url.rstrip("/") + table[key]


def _commands(values: list[list[str]]) -> tuple[Command, ...]:
    return tuple(tuple(command) for command in values)


def _parse(document: dict[str, Any]) -> DeployConfig:
    checks, rollout, validation = document["checks"], document.get("rollout", {}), document.get("validation", {})
    backup, registry = document["backup"], document.get("registry")
    edge = document.get("edge", {})
    target = _target(document["target"])
    if target.kind != "local_processes" and registry is None:
        raise ValueError("registry: [registry] is required unless target.kind is local_processes")
    if target.kind == "local_processes" and "config_dir" not in edge:
        raise ValueError("edge.config_dir: is required by target.kind local_processes")
    kinds.check(document["services"])
    if target.kind == "kubernetes":
        if target.kubernetes and target.kubernetes.database and document["database"].get("via_ssh"):
            raise ValueError("target.kubernetes.database: database.via_ssh leads to the database already; remove one of them")
        kubernetes.check(target.kubernetes, document["services"])
    _check_redirect(document)
    _check_calls(document["services"])
    gates.staging_settings(validation)
    return DeployConfig(
        application=document["application"],
        public_url=document["public_url"].rstrip("/"),
        on_call=document["on_call"],
        checks=CheckSettings(
            required=gates.required_checks(checks),
            rulesets=checks.get("rulesets", True),
            allow_skipped=tuple(checks.get("allow_skipped", [])),
            wait_minutes=checks.get("wait_minutes", 15),
            build=_commands(checks["build"]),
        ),
        validation=ValidationSettings(gates.audit_settings(validation.get("audit", {}))),
        toolchain=ToolchainSettings(**document.get("toolchain", {})),
        build=_build(document),
        registry=RegistrySettings(registry["repository"].rstrip("/"), registry.get("insecure", False)) if registry else None,
        database=_database(document),
        backup=BackupSettings(
            location=backup["location"],
            lock_mode=backup.get("lock_mode", "GOVERNANCE"),
            lock_days=backup.get("lock_days", 365),
            signing=document.get("evidence", {}).get("signing", "none"),
            checksums=backup.get("checksums", "full-object"),
        ),
        rollout=RolloutSettings(**{key: value for key, value in rollout.items() if key != "order"}),
        edge=_edge(edge),
        target=target,
        smoke=tuple(
            SmokeEndpoint(endpoint["name"], endpoint["url"], endpoint.get("status", 200), endpoint.get("contains"))
            for endpoint in document.get("smoke", {}).get("endpoints", [])
        ),
        services=in_order({name: _service(name, table) for name, table in document["services"].items()}, rollout.get("order", [])),
        calendar=calendar_settings(gates.dates_as_text(document.get("calendar"))),
    )


def _database(document: dict[str, Any]) -> DatabaseSettings:
    table, command = document["database"], document.get("migrations", {}).get("command")
    of_prisma = sorted({"migrate", "migrations_dir", "schema"} & table.keys())
    if command is not None and of_prisma:
        named = ", ".join(f"database.{key}" for key in of_prisma)
        raise ValueError(f"migrations.command: another tool's; remove {named}, or migrations.command")
    return DatabaseSettings(
        prepare=_commands(table.get("prepare", [["npm", "ci"]] if command is None else [])),
        migrate=tuple(table.get("migrate", ["npx", "prisma", "migrate", "deploy"])),
        migrations_dir=Path(table.get("migrations_dir", "prisma/migrations")),
        schema=table.get("schema", "public"),
        via_ssh=table.get("via_ssh", False),
        variables=dict(table.get("variables", {"DATABASE_URL": "url"})),
        command=None if command is None else tuple(command),
        old_version=old_version(document),
    )


def _build(document: dict[str, Any]) -> BuildSettings:
    table = document["build"]
    isolation, reason = table.get("isolation", "job"), table.get("isolation_reason")
    if (isolation == "none") != (reason is not None):
        raise ValueError('build.isolation_reason: says why build.isolation is "none"; one does not stand without the other')
    mounting = [
        f"services.{name}.build.secrets" for name, service in document["services"].items() if service.get("build", {}).get("secrets")
    ]
    if mounting and isolation != "none":
        raise ValueError(
            f"{', '.join(mounting)}: images are built in a job that holds no secret; build without it, or set "
            'build.isolation = "none" with build.isolation_reason'
        )
    return BuildSettings(_commands(table["commands"]), isolation, reason)


def _image(table: dict[str, Any]) -> ImageSettings:
    return ImageSettings(table.get("target"), dict(table.get("args", {})), table.get("platform"), tuple(table.get("secrets", [])))


def _edge(table: dict[str, Any]) -> EdgeSettings:
    folder = Path(table["config_dir"]) if "config_dir" in table else None
    return EdgeSettings(folder, _tls(table), table.get("trusted_proxies", 0), table.get("sticky_cookie"))


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
    probed = {f"services.{name}.public_health_url": service.get("public_health_url", "") for name, service in document["services"].items()}
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
    return TargetSettings(kind, local_processes, _docker_hosts(document.get("docker_hosts")), kubernetes.parse(document.get("kubernetes")))


def _docker_hosts(table: dict[str, Any] | None) -> DockerHostsSettings | None:
    if table is None:
        return None
    network = table.get("network", "10.214.0.0/16")
    try:
        size = ipaddress.IPv4Network(network).num_addresses
    except ValueError as error:
        raise ValueError(f"target.docker_hosts.network: {error}") from error
    if size < 256:
        raise ValueError(f"target.docker_hosts.network: {network} has {size} addresses, at least 256 are needed: it is divided by services")
    return DockerHostsSettings(
        edge_image=table["edge_image"],
        guard_image=table["guard_image"],
        http_port=table.get("http_port", 80),
        network=network,
        lease_seconds=table.get("lease_seconds", 45),
        disk_reserve=table.get("disk_reserve", "1g"),
        take_over=table.get("take_over"),
        name=table.get("name", "azora"),
    )


def _check_calls(services: dict[str, Any]) -> None:
    for name, table in services.items():
        unknown = [callee for callee in table.get("talks_to", []) if callee not in services or callee == name]
        if unknown:
            raise ValueError(f"services.{name}.talks_to: {', '.join(unknown)}: not another service of this configuration")


def _check_volumes(name: str, table: dict[str, Any]) -> None:
    """Raise ValueError for a volume that gives a service a part of the host, unless ``allow_host_paths`` names exactly that path."""
    allowed = table.get("allow_host_paths", [])
    for volume in table.get("volumes", []):
        source = volume.partition(":")[0]
        if names.EDGE_VOLUME.fullmatch(source):
            raise ValueError(
                f"services.{name}.volumes: {volume}: {source} holds an edge's routes and its guard's journal, here or of another "
                "application on the host; give the volume another name"
            )
        if not VOLUME_NAME.fullmatch(source) and (source not in allowed or ".." in source.split("/")):
            raise ValueError(
                f"services.{name}.volumes: {volume}: {source} is a path of the host; name a volume (uploads:/data), or repeat the path in "
                f"services.{name}.allow_host_paths: whoever takes over the service has what is there"
            )


def _check_build_paths(name: str, table: dict[str, Any]) -> None:
    """Raise ValueError for a build context or a Dockerfile that leads out of the repository; links are followed when it is built."""
    context = table.get("context", ".")
    for key, path in (("context", context), ("dockerfile", str(PurePosixPath(context, table.get("dockerfile", "Dockerfile"))))):
        if path.startswith("/") or posixpath.normpath(path).split("/")[0] == "..":
            raise ValueError(f"services.{name}.{key}: {path} leads out of the repository; name what is in it")


def _health(name: str, table: dict[str, Any]) -> HealthSettings:
    if "healthy" in table and table.get("status_from") == "status-code":
        raise ValueError(f"services.{name}.health.healthy: no words are read where status_from is status-code")
    return HealthSettings(**{**table, **({"healthy": tuple(table["healthy"])} if "healthy" in table else {})})


def _liveness(name: str, table: dict[str, Any]) -> str | None:
    path: str | None = table.get("liveness_path")
    if path is not None and path == table.get("health_path"):
        raise ValueError(
            f"services.{name}.liveness_path: {path} is the health_path, which fails on all instances at once when a database does: name "
            "a path that an instance answers by itself, or leave it out"
        )
    return path


def _secrets(name: str, table: dict[str, Any]) -> dict[str, str]:
    """Return variable -> secret of ``["X", { env = "y", secret = "Y" }]``. Raises ValueError for a variable that is named twice."""
    pairs = [(entry, entry) if isinstance(entry, str) else (entry["env"], entry["secret"]) for entry in table.get("secrets", [])]
    twice = sorted({variable for variable, _ in pairs if [other for other, _ in pairs].count(variable) > 1})
    if twice:
        raise ValueError(f"services.{name}.secrets: {', '.join(twice)}: one variable cannot hold two secrets")
    return dict(pairs)


def _service(name: str, table: dict[str, Any]) -> Service:
    _check_volumes(name, table)
    _check_build_paths(name, table)
    secrets = _secrets(name, table)
    return Service(
        id=name,
        title=table["title"],
        route_prefix=table.get("route_prefix", ""),
        health_path=table.get("health_path", ""),
        public_health_url=table.get("public_health_url", ""),
        port=table.get("port", 8080),
        instances=table.get("instances", 1),
        context=Path(table.get("context", ".")),
        dockerfile=Path(table.get("dockerfile", "Dockerfile")),
        command=tuple(table.get("command", [])),
        env=dict(table.get("env", {})),
        secrets=tuple(dict.fromkeys(secrets.values())),
        secret_variables=secrets,
        volumes=tuple(table.get("volumes", [])),
        memory=table.get("memory"),
        stop_grace_seconds=table.get("stop_grace_seconds", 30),
        timeout_seconds=table.get("timeout_seconds", JOB_SECONDS if table.get("kind") == JOB else 15),
        depends_on=tuple(table.get("depends_on", [])),
        build=_image(table.get("build", {})),
        talks_to=tuple(table.get("talks_to", [])),
        networks=tuple(table.get("networks", [])),
        cap_drop=tuple(table.get("cap_drop", [])),
        read_only=table.get("read_only", False),
        kind=table.get("kind", WEB),
        entrypoint=tuple(table.get("entrypoint", [])),
        singleton=table.get("singleton", False),
        when=table.get("when", BEFORE_ROLLOUT),
        health=_health(name, table.get("health", {})),
        max_connections=table.get("max_connections"),
        max_pending_requests=table.get("max_pending_requests"),
        liveness_path=_liveness(name, table),
        expected_latency_ms=table.get("expected_latency_ms"),
    )
