"""Target ``local_processes``: instances are processes of this machine on loopback, behind an Envoy that follows files.

Made for the rehearsal and for single-machine trials; the edge files, the journal and the lock are those of every target.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from azora_ci import edge as edges
from azora_ci.clock import rfc3339
from azora_ci.config import DeployConfig, Service, is_loopback
from azora_ci.edge import READ_BACK_SECONDS, Edge
from azora_ci.envoy import EdgeRelease, EdgeService, EdgeState
from azora_ci.errors import BadInputError, NotTrueError, UnreachableError
from azora_ci.health import NEW, OLD, Endpoint, Finding
from azora_ci.probes import Prober
from azora_ci.process import send_signal, undisturbed
from azora_ci.rollout import instances_at, levels
from azora_ci.targets import Held, Instance, Observation, Owner, Release, Returned, Wiring
from azora_ci.targets import instances as local
from azora_ci.targets.journal import Deployed, History, Journal
from azora_ci.targets.lock import FencedError, Lock

PROBE_SECONDS = 2.0  # for one answer while waiting for health
# Seconds in which no request may reach the new version after going back: as a rule, in a hurry, and when it never had traffic.
PROOF_SECONDS, HURRIED_PROOF_SECONDS, UNUSED_PROOF_SECONDS = 2.0, 1.0, 0.3
HURRIED_READ_BACK_SECONDS = 2.0  # of a cancelled run; the files are switched already
HURRIED_GRACE_SECONDS = 1.5  # a cancelled run is killed 10 s after the first signal; what does not drain until then is closed
PORT_ATTEMPTS = 3  # another process may take a free port before the instance does


def edge_services(config: DeployConfig) -> tuple[EdgeService, ...]:
    """Return what the edge needs to know of the services."""
    return tuple(EdgeService(one.id, one.route_prefix, one.timeout_seconds) for one in config.services)


def install_edge(config: DeployConfig, config_dir: Path, listen_port: int, admin_port: int) -> Path:
    """Write the bootstrap and first files of an edge on loopback and return the bootstrap file (start it with ``envoy.command``)."""
    listen, admin = f"{local.LOOPBACK}:{listen_port}", f"{local.LOOPBACK}:{admin_port}"
    return edges.install(config_dir, listen=listen, admin=admin, services=edge_services(config))


def deploy_at_once(target: LocalProcesses, release: Release, owner: Owner) -> tuple[Instance, ...]:
    """Deploy a first version without stages: what a rehearsal finds in production when it begins. Returns its instances."""
    with target.locked(owner):
        found = target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)
    return found


class LocalProcesses:
    """See ``targets.Target`` for what each method promises."""

    def __init__(self, wiring: Wiring) -> None:
        config = wiring.config
        settings = config.target.local_processes
        assert settings is not None  # noqa: S101 - the configuration's own check
        assert config.edge.config_dir is not None  # noqa: S101 - likewise
        _refuse_anything_but_loopback(config)
        self._wiring = wiring
        self._config = config
        self._clock = wiring.clock
        self._state_dir = settings.state_dir.resolve()
        self._archive_dir = settings.archive_dir
        self._journal = Journal(self._state_dir / "journal.jsonl")
        self._lock = Lock(self._state_dir / "lock.json", wiring.clock)
        self._edge = Edge(config.edge.config_dir, config.edge.admin_url or "", wiring.clock)
        self._prober = Prober(wiring.clock)

    # --- lock and truth ------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, owner: Owner) -> Iterator[None]:
        """Hold the lock of this machine's state folder."""
        with undisturbed():
            self._lock.acquire(owner)
        if self._lock.fenced:
            self._wiring.processes.say(f"fenced the deployment {self._lock.fenced}: from now on it can change nothing")
        elif self._lock.taken_over:
            self._wiring.processes.say(f"took over the lock of {self._lock.taken_over}: its owner no longer runs")
        try:
            yield
        finally:
            with undisturbed():
                self._lock.release()

    def renew(self) -> None:
        """Extend the lock."""
        self._lock.renew()

    def holder(self) -> Held | None:
        """Return who holds the lock."""
        return self._lock.holder()

    def unlock(self, reason: str, actor: str) -> Held | None:
        """Take the lock away from whoever holds it."""
        return self._lock.break_open(reason, actor)

    def current(self) -> History:
        """Return the journal's history."""
        return self._journal.history()

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release that were started and not stopped."""
        found = self.current().releases.get(release_id)
        return tuple(_instance(found, facts) for facts in found.instances.values()) if found else ()

    def _note(self, event: str, deployment_id: str, **facts: Any) -> None:
        with self._lock.ours():
            self._journal.add(rfc3339(self._clock.now()), event, deployment_id, **facts)

    def _switch(self, state: EdgeState) -> str:
        with self._lock.ours():  # who was fenced must not overwrite what a rollback has just put in force
            return self._edge.switch(state)

    def _apply(self, state: EdgeState) -> None:
        self._edge.confirm(state, self._switch(state))

    # --- deploy --------------------------------------------------------------------------------------------------------

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Start what is missing, service by service in dependency order, wait for health, and make it known to the edge."""
        self._lock.renew()
        found = self.current().releases.get(release.id)
        if found is None or found.outcome != "deploying":
            self._follow_journal()
            self._note("begin", release.id, version=release.version, digests=dict(release.digests), previous=self.current().serving)
        order = levels({service.id: service.depends_on for service in self._config.services})
        for group in order:
            self._raise_services([self._config.service(name) for name in group], release, percent)
        self._warm(release)
        return self.instances(release.id)

    def _follow_journal(self) -> None:
        """Bring the edge to what the journal says serves: a runner may have died between the two."""
        serving, state = self.current().serving, self._edge.state()
        if serving is not None and (state.stable != serving or state.canary is not None):
            self._settle(serving)

    def _raise_services(self, services: list[Service], release: Release, percent: int) -> None:
        for service in services:
            there = [one for one in self.instances(release.id) if one.service == service.id]
            for _ in range(instances_at(percent, service.instances) - len(there)):
                self._start(service, release)
        self._await_health([service.id for service in services], release)

    def _start(self, service: Service, release: Release) -> None:
        folder = local.unpack(self._archive_dir, release.digests[service.id], self._state_dir / "archives")
        number = self.current().releases[release.id].started + 1
        logs = self._state_dir / "logs" / release.id
        logs.mkdir(parents=True, exist_ok=True)
        facts = {
            "PORT": str(local.free_port()),
            "HOST": local.LOOPBACK,
            "SERVICE": service.id,
            "VERSION": release.bare,
            "DEPLOYMENT_ID": release.id,
        }
        env = local.instance_environment(service, facts, self._wiring.secrets)
        with undisturbed():  # a started process that the journal does not know would be nobody's
            started = local.start(self._wiring.processes, service, folder=folder, env=env, log=logs / f"{service.id}-{number}.log")
            try:
                self._note("instance", release.id, service=service.id, number=number, **asdict(started))
            except FencedError:
                send_signal(started.pid, signal.SIGKILL)
                raise

    def _await_health(self, services: list[str], release: Release) -> None:
        deadline = self._clock.monotonic() + self._wiring.health_timeout
        attempts = dict.fromkeys(services, 1)
        while True:
            self._lock.renew()
            waiting = [one for one in self.instances(release.id) if one.service in services]
            findings = self.probe(waiting, NEW)
            sick = [(one, finding) for one, finding in zip(waiting, findings, strict=True) if not finding.passed]
            if not sick:
                for finding in findings:
                    self._wiring.processes.say(f"✓ {finding.endpoint.name} answers healthy, {finding.detail}")
                return
            for one, finding in sick:
                self._replace_if_dead(one, release, attempts, finding)
            if self._clock.monotonic() > deadline:
                raise self._not_healthy(*sick[0])
            self._clock.sleep(0.1)

    def _replace_if_dead(self, one: Instance, release: Release, attempts: dict[str, int], finding: Finding) -> None:
        facts = self._facts(one)
        if local.runs(facts):
            return
        attempts[one.service] += 1
        if attempts[one.service] > PORT_ATTEMPTS:
            raise self._not_healthy(one, finding)
        self._note("stopped", release.id, service=one.service, number=one.number)
        self._start(self._config.service(one.service), release)

    def _not_healthy(self, one: Instance, finding: Finding) -> NotTrueError:
        facts = self._facts(one)
        state = "it still runs" if local.runs(facts) else "its process has ended"
        tail = self._wiring.processes.masked(local.log_tail(facts["log"]))
        return NotTrueError(
            "A new instance did not become healthy",
            what=f"{one.name} within {self._wiring.health_timeout:g} s: {finding.detail}; {state}; end of its log:\n{tail or '(empty)'}",
            where=finding.endpoint.url,
            next_step="read instances/ in the job's artifact; no traffic was given to this instance",
        )

    def _facts(self, one: Instance) -> dict[str, Any]:
        return self.current().releases[one.release].instances[one.service, one.number]

    def probe(self, found: tuple[Instance, ...] | list[Instance], side: str) -> list[Finding]:
        """Ask instances directly for their health and version."""
        return self._prober.probe([self.endpoint(one, side) for one in found], PROBE_SECONDS)

    def endpoint(self, one: Instance, side: str) -> Endpoint:
        """Return the address at which an instance itself answers for its health."""
        url = f"http://{one.address}{self._config.service(one.service).health_path}"
        return Endpoint(one.name, one.service, side, url, frozenset({one.version.removeprefix("v")}))

    def _edge_state(self) -> EdgeState:
        # Routes follow the configuration of the release that is being deployed; releases and weights are what is in force.
        return replace(self._edge.state(), services=edge_services(self._config))

    def _warm(self, release: Release) -> None:
        state = self._edge_state()
        endpoints: dict[str, tuple[str, ...]] = {}
        for one in self.instances(release.id):
            endpoints[one.service] = (*endpoints.get(one.service, ()), one.address)
        known = state.with_release(EdgeRelease(release.id, release.version, endpoints))
        if release.id == state.stable:
            self._apply(known)
            return
        # First the clusters, then the routes that name them: Envoy loads the files one after the other.
        if state.release(release.id) is None:
            self._apply(known)
        self._apply(replace(known, canary=release.id, percent=state.percent if state.canary == release.id else 0))

    # --- weights -------------------------------------------------------------------------------------------------------

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Move all services' weights by one rename and read them back."""
        self._lock.renew()
        state = self._edge_state()
        self._note("weight", release.id, percent=percent)
        self._apply(replace(state, canary=release.id, percent=percent))
        return self._edge.weights()

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Keep a stage's evidence."""
        self._note("stage", release.id, stage=dict(evidence))

    def promote(self, release: Release) -> None:
        """Journal the promotion first: from then on a rerun goes forward. Then roles change, and releases of long ago go."""
        self._lock.renew()
        with undisturbed():
            self._note("promote", release.id)
            self._settle(release.id)
        self._remove_old()

    def _settle(self, release_id: str) -> None:
        before = self.current().before(release_id)
        state = self._edge_state()
        self._apply(replace(state, stable=release_id, canary=None, previous=before.id if before else None, percent=0))

    def _remove_old(self) -> None:
        for one in self.current().superseded(self._clock.now(), self._wiring.rollback_window_minutes):
            self.remove(one.id)

    def remove(self, release_id: str) -> None:
        """Take a release without traffic from the edge, and stop its instances."""
        state = self._edge_state()
        if state.release(release_id) is not None:
            self._apply(state.without(release_id))
        self._stop(self.current().releases[release_id], quickly=False)
        self._note("removed", release_id)

    # --- back ----------------------------------------------------------------------------------------------------------

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> Returned:
        """Put the old weights in force by one rename, then prove it, then stop the new instances."""
        begun = self._clock.monotonic()
        state = self._edge_state()
        back = self.current().before(release.id)
        addresses = {one.address for one in self.instances(release.id)}
        target = back.id if back else None
        older = state.previous if state.previous not in {target, release.id} else None
        safe = replace(state, stable=target, canary=None, previous=older, percent=0)
        known = release.id in self.current().releases
        if known:
            self._note("going-back", release.id, reason=reason)
        generation = self._switch(safe)
        seconds = HURRIED_PROOF_SECONDS if hurry else PROOF_SECONDS if self._had_traffic(release.id) else UNUSED_PROOF_SECONDS
        if known:
            self._note("abort", release.id, reason=reason)
        try:
            self._edge.confirm(safe, generation, HURRIED_READ_BACK_SECONDS if hurry else READ_BACK_SECONDS)
            took = self._clock.monotonic() - begun
            returned = self._prove(back, addresses, took, seconds)
        except UnreachableError as error:
            detail = f"not proved: {error.what}; the files hold the old weights, Envoy takes them when it starts"
            returned = Returned(back.version if back else None, self._clock.monotonic() - begun, False, None, detail)
        found = self.current().releases.get(release.id)
        if found:
            self._stop(found, quickly=hurry)
        self._forget(release.id)
        return returned

    def _had_traffic(self, release_id: str) -> bool:
        history = self.current()
        found = history.releases.get(release_id)
        return found is not None and (found.percent > 0 or history.serving == release_id)

    def _prove(self, back: Deployed | None, addresses: set[str], took: float, seconds: float) -> Returned:
        before = self._edge.requests_to(addresses)
        deadline = self._clock.monotonic() + seconds
        old = [one for one in self.instances(back.id) if _known(self._config, one.service)] if back else []
        sick: list[Finding] = []
        while True:
            sick = [finding for finding in self.probe(old, OLD) if not finding.passed]
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            self._clock.sleep(min(0.2, left))
        after = self._edge.requests_to(addresses) - before
        detail = f"{after} requests reached the new version in {seconds:g} s"
        if sick:
            detail += f"; the old version is not healthy: {sick[0].endpoint.name}: {sick[0].detail}"
        return Returned(back.version if back else None, took, after == 0 and not sick, after, detail)

    def _stop(self, found: Deployed, *, quickly: bool) -> None:
        pairs = []
        for facts in found.instances.values():
            grace = self._config.service(facts["service"]).stop_grace_seconds if _known(self._config, facts["service"]) else 5.0
            pairs.append((facts, min(grace, HURRIED_GRACE_SECONDS) if quickly else grace))
        local.stop(reversed(pairs), self._clock, self._lock.renew)
        for facts in found.instances.values():
            kept = self._wiring.log_dir / "instances" / f"{found.id}-{facts['service']}-{facts['number']}.log"
            local.keep_log(facts, kept, self._wiring.processes.masked)
            self._note("stopped", found.id, service=facts["service"], number=facts["number"])

    def _forget(self, release_id: str) -> None:
        state = self._edge_state()
        if state.release(release_id) is not None:
            self._switch(state.without(release_id))

    # --- observe -------------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """Return the edge's counters and weights, and instances whose process has ended."""
        state = self._edge_state()
        dead = []
        history = self.current()
        for release in state.releases:
            found = history.releases.get(release.id)
            if found:
                dead += [_instance(found, facts) for facts in found.instances.values() if not local.runs(facts)]
        return Observation(self._edge.counters(state), self._edge.weights(), tuple(dead))


def _instance(found: Deployed, facts: Mapping[str, Any]) -> Instance:
    return Instance(found.id, found.version, facts["service"], facts["number"], f"{local.LOOPBACK}:{facts['port']}")


def _known(config: DeployConfig, service: str) -> bool:
    return any(one.id == service for one in config.services)


def _refuse_anything_but_loopback(config: DeployConfig) -> None:
    addresses = {"edge.admin_url": config.edge.admin_url or ""}
    addresses.update({f"services.{one.id}.public_health_url": one.public_health_url for one in config.services})
    refused = [f"{name} = {url or '(not set)'}" for name, url in addresses.items() if not is_loopback(url)]
    if refused:
        raise BadInputError(
            "local_processes is for loopback only",
            what="these addresses are not on loopback: " + ", ".join(refused),
            where="the deployment configuration",
            next_step="use addresses on 127.0.0.1 for a rehearsal, or target.kind docker_hosts for production",
        )
    missing = [one.id for one in config.services if not one.command]
    if missing:
        raise BadInputError(
            "Services without a command",
            what="local_processes starts services.<id>.command, which is missing for " + ", ".join(missing),
            where="the deployment configuration",
            next_step='add the command that starts the service in its build context, such as command = ["node", "server.js"]',
        )
