"""Preflight: checks, before anything starts, whether a host has memory and disk for both versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.docker_hosts.host import LABEL, DockerHost
from azora_ci.targets.release import Release

PULLING = 1.5  # bytes of disk per unpacked byte of an image while it is pulled, because its compressed layers are there, too


@dataclass(frozen=True)
class Requirements:
    """What a release needs on one host.

    ``memory``: bytes that its instances may take; ``unlimited``: services without a memory limit; ``images``: reference -> unpacked
    bytes, None where the build did not report them; ``disk_reserve``: bytes of disk that must stay free.
    """

    memory: int
    unlimited: tuple[str, ...]
    images: Mapping[str, int | None]
    disk_reserve: int


def requirements_of(config: DeployConfig, release: Release) -> Requirements:
    """Return what a release needs on one host."""
    from docker.utils import parse_bytes

    hosts, registry = config.target.docker_hosts, config.registry
    assert hosts is not None  # noqa: S101 - the target's own check
    assert registry is not None  # noqa: S101 - the configuration's own check
    limited = [service for service in config.services if service.memory]
    return Requirements(
        memory=sum(service.instances * int(parse_bytes(service.memory)) for service in limited),
        unlimited=tuple(service.id for service in config.services if not service.memory),
        images={f"{registry.repository}/{name}@{digest}": release.sizes.get(name) for name, digest in release.digests.items()},
        disk_reserve=int(parse_bytes(hosts.disk_reserve)),
    )


def require_memory(host: DockerHost, required: Requirements) -> list[str]:
    """Return a line about the host's memory. Raises NotTrueError when running containers and the release may take more than it has.

    Containers without a memory limit cannot be counted; the line names them.
    """
    with host.docker("tell its memory") as client:
        total = int(client.info()["MemTotal"])
        limits = list(_limits(client))
    used = sum(limit for _, limit, _ in limits)
    unlimited = [name for name, limit, ours in limits if not limit and not ours]  # edge and guard take little memory
    unlimited += [f"the new {name}" for name in required.unlimited]
    uncounted = f"; without a limit, so not counted: {', '.join(unlimited)}" if unlimited else ""
    if required.memory + used > total:
        raise NotTrueError(
            "The host has too little memory for both versions",
            what=f"running containers may take {_mib(used)}, the new ones {_mib(required.memory)}, there are {_mib(total)}{uncounted}",
            where=host.name,
            next_step="lower services.*.memory or instances, run python -m azora_ci clean, or give the host more memory",
        )
    return [f"{host.name}: containers may take {_mib(used + required.memory)} of {_mib(total)} of memory{uncounted}"]


def _limits(client: Any) -> Iterator[tuple[str, int, bool]]:
    for listed in client.api.containers():
        container = client.api.inspect_container(listed["Id"])
        ours = f"{LABEL}image" in (container["Config"]["Labels"] or {})
        yield container["Name"].lstrip("/"), int(container["HostConfig"]["Memory"]), ours


def require_disk(host: DockerHost, free: int | None, required: Requirements) -> list[str]:
    """Return a line about the host's disk. Raises NotTrueError when pulling the missing images leaves less than the reserve free.

    ``free``: free bytes, None where they are unknown.
    """
    missing = {name: size for name, size in required.images.items() if not host.has_image(name)}
    unknown = [name for name, size in missing.items() if size is None]
    pulled = int(PULLING * sum(size or 0 for size in missing.values()))
    text = f"{len(missing)} of {len(required.images)} images are to be pulled and take up to {_mib(pulled)} meanwhile"
    text += f", the size of {', '.join(unknown)} is not known" if unknown else ""
    if free is None:
        return [f"{host.name}: {text}; how much disk is free is not known until its guard runs"]
    text += f"; {_mib(required.disk_reserve)} are to stay free, {_mib(free)} are free"
    if pulled + required.disk_reserve > free:
        raise NotTrueError(
            "The host has too little disk for both versions",
            what=text,
            where=f"{host.name}, the file system of Docker's volumes",
            next_step="nothing was started; make room (python -m azora_ci clean, docker image prune, docker system df), "
            "or lower target.docker_hosts.disk_reserve",
        )
    return [f"{host.name}: {text}"]


def _mib(number: int) -> str:
    return f"{number >> 20:,} MiB"
