"""deployment-failure-handler: report what broke, what state production is in and what to do next; notify people, archive the record.

The job must work when almost every input is missing. A part that fails is noted in the report, and the other parts still run.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from azora_ci.clients.deployments import ERROR, FAILURE, INACTIVE
from azora_ci.clients.s3.bucket import open_bucket
from azora_ci.clients.s3.calls import Patience
from azora_ci.clients.slack import messages, webhook
from azora_ci.core import pipeline, schemas
from azora_ci.core.clock import rfc3339
from azora_ci.core.errors import AzoraError
from azora_ci.core.release import artifact_suffix
from azora_ci.core.settings import Aws, Common, GitHubDeployments, Notifications
from azora_ci.core.variables import deployment_id, git_sha, release_version, variable
from azora_ci.database.restore import scripts
from azora_ci.record import chain, deployment, diagnosis, fragments, report
from azora_ci.record.archive import Archive
from azora_ci.record.audit.artifact import write_beside
from azora_ci.record.evidence import can_go_back, went_back
from azora_ci.record.fragments import Fragment
from azora_ci.record.needs import Need
from azora_ci.record.pages import metrics
from azora_ci.record.pages.deployment import timeline
from azora_ci.record.pages.failure import JSON_FILE, MARKDOWN_FILE, SCHEMA, failure_page
from azora_ci.steps import announcement
from azora_ci.steps.job import Identity, Job

T = TypeVar("T")
RECORD = "deployment-record.json"
# People need the report soon, more than they need the archive: this job waits for the store for a shorter time than other jobs.
PATIENCE = Patience(attempts=3, connect_timeout=5, read_timeout=20)


@dataclass(frozen=True, kw_only=True)
class Settings(Common, Aws, Notifications, GitHubDeployments):
    """What deployment-failure-handler reads. Any of it may be missing: a run can fail before the values exist."""

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
    """Write the report, archive the record, notify people. Only a report that cannot be written fails the job; notes list the rest."""
    notes: list[str] = []
    job.evidence["notes"] = notes
    needs = _read_needs(job, notes)
    job_fragments = _read_fragments(job, notes)
    finding = diagnosis.diagnose({name: need.result for name, need in needs.items()}, job_fragments, job.identity.version)
    job.evidence.update(
        unverified=_find_unverified(job, job_fragments, notes),
        failed_jobs=[failed.job for failed in finding.failed],
        not_run=list(finding.not_run),
        status=finding.status,
        production_state="\n".join(finding.production),
    )
    backup = _check_backup(job, job_fragments, notes)
    job.evidence.update(backup=backup, record_sha256=None, record_location=None, notified=False, notification="not sent yet")
    _write_report(job, finding, backup)
    job.evidence.update(artifacts=None, github_deployment=None)
    archive = _try_part(job, notes, "the record was not archived", lambda: _archive_record(job, finding, job_fragments))
    _try_part(job, notes, "no metrics were written", lambda: _write_metrics(job))
    rollout, smoke = (job_fragments[name].evidence if name in job_fragments else {} for name in ("gradual-rollout", "smoke-tests"))
    _notify(job, finding, backup is not None and backup["verified"], can_go_back=can_go_back(rollout, smoke))
    _try_part(job, notes, "GitHub was not told", lambda: _set_states(job, finding, job_fragments))
    job.actions.notice("State of production", "\n".join(finding.production))
    page = _try_part(job, notes, "no HTML report was made", lambda: _write_page(job, finding, job_fragments, archive))
    _write_report(job, finding, backup)
    if archive is not None:
        _try_part(job, notes, "the report was not archived", lambda: _archive_report(job, archive, page))
    job.actions.summary(failure_page(_make_report(job, finding, backup)))
    if page is not None:
        timed = timeline(chain.parse_record((job.log_dir / RECORD).read_bytes()))
        job.actions.summary(f"## Jobs by time\n\n{timed}\n\nThe report with every tick is `{page.name}`, in this job's artifact.")


# --- inputs ------------------------------------------------------------------------------------------------------------


def _read_needs(job: Job[Settings], notes: list[str]) -> dict[str, Need]:
    """Return what GitHub says of each job, or {} and a note when its NEEDS cannot be used: then no fragment can be verified."""
    needs = _try_part(job, notes, "no fragment can be verified", lambda: job.needs)
    if needs is None:
        job.needs = {}
    elif not needs:
        notes.append("no fragment can be verified: NEEDS is not set")
    return job.needs


def _read_fragments(job: Job[Settings], notes: list[str]) -> dict[str, Fragment]:
    """Return the verified fragment of every job by the job's name. What should be one and cannot be verified is noted."""
    verified: dict[str, Fragment] = {}
    for name in pipeline.PIPELINE:
        need = job.needs.get(name)
        if need is None or (need.result != "success" and fragments.OUTPUT not in need.outputs):
            continue  # skipped, or ended before it could write: its result says so
        fragment = _try_part(job, notes, f"what {name} left is not used", partial(job.fragments.verified, name))
        if fragment is not None:
            verified[name] = fragment
    _identify(job, verified.get("validate-release"))
    return verified


