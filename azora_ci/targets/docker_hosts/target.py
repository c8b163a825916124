"""Target ``docker_hosts``: one or many production hosts over SSH, each with an edge, a guard, a journal and a lock of its own.

``Node`` does the work on one host; this module does it on all hosts at once. The hosts stay together: when a step fails on one host, all
go back. A host that cannot be reached any more goes back by itself, when the lease of its guard runs out.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from azora_ci.clients.ssh.access import access_of
from azora_ci.clients.ssh.credentials import Credentials
from azora_ci.core.config import JOB
from azora_ci.core.errors import UnreachableError
from azora_ci.core.hosts import HostAddress
from azora_ci.core.process import undisturbed
from azora_ci.health.answers import Endpoint
from azora_ci.health.failures import Failure
from azora_ci.health.workers import WorkerState
from azora_ci.targets import singletons
from azora_ci.targets.base import AbortResult, FencedError, Instance, LockHolder, Observation, Owner, TargetContext
from azora_ci.targets.docker_hosts import host_node as hosts
from azora_ci.targets.docker_hosts.capacity import requirements_of
from azora_ci.targets.docker_hosts.connection import Connection
from azora_ci.targets.docker_hosts.containers import Containers
from azora_ci.targets.docker_hosts.doors import Door
from azora_ci.targets.docker_hosts.edge_containers import EDGE_PORT, EdgeContainers, options_of
from azora_ci.targets.docker_hosts.host import DockerHost
from azora_ci.targets.docker_hosts.host_node import HostNode
from azora_ci.targets.docker_hosts.takeover import Port
from azora_ci.targets.envoy.options import edge_services
from azora_ci.targets.envoy.state import EdgeState
from azora_ci.targets.guard.client import GuardClient, GuardedEdge, GuardedJournal, Lease
from azora_ci.targets.journal import DEPLOYING, PROMOTED, History, merged
from azora_ci.targets.node import Node
from azora_ci.targets.node_parts import Parts
from azora_ci.targets.parallel import HaltedError, HostOutcome, outcomes, results
from azora_ci.targets.release import Release

# Seconds in which all hosts must answer an observation, or this share of a lease where that is less: a silent host must not delay the
# verdict on the other hosts until its own lease has run out.
LEAST_OBSERVE_SECONDS, OBSERVE_SECONDS, OBSERVE_SHARE = 3.0, 10.0, 1 / 3
RELEASE_SECONDS = 3.0  # for releasing the locks, which otherwise expire by themselves
LEASE_MARGIN = 5.0  # seconds after the end of its lease in which a guard has certainly gone back
SPARED_ATTEMPTS = 2  # to connect to a host while the users of the other hosts wait
HURRIED_SECONDS = 4.5  # for going back on all hosts when the run was cancelled; a host that is slower goes back when its lease ends

T = TypeVar("T")


class DockerHosts:
    """See ``targets.Target`` for what each method promises."""

    def __init__(self, context: TargetContext) -> None:
        self._context, self._config, self._clock = context, context.config, context.clock
        self._say = context.log.say
        self._settings, self._options = hosts.settings_of(context.config), options_of(context.config)
        self._access = access_of(context.access, "target.kind docker_hosts")
        self._nodes: list[HostNode] = []
        self._planned: str | None = None  # deployment id of the release for which every host has room
        self._halted = threading.Event()
        self._depth = 0  # number of ``connected`` contexts that are open
        self._owner: Owner | None = None
        self.notes: list[str] = []
        self.host_keys: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}

    # --- connections ---------------------------------------------------------------------------------------------------

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep all hosts connected; the outermost of nested contexts opens and closes. Raises the error of the first host that fails."""
        if self._depth == 0:
            self._connect()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._disconnect()

    def _connect(self) -> None:
        credentials = self._access.credentials(self._context.recorded_host_keys)
        self._nodes = [self._host_node(address, credentials) for address in self._access.hosts]
        try:
            self._nodes = self._reachable_nodes(outcomes(self._nodes, self._open, self._clock))
        except BaseException:
            self._disconnect()
            raise
        self.host_keys = credentials.evidence()
        if self._context.access is not None and self._context.access.hosts_may_push:
            self._context.log.annotate("Hosts get a login that may push images", hosts.MAY_PUSH)
        if credentials.to_be_pinned():
            self._context.log.annotate("New host keys were accepted", credentials.to_be_pinned())

    def _open(self, host_node: HostNode) -> None:
        if not self._context.spare_lost_hosts:
            host_node.host.open()
        else:
            host_node.host.open(SPARED_ATTEMPTS)
            host_node.history()  # raises UnreachableError here when the host's daemon or guard does not answer

    def _reachable_nodes(self, openings: list[HostOutcome[HostNode, None]]) -> list[HostNode]:
        """Return the hosts to continue with: all of them, or with ``spare_lost_hosts`` those that could be reached."""
        lost = [opening for opening in openings if isinstance(opening.error, UnreachableError)]
        if not self._context.spare_lost_hosts or len(lost) == len(openings):
            results(openings)
            return [opening.item for opening in openings]
        connected = [opening for opening in openings if opening not in lost]
        results(connected)
        for opening in lost:
            opening.item.host.close()
            name, error = opening.item.host.name, opening.error
            assert isinstance(error, UnreachableError)  # noqa: S101 - ``lost`` was selected by this
            self.left_out[name] = f"{error.title}: {error.what}"
            self._say(f"✗ {name} is not reached ({self.left_out[name]}); going on with {len(connected)} of {len(openings)} hosts")
        return [opening.item for opening in connected]

    def examine_hosts(self, examine: Callable[[HostNode], T]) -> list[HostOutcome[HostNode, T]]:
        """Return the outcome of ``examine``, which connects to a host itself, for each host; a failure on one host stops no other."""
        credentials = self._access.credentials(self._context.recorded_host_keys)
        nodes = [self._host_node(address, credentials) for address in self._access.hosts]
        try:
            return outcomes(nodes, examine, self._clock)
        finally:
            for host_node in nodes:
                host_node.host.close()

    def _host_node(self, address: HostAddress, credentials: Credentials) -> HostNode:
        context = self._context
        connection = Connection(address, credentials=credentials, clock=self._clock, jump=self._access.jump, say=self._say)
        host = DockerHost(connection, self._settings, context)
        guard = GuardClient(host.name, Door(host, host.names.guard).dial, self._clock, host.ensure)
        edge = GuardedEdge(guard, self._clock, Door(host, host.names.edge).dial)
        lease = Lease(guard, self._clock)
        runner = Containers(host, self._settings, context, self._checkpoint)
        parts = Parts(lease, GuardedJournal(guard), edge, runner, self._options, host.name, host.dial, self._checkpoint)
        edge_containers = EdgeContainers(host, self._settings, context)
        port = Port(host, edge_containers, guard, self._settings, self._clock)
        return HostNode(host, edge_containers, port, guard, lease, edge, Node(context, parts))

    def _disconnect(self) -> None:
        for host_node in self._nodes:
            host_node.host.close()

    def _checkpoint(self) -> None:
        if self._halted.is_set():
            raise HaltedError("something else went wrong, or the run was cancelled")

    def _run_on_all(self, work: Callable[[HostNode], T]) -> list[T]:
        """Do ``work`` on all hosts at once and return the results. Raises the first error when all have ended."""
        return results(outcomes(self._nodes, work, self._clock))

    def _change_all(self, work: Callable[[HostNode], T], *, halt: bool = False) -> list[T]:
        """Change all hosts at once and return the results; ``halt``: an error stops the work on the other hosts.

        A host whose lease is about to run out is not waited for: it goes back, and the other hosts must not stay ahead of it.
        """
        stop_others = self._halted.set if halt else None
        changes = outcomes(self._nodes, work, self._clock, halt=stop_others, lost=lambda node: node.lease.overdue() is not None)
        for change in changes:
            if not change.finished:
                change.error = change.item.lease.overdue() or HaltedError("not done")
        return results(changes)

    # --- lock and journal ----------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, owner: Owner) -> Iterator[None]:
        """Hold the lock of every host. Missing guards are installed before the locks are taken, missing edges after that."""
        with self.connected():
            self._owner = owner
            self._run_on_all(lambda host_node: host_node.port.require())
            self._run_on_all(lambda host_node: host_node.install_guard(replaced=owner.fence is None))
            try:
                # All runs lock in this order, whatever their order of PROD_HOST: of two runs, the later is refused at the first host.
                for host_node in sorted(self._nodes, key=lambda host_node: host_node.host.connection.address):
                    self._acquire(host_node, owner)
                first = EdgeState(edge_services(self._config), f"0.0.0.0:{EDGE_PORT}", options=self._options)
                self._add_notes(self._run_on_all(lambda host_node: host_node.install_edge(first, replaced=owner.fence is None)))
                yield
            finally:
                with undisturbed():
                    outcomes(self._nodes, lambda host_node: host_node.lease.release(), self._clock, seconds=RELEASE_SECONDS)

    def _add_notes(self, notes: Iterable[str | None]) -> None:
        for note in filter(None, notes):
            self.notes.append(note)
            self._say(note)

    def _acquire(self, host_node: HostNode, owner: Owner) -> None:
        with undisturbed():
            host_node.lease.acquire(owner)
        if host_node.lease.taken_over:
            self._say(f"{host_node.host.name}: took over the lock of {host_node.lease.taken_over}")

    def renew(self) -> None:
        """Check that this run still holds all locks and leases, which are renewed in the background. Raises what ``Lease.renew`` does."""
        for host_node in self._nodes:
            host_node.lease.renew()

    def holder(self) -> LockHolder | None:
        """Return a holder of a host's lock, preferably a live one; None when no host is locked."""
        locks = [held for held in self.holders().values() if held is not None]
        return next((held for held in locks if held.alive), locks[0] if locks else None)

    def holders(self) -> dict[str, LockHolder | None]:
        """Return host name -> holder of the host's lock."""
        with self.connected():
            locks = self._run_on_all(lambda host_node: host_node.guard.holder() if host_node.edge_containers.is_installed() else None)
            return {host_node.host.name: held for host_node, held in zip(self._nodes, locks, strict=True)}

    def unlock(self, reason: str, actor: str) -> LockHolder | None:
        """Take the locks away from their holders and return one of them; where a lease is held, traffic goes back first."""
        with self.connected():
            broken = self._run_on_all(lambda node: node.lease.break_open(reason, actor) if node.edge_containers.is_installed() else None)
        return next(filter(None, broken), None)

    def current(self) -> History:
        """Return the merged history of all hosts' journals."""
        with self.connected():
            return merged(self._run_on_all(HostNode.history))

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release on all hosts."""

        def read(host_node: HostNode) -> tuple[Instance, ...]:
            return host_node.node.instances(release_id) if release_id in host_node.history().releases else ()

        with self.connected():
            return tuple(itertools.chain.from_iterable(self._run_on_all(read)))

    def install_edge(self, owner: Owner, listen: str | None) -> str:  # noqa: ARG002 - a port of the configuration is published
        """Have guard and edge on every host, which taking the lock installs."""
        with self.locked(owner):
            return "✓ guard and edge run on every host"

    def edges(self) -> list[str]:
        """Return a line about the edge of each host: its image, and whether that is the configured one."""
        with self.connected():
            return self._run_on_all(HostNode.describe_edge)

    # --- deployment ----------------------------------------------------------------------------------------------------

    def plan(self, release: Release) -> list[str]:
        """Return lines about every host's room for a release. Raises NotTrueError where it is too little."""
        required = requirements_of(self._config, release)
        with self.connected():
            lines = list(itertools.chain.from_iterable(self._run_on_all(lambda host_node: host_node.plan(required))))
        self._planned = release.id
        return lines

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Have ``percent`` of the instances on every host. A host that missed releases first gets the one that serves elsewhere."""
        self._halted.clear()
        self._catch_up(release)
        if release.id not in (self.current().releases.keys() | {self._planned}):
            for line in self.plan(release):
                self._say(line)
        self._change_all(lambda host_node: host_node.run_with_reconnect(lambda node: node.deploy(release, percent)), halt=True)
        return self.instances(release.id)

    def run_once(self, service_id: str, release: Release) -> None:
        """Run a job, or exchange a singleton, on one host."""
        self._halted.clear()
        service = self._config.service(service_id)
        if service.kind == JOB:
            hosts.host_of_job(self._nodes, service_id, release.id).run_with_reconnect(lambda node: node.run_job(service, release))
        else:
            singletons.exchange([host_node.node.singletons for host_node in self._nodes], service, release)

    def _catch_up(self, release: Release) -> None:
        history = self.current()
        serving = history.releases.get(history.serving or "")
        if serving is None or serving.id == release.id:
            return
        behind = [host_node for host_node in self._nodes if host_node.history().serving != serving.id]
        for host_node in behind:
            self._say(f"{host_node.host.name} is behind: it is brought to {serving.version} ({serving.id}) first")
        results(outcomes(behind, lambda host: host.node.deploy_without_stages(serving.release), self._clock, halt=self._halted.set))

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Change the weights of every host, each by a single rename, and return the weights that were read back."""
        weights = self._change_all(lambda host_node: host_node.run_with_reconnect(lambda node: node.set_weight(release, percent)))
        # In turn, so that a balancer in front always has the other hosts.
        self._add_notes(host_node.port.take(release.id) for host_node in self._nodes)
        return hosts.combined(self._nodes, weights)

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Store a stage's evidence on every host."""
        self._change_all(lambda host_node: host_node.run_with_reconnect(lambda node: node.finish_stage(release, evidence)))

    def promote(self, release: Release) -> None:
        """Promote the release on every host. A host that meanwhile went back by itself gets the release again."""
        self._halted.clear()  # another deployment may have been aborted before

        def promote(host_node: HostNode) -> None:
            deployed = host_node.history().releases.get(release.id)
            if deployed is None or (deployed.outcome != PROMOTED and not host_node.sends_all_traffic_to(release.id)):
                host_node.node.deploy_without_stages(release)
            else:
                host_node.run_with_reconnect(lambda node: node.promote(release))

        self._change_all(promote)

    def remove(self, release_id: str) -> None:
        """Remove a release without traffic from every host that has it."""
        self._run_on_all(lambda host_node: host_node.node.remove(release_id) if release_id in host_node.history().releases else None)

    # --- going back ----------------------------------------------------------------------------------------------------

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> AbortResult:
        """Go back on every host at once. A host that cannot be reached goes back when its lease runs out; the result names it."""
        limit = HURRIED_SECONDS if hurry else None
        deployed = self.current().releases.get(release.id)
        promoted = deployed is not None and deployed.outcome == PROMOTED
        exchanged = self._config.singletons if deployed is not None and deployed.outcome != DEPLOYING else ()
        self._halted.set()  # ends work that still starts instances
        aborts = outcomes(
            self._nodes, lambda node: self._abort_on_host(node, release, reason, hurry), self._clock, seconds=limit, lost=self._is_lost
        )
        lost = [(abort.item.host.name, hosts.failure_text(abort)) for abort in aborts if abort.result is None]
        lost += self.left_out.items()
        reached = [(abort.item.host.name, abort.result) for abort in aborts if abort.result is not None]
        lines = [f"{name}: {returned.detail}" if len(aborts) > 1 else returned.detail for name, returned in reached]
        lines += [hosts.lost_text(name, failure, self._settings, promoted=promoted) for name, failure in lost]
        if not reached:
            raise UnreachableError(
                "No host could be told to go back",
                what="\n".join(lines),
                where="PROD_HOST",
                next_step="make the hosts reachable and re-run the job: it reads their journals and goes back or on",
            )
        seconds = max(returned.seconds for _, returned in reached)
        proved = not lost and all(returned.proved for _, returned in reached)
        counts = [returned.requests_after for _, returned in reached]
        requests_after = None if None in counts else sum(count or 0 for count in counts)
        returned = AbortResult(reached[0][1].to, seconds, proved, requests_after, "; ".join(lines), tuple(name for name, _ in lost))
        nodes = [abort.item.node.singletons for abort in aborts if abort.result is not None]
        return singletons.after_going_back(nodes, exchanged, release.id, returned, hurry=hurry)

    def _is_lost(self, host_node: HostNode) -> bool:
        return host_node.lease.silent() > self._settings.lease_seconds + LEASE_MARGIN  # the guard has gone back by itself by then

    def _abort_on_host(self, host_node: HostNode, release: Release, reason: str, hurry: bool) -> AbortResult:
        try:
            returned = host_node.go_back(release, reason, hurry=hurry)
        except FencedError:
            # The guard went back by itself, and nobody has taken the lock since: do the rest, which a guard cannot do.
            if self._owner is None or host_node.guard.ask("/status")["lock"] is not None:
                raise
            host_node.lease.acquire(self._owner)
            returned = host_node.go_back(release, reason, hurry=hurry)
        if len(self._nodes) > 1:
            self._say(f"{host_node.host.name}: all traffic is on {returned.to or 'no version'} after {returned.seconds:.2f} s")
        return returned

    # --- observe -------------------------------------------------------------------------------------------------------

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return the address of an instance, to be connected to through its host while ``connected``."""
        host_node = next(host_node for host_node in self._nodes if host_node.host.name == instance.host)
        return host_node.node.endpoint(instance, side)

    def edge_secret(self) -> str | None:
        """Return the secret of the edges, which all get the same in a deployment, while ``connected``."""
        return self._nodes[0].edge.state().secret

    def observe(self) -> Observation:
        """Return the sums of all edges' counters, their weights, and the dead instances of all hosts."""
        return hosts.sum_of(self._nodes, self._read_all(lambda host_node: host_node.node.observe()))

    def edge_log(self, since: str) -> list[Failure]:
        """Return what the logs of all edges tell of since a moment."""
        return sorted(itertools.chain(*self._read_all(lambda host_node: host_node.edge_log(since))), key=lambda failure: failure.time)

    def states(self, workers: Sequence[Instance]) -> list[WorkerState]:
        """Return the state of each worker, in their order."""

        def read(host_node: HostNode) -> dict[Instance, WorkerState]:
            own = [worker for worker in workers if worker.host == host_node.host.name]
            return dict(zip(own, host_node.node.states(own), strict=True))

        states = {worker: state for found in self._read_all(read) for worker, state in found.items()}
        return [states[worker] for worker in workers]

    def _read_all(self, read: Callable[[HostNode], T]) -> list[T]:
        """Return what is read of every host. Raises UnreachableError when one is silent."""
        limit = min(OBSERVE_SECONDS, max(LEAST_OBSERVE_SECONDS, self._settings.lease_seconds * OBSERVE_SHARE))
        with self.connected():
            answers = outcomes(self._nodes, read, self._clock, seconds=limit, reads=True)
        if silent := [answer.item.host.name for answer in answers if not answer.finished]:
            raise hosts.silent(silent, limit)
        return results(answers)
