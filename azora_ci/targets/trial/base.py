"""How a kind of target starts a service of a release apart: what it needs, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from azora_ci.core.clock import Clock
from azora_ci.core.config import DeployConfig, Service
from azora_ci.core.process import Processes
from azora_ci.core.process.isolation import Door, Isolation
from azora_ci.core.variables import Secret
from azora_ci.targets.release import Release

if TYPE_CHECKING:
    from azora_ci.health.probes import Dial


@dataclass(frozen=True)
class Means:
    """What services are started with: ``isolated`` says how commands run in a folder; ``docker_host`` and ``login`` are for images."""

    config: DeployConfig
    processes: Processes
    clock: Clock
    isolated: Callable[[Path], Isolation]
    docker_host: str
    login: tuple[Secret, Secret] | None


@dataclass(frozen=True)
class Started:
    """A service that was started apart: how this process connects to it, ``ended``, which says how it ended (None: it runs), and
    ``begin_to_end``, which asks it to end and does not wait for that.
    """

    dial: Dial
    ended: Callable[[], str | None]
    begin_to_end: Callable[[], None]


class Apart(Protocol):
    """Starts services of a release, each where it reaches a door and nothing else; what they print is kept nowhere."""

    def started(self, service: Service, release: Release, env: Mapping[str, str], door: Door) -> AbstractContextManager[Started]:
        """Run a service during the block, with ``env`` and what its kind of target always gives; then nothing of it is left.

        It listens at ``port_of(service, door)``. Raises BadInputError, NotTrueError and UnreachableError where it cannot be started.
        """


def port_of(service: Service, door: Door) -> int:
    """Return the port on which a service is to listen; the door's is taken."""
    return service.port if service.port != door.port else service.port - 1


def facts_of(service: Service, release: Release, door: Door, host: str) -> dict[str, str]:
    """Return what every instance is told: where to listen, and what it is."""
    place = {"PORT": str(port_of(service, door)), "HOST": host}
    return {**place, "SERVICE": service.id, "VERSION": release.bare, "DEPLOYMENT_ID": release.id}
