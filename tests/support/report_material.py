"""What reports are made of in tests: a deployment that succeeded, one that was rolled back, and a rollback by hand, with all details."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from azora_ci.record import chain, deployment
from azora_ci.record.evidence import rollback_deadline
from azora_ci.record.fragments import Fragment
from azora_ci.record.pages.report.material import Material
from azora_ci.record.run import Circumstances, Previous, WorkflowRun
from tests.support import fragments_builder as build

OLD = "v1.2.2"
LOCATION = f"s3://azora-backups/records/production/{build.DEPLOYMENT_ID}/1.json"
SQL = 'ALTER TABLE "courses" ADD COLUMN "level" TEXT;\n'
LIMITS = {
    "error_points": 1, "latency_factor": 2, "latency_floor_ms": 100.0, "minimum_requests": 100, "false_abort_percent": 1.0,
    "not_found_points": None,
}  # fmt: skip
TRIAL = {
    "how": "full copy",
    "reason": None,
    "passed": True,
    "files": [{"name": name, "sha256": build.SHA256} for name in ("20261120000000_add_courses", "20261121000000_index_orders")],
    "statements": [
        {
            "tag": "ALTER TABLE", "objects": ["table public.courses"], "seconds": 0.25, "gained": [], "lost": [],
            "locks": [{"table": "courses", "mode": "AccessExclusiveLock"}], "where": "20261120000000_add_courses/migration.sql, line 1",
        }
    ],
    "blocked": [{"table": "courses", "mode": "AccessExclusiveLock", "seconds": 0.25}],
}  # fmt: skip


def ticks(versions: dict[str, int], number: int = 30, failed: int = 0) -> list[dict[str, Any]]:
    """Return the decisions of a stage. ``versions``: requests of each at its end; ``failed``: of the first one, of which it dies."""
    decisions = []
    for tick in range(1, number + 1):
        last = tick == number
        done = {version: requests * tick // number for version, requests in versions.items()}
        bad = {version: failed * tick // number if index == 0 else 0 for index, version in enumerate(versions)}
        decisions.append(
            {
                "after_seconds": tick * 10.0,
                "decision": ("abort" if failed else "advance") if last else "watch",
                "reason": "api_gateway#1 failed 3 of 3 probes in a row (HTTP 500)" if failed and last else "healthy",
                "probes": {"total": 8, "failed": 3 if failed and tick > number - 3 else 0},
                "requests": done,
                "failed": bad,
                "ours": dict.fromkeys(versions, tick),
                "p95_ms": {version: 80.0 + 7 * (tick % 3) if done[version] else None for version in versions},
                "lacking": max(0, 100 - 8 * tick),
            }
        )
    return decisions


def services(versions: dict[str, int], failed: int = 0) -> dict[str, Any]:
    return {
        service: {
            version: {
                "requests": requests // 4, "failed": failed // 4 if index == 0 else 0,
                "error_rate": (failed // 4) / (requests // 4) if index == 0 and requests > 3 else 0.0, "not_found": 0,
                "p50_ms": 22.0 if requests else None, "p95_ms": 80.5 if requests else None, "error_bounds": [0.0, 0.03],
                "p95_bounds_ms": [61.0, 99.5] if requests else [None, None],
            }
            for index, (version, requests) in enumerate(versions.items())
        }
        for service in build.SERVICES
    }  # fmt: skip


def rollout(**changes: Any) -> Fragment:
    """Return the fragment of a rollout with ticks, services and limits."""
    evidence = build.evidence("gradual-rollout")
    for stage in evidence["stages"]:
        stage["decisions"] = ticks(stage["requests"], number=int(stage["planned_minutes"] * 6))
        stage["by_service"] = services(stage["requests"])
    return build.fragment("gradual-rollout", **{**evidence, "limits": LIMITS, **changes})


def rolled_back() -> Fragment:
    """Return the fragment of a rollout that was aborted at 50 %: 300 of 3,000 requests failed."""
    evidence = rollout().evidence
    canary, progressive, _ = evidence["stages"]
    progressive |= {
        "status": "aborted", "reason": "api_gateway#1 failed 3 of 3 probes in a row (HTTP 500)", "probes": {"total": 240, "failed": 9},
        "decisions": ticks(progressive["requests"], failed=300), "error_rate": {build.VERSION: 0.1, OLD: 0.0},
        "by_service": services(progressive["requests"], failed=300), "last_failures": {"api_gateway#1": "HTTP 500"},
    }  # fmt: skip
    progressive["traffic"][build.VERSION] |= {"failed": 300, "errors_5xx": 300, "error_rate": 0.1}
    abort = {
        "stage": "progressive",
        "reason": progressive["reason"],
        "seconds_to_safe": 0.054,
        "proved": True,
        "detail": "0 requests reached it",
    }
    return build.fragment(
        "gradual-rollout",
        "failed",
        evidence={
            **evidence,
            "stages": [canary, progressive],
            "abort": abort,
            "rollout_status": "rolled_back",
            "rollback_available": False,
        },
    )


def material(rollout_fragment: Fragment | None = None, *, previous: Previous | None = None, **more: Any) -> Material:
    """Return what the report of a deployment is made of: its record fits its schema's names, its fragments are verified ones."""
    gradual = rollout_fragment or rollout()
    fragments = build.complete(
        gradual_rollout=gradual,
        database_backup=build.fragment("database-backup", trial=copy.deepcopy(TRIAL)),
        database_migrations=build.fragment(
            "database-migrations", observed=[{"at": build.moment(183), "seconds": 0.3, "where": TRIAL["statements"][0]["where"]}]
        ),
    )
    failure = None
    if gradual.status != "ok":
        del fragments["smoke-tests"]
        failed = {
            "job": "gradual-rollout",
            "result": "failure",
            "title": "progressive: not healthy",
            "what": gradual.evidence["abort"]["reason"],
        }
        failure = deployment.Failure([failed], ["smoke-tests", "deployment-record"], [f"Code and traffic: {OLD} has all traffic again."])
    run = WorkflowRun(
        id=build.RUN_ID, url=f"https://github.com/azora/azora/actions/runs/{build.RUN_ID}", attempt=1, actor="ada",
        repository="azora/azora", environment="production",
    )  # fmt: skip
    facts = Circumstances(
        run=run, deployment_id=build.DEPLOYMENT_ID, version=build.VERSION, git_sha=build.GIT_SHA, rollback_window_minutes=60,
        artifacts_location=f"s3://azora-backups/artifacts/production/{build.DEPLOYMENT_ID}/1/", previous=previous or Previous(),
    )  # fmt: skip
    record = deployment.assemble(fragments, facts, status="rolled_back" if failure else "success", failure=failure)
    return Material(
        record=record,
        sha256=chain.sha256(chain.archived_bytes(record)),
        location=LOCATION,
        fragments=fragments,
        sql={"20261120000000_add_courses": SQL},
        **more,
    )


