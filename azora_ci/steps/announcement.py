"""What GitHub's pages are told at the end of a deployment or rollback. Nothing that fails here changes the verdict: it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azora_ci.clients.deployments import Deployments, Release, Status
from azora_ci.clients.github import GitHub
from azora_ci.core.errors import AzoraError
from azora_ci.steps.job import Job

PATIENCE_SECONDS = 60.0  # for rate limits: people wait for the end of the job


def set_states(job: Job[Any], state: str, reason: str, others: Mapping[str | None, tuple[str, str]], *, create: bool = True) -> None:
    """Give this deployment a state on GitHub, and ``others`` (deployment id -> state and reason) theirs, and note the result in evidence.

    ``create``: make GitHub's deployment when there is none with our id; others are changed where they are. The job's settings are
    ``GitHubDeployments``, its evidence names the record where there is one.
    """
    document: dict[str, Any] = {"number": None, "state": state, "others": {}, "detail": ""}
    job.evidence["github_deployment"] = document
    try:
        document["detail"] = _set_states(job, document, (state, reason), others, create=create)
    except AzoraError as error:
        document["detail"] = f"GitHub does not show it: {error.title}: {job.log.masked(error.what)}"
        job.actions.warning("GitHub's deployment has no state", f"{document['detail']}. Nothing else depends on it.")
        return
    (job.tick if document["number"] else job.say)(document["detail"])


def _set_states(
    job: Job[Any], document: dict[str, Any], own: tuple[str, str], others: Mapping[str | None, tuple[str, str]], *, create: bool
) -> str:
    settings, identity = job.settings, job.identity
    if settings.github_token is None or settings.repository is None:
        return "GITHUB_TOKEN is not set: GitHub's deployments are left as they are"
    if identity.deployment_id is None or identity.version is None or identity.git_sha is None:
        return "nothing was to be deployed yet: GitHub has no deployment of it"
    client = GitHub(settings.api_url, settings.repository, settings.github_token, clock=job.clock, say=job.say)
    client.patience = PATIENCE_SECONDS
    deployments = Deployments(client, settings.deploy_environment)
    record = {name: job.evidence.get(name) for name in ("record_location", "record_sha256")}
    release = Release(identity.deployment_id, identity.version, identity.git_sha, {"run_url": settings.run_url, **record})
    number = deployments.find_or_create(release) if create else deployments.find(release.deployment_id)
    if number is None:
        return f"GitHub has no deployment of {release.deployment_id}: it is left out"
    links = {"log_url": f"{settings.run_url}#artifacts"}  # report and record lie there
    links |= _environment_url(job)
    deployments.add(number, Status(own[0], job.log.masked(own[1]), links))  # nobody masks what GitHub's pages show
    document["number"] = number
    for other_id, status in others.items():
        other = deployments.find(other_id) if other_id else None
        if other_id and other is not None:
            deployments.add(other, Status(status[0], job.log.masked(status[1]), links))
            document["others"][other_id] = status[0]
    return f"GitHub's deployment {number} is {own[0]}" + "".join(f", that of {name} {state}" for name, state in document["others"].items())


def _environment_url(job: Job[Any]) -> dict[str, str]:
    try:
        return {"environment_url": job.config.public_url}
    except AzoraError:  # a report is made without the configuration, too
        return {}
