"""Did the button take the deployment back? Judged from what was seen outside, like ``verify``, which judged the deployment before.

Imports nothing of the steps or decisions that are judged. Every finding is one sentence with what was seen and what was demanded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.rehearsal.evidence import Seen

JOB = "rollback"
ARTIFACT = "rollback-logs"
SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "rollback-record.schema.json"
INSTANCES = 8  # of the version before: four services, two of each
FILES = ("record/rollback.json", "rollback-record.json", "rollback.log")


@dataclass(frozen=True, kw_only=True)
class Pressed:
    """What was asked for: bare versions from and to, the deployment before, the reason and who pressed the button."""

    old: str
    new: str
    old_id: str
    reason: str
    actor: str


def findings(seen: Seen, pressed: Pressed) -> list[str]:
    """Return everything that is not as demanded after a rollback; empty when it went well."""
    release = seen.fragment("validate-release")
    if release is None or not release.get("deployment_id"):
        return ["validate-release left no fragment with a deployment id in its artifact"]
    own_id = str(release["deployment_id"])
    return [
        *_job(seen, own_id),
        *_users(seen, pressed),
        *_instances(seen),
        *_archive(seen, pressed, own_id),
        *_message(seen, pressed, own_id),
        *_summary(seen, pressed),
        *(f"a secret can be read: {place}" for place in seen.leaks),
    ]


def _job(seen: Seen, own_id: str) -> Iterable[str]:
    result = seen.jobs[JOB].result if JOB in seen.jobs else "missing"
    if result != "success":
        yield f"job {JOB}: {result}, demanded success"
    name = f"{ARTIFACT}-{own_id}"
    lacking = [one for one in FILES if one not in seen.artifacts.get(name, [])]
    if lacking:
        yield f"artifact {name}: {seen.artifacts.get(name) or 'missing'}, demanded {', '.join(lacking)} in it"


def _users(seen: Seen, pressed: Pressed) -> Iterable[str]:
    if not seen.fresh:
        yield "no health endpoint was asked after the rollback"
    for path, found in seen.fresh.items():
        if set(found) != {f"200 {pressed.old}"}:
            yield f"{path} answers {found} after the rollback, demanded 200 and version {pressed.old} only"
    failed = [one for one in seen.answers if one.failed]
    if failed:
        yield f"{len(failed)} of {len(seen.answers)} requests failed, demanded none; the first: {failed[0]}"
    run = seen.jobs.get(JOB)
    begun, ended = (run.started, run.ended) if run else (None, None)
    if begun is None or ended is None:
        yield "when the rollback ran is not known"
        return
    before = [one for one in seen.answers if one.at < begun][-20:]
    if not before or {one.version for one in before} != {pressed.new}:
        yield f"{pressed.new} did not serve everything before the rollback, so that nothing was taken back"
    late = [one for one in seen.answers if one.at > ended]
    wrong = [one for one in late if one.version != pressed.old]
    if wrong or len(late) < 20:
        yield f"{len(wrong)} of {len(late)} requests after the rollback were not answered by {pressed.old}, demanded none of at least 20"


def _instances(seen: Seen) -> Iterable[str]:
    """Going back starts nothing: whoever answers now began before the deployment did."""
    deployment = seen.jobs.get("validate-release")
    if deployment is None or deployment.started is None:
        yield "when the deployment began is not known"
        return
    for path, moments in seen.started.items():
        young = [one for one in moments if one >= deployment.started]
        if young or not moments:
            yield f"{path} is answered by {len(young)} of {len(moments)} instances that began after the deployment did, demanded none"
    if not seen.started:
        yield "when the serving instances began is not known"


def _archive(seen: Seen, pressed: Pressed, own_id: str) -> Iterable[str]:
    folder = f"records/production/{own_id}/"
    there = sorted(key.removeprefix(folder) for key in seen.objects if key.startswith(folder))
    if there != ["1.json", "rollback-1.json"]:
        yield f"the archive holds {there} of the deployment, demanded 1.json and rollback-1.json"
        return
    deployment, data = seen.objects[f"{folder}1.json"], seen.objects[f"{folder}rollback-1.json"]
    record = json.loads(data)
    yield from _schema(record)
    yield from _fields(record, pressed, own_id)
    sha256 = hashlib.sha256(deployment).hexdigest()
    named = {"previous_record_sha256": record.get("previous_record_sha256"), **(record.get("deployment_record") or {})}
    for name in ("previous_record_sha256", "sha256"):
        if named.get(name) != sha256:
            yield f"rollback record: {name} is {named.get(name)!r}, the deployment's record has {sha256}"
    if seen.documents.get(f"{ARTIFACT}-{own_id}/rollback-record.json") != record:
        yield "the rollback record in the artifact is not the archived one"


def _schema(record: object) -> Iterable[str]:
    import jsonschema

    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    for error in checker.iter_errors(record):
        yield f"rollback record: {error.json_path}: {error.message[:200]}"


def _fields(record: Mapping[str, Any], pressed: Pressed, own_id: str) -> Iterable[str]:
    wanted: dict[str, object] = {
        "deployment_id": own_id,
        "version": f"v{pressed.new}",
        "to": {"version": f"v{pressed.old}", "deployment_id": pressed.old_id},
        "status": "completed",
        "reason": pressed.reason,
        "triggered_by": pressed.actor,
        "proved": True,
        "requests_after": 0,
        "smoke_status": "passed",
        "already_back": False,
        "after_deadline": False,
        "fenced": None,
    }
    for name, value in wanted.items():
        if record.get(name) != value:
            yield f"rollback record: {name} is {record.get(name)!r}, demanded {value!r}"
    if len(record.get("instances") or []) != INSTANCES:
        yield f"rollback record: {len(record.get('instances') or [])} instances, demanded {INSTANCES}"


def expected_message(pressed: Pressed, own_id: str) -> str:
    """Return the text that Slack receives of a rollback that went well."""
    reason = pressed.reason.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (
        f"↩️ Production rolled back\nVersion: v{pressed.new} → v{pressed.old}\nDeployment ID: {own_id}\nReason: {reason}\n"
        f"Started by: {pressed.actor}\nThe database was left as it is"
    )


def _message(seen: Seen, pressed: Pressed, own_id: str) -> Iterable[str]:
    wanted = expected_message(pressed, own_id)
    if seen.messages[1:] != [wanted]:  # the first one is the deployment's
        yield f"Slack received {seen.messages[1:]} of the rollback, demanded {wanted!r}"


def _summary(seen: Seen, pressed: Pressed) -> Iterable[str]:
    text = seen.summaries.get(JOB, "")
    for wanted in (f"v{pressed.new} was taken back", f"all traffic is on v{pressed.old}", "smoke test", "| record of the rollback | s3://"):
        if wanted not in text:
            yield f"the summary of {JOB} does not say {wanted!r}: {text[:300] or '(empty)'}"
