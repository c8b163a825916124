"""deployment-failure-handler: what broke, what state production is in, what to do next; told to people and recorded.

It must work when almost everything is missing, and never fails silently: each part that cannot be done is noted and the rest goes on.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from azora_ci import diagnosis, failure_report, fragments, record, restore_scripts, run_facts, s3, schemas, slack
from azora_ci.archive import Archive
from azora_ci.clock import rfc3339
from azora_ci.errors import AzoraError
from azora_ci.fragments import Fragment
from azora_ci.job import Identity, Job
from azora_ci.release import artifact_suffix
from azora_ci.s3_client import Patience
from azora_ci.settings import Aws, Common, Notifications, deployment_id, git_sha, release_version, variable

T = TypeVar("T")
# A report soon is worth more than an archive late: the job waits less for the store than others do.
PATIENCE = Patience(attempts=3, connect_timeout=5, read_timeout=20)


@dataclass(frozen=True, kw_only=True)
class Settings(Common, Aws, Notifications):
    """What deployment-failure-handler reads. Everything may be missing: a run can fail before there is anything."""

    needs: str | None = variable(
        "NEEDS", "results of the jobs: toJSON(needs)", example='{"database-backup": {"result": "failure"}}', required=False
    )
    deployment_id: str | None = variable(
        "DEPLOYMENT_ID", "id of this deployment; unset when none was assigned", example="1764000000-abc123", parse=deployment_id,
        required=False,
    )  # fmt: skip
    version: str | None = variable(
        "VERSION", "release version; unset when it is not known", example="v1.2.3", parse=release_version, required=False
    )
    git_sha: str | None = variable(
        "GIT_SHA", "commit of the release; unset when it is not known", example="0123456789abcdef0123456789abcdef01234567", parse=git_sha,
        required=False,
    )  # fmt: skip


def run(job: Job[Settings]) -> None:
    """Write the report, keep the record, tell people. Ends well when the report was written; what else failed is in its notes."""
    notes: list[str] = []
    job.evidence["notes"] = notes
    needs = _needs(job, notes)
    found = _found(job, notes)
    finding = diagnosis.diagnose(needs, found, job.identity.version)
    job.evidence.update(
        failed_jobs=[one.job for one in finding.failed],
        not_run=list(finding.not_run),
        status=finding.status,
        production_state="\n".join(finding.production),
    )
    backup = _preserved_backup(job, found, notes)
    job.evidence.update(backup=backup, record_sha256=None, record_location=None, notified=False, notification="not sent yet")
    _report(job, finding, backup)
    job.evidence["artifacts"] = None
    archive = _carry_on(job, notes, "the record was not archived", lambda: _keep_record(job, finding, found))
    _notify(job, backup is not None and backup["verified"])
    job.actions.notice("State of production", "\n".join(finding.production))
    _report(job, finding, backup)
    if archive is not None:
        _carry_on(job, notes, "the report was not archived", lambda: _keep_report(job, archive))
    job.actions.summary(failure_report.page(_document(job, finding, backup)))


# --- what there is -----------------------------------------------------------------------------------------------------


def _needs(job: Job[Settings], notes: list[str]) -> dict[str, str]:
    """Return the results of the jobs; {} with a note when GitHub's are not usable."""
    try:
        given = json.loads(job.settings.needs or "{}")
        results = {str(name): str(one["result"]) for name, one in given.items() if name in diagnosis.PIPELINE}
    except (ValueError, TypeError, KeyError, AttributeError):
        notes.append("NEEDS is not the result of jobs: the report rests on the fragments alone")
        return {}
    if not results:
        notes.append("NEEDS is not set: the report rests on the fragments alone")
    return results


def _found(job: Job[Settings], notes: list[str]) -> dict[str, Fragment]:
    """Return the newest fragment of every job; one that cannot be read is noted, not trusted."""
    newest: dict[str, Fragment] = {}
    for name in diagnosis.PIPELINE:
        for path in sorted(job.settings.received_dir.glob(f"**/record/{name}.json")):
            one = _carry_on(job, notes, f"{path} was left out", partial(fragments.read, path))
            if one is None or (job.identity.deployment_id is not None and one.deployment_id != job.identity.deployment_id):
                continue
            known = newest.get(name)
            if known is None or (one.run_attempt, one.ended_at) > (known.run_attempt, known.ended_at):
                newest[name] = one
    _identify(job, newest.get("validate-release"))
    return newest