def before() -> dict[str, Any]:
    """Return the record of the deployment before: smaller, faster, with another image."""
    record = copy.deepcopy(material().record)
    record |= {"deployment_id": build.PREVIOUS_ID, "version": OLD}
    record["metrics"]["duration_seconds"] = 1080.0
    record["image_digests"]["api_gateway"] = build.digest("before")
    return record


def rollback(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a rollback of a deployment by hand."""
    return {
        "kind": "rollback", "timestamp": build.moment(3000), "deployment_id": record["deployment_id"], "version": record["version"],
        "status": "completed", "reason": "checkout fails for every user", "triggered_by": "grace", "run_id": "77",
        "run_url": "https://github.com/azora/azora/actions/runs/77", "to": {"version": OLD, "deployment_id": build.PREVIOUS_ID},
        "rollback_deadline": rollback_deadline(record["timestamp"], 60), "after_deadline": False, "seconds_to_safe": 0.06, "proved": True,
        "detail": "0 requests reached the new version in 2 s", "migrations_applied": 2, "notes": [], "smoke_tests": record["smoke_tests"],
    }  # fmt: skip


def write(folder: Path) -> dict[str, Path]:
    """Write a page of each kind into a folder, and return their paths."""
    from azora_ci.record.pages.report.view import report

    success = material(before=before())
    pages = {
        "success": success,
        "rolled back": material(rolled_back(), next_steps=("correct the release",)),
        "rollback": material(rollback=rollback(success.record)),
    }
    paths = {}
    for name, each in pages.items():
        paths[name] = folder / f"{name.replace(' ', '-')}.html"
        paths[name].write_text(report(each), encoding="utf-8")
    return paths
