"""deployment-record: assemble the record from the evidence of all jobs, archive it, and tell people that the deployment succeeded."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci import record, record_page, run_facts, s3, schemas, slack
from azora_ci.archive import Archive, KeptArtifacts, KeptRecord
from azora_ci.clock import rfc3339
from azora_ci.errors import NotTrueError
from azora_ci.fragments import Fragment
from azora_ci.job import Job
from azora_ci.settings import Aws, Deployment, Notifications

FILE_NAME = "deployment-record.json"


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Aws, Notifications):
    """What deployment-record reads."""


def run(job: Job[Settings]) -> None:
    """Assemble, validate, archive, announce. Raises NotTrueError when the evidence is incomplete or contradicts itself."""
    found = _evidence(job)
    archive = _archive(job)
    document = _recognised(job, archive, found) or _new(job, archive, found)
    _write(job, document)
    artifacts = _keep_artifacts(job, archive)
    kept = _keep(job, archive, document)
    job.actions.output("record-sha256", kept.sha256)
    notification = _announce(job, document)
    notes = [f"{artifacts.files} artifact files are archived below `{artifacts.location}`", *artifacts.problems, notification.detail]
    job.actions.summary(record_page.success(document, kept.location, kept.sha256, notes))


def _evidence(job: Job[Settings]) -> dict[str, Fragment]:
    found = {name: job.fragments.require(name, job.settings.deployment_id) for name in record.EVIDENCE_JOBS}
    said = record.contradictions(found, run_facts.circumstances(job, job.settings.deployment_id, artifacts_location=None))
    if said:
        raise NotTrueError(
            "The evidence contradicts itself",
            what="\n".join(said),
            where=f"fragments of deployment {job.settings.deployment_id} in {job.settings.received_dir}",
            next_step="find out which of them is right before this deployment is called a success; no record was written",
        )
    job.tick(f"the fragments of {len(found)} jobs are complete, valid and agree with each other")
    return found


def _archive(job: Job[Settings]) -> Archive:
    backup = job.config.backup
    bucket = s3.bucket(job.settings, backup.bucket, clock=job.clock, say=job.say)
    return Archive(bucket, job.settings.deploy_environment, backup.lock_mode)


def _assembled(
    job: Job[Settings], archive: Archive, found: dict[str, Fragment], attempt: int, previous: record.Previous | None
) -> record.Document:
    location = archive.bucket.url(archive.artifacts_prefix(job.settings.deployment_id, attempt))
    facts = run_facts.circumstances(job, job.settings.deployment_id, attempt=attempt, previous=previous, artifacts_location=location)
    return record.assemble(found, facts, status="success")


def _recognised(job: Job[Settings], archive: Archive, found: dict[str, Fragment]) -> record.Document | None:
    """Return the record when an earlier attempt archived the same one: what is proven is recognised, not written twice."""
    for attempt, data in archive.records_of(job.settings.deployment_id).items():
        document = _assembled(job, archive, found, attempt, None)
        before = ("previous_record_sha256", "previous_deployment_id", "previous_version")
        if (same := record.with_keys_of(document, data, *before)) is not None:
            job.tick(f"the record of this deployment is archived already (attempt {attempt})")
            return same
    return None


def _new(job: Job[Settings], archive: Archive, found: dict[str, Fragment]) -> record.Document:
    attempt = job.settings.run_attempt
    previous = archive.previous(job.settings.deployment_id, attempt)
    return _assembled(job, archive, found, attempt, previous)


def _write(job: Job[Settings], document: record.Document) -> None:
    schemas.validate(document, record.SCHEMA, where=FILE_NAME)
    path = job.log_dir / FILE_NAME
    path.write_bytes(record.archived_bytes(document))
    job.tick(f"{path} is complete and fits its schema")


def _keep_artifacts(job: Job[Settings], archive: Archive) -> KeptArtifacts:
    kept = archive.keep_artifacts(job.settings.received_dir, job.settings.deployment_id, job.settings.run_attempt)
    job.evidence["artifacts"] = {
        "location": kept.location, "files": kept.files, "size_bytes": kept.size_bytes, "problems": list(kept.problems),
    }  # fmt: skip
    job.tick(f"{kept.files} artifact files ({kept.size_bytes} bytes) are archived below {kept.location}")
    if kept.problems:
        job.actions.warning("Artifacts not archived", "\n".join(kept.problems))
    return kept


def _keep(job: Job[Settings], archive: Archive, document: record.Document) -> KeptRecord:
    kept = archive.keep_record(document)
    job.evidence.update(
        record_sha256=kept.sha256,
        record_location=kept.location,
        previous_record_sha256=document["previous_record_sha256"],
        rollback_deadline=document["rollback_deadline"],
        lock_until=rfc3339(kept.lock_until) if kept.lock_until else None,
    )
    locked = f", locked until {rfc3339(kept.lock_until)}" if kept.lock_until else ", not locked: the bucket has no Object Lock"
    job.tick(f"the record is archived at {kept.location} (SHA-256 {kept.sha256}{locked})")
    return kept


def _announce(job: Job[Settings], document: record.Document) -> slack.Notification:
    earlier = job.fragments.newest("deployment-record", job.settings.deployment_id)
    if earlier is not None and earlier.evidence.get("notified"):
        notification = slack.Notification(True, 0, f"Slack was told in attempt {earlier.run_attempt}")
    else:
        text = slack.success_text(
            version=document["version"],
            deployment_id=document["deployment_id"],
            public_url=job.config.public_url,
            rollback_window_minutes=document["rollback_window_minutes"] if document["rollback_available"] else None,
        )
        notification = slack.notify(job.settings.slack_webhook, text, job.clock)
    job.evidence.update(notified=notification.sent, notification=notification.detail)
    if notification.sent:
        job.tick(notification.detail)
    elif job.settings.slack_webhook is None:
        job.say(notification.detail)
    else:
        job.actions.warning("Slack was not told", f"{notification.detail}. The deployment itself succeeded; tell the team.")
    return notification
