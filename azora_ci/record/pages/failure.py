"""Render deployment-failure-report.md from the report's JSON (schema deployment-failure-report). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from azora_ci.core.markdown import code, escaped, fenced, listed, table
from azora_ci.core.pipeline import PIPELINE

SCHEMA = "deployment-failure-report"
JSON_FILE = "deployment-failure-report.json"
MARKDOWN_FILE = "deployment-failure-report.md"
UNVERIFIED = (
    "No output of their job names these fragments: the job was killed before it could, GitHub dropped the output because it contains a "
    "masked value (a short secret such as ec2 can mask hex digits), or somebody else wrote them. Nothing above rests on them."
)
HEADLINES = {"failed": "FAILED", "rolled_back": "was rolled back", "cancelled": "was cancelled"}


def failure_page(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: the state of production comes before the failed jobs."""
    parts = [
        f"# 🚨 Deployment of {escaped(report['version'] or 'an unknown version')} {HEADLINES[report['status']]}",
        _facts(report),
        "## State of production",
        _list(report["production_state"]),
        "## What failed",
        "\n\n".join(_failed(job) for job in report["failed_jobs"]) or "No failed job is known.",
        "## Action required: what to do next",
        _list(report["next_steps"]),
        "## What ran and what did not",
        _jobs(report),
        "## Backup",
        _backup(report["backup"]),
    ]
    if report["unverified"]:
        parts += ["## Unverified", UNVERIFIED, _unverified(report["unverified"])]
    if report["notes"]:
        parts += ["## What this report could not do", _list(report["notes"])]
    return "\n\n".join(parts) + "\n"


def _facts(report: Mapping[str, Any]) -> str:
    record = code(report["record_location"]) if report["record_location"] else "not archived"
    rows = [
        ("Deployment ID", code(report["deployment_id"]) if report["deployment_id"] else "none was assigned"),
        ("Version", report["version"] or "not known"),
        ("Commit", code(report["git_sha"]) if report["git_sha"] else "not known"),
        ("Environment", report["environment"]),
        ("Failed stage", ", ".join(job["job"] for job in report["failed_jobs"]) or "not known"),
        ("Run", f"{report['run_url']} (attempt {report['run_attempt']})"),
        ("Record", record),
        ("Slack", report["notification"]),
    ]
    return table(("", ""), rows)


def _failed(job: Mapping[str, str]) -> str:
    return f"### {job['job']} ({job['result']}): {escaped(job['title'])}\n\n{fenced(job['what'])}\n\nWhere: {escaped(job['where'])}"


def _list(lines: Iterable[str]) -> str:
    return listed(lines) or "- nothing is known"


def _jobs(report: Mapping[str, Any]) -> str:
    results = {job["job"]: job["result"] for job in report["failed_jobs"]}
    marks = {
        **dict.fromkeys(report["succeeded"], "✓ succeeded"),
        **{job: f"✗ {result}" for job, result in results.items()},
        **dict.fromkeys(report["not_run"], "not run"),
        **dict.fromkeys(report["unknown"], "not known"),
    }
    return table(("Job", "Result"), ((job, marks[job]) for job in PIPELINE if job in marks))


def _unverified(fragments: Iterable[Mapping[str, str]]) -> str:
    rows = ((part["job"], f"unverified: {part['status']}", part["what"] or "-", code(part["path"])) for part in fragments)
    return table(("Job", "It says", "Error", "File"), rows)


def _backup(backup: Mapping[str, Any] | None) -> str:
    if backup is None:
        return "This deployment left no backup."
    state = "verified, kept" if backup["verified"] else "**not verified**"
    summary = f"{code(backup['backup_id'])}: {state}. {code(backup['location'])}\n\n{escaped(backup['detail'])}\n\nNothing was deleted."
    if not backup["scripts"]:
        return summary
    restore, swap = backup["scripts"]
    return (
        f"{summary}\n\nOnly when data is damaged: `bash {restore}`, beside this report, restores it into a new database and compares;\n"
        f"`bash {swap}` then swaps that with the live one by renaming, and `bash {swap} back` undoes it.\n"
        "Their first lines say what they need. "
        "Writes after the snapshot are lost from the live database, and kept in the one that is set aside."
    )
