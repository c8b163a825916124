"""Target ``docker_hosts``: one or many production hosts over SSH, each with an edge, a guard, a journal and a lock of its own.

What is done on one host is ``Site``'s story; here all hosts do it at once. They move together: what cannot be done on one is taken back
on all. A host that cannot be reached any more goes back by itself, when its guard's lease runs out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from azora_ci.envoy import EdgeState
from azora_ci.errors import AzoraError, UnreachableError
from azora_ci.health import Endpoint
from azora_ci.process import undisturbed
from azora_ci.production_access import access_of
from azora_ci.rollout import Counters
from azora_ci.ssh import Connection, HostAddress
from azora_ci.ssh_folder import Credentials
from azora_ci.targets import Held, Instance, Observation, Owner, Release, Returned, Wiring
from azora_ci.targets.containers import Containers
from azora_ci.targets.docker_host import DockerHost
from azora_ci.targets.edge_settings import edge_options, edge_services
from azora_ci.targets.equipment import ADMIN_PORT, EDGE_PORT, GUARD_PORT, Equipment
from azora_ci.targets.guarded import GuardClient, GuardedEdge, GuardedJournal, Lease
from azora_ci.targets.host_site import HostSite, settings_of
from azora_ci.targets.journal import PROMOTED, History, merged
from azora_ci.targets.lock import FencedError
from azora_ci.targets.parallel import HaltedError, Outcome, outcomes, results
from azora_ci.targets.room import needs
from azora_ci.targets.site import Parts, Site
from azora_ci.targets.takeover import Port

# Seconds for one look at all hosts, and the share of a lease that it may take where that is less: a silent host must not hold up the
# verdict on the others until its own lease has run out.
LEAST_OBSERVE_SECONDS, OBSERVE_SECONDS, OBSERVE_SHARE = 3.0, 10.0, 1 / 3
RELEASE_SECONDS = 3.0  # for giving the locks back; they expire by themselves
LEASE_MARGIN = 5.0  # seconds after which a guard whose lease ran out has surely gone back
SPARED_ATTEMPTS = 2  # of connecting to a host while the users of the others wait
HURRIED_SECONDS = 4.5  # for going back on all hosts when the run was cancelled; who does not answer by then goes back by its lease

T = TypeVar("T")


class DockerHosts:
    """See ``targets.Target`` for what each method promises."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring, self._config, self._clock = wiring, wiring.config, wiring.clock
        self._say = wiring.processes.say
        self._settings = settings_of(wiring.config)
        self._access = access_of(wiring.access, "target.kind docker_hosts")
        self._sites: list[HostSite] = []
        self._left_out: dict[str, str] = {}  # host -> why it is not reached
        self._planned: str | None = None  # deployment id that there is room for
        self.notes: list[str] = []  # what a deployment's evidence says beside its stages
        self._halted = threading.Event()
        self._depth = 0  # of callers that need the connections
        self._credentials: Credentials | None = None
        self._owner: Owner | None = None
        self.host_keys: list[dict[str, Any]] = []  # what the hosts showed, as evidence

    # --- connections ---------------------------------------------------------------------------------------------------

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Be connected to all hosts; the outermost caller opens and closes. Raises what the first host that fails says."""
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
        self._credentials = self._access.credentials(self._wiring.recorded_host_keys)
        try:
            self._sites = self._unopened(self._credentials)
            self._sites = self._answering(outcomes(self._sites, self._open, self._clock))
        except BaseException:
            self._disconnect()
            raise
        self.host_keys = self._credentials.evidence()
        if self._credentials.to_be_pinned():
            self._wiring.processes.warning("New host keys were accepted", self._credentials.to_be_pinned())

    def _open(self, one: HostSite) -> None:
        if not self._wiring.spare_lost_hosts:
            return one.host.open()
        one.host.open(SPARED_ATTEMPTS)
        one.history()  # now is the moment to learn that its daemon or its guard is silent
        return None

    def _answering(self, found: list[Outcome[HostSite, None]]) -> list[HostSite]:
        """Return the hosts to go on with: all of them, unless those that cannot be reached are to be left out."""
        lost = [one for one in found if isinstance(one.error, UnreachableError)]
        if not self._wiring.spare_lost_hosts or len(lost) == len(found):
            results(found)
            return [one.item for one in found]
        there = [one for one in found if one not in lost]
        results(there)
        for one in lost:
            one.item.host.close()
            name, error = one.item.host.name, one.error
            assert isinstance(error, UnreachableError)  # noqa: S101 - so they were chosen
            self._left_out[name] = f"{error.title}: {error.what}"
            self._say(f"✗ {name} is not reached ({self._left_out[name]}); going on with {len(there)} of {len(found)} hosts")
        return [one.item for one in there]

    def _unopened(self, credentials: Credentials) -> list[HostSite]:
        numbered = enumerate(self._access.hosts, start=1)
        return [self._host_site(address, credentials, f"azora-{number}") for number, address in numbered]

    def looked_at(self, look: Callable[[HostSite], T]) -> list[Outcome[HostSite, T]]:
        """Have ``look`` connect to each host and look at it, whatever becomes of the others."""
        credentials = self._access.credentials(self._wiring.recorded_host_keys)
        sites = self._unopened(credentials)
        try:
            return outcomes(sites, look, self._clock)
        finally:
            for one in sites:
                one.host.close()
            credentials.wipe()

    def _host_site(self, address: HostAddress, credentials: Credentials, alias: str) -> HostSite:
        wiring = self._wiring
        connection = Connection(
            address, credentials=credentials, processes=wiring.processes, clock=self._clock, alias=alias, jump=self._access.jump,
            say=self._say,
        )  # fmt: skip
        host = DockerHost(connection, self._settings, wiring)
        guard = GuardClient(host.name, (host.addresses.guard, GUARD_PORT), host.dial, self._clock, host.ensure)
        edge = GuardedEdge(guard, f"{host.addresses.admin}:{ADMIN_PORT}", self._clock, host.dial)
        lease = Lease(guard, self._clock)
        runner = Containers(host, wiring, self._checkpoint)
        parts = Parts(lease, GuardedJournal(guard), edge, runner, host=host.name, dial=host.dial, checkpoint=self._checkpoint)
        equipment = Equipment(host, self._settings, wiring)
        port = Port(host, equipment, guard, self._settings, self._clock)
        return HostSite(host, equipment, port, guard, lease, edge, Site(wiring, parts))

    def _disconnect(self) -> None:
        for one in self._sites:
            one.host.close()
        if self._credentials is not None:
            self._credentials.wipe()
        self._credentials = None

    def _checkpoint(self) -> None:
        if self._halted.is_set():
            raise HaltedError("something else went wrong, or the run was cancelled")

    def _each(self, work: Callable[[HostSite], T]) -> list[T]:
        """Do something on all hosts at once; raises the first error when all are done."""
        return results(outcomes(self._sites, work, self._clock))

    def _move(self, work: Callable[[HostSite], T], *, halt: bool = False) -> list[T]:
        """Move all hosts at once; ``halt``: an error stops the others.

        One whose lease is about to run out is not waited for: the others must not stay ahead of it.
        """
        told = self._halted.set if halt else None
        found = outcomes(self._sites, work, self._clock, halt=told, lost=lambda one: one.lease.overdue() is not None)
        for one in found:
            if not one.finished:
                one.error = one.item.lease.overdue() or HaltedError("not done")
        return results(found)

    # --- lock and truth ------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, owner: Owner) -> Iterator[None]:
        """Hold the lock of every host, with guard and edge installed where they are missing."""
        with self.connected():
            self._owner = owner
            self._each(lambda one: one.port.require())
            self._each(lambda one: one.install_guard(replaced=owner.fence is None))
            try:
                # In everybody's order, whatever theirs in PROD_HOST: the second is refused at the first.
                for one in sorted(self._sites, key=lambda site: (site.host.connection.address.host, site.host.connection.address.port)):
                    self._acquire(one, owner)
                first = EdgeState(edge_services(self._config), f"0.0.0.0:{EDGE_PORT}", options=edge_options(self._config))
                self._remark(self._each(lambda one: one.install_edge(first, replaced=owner.fence is None)))
                yield
            finally:
                with undisturbed():
                    outcomes(self._sites, lambda one: one.lease.release(), self._clock, seconds=RELEASE_SECONDS)

    def _remark(self, notes: Iterable[str | None]) -> None:
        for note in filter(None, notes):
            self.notes.append(note)
            self._say(note)

    def _acquire(self, one: HostSite, owner: Owner) -> None:
        with undisturbed():
            one.lease.acquire(owner)
        if one.lease.taken_over:
            self._say(f"{one.host.name}: took over the lock of {one.lease.taken_over}")

    def renew(self) -> None:
        """Say whether all locks and leases are still ours; they are renewed in the background."""
        for one in self._sites:
            one.lease.renew()

    @property
    def left_out(self) -> Mapping[str, str]:
        """Return the hosts that were not reached and are left out, with the reason; see ``Wiring.spare_lost_hosts``."""
        return self._left_out

    def holder(self) -> Held | None:
        """Return who holds the lock of a host; one that lives before one that has been silent."""
        found = [one for one in self.holders().values() if one is not None]
        return next((one for one in found if one.alive), found[0] if found else None)

    def holders(self) -> dict[str, Held | None]:
        """Return who holds the lock of each host, by the host's name."""
        with self.connected():
            found = self._each(lambda one: one.guard.holder() if one.equipment.is_installed() else None)
            return {one.host.name: held for one, held in zip(self._sites, found, strict=True)}

    def unlock(self, reason: str, actor: str) -> Held | None:
        """Take the locks away from whoever holds them; a lease that is held goes back first."""
        with self.connected():
            found = self._each(lambda one: one.lease.break_open(reason, actor) if one.equipment.is_installed() else None)
        return next((one for one in found if one is not None), None)

    def current(self) -> History:
        """Return the history that the hosts' journals tell together."""
        with self.connected():
            return merged(self._each(HostSite.history))

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release on all hosts."""

        def of(one: HostSite) -> tuple[Instance, ...]:
            return one.site.instances(release_id) if release_id in one.history().releases else ()

        with self.connected():
            return tuple(instance for found in self._each(of) for instance in found)

    # --- the way up ----------------------------------------------------------------------------------------------------

    def plan(self, release: Release) -> list[str]:
        """Return what every host has room for. Raises NotTrueError where it is too little."""
        wanted = needs(self._config, release)
        with self.connected():
            lines = [line for found in self._each(lambda one: one.plan(wanted)) for line in found]
        self._planned = release.id
        return lines

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Have that share of instances on every host. A host that missed releases is brought to the serving one first."""
        self._halted.clear()
        self._catch_up(release)
        if release.id not in (self.current().releases.keys() | {self._planned}):
            for line in self.plan(release):
                self._say(line)
        self._move(lambda one: one.steadily(lambda site: site.deploy(release, percent)), halt=True)
        return self.instances(release.id)

    def _catch_up(self, release: Release) -> None:
        history = self.current()
        serving = history.releases.get(history.serving or "")
        if serving is None or serving.id == release.id:
            return
        behind = [one for one in self._sites if one.history().serving != serving.id]
        for one in behind:
            self._say(f"{one.host.name} is behind: it is brought to {serving.version} ({serving.id}) first")
        wanted = Release(serving.id, serving.version, serving.digests)
        results(outcomes(behind, lambda one: one.at_once(wanted), self._clock, halt=self._halted.set))

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Move the weights of every host, each by one rename, and return what was read back."""
        weights = self._move(lambda one: one.steadily(lambda site: site.set_weight(release, percent)))
        self._remark(one.port.take(release.id) for one in self._sites)  # one after the other: a balancer has the others meanwhile
        return _together(self._sites, weights)

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Keep a stage's evidence on every host."""
        self._move(lambda one: one.steadily(lambda site: site.finish_stage(release, evidence)))

    def promote(self, release: Release) -> None:
        """Promote on every host. One that went back by itself before it was reached is brought forward again."""
        self._halted.clear()  # another deployment may have been taken back first

        def promote(one: HostSite) -> None:
            found = one.history().releases.get(release.id)
            if found is None or (found.outcome != PROMOTED and not one.gives_all_to(release.id)):
                one.at_once(release)
            else:
                one.steadily(lambda site: site.promote(release))

        self._move(promote)

    def remove(self, release_id: str) -> None:
        """Remove a release without traffic from every host that has it."""
        self._each(lambda one: one.site.remove(release_id) if release_id in one.history().releases else None)

    # --- the way back --------------------------------------------------------------------------------------------------

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> Returned:
        """Go back on every host at once. A host that cannot be reached goes back when its lease runs out, and is named."""
        limit = HURRIED_SECONDS if hurry else None
        known = self.current().releases.get(release.id)
        promoted = known is not None and known.outcome == PROMOTED
        self._halted.set()  # whatever is still starting instances must not go on
        found = outcomes(
            self._sites, lambda one: self._abort_one(one, release, reason, hurry), self._clock, seconds=limit, lost=self._is_lost
        )
        lost = [one for one in found if one.result is None]
        there = [(one.item.host.name, one.result) for one in found if one.result is not None]
        lines = [f"{name}: {returned.detail}" if len(found) > 1 else returned.detail for name, returned in there]
        lines += [self._lost(one.item.host.name, _why(one), promoted=promoted) for one in lost]
        lines += [self._lost(name, why, promoted=promoted) for name, why in self._left_out.items()]
        if not there:
            raise UnreachableError(
                "No host could be told to go back",
                what="\n".join(lines),
                where="PROD_HOST",
                next_step="make the hosts reachable and re-run the job: it reads their journals and goes back or on",
            )
        seconds = max(returned.seconds for _, returned in there)
        proved = not lost and not self._left_out and all(returned.proved for _, returned in there)
        counted = [returned.requests_after for _, returned in there]
        after = None if None in counted else sum(count or 0 for count in counted)
        names = (*(one.item.host.name for one in lost), *self._left_out)
        return Returned(there[0][1].to, seconds, proved, after, "; ".join(lines), names)

    def _is_lost(self, one: HostSite) -> bool:
        return one.lease.silent() > self._settings.lease_seconds + LEASE_MARGIN  # its guard has gone back without us by now

    def _abort_one(self, one: HostSite, release: Release, reason: str, hurry: bool) -> Returned:
        try:
            returned = one.go_back(release, reason, hurry=hurry)
        except FencedError:
            # Its guard went back by itself, and nobody has taken the lock since: finish what it could not do.
            if self._owner is None or one.guard.ask("/status")["lock"] is not None:
                raise
            one.lease.acquire(self._owner)
            returned = one.go_back(release, reason, hurry=hurry)
        if len(self._sites) > 1:
            self._say(f"{one.host.name}: all traffic is on {returned.to or 'no version'} after {returned.seconds:.2f} s")
        return returned

    def _lost(self, name: str, detail: str, *, promoted: bool) -> str:
        lease = self._settings.lease_seconds
        then = "the new version still serves there" if promoted else f"its guard goes back by itself {lease:g} s after the last renewal"
        return f"{name}: not reached ({detail}); {then}"

    def edges(self) -> list[str]:
        """Return a line about the edge of each host: what it runs, and whether that is configured."""
        with self.connected():
            return self._each(HostSite.edge_line)

    # --- observe -------------------------------------------------------------------------------------------------------

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return the address of an instance and the way to it through its host."""
        found = next(one for one in self._sites if one.host.name == instance.host)
        return found.site.endpoint(instance, side)  # to be asked while connected

    def observe(self) -> Observation:
        """Return the counters of all edges together."""
        limit = min(OBSERVE_SECONDS, max(LEAST_OBSERVE_SECONDS, self._settings.lease_seconds * OBSERVE_SHARE))
        with self.connected():
            seen = outcomes(self._sites, lambda one: one.site.observe(), self._clock, seconds=limit, reads=True)
        silent = [one.item.host.name for one in seen if not one.finished]
        if silent:
            raise UnreachableError(
                "A production host is silent",
                what=f"{', '.join(silent)}: no answer within {limit:g} s",
                where="PROD_HOST",
                next_step="check the host and the network; its guard takes traffic back by itself",
            )
        found = results(seen)
        counters: dict[tuple[str, str], Counters] = {}
        for observation in found:
            for key, count in observation.counters.items():
                counters[key] = counters.get(key, Counters()).plus(count)
        weights = _together(self._sites, [one.weights for one in found])
        return Observation(counters, weights, tuple(dead for one in found for dead in one.dead))


def _why(one: Outcome[HostSite, Returned]) -> str:
    return one.error.what if isinstance(one.error, AzoraError) else f"{one.error or 'no answer yet'}"


def _together(sites: list[HostSite], found: Sequence[Mapping[str, Mapping[str, int]]]) -> Mapping[str, Mapping[str, int]]:
    """Return the weights of all hosts: once where they agree, else by host."""
    if all(one == found[0] for one in found):
        return found[0]
    return {f"{route} on {one.host.name}": shares for one, weights in zip(sites, found, strict=True) for route, shares in weights.items()}
