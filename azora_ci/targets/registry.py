"""The kinds of target, by the name that ``target.kind`` gives them."""

from __future__ import annotations

from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import BadInputError
from azora_ci.targets.base import Target, TargetContext, TargetKind
from azora_ci.targets.docker_hosts.kind import DockerHostsKind
from azora_ci.targets.kubernetes.kind import KubernetesKind
from azora_ci.targets.local_processes.kind import LocalProcessesKind

TARGETS: dict[str, TargetKind] = {
    "local_processes": LocalProcessesKind(),
    "docker_hosts": DockerHostsKind(),
    "kubernetes": KubernetesKind(),
}


def kind_of(config: DeployConfig) -> TargetKind:
    """Return the kind that ``target.kind`` names. Raises BadInputError for an unknown kind."""
    name = config.target.kind
    if name not in TARGETS:
        raise BadInputError(
            "Target is not available",
            what=f"target.kind {name!r} is not among {', '.join(TARGETS)}",
            where="the deployment configuration",
            next_step="choose an available target",
        )
    return TARGETS[name]


def target_of(context: TargetContext) -> Target:
    """Return the target that the configuration names. Raises BadInputError as ``kind_of`` and ``TargetKind.open`` do."""
    return kind_of(context.config).open(context)
