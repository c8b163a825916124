"""May a deployment be taken back? Its record is genuine, the window is open, and the version before bears the schema."""

from __future__ import annotations

from typing import Any

from azora_ci.core import schemas
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from azora_ci.record import chain
from azora_ci.record.archive import Archive, Archived
from azora_ci.record.deployment import SCHEMA
from azora_ci.rollback import schema, window
from azora_ci.steps.job import Identity, Job


def require(job: Job[Any], archive: Archive) -> chain.Document:
    """Return the record of the deployment to take back. Raises NotTrueError where it may not be, UnreachableError without its archive."""
    deployed = _require_genuine(job, archive, _find_record(job, archive))
    _require_open_window(job, deployed)
    _require_schema(job, deployed)
    return deployed


def note(job: Job[Any], text: str) -> None:
    """Say a line, and keep it in the evidence."""
    job.evidence["notes"].append(text)
    job.say(text)


def _find_record(job: Job[Any], archive: Archive) -> Archived:
    try:
        return archive.record_to_take_back(job.settings.deployment_id)
    except UnreachableError as error:
        raise UnreachableError(
            error.title,
            what=f"{error.what}; nothing was changed",
            where=error.where,
            next_step="run the same again when the archive answers: without its record no deployment is taken back. python -m azora_ci "
            "edge status shows what serves; check AWS_ENDPOINT_URL_S3, the network and the state of the store",
        ) from error


def _require_genuine(job: Job[Any], archive: Archive, archived: Archived) -> chain.Document:
    """Return the record after checking its schema and its chain of hashes. Raises NotTrueError when one of them does not fit."""
    location = archive.bucket.url(archived.key)
    records, position = archive.around(archived.key)
    doubts = chain.doubts([entry.data for entry in records], position, [number for number, entry in enumerate(records) if entry.flaw])
    for line in archive.set_aside:
        note(job, f"set aside: {line}")
    document = archived.document
    try:
        schemas.validate(document, SCHEMA, where=location)
    except BadInputError as error:
        doubts.append(error.what)
    if doubts:
        raise NotTrueError(
            "The record cannot be believed",
            what="\n".join(doubts),
            where=location,
            next_step="find out who changed the archive; to go back without it, deploy the version before again",
        )
    job.identity = Identity(document["deployment_id"], document["version"], document["git_sha"])
    job.actions.output("deployment-id", document["deployment_id"])
    job.evidence.update(
        record={"location": location, "sha256": archived.sha256},
        rollback_deadline=document["rollback_deadline"],
        status_of_deployment=document["status"],
    )
    job.tick(f"the record {location} fits its schema and its chain of hashes ({len(records)} records looked at, SHA-256 {archived.sha256})")
    return document


def _require_open_window(job: Job[Any], document: chain.Document) -> None:
    """Raise NotTrueError after the deadline, unless ROLLBACK_AFTER_DEADLINE is true, and when there is no version to go back to."""
    verdict = window.check(document, job.clock.now())
    late = document["rollback_available"] and verdict.deadline is not None and not verdict.allowed
    job.evidence["after_deadline"] = bool(late)
    name = f"{document['version']} ({document['deployment_id']}, {document['status']})"
    if late and job.settings.after_deadline:
        note(job, f"{verdict.reason}; going back nevertheless, as was asked for")
    elif late:
        raise NotTrueError(
            "After the deadline: manual intervention required",
            what=f"{name}: {verdict.reason}",
            where=job.evidence["record"]["location"],
            next_step=f"call {job.config.on_call}: release a correction, or deploy the version before again. Going back nevertheless: "
            "--after-deadline (after-deadline in the workflow)",
        )
    elif not verdict.allowed:
        raise NotTrueError(
            "There is nothing to go back to",
            what=f"{name}: {verdict.reason}",
            where=job.evidence["record"]["location"],
            next_step="release a correction, or take the application offline at its edge",
        )
    else:
        job.tick(f"{name}: {verdict.reason}")


def _require_schema(job: Job[Any], document: chain.Document) -> None:
    """Say what is known of the version before on the migrated schema. Raises NotTrueError where it breaks and nobody says why to go on."""
    found = schema.check(document)
    if found.breaks and job.settings.schema_reason:
        note(job, f"{found.text}; going back nevertheless: {job.settings.schema_reason}")
    elif found.breaks:
        raise NotTrueError(
            "The version before is known to break on the migrated schema",
            what=f"{found.text}; nothing was changed",
            where=job.evidence["record"]["location"],
            next_step="restore the database first (ROLLBACK-INSTRUCTIONS.md says how), or release a correction. To go back then, or all "
            'the same, say why with --schema-reason "…" (schema-reason in the workflow)',
        )
    else:
        note(job, found.text)
