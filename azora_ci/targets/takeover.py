"""The edge's port where something has it already: who that is, and taking it over from a compose project.

The project's containers are stopped only when new instances are healthy and the edge has its routes, and they stay, stopped, with a restart
policy that does not bring them back onto the port. The guard's journal knows them before they are stopped: whoever goes back, a rerun after
a crash too, starts them again. Between the old containers' stop and the edge's first answer nothing answers; that is measured and said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from azora_ci.clock import Clock, rfc3339
from azora_ci.config import DockerHosts as HostSettings
from azora_ci.errors import AzoraError, NotTrueError, UnreachableError
from azora_ci.targets.docker_host import LABEL, DockerHost
from azora_ci.targets.equipment import Equipment
from azora_ci.targets.guarded import GuardClient

PROJECT = "com.docker.compose.project"
TOOK, GAVE_BACK = "took-port", "gave-port-back"  # events in the guard's journal
EDGE_SECONDS = 2  # that the edge takes to start, as a rule

Container = Mapping[str, Any]


class Port:
    """The port of one host that users, or the balancer in front, come to."""

    def __init__(self, host: DockerHost, equipment: Equipment, guard: GuardClient, settings: HostSettings, clock: Clock) -> None:
        self._host, self._equipment, self._guard, self._settings, self._clock = host, equipment, guard, settings, clock
        self.waits = False  # the edge runs without the port, which somebody has yet

    def holders(self) -> list[Container]:
        """Return the running containers that are not ours and publish the port."""
        with self._host.docker("list containers") as client:
            found = client.api.containers()
        strangers = [one for one in found if f"{LABEL}image" not in (one["Labels"] or {})]
        return [one for one in strangers if any(port.get("PublicPort") in self._equipment.ports for port in one.get("Ports") or [])]

    def require(self) -> None:
        """Raise NotTrueError when somebody has the port from whom it is not to be taken over."""
        if self._equipment.is_published():
            return
        holders = self.holders()
        for one in holders:
            project = (one["Labels"] or {}).get(PROJECT)
            if project is None or project != self._settings.take_over:
                raise self._taken(f"container {_name(one)} publishes it{f', of compose project {project}' if project else ''}", project)
        if not holders and self._something_listens():
            raise self._taken("something listens on it that is no container with a published port", None)

    def _taken(self, what: str, project: str | None) -> NotTrueError:
        if project:
            step = f'set target.docker_hosts.take_over = "{project}": its containers are stopped when the new version is ready to take over'
        else:
            step = "stop it, or configure another target.docker_hosts.http_port"
        return NotTrueError(
            "The edge's port is taken",
            what=f"{self._port}: {what}; nothing was changed",
            where=self._host.name,
            next_step=step,
        )

    def _something_listens(self) -> bool:
        for port in self._equipment.ports:
            with contextlib.suppress(OSError, UnreachableError):
                self._host.dial("127.0.0.1", port, 3.0).close()
                return True
        return False

    @property
    def _port(self) -> str:
        return f"port {', '.join(map(str, self._equipment.ports))}"

    def plan(self) -> list[str]:
        """Return what is to be stopped, and how long nothing is expected to answer."""
        if self._equipment.is_published():
            return []
        holders = self.holders()
        if not holders:
            return []
        with self._host.docker("look at containers") as client:
            graces = [client.api.inspect_container(one["Id"])["Config"].get("StopTimeout") or 10 for one in holders]
        names = ", ".join(map(_name, holders))
        return [
            f"{self._host.name}: {self._port} is taken over from compose project {self._settings.take_over}",
            f"{self._host.name}: {names} {'is' if len(holders) == 1 else 'are'} stopped, not removed, when new instances are healthy",
            f"{self._host.name}: nothing answers while they stop (up to {sum(graces)} s) and the edge starts (about {EDGE_SECONDS} s)",
        ]

    def take(self, release_id: str) -> str | None:
        """Have the edge on the port, and say what that cost. Raises NotTrueError when it does not come up: the old containers run then."""
        if not self.waits:
            return None
        holders = self.holders()
        facts = [self._facts(one) for one in holders]
        if facts:
            self._note(TOOK, release_id, facts)
        try:
            seconds = self._equipment.replace_edge(publish=True, between=lambda: self._stop(facts))
        except BaseException as error:
            self._start(facts)
            self._note(GAVE_BACK, release_id, facts)
            if not isinstance(error, AzoraError):
                raise
            raise NotTrueError(
                "The port could not be taken over",
                what=f"{error.title}: {error.what}; {', '.join(one['name'] for one in facts) or 'nothing'} was started again",
                where=f"{self._host.name}, {self._port}",
                next_step=error.next_step,
            ) from error
        self.waits = False
        names = ", ".join(one["name"] for one in facts) or "nobody"
        return f"{self._host.name}: {self._port} was taken over from {names}; nothing answered for at most {seconds:.1f} s"

    def give_back(self, release_id: str) -> str | None:
        """Start the containers again from which this release took the port, and say so; None where it took it from nobody."""
        facts = self._taken_by(release_id)
        if facts is None:
            return None
        lasted = "how long nothing answered is not known"
        if self._equipment.is_published():
            seconds = self._equipment.replace_edge(publish=False, between=lambda: self._start(facts))
            lasted = f"nothing answered for at most {seconds:.1f} s"
        else:  # its run died in between
            self._start(facts)
        self.waits = True
        self._note(GAVE_BACK, release_id, facts)
        names = ", ".join(one["name"] for one in facts)
        return f"{self._host.name}: {self._port} is back with {names}; {lasted}"

    def _taken_by(self, release_id: str) -> Sequence[Container] | None:
        found: Sequence[Container] | None = None
        for event in self._guard.ask("/journal"):
            if event.get("event") in {TOOK, GAVE_BACK}:
                found = event["containers"] if event["event"] == TOOK and event["deployment_id"] == release_id else None
        return found

    def _facts(self, one: Container) -> dict[str, Any]:
        with self._host.docker("look at a container") as client:
            policy = client.api.inspect_container(one["Id"])["HostConfig"]["RestartPolicy"]
        return {"id": one["Id"], "name": _name(one), "restart": policy}

    def _note(self, event: str, release_id: str, facts: Sequence[Container]) -> None:
        at = rfc3339(self._clock.now())
        document = {"at": at, "event": event, "deployment_id": release_id, "containers": facts}
        self._guard.change("note", event=document, back=event == GAVE_BACK)

    def _stop(self, facts: Sequence[Container]) -> None:
        for one in facts:
            with self._host.docker(f"stop {one['name']}") as client:
                client.api.update_container(one["id"], restart_policy={"Name": "no"})
                client.containers.get(one["id"]).stop()

    def _start(self, facts: Sequence[Container]) -> None:
        for one in facts:
            with self._host.docker(f"start {one['name']}") as client:
                client.api.update_container(one["id"], restart_policy=one["restart"])
                client.api.start(one["id"])


def _name(one: Container) -> str:
    return str(one["Names"][0]).lstrip("/")
