"""The guide's five metrics of a deployment as Prometheus text, from its record alone. Pure.

For the textfile collector of a node exporter, or a push gateway: gauges of the latest deployment to an environment, without times of
their own. What the record does not know is left out. https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

FILE_NAME = "metrics.prom"
Document = Mapping[str, Any]
Samples = Iterable[tuple[Mapping[str, str], float | None]]  # labels and value; None: not known

PREFIX = "azora_deployment"
# Of each metric: its name, what it says, and its labels beside the environment.
HELP = {
    "timestamp_seconds": ("Moment of the record, seconds since 1970", ()),
    "duration_seconds": ("Seconds from the first job's start to the last one's end", ()),
    "job_duration_seconds": ("Seconds that a job took", ("job",)),
    "stage_duration_seconds": ("Seconds for which a stage of the rollout was watched", ("stage",)),
    "lead_time_seconds": ("Seconds from the release's commit to the end of the deployment", ()),
    "health_check_success_ratio": ("Share of the rollout's health checks that succeeded", ()),
    "health_checks": ("Health checks of the rollout", ("result",)),
    "availability_ratio": ("Share of health checks at public addresses that succeeded during a stage", ("stage",)),
    "error_ratio": ("Share of users' requests that failed during a stage", ("stage", "version")),
    "requests": ("Users' requests during a stage", ("stage", "version")),
    "migration_duration_seconds": ("Seconds that the job of the database's migrations took", ()),
    "one_migration_duration_seconds": ("Seconds that one migration took", ("migration",)),
}


def metrics_text(document: Document) -> str:
    """Return the metrics of the deployment that a record is about."""
    from prometheus_client import CollectorRegistry, Gauge, Info, generate_latest

    registry, environment = CollectorRegistry(), str(document["environment"])
    names = ("deployment_id", "version", "status", "git_sha", "previous_version")
    facts = {"environment": environment, **{name: str(document[name] or "") for name in names}}
    Info(PREFIX, "The deployment that the other metrics are about", registry=registry).info(facts)
    for name, samples in _samples(document).items():
        text, labels = HELP[name]
        known = [(more, value) for more, value in samples if value is not None]
        if known:
            gauge = Gauge(f"{PREFIX}_{name}", text, ("environment", *labels), registry=registry)
            for more, value in known:
                gauge.labels(environment=environment, **more).set(value)
    return generate_latest(registry).decode()


def _samples(document: Document) -> dict[str, Samples]:
    metrics, stages = document["metrics"], document["rollout_stages"]
    probes = metrics["health_probes"]

    def per_version(key: str) -> Samples:
        return [
            ({"stage": stage["stage"], "version": version}, value)
            for stage in stages
            for version, value in (stage.get(key) or {}).items()
        ]  # fmt: skip

    return {
        "timestamp_seconds": [({}, datetime.fromisoformat(document["timestamp"]).timestamp())],
        "duration_seconds": [({}, metrics["duration_seconds"])],
        "job_duration_seconds": [({"job": job}, seconds) for job, seconds in metrics["job_seconds"].items()],
        "stage_duration_seconds": [({"stage": stage["stage"]}, round(stage["duration_minutes"] * 60, 3)) for stage in stages],
        "lead_time_seconds": [({}, metrics["lead_time_seconds"])],
        "health_check_success_ratio": [({}, metrics["health_check_success_rate"])],
        "health_checks": [({"result": "failed"}, probes["failed"]), ({"result": "healthy"}, probes["total"] - probes["failed"])],
        "availability_ratio": [({"stage": stage["stage"]}, stage.get("availability")) for stage in stages],
        "error_ratio": per_version("error_rate"),
        "requests": per_version("requests"),
        "migration_duration_seconds": [({}, metrics["migration_seconds"])],
        "one_migration_duration_seconds": [
            ({"migration": migration["name"]}, migration.get("seconds")) for migration in document["migrations"]
        ],
    }
