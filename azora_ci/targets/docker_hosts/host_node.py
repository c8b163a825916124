"""One of several production hosts: the containers that are installed there, and its node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from azora_ci.core.config import DeployConfig, DockerHostsSettings
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.health.failures import Failure
from azora_ci.health.traffic import Counters
from azora_ci.targets.base import AbortResult, Observation
from azora_ci.targets.docker_hosts.capacity import Requirements, require_disk, require_memory
from azora_ci.targets.docker_hosts.edge_containers import EdgeContainers
from azora_ci.targets.docker_hosts.host import DockerHost
from azora_ci.targets.docker_hosts.takeover import Port
from azora_ci.targets.envoy import access_log
from azora_ci.targets.envoy.state import EdgeState
from azora_ci.targets.guard.client import GuardClient, GuardedEdge, Lease
from azora_ci.targets.journal import History
from azora_ci.targets.node import Node
from azora_ci.targets.parallel import HostOutcome
from azora_ci.targets.release import Release

EDGE_START_SECONDS = 60.0
LOG_LINES = 10_000  # of an edge, at most: a few megabytes

T = TypeVar("T")
MAY_PUSH = (
    "DOCKER_USERNAME and DOCKER_PASSWORD are used to pull, because PULL_USERNAME and PULL_PASSWORD are not set: who reads them there may "
    "replace images. Make a login that may only pull"
)


@dataclass(frozen=True)
class HostNode:
    """A host and its node, with the parts that they are made of."""

    host: DockerHost
    edge_containers: EdgeContainers
    port: Port
    guard: GuardClient
    lease: Lease
    edge: GuardedEdge
    node: Node

    def install_guard(self, *, replaced: bool) -> None:
        """Have this version's guard run, with a clock that agrees with this machine's. A guard whose lock is held is not replaced.

        Without ``replaced``, a running guard stays as it is, whatever its version and clock.
        """
        if replaced and self.edge_containers.has_another_guard() and self.guard.ask("/status")["lock"] is None:
            self.edge_containers.pull_guard()  # first, because a failed pull must not leave the host without a guard
            self.edge_containers.remove_guard()
        self.edge_containers.install_guard(walled=replaced)
        self.guard.await_answer()
        if replaced:
            self.guard.check_clock()

    def install_edge(self, state: EdgeState, *, replaced: bool) -> str | None:
        """Have the edge run and follow the guard's files; a new edge begins with ``state``.

        ``replaced``: an edge with another configuration may be replaced, unless a rollout is under way. Returns a note, or None.
        """
        if not self.guard.ask("/files"):
            self.edge.switch(state)
        self.port.waits = not self.edge_containers.is_published() and bool(self.port.holders())
        seconds = self.edge_containers.install_edge(publish=not self.port.waits, replace=replaced and self.history().unfinished is None)
        self.edge.confirm(self.edge.state(), self.guard.ask("/status")["generation"], EDGE_START_SECONDS)
        if self.port.waits:
            return f"{self.host.name}: the edge runs, and its port is still with others: a deployment takes it over"
        if seconds is None:
            return None
        return f"{self.host.name}: the edge was replaced by the configured one; nothing answered for at most {seconds:.1f} s"

    def describe_edge(self) -> str:
        """Return a line with the image that the edge runs, and whether it is the configured one."""
        image, configured = self.edge_containers.edge_image()
        if image is None:
            return f"{self.host.name}: no edge is installed"
        state = "as configured" if configured else "which is not what is configured: the next deployment, or edge install, replaces it"
        return f"{self.host.name}: the edge runs {image}, {state}"

    def edge_log(self, since: str) -> list[Failure]:
        """Return what the log of the edge's container tells of since a moment: of its latest lines, which Docker keeps."""
        with self.host.docker("read the edge's log") as client:
            container = self.host.find_container(client, self.host.names.edge)
            text = container.logs(stderr=False, tail=LOG_LINES) if container is not None else b""
        return access_log.read(text.decode(errors="replace").split("\n"), since, self.host.name)

    def run_with_reconnect(self, work: Callable[[Node], T]) -> T:
        """Return the result of ``work``, which must be repeatable: it is done again over a new connection when the first one breaks."""
        try:
            return work(self.node)
        except UnreachableError:
            self.host.ensure()
            return work(self.node)

    def history(self) -> History:
        """Return the journal's history; an empty one where no guard runs."""
        if self.guard.token is None and not self.edge_containers.is_installed():
            return History()
        return self.node.current()

    def sends_all_traffic_to(self, release_id: str) -> bool:
        """Return whether the edge gives all traffic to a release that is not promoted here yet.

        The edge is asked because the journal does not record it when a guard goes back by itself.
        """
        state = self.edge.state()
        return (state.canary, state.percent) == (release_id, 100)

    def plan(self, required: Requirements) -> list[str]:
        """Return lines about the host's memory, disk and port. Raises NotTrueError when one of them does not suffice."""
        free = self.guard.ask("/status").get("disk_free_bytes") if self.edge_containers.is_installed() else None
        self.port.require()
        return [*require_memory(self.host, required), *require_disk(self.host, free, required), *self.port.plan()]

    def go_back(self, release: Release, reason: str, *, hurry: bool) -> AbortResult:
        """Go back to the previous version, or without one to the containers from which the edge took its port."""
        note = self.port.give_back(release.id) if self.history().before(release.id) is None else None
        returned = self.node.abort(release, reason, hurry=hurry)
        return replace(returned, detail=f"{note}; {returned.detail}") if note else returned


