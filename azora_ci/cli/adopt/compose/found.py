"""What was found out about one service, and where: the values of its table in the configuration. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WEB, WORKER, JOB = "web", "worker", "job"


@dataclass(frozen=True)
class FoundRollout:
    """What moves a service on Kubernetes: its Rollout, the container that runs its image, and the Services that traffic is split between.

    What a person has to look at stands in the service's marks, as ``rollout.container``.
    """

    rollout: str
    container: str
    stable_service: str | None = None
    canary_service: str | None = None


@dataclass(frozen=True)
class FoundService:
    """A service that is built from this repository. ``rollout``: what moves it on Kubernetes, None elsewhere.

    ``sources``: key -> where its value was found; ``marks``: key -> what a person has to fill in; ``secrets``: variable -> name of the
    secret that it holds; ``left``: what of the compose file is not carried over -> reason.
    """

    id: str
    context: str
    dockerfile: str
    source: str = ""
    starts: str = ""  # what its image starts by itself
    kind: str = WEB
    port: int | None = None
    health_path: str | None = None
    liveness_path: str | None = None
    route_prefix: str | None = None
    public_health_url: str | None = None
    memory: str | None = None
    instances: int | None = None
    singleton: bool = False
    when: str | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    talks_to: tuple[str, ...] = ()  # ids of services that its environment names
    supports: tuple[str, ...] = ()  # names of services in its environment that are not built here, such as a cache
    networks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_grace_seconds: float | None = None
    cap_drop: tuple[str, ...] = ()
    read_only: bool = False
    build: dict[str, Any] = field(default_factory=dict)  # target, args and platform of its image
    rollout: FoundRollout | None = None
    sources: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Return a name for people, ``API Gateway``."""
        return " ".join(word.upper() if word in {"api", "lms", "ui"} else word.capitalize() for word in self.id.split("_"))