def _find_unverified(job: Job[Settings], verified: Mapping[str, Fragment], notes: list[str]) -> list[dict[str, str]]:
    """Return the latest fragment of each job without a verified one, for people to look at: no fact is taken from it."""
    unverified = []
    for name in pipeline.PIPELINE:
        for path in job.fragments.places(name) if name not in verified else ():
            fragment = _try_part(job, notes, f"{path} was left out", partial(job.fragments.unverified, path))
            if fragment is not None:
                what = fragment.error["what"] if fragment.error else ""
                unverified.append({"job": name, "path": str(path), "status": fragment.status, "what": what})
                break
    return unverified


def _identify(job: Job[Settings], release: Fragment | None) -> None:
    """Take the deployment's identity from the fragment of validate-release when the environment does not give it."""
    if release is not None and job.identity.deployment_id is None:
        job.identity = Identity(release.deployment_id, release.version, release.git_sha)


def _try_part(job: Job[Settings], notes: list[str], consequence: str, act: Callable[[], T]) -> T | None:
    """Return the result of a part of this job; when the part fails, print and note the consequence, and return None."""
    try:
        return act()
    except AzoraError as error:
        reason = f"{consequence}: {error.title}: {error.what}"
    except Exception as error:
        job.log.say("".join(traceback.format_exception(error)))
        reason = f"{consequence}: {type(error).__name__}: {error}"
    note = job.log.masked(reason)
    notes.append(note)
    job.say(note)
    return None


# --- the backup --------------------------------------------------------------------------------------------------------


def _check_backup(job: Job[Settings], job_fragments: dict[str, Fragment], notes: list[str]) -> dict[str, Any] | None:
    """Return the state of this deployment's backup. It is verified when it was proven and its object is in the bucket now."""
    fragment = job_fragments.get("database-backup")
    if fragment is None or not fragment.evidence.get("location"):
        return None
    proven = diagnosis.verified_backup(job_fragments) is not None
    detail = _try_part(job, notes, "the backup could not be looked at", lambda: _describe_stored_backup(job, fragment.evidence))
    verified = proven and detail is not None
    if verified:
        job.tick(f"backup {fragment.evidence['backup_id']} is in the bucket: {detail}")
    elif detail is not None:
        detail = f"in the bucket ({detail}), but never proven by a restore"
    return {
        "backup_id": fragment.evidence.get("backup_id") or "unknown",
        "location": fragment.evidence["location"],
        "verified": verified,
        "scripts": _write_restore_scripts(job, fragment.evidence) if verified else [],
        "detail": detail or "not found or not reachable now; nothing was deleted",
    }


def _write_restore_scripts(job: Job[Settings], evidence: dict[str, Any]) -> list[str]:
    """Write the scripts that restore a verified backup beside the report, as there may be no rollback instructions. Return their names."""
    texts = scripts.both(evidence, job.identity.deployment_id or "")
    for name, text in texts.items():
        (job.log_dir / name).write_text(text, encoding="utf-8")
    return list(texts)


def _describe_stored_backup(job: Job[Settings], evidence: dict[str, Any]) -> str:
    """Return a description of the object that was verified. Raises when it is gone, ValueError when it has another size."""
    name, key = scripts.bucket_and_key(evidence["location"])
    bucket = open_bucket(job.settings, name, clock=job.clock, patience=PATIENCE, say=job.say)
    stored = bucket.require(key, evidence.get("version_id"))
    if evidence.get("size_bytes") is not None and stored.size != evidence["size_bytes"]:
        raise ValueError(f"the object has {stored.size} bytes, the verified backup has {evidence['size_bytes']}")
    return stored.describe()


