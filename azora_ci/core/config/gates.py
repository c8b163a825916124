"""What of the configuration decides whether a release may begin: ``checks``, ``validation``, ``approval``, ``calendar``, and
single keys.

They count as the default branch has them, because who pushes a tag writes the tagged commit. Other tables of that file may belong to
another version of azora-ci than the one that reads it, so they are not looked at.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from typing import Any

from azora_ci.core import schemas
from azora_ci.core.config.calendar import CalendarSettings, calendar_settings
from azora_ci.core.config.tables import AuditException, AuditSettings, RequiredCheck
from azora_ci.core.documents import UnreadableError, read_toml
from azora_ci.core.errors import BadInputError

TABLES = ("checks", "validation", "approval", "calendar")
# Of these tables only some keys count, each with what it means where it is not set: where images are built, where logins, backups and
# records are sent, and whose signature makes a manifest or record believed.
PARTS: dict[str, dict[str, object]] = {
    "build": {"isolation": "job", "isolation_reason": None},
    "registry": {"repository": None, "insecure": False},
    "backup": {"location": None},
    "evidence": {"signing": "none"},
}
ADDRESSES = ("registry.repository", "registry.insecure", "backup.location", "evidence.signing")


@dataclass(frozen=True)
class StagingSettings:
    """The environment in which a release must have been deployed before, and how old that deployment may be (None: any age)."""

    environment: str = "staging"
    max_age: timedelta | None = None


@dataclass(frozen=True)
class GateSettings:
    """What decides whether a release may begin, read from the default branch: branches that may hold releases (empty: the default
    branch), required checks, whether rulesets add theirs, checks that may be skipped, minutes to wait, whether a person other than the
    author must have approved every pull request, the audit, whether the application may be built in a job that holds secrets, what must
    have been deployed elsewhere first (None: nothing), and when deployments may begin (None: always).
    """

    branches: tuple[str, ...]
    required: tuple[RequiredCheck, ...]
    rulesets: bool
    allow_skipped: tuple[str, ...]
    wait_minutes: float
    distinct_person: bool
    audit: AuditSettings
    builds_beside_secrets: bool
    staging: StagingSettings | None = None
    calendar: CalendarSettings | None = None


def parse(text: str, where: str) -> tuple[GateSettings, dict[str, Any]]:
    """Return the gates that a configuration's text describes, and their tables. Raises BadInputError that names ``where``."""
    try:
        document = read_toml(text)
    except UnreadableError as error:
        what, next_step = str(error), "correct the named line"
        raise BadInputError("Deployment configuration is not TOML", what=what, where=where, next_step=next_step) from error
    tables = {name: dates_as_text(document[name]) for name in TABLES if name in document}
    schemas.validate_part(tables, "deploy-config", TABLES, where=where)
    parts = {name: part for name, keys in PARTS.items() if (part := _part(dates_as_text(document.get(name)), keys))}
    try:
        return gates_of(tables, parts.get("build", {})), tables | parts
    except ValueError as error:
        what, next_step = str(error), "correct the named keys"
        raise BadInputError("Deployment configuration contradicts itself", what=what, where=where, next_step=next_step) from error


def _part(table: Any, keys: dict[str, object]) -> dict[str, Any]:
    """Return those keys of a table that say another thing than their absence; no address needs a last slash."""
    values = {key: table[key] for key, unset in keys.items() if table.get(key, unset) != unset} if isinstance(table, dict) else {}
    return {key: value.rstrip("/") if isinstance(value, str) else value for key, value in values.items()}


def gates_of(tables: dict[str, Any], built: dict[str, Any]) -> GateSettings:
    """Return the gates of valid tables and of the keys of [build] that count. Raises ValueError for tables that contradict themselves."""
    checks, validation = tables["checks"], tables.get("validation", {})
    return GateSettings(
        branches=tuple(validation.get("branches", [])),
        required=required_checks(checks),
        rulesets=checks.get("rulesets", True),
        allow_skipped=tuple(checks.get("allow_skipped", [])),
        wait_minutes=checks.get("wait_minutes", 15),
        distinct_person=tables.get("approval", {}).get("distinct_person", False),
        audit=audit_settings(validation.get("audit", {})),
        builds_beside_secrets=built.get("isolation") == "none",
        staging=staging_settings(validation),
        calendar=calendar_settings(tables.get("calendar")),
    )


def staging_settings(validation: dict[str, Any]) -> StagingSettings | None:
    """Return what ``validation.require_staging`` demands. Raises ValueError for a key that says nothing without it."""
    if not validation.get("require_staging", False):
        idle = [f"validation.{key}" for key in ("staging_environment", "staging_max_age_days") if key in validation]
        if idle:
            raise ValueError(f"{', '.join(idle)}: says nothing without validation.require_staging = true")
        return None
    days = validation.get("staging_max_age_days")
    return StagingSettings(validation.get("staging_environment", "staging"), None if days is None else timedelta(days=days))


def dates_as_text(value: Any) -> Any:
    """Return a document of TOML with its dates as texts: JSON Schema knows no dates."""
    if isinstance(value, dict):
        return {name: dates_as_text(item) for name, item in value.items()}
    if isinstance(value, list):
        return [dates_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, date | time) else value


def audit_settings(table: dict[str, Any]) -> AuditSettings:
    """Return ``validation.audit``. Raises ValueError for a level none without a reason, and for an exception that is named twice."""
    settings = AuditSettings(
        level=table.get("level", "high"),
        reason=table.get("reason"),
        exceptions=tuple(
            AuditException(entry["id"], entry["reason"], date.fromisoformat(str(entry["expires"]))) for entry in table.get("exceptions", [])
        ),
        registry=table["registry"].rstrip("/") if "registry" in table else None,
    )
    if settings.level == "none" and settings.reason is None:
        raise ValueError("validation.audit.reason: level none needs a reason, which is recorded")
    repeated = sorted(name for name, number in Counter(exception.id for exception in settings.exceptions).items() if number > 1)
    if repeated:
        raise ValueError(f"validation.audit.exceptions: {', '.join(repeated)} is named more than once")
    return settings


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
