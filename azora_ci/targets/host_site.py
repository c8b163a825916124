"""One of several production hosts: what is installed there, and the story of its site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from azora_ci.config import DeployConfig, DockerHosts
from azora_ci.envoy import EdgeState
from azora_ci.errors import BadInputError, UnreachableError
from azora_ci.targets import Release, Returned
from azora_ci.targets.docker_host import DockerHost
from azora_ci.targets.equipment import Equipment
from azora_ci.targets.guarded import GuardClient, GuardedEdge, Lease
from azora_ci.targets.journal import History
from azora_ci.targets.room import Needs, require_disk, require_memory
from azora_ci.targets.site import Site
from azora_ci.targets.takeover import Port

EDGE_START_SECONDS = 60.0
FULL = 100  # percent

T = TypeVar("T")


@dataclass(frozen=True)
class HostSite:
    """A host and the story of its site."""

    host: DockerHost
    equipment: Equipment
    port: Port
    guard: GuardClient
    lease: Lease
    edge: GuardedEdge
    site: Site

    def install_guard(self, *, replaced: bool) -> None:
        """Have this version's guard run, and its clock agree with ours. One that guards something just now is left in peace.

        Not ``replaced``: one that runs is left as it is, whatever its version and clock.
        """
        if replaced and self.equipment.has_another_guard() and self.guard.ask("/status")["lock"] is None:
            self.equipment.pull_guard()  # or the host is left without one
            self.equipment.remove_guard()
        self.equipment.install_guard()
        self.guard.await_answer()
        if replaced:
            self.guard.check_clock()

    def install_edge(self, state: EdgeState, *, replaced: bool) -> str | None:
        """Have the edge run and follow the guard's files; a new one begins with ``state``.

        ``replaced``: one that is configured otherwise may be replaced, unless a rollout is under way. Says what that cost.
        """
        if not self.guard.ask("/files"):
            self.edge.switch(state)
        self.port.waits = not self.equipment.is_published() and bool(self.port.holders())
        seconds = self.equipment.install_edge(publish=not self.port.waits, replace=replaced and self.history().unfinished is None)
        self.edge.confirm(self.edge.state(), self.guard.ask("/status")["generation"], EDGE_START_SECONDS)
        if self.port.waits:
            return f"{self.host.name}: the edge runs, and its port is still with others: a deployment takes it over"
        if seconds is None:
            return None
        return f"{self.host.name}: the edge was replaced by the configured one; nothing answered for at most {seconds:.1f} s"

    def edge_line(self) -> str:
        """Say what the edge runs, and whether that is configured."""
        image, configured = self.equipment.edge_image()
        if image is None:
            return f"{self.host.name}: no edge is installed"
        known = "as configured" if configured else "which is not what is configured: the next deployment, or edge install, replaces it"
        return f"{self.host.name}: the edge runs {image}, {known}"

    def steadily(self, work: Callable[[Site], T]) -> T:
        """Do something that may be done twice: once more, over a new connection, where the first one broke on the way."""
        try:
            return work(self.site)
        except UnreachableError:
            self.host.ensure()
            return work(self.site)

    def history(self) -> History:
        """Return what the journal tells; nothing, where no guard was ever installed."""
        if self.guard.token is None and not self.equipment.is_installed():
            return History()
        return self.site.current()

    def at_once(self, release: Release) -> None:
        """Bring a release that serves elsewhere to 100 % here."""
        self.site.deploy(release, FULL)
        self.site.set_weight(release, FULL)
        self.site.promote(release)

    def gives_all_to(self, release_id: str) -> bool:
        """Say whether the edge gives all traffic to a release that is not promoted here yet.

        The journal does not know: a guard that went back by itself has put an earlier state in force since.
        """
        state = self.edge.state()
        return (state.canary, state.percent) == (release_id, FULL)

    def plan(self, wanted: Needs) -> list[str]:
        """Return what there is room for. Raises NotTrueError where it is too little."""
        free = self.guard.ask("/status").get("disk_free_bytes") if self.equipment.is_installed() else None
        self.port.require()
        return [*require_memory(self.host, wanted), *require_disk(self.host, free, wanted), *self.port.plan()]

    def go_back(self, release: Release, reason: str, *, hurry: bool) -> Returned:
        """Go back: to the containers from which the edge took its port, where there is no version before."""
        note = self.port.give_back(release.id) if self.history().before(release.id) is None else None
        returned = self.site.abort(release, reason, hurry=hurry)
        return replace(returned, detail=f"{note}; {returned.detail}") if note else returned


def settings_of(config: DeployConfig) -> DockerHosts:
    """Return how the hosts' edges are configured. Raises BadInputError where they are not."""
    if config.target.docker_hosts is None:
        raise BadInputError(
            "The hosts' edge is not configured",
            what="target.docker_hosts is missing: which images of Envoy and Python the edge and its guard run",
            where="the deployment configuration",
            next_step="add [target.docker_hosts] with edge_image and guard_image, pinned by digest",
        )
    return config.target.docker_hosts
