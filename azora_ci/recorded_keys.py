"""Host keys that the last deployment recorded: what a host must show where none is pinned.

The archive is read where there are credentials for it: by pre-deployment-validation, whose fragment hands them to the jobs that connect,
by a rollback, and by a person at a keyboard who has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from azora_ci import record
from azora_ci.config import DeployConfig
from azora_ci.errors import NotTrueError
from azora_ci.fragments import Fragments
from azora_ci.host_keys import lines_of
from azora_ci.job import Job
from azora_ci.settings import PinnedHostKeys

if TYPE_CHECKING:
    from azora_ci.archive import Archive


@dataclass(frozen=True)
class Recorded:
    """Host keys of an archived record: where it lies, the SHA-256 of its bytes, and the keys as evidence."""

    location: str
    sha256: str
    host_keys: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """Return them as evidence."""
        return {"location": self.location, "sha256": self.sha256, "host_keys": self.host_keys}

    @property
    def known_hosts(self) -> str:
        """Return them as the text of a known_hosts file."""
        return lines_of(self.host_keys)


def newest(archive: Archive) -> Recorded | None:
    """Return the host keys of the newest record that has some, or None. Raises NotTrueError when that record cannot be believed."""
    found = archive.newest_with("host_keys")
    if found is None:
        return None
    location = archive.bucket.url(found.key)
    chain, place = archive.around(found.key)
    said = record.doubts([one.data for one in chain], place)
    if said:
        raise NotTrueError(
            "The record cannot be believed",
            what="\n".join(said),
            where=location,
            next_step="find out who changed the archive; to go on without it, pin the host keys: PROD_KNOWN_HOSTS",
        )
    return Recorded(location, found.sha256, found.document["host_keys"])


def of_this_deployment(fragments: Fragments, deployment_id: str) -> str:
    """Return what earlier jobs of a deployment know of host keys, as the text of a known_hosts file; empty when they know nothing.

    What was recorded before, and what its own connections have seen since: on a first deployment that is all there is.
    """
    validation = fragments.newest("pre-deployment-validation", deployment_id)
    found = validation.evidence.get("recorded_host_keys") if validation is not None else None
    lines = [lines_of(found["host_keys"])] if found else []
    seen = (fragments.newest(job, deployment_id) for job in record.CONNECTING_JOBS)
    lines += [lines_of(one.evidence.get("host_keys", ())) for one in seen if one is not None]
    return "".join(lines)


def for_job(job: Job[Any]) -> str:
    """Return what earlier jobs know of host keys, else the archive where the job may read it; nothing where keys are pinned.

    The job's settings are ``PinnedHostKeys``. Raises what ``newest`` raises.
    """
    if job.settings.prod_known_hosts:
        return ""
    found = of_this_deployment(job.fragments, job.settings.deployment_id) if job.settings.deployment_id else ""
    if found or getattr(job.settings, "aws_access_key_id", None) is None:
        return found
    return of_archive(job.settings, job.config, archive_of(job))


def archive_of(job: Job[Any]) -> Archive:
    """Return the archive of a job's environment. The job's settings are ``Aws``."""
    from azora_ci import s3
    from azora_ci.archive import Archive

    backup = job.config.backup
    return Archive(s3.bucket(job.settings, backup.bucket, clock=job.clock, say=job.say), job.settings.deploy_environment, backup.lock_mode)


def are_needed(settings: PinnedHostKeys, config: DeployConfig) -> bool:
    """Say whether recorded keys count: hosts are connected to, and none is pinned."""
    return settings.prod_known_hosts is None and (config.target.kind == "docker_hosts" or config.database.via_ssh)


def of_archive(settings: PinnedHostKeys, config: DeployConfig, archive: Archive) -> str:
    """Return the newest record's host keys as the text of a known_hosts file; empty where they do not count, or there are none."""
    found = newest(archive) if are_needed(settings, config) else None
    return found.known_hosts if found else ""
