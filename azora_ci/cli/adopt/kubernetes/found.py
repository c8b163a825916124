"""What was found out about a cluster from the manifests of a repository. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from azora_ci.cli.adopt.compose.found import FoundService

CHOICE = "adopt --manifests PATH reads others"


@dataclass(frozen=True)
class Cluster:
    """``files``: folders and files that were read, for ``reason``; ``others`` hold workloads, too. ``certain``: they are production's.

    ``namespace``: where the Rollouts are, as ``namespace_from`` says, None where nothing does. ``advice``: what has to change before a
    release can move; ``notes``: what is to be known. ``prometheus``: an address inside the cluster, from ``prometheus_from``.
    """

    files: tuple[str, ...] = ()
    how: str = ""
    reason: str = ""
    others: tuple[str, ...] = ()
    certain: bool = False
    namespace: str | None = None
    namespace_from: str = ""
    namespace_doubt: str = ""
    public_url: str | None = None
    public_url_from: str = ""
    registry: str | None = None
    registry_from: str = ""
    prometheus: str | None = None
    prometheus_from: str = ""
    services: tuple[FoundService, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    self_migrating: dict[str, str] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
