"""Target ``local_processes``: instances are processes of this machine on loopback, behind an Envoy that follows files.

It is made for the rehearsal and for single-machine trials; ``Node``, the edge files and the journal are the same as on every target.

This target has no guard and so no lease. A runner that is killed with SIGKILL (or by a power failure) leaves its lock, weights and
instances as they were at that moment, including a canary at 5 %. Nothing changes until the next deployment, rerun or rollback. That
run sees that the owner no longer runs, takes the lock over, and puts all traffic back on the promoted version before it does anything else.
``python -m azora_ci lock status`` shows such a lock, ``lock release`` frees it (traffic stays as it is).
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from azora_ci.core.config import JOB, WORKER, DeployConfig, Service
from azora_ci.core.errors import BadInputError
from azora_ci.core.hosts import is_loopback
from azora_ci.core.process import send_signal, undisturbed
from azora_ci.health.failures import Failure
from azora_ci.health.workers import WorkerState
from azora_ci.targets import singletons
from azora_ci.targets.base import AbortResult, Instance, LockHolder, Observation, Owner, TargetContext
from azora_ci.targets.envoy import access_log
from azora_ci.targets.envoy import edge as edges
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.envoy.options import edge_options, edge_services
from azora_ci.targets.envoy.state import EdgeOptions, EdgeState, EdgeTls, command
from azora_ci.targets.journal import DEPLOYING, History, Journal
from azora_ci.targets.local_processes import claims
from azora_ci.targets.local_processes import processes as local
from azora_ci.targets.local_processes.edge_log import EdgeLog
from azora_ci.targets.lock import Lock
from azora_ci.targets.node import Node
from azora_ci.targets.node_parts import Facts, JobStatus, Parts
from azora_ci.targets.release import Release


def install_edge(config: DeployConfig, config_dir: Path, listen_port: int) -> Path:
    """Write the bootstrap and first files of an edge on loopback and return the bootstrap file (start it with ``envoy.command``)."""
    listen = f"{local.LOOPBACK}:{listen_port}"
    EdgeLog(config_dir).prepare()
    return edges.install(config_dir, listen=listen, services=edge_services(config), options=options_of(config))


def options_of(config: DeployConfig) -> EdgeOptions:
    """Return the options of the edge, which listens on loopback, reads the configured files, and logs to its folder."""
    tls, folder = config.edge.tls, config.edge.config_dir
    log = str(EdgeLog(folder).path) if folder else None
    if tls is None:
        return edge_options(config, None, log)
    paths = (str(tls.certificate), str(tls.key))
    return edge_options(config, EdgeTls(f"{local.LOOPBACK}:{tls.port}", *paths, tls.port, tls.redirect_http), log)


def deploy_at_once(target: LocalProcesses, release: Release, owner: Owner) -> tuple[Instance, ...]:
    """Deploy a first version without stages, as the version that a rehearsal starts from. Returns its instances."""
    with target.locked(owner):
        return target.deploy_without_stages(release)


class LocalProcesses(Node):
    """See ``targets.Target`` for what each method promises; ``Node`` implements most of them."""

    def __init__(self, context: TargetContext) -> None:
        config = context.config
        settings = config.target.local_processes
        assert settings is not None  # noqa: S101 - the configuration's own check
        assert config.edge.config_dir is not None  # noqa: S101 - likewise
        _refuse_anything_but_loopback(config)
        state_dir = settings.state_dir.resolve()
        self._file_lock = Lock(state_dir / "lock.json", context.clock)
        self._edge_log = EdgeLog(config.edge.config_dir)
        edge = LockedEdge(config.edge.config_dir, self._file_lock, context)
        runner = LocalRunner(context, state_dir, settings.archive_dir)
        journal = LockedJournal(Journal(state_dir / "journal.jsonl"), self._file_lock)
        super().__init__(context, Parts(self._file_lock, journal, edge, runner, options_of(config)))
        self.notes: list[str] = []
        self.host_keys: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}

    def connected(self) -> AbstractContextManager[None]:
        """Do nothing: everything is on this machine."""
        return nullcontext()

    @contextmanager
    def locked(self, owner: Owner) -> Iterator[None]:
        """Hold the lock of this machine's state folder."""
        with undisturbed():
            self._file_lock.acquire(owner)
        if self._file_lock.fenced:
            self._context.log.say(f"fenced the deployment {self._file_lock.fenced}: from now on it can change nothing")
        elif self._file_lock.taken_over:
            self._context.log.say(f"took over the lock of {self._file_lock.taken_over}: its owner no longer runs")
        try:
            yield
        finally:
            with undisturbed():
                self._file_lock.release()

    def renew(self) -> None:
        """Extend the lock."""
        self._file_lock.renew()

    def holder(self) -> LockHolder | None:
        """Return who holds the lock."""
        return self._file_lock.holder()

    def holders(self) -> Mapping[str, LockHolder | None]:
        """Return the holder of the only lock."""
        return {"": self.holder()}

    def unlock(self, reason: str, actor: str) -> LockHolder | None:
        """Take the lock away from its holder and return the former holder."""
        return self._file_lock.break_open(reason, actor)

    def deploy_without_stages(self, release: Release) -> tuple[Instance, ...]:
        """Deploy a release at once, with its singletons."""
        super().deploy_without_stages(release)
        for service in self._config.singletons:
            self.run_once(service.id, release)
        return self.instances(release.id)

    def run_once(self, service_id: str, release: Release) -> None:
        """Run a job, or exchange a singleton."""
        service = self._config.service(service_id)
        if service.kind == JOB:
            self.run_job(service, release)
        else:
            singletons.exchange([self.singletons], service, release)

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> AbortResult:
        """Go back, and have the singletons of the version before."""
        deployed = self.current().releases.get(release.id)
        exchanged = deployed is not None and deployed.outcome != DEPLOYING
        returned = super().abort(release, reason, hurry=hurry)
        services = self._config.singletons if exchanged else ()
        return singletons.after_going_back([self.singletons], services, release.id, returned, hurry=hurry)

    def install_edge(self, owner: Owner, listen: str | None) -> str:  # noqa: ARG002 - no lock is needed: a person starts the edge
        """Write the files of the edge and return the command that starts it. Raises BadInputError for an address without a port."""
        config, config_dir = self._config, self._config.edge.config_dir
        assert config_dir is not None  # noqa: S101 - the configuration's own check
        listen_port = _port("--listen", listen or urlsplit(config.web[0].public_health_url).netloc)
        bootstrap = install_edge(config, config_dir, listen_port)
        return f"✓ {bootstrap} is written; start the edge with:\n{' '.join(command(bootstrap))}"

    def edge_secret(self) -> str | None:
        """Return the secret with which the edge in force proves which release answers."""
        return self._edge.state().secret

    def edges(self) -> list[str]:
        """Return no lines: a person installs and starts the edge."""
        return []

    def observe(self) -> Observation:
        """Return counters, weights and dead instances, and keep the edge's log small."""
        self._edge_log.bound()
        return super().observe()

    def edge_log(self, since: str) -> list[Failure]:
        """Return what the edge's log tells of since a moment."""
        return access_log.read(self._edge_log.lines(), since)

    def plan(self, release: Release) -> list[str]:  # noqa: ARG002 - the room on this machine is not checked
        """Return no lines."""
        return []


