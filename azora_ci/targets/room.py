"""Preflight: whether a host has memory and disk for both versions. Asked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.config import DeployConfig
from azora_ci.errors import NotTrueError
from azora_ci.targets import Release
from azora_ci.targets.docker_host import LABEL, DockerHost

PULLING = 1.5  # times an image's unpacked bytes: while it is pulled, its compressed layers lie beside them
OURS = "azora-"  # names of edge and guard, which take little memory, begin with this


@dataclass(frozen=True)
class Needs:
    """What a release takes on one host.

    ``memory``: bytes that its instances may take; ``unlimited``: services without a limit; ``images``: reference -> unpacked bytes, None
    where nobody said; ``disk_reserve``: bytes that stay free beside all images.
    """

    memory: int
    unlimited: tuple[str, ...]
    images: Mapping[str, int | None]
    disk_reserve: int


def needs(config: DeployConfig, release: Release) -> Needs:
    """Return what a release takes on one host."""
    from docker.utils import parse_bytes

    hosts, registry = config.target.docker_hosts, config.registry
    assert hosts is not None  # noqa: S101 - the target's own check
    assert registry is not None  # noqa: S101 - the configuration's own check
    limited = [one for one in config.services if one.memory]
    return Needs(
        memory=sum(one.instances * int(parse_bytes(one.memory)) for one in limited),
        unlimited=tuple(one.id for one in config.services if not one.memory),
        images={f"{registry.repository}/{name}@{digest}": release.sizes.get(name) for name, digest in release.digests.items()},
        disk_reserve=int(parse_bytes(hosts.disk_reserve)),
    )


def require_memory(host: DockerHost, wanted: Needs) -> list[str]:
    """Raise NotTrueError when the host has less memory than is wanted beside what running containers may take.

    What has no limit cannot be counted: it is named in the line that is returned.
    """
    with host.docker("tell its memory") as client:
        total = int(client.info()["MemTotal"])
        limits = dict(_limits(client))
    taken = sum(limits.values())
    unlimited = [name for name, limit in limits.items() if not limit and not name.startswith(OURS)]
    unlimited += [f"the new {name}" for name in wanted.unlimited]
    uncounted = f"; without a limit, so not counted: {', '.join(unlimited)}" if unlimited else ""
    if wanted.memory + taken > total:
        raise NotTrueError(
            "The host has too little memory for both versions",
            what=f"running containers may take {_mib(taken)}, the new ones {_mib(wanted.memory)}, there are {_mib(total)}{uncounted}",
            where=host.name,
            next_step="lower services.*.memory or instances, run python -m azora_ci clean, or give the host more memory",
        )
    return [f"{host.name}: containers may take {_mib(taken + wanted.memory)} of {_mib(total)} of memory{uncounted}"]


def _limits(client: Any) -> Iterator[tuple[str, int]]:
    for one in client.api.containers():
        found = client.api.inspect_container(one["Id"])
        number = (found["Config"]["Labels"] or {}).get(f"{LABEL}number")
        limit = int(found["HostConfig"]["Memory"])
        name = found["Name"].lstrip("/")
        yield (f"instance {name.removeprefix(OURS)}" if number else name), limit


def require_disk(host: DockerHost, free: int | None, wanted: Needs) -> list[str]:
    """Raise NotTrueError when images that are not there yet leave less than the reserve free; return what was found.

    ``free``: bytes, None where not known.
    """
    missing = {name: size for name, size in wanted.images.items() if not host.has_image(name)}
    unknown = [name for name, size in missing.items() if size is None]
    pulled = int(PULLING * sum(size or 0 for size in missing.values()))
    text = f"{len(missing)} of {len(wanted.images)} images are to be pulled and take up to {_mib(pulled)} meanwhile"
    text += f", the size of {', '.join(unknown)} is not known" if unknown else ""
    if free is None:
        return [f"{host.name}: {text}; how much disk is free is not known until its guard runs"]
    text += f"; {_mib(wanted.disk_reserve)} are to stay free, {_mib(free)} are free"
    if pulled + wanted.disk_reserve > free:
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
