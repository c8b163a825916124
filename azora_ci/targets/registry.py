"""The kinds of target, by the name that ``target.kind`` gives them."""

from __future__ import annotations

from collections.abc import Callable

from azora_ci.core.errors import BadInputError
from azora_ci.targets.base import Target, TargetContext


def _local_processes(context: TargetContext) -> Target:
    from azora_ci.targets.local_processes.target import LocalProcesses

    return LocalProcesses(context)


def _docker_hosts(context: TargetContext) -> Target:
    from azora_ci.targets.docker_hosts.target import DockerHosts

    return DockerHosts(context)


TARGETS: dict[str, Callable[[TargetContext], Target]] = {"local_processes": _local_processes, "docker_hosts": _docker_hosts}


def target_of(kind: str, context: TargetContext) -> Target:
    """Return the target of ``target.kind``. Raises BadInputError for an unknown kind."""
    if kind not in TARGETS:
        raise BadInputError(
            "Target is not available",
            what=f"target.kind {kind!r} is not among {', '.join(TARGETS)}",
            where="the deployment configuration",
            next_step="choose an available target",
        )
    return TARGETS[kind](context)
