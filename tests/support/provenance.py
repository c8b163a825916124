"""Walk over every leaf of a deployment's record, and find the fragment and the line of a job's log that stand behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azora_ci.core import schemas
from azora_ci.record.pages.report.material import SOURCES, Material, Source

# Fields of the run itself and of the archive, which job deployment-record adds, and those that follow from others.
OF_THE_RUN = {"schema_version", "environment", "triggered_by", "repository", "run_id", "run_url", "run_attempt", "rollback_window_minutes"}
OF_THE_ARCHIVE = {"previous_record_sha256", "previous_record_location", "artifacts_location", "signed_by", "set_aside"}
COMPUTED = {"timestamp", "status", "rollback_deadline", "metrics", "evidence", "failure"}
RENAMED = {"smoke_tests": "smoke_status", "build_isolation": "isolation", "artifact_kind": "kind", "migration_tool": "tool"}

Leaf = tuple[str, str, Any]  # JSON pointer, name of the innermost key, value


def leaves(value: Any, pointer: str = "", name: str = "") -> Iterator[Leaf]:
    """Yield the leaves of a document that say something."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{pointer}/{index}", name)
    elif value is not None:
        yield pointer, name, value


def unfounded(artifacts: Path, record: dict[str, Any]) -> list[str]:
    """Return what of a record nothing in the artifacts of its run stands behind."""
    return [*_without_fragment(artifacts, record), *_without_log_line(artifacts, record)]


def _without_fragment(artifacts: Path, record: dict[str, Any]) -> Iterator[str]:
    material = Material(record=record, sha256="")
    documents = {place.job: json.loads((artifacts / place.fragment).read_bytes()) for place in material.places(*record["evidence"])}
    for job, document in documents.items():
        if hashlib.sha256(schemas.canonical(document)).hexdigest() != record["evidence"][job]["fragment_sha256"]:
            yield f"/evidence/{job}: the fragment has another SHA-256"
        if any(document[name] != record["evidence"][job][name] for name in ("status", "started_at", "ended_at", "run_attempt")):
            yield f"/evidence/{job}: the fragment says something else"
    known = {job: list(leaves(document)) for job, document in documents.items()}
    keys = {job: {name for _, name, _ in found} | set(document["evidence"].get("services") or ()) for (job, document), found in
            zip(documents.items(), known.values(), strict=True)}  # fmt: skip
    for pointer, name, value in leaves(record):
        field = pointer.split("/")[1]
        if field in OF_THE_RUN | OF_THE_ARCHIVE | COMPUTED:
            continue
        if field not in SOURCES:
            yield f"{pointer}: nobody says which job it comes from"
        elif not any(_says(known[job], keys[job], name, value) for job in SOURCES[field] if job in known):
            yield f"{pointer}: {value!r} is in no fragment of {', '.join(SOURCES[field])}"


def _says(known: list[Leaf], keys: set[str], name: str, value: Any) -> bool:
    if isinstance(value, str):
        text = value.partition(": ")[2] if name == "override_reasons" else value
        return text in keys or any(text == other for *_, other in known)
    names = {name, RENAMED.get(name, name)}
    return any(value == other and type(value) is type(other) and key in names for _, key, other in known)


def _without_log_line(artifacts: Path, record: dict[str, Any]) -> Iterator[str]:
    material = Material(record=record, sha256="")
    logs = {place.job: (artifacts / place.log).read_text(encoding="utf-8") for place in material.places(*record["evidence"])}
    for job, line in _lines(record):
        if line not in logs[job]:
            yield f"{_name(material.place(job))} does not say {line!r}"


def _name(place: Source) -> str:
    return place.log


def _lines(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (job, what its log says) for each thing of a record that was observed."""
    yield "validate-release", f"✓ {record['version']} is a release version"
    yield "validate-release", record["git_sha"]
    yield from (("pre-deployment-validation", f"✓ {check['name']}") for check in record["checks"])
    for command in record["commands"]:
        yield "build", f"✓ {command['purpose']} command {' '.join(command['argv'])} ended with exit code {command['exit_code']}"
    backup = record["database_backup"]
    yield "database-backup", f"✓ backup restored and compared row by row: {backup['tables']} tables, {backup['rows']:,} rows"
    yield "database-backup", f"✓ stored object read back, SHA-256 {backup['sha256']}"
    for migration in record["migrations"]:
        yield "database-migrations", f"✓ {migration['name']} is applied"
        yield "database-migrations", f"{migration['name']}, SHA-256 {migration['checksum']}"
    yield from (("build-and-push", digest) for digest in record["image_digests"].values())
    for stage in record["rollout_stages"]:
        yield "gradual-rollout", f"✓ the edge answers that {stage['traffic_percentage']} % of traffic goes to {record['version']}"
        yield "gradual-rollout", f"✓ {stage['stage']} was watched for {stage['duration_minutes'] * 60:.0f} s: {stage['reason']}"
        healthy = stage["probes"]["total"] - stage["probes"]["failed"]
        yield "gradual-rollout", f"probes {healthy} of {stage['probes']['total']} healthy"
    yield "gradual-rollout", f"✓ {record['version']} is promoted; {record['previous_version']} keeps running"
    yield from (("smoke-tests", f"✓ {test['name']}: {test['detail']}") for test in record["smoke_tests"])
