"""What the production deployment guide promises to be tracked and logged, found in the artifacts of a rehearsal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from azora_ci.core import schemas
from tests.support.rehearsals import Rehearsed

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
STAGES = {"canary": 5, "progressive": 50, "full": 100}
SERVICES = ("api_gateway", "auth_service", "education_service", "marketplace_service")


def artifact(rehearsed: Rehearsed, pattern: str) -> str:
    path = next(iter(rehearsed.base.glob(f"artifacts/{pattern}")), None)
    assert path is not None, f"no {pattern}"
    return path.read_text(encoding="utf-8")


# --- metrics tracked --------------------------------------------------------------------------------------------------------


def metrics(rehearsed: Rehearsed) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Return metric -> value of its distinguishing label -> value, as Prometheus reads them, and the record beside them."""
    families = text_string_to_metric_families(artifact(rehearsed, "deployment-record-*/metrics.prom"))
    values: dict[str, dict[str, float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = [value for name, value in sorted(sample.labels.items()) if name != "environment"]
        values.setdefault(sample.name.removeprefix("azora_deployment_"), {})[" ".join(labels)] = sample.value
    return values, rehearsed.json("deployment-record-*/deployment-record.json")


def deployment_duration_by_stage(rehearsed: Rehearsed) -> None:
    values, record = metrics(rehearsed)
    assert values["duration_seconds"][""] == record["metrics"]["duration_seconds"] > 0
    assert values["job_duration_seconds"] == record["metrics"]["job_seconds"]
    assert set(values["stage_duration_seconds"]) == set(STAGES) and all(values["stage_duration_seconds"].values())


def health_check_success_rate(rehearsed: Rehearsed) -> None:
    values, record = metrics(rehearsed)
    assert values["health_check_success_ratio"][""] == record["metrics"]["health_check_success_rate"] > 0.9
    assert sum(values["health_checks"].values()) == record["metrics"]["health_probes"]["total"]


def service_availability_during_rollout(rehearsed: Rehearsed) -> None:
    values, record = metrics(rehearsed)
    assert values["availability_ratio"] == {stage["stage"]: stage["availability"] for stage in record["rollout_stages"]}
    assert set(values["availability_ratio"]) == set(STAGES)


def error_rates_during_deployment(rehearsed: Rehearsed) -> None:
    values, record = metrics(rehearsed)
    shares = {f"{stage['stage']} {version}": share for stage in record["rollout_stages"] for version, share in stage["error_rate"].items()}
    assert values["error_ratio"] == shares and {"canary v1.0.0", "canary v1.1.0"} <= set(shares)


def database_migration_duration(rehearsed: Rehearsed) -> None:
    values, record = metrics(rehearsed)
    assert values["migration_duration_seconds"][""] == record["metrics"]["migration_seconds"] > 0
    assert set(values["one_migration_duration_seconds"]) == {migration["name"] for migration in record["migrations"]} != set()


# --- logs available ---------------------------------------------------------------------------------------------------------


def build_logs_with_timestamps(rehearsed: Rehearsed) -> None:
    for pattern in ("build-logs-*/build-and-push.log", "application-build-logs-*/build.log"):
        lines = artifact(rehearsed, pattern).splitlines()
        assert lines and re.match(STAMP, lines[0]) and sum(bool(re.match(STAMP, line)) for line in lines) >= 2, pattern
    assert "education_service" in artifact(rehearsed, "build-logs-*/build-and-push.log")


def migration_logs_with_sql_statements(rehearsed: Rehearsed) -> None:
    log = artifact(rehearsed, "migration-logs-*/database-migrations.log")
    for migration in rehearsed.json("deployment-record-*/deployment-record.json")["migrations"]:
        assert migration["name"] in log
    assert re.search(r"\b(ALTER|CREATE) (TABLE|INDEX|UNIQUE INDEX)\b", log)


def deployment_logs_with_service_status(rehearsed: Rehearsed) -> None:
    log = artifact(rehearsed, "smoke-test-logs-*/smoke-tests.log")
    assert len(re.findall(r"✓ [A-Z][\w ]+ health: version 1\.1\.0 ", log)) == len(SERVICES)
    assert "✓ Database connectivity" in log
    health = rehearsed.json("deployment-record-*/deployment-record.json")["health_checks"]
    assert {service: health[service] for service in SERVICES} == dict.fromkeys(SERVICES, "healthy")


def health_check_logs_with_response_times(rehearsed: Rehearsed) -> None:
    checks: list[dict[str, Any]] = []
    for pattern in ("rollout-logs-*/health.jsonl", "smoke-test-logs-*/health.jsonl"):
        checks += [json.loads(line) for line in artifact(rehearsed, pattern).splitlines()]
    for check in checks:
        schemas.validate(check, "health-check", where=f"health.jsonl: {check}")
    assert {check["phase"] for check in checks} == {*STAGES, "smoke-tests"}
    assert {(check["service"], check["side"]) for check in checks} >= {
        (each, side) for each in SERVICES for side in ("new", "old", "public")
    }
    answered = [check["milliseconds"] for check in checks if check["status"] == 200]
    assert len(answered) > 50 and all(answered)
    total = rehearsed.json("deployment-record-*/deployment-record.json")["metrics"]["health_probes"]["total"]
    assert sum(check["phase"] in STAGES for check in checks) == total
    assert re.search(r"canary health: .* healthy \d+ ms", artifact(rehearsed, "rollout-logs-*/gradual-rollout.log"))


def rollout_logs_with_traffic_percentages(rehearsed: Rehearsed) -> None:
    log = artifact(rehearsed, "rollout-logs-*/gradual-rollout.log")
    for stage, percent in STAGES.items():
        assert re.search(rf"{STAMP}{stage} +[\d.]+ s +{percent} %  probes \d+/\d+  v1\.1\.0 \d+ requests", log), stage


METRICS: tuple[Callable[[Rehearsed], None], ...] = (
    deployment_duration_by_stage,
    health_check_success_rate,
    service_availability_during_rollout,
    error_rates_during_deployment,
    database_migration_duration,
)
LOGS: tuple[Callable[[Rehearsed], None], ...] = (
    build_logs_with_timestamps,
    migration_logs_with_sql_statements,
    deployment_logs_with_service_status,
    health_check_logs_with_response_times,
    rollout_logs_with_traffic_percentages,
)
