"""A node: a place with an edge, a journal and a lock, where instances of releases run. All targets share this code.

A ``Node`` deploys to one such place; its ``Runner`` knows how to start and stop a process or a container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from azora_ci.core.clock import rfc3339
from azora_ci.core.config import BEFORE_ROLLOUT, JOB, WORKER, Service, start_groups
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.core.pipeline import instances_at
from azora_ci.core.process import undisturbed
from azora_ci.health.answers import NEW, OLD, Endpoint, ProbeResult
from azora_ci.health.probes import Prober
from azora_ci.health.workers import RESTARTED, WorkerState
from azora_ci.targets import proofs, workers
from azora_ci.targets.base import AbortResult, Instance, Observation, TargetContext
from azora_ci.targets.drain import HURRIED_SETTLE_SECONDS, SETTLE_SECONDS, drain, prove
from azora_ci.targets.envoy.admin import expected_weights
from azora_ci.targets.envoy.edge import READ_BACK_SECONDS
from azora_ci.targets.envoy.options import edge_services, require_kept_prefixes, with_services
from azora_ci.targets.envoy.state import EdgeRelease, EdgeState
from azora_ci.targets.jobs import Jobs
from azora_ci.targets.journal import DEPLOYING, Deployed, History
from azora_ci.targets.node_parts import Facts, Parts
from azora_ci.targets.release import Release
from azora_ci.targets.singletons import Singletons

CERTIFICATE_DAYS = 14  # fewer cause a warning; certificates that are renewed automatically have more left
PROBE_SECONDS = 2.0  # for an answer while waiting for health
STEADY_SECONDS = 2.0  # that new workers must run for: one that ends at once runs when it is looked at first
# Seconds in which no request may reach the new version after going back: normally, in a hurry, and when it never had traffic.
PROOF_SECONDS, HURRIED_PROOF_SECONDS, UNUSED_PROOF_SECONDS = 2.0, 1.0, 0.3
HURRIED_READ_BACK_SECONDS = 2.0  # in a cancelled run; the files are already switched
# A cancelled run is killed 10 s after the first signal: connections and instances that do not end in these times are cut off.
HURRIED_DRAIN_SECONDS, HURRIED_GRACE_SECONDS = 0.5, 1.0
DROPPED_GRACE_SECONDS = 5.0  # for an instance of a service that the configuration no longer has


class Node:
    """See ``targets.Target`` for what each method promises."""

    def __init__(self, context: TargetContext, parts: Parts) -> None:
        self._context, self._config, self._clock = context, context.config, context.clock
        self._parts = parts
        self._lock, self._journal, self._edge, self._runner = parts.lock, parts.journal, parts.edge, parts.runner
        self._prober = Prober(context.clock)
        self._workers = workers.Workers(context, parts)
        self._jobs = Jobs(context, parts)
        self.singletons = Singletons(parts, self._workers, self, self._grace)

    # --- journal -------------------------------------------------------------------------------------------------------

    def current(self) -> History:
        """Return the journal's history."""
        return self._journal.history()

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return the instances of a release that were started and not stopped, and its workers that are at rest."""
        deployed = self.current().releases.get(release_id)
        return tuple(self._instance(deployed, facts) for facts in list(deployed.instances.values())) if deployed else ()

    def _instance(self, deployed: Deployed, facts: Facts) -> Instance:
        worker = facts.get("kind") == WORKER
        asked = not worker or (self._is_configured(facts["service"]) and self._config.service(facts["service"]).health_path)
        address = self._runner.address(facts) if asked else ""
        resting, host, health = bool(facts.get("resting")), self._parts.host, proofs.settings_of(facts)
        return Instance(deployed.id, deployed.version, facts["service"], facts["number"], address, host, worker, resting, health)

    def _running(self, release_id: str) -> list[Instance]:
        return [instance for instance in self.instances(release_id) if not instance.resting]

    def states(self, instances: Sequence[Instance]) -> list[WorkerState]:
        """Return the state of each worker, in their order."""
        return [self._runner.state(self._facts(instance)) for instance in instances]

    def _note(self, event: str, deployment_id: str, **facts: Any) -> None:
        self._journal.add(rfc3339(self._clock.now()), event, deployment_id, **facts)

    def _keep_alive(self) -> None:
        self._parts.checkpoint()
        self._lock.renew()

    # --- deploy --------------------------------------------------------------------------------------------------------

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Start the missing instances in the services' dependency order, wait for their health, and add the release to the edge."""
        self._begin(release)
        for group in self._levels():
            # A host that missed releases gets an older one, which may lack some services of this configuration.
            services = [service for service in self._config.staged if service.id in group and service.id in release.digests]
            self._start_services(services, release, percent)
        self._warm(release)
        return self.instances(release.id)

    def _begin(self, release: Release) -> None:
        self._keep_alive()
        deployed = self.current().releases.get(release.id)
        if deployed is None or deployed.outcome != DEPLOYING:
            require_kept_prefixes(self._edge.state(), self._config)
            self._follow_journal()
            self._note("begin", release.id, version=release.version, digests=dict(release.digests), previous=self.current().serving)
            self._note_ended(release.id)

    def run_job(self, service: Service, release: Release) -> None:
        """Run a job of a release to its end, or go on with what an earlier runner left of it."""
        if service.when == BEFORE_ROLLOUT:
            self._begin(release)
        self._jobs.run(service, release)

    def _note_ended(self, release_id: str) -> None:
        """Note as stopped the instances that an earlier attempt stopped before its run died, so that their health is not waited for."""
        for facts in self._runner.dead(list(self.current().releases[release_id].instances.values())):
            self._note("stopped", release_id, service=facts["service"], number=facts["number"])

    def _levels(self) -> list[list[str]]:
        """Return groups of service ids: a group starts when the groups before it are healthy, and stops before they do."""
        return start_groups({service.id: service.depends_on for service in self._config.services if service.kind != JOB})

    def _follow_journal(self) -> None:
        """Have edge and workers be those of the release that serves according to the journal; a run may have died between the changes."""
        serving, state = self.current().serving, self._edge.state()
        if serving is not None and (state.stable != serving or state.canary is not None):
            self._apply_promotion(serving)
        self._workers.settle(self._grace)

    def _start_services(self, services: list[Service], release: Release, percent: int) -> None:
        for service in services:
            present = [instance for instance in self._running(release.id) if instance.service == service.id]
            for _ in range(instances_at(percent, service.instances) - len(present)):
                self.start(service, release)
        self._admit_calls(release)
        self.await_health([service.id for service in services], release)

    def _admit_calls(self, release: Release) -> None:
        """Have the edge take the calls of instances that were started: their health may depend on other services."""
        state = self._edge_state()
        if not any(service.talks_to for service in state.services):
            return
        current = state.release(release.id)
        admitted = EdgeRelease(release.id, release.version, current.endpoints if current else {}, self._addresses_of(release))
        if current != admitted:
            self._edge.apply(state.with_release(admitted))

    def _addresses_of(self, release: Release) -> dict[str, tuple[str, ...]]:
        addresses: dict[str, tuple[str, ...]] = {}
        deployed = self.current().releases.get(release.id)
        for facts in list(deployed.instances.values()) if deployed else ():
            addresses[facts["service"]] = (*addresses.get(facts["service"], ()), self._runner.address(facts))
        return addresses

    def start(self, service: Service, release: Release) -> None:
        """Start an instance and note it in the journal."""
        self._keep_alive()
        self._runner.prepare(service, release)
        self._keep_alive()
        number = self.current().releases[release.id].started + 1
        with undisturbed():  # an instance that is not in the journal would never be stopped
            facts = self._runner.start(service, release, number)
            try:
                self._note("instance", release.id, service=service.id, number=number, **facts, **proofs.noted(service))
            except NotTrueError:  # fenced: another owner has taken the lock
                self._runner.discard(facts)
                raise

    def await_health(self, services: list[str], release: Release) -> None:
        """Wait until the instances of these services are healthy; one whose process ended is replaced. Raises NotTrueError."""
        deadline = self._clock.monotonic() + self._context.health_timeout
        attempts = dict.fromkeys(services, 1)
        steady = self._clock.monotonic() + STEADY_SECONDS
        while True:
            self._keep_alive()
            started = [instance for instance in self._running(release.id) if instance.service in services]
            findings = self.probe(started, NEW)
            sick = [(instance, finding) for instance, finding in zip(started, findings, strict=True) if not finding.passed]
            if not sick and (self._clock.monotonic() > steady or not any(instance.worker for instance in started)):
                for finding in findings:
                    answers = "answers healthy, " if finding.endpoint.url else ""
                    self._context.log.say(f"✓ {finding.endpoint.name} {answers}{finding.detail}")
                return
            for instance, finding in sick:
                self._replace_if_dead(instance, release, attempts, finding)
            if sick and self._clock.monotonic() > deadline:
                raise self._not_healthy(*sick[0])
            self._clock.sleep(0.1)

    def _replace_if_dead(self, instance: Instance, release: Release, attempts: dict[str, int], finding: ProbeResult) -> None:
        if finding.outcome != RESTARTED and not self._runner.dead([self._facts(instance)]):
            return
        attempts[instance.service] += 1
        if attempts[instance.service] > (self._runner.attempts if instance.address else 1):
            raise self._not_healthy(instance, finding)
        self._note("stopped", release.id, service=instance.service, number=instance.number)
        self.start(self._config.service(instance.service), release)

    def _not_healthy(self, instance: Instance, finding: ProbeResult) -> NotTrueError:
        facts = self._facts(instance)
        state = "its process has ended" if self._runner.dead([facts]) else "it still runs"
        tail = self._runner.log_tail(facts) or "(empty)"
        return NotTrueError(
            f"A new {'worker' if instance.worker else 'instance'} did not become healthy",
            what=f"{instance.name} within {self._context.health_timeout:g} s: {finding.detail}; {state}; end of its log:\n{tail}",
            where=finding.endpoint.url or f"the process of {instance.name}",
            next_step="read instances/ in the job's artifact; no traffic was given to this instance",
        )

    def _facts(self, instance: Instance) -> dict[str, Any]:
        return self.current().releases[instance.release].instances[instance.service, instance.number]

    def probe(self, instances: Sequence[Instance], side: str) -> list[ProbeResult]:
        """Ask instances directly for their health and version, and look at workers; return the findings in the order of the instances."""
        return workers.probe(self, self._prober, instances, side, PROBE_SECONDS)

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return the address at which an instance itself reports its health."""
        service = self._config.service(instance.service)
        return proofs.instance_endpoint(service, instance, side, self._parts, self.current)

    def _edge_state(self) -> EdgeState:
        """Return the state in force, with the services of the configuration of the release that is being deployed."""
        return with_services(self._edge.state(), edge_services(self._config))

    def _warm(self, release: Release) -> None:
        # Options change only in a deployment: going back must not depend on new options, which may be the cause of the failure.
        state = replace(self._edge_state(), options=self._parts.options, secret=self._context.edge_secret.reveal())
        current = state.release(release.id)
        extended = state.with_release(EdgeRelease(release.id, release.version, self._addresses_of(release)))
        if release.id == state.stable:
            self._edge.apply(extended)
            return
        # First the clusters, then the routes that name them: Envoy loads the files one after the other.
        if current is None or not current.endpoints:
            self._edge.apply(extended)
        if state.canary == release.id:
            self._edge.apply(extended)
        else:
            self._edge.apply(replace(extended, canary=release.id, percent=0, attempt=self.current().releases[release.id].started))
            self._warn_of_expiry(state)

    def _warn_of_expiry(self, state: EdgeState) -> None:
        if state.options.tls is None:
            return
        days = self._edge.certificate_days()
        if days is not None and days < CERTIFICATE_DAYS:
            host = f"{self._parts.host}: " if self._parts.host else ""
            text = f"{host}valid for {days} more days; renew the files of edge.tls_certificate"
            self._context.log.annotate("The edge's certificate expires soon", text)

    # --- weights -------------------------------------------------------------------------------------------------------

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Change all services' weights by a single rename and return the weights that were read back."""
        self._keep_alive()
        state = self._edge_state()
        self._note("weight", release.id, percent=percent)
        target_state = replace(state, canary=release.id, percent=percent)
        self._edge.apply(target_state)
        return expected_weights(target_state)  # ``apply`` has read these back

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Store a stage's evidence in the journal."""
        self._note("stage", release.id, stage=dict(evidence))

    def promote(self, release: Release) -> None:
        """Note the promotion, so that a rerun goes forward from then on; change the roles at the edge and remove superseded releases."""
        self._keep_alive()
        with undisturbed():
            self._note("promote", release.id)
            self._apply_promotion(release.id)
        self._workers.settle(self._grace)
        for superseded in self.current().superseded(self._clock.now(), self._context.rollback_window_minutes):
            self.remove(superseded.id)

    def _apply_promotion(self, release_id: str) -> None:
        previous = self.current().before(release_id)
        state = self._edge_state()
        self._edge.apply(replace(state, stable=release_id, canary=None, previous=previous.id if previous else None, percent=0))

    def deploy_without_stages(self, release: Release) -> tuple[Instance, ...]:
        """Deploy a release, give it all traffic and promote it, and return its instances; for one that serves elsewhere, or a first one."""
        instances = self.deploy(release, 100)
        self.set_weight(release, 100)
        self.promote(release)
        return instances

    def remove(self, release_id: str) -> None:
        """Drain a release that gets no traffic, remove it from the edge, and stop its instances."""
        deployed = self.current().releases[release_id]
        self._drain(deployed, self._config.rollout.drain_seconds)
        state = self._edge_state()
        if state.release(release_id) is not None:
            self._edge.apply(state.without(release_id))
        self.stop(deployed, list(deployed.instances.values()), quickly=False)
        self._runner.clear(release_id)
        self._note("removed", release_id)

    # --- going back ----------------------------------------------------------------------------------------------------

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> AbortResult:
        """Put the old weights in force by a single rename, prove that they are, and stop the new instances."""
        begun = self._clock.monotonic()
        state = self._edge.state()  # keeps the services in force: going back must not add routes of another configuration
        previous = self.current().before(release.id)
        addresses = {instance.address for instance in self.instances(release.id) if instance.address}
        stable = previous.id if previous else None
        older = state.previous if state.previous not in {stable, release.id} else None
        safe = replace(state, stable=stable, canary=None, previous=older, percent=0)
        recorded = release.id in self.current().releases
        if recorded:
            self._note("going-back", release.id, reason=reason)
        generation = self._edge.switch(safe)
        seconds = HURRIED_PROOF_SECONDS if hurry else PROOF_SECONDS if self._had_traffic(release.id) else UNUSED_PROOF_SECONDS
        if recorded:
            self._note("abort", release.id, reason=reason)
        try:
            self._edge.confirm(safe, generation, HURRIED_READ_BACK_SECONDS if hurry else READ_BACK_SECONDS)
            settle = HURRIED_SETTLE_SECONDS if hurry else SETTLE_SECONDS
            returned = self._prove(previous, addresses, begun, settle=settle, seconds=seconds)
        except UnreachableError as error:
            detail = f"not proved: {error.what}; the files hold the old weights, Envoy takes them when it starts"
            returned = AbortResult(previous.version if previous else None, self._clock.monotonic() - begun, False, None, detail)
        deployed = self.current().releases.get(release.id)
        if deployed:
            ended = self._jobs.end(deployed, lambda service: self._grace(service, quickly=hurry))
            returned = replace(returned, detail="; ".join((returned.detail, *ended)))
            if not hurry or (previous and workers.at_rest(workers.of(previous))):  # else there is no time to stop them before the others
                self.stop(deployed, workers.of(deployed), quickly=hurry)
            returned = self._workers.return_to(previous, returned, hurry=hurry)
            longest = self._config.rollout.drain_seconds
            self._drain(deployed, min(longest, HURRIED_DRAIN_SECONDS) if hurry else longest)
            self.stop(deployed, list(deployed.instances.values()), quickly=hurry)
        state = self._edge.state()
        if state.release(release.id) is not None:
            self._edge.switch(state.without(release.id))
        return returned

    def _had_traffic(self, release_id: str) -> bool:
        history = self.current()
        deployed = history.releases.get(release_id)
        return deployed is not None and (deployed.percent > 0 or history.serving == release_id)

    def _prove(self, previous: Deployed | None, addresses: set[str], begun: float, *, settle: float, seconds: float) -> AbortResult:
        old = [instance for instance in self._running(previous.id) if self._is_configured(instance.service)] if previous else []
        proof = prove(self._edge, addresses, self._clock, settle=settle, seconds=seconds, ask=lambda: self.probe(old, OLD))
        detail = f"{proof.requests_after} requests reached the new version in {seconds:g} s"
        if proof.unhealthy:
            detail += f"; the old version is not healthy: {proof.unhealthy[0].endpoint.name}: {proof.unhealthy[0].detail}"
        proved = proof.requests_after == 0 and not proof.unhealthy
        return AbortResult(previous.version if previous else None, proof.last_request - begun, proved, proof.requests_after, detail)

    def _drain(self, deployed: Deployed, seconds: float) -> None:
        addresses = {self._runner.address(facts) for facts in list(deployed.instances.values())}
        count = drain(self._edge, addresses, self._clock, seconds=seconds, meanwhile=self._lock.renew)
        if count:
            text = f"{count} requests or connections to {deployed.version} are open after {seconds:g} s: they end with it"
            self._context.log.say(text)

    def stop(self, deployed: Deployed, instances: list[Facts], *, quickly: bool) -> None:
        """Stop instances of a release, dependent services before those that they depend on; ``quickly``: all at once."""
        groups = [instances] if quickly else self._stop_order(instances)
        for group in groups:
            self._runner.stop([(facts, self._grace(facts["service"], quickly=quickly)) for facts in group], self._lock.renew)
        prefix = f"{self._parts.host.replace(':', '-')}-" if self._parts.host else ""
        for facts in instances:
            log = self._context.log_dir / "instances" / f"{prefix}{deployed.id}-{facts['service']}-{facts['number']}.log"
            self._runner.keep_log(facts, log)
            self._note("stopped", deployed.id, service=facts["service"], number=facts["number"])

    def _stop_order(self, instances: list[Facts]) -> list[list[Facts]]:
        dropped = [facts for facts in instances if not self._is_configured(facts["service"])]
        groups = [[facts for facts in instances if facts["service"] in names] for names in reversed(self._levels())]
        return [group for group in (dropped, *groups) if group]

    def _grace(self, service: str, *, quickly: bool = False) -> float:
        seconds = self._config.service(service).stop_grace_seconds if self._is_configured(service) else DROPPED_GRACE_SECONDS
        return min(seconds, HURRIED_GRACE_SECONDS) if quickly else seconds

    def _is_configured(self, service_id: str) -> bool:
        return any(service.id == service_id for service in self._config.services)

    # --- observe -------------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """Return the edge's counters and weights, and the instances that have ended."""
        state = self._edge_state()
        history = self.current()
        releases = [history.releases[release.id] for release in state.releases if release.id in history.releases]
        instances = [(each, facts) for each in releases for facts in list(each.instances.values()) if self._should_run(each, facts)]
        dead = self._runner.dead([facts for _, facts in instances])
        ended = tuple(self._instance(deployed, facts) for deployed, facts in instances if facts in dead)
        return Observation(self._edge.counters(state), self._edge.weights(), ended)

    def _should_run(self, deployed: Deployed, facts: Facts) -> bool:
        return not facts.get("resting") or deployed.id == self.current().serving