class LockedJournal:
    """A journal that only the owner of the lock can write."""

    def __init__(self, journal: Journal, lock: Lock) -> None:
        self._journal, self._lock = journal, lock

    def history(self) -> History:
        """Return the journal's history."""
        return self._journal.history()

    def add(self, at: str, event: str, deployment_id: str, **facts: Any) -> None:
        """Append an entry. Raises FencedError when the lock was taken over."""
        with self._lock.while_owned():
            self._journal.add(at, event, deployment_id, **facts)


class LockedEdge(Edge):
    """An edge whose files only the owner of the lock can switch."""

    def __init__(self, config_dir: Path, lock: Lock, context: TargetContext) -> None:
        super().__init__(config_dir, context.clock)
        self._lock, self._log = lock, EdgeLog(config_dir)

    def switch(self, state: EdgeState) -> str:
        """Put a state in force. Raises FencedError: who was fenced must not overwrite what a rollback has just put in force."""
        self._log.prepare()
        with self._lock.while_owned():
            return super().switch(state)


class LocalRunner:
    """A ``node.Runner``: unpacks archives and starts processes on loopback."""

    attempts = 3  # because another process may take the free port before the instance does

    def __init__(self, context: TargetContext, state_dir: Path, archive_dir: Path) -> None:
        self._context, self._state_dir, self._archive_dir = context, state_dir, archive_dir

    def prepare(self, service: Service, release: Release) -> None:
        """Unpack the archive after checking it against its digest."""
        self._unpacked(service, release)

    def _unpacked(self, service: Service, release: Release) -> Path:
        return local.unpack(self._archive_dir, release.digests[service.id], self._state_dir / "archives")

    def start(self, service: Service, release: Release, number: int) -> Facts:
        """Start a process that outlives this job."""
        log = self._logs(release) / f"{service.id}-{number}.log"
        env = self._environment(service, release, PORT=str(local.free_port()), HOST=local.LOOPBACK)
        folder = self._unpacked(service, release)
        if service.singleton:
            service = claims.guarded(service, self._claim(service.id))
        started = local.start(self._context.processes, service, folder=folder, env=env, log=log)
        recorded = asdict(started) | {"digest": release.digests[service.id]}
        if service.kind != WORKER:
            return recorded
        kept = self._kept(release.id) / f"{service.id}-{number}.json"
        local.remember(kept, service.argv, folder, env, started)
        return {**recorded, "kept": str(kept)}

    def _logs(self, release: Release) -> Path:
        logs = self._state_dir / "logs" / release.id
        logs.mkdir(parents=True, exist_ok=True)
        return logs

    def _environment(self, service: Service, release: Release, **facts: str) -> dict[str, str]:
        facts |= {"SERVICE": service.id, "VERSION": release.bare, "DEPLOYMENT_ID": release.id}
        return local.instance_environment(service, facts, self._context.secrets)

    def _kept(self, release_id: str) -> Path:
        return self._state_dir / "workers" / release_id

    def state(self, facts: Facts) -> WorkerState:
        """Return whether a worker's process runs; nobody starts it again when it ends."""
        gone = not Path(facts["kept"]).exists()
        return WorkerState(local.is_running(facts), detail="its process has ended", gone=gone)

    def resume(self, facts: Facts) -> Facts:
        """Start a worker's process again, as it was started."""
        return asdict(local.resume(self._context.processes, Path(facts["kept"])))

    def running(self, service_id: str) -> list[Facts]:
        """Return the process that has the claim of a singleton, if it runs."""
        owner = claims.owner({"claim": str(self._claim(service_id))})
        return [owner] if owner and local.is_running(owner) else []

    def _claim(self, service_id: str) -> Path:
        return self._state_dir / "singletons" / service_id

    def create_job(self, service: Service, release: Release) -> Facts:
        """Name the files of a job, by which every run knows it."""
        log = self._logs(release) / f"{service.id}-job.log"
        return {"log": str(log), "claim": str(log.with_suffix(""))}

    def start_job(self, service: Service, release: Release) -> None:
        """Start a job as a process that outlives this one, unless another run has."""
        options = {"env": self._environment(service, release), "cwd": self._unpacked(service, release)}
        facts = self.create_job(service, release)
        claims.start(self._context.processes, service.argv, claims.JOB, facts, options=options, clock=self._context.clock)

    def job_status(self, facts: Facts) -> JobStatus | None:
        """Return the state of a job from its files and its process."""
        return claims.status(facts)

    def end_job(self, facts: Facts, grace: float) -> None:
        """End a job and what it started."""
        claims.end(facts, grace, self._context.clock)

    def discard(self, facts: Facts) -> None:
        """Kill a process that could not be recorded in the journal."""
        send_signal(facts["pid"], signal.SIGKILL)

    def address(self, facts: Facts) -> str:
        """Return an instance's address on loopback."""
        return f"{local.LOOPBACK}:{facts['port']}"

    def dead(self, instances: Sequence[Facts]) -> list[Facts]:
        """Return the instances whose process has ended."""
        return [facts for facts in instances if not local.is_running(facts)]

    def runs(self, facts: Facts, digest: str) -> bool | None:
        """Return whether the process that was started from the archive of this digest still runs."""
        return local.is_running(facts) and facts["digest"] == digest if "digest" in facts else None

    def stop(self, instances: Iterable[tuple[Facts, float]], meanwhile: Callable[[], None]) -> None:
        """Stop all instances at the same time, each with its grace."""
        local.stop(instances, self._context.clock, meanwhile)

    def keep_log(self, facts: Facts, path: Path) -> None:
        """Copy a log into the job's artifact, masked."""
        local.keep_log(facts, path, self._context.log.masked)

    def log_tail(self, facts: Facts) -> str:
        """Return the end of a log, masked."""
        return self._context.log.masked(local.log_tail(facts["log"]))

    def clear(self, release_id: str) -> None:
        """Remove what starts workers again; logs and archives stay: they are small, and releases share archives."""
        shutil.rmtree(self._kept(release_id), ignore_errors=True)


def _port(name: str, address: str) -> int:
    port = urlsplit(address if "//" in address else f"//{address}").port
    if port is None:
        raise BadInputError("No port to listen on", what=f"{address!r} names no port", where=name, next_step="name host and port")
    return port


def _refuse_anything_but_loopback(config: DeployConfig) -> None:
    addresses = {f"services.{service.id}.public_health_url": service.public_health_url for service in config.web}
    refused = [f"{name} = {url or '(not set)'}" for name, url in addresses.items() if not is_loopback(url)]
    if refused:
        raise BadInputError(
            "local_processes is for loopback only",
            what="these addresses are not on loopback: " + ", ".join(refused),
            where="the deployment configuration",
            next_step="use addresses on 127.0.0.1 for a rehearsal, or target.kind docker_hosts for production",
        )
    missing = [service.id for service in config.services if not service.argv]
    if missing:
        raise BadInputError(
            "Services without a command",
            what="local_processes starts services.<id>.command, which is missing for " + ", ".join(missing),
            where="the deployment configuration",
            next_step='add the command that starts the service in its build context, such as command = ["node", "server.js"]',
        )
