"""The facts of the run for a deployment record, read from a job's settings. All three jobs that assemble a record use this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from azora_ci.steps.job import Job


@dataclass(frozen=True)
class Previous:
    """Earlier records in the archive: SHA-256 of the newest record, and id and version of the last deployment that succeeded."""

    record_sha256: str | None = None
    deployment_id: str | None = None
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Facts of the record that no fragment holds. ``previous`` comes from the archive, the other fields from the run's settings."""

    deployment_id: str
    version: str | None
    git_sha: str | None
    environment: str
    triggered_by: str
    repository: str | None
    run_id: str
    run_url: str
    run_attempt: int
    rollback_window_minutes: int
    artifacts_location: str | None
    previous: Previous = Previous()


def circumstances(
    job: Job[Any], deployment_id: str, *, attempt: int | None = None, previous: Previous | None = None, artifacts_location: str | None
) -> Circumstances:
    """Return the circumstances of this run. ``attempt`` is the run's own unless an archived record is compared."""
    settings = job.settings
    return Circumstances(
        deployment_id=deployment_id,
        version=job.identity.version,
        git_sha=job.identity.git_sha,
        environment=settings.deploy_environment,
        triggered_by=settings.actor,
        repository=settings.repository,
        run_id=settings.run_id,
        run_url=settings.run_url,
        run_attempt=attempt or settings.run_attempt,
        rollback_window_minutes=settings.rollback_window_minutes,
        artifacts_location=artifacts_location,
        previous=previous or Previous(),
    )