def host_of_job(nodes: Sequence[HostNode], service_id: str, release_id: str) -> HostNode:
    """Return the host that has begun a job of a release, whose place in the list may have changed, or the first one."""
    releases = [(node, node.history().releases.get(release_id)) for node in nodes]
    return next((node for node, deployed in releases if deployed and service_id in deployed.jobs), nodes[0])


def failure_text(abort: HostOutcome[HostNode, AbortResult]) -> str:
    """Return why a host did not go back."""
    return abort.error.what if isinstance(abort.error, AzoraError) else f"{abort.error or 'no answer yet'}"


def lost_text(name: str, failure: str, settings: DockerHostsSettings, *, promoted: bool) -> str:
    """Return what is expected of a host that was not reached."""
    lease = f"its guard goes back by itself {settings.lease_seconds:g} s after the last renewal"
    return f"{name}: not reached ({failure}); {'the new version still serves there' if promoted else lease}"


def sum_of(nodes: Sequence[HostNode], observations: Sequence[Observation]) -> Observation:
    """Return the observation of all hosts together."""
    counters: dict[tuple[str, str], Counters] = {}
    for observation in observations:
        for key, count in observation.counters.items():
            counters[key] = counters.get(key, Counters()).plus(count)
    weights = combined(nodes, [observation.weights for observation in observations])
    return Observation(counters, weights, tuple(instance for observation in observations for instance in observation.dead))


def combined(nodes: Sequence[HostNode], weights: Sequence[Mapping[str, Mapping[str, int]]]) -> Mapping[str, Mapping[str, int]]:
    """Return the weights of all hosts: route prefix -> shares where the hosts agree, else "prefix on host" -> shares."""
    if all(shares == weights[0] for shares in weights):
        return weights[0]
    by_host = zip(nodes, weights, strict=True)
    return {f"{route} on {node.host.name}": shares for node, routes in by_host for route, shares in routes.items()}


def silent(names: Sequence[str], seconds: float) -> UnreachableError:
    """Return the error of hosts that did not answer in time."""
    return UnreachableError(
        "A production host is silent",
        what=f"{', '.join(names)}: no answer within {seconds:g} s",
        where="PROD_HOST",
        next_step="check the host and the network; its guard takes traffic back by itself",
    )


def settings_of(config: DeployConfig) -> DockerHostsSettings:
    """Return the configuration of the hosts' edges and guards. Raises BadInputError when it is missing."""
    if config.target.docker_hosts is None:
        raise BadInputError(
            "The hosts' edge is not configured",
            what="target.docker_hosts is missing: which images of Envoy and Python the edge and its guard run",
            where="the deployment configuration",
            next_step="add [target.docker_hosts] with edge_image and guard_image, pinned by digest",
        )
    return config.target.docker_hosts