def _identify(job: Job[Settings], release: Fragment | None) -> None:
    """Take from the evidence of validate-release what the environment does not say of the deployment."""
    if release is not None and job.identity.deployment_id is None:
        job.identity = Identity(release.deployment_id, release.version, release.git_sha)


def _carry_on(job: Job[Settings], notes: list[str], failing: str, act: Callable[[], T]) -> T | None:
    """Do one part; when it cannot be done say so, note it, and go on."""
    try:
        return act()
    except AzoraError as error:
        reason = f"{failing}: {error.title}: {error.what}"
    except Exception as error:
        job.processes.say("".join(traceback.format_exception(error)))
        reason = f"{failing}: {type(error).__name__}: {error}"
    note = job.processes.masked(reason)
    notes.append(note)
    job.say(note)
    return None


def _bucket(job: Job[Settings], name: str) -> s3.Bucket:
    return s3.bucket(job.settings, name, clock=job.clock, say=job.say, patience=PATIENCE)


# --- the backup --------------------------------------------------------------------------------------------------------


def _preserved_backup(job: Job[Settings], found: dict[str, Fragment], notes: list[str]) -> dict[str, Any] | None:
    """Return what is known of this deployment's backup; verified only when it was proven and its object is in the bucket now."""
    one = found.get("database-backup")
    if one is None or not one.evidence.get("location"):
        return None
    proven = diagnosis.verified_backup(found) is not None
    detail = _carry_on(job, notes, "the backup could not be looked at", lambda: _stored(job, one.evidence))
    verified = proven and detail is not None
    if verified:
        job.tick(f"backup {one.evidence['backup_id']} is in the bucket: {detail}")
    elif detail is not None:
        detail = f"in the bucket ({detail}), but never proven by a restore"
    return {
        "backup_id": one.evidence.get("backup_id") or "unknown",
        "location": one.evidence["location"],
        "verified": verified,
        "scripts": _restore_scripts(job, one.evidence) if verified else [],
        "detail": detail or "not found or not reachable now; nothing was deleted",
    }


def _restore_scripts(job: Job[Settings], evidence: dict[str, Any]) -> list[str]:
    """Write the scripts that restore a verified backup beside the report: there may be no rollback instructions to find them in."""
    own_id = job.identity.deployment_id or ""
    texts = {
        restore_scripts.RESTORE_SCRIPT: restore_scripts.restore_script(evidence, own_id),
        restore_scripts.SWAP_SCRIPT: restore_scripts.swap_script(own_id),
    }
    for name, text in texts.items():
        (job.log_dir / name).write_text(text, encoding="utf-8")
    return list(texts)


def _stored(job: Job[Settings], evidence: dict[str, Any]) -> str:
    """Return the facts of the very object that was verified. Raises when it is gone or has another size."""
    bucket, key = restore_scripts.bucket_and_key(evidence["location"])
    stored = _bucket(job, bucket).require(key, evidence.get("version_id"))
    if evidence.get("size_bytes") is not None and stored.size != evidence["size_bytes"]:
        raise ValueError(f"the object has {stored.size} bytes, the verified backup has {evidence['size_bytes']}")
    return stored.describe()


# --- report, record, message -------------------------------------------------------------------------------------------


def _document(job: Job[Settings], finding: diagnosis.Diagnosis, backup: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "deployment_id": job.identity.deployment_id,
        "version": job.identity.version,
        "git_sha": job.identity.git_sha,
        "environment": job.settings.deploy_environment,
        "run_id": job.settings.run_id,
        "run_attempt": job.settings.run_attempt,
        "run_url": job.settings.run_url,
        "status": finding.status,
        "failed_jobs": [one.document() for one in finding.failed],
        "succeeded": list(finding.succeeded),
        "not_run": list(finding.not_run),
        "unknown": list(finding.unknown),
        "production_state": list(finding.production),
        "next_steps": list(finding.next_steps),
        **{name: job.evidence.get(name) for name in ("record_sha256", "record_location", "notified", "notification")},
        "backup": backup,
        "notes": list(job.evidence["notes"]),
    }


