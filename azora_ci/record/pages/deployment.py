"""The summary page of a recorded deployment, as Markdown for the release engineer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from azora_ci.core.markdown import Markup, code, escaped, fenced, lines, listed, table
from azora_ci.core.pipeline import EVIDENCE_JOBS

Document = Mapping[str, Any]


def deployment_page(document: Document, location: str, sha256: str, notes: Iterable[str]) -> str:
    """Return the page of a successful deployment: version, rollout, services, jobs, rollback deadline, and the record's location."""
    parts = [
        f"## ✅ {document['version']} is in {escaped(document['environment'])}",
        _facts(document, location, sha256),
        "### Rollout",
        _stages(document),
        "### Services",
        _services(document),
        "### Jobs",
        timeline(document),
        _jobs(document),
        listed(notes),
        _whole_record(document),
    ]
    return "\n\n".join(part for part in parts if part)


def duration(seconds: float | None) -> str:
    """Return seconds as text for people: 4.2 s, 12 min 5 s; – for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remaining_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {remaining_seconds} s"


def _facts(document: Document, location: str, sha256: str) -> str:
    backup, metrics = document["database_backup"], document["metrics"]
    rollback = (
        Markup(f"to {escaped(document['previous_version'])} until **{document['rollback_deadline']}**")
        if document["rollback_available"]
        else "not possible: there is no previous version"
    )
    rows = [
        ("Deployment ID", code(document["deployment_id"])),
        ("Commit", code(document["git_sha"])),
        ("Rollback", rollback),
        ("Migrations", _migrations(document)),
        ("Backup", Markup(f"{code(backup['backup_id'])}, {_rows(backup)}, proof: {(backup['proof'] or {}).get('depth', 'none')}")),
        ("Took", f"{duration(metrics['duration_seconds'])}; {duration(metrics['lead_time_seconds'])} from the commit"),
        ("Record", lines([code(location), Markup(f"SHA-256 {code(sha256)}")])),
    ]
    if safe := document.get("code_rollback_safe"):
        answer = {True: "yes", False: "no", None: "not known"}[safe["value"]]
        rows.append(("Code can go back alone", f"{answer}, {safe['how']}: {'; '.join(safe['reasons'])}"))
    if document["host_keys"]:
        host_keys = (f"{key['key_type'] or 'authority'} {key['fingerprint']}, {key['source']}" for key in document["host_keys"])
        rows.append(("Host keys", lines(host_keys)))
    if jobs := document["rollout"].get("jobs"):
        rows.append(("Jobs of the release", lines(job["summary"] for job in jobs)))
    if emergency := document.get("emergency"):
        rows.append(("Emergency", f"{emergency['reason']} ({emergency['by']}); a person reviews it until {emergency['review_due']}"))
    if document["override_reasons"]:
        rows.append(("Overrides", "; ".join(document["override_reasons"])))
    return table(("", ""), rows)


def _migrations(document: Document) -> Markup:
    tool, count = document.get("migration_tool"), document["migrations_applied"]
    if tool == "none":
        return Markup("the application has none")
    names = ", ".join(code(migration["name"]) for migration in document["migrations"])
    applied = "an unknown number" if count is None else count
    return Markup(f"{applied} applied {'by another tool than Prisma' if tool == 'command' else names}")


def _rows(backup: Document) -> str:
    return f"{backup['rows']:,} rows" if isinstance(backup["rows"], int) else "rows not counted"


def _stages(document: Document) -> str:
    def error_rates(stage: Document) -> str:
        shares = (stage["error_rate"] or {}).items()
        return lines(f"{version}: {'–' if share is None else f'{share:.2%}'}" for version, share in shares)

    def requests(stage: Document) -> str:
        return lines(f"{version}: {count}" for version, count in (stage["requests"] or {}).items())

    return table(
        ("Stage", "Traffic", "Watched", "Probes failed", "Requests", "Errors", "Verdict"),
        (
            (
                stage["stage"], f"{stage['traffic_percentage']} %", duration(stage["duration_minutes"] * 60), _probes(stage["probes"]),
                requests(stage), error_rates(stage), stage["status"],
            )
            for stage in document["rollout_stages"]
        ),
    )  # fmt: skip


def _probes(probes: Document | None) -> str:
    return f"{probes['failed']} of {probes['total']}" if probes else "–"


def _services(document: Document) -> str:
    health = document["health_checks"]
    digests = document["image_digests"]
    watched = "no public address: watched until the promotion"
    rows = [(name, health.get(name, watched), code(digests.get(name))) for name in document["services_deployed"]]
    return table(("Service", "Health", "Digest"), rows)


def _jobs(document: Document) -> str:
    return table(("Job", "Took"), ((job, duration(seconds)) for job, seconds in document["metrics"]["job_seconds"].items()))


def timeline(document: Document) -> str:
    """Return the jobs of a record on an axis of time, as a Mermaid chart, which GitHub draws; empty without jobs.

    It holds names of jobs and numbers only: no text of others, and far less than Mermaid's 50,000 characters.
    """
    tasks = []
    for job in filter(document["evidence"].get, EVIDENCE_JOBS):
        part = document["evidence"][job]
        start, end = (round(datetime.fromisoformat(part[name]).timestamp() * 1000) for name in ("started_at", "ended_at"))
        tasks.append(f"  {job} :{'done' if part['status'] == 'ok' else 'crit'}, {start}, {max(start + 1, end)}")
    head = "gantt\n  dateFormat x\n  axisFormat %H:%M:%S"
    return fenced("\n".join([head, *tasks]), "mermaid") if tasks else ""


def _whole_record(document: Document) -> str:
    import json

    json_block = fenced(json.dumps(document, indent=2, ensure_ascii=False), "json")
    return f"<details><summary>The whole record</summary>\n\n{json_block}\n\n</details>"