# --- report, record, message -------------------------------------------------------------------------------------------


def _make_report(job: Job[Settings], finding: diagnosis.Diagnosis, backup: dict[str, Any] | None) -> dict[str, Any]:
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
        "failed_jobs": [failed.document() for failed in finding.failed],
        "succeeded": list(finding.succeeded),
        "not_run": list(finding.not_run),
        "unknown": list(finding.unknown),
        "production_state": list(finding.production),
        "next_steps": list(finding.next_steps),
        **{name: job.evidence.get(name) for name in ("record_sha256", "record_location", "notified", "notification")},
        "backup": backup,
        "unverified": list(job.evidence["unverified"]),
        "notes": list(job.evidence["notes"]),
    }


def _write_report(job: Job[Settings], finding: diagnosis.Diagnosis, backup: dict[str, Any] | None) -> None:
    document = _make_report(job, finding, backup)
    schemas.validate(document, SCHEMA, where=JSON_FILE)
    (job.log_dir / JSON_FILE).write_bytes(schemas.canonical(document))
    (job.log_dir / MARKDOWN_FILE).write_text(failure_page(document), encoding="utf-8")


def _archive_record(job: Job[Settings], finding: diagnosis.Diagnosis, job_fragments: dict[str, Fragment]) -> Archive | None:
    """Assemble the record of the failed deployment, write it beside the report, archive it with the artifacts; return the archive."""
    own_id = job.identity.deployment_id
    if own_id is None:
        job.say("no deployment id was assigned: there is no deployment to record")
        return None
    written = job_fragments.get("deployment-record")
    if written is not None and written.status == "ok":
        job.evidence.update({name: written.evidence[name] for name in ("record_sha256", "record_location")})
        job.say(f"the record of the deployment itself is archived at {written.evidence['record_location']} and stays as it is")
        return _open_archive(job)
    document = _assemble_record(job, finding, job_fragments, None)
    _write_record(job, document)
    archive = _open_archive(job)
    document = _assemble_record(job, finding, job_fragments, archive)
    _write_record(job, document)
    job.evidence["notes"].extend(f"set aside, as it is no record: {line}" for line in archive.set_aside)
    artifacts = archive.keep_artifacts(job.settings.received_dir, own_id, job.settings.run_attempt)
    job.evidence["artifacts"] = {
        "location": artifacts.location, "files": artifacts.files, "size_bytes": artifacts.size_bytes, "problems": list(artifacts.problems),
    }  # fmt: skip
    kept_record = archive.keep_record(document)
    write_beside(job.log_dir / RECORD, archive, kept_record.location)
    job.evidence["record_location"] = kept_record.location
    job.tick(f"the record ({document['status']}) is archived at {kept_record.location} (SHA-256 {kept_record.sha256})")
    return archive


def _open_archive(job: Job[Settings]) -> Archive:
    return Archive.of(job.settings, job.settings.deploy_environment, job.config.backup, clock=job.clock, patience=PATIENCE, say=job.say)


def _write_page(
    job: Job[Settings], finding: diagnosis.Diagnosis, job_fragments: dict[str, Fragment], archive: Archive | None
) -> Path | None:
    """Write the HTML report of the record that this job wrote; the report of a deployment that has its own record lies beside that."""
    record = job.log_dir / RECORD
    if not record.exists():
        return None
    migrations_dir = _try_part(job, job.evidence["notes"], "the report shows no SQL", lambda: job.config.database.migrations_dir)
    origin = report.Origin(
        data=record.read_bytes(), location=job.evidence["record_location"], fragments=job_fragments, migrations_dir=migrations_dir,
        next_steps=finding.next_steps,
    )  # fmt: skip
    return report.write(job.log_dir, origin, archive)


