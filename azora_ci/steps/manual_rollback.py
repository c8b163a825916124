"""manual-rollback: write the rollback instructions for this deployment and the scripts that they name, after a successful rollout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.core import pipeline, schemas
from azora_ci.core.errors import NotTrueError
from azora_ci.core.settings import Deployment
from azora_ci.database.restore import scripts
from azora_ci.health.answers import CONTRACT, contract
from azora_ci.record import chain, deployment, diagnosis
from azora_ci.rollback import instructions, window
from azora_ci.steps.job import Job


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment):
    """What manual-rollback reads."""


def run(job: Job[Settings]) -> None:
    """Write ROLLBACK-INSTRUCTIONS.md and its scripts. Raises NotTrueError when there is no evidence of the rollout."""
    document, source = _find_record(job)
    job.evidence["source"] = source
    verdict = window.check(document, job.clock.now())
    text = instructions.render(document, _make_guide(job))
    _write(job, instructions.FILE_NAME, text)
    job.evidence.update(
        instructions=instructions.FILE_NAME,
        instructions_sha256=chain.sha256(text.encode()),
        scripts=_write_scripts(job, document),
        rollback_available=document["rollback_available"],
        rollback_deadline=document["rollback_deadline"],
        still_open=verdict.allowed,
        previous_version=document["previous_version"],
    )
    job.tick(f"{instructions.FILE_NAME} for {document['version']} ({document['deployment_id']}) is written")
    job.say(verdict.reason)
    job.actions.summary(text)


def _find_record(job: Job[Settings]) -> tuple[chain.Document, str]:
    """Return (record, source): the record that deployment-record wrote ("record"), or one assembled from fragments ("fragments")."""
    written = job.fragments.find("deployment-record")
    if written is not None and written.status == "ok":
        return _read_record(job, written.evidence["record_sha256"]), "record"
    job_fragments = {name: fragment for name in pipeline.EVIDENCE_JOBS if (fragment := job.fragments.find(name)) is not None}
    if "gradual-rollout" not in job_fragments:
        raise NotTrueError(
            "Nothing is known of the rollout",
            what=f"neither a record nor a fragment of gradual-rollout with deployment id {job.settings.deployment_id} was found",
            where=str(job.settings.received_dir),
            next_step="download the artifacts of this run into RECEIVED_ARTIFACTS_DIR and run this job again",
        )
    job.say("there is no deployment record: the instructions rest on the jobs' fragments")
    finding = diagnosis.diagnose({name: need.result for name, need in job.needs.items()}, job_fragments, job.settings.version)
    failure = deployment.Failure([failed.document() for failed in finding.failed], finding.not_run, finding.production)
    document = deployment.assemble(job_fragments, job.circumstances(), status=finding.status, failure=failure)
    schemas.validate(document, deployment.SCHEMA, where="the record that the fragments support")
    return document, "fragments"


def _read_record(job: Job[Settings], sha256: str) -> chain.Document:
    path = job.fragments.folder("deployment-record") / "deployment-record.json"
    data = b""
    if path.is_file():
        with path.open("rb") as file:
            data = file.read(chain.LIMITS.size + 1)
    if chain.sha256(data) == sha256:
        document: chain.Document = schemas.read(data, deployment.SCHEMA, where=str(path), limits=chain.LIMITS)
        job.tick(f"{path} is the record with SHA-256 {sha256}")
        return document
    raise NotTrueError(
        "The record is missing",
        what=f"no deployment-record.json with SHA-256 {sha256} was received, though deployment-record says that it wrote it",
        where=str(job.settings.received_dir),
        next_step="download the artifact deployment-record-… of this run, or re-run the failed jobs",
    )


def _make_guide(job: Job[Any]) -> instructions.Guide:
    return instructions.Guide(
        application=job.config.application,
        on_call=job.config.on_call,
        public_url=job.config.public_url,
        health_urls=tuple((service.title, service.public_health_url) for service in job.config.web),
        target=job.config.target.kind,
        workers=tuple(worker.title for worker in job.config.workers),
        otherwise=tuple((service.title, contract(service.health)) for service in job.config.web if service.health != CONTRACT),
    )


def _write_scripts(job: Job[Settings], document: chain.Document) -> dict[str, str]:
    """Write the restore scripts when there is a verified backup, and return their SHA-256 by file name; without one, return {}."""
    if not window.plan(document).restore_possible:
        job.say("there is no verified backup: no restore scripts are written")
        return {}
    texts = scripts.both(document["database_backup"], document["deployment_id"])
    return {name: chain.sha256(_write(job, name, text).read_bytes()) for name, text in texts.items()}


def _write(job: Job[Settings], name: str, text: str) -> Path:
    path = job.log_dir / name
    path.write_text(text, encoding="utf-8")
    return path
