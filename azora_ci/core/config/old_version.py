"""``[migrations.old_version]``: how the version in production is tried on the migrated copy. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WEB, _JOB = "web", "job"


@dataclass(frozen=True)
class OldVersionRequest:
    """A request that the version in production must still answer. ``expect``: the status; None: as on the copy that is not migrated yet."""

    service: str
    path: str
    method: str = "GET"
    body: str | None = None
    content_type: str = "application/json"
    expect: int | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path} of {self.service}"


@dataclass(frozen=True)
class OldVersionSettings:
    """Which services of the version in production are started beside the copy, what they get beside its address, and what is asked.

    ``variables``: variable -> form of the copy's address, None: as ``database.variables``. ``seconds``: until they must be healthy.
    """

    services: tuple[str, ...]
    env: Mapping[str, str]
    variables: Mapping[str, str] | None
    read: tuple[OldVersionRequest, ...]
    write: tuple[OldVersionRequest, ...]
    seconds: float


def old_version(document: Mapping[str, Any]) -> OldVersionSettings | None:
    """Return the table of a configuration, None without one. Raises ValueError for services that cannot be asked."""
    table = document.get("migrations", {}).get("old_version")
    if table is None:
        return None
    services = document["services"]
    names = tuple(table.get("services") or (name for name, service in services.items() if service.get("kind", _WEB) == _WEB))
    for name in names:
        if name not in services:
            raise ValueError(f"migrations.old_version.services: {name}: not a service of this configuration")
        if services[name].get("kind", _WEB) == _JOB or not services[name].get("health_path"):
            raise ValueError(f"migrations.old_version.services: {name}: nothing can be asked of it; name services with a health_path")
    asked = {name: services[name] for name in names}
    read = tuple(_request("read", entry, asked, "GET") for entry in table.get("read", []))
    write = tuple(_request("write", entry, asked, "POST") for entry in table.get("write", []))
    variables = dict(table["variables"]) if "variables" in table else None
    return OldVersionSettings(names, dict(table.get("env", {})), variables, read, write, table.get("seconds", 60))


def _request(key: str, entry: str | Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]], method: str) -> OldVersionRequest:
    table: dict[str, Any] = {"path": entry} if isinstance(entry, str) else dict(entry)
    service = table.pop("service", None) or _routed(table["path"], asked)
    if service is None or service not in asked:
        where = f"migrations.old_version.{key}: {table['path']}"
        raise ValueError(f"{where}: {service or 'no service has that route'}: name a service of migrations.old_version.services")
    return OldVersionRequest(service, **{"method": method, **table})


def _routed(path: str, asked: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the service whose route is the longest that the path begins with, as at the edge."""
    prefixes = {service["route_prefix"].rstrip("/"): name for name, service in asked.items() if "route_prefix" in service}
    matching = [prefix for prefix in prefixes if path.partition("?")[0] == prefix or path.startswith(f"{prefix}/")]
    return prefixes[max(matching, key=len)] if matching else None
