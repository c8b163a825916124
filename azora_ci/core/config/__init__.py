"""``.github/deploy-production.toml`` as frozen values; ``schemas/deploy-config.schema.json`` describes every key."""

from azora_ci.core.config.order import start_groups
from azora_ci.core.config.parse import load
from azora_ci.core.config.tables import (
    BackupSettings,
    BuildSettings,
    CheckSettings,
    Command,
    DatabaseSettings,
    DeployConfig,
    DockerHostsSettings,
    EdgeSettings,
    ImageSettings,
    LocalProcessesSettings,
    RegistrySettings,
    RolloutSettings,
    Service,
    SmokeEndpoint,
    TargetSettings,
    TlsSettings,
)

__all__ = [
    "BackupSettings",
    "BuildSettings",
    "CheckSettings",
    "Command",
    "DatabaseSettings",
    "DeployConfig",
    "DockerHostsSettings",
    "EdgeSettings",
    "ImageSettings",
    "LocalProcessesSettings",
    "RegistrySettings",
    "RolloutSettings",
    "Service",
    "SmokeEndpoint",
    "TargetSettings",
    "TlsSettings",
    "load",
    "start_groups",
]
