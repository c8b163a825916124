"""deployment-record: assemble the record from the evidence of all jobs, archive it, and notify people that the deployment succeeded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from azora_ci.clients.deployments import INACTIVE, SUCCESS
from azora_ci.clients.slack import messages, webhook
from azora_ci.core import pipeline, schemas
from azora_ci.core.clock import rfc3339
from azora_ci.core.config import RegistrySettings
from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.release import artifact_suffix
from azora_ci.core.settings import Aws, Deployment, GitHubDeployments, Notifications
from azora_ci.record import chain, deployment, report
from azora_ci.record.archive import Archive, KeptArtifacts, KeptRecord
from azora_ci.record.audit.artifact import write_beside
from azora_ci.record.fragments import Fragment
from azora_ci.record.pages import metrics
from azora_ci.record.pages.deployment import deployment_page
from azora_ci.record.run import Previous
from azora_ci.steps import announcement
from azora_ci.steps.job import Job

FILE_NAME = "deployment-record.json"
SUBJECTS_NAME = "attestation-subjects.txt"


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Aws, Notifications, GitHubDeployments):
    """What deployment-record reads."""


def run(job: Job[Settings]) -> None:
    """Assemble, validate and archive the record, then announce it. Raises NotTrueError for incomplete or contradictory evidence."""
    job_fragments = _require_fragments(job)
    archive = Archive.of(job.settings, job.settings.deploy_environment, job.config.backup, clock=job.clock, say=job.say)
    document = _find_archived(job, archive, job_fragments) or _assemble_new(job, archive, job_fragments)
    _write(job, document)
    artifacts = _archive_artifacts(job, archive)
    kept_record = _archive_record(job, archive, document)
    job.actions.output("record-sha256", kept_record.sha256)
    page = _write_report(job, archive, document, kept_record.location, job_fragments)
    notification = _announce(job, document)
    serves = f"{document['version']} serves"
    announcement.set_states(job, SUCCESS, serves, {document["previous_deployment_id"]: (INACTIVE, serves)})
    for line in archive.set_aside:
        job.actions.warning("Not a record", f"{line}. It was set aside: the chain goes on without it. Find out who wrote it.")
    notes = [f"{artifacts.files} artifact files are archived below `{artifacts.location}`", *artifacts.problems, notification.detail]
    notes += [f"the report with every tick is {page.name}, in this job's artifact"] if page else []
    notes += [job.evidence["github_deployment"]["detail"], *(f"set aside: {line}" for line in archive.set_aside)]
    job.actions.summary(deployment_page(document, kept_record.location, kept_record.sha256, notes))


def _require_fragments(job: Job[Settings]) -> dict[str, Fragment]:
    job_fragments = {name: job.fragments.require(name) for name in pipeline.EVIDENCE_JOBS}
    contradictions = deployment.contradictions(job_fragments, job.circumstances())
    if contradictions:
        raise NotTrueError(
            "The evidence contradicts itself",
            what="\n".join(contradictions),
            where=f"fragments of deployment {job.settings.deployment_id} in {job.settings.received_dir}",
            next_step="find out which of them is right before this deployment is called a success; no record was written",
        )
    job.tick(f"the fragments of {len(job_fragments)} jobs are complete, valid and agree with each other")
    return job_fragments


def _assemble(
    job: Job[Settings], archive: Archive, job_fragments: dict[str, Fragment], attempt: int, previous: Previous | None
) -> chain.Document:
    location = archive.bucket.url(archive.artifacts_prefix(job.settings.deployment_id, attempt))
    facts = replace(job.circumstances(location, previous, archive.signatures.name), run=replace(job.workflow_run, attempt=attempt))
    return deployment.assemble(job_fragments, facts, status="success")


def _find_archived(job: Job[Settings], archive: Archive, job_fragments: dict[str, Fragment]) -> chain.Document | None:
    """Return the record that an earlier attempt archived when its content is the same, so that it is not written twice; else None."""
    for attempt, data in archive.records_of(job.settings.deployment_id).items():
        document = _assemble(job, archive, job_fragments, attempt, None)
        previous_keys = ("previous_record_sha256", "previous_record_location", "previous_deployment_id", "previous_version", "set_aside")
        if (archived := chain.with_keys_of(document, data, *previous_keys)) is not None:
            job.tick(f"the record of this deployment is archived already (attempt {attempt})")
            return archived
    return None


def _assemble_new(job: Job[Settings], archive: Archive, job_fragments: dict[str, Fragment]) -> chain.Document:
    attempt = job.settings.run_attempt
    previous = archive.previous(job.settings.deployment_id, attempt)
    return _assemble(job, archive, job_fragments, attempt, previous)


def _write(job: Job[Settings], document: chain.Document) -> None:
    schemas.validate(document, deployment.SCHEMA, where=FILE_NAME)
    path = job.log_dir / FILE_NAME
    path.write_bytes(chain.archived_bytes(document))
    (job.log_dir / SUBJECTS_NAME).write_text(subjects(document, job.config.registry), encoding="utf-8")
    (job.log_dir / metrics.FILE_NAME).write_text(metrics.metrics_text(document), encoding="utf-8")
    job.tick(f"{path} is complete and fits its schema")


def subjects(document: chain.Document, registry: RegistrySettings | None) -> str:
    """Return what the workflow attests, one ``<SHA-256>  <name>`` a line: the record, and each image by its digest in the registry."""
    lines = [f"{chain.sha256(chain.archived_bytes(document))}  {FILE_NAME}"]
    if registry is not None and document["artifact_kind"] == "images":
        digests = document["image_digests"].items()
        lines += [f"{digest.removeprefix('sha256:')}  {registry.repository}/{service}" for service, digest in digests]
    return "".join(f"{line}\n" for line in lines)


def _archive_artifacts(job: Job[Settings], archive: Archive) -> KeptArtifacts:
    artifacts = archive.keep_artifacts(job.settings.received_dir, job.settings.deployment_id, job.settings.run_attempt)
    job.evidence["artifacts"] = {
        "location": artifacts.location, "files": artifacts.files, "size_bytes": artifacts.size_bytes, "problems": list(artifacts.problems),
    }  # fmt: skip
    job.tick(f"{artifacts.files} artifact files ({artifacts.size_bytes} bytes) are archived below {artifacts.location}")
    if artifacts.problems:
        job.actions.warning("Artifacts not archived", "\n".join(artifacts.problems))
    return artifacts


def _archive_record(job: Job[Settings], archive: Archive, document: chain.Document) -> KeptRecord:
    kept_record = archive.keep_record(document)
    write_beside(job.log_dir / FILE_NAME, archive, kept_record.location)
    lock_until = rfc3339(kept_record.lock_until) if kept_record.lock_until else None
    job.evidence.update(
        record_sha256=kept_record.sha256,
        record_location=kept_record.location,
        previous_record_sha256=document["previous_record_sha256"],
        rollback_deadline=document["rollback_deadline"],
        lock_until=lock_until,
    )
    locked = f", locked until {lock_until}" if lock_until else ", not locked: the bucket has no Object Lock"
    job.tick(f"the record is archived at {kept_record.location} (SHA-256 {kept_record.sha256}{locked})")
    return kept_record


def _write_report(
    job: Job[Settings], archive: Archive, document: chain.Document, location: str, job_fragments: dict[str, Fragment]
) -> Path | None:
    """Write the report beside the record and archive it: no later job archives this job's artifact. None: it could not be made."""
    data, migrations_dir = chain.archived_bytes(document), job.config.database.migrations_dir
    origin = report.Origin(data=data, location=location, fragments=job_fragments, migrations_dir=migrations_dir)
    path = report.tried(lambda: report.write(job.log_dir, origin, archive), job.log.annotate)
    if path is None:
        return None
    settings = job.settings
    artifact = f"{pipeline.ARTIFACTS[job.name]}-{artifact_suffix(settings.deployment_id, settings.run_id, settings.run_attempt)}"
    try:  # the record is archived: what happens to its report is no failure of the deployment
        problems = archive.keep_files({f"{artifact}/{path.name}": path}, settings.deployment_id, settings.run_attempt).problems
    except AzoraError as error:
        problems = (error.what,)
    if problems:
        job.actions.warning("Report not archived", "\n".join(problems))
    job.say(f"{path.name} shows the record and its evidence")
    return path


def _announce(job: Job[Settings], document: chain.Document) -> webhook.Notification:
    settings, available = job.settings, document["rollback_available"]
    message = messages.success(
        version=document["version"],
        deployment_id=document["deployment_id"],
        public_url=job.config.public_url,
        rollback=(document["rollback_window_minutes"], document["rollback_deadline"]) if available else None,
        urls=messages.links(settings.run_url, settings.server_url, settings.repository, rollback=available),
    )
    notification = webhook.notify(settings.slack_webhook, message, job.clock)
    job.evidence.update(notified=notification.sent, notification=notification.detail)
    if notification.sent:
        job.tick(notification.detail)
    elif settings.slack_webhook is None:
        job.say(notification.detail)
    else:
        job.actions.warning("Slack was not told", f"{notification.detail}. The deployment itself succeeded; tell the team.")
    return notification
