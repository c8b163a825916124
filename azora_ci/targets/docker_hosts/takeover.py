"""The edge's port on a host where something else has it: who has it, and taking it over from a compose project.

The project's containers are stopped only when new instances are healthy and the edge has its routes. They stay, stopped, with a restart
policy that does not bring them back onto the port. They are noted in the guard's journal before they are stopped: going back starts them
again, also in a rerun after a crash. Nothing answers between their stop and the edge's first answer; that time is measured and printed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.config import DockerHostsSettings as HostSettings
from azora_ci.core.errors import AzoraError, NotTrueError, UnreachableError
from azora_ci.targets.docker_hosts.edge_containers import EdgeContainers
from azora_ci.targets.docker_hosts.host import DockerHost
from azora_ci.targets.guard.client import GuardClient

PROJECT = "com.docker.compose.project"
TOOK, GAVE_BACK = "took-port", "gave-port-back"  # events in the guard's journal
EDGE_SECONDS = 2  # a usual start of the edge

Container = Mapping[str, Any]


class Port:
    """The port of one host that users, or the balancer in front of the host, connect to."""

    def __init__(self, host: DockerHost, edge_containers: EdgeContainers, guard: GuardClient, settings: HostSettings, clock: Clock) -> None:
        self._host, self._edge_containers, self._guard, self._settings, self._clock = host, edge_containers, guard, settings, clock
        self.waits = False  # the edge runs without the port, which somebody else still has

    def holders(self) -> list[Container]:
        """Return the running containers that publish the port, this application's edge excepted."""
        with self._host.docker("list containers") as client:
            containers = client.api.containers()
        foreign = [container for container in containers if _name(container) not in {self._host.names.edge, self._host.names.next_edge}]
        return [
            holder for holder in foreign if any(port.get("PublicPort") in self._edge_containers.ports for port in holder.get("Ports") or [])
        ]

    def require(self) -> None:
        """Raise NotTrueError when the port is taken by something from which it is not to be taken over."""
        if self._edge_containers.is_published():
            return
        holders = self.holders()
        for holder in holders:
            project = (holder["Labels"] or {}).get(PROJECT)
            if project is None or project != self._settings.take_over:
                origin = f", of compose project {project}" if project else ""
                raise self._refusal(f"container {_name(holder)} publishes it{origin}", project)
        if not holders and self._is_port_open():
            raise self._refusal("something listens on it that is no container with a published port", None)

    def _refusal(self, problem: str, project: str | None) -> NotTrueError:
        if project:
            step = f'set target.docker_hosts.take_over = "{project}": its containers are stopped when the new version is ready to take over'
        else:
            step = "stop it, or configure another target.docker_hosts.http_port"
        return NotTrueError(
            "The edge's port is taken",
            what=f"{self._port_text}: {problem}; nothing was changed",
            where=self._host.name,
            next_step=step,
        )

    def _is_port_open(self) -> bool:
        for port in self._edge_containers.ports:
            with contextlib.suppress(OSError, UnreachableError):
                self._host.dial("127.0.0.1", port, 3.0).close()
                return True
        return False

    @property
    def _port_text(self) -> str:
        return f"port {', '.join(map(str, self._edge_containers.ports))}"

    def plan(self) -> list[str]:
        """Return lines about what is to be stopped and how long nothing is expected to answer; none where nothing has the port."""
        if self._edge_containers.is_published():
            return []
        holders = self.holders()
        if not holders:
            return []
        with self._host.docker("look at containers") as client:
            graces = [client.api.inspect_container(holder["Id"])["Config"].get("StopTimeout") or 10 for holder in holders]
        names = ", ".join(map(_name, holders))
        lines = [
            f"{self._port_text} is taken over from compose project {self._settings.take_over}",
            f"{names} {'is' if len(holders) == 1 else 'are'} stopped, not removed, when new instances are healthy",
            f"nothing answers while they stop (up to {sum(graces)} s) and the edge starts (about {EDGE_SECONDS} s)",
        ]
        with self._host.docker("list containers") as client:
            project = client.api.containers(filters={"label": f"{PROJECT}={self._settings.take_over}"})
        others = sorted({*map(_name, project)} - {*map(_name, holders)})
        if others:  # a database may be among them, so that they are not ours to stop
            lines.append(f"{', '.join(others)} of that project go on: stop workers among them yourself, or their work is done twice")
        return [f"{self._host.name}: {line}" for line in lines]

    def take(self, release_id: str) -> str | None:
        """Move the port to the edge if it ``waits``; return a line about it. Raises NotTrueError with the old containers running again."""
        if not self.waits:
            return None
        containers = [self._facts(holder) for holder in self.holders()]
        names = ", ".join(container["name"] for container in containers)
        if containers:
            self._note(TOOK, release_id, containers)
        try:
            seconds = self._edge_containers.replace_edge(publish=True, between=lambda: self._stop(containers))
        except BaseException as error:
            self._start(containers)
            self._note(GAVE_BACK, release_id, containers)
            if not isinstance(error, AzoraError):
                raise
            raise NotTrueError(
                "The port could not be taken over",
                what=f"{error.title}: {error.what}; {names or 'nothing'} was started again",
                where=f"{self._host.name}, {self._port_text}",
                next_step=error.next_step,
            ) from error
        self.waits = False
        return f"{self._host.name}: {self._port_text} was taken over from {names or 'nobody'}; nothing answered for at most {seconds:.1f} s"

    def give_back(self, release_id: str) -> str | None:
        """Start the containers again from which a release took the port; return a line about it, None where there are none."""
        containers = self._stopped_by(release_id)
        if containers is None:
            return None
        duration = "how long nothing answered is not known"
        if self._edge_containers.is_published():
            seconds = self._edge_containers.replace_edge(publish=False, between=lambda: self._start(containers))
            duration = f"nothing answered for at most {seconds:.1f} s"
        else:  # the run died between stopping them and starting the edge
            self._start(containers)
        self.waits = True
        self._note(GAVE_BACK, release_id, containers)
        names = ", ".join(container["name"] for container in containers)
        return f"{self._host.name}: {self._port_text} is back with {names}; {duration}"

    def _stopped_by(self, release_id: str) -> Sequence[Container] | None:
        containers: Sequence[Container] | None = None
        for event in self._guard.ask("/journal"):
            if event.get("event") in {TOOK, GAVE_BACK}:
                containers = event["containers"] if event["event"] == TOOK and event["deployment_id"] == release_id else None
        return containers

    def _facts(self, container: Container) -> dict[str, Any]:
        with self._host.docker("look at a container") as client:
            policy = client.api.inspect_container(container["Id"])["HostConfig"]["RestartPolicy"]
        return {"id": container["Id"], "name": _name(container), "restart": policy}

    def _note(self, event: str, release_id: str, containers: Sequence[Container]) -> None:
        at = rfc3339(self._clock.now())
        document = {"at": at, "event": event, "deployment_id": release_id, "containers": containers}
        self._guard.change("note", event=document, back=event == GAVE_BACK)

    def _stop(self, containers: Sequence[Container]) -> None:
        for container in containers:
            with self._host.docker(f"stop {container['name']}") as client:
                client.api.update_container(container["id"], restart_policy={"Name": "no"})
                client.containers.get(container["id"]).stop()

    def _start(self, containers: Sequence[Container]) -> None:
        for container in containers:
            with self._host.docker(f"start {container['name']}") as client:
                client.api.update_container(container["id"], restart_policy=container["restart"])
                client.api.start(container["id"])


def _name(container: Container) -> str:
    return str(container["Names"][0]).lstrip("/")
