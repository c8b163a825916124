"""Deployment configurations for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)  # strings, numbers and booleans are written alike in TOML and JSON


def write(path: Path, **changes: Any) -> Path:
    """Write a small valid configuration; ``changes`` replace whole top-level keys, None leaves one out. Return ``path``."""
    document: dict[str, Any] = {
        "schema_version": 1,
        "application": "azora",
        "public_url": "https://azora.example",
        "on_call": "on-call@azora.example",
        "checks": {"required": ["test"], "build": [["true"]], "rulesets": False, "wait_minutes": 0},
        "validation": {"audit": {"level": "none", "reason": "a test without packages"}},
        "build": {"commands": []},
        "database": {},
        "backup": {"location": "s3://azora-backups/prod"},
        "edge": {"config_dir": str(path.parent / "edge")},
        "target": {
            "kind": "local_processes",
            "local_processes": {"state_dir": str(path.parent / "state"), "archive_dir": str(path.parent / "archives")},
        },
        "services": {"api_gateway": service("API Gateway", "https://azora.example/api/health")},
    }
    document |= changes
    path.write_text("".join(f"{name} = {_value(value)}\n" for name, value in document.items() if value is not None))
    return path


def service(title: str, url: str = "https://azora.example/health", **more: Any) -> dict[str, Any]:
    """Return a service of the configuration."""
    return {"title": title, "route_prefix": "/", "health_path": "/health", "public_health_url": url, **more}
