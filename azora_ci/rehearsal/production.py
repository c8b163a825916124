"""The production of a rehearsal: its addresses, and its part of the deployment configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from azora_ci.targets.envoy.edge import ADMIN_SOCKET


class Production(Protocol):
    """A rehearsal's production: its addresses, the file that tells services to fail, and its part of the configuration."""

    @property
    def public_url(self) -> str:
        """Return the public address of the application."""

    @property
    def admin_socket(self) -> Path:
        """Return Envoy's admin socket."""

    @property
    def fault_file(self) -> Path:
        """Return the file that the sample's services read at every request."""

    @property
    def path(self) -> str | None:
        """Return the PATH of services that are processes; None for containers."""

    def tables(self) -> dict[str, dict[str, object]]:
        """Return the configuration's tables that say where instances run."""

    def service(self, folder: str) -> dict[str, object]:
        """Return the configuration's keys about building and running the sample's service in ``folder``."""


@dataclass(frozen=True)
class Places:
    """A production of local processes: addresses, folders, and the program that runs the sample's services."""

    edge_port: int
    edge_folder: Path
    state_folder: Path
    archive_folder: Path
    fault_file: Path
    node: Path
    path: str | None = None

    @property
    def public_url(self) -> str:
        """Return the public address of the application."""
        return f"http://127.0.0.1:{self.edge_port}"

    @property
    def admin_socket(self) -> Path:
        """Return Envoy's admin socket."""
        return self.edge_folder / ADMIN_SOCKET

    def tables(self) -> dict[str, dict[str, object]]:
        """Return the tables of edge and target."""
        return {
            "edge": {"config_dir": str(self.edge_folder)},
            "target": {"kind": "local_processes"},
            "target.local_processes": {"state_dir": str(self.state_folder), "archive_dir": str(self.archive_folder)},
        }

    def service(self, folder: str) -> dict[str, object]:
        """Return context, command and environment of a service."""
        run = {"context": f"services/{folder}/dist", "command": [str(self.node), "server.mjs"]}
        return {**run, "env": {"FAULT_FILE": str(self.fault_file)}}
