"""Judge a rehearsed rollback by evidence gathered outside the pipeline, as ``deployment`` judges the deployment that it takes back.

The module imports none of the steps and decisions that it judges. Every finding is a sentence with the evidence and the demand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.core import schemas
from azora_ci.rehearsal.judge.evidence import Evidence

JOB = "rollback"
ARTIFACT = "rollback-logs"
SCHEMA = schemas.schema_folder() / "rollback-record.schema.json"
INSTANCES = 8  # of the previous version: four services with two instances each
FILES = ("record/rollback.json", "rollback-record.json", "rollback.log")


@dataclass(frozen=True, kw_only=True)
class Pressed:
    """The requested rollback: bare versions ``new`` -> ``old``, the old deployment's id, the reason, and who pressed the button.

    ``cluster``: whether production is a Kubernetes cluster. There pods of the old version are started again, since Argo gives its
    ReplicaSet for a moment the size of the first step.
    """

    old: str
    new: str
    old_id: str
    reason: str
    actor: str
    cluster: bool = False


def findings(evidence: Evidence, pressed: Pressed) -> list[str]:
    """Return a sentence for every contradiction between evidence and demand after a rollback; empty when it went well."""
    release = evidence.fragment("validate-release")
    if release is None or not release.get("deployment_id"):
        return ["validate-release left no fragment with a deployment id in its artifact"]
    own_id = str(release["deployment_id"])
    return [
        *_job(evidence, own_id),
        *_users(evidence, pressed),
        *(() if pressed.cluster else _instances(evidence)),
        *_archive(evidence, pressed, own_id),
        *_message(evidence, pressed, own_id),
        *_summary(evidence, pressed),
        *(f"a secret can be read: {place}" for place in evidence.leaks),
    ]


def _job(evidence: Evidence, own_id: str) -> Iterable[str]:
    result = evidence.jobs[JOB].result if JOB in evidence.jobs else "missing"
    if result != "success":
        yield f"job {JOB}: {result}, demanded success"
    name = f"{ARTIFACT}-{own_id}"
    missing_files = [file for file in FILES if file not in evidence.artifacts.get(name, [])]
    if missing_files:
        yield f"artifact {name}: {evidence.artifacts.get(name) or 'missing'}, demanded {', '.join(missing_files)} in it"


def _users(evidence: Evidence, pressed: Pressed) -> Iterable[str]:
    if not evidence.fresh:
        yield "no health endpoint was asked after the rollback"
    for path, answers in evidence.fresh.items():
        if set(answers) != {f"200 {pressed.old}"}:
            yield f"{path} answers {answers} after the rollback, demanded 200 and version {pressed.old} only"
    failed = [answer for answer in evidence.answers if answer.failed]
    if failed:
        yield f"{len(failed)} of {len(evidence.answers)} requests failed, demanded none; the first: {failed[0]}"
    job_run = evidence.jobs.get(JOB)
    started, ended = (job_run.started, job_run.ended) if job_run else (None, None)
    if started is None or ended is None:
        yield "when the rollback ran is not known"
        return
    earlier = [answer for answer in evidence.answers if answer.at < started][-20:]
    if not earlier or {answer.version for answer in earlier} != {pressed.new}:
        yield f"{pressed.new} did not serve everything before the rollback, so that nothing was taken back"
    later = [answer for answer in evidence.answers if answer.at > ended]
    wrong = [answer for answer in later if answer.version != pressed.old]
    if wrong or len(later) < 20:
        yield f"{len(wrong)} of {len(later)} requests after the rollback were not answered by {pressed.old}, demanded none of at least 20"


def _instances(evidence: Evidence) -> Iterable[str]:
    """Check that the rollback started no instance: every instance that answers now is older than the deployment."""
    deployment = evidence.jobs.get("validate-release")
    if deployment is None or deployment.started is None:
        yield "when the deployment began is not known"
        return
    for path, moments in evidence.instance_starts.items():
        young = [moment for moment in moments if moment >= deployment.started]
        if young or not moments:
            yield f"{path} is answered by {len(young)} of {len(moments)} instances that began after the deployment did, demanded none"
    if not evidence.instance_starts:
        yield "when the serving instances began is not known"


def _archive(evidence: Evidence, pressed: Pressed, own_id: str) -> Iterable[str]:
    folder = f"records/production/{own_id}/"
    names = sorted(key.removeprefix(folder) for key in evidence.objects if key.startswith(folder))
    if names != ["1.json", "rollback-1.json"]:
        yield f"the archive holds {names} of the deployment, demanded 1.json and rollback-1.json"
        return
    deployment, data = evidence.objects[f"{folder}1.json"], evidence.objects[f"{folder}rollback-1.json"]
    record = json.loads(data)
    yield from _schema(record)
    yield from _fields(record, pressed, own_id)
    sha256 = hashlib.sha256(deployment).hexdigest()
    named = {"previous_record_sha256": record.get("previous_record_sha256"), **(record.get("deployment_record") or {})}
    for name in ("previous_record_sha256", "sha256"):
        if named.get(name) != sha256:
            yield f"rollback record: {name} is {named.get(name)!r}, the deployment's record has {sha256}"
    if evidence.documents.get(f"{ARTIFACT}-{own_id}/rollback-record.json") != record:
        yield "the rollback record in the artifact is not the archived one"


def _schema(record: object) -> Iterable[str]:
    import jsonschema

    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    for error in checker.iter_errors(record):
        yield f"rollback record: {error.json_path}: {error.message[:200]}"


def _fields(record: Mapping[str, Any], pressed: Pressed, own_id: str) -> Iterable[str]:
    expected: dict[str, object] = {
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
    for name, value in expected.items():
        if record.get(name) != value:
            yield f"rollback record: {name} is {record.get(name)!r}, demanded {value!r}"
    if len(record.get("instances") or []) != INSTANCES:
        yield f"rollback record: {len(record.get('instances') or [])} instances, demanded {INSTANCES}"


def expected_message(pressed: Pressed, own_id: str) -> str:
    """Return the Slack message of a rollback that went well."""
    reason = pressed.reason.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (
        f"↩️ Production rolled back\nVersion: v{pressed.new} → v{pressed.old}\nDeployment ID: {own_id}\nReason: {reason}\n"
        f"Started by: {pressed.actor}\nThe database was left as it is"
    )


def _message(evidence: Evidence, pressed: Pressed, own_id: str) -> Iterable[str]:
    expected = expected_message(pressed, own_id)
    if evidence.messages[1:] != [expected]:  # the first one is the deployment's
        yield f"Slack received {evidence.messages[1:]} of the rollback, demanded {expected!r}"
    if evidence.plain_messages:
        yield f"Slack refused the blocks of {evidence.plain_messages} messages"
    states = {name: given[-1] for name, given in evidence.deployments.items()}
    if states != {pressed.old_id: "success", own_id: "inactive"}:
        yield f"GitHub's deployments are {states} after the rollback, demanded that of {pressed.old_id} active"


def _summary(evidence: Evidence, pressed: Pressed) -> Iterable[str]:
    text = evidence.summaries.get(JOB, "")
    for phrase in (f"v{pressed.new} was taken back", f"all traffic is on v{pressed.old}", "smoke test", "| record of the rollback | s3://"):
        if phrase not in text:
            yield f"the summary of {JOB} does not say {phrase!r}: {text[:300] or '(empty)'}"