def _archive_report(job: Job[Settings], archive: Archive, page: Path | None) -> None:
    """Archive the report: this is the last job, so no other job archives its artifact."""
    own_id, attempt = job.identity.deployment_id or "", job.settings.run_attempt
    written = [metrics.FILE_NAME] if (job.log_dir / metrics.FILE_NAME).is_file() else []
    names = (JSON_FILE, MARKDOWN_FILE, *written, *([page.name] if page else ()), *(job.evidence["backup"] or {"scripts": []})["scripts"])
    files = {f"deployment-failure-report-{artifact_suffix(own_id, '', attempt)}/{name}": job.log_dir / name for name in names}
    kept_report = archive.keep_files(files, own_id, attempt)
    job.tick(f"{kept_report.files} files of the report are archived below {kept_report.location}")
    job.evidence["notes"].extend(kept_report.problems)


def _assemble_record(
    job: Job[Settings], finding: diagnosis.Diagnosis, job_fragments: dict[str, Fragment], archive: Archive | None
) -> chain.Document:
    own_id = job.identity.deployment_id or ""
    attempt = job.settings.run_attempt
    facts = job.circumstances()
    if archive is not None:
        location = archive.bucket.url(archive.artifacts_prefix(own_id, attempt))
        facts = job.circumstances(location, archive.previous(own_id, attempt), archive.signatures.name)
    unverified = [part["job"] for part in job.evidence["unverified"]]
    failure = deployment.Failure([failed.document() for failed in finding.failed], finding.not_run, finding.production, unverified)
    return deployment.assemble(job_fragments, facts, status=finding.status, timestamp=rfc3339(job.clock.now()), failure=failure)


def _write_record(job: Job[Settings], document: chain.Document) -> None:
    schemas.validate(document, deployment.SCHEMA, where=RECORD)
    data = chain.archived_bytes(document)
    (job.log_dir / RECORD).write_bytes(data)
    job.evidence["record_sha256"] = chain.sha256(data)


def _write_metrics(job: Job[Settings]) -> None:
    path = job.log_dir / "deployment-record.json"
    if path.is_file():
        document = schemas.read(path.read_bytes(), deployment.SCHEMA, where=str(path), limits=chain.LIMITS)
        (job.log_dir / metrics.FILE_NAME).write_text(metrics.metrics_text(document), encoding="utf-8")


def _set_states(job: Job[Settings], finding: diagnosis.Diagnosis, job_fragments: dict[str, Fragment]) -> None:
    """Say on GitHub that the deployment failed; where its version serves nevertheless, the one before does not any more."""
    if "deployment-record" in job_fragments and job_fragments["deployment-record"].status == "ok":
        return  # it succeeded: what failed came afterwards
    rollout, smoke = (job_fragments[name].evidence if name in job_fragments else {} for name in ("gradual-rollout", "smoke-tests"))
    replaced = rollout.get("rollout_status") == "completed" and not went_back(smoke)
    previous_id = (rollout.get("previous") or {}).get("deployment_id")
    others = {previous_id: (INACTIVE, f"{job.identity.version} serves, though its deployment did not succeed")} if replaced else {}
    reason = f"{finding.status.replace('_', ' ')}: {' '.join(finding.production)}"
    announcement.set_states(job, ERROR if finding.status == "cancelled" else FAILURE, reason, others)


def _for_many(job: str, what: str) -> str:
    """Return what a channel may read: what a migrate command printed about production's rows stays in the job's log."""
    return what.partition("\n")[0] if job == "database-migrations" else what


def _notify(job: Job[Settings], finding: diagnosis.Diagnosis, backup_available: bool, *, can_go_back: bool) -> None:
    settings, masked = job.settings, job.log.masked
    ending = messages.Ending(
        status=finding.status,
        findings=[(f"{failed.job}: {masked(failed.title)}", _for_many(failed.job, masked(failed.what))) for failed in finding.failed],
        production=[masked(line) for line in finding.production],
        next_steps=[masked(line) for line in finding.next_steps],
    )
    message = messages.failure(
        version=job.identity.version,
        deployment_id=job.identity.deployment_id,
        backup_available=backup_available,
        ending=ending,
        urls=messages.links(settings.run_url, settings.server_url, settings.repository, rollback=can_go_back),
    )
    notification = webhook.notify(settings.slack_webhook, message, job.clock)
    job.evidence.update(notified=notification.sent, notification=notification.detail)
    if notification.sent:
        job.tick(notification.detail)
    else:
        job.actions.warning("Slack was not told", f"{notification.detail}. Tell the on-call engineer yourself.")