def _report(job: Job[Settings], finding: diagnosis.Diagnosis, backup: dict[str, Any] | None) -> None:
    document = _document(job, finding, backup)
    schemas.validate(document, failure_report.SCHEMA, where=failure_report.JSON_FILE)
    (job.log_dir / failure_report.JSON_FILE).write_bytes(schemas.canonical(document))
    (job.log_dir / failure_report.MARKDOWN_FILE).write_text(failure_report.page(document), encoding="utf-8")


def _keep_record(job: Job[Settings], finding: diagnosis.Diagnosis, found: dict[str, Fragment]) -> Archive | None:
    """Assemble the record of the failed deployment, write it beside the report, and archive it with the artifacts."""
    own_id = job.identity.deployment_id
    if own_id is None:
        job.say("no deployment id was assigned: there is no deployment to record")
        return None
    written = found.get("deployment-record")
    if written is not None and written.status == "ok":
        job.evidence.update({name: written.evidence[name] for name in ("record_sha256", "record_location")})
        job.say(f"the record of the deployment itself is archived at {written.evidence['record_location']} and stays as it is")
        return _archive(job)
    document = _assembled(job, finding, found, None)
    _write_record(job, document)
    archive = _archive(job)
    document = _assembled(job, finding, found, archive)
    _write_record(job, document)
    artifacts = archive.keep_artifacts(job.settings.received_dir, own_id, job.settings.run_attempt)
    job.evidence["artifacts"] = {
        "location": artifacts.location, "files": artifacts.files, "size_bytes": artifacts.size_bytes, "problems": list(artifacts.problems),
    }  # fmt: skip
    kept = archive.keep_record(document)
    job.evidence["record_location"] = kept.location
    job.tick(f"the record ({document['status']}) is archived at {kept.location} (SHA-256 {kept.sha256})")
    return archive


def _archive(job: Job[Settings]) -> Archive:
    backup = job.config.backup
    return Archive(_bucket(job, backup.bucket), job.settings.deploy_environment, backup.lock_mode)


def _keep_report(job: Job[Settings], archive: Archive) -> None:
    """Archive the report itself: nobody else does, this is the last job."""
    own_id, attempt = job.identity.deployment_id or "", job.settings.run_attempt
    names = (failure_report.JSON_FILE, failure_report.MARKDOWN_FILE, *(job.evidence["backup"] or {"scripts": []})["scripts"])
    found = {f"deployment-failure-report-{artifact_suffix(own_id, '', attempt)}/{name}": job.log_dir / name for name in names}
    kept = archive.keep_files(found, own_id, attempt)
    job.tick(f"{kept.files} files of the report are archived below {kept.location}")
    job.evidence["notes"].extend(kept.problems)


def _assembled(job: Job[Settings], finding: diagnosis.Diagnosis, found: dict[str, Fragment], archive: Archive | None) -> record.Document:
    own_id = job.identity.deployment_id or ""
    attempt = job.settings.run_attempt
    facts = run_facts.circumstances(
        job,
        own_id,
        previous=archive.previous(own_id, attempt) if archive else None,
        artifacts_location=archive.bucket.url(archive.artifacts_prefix(own_id, attempt)) if archive else None,
    )
    failure = record.Failure([one.document() for one in finding.failed], finding.not_run, finding.production)
    return record.assemble(found, facts, status=finding.status, timestamp=rfc3339(job.clock.now()), failure=failure)


def _write_record(job: Job[Settings], document: record.Document) -> None:
    schemas.validate(document, record.SCHEMA, where="deployment-record.json")
    data = record.archived_bytes(document)
    (job.log_dir / "deployment-record.json").write_bytes(data)
    job.evidence["record_sha256"] = record.sha256(data)


def _notify(job: Job[Settings], backup_available: bool) -> None:
    text = slack.failure_text(version=job.identity.version, deployment_id=job.identity.deployment_id, backup_available=backup_available)
    notification = slack.notify(job.settings.slack_webhook, text, job.clock)
    job.evidence.update(notified=notification.sent, notification=notification.detail)
    if notification.sent:
        job.tick(notification.detail)
    else:
        job.actions.warning("Slack was not told", f"{notification.detail}. Tell the on-call engineer yourself.")
