"""The guide's metrics as Prometheus reads them: every number of the record, and labels that stay labels."""

from __future__ import annotations

import copy
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from azora_ci.record import deployment
from azora_ci.record.pages.metrics import HELP, PREFIX, metrics_text
from tests.record.test_deployment import FACTS, success

ENVIRONMENT = {"environment": "production"}


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return what Prometheus reads: (name, labels) -> value."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.timestamp is None for sample in samples)
    values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(values) == len(samples), "a series stands twice"
    return values


def value(values: dict[Any, float], name: str, **labels: str) -> float:
    return values[f"{PREFIX}_{name}", frozenset((ENVIRONMENT | labels).items())]


def test_the_guides_five_metrics_are_the_records_numbers():
    record = success()
    values = read(metrics_text(record))
    metrics = record["metrics"]
    # Deployment duration, by stage
    assert value(values, "duration_seconds") == metrics["duration_seconds"]
    assert {job: value(values, "job_duration_seconds", job=job) for job in metrics["job_seconds"]} == metrics["job_seconds"]
    # Health check success rate
    assert value(values, "health_check_success_ratio") == metrics["health_check_success_rate"]
    probes = metrics["health_probes"]
    counts = {result: value(values, "health_checks", result=result) for result in ("failed", "healthy")}
    assert counts == {"failed": probes["failed"], "healthy": probes["total"] - probes["failed"]}
    # Database migration duration
    assert value(values, "migration_duration_seconds") == metrics["migration_seconds"]
    for stage in record["rollout_stages"]:
        labels = {"stage": stage["stage"]}
        assert value(values, "stage_duration_seconds", **labels) == round(stage["duration_minutes"] * 60, 3)
        # Service availability during rollout
        assert value(values, "availability_ratio", **labels) == stage["availability"]
        # Error rates during deployment
        for version, share in stage["error_rate"].items():
            assert value(values, "error_ratio", **labels, version=version) == share
    facts = {
        "deployment_id": FACTS.deployment_id,
        "version": "v1.2.3",
        "status": "success",
        "git_sha": FACTS.git_sha,
        "previous_version": "v1.2.2",
    }
    assert value(values, "info", **facts) == 1


def test_every_series_says_what_it_is_in_base_units():
    text = metrics_text(success())
    names = set(re.findall(rf"^({PREFIX}_\w+?)\{{", text, re.MULTILINE))
    for name in names:
        assert f"# TYPE {name} gauge\n" in text and re.search(rf"^# HELP {name} \S", text, re.MULTILINE)
    assert names == {f"{PREFIX}_{name}" for name in (*HELP, "info")}
    assert all(unit not in text for unit in ("_minutes", "_percent", "_rate{", "_ms{"))


def test_what_is_not_known_is_left_out():
    record = deployment.assemble({}, FACTS, status="failed", timestamp="2025-11-24T11:36:00.125Z")
    values = read(metrics_text(record))
    assert {name for name, _ in values} == {f"{PREFIX}_{name}" for name in ("info", "timestamp_seconds", "health_checks")}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(text=st.text() | st.sampled_from(['"} 1\nevil{a="', "\\", "\\n", "\n# HELP evil x\nevil 1", "\r", "\u2028"]))
def test_a_label_stays_a_label(text):
    record = copy.deepcopy(success())
    record["version"], record["rollout_stages"][0]["error_rate"] = text, {text: 0.25}
    record["migrations"] = [{"name": text, "seconds": 1.5}]
    try:
        output = metrics_text(record)
    except UnicodeEncodeError:  # half a character, which no reader of documents lets in
        return
    assert {line.partition("{")[0].partition(" ")[0] for line in output.split("\n") if line and line[0] != "#"} <= {
        f"{PREFIX}_{name}" for name in (*HELP, "info")
    }
    if not set(text) & set(
        "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    ):  # at which the parser of the library ends lines, and Prometheus does not
        values = read(output)
        assert value(values, "one_migration_duration_seconds", migration=text) == 1.5
        assert value(values, "error_ratio", stage=record["rollout_stages"][0]["stage"], version=text) == 0.25
