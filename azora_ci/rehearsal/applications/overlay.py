"""Replace what differs from production in an adopted configuration: addresses, target, backup location, registry. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_MISSING = object()
# Limits that fit stages of seconds: fewer requests are enough, a machine under load is slow at times, and nobody waits for a drain.
ROLLOUT = {"minimum_requests": 30, "inconclusive": "abort", "latency_factor": 20, "drain_seconds": 2}


@dataclass
class Overlay:
    """A configuration for a rehearsal. ``replaced``: ``<key>: <production's value> -> <the rehearsal's>``, for people."""

    document: dict[str, Any]
    replaced: list[str] = field(default_factory=list)

    def set(self, key: str, value: object) -> None:
        """Set a dotted key; None removes it."""
        *tables, name = key.split(".")
        table = self.document
        for part in tables:
            table = table.setdefault(part, {})
        self._set(table, name, value, key)

    def _set(self, table: dict[str, Any], name: str, value: object, key: str) -> None:
        former = table.get(name, _MISSING)
        if former == value or (value is None and former is _MISSING):
            return
        shown = "(nothing)" if former is _MISSING else former
        self.replaced.append(f"{key}: {shown} -> {'(removed)' if value is None else value}")
        if value is None:
            del table[name]
        else:
            table[name] = value

    def move(self, table: dict[str, Any], name: str, key: str, public_url: str) -> None:
        """Give an address the rehearsal's scheme, host and port; its path stays."""
        address = urlsplit(str(table[name]))
        self._set(table, name, f"{public_url}{address.path}{'?' if address.query else ''}{address.query}", key)


def overlay(document: Mapping[str, Any], values: Values, registry: str, commands: Mapping[str, list[str]]) -> Overlay:
    """Return the configuration of a rehearsal. ``registry``: the address that is asked for advisories; ``commands``: of services."""
    result = Overlay(copy.deepcopy(dict(document)))
    result.set("public_url", values.public_url)
    _addresses(result, values.public_url)
    if "target" in result.document:
        result.set("target.docker_hosts", None)
    for name, table in values.tables.items():
        for key, value in table.items():
            result.set(f"{name}.{key}", value)
    result.set("backup.location", values.backup_location)
    result.set("validation.audit.registry", registry)
    result.set("checks.wait_minutes", 0.2)
    for key, value in ROLLOUT.items():
        result.set(f"rollout.{key}", value)
    if "registry" not in values.tables:
        result.set("registry", None)
    _without_production(result)
    _host_paths(result, values.host_paths)
    for service, command in commands.items():
        result.set(f"services.{service}.entrypoint", None)
        result.set(f"services.{service}.command", command)
        result.set(f"services.{service}.env.PATH", values.path)
    return result


@dataclass(frozen=True)
class Values:
    """The values of a rehearsal's production: public address, tables of edge and target, location of backups, folder for paths of hosts,
    PATH of processes.
    """

    public_url: str
    tables: Mapping[str, Mapping[str, object]]
    backup_location: str
    host_paths: str
    path: str | None = None


def _addresses(result: Overlay, public_url: str) -> None:
    for name, service in result.document["services"].items():
        if "public_health_url" in service:
            result.move(service, "public_health_url", f"services.{name}.public_health_url", public_url)
    for number, endpoint in enumerate(result.document.get("smoke", {}).get("endpoints", [])):
        result.move(endpoint, "url", f"smoke.endpoints[{number}].url", public_url)


def _without_production(result: Overlay) -> None:
    """Remove what only production has: certificates, keys, other branches, reviewers, the way to the database, networks of its hosts."""
    present = result.document
    for key in ("tls_certificate", "tls_key", "https_port", "redirect_http"):
        if key in present.get("edge", {}):
            result.set(f"edge.{key}", None)
    if present.get("evidence", {}).get("signing", "none") != "none":
        result.set("evidence.signing", "none")
    if "branches" in present.get("validation", {}):
        result.set("validation.branches", None)
    if present.get("approval", {}).get("distinct_person"):
        result.set("approval.distinct_person", value=False)
    if present.get("database", {}).get("via_ssh"):
        result.set("database.via_ssh", value=False)
    for name, service in present["services"].items():
        if service.get("networks"):
            result.set(f"services.{name}.networks", None)


def _host_paths(result: Overlay, folder: str) -> None:
    """Give services folders of the rehearsal in place of paths of production's hosts."""
    for name, service in result.document["services"].items():
        paths = [source for source in (volume.partition(":")[0] for volume in service.get("volumes", [])) if source.startswith("/")]
        if paths:
            moved = [f"{folder}{volume}" if volume.startswith("/") else volume for volume in service["volumes"]]
            result.set(f"services.{name}.volumes", moved)
            result.set(f"services.{name}.allow_host_paths", [f"{folder}{path}" for path in paths])
