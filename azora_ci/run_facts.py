"""The facts of the run for a deployment record, read from a job's settings. All three jobs that assemble a record use this."""

from __future__ import annotations

from typing import Any

from azora_ci.job import Job
from azora_ci.record import Circumstances, Previous


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
