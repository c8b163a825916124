"""What proves the version of a service that cannot name it itself: an instance's digest, and the edge's seal on public answers.

The secret that asks the edge for its seal is new in every deployment. The edge's files hold it; logs and artifacts do not.
"""

from __future__ import annotations

from collections.abc import Callable

from azora_ci.core.config import DeployConfig, Service
from azora_ci.core.errors import AzoraError
from azora_ci.core.job_log import JobLog
from azora_ci.health.answers import FROM_IMAGE, EdgeProof, Endpoint, bare
from azora_ci.targets.base import Instance, Target, TargetContext
from azora_ci.targets.journal import Deployed, History
from azora_ci.targets.node_parts import Parts, Runner


def are_needed(config: DeployConfig) -> bool:
    """Return whether the version of any service is to be proved by its image."""
    return any(service.health.version_from == FROM_IMAGE for service in config.services)


def secret_of(context: TargetContext) -> str | None:
    """Return the secret that this deployment gives to the edge; None where nothing is to be proved."""
    return context.edge_secret.reveal() if are_needed(context.config) else None


def instance_endpoint(service: Service, instance: Instance, side: str, parts: Parts, history: Callable[[], History]) -> Endpoint:
    """Return the address at which an instance reports its health; with the version that it runs, where its image is to prove that."""
    url, versions = f"http://{instance.address}{service.health_path}", frozenset({bare(instance.version)})
    observed = None
    if service.health.version_from == FROM_IMAGE:
        observed = _observed_version(parts.runner, history().releases[instance.release], instance)
    return Endpoint(instance.name, service.id, side, url, versions, parts.dial, service.health, observed)


def _observed_version(runner: Runner, deployed: Deployed, instance: Instance) -> str | None:
    """Return the version that an instance runs by its digest, words that are no version for another digest, or None: not known."""
    runs = runner.runs(deployed.instances[instance.service, instance.number], deployed.digests[instance.service])
    return None if runs is None else deployed.version if runs else "of another digest"


def edge_proof(target: Target, config: DeployConfig, log: JobLog) -> EdgeProof | None:
    """Return what proves which release answers in public; None where nothing is to be proved, or, said in the log, nothing can be."""
    if not are_needed(config):
        return None
    try:
        with target.connected():
            secret, history = target.edge_secret(), target.current()
    except AzoraError as error:
        log.say(f"- which version answers in public is not proved: {error.title}: {error.what}")
        return None
    if secret is None:
        log.say("- which version answers in public is not proved: the edge was configured by a deployment that had nothing to prove")
        return None
    log.add_secret(secret)
    return EdgeProof(secret, {release.id: release.version for release in history.releases.values()})
