"""One place with an edge, a journal and a lock, where instances of releases run: the story that all targets share.

A ``Site`` moves one of them; how a process or a container is started and stopped is its ``Runner``'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from azora_ci.clock import rfc3339
from azora_ci.config import Service
from azora_ci.edge import READ_BACK_SECONDS
from azora_ci.envoy import EdgeRelease, EdgeState
from azora_ci.envoy_admin import expected_weights
from azora_ci.errors import NotTrueError, UnreachableError
from azora_ci.health import NEW, OLD, Endpoint, Finding
from azora_ci.probes import Dial, Prober
from azora_ci.process import undisturbed
from azora_ci.rollout import instances_at, levels
from azora_ci.targets import Instance, Observation, Release, Returned, Wiring
from azora_ci.targets.edge_settings import edge_options, edge_services, require_kept_prefixes
from azora_ci.targets.journal import DEPLOYING, Deployed, History
from azora_ci.targets.proof import HURRIED_SETTLE_SECONDS, SETTLE_SECONDS, drain, prove
from azora_ci.targets.protocols import Facts, Runner, SiteEdge, SiteJournal, SiteLock

CERTIFICATE_DAYS = 14  # fewer are told: certificates that renew themselves have more left
PROBE_SECONDS = 2.0  # for one answer while waiting for health
# Seconds in which no request may reach the new version after going back: as a rule, in a hurry, and when it never had traffic.
PROOF_SECONDS, HURRIED_PROOF_SECONDS, UNUSED_PROOF_SECONDS = 2.0, 1.0, 0.3
HURRIED_READ_BACK_SECONDS = 2.0  # of a cancelled run; the files are switched already
# A cancelled run is killed 10 s after the first signal: what does not end until then is closed.
HURRIED_DRAIN_SECONDS, HURRIED_GRACE_SECONDS = 0.5, 1.0
DROPPED_GRACE_SECONDS = 5.0  # for an instance of a service that the configuration no longer has


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Parts:
    """What a site is made of. ``host`` names it among several; ``dial`` connects to its instances where this machine cannot.

    ``checkpoint`` is called where work may be given up: it raises when the run was cancelled elsewhere.
    """

    lock: SiteLock
    journal: SiteJournal
    edge: SiteEdge
    runner: Runner
    host: str = ""
    dial: Dial | None = None
    checkpoint: Callable[[], None] = nothing


class Site:
    """See ``targets.Target`` for what each method promises."""

    def __init__(self, wiring: Wiring, parts: Parts) -> None:
        self._wiring, self._config, self._clock = wiring, wiring.config, wiring.clock
        self._parts = parts
        self._lock, self._journal, self._edge, self._runner = parts.lock, parts.journal, parts.edge, parts.runner
        self._prober = Prober(wiring.clock)

    # --- truth ---------------------------------------------------------------------------------------------------------

    def current(self) -> History:
        """Return the journal's history."""
        return self._journal.history()

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release that were started and not stopped."""
        found = self.current().releases.get(release_id)
        return tuple(self._instance(found, facts) for facts in list(found.instances.values())) if found else ()

    def _instance(self, found: Deployed, facts: Facts) -> Instance:
        address = self._runner.address(facts)
        return Instance(found.id, found.version, facts["service"], facts["number"], address, self._parts.host)

    def _note(self, event: str, deployment_id: str, **facts: Any) -> None:
        self._journal.add(rfc3339(self._clock.now()), event, deployment_id, **facts)

    def _keep_alive(self) -> None:
        self._parts.checkpoint()
        self._lock.renew()

    # --- deploy --------------------------------------------------------------------------------------------------------

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Start what is missing, service by service in dependency order, wait for health, and make it known to the edge."""
        self._keep_alive()
        found = self.current().releases.get(release.id)
        if found is None or found.outcome != DEPLOYING:
            require_kept_prefixes(self._edge.state(), self._config)
            self._follow_journal()
            self._note("begin", release.id, version=release.version, digests=dict(release.digests), previous=self.current().serving)
            self._note_ended(release.id)
        for group in self._levels():
            # A host that is behind is brought to an older release, which may not have all services of this configuration.
            self._raise_services([self._config.service(name) for name in group if name in release.digests], release, percent)
        self._warm(release)
        return self.instances(release.id)

    def _note_ended(self, release_id: str) -> None:
        """Note what an earlier attempt stopped and its runner, which died just then, did not note: nobody waits for its health."""
        for facts in self._runner.dead(list(self.current().releases[release_id].instances.values())):
            self._note("stopped", release_id, service=facts["service"], number=facts["number"])

    def _levels(self) -> list[list[str]]:
        """Return services in groups: each waits for those before it on the way up, and goes before them on the way back."""
        return levels({service.id: service.depends_on for service in self._config.services})

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
        self._keep_alive()
        self._runner.prepare(service, release)
        self._keep_alive()
        number = self.current().releases[release.id].started + 1
        with undisturbed():  # a started process that the journal does not know would be nobody's
            facts = self._runner.start(service, release, number)
            try:
                self._note("instance", release.id, service=service.id, number=number, **facts)
            except NotTrueError:  # fenced: the lock belongs to somebody else by now
                self._runner.discard(facts)
                raise

    def _await_health(self, services: list[str], release: Release) -> None:
        deadline = self._clock.monotonic() + self._wiring.health_timeout
        attempts = dict.fromkeys(services, 1)
        while True:
            self._keep_alive()
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
        if not self._runner.dead([self._facts(one)]):
            return
        attempts[one.service] += 1
        if attempts[one.service] > self._runner.attempts:
            raise self._not_healthy(one, finding)
        self._note("stopped", release.id, service=one.service, number=one.number)
        self._start(self._config.service(one.service), release)

    def _not_healthy(self, one: Instance, finding: Finding) -> NotTrueError:
        facts = self._facts(one)
        state = "its process has ended" if self._runner.dead([facts]) else "it still runs"
        tail = self._runner.log_tail(facts)
        return NotTrueError(
            "A new instance did not become healthy",
            what=f"{one.name} within {self._wiring.health_timeout:g} s: {finding.detail}; {state}; end of its log:\n{tail or '(empty)'}",
            where=finding.endpoint.url,
            next_step="read instances/ in the job's artifact; no traffic was given to this instance",
        )

    def _facts(self, one: Instance) -> dict[str, Any]:
        return self.current().releases[one.release].instances[one.service, one.number]

    def probe(self, found: Sequence[Instance], side: str) -> list[Finding]:
        """Ask instances directly for their health and version."""
        return self._prober.probe([self.endpoint(one, side) for one in found], PROBE_SECONDS)

    def endpoint(self, one: Instance, side: str) -> Endpoint:
        """Return the address at which an instance itself answers for its health."""
        url = f"http://{one.address}{self._config.service(one.service).health_path}"
        return Endpoint(one.name, one.service, side, url, frozenset({one.version.removeprefix("v")}), self._parts.dial)

    def _edge_state(self) -> EdgeState:
        """Return what is in force, with the services of the configuration of the release that is being deployed.

        A service that it has dropped stays as long as a release that is there has instances of it: until the promotion all its
        requests go to the old version. Afterwards it has no route, what a shorter prefix says holds; a rollback finds it again.
        """
        state, wanted = self._edge.state(), edge_services(self._config)
        ids, prefixes = {one.id for one in wanted}, {one.route_prefix for one in wanted}
        there = {service for release in state.releases for service, addresses in release.endpoints.items() if addresses}
        kept = [one for one in state.services if one.id in there - ids and one.route_prefix not in prefixes]
        return replace(state, services=(*wanted, *kept))

    def _warm(self, release: Release) -> None:
        # Only on the way up: going back must not depend on options that may be what is wrong.
        state = replace(self._edge_state(), options=edge_options(self._config))
        endpoints: dict[str, tuple[str, ...]] = {}
        for one in self.instances(release.id):
            endpoints[one.service] = (*endpoints.get(one.service, ()), one.address)
        known = state.with_release(EdgeRelease(release.id, release.version, endpoints))
        if release.id == state.stable:
            self._edge.apply(known)
            return
        # First the clusters, then the routes that name them: Envoy loads the files one after the other.
        if state.release(release.id) is None:
            self._edge.apply(known)
        if state.canary == release.id:
            self._edge.apply(known)
        else:
            self._edge.apply(replace(known, canary=release.id, percent=0, attempt=self.current().releases[release.id].started))
            self._warn_of_expiry(state)

    def _warn_of_expiry(self, state: EdgeState) -> None:
        if state.options.tls is None:
            return
        days = self._edge.certificate_days()
        if days is not None and days < CERTIFICATE_DAYS:
            where = f"{self._parts.host}: " if self._parts.host else ""
            text = f"{where}valid for {days} more days; renew the files of edge.tls_certificate"
            self._wiring.processes.warning("The edge's certificate expires soon", text)

    # --- weights -------------------------------------------------------------------------------------------------------

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Move all services' weights by one rename and read them back."""
        self._keep_alive()
        state = self._edge_state()
        self._note("weight", release.id, percent=percent)
        wanted = replace(state, canary=release.id, percent=percent)
        self._edge.apply(wanted)
        return expected_weights(wanted)  # which is what was read back

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Keep a stage's evidence."""
        self._note("stage", release.id, stage=dict(evidence))

    def promote(self, release: Release) -> None:
        """Journal the promotion first: from then on a rerun goes forward. Then roles change, and releases of long ago go."""
        self._keep_alive()
        with undisturbed():
            self._note("promote", release.id)
            self._settle(release.id)
        self._remove_old()

    def _settle(self, release_id: str) -> None:
        before = self.current().before(release_id)
        state = self._edge_state()
        self._edge.apply(replace(state, stable=release_id, canary=None, previous=before.id if before else None, percent=0))

    def _remove_old(self) -> None:
        for one in self.current().superseded(self._clock.now(), self._wiring.rollback_window_minutes):
            self.remove(one.id)

    def remove(self, release_id: str) -> None:
        """Drain a release that gets no traffic, take it from the edge, and stop its instances."""
        found = self.current().releases[release_id]
        self._drain(found, self._config.rollout.drain_seconds)
        state = self._edge_state()
        if state.release(release_id) is not None:
            self._edge.apply(state.without(release_id))
        self._stop(found, quickly=False)
        self._runner.clear(release_id)
        self._note("removed", release_id)

    # --- back ----------------------------------------------------------------------------------------------------------

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> Returned:
        """Put the old weights in force by one rename, then prove it, then stop the new instances."""
        begun = self._clock.monotonic()
        state = self._edge.state()  # with the services in force: a way back must not bring routes of another configuration
        back = self.current().before(release.id)
        addresses = {one.address for one in self.instances(release.id)}
        target = back.id if back else None
        older = state.previous if state.previous not in {target, release.id} else None
        safe = replace(state, stable=target, canary=None, previous=older, percent=0)
        known = release.id in self.current().releases
        if known:
            self._note("going-back", release.id, reason=reason)
        generation = self._edge.switch(safe)
        seconds = HURRIED_PROOF_SECONDS if hurry else PROOF_SECONDS if self._had_traffic(release.id) else UNUSED_PROOF_SECONDS
        if known:
            self._note("abort", release.id, reason=reason)
        try:
            self._edge.confirm(safe, generation, HURRIED_READ_BACK_SECONDS if hurry else READ_BACK_SECONDS)
            settle = HURRIED_SETTLE_SECONDS if hurry else SETTLE_SECONDS
            returned = self._prove(back, addresses, begun, settle=settle, seconds=seconds)
        except UnreachableError as error:
            detail = f"not proved: {error.what}; the files hold the old weights, Envoy takes them when it starts"
            returned = Returned(back.version if back else None, self._clock.monotonic() - begun, False, None, detail)
        found = self.current().releases.get(release.id)
        if found:
            longest = self._config.rollout.drain_seconds
            self._drain(found, min(longest, HURRIED_DRAIN_SECONDS) if hurry else longest)
            self._stop(found, quickly=hurry)
        self._forget(release.id)
        return returned

    def _had_traffic(self, release_id: str) -> bool:
        history = self.current()
        found = history.releases.get(release_id)
        return found is not None and (found.percent > 0 or history.serving == release_id)

    def _prove(self, back: Deployed | None, addresses: set[str], begun: float, *, settle: float, seconds: float) -> Returned:
        old = [one for one in self.instances(back.id) if self._known(one.service)] if back else []
        found = prove(self._edge, addresses, self._clock, settle=settle, seconds=seconds, ask=lambda: self.probe(old, OLD))
        detail = f"{found.after} requests reached the new version in {seconds:g} s"
        if found.sick:
            detail += f"; the old version is not healthy: {found.sick[0].endpoint.name}: {found.sick[0].detail}"
        proved = found.after == 0 and not found.sick
        return Returned(back.version if back else None, found.since - begun, proved, found.after, detail)

    def _drain(self, found: Deployed, seconds: float) -> None:
        addresses = {self._runner.address(facts) for facts in list(found.instances.values())}
        left = drain(self._edge, addresses, self._clock, seconds=seconds, meanwhile=self._lock.renew)
        if left:
            self._wiring.processes.say(f"{left} requests or connections to {found.version} are open after {seconds:g} s: they end with it")

    def _stop(self, found: Deployed, *, quickly: bool) -> None:
        """Stop a release's instances, what others depend on last; ``quickly``: all at once."""
        stopped: list[Facts] = list(found.instances.values())
        groups = [stopped] if quickly else self._back_down(stopped)
        for group in groups:
            self._runner.stop([(facts, self._grace(facts["service"], quickly=quickly)) for facts in group], self._lock.renew)
        at = f"{self._parts.host.replace(':', '-')}-" if self._parts.host else ""
        for facts in stopped:
            kept = self._wiring.log_dir / "instances" / f"{at}{found.id}-{facts['service']}-{facts['number']}.log"
            self._runner.keep_log(facts, kept)
            self._note("stopped", found.id, service=facts["service"], number=facts["number"])

    def _back_down(self, stopped: list[Facts]) -> list[list[Facts]]:
        dropped = [facts for facts in stopped if not self._known(facts["service"])]
        groups = [[facts for facts in stopped if facts["service"] in names] for names in reversed(self._levels())]
        return [group for group in (dropped, *groups) if group]

    def _grace(self, service: str, *, quickly: bool) -> float:
        seconds = self._config.service(service).stop_grace_seconds if self._known(service) else DROPPED_GRACE_SECONDS
        return min(seconds, HURRIED_GRACE_SECONDS) if quickly else seconds

    def _forget(self, release_id: str) -> None:
        state = self._edge.state()
        if state.release(release_id) is not None:
            self._edge.switch(state.without(release_id))

    def _known(self, service: str) -> bool:
        return any(one.id == service for one in self._config.services)

    # --- observe -------------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """Return the edge's counters and weights, and instances that have ended."""
        state = self._edge_state()
        history = self.current()
        shown = [history.releases[one.id] for one in state.releases if one.id in history.releases]
        facts = [(found, one) for found in shown for one in list(found.instances.values())]
        dead = self._runner.dead([one for _, one in facts])
        ended = tuple(self._instance(found, one) for found, one in facts if one in dead)
        return Observation(self._edge.counters(state), self._edge.weights(), ended)
