"""What services answer by their release's configuration, and what proves the version of one that cannot name it: digest and edge.

The secret that asks the edge for its seal is new in every deployment. The edge's files hold it; logs and artifacts do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from azora_ci.core.config import WORKER, DeployConfig, HealthSettings, Service
from azora_ci.core.errors import AzoraError
from azora_ci.core.job_log import JobLog
from azora_ci.health.answers import CONTRACT, FROM_IMAGE, EdgeProof, Endpoint, bare
from azora_ci.targets.base import Instance, Target
from azora_ci.targets.journal import Deployed, History
from azora_ci.targets.node_parts import Facts, Parts, Runner


def are_needed(config: DeployConfig) -> bool:
    """Return whether the version of any service is to be proved by its image."""
    return any(service.health.version_from == FROM_IMAGE for service in config.services)


def noted(service: Service) -> dict[str, Any]:
    """Return what the journal keeps of a service's configuration for each of its instances."""
    settings = {"health": asdict(service.health)} if service.health != CONTRACT else {}
    return settings | ({"kind": WORKER} if service.kind == WORKER else {})


def settings_of(facts: Facts) -> HealthSettings:
    """Return what an instance answers, by the configuration that it was started with."""
    settings = facts.get("health", {})
    return HealthSettings(**settings | {"healthy": tuple(settings["healthy"])}) if settings else CONTRACT


def settings_by_service(deployed: Deployed) -> dict[str, HealthSettings]:
    """Return service id -> what a release answers, for each service that it has."""
    recorded = {service: settings_of(facts) for (service, _), facts in list(deployed.instances.items())}
    return dict.fromkeys(deployed.digests, CONTRACT) | recorded


def instance_endpoint(service: Service, instance: Instance, side: str, parts: Parts, history: Callable[[], History]) -> Endpoint:
    """Return the address at which an instance reports its health; with the version that it runs, where its image is to prove that."""
    url, versions = f"http://{instance.address}{service.health_path}", frozenset({bare(instance.version)})
    observed = None
    if instance.health.version_from == FROM_IMAGE:
        observed = _observed_version(parts.runner, history().releases[instance.release], instance)
    return Endpoint(instance.name, service.id, side, url, versions, parts.dial, instance.health, observed)


def _observed_version(runner: Runner, deployed: Deployed, instance: Instance) -> str | None:
    """Return the version that an instance runs by its digest, words that are no version for another digest, or None: not known."""
    runs = runner.runs(deployed.instances[instance.service, instance.number], deployed.digests[instance.service])
    return None if runs is None else deployed.version if runs else "of another digest"


def edge_proof(target: Target, config: DeployConfig, log: JobLog) -> EdgeProof | None:
    """Return what proves which release answers in public, and opens the edge; None where, said in the log if needed, nothing can be."""
    try:
        with target.connected():
            secret, history = target.edge_secret(), target.current()
    except AzoraError as error:
        secret, problem = None, f"{error.title}: {error.what}"
    else:
        problem = "the edge was configured by a deployment that had nothing to prove"
    if secret is None:
        if are_needed(config):
            log.say(f"- which version answers in public is not proved: {problem}")
        return None
    log.add_secret(secret)
    return EdgeProof(secret, {release.id: release.version for release in history.releases.values()})
