"""restore-drill: restore the newest backup, or the named one, and compare it with its manifest; report a failure on Slack.

Production is not read or changed: the manifest says what the restored database must contain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from azora_ci.core.clock import parse_rfc3339
from azora_ci.core.errors import BadInputError, Explained, NotTrueError
from azora_ci.core.markdown import escaped
from azora_ci.core.settings import Aws, Common, Notifications, ProofPlace
from azora_ci.core.variables import one_of, variable
from azora_ci.steps.job import Identity, Job

if TYPE_CHECKING:
    from azora_ci.clients.s3.bucket import Bucket
    from azora_ci.database.backup.manifest import Manifest
    from azora_ci.database.backup.setup import BackupContext


def backup_id(text: str) -> str:
    """Parse a backup id, or the deployment id in it."""
    if not re.fullmatch(r"(backup-)?[1-9][0-9]{0,11}-[0-9a-f]{6}(-attempt-[1-9][0-9]{0,5})?", text):
        raise ValueError("is no backup id")
    return text if text.startswith("backup-") else f"backup-{text}"


@dataclass(frozen=True, kw_only=True)
class Settings(Common, Aws, ProofPlace, Notifications):
    """What restore-drill reads."""

    backup_id: str | None = variable(
        "BACKUP_ID",
        "backup to restore, or its deployment id; unset: the newest",
        example="backup-1764000000-abc123",
        parse=backup_id,
        required=False,
    )
    proof: str = variable(
        "BACKUP_PROOF", "how deep to compare: full or counts", example="full", parse=one_of("full", "counts"), default="full"
    )


def run(job: Job[Settings]) -> None:
    """Restore a backup, compare it with its manifest and report; on a failure notify people, then raise it."""
    try:
        _drill(job)
    except Explained as error:
        _notify(job, error.title, error.what)
        raise
    except Exception as error:  # a bug is a failed drill, too: the backup was not proven to be restorable
        _notify(job, "Bug in the restore drill", f"{type(error).__name__}: {error}")
        raise


def _drill(job: Job[Settings]) -> None:
    from azora_ci.clients.s3.bucket import open_bucket
    from azora_ci.database.backup import manifest, pipeline

    bucket = open_bucket(job.settings, job.config.backup.bucket, clock=job.clock, say=job.say)
    backup_manifest = _choose_backup(job, bucket)
    document = backup_manifest.document
    job.identity = Identity(document["deployment_id"], document["version"], document["git_sha"])
    age = (job.clock.now() - parse_rfc3339(backup_manifest.snapshot_time)).total_seconds() / 3600
    job.say(f"{backup_manifest.backup_id}: snapshot of {backup_manifest.snapshot_time}, {age:.1f} hours old, {document['rows']:,} rows")
    job.evidence.update(backup_manifest.evidence(), age_hours=round(age, 2), depth=job.settings.proof)
    stored = manifest.require_object(bucket, backup_manifest)
    context = _wire(job, bucket)
    seconds = pipeline.prove_stored(context, document, stored)
    job.evidence.update(restore_seconds=round(seconds or 0.0, 3), seconds=context.seconds)
    job.tick(f"{backup_manifest.backup_id} restored in {seconds or 0.0:.1f} s and compared with its manifest ({context.depth})")
    job.actions.summary(
        f"### Restore drill: {backup_manifest.backup_id}\n\nRestored in {seconds or 0.0:.1f} s and compared with its manifest "
        f"({context.depth}): {len(document['tables'])} tables, {document['rows']:,} rows, "
        f"snapshot {backup_manifest.snapshot_time} ({age:.1f} hours old)."
        + "".join(f"\n\n- set aside: {escaped(line)}" for line in job.evidence["set_aside"])
    )


def _choose_backup(job: Job[Settings], bucket: Bucket) -> Manifest:
    """Return the manifest of the backup that the settings name, or of the newest one. Raises NotTrueError when there is none."""
    from azora_ci.database.backup import manifest

    backup, wanted_id, set_aside = job.config.backup, job.settings.backup_id, list[str]()
    job.evidence["set_aside"] = set_aside
    for attempt in reversed(manifest.attempts(bucket, backup)):
        if attempt.has_manifest and wanted_id in {None, attempt.names.backup_id, f"backup-{attempt.names.deployment_id}"}:
            try:
                return manifest.read(bucket, attempt.names)
            except (BadInputError, NotTrueError) as error:
                if wanted_id is not None:
                    raise
                set_aside.append(f"{error.where}: {error.what}")
                job.actions.warning("Not a manifest", f"{set_aside[-1]}\nIt was set aside, and the backup before it is restored.")
    raise NotTrueError(
        "There is no backup to restore",
        what="\n".join((f"no manifest of {wanted_id}" if wanted_id else "no backup with a manifest", *set_aside)),
        where=bucket.url(backup.key("")),
        next_step="look at the newest deployment's database-backup job, and at the bucket's lifecycle rules",
    )


def _wire(job: Job[Settings], bucket: Bucket) -> BackupContext:
    from azora_ci.database.backup.setup import BackupContext, verify_server

    return BackupContext(
        bucket=bucket,
        backup=job.config.backup,
        processes=job.processes,
        clock=job.clock,
        identity={},
        depth=job.settings.proof,
        verify_url=verify_server(job.settings, job.processes),
        scratch_dir=job.settings.scratch_dir,
    )


def _notify(job: Job[Settings], title: str, detail: str) -> None:
    from azora_ci.clients.slack import messages, webhook

    backup_name = job.evidence.get("backup_id") or job.settings.backup_id or "no backup"
    first_line = job.log.masked(detail.splitlines()[0] if detail else "")
    message = messages.drill(backup=backup_name, problem=(title, first_line), run_url=job.settings.run_url)
    notification = webhook.notify(job.settings.slack_webhook, message, job.clock)
    job.evidence["notified"] = notification.sent
    job.say(f"Slack: {notification.detail}")
