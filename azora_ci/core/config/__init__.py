"""``.github/deploy-production.toml`` as frozen values; ``schemas/deploy-config.schema.json`` describes every key."""

from azora_ci.core.config.order import start_groups
from azora_ci.core.config.parse import load
from azora_ci.core.config.tables import (
    AuditException,
    AuditSettings,
    BackupSettings,
    BuildSettings,
    CheckSettings,
    Command,
    DatabaseSettings,
    DeployConfig,
    DockerHostsSettings,
    EdgeSettings,
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

__all__ = [
    "AuditException",
    "AuditSettings",
    "BackupSettings",
    "BuildSettings",
    "CheckSettings",
    "Command",
    "DatabaseSettings",
    "DeployConfig",
    "DockerHostsSettings",
    "EdgeSettings",
    "LocalProcessesSettings",
    "RegistrySettings",
    "RolloutSettings",
    "Service",
    "SmokeEndpoint",
    "TargetSettings",
    "TlsSettings",
    "ToolchainSettings",
    "ValidationSettings",
    "load",
    "start_groups",
]
