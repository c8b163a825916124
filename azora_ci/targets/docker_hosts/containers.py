"""Instances as containers of one host, run by the digest of their image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from azora_ci.core.clock import parse_rfc3339
from azora_ci.core.config import JOB, Service
from azora_ci.core.config import DockerHostsSettings as HostSettings
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.health.workers import WorkerState
from azora_ci.targets.base import TargetContext
from azora_ci.targets.docker_hosts.host import LABEL, Cage, DockerHost
from azora_ci.targets.docker_hosts.networks import Networks
from azora_ci.targets.envoy.calls import names_of
from azora_ci.targets.node_parts import CREATED, ENDED, RUNNING, Facts, JobStatus
from azora_ci.targets.parallel import outcomes, results
from azora_ci.targets.release import Release

# Capabilities that a container has by default and an application does without: packets in the name of others, devices, audit records,
# another root, capabilities of files.
DROPPED = ("NET_RAW", "MKNOD", "AUDIT_WRITE", "SYS_CHROOT", "SETFCAP")
OUTPUT = 200  # characters of what a HEALTHCHECK last said
LOG_LINES, TAIL_LINES = 2000, 8  # lines of an instance's log: kept as an artifact, shown in an error


class Containers:
    """Runs a host's instances as containers: a ``node.Runner``."""

    attempts = 1  # the daemon restarts an instance that ends: the runner does not start it again

    def __init__(self, host: DockerHost, settings: HostSettings, context: TargetContext, checkpoint: Callable[[], None]) -> None:
        self._host, self._context, self._checkpoint = host, context, checkpoint
        self._networks = Networks(host, settings)

    def image(self, service: Service, release: Release) -> str:
        """Return the reference of a service's image, by digest."""
        registry = self._context.config.registry
        assert registry is not None  # noqa: S101 - the configuration's own check
        return f"{registry.repository}/{service.id}@{release.digests[service.id]}"

    def prepare(self, service: Service, release: Release) -> None:
        """Pull the image."""
        self._host.pull(self.image(service, release), self._checkpoint)

    def start(self, service: Service, release: Release, number: int) -> Facts:
        """Create and start a container; return its name and address. The address is static: a restart of the daemon does not change it."""
        name = self._host.names.instance(service.id, release.id, number)
        with self._host.docker(f"start {name}") as client:
            self._host.remove_container(client, name)
            address = self._create(client, name, service, release, {"number": str(number)})
            client.api.start(name)
        return {"container": name, "address": f"{address}:{service.port}"}

    def _create(self, client: Any, name: str, service: Service, release: Release, labels: Mapping[str, str]) -> str:
        """Create a container of a service and return its address."""
        labels = {"service": service.id, "version": release.version, "deployment-id": release.id, **labels}
        network, address, edge = self._networks.free_address(client, service.id)
        container = self._host.create(
            client,
            name,
            self.image(service, release),
            endpoint=(network, address),
            command=list(service.command) or None,  # None: the image's own
            entrypoint=list(service.entrypoint) or None,
            binds=list(service.volumes),
            env=self._environment(service, release),
            labels={f"{LABEL}{key}": value for key, value in labels.items()},
            memory=service.memory,
            restart=service.kind != JOB,
            cage=self._cage(service, release),
            hosts={name: edge for callee in service.talks_to for name in names_of(callee)},
        )
        for other in service.networks:
            client.networks.get(other).connect(container)
        return address

    def running(self, service_id: str) -> list[Facts]:
        """Return the containers of a service that run, or that the daemon is about to start again."""
        names = f"^/{self._host.names.instance(service_id, '', 0).removesuffix('-0')}"  # another application may have one of that name
        filters = {"label": f"{LABEL}service={service_id}", "name": names, "status": ["running", "restarting", "paused"]}
        with self._host.docker("list containers") as client:
            return [{"container": container["Names"][0].lstrip("/")} for container in client.api.containers(filters=filters)]

    def create_job(self, service: Service, release: Release) -> Facts:
        """Create the container of a job, whose name only one can have; one that is there is taken."""
        name = self._host.names.job(service.id, release.id)
        with self._host.docker(f"create {name}") as client:
            if self._host.find_container(client, name) is None:
                self._create(client, name, service, release, {})
        return {"container": name}

    def start_job(self, service: Service, release: Release) -> None:
        """Start the container of a job; the daemon does nothing when it runs."""
        name = self._host.names.job(service.id, release.id)
        with self._host.docker(f"start {name}") as client:
            client.api.start(name)

    def job_status(self, facts: Facts) -> JobStatus | None:
        """Return the state of a job's container, or None when there is none."""
        with self._host.docker(f"look at {facts['container']}") as client:
            container = self._host.find_container(client, facts["container"])
        if container is None:
            return None
        state = container.attrs["State"]
        if state["Status"] in {"exited", "dead"}:
            begun, ended = (parse_rfc3339(state[name]) for name in ("StartedAt", "FinishedAt"))
            return JobStatus(ENDED, state["ExitCode"], (ended - begun).total_seconds())
        return JobStatus(CREATED if state["Status"] == "created" else RUNNING)

    def end_job(self, facts: Facts, grace: float) -> None:
        """Stop the container of a job."""
        self._stop((facts, grace))

    def _cage(self, service: Service, release: Release) -> Cage:
        """Return the service's cage. A user other than root needs no capability, and gets none."""
        dropped = (*DROPPED, *service.cap_drop) if self._host.runs_as_root(self.image(service, release)) else ("ALL",)
        return Cage(("ALL",) if "ALL" in dropped else tuple(dict.fromkeys(dropped)), read_only=service.read_only)

    def _environment(self, service: Service, release: Release) -> dict[str, str]:
        facts = {"PORT": str(service.port), "HOST": "0.0.0.0", "SERVICE": service.id}  # noqa: S104 - inside its own container
        facts |= {"VERSION": release.bare, "DEPLOYMENT_ID": release.id}
        return {**service.env, **facts, **service.secret_values(self._context.secrets)}

    def address(self, facts: Facts) -> str:
        """Return ``host:port`` as the edge reaches it."""
        return str(facts["address"])

    def dead(self, instances: Sequence[Facts]) -> list[Facts]:
        """Return the instances whose container does not run now: one that crashes again and again mostly waits for its next start."""
        if not instances:
            return []
        with self._host.docker("list containers") as client:
            running = {
                name.lstrip("/")
                for container in client.api.containers(filters={"label": f"{LABEL}deployment-id", "status": "running"})
                for name in container["Names"]
            }
        return [facts for facts in instances if facts["container"] not in running]

    def state(self, facts: Facts) -> WorkerState:
        """Return whether a worker's container runs, how often the daemon started it again, and what its HEALTHCHECK says."""
        from docker.errors import NotFound

        with self._host.docker("look at a container") as client:
            try:
                container = client.api.inspect_container(facts["container"])
            except NotFound:
                return WorkerState(False, detail="its container is gone", gone=True)
        state = container["State"]
        restarts, health = int(container.get("RestartCount") or 0), state.get("Health") or {}
        if state["Status"] != "running":
            cause = ", it had too little memory" if state.get("OOMKilled") else ""
            return WorkerState(False, restarts, detail=f"exit code {state['ExitCode']}{cause}")
        output = " ".join((health.get("Log") or [{}])[-1].get("Output", "").split())
        status = health.get("Status", "none")
        return WorkerState(True, restarts, "" if status == "none" else status, self._context.log.masked(output)[:OUTPUT])

    def resume(self, facts: Facts) -> Facts:
        """Start a worker's container again, whose environment and address the daemon has kept."""
        from docker.errors import NotFound

        with self._host.docker(f"start {facts['container']}") as client:
            try:
                client.api.start(facts["container"])
            except NotFound:
                raise NotTrueError(
                    "A worker is not there any more",
                    what=f"its container {facts['container']} is gone",
                    where=self._host.name,
                    next_step="deploy its version again",
                ) from None
        return {}

    def runs(self, facts: Facts, digest: str) -> bool | None:
        """Return whether the container that has the instance's address now was made of the image of this digest."""
        from docker.errors import NotFound

        try:
            with self._host.docker(f"inspect {facts['container']}") as client, suppress(NotFound):
                container = client.api.inspect_container(facts["container"])
                addresses = {network["IPAddress"] for network in container["NetworkSettings"]["Networks"].values()}
                digests = {name.rpartition("@")[2] for name in client.api.inspect_image(container["Image"])["RepoDigests"]}
                return digest in digests and facts["address"].rpartition(":")[0] in addresses
        except UnreachableError:
            return None
        return False

    def stop(self, instances: Iterable[tuple[Facts, float]], meanwhile: Callable[[], None]) -> None:
        """Stop containers at the same time, each with its seconds of grace. Stopped containers stay, for whoever looks for the cause."""

        def never_lost(_instance: tuple[Facts, float]) -> bool:
            meanwhile()  # raises when the lock is lost
            return False

        meanwhile()
        results(outcomes(instances, self._stop, self._context.clock, lost=never_lost))

    def _stop(self, instance: tuple[Facts, float]) -> None:
        from docker.errors import NotFound

        facts, grace = instance
        with self._host.docker(f"stop {facts['container']}") as client, suppress(NotFound):
            client.api.stop(facts["container"], timeout=max(1, round(grace)))

    def keep_log(self, facts: Facts, path: Path) -> None:
        """Copy the end of an instance's log, masked, to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(UnreachableError):
            path.write_text(self._log(facts, LOG_LINES), encoding="utf-8")

    def log_tail(self, facts: Facts) -> str:
        """Return the last lines of an instance's log, masked; "" when the host cannot be reached."""
        with suppress(UnreachableError):
            return self._log(facts, TAIL_LINES)
        return ""

    def _log(self, facts: Facts, lines: int) -> str:
        with self._host.docker("show a log") as client:
            data: bytes = client.api.logs(facts["container"], tail=lines, timestamps=True)
        return self._context.log.masked(data.decode("utf-8", errors="replace"))

    def discard(self, facts: Facts) -> None:
        """Remove a container that the journal does not know."""
        with self._host.docker(f"remove {facts['container']}") as client:
            self._host.remove_container(client, facts["container"])

    def clear(self, release_id: str) -> None:
        """Remove the containers of a release, and each of their images that no other container is made of."""
        with self._host.docker("remove old containers") as client:
            filters = {"label": f"{LABEL}deployment-id={release_id}", "name": self._host.names.pattern}  # an id may be another's, too
            containers = client.api.containers(all=True, filters=filters)
            for container in containers:
                client.api.remove_container(container["Id"], force=True, v=True)
        for image in sorted({container["Labels"][f"{LABEL}image"] for container in containers}):
            self._host.drop_image(image)
