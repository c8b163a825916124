"""What each section of a report shows, as plain values for its template. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from azora_ci.core.pipeline import EVIDENCE_JOBS
from azora_ci.record.chain import Document
from azora_ci.record.pages.html import render
from azora_ci.record.pages.report import charts
from azora_ci.record.pages.report.answers import answers, title
from azora_ci.record.pages.report.compare import compare
from azora_ci.record.pages.report.material import SOURCES, Material

LONGEST_SQL = 20_000  # characters of a migration that are shown
TONES = {"ok": "good", "failed": "bad", "cancelled": "warn"}


def report(material: Material) -> str:
    """Return the report as HTML."""
    record = material.record
    heading, state, tone = title(material)
    rollout = charts.Rollout(material.stages, record["version"], material.rollout.get("limits")) if material.stages else None
    return render(
        "report/report.html",
        f"{heading}: {record['deployment_id']}",
        script="report/report.js",
        material=material,
        record=record,
        heading=heading,
        state=state,
        tone=tone,
        answers=answers(material),
        timeline=_timeline(record),
        rollout=rollout,
        stages=list(_stages(material)),
        migrations=list(_migrations(material)),
        blocked=(material.evidence("database-backup").get("trial") or {}).get("blocked") or [],
        trial=material.evidence("database-backup").get("trial"),
        comparison=compare(material.before, record) if material.before else [],
        sources={name: material.places(*jobs) for name, jobs in SOURCES.items()},
    )


def _timeline(record: Document) -> list[dict[str, Any]]:
    jobs = {job: record["evidence"][job] for job in EVIDENCE_JOBS if job in record["evidence"]}
    if not jobs:
        return []
    first, last = min(job["started_at"] for job in jobs.values()), max(job["ended_at"] for job in jobs.values())
    return [
        {
            "job": name,
            "status": job["status"],
            "tone": TONES[job["status"]],
            "started_at": job["started_at"],
            "seconds": record["metrics"]["job_seconds"].get(name),
            "drawing": charts.timeline(job["started_at"], job["ended_at"], first, last, TONES[job["status"]]),
        }
        for name, job in jobs.items()
    ]


def _stages(material: Material) -> Iterator[dict[str, Any]]:
    limits = material.rollout.get("limits")
    with_ticks = "stages" in material.rollout
    stages = material.stages
    compared = [number for number, stage in enumerate(stages) if sum(1 for requests in (stage["requests"] or {}).values() if requests) > 1]
    aborted = [number for number, stage in enumerate(stages) if stage["status"] != "healthy"]
    telling = max(aborted or compared, default=len(stages) - 1)
    for number, stage in enumerate(stages):
        source = material.place("gradual-rollout", f"/evidence/stages/{number}") if with_ticks else None
        yield {
            "stage": stage,
            "source": source,
            "services": list(_services(stage, limits)),
            "ticks": list(_ticks(stage)),
            "telling": number == telling,
            "decisive": number == max(aborted, default=len(stages) - 1),
        }


def _services(stage: Document, limits: Document | None) -> Iterator[dict[str, Any]]:
    """Yield a row for each service and version, with the intervals of its failed requests and its p95 on the axes of the stage."""
    alone = stage["traffic_percentage"] == 100  # then the old version gets no requests
    counted = {
        service: {version: row for version, row in versions.items() if row["requests"] or not alone}
        for service, versions in (stage.get("by_service") or {}).items()
    }
    rows = [(service, version, row) for service, versions in counted.items() for version, row in versions.items()]
    # Bounds of a handful of requests reach far: the axis ends where every value is seen.
    errors = max((row["error_bounds"][1] for *_, row in rows if row["requests"]), default=0.0)
    slowest = max((bound for *_, row in rows for bound in (row["p95_bounds_ms"][1], row["p95_ms"]) if bound is not None), default=0.0)
    for service, versions in counted.items():
        old = list(versions.values())[1] if len(versions) > 1 else None
        limit = None if limits is None else (old["error_rate"] if old else 0) + limits["error_points"] / 100
        for index, (version, row) in enumerate(versions.items()):
            name = "old" if index else "new"
            bounds = row["error_bounds"] if row["requests"] else (None, None)
            yield {
                "service": service,
                "version": version,
                "first": index == 0,
                "versions": len(versions),
                "row": row,
                "errors": charts.interval(bounds, row["error_rate"] if row["requests"] else None, errors, name, limit),
                "latency": charts.interval(row["p95_bounds_ms"], row["p95_ms"], slowest, name),
            }


def _ticks(stage: Document) -> Iterator[dict[str, Any]]:
    versions = list(stage["requests"] or {})
    for number, tick in enumerate(stage.get("decisions") or []):
        requests = [
            (version, tick["failed"].get(version, 0), tick["requests"][version]) for version in versions if version in tick["requests"]
        ]
        yield {"id": f"tick-{stage['stage']}-{number + 1}", "number": number, "tick": tick, "requests": requests}


def _migrations(material: Material) -> Iterator[dict[str, Any]]:
    """Yield the migrations that were applied or tried, each with what the copy predicted and what production took."""
    trial = material.evidence("database-backup").get("trial") or {}
    evidence = material.evidence("database-migrations")
    applied = {migration["name"]: migration for migration in material.record["migrations"]}
    tried = {file["name"]: file["sha256"] for file in trial.get("files") or []}
    observed = {statement["where"]: statement["seconds"] for statement in evidence.get("observed") or []}
    risks: Sequence[Mapping[str, Any]] = evidence.get("risks") or []
    statements = trial.get("statements") or []
    for name in dict.fromkeys([*applied, *tried]):
        own = [statement for statement in statements if (statement.get("where") or "").startswith(f"{name}/")]
        sql = material.sql.get(name)
        yield {
            "name": name,
            "checksum": applied.get(name, {}).get("checksum") or tried.get(name),
            "applied": name in applied,
            "seconds": applied.get(name, {}).get("seconds"),
            "predicted": sum(statement["seconds"] for statement in own) if name in tried and statements else None,
            "statements": [{**statement, "line": _line(statement["where"]), "real": observed.get(statement["where"])} for statement in own],
            "risks": [risk for risk in risks if risk["migration"] == name],
            "sql": sql if sql is None or len(sql) <= LONGEST_SQL else f"{sql[:LONGEST_SQL]}\n-- … {len(sql) - LONGEST_SQL} more characters",
        }


def _line(where: str) -> str:
    return where.rpartition(", ")[2]
