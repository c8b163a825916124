"""The tables of the configuration that decide whether a release may begin: ``checks``, ``validation`` and ``approval``.

They count as the default branch has them, because who pushes a tag writes the tagged commit. Other tables of that file may belong to
another version of azora-ci than the one that reads it, so they are not looked at.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

from azora_ci.core import schemas
from azora_ci.core.config.tables import GateSettings, RequiredCheck
from azora_ci.core.errors import BadInputError

TABLES = ("checks", "validation", "approval")


def parse(text: str, where: str) -> tuple[GateSettings, dict[str, Any]]:
    """Return the gates that a configuration's text describes, and their tables. Raises BadInputError that names ``where``."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, next_step = str(error), "correct the named line"
        raise BadInputError("Deployment configuration is not TOML", what=what, where=where, next_step=next_step) from error
    tables = {name: document[name] for name in TABLES if name in document}
    schemas.validate_part(tables, "deploy-config", TABLES, where=where)
    return gates_of(tables), tables


def gates_of(tables: dict[str, Any]) -> GateSettings:
    """Return the gates of valid tables."""
    checks = tables["checks"]
    return GateSettings(
        branches=tuple(tables.get("validation", {}).get("branches", [])),
        required=required_checks(checks),
        rulesets=checks.get("rulesets", True),
        allow_skipped=tuple(checks.get("allow_skipped", [])),
        wait_minutes=checks.get("wait_minutes", 15),
        distinct_person=tables.get("approval", {}).get("distinct_person", False),
    )


def required_checks(checks: dict[str, Any]) -> tuple[RequiredCheck, ...]:
    """Return ``checks.required``: each entry is a name, or a table of name and app."""
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in checks["required"]]
    return tuple(RequiredCheck(entry["name"], entry.get("app")) for entry in entries)


def differences(on_branch: dict[str, Any], in_tag: dict[str, Any]) -> list[dict[str, str | None]]:
    """Return every key of the tables that differs: ``{key, branch, tag}``, values as JSON, None where a side has none."""
    branch, tag = dict(_flat(on_branch)), dict(_flat(in_tag))
    keys = sorted(branch.keys() | tag.keys())
    return [{"key": key, "branch": branch.get(key), "tag": tag.get(key)} for key in keys if branch.get(key) != tag.get(key)]


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False, sort_keys=True)
