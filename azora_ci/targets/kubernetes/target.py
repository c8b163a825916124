"""Target ``kubernetes``; see ``targets.Target`` for what each method promises.

Argo Rollouts starts pods and moves traffic by itself once a step is taken, so that ``deploy`` moves the shares as soon as the new pods are
ready, and ``set_weight`` reads them back. Everything that a later run must know is in the cluster: the journal, the lock, the annotations
of the pods' templates, and the Rollouts' own status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.objects import Document
from azora_ci.core.clock import rfc3339
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.core.process import undisturbed
from azora_ci.health.answers import OLD, Endpoint
from azora_ci.health.failures import Failure
from azora_ci.health.probes import Prober
from azora_ci.health.workers import WorkerState
from azora_ci.targets import proofs, workers
from azora_ci.targets.base import AbortResult, Instance, LockHolder, Observation, Owner, TargetContext
from azora_ci.targets.journal import DEPLOYING, Deployed, History
from azora_ci.targets.kubernetes import manifests, pods, rollouts
from azora_ci.targets.kubernetes.cluster import Names, connect, settings_of
from azora_ci.targets.kubernetes.counters import counting
from azora_ci.targets.kubernetes.fleet import POLL_SECONDS, Fleet, States
from azora_ci.targets.kubernetes.journal import ClusterJournal, brief
from azora_ci.targets.kubernetes.lock import ClusterLock
from azora_ci.targets.kubernetes.releases import NUMBER, Expected, Releases, facts_of
from azora_ci.targets.kubernetes.returning import Return, name_before, read_back, serving_pods
from azora_ci.targets.kubernetes.rollouts import RolloutState
from azora_ci.targets.release import Release

PROBE_SECONDS = 5.0  # for the answers of the version before, after going back
RETURN_SECONDS, HURRIED_SECONDS = 120.0, 4.0  # for going back: normally (pods may have to be started again), and in a cancelled run
REST_SECONDS = 15.0  # for Rollouts to come to rest before a plan says that they are not
BEYOND = 101  # percent: no weight is as high
PROOF_SECONDS = 2.0  # in which no request may reach the new version, where requests are counted


class Kubernetes:
    """See ``targets.Target``."""

    def __init__(self, context: TargetContext) -> None:
        self._context, self._config, self._clock = context, context.config, context.clock
        self._settings = settings_of(context.config)
        self._names = Names(self._settings)
        self._api: Api = connect(context)
        self._fleet = Fleet(self._api, self._names, context, self._explain)
        self._lock = ClusterLock(self._api, self._names, context.clock, self._stamp, lambda: self._releases.under_way)
        self._journal = ClusterJournal(self._api, self._names, context.clock, self._lock)
        self._counting = counting(self._settings, context.clock)
        self._pods = pods.Pods(self._api, self._names, context.config, context.clock)
        self._releases = Releases(self._journal, self._fleet, self._pods, context.config, self._counting)
        self._expected: Expected | None = None
        self.notes: list[str] = []
        self.host_keys: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}

    # --- lock ----------------------------------------------------------------------------------------------------------

    def connected(self) -> AbstractContextManager[None]:
        """Do nothing: connections to the API server are kept anyway."""
        return nullcontext()

    @contextmanager
    def locked(self, owner: Owner) -> Iterator[None]:
        """Hold the lease of the namespace, which is renewed in the background."""
        with undisturbed():
            self._lock.acquire(owner)
            self._fleet.lock = self._lock
        if self._lock.fenced:
            self._say(f"fenced the deployment {self._lock.fenced}: from now on it can change nothing")
        elif self._lock.taken_over:
            self._say(f"took over the lock of {self._lock.taken_over}: it was not renewed any more")
        try:
            with self._fleet.others.pulse():
                yield
        finally:
            with undisturbed():
                self._fleet.lock = None
                self._lock.release()

    def _stamp(self, token: str, confirm: Callable[[], None]) -> None:
        self._journal.stamp(token, confirm)
        self._fleet.stamp(token, confirm)

    def renew(self) -> None:
        """Check that this run still holds the lock."""
        self._lock.renew()

    def holder(self) -> LockHolder | None:
        """Return who holds the lock."""
        return self._lock.holder()

    def holders(self) -> Mapping[str, LockHolder | None]:
        """Return the holder of the only lock."""
        return {"": self.holder()}

    def unlock(self, reason: str, actor: str) -> LockHolder | None:
        """Take the lock away; a release that is under way is then taken back by Argo Rollouts, as that of a dead runner."""
        return self._lock.break_open(reason, actor)

    # --- edge: the traffic router is the cluster's -----------------------------------------------------------------------

    def install_edge(self, owner: Owner, listen: str | None) -> str:  # noqa: ARG002 - the router and its port are the cluster's
        """Have the lease's reader, its AnalysisTemplate and the account of our jobs, and each Rollout name the template."""
        return manifests.install(self._api, self._names, self._fleet.states())

    def edge_secret(self) -> str | None:
        """Return None: the cluster's router proves nothing about who answers."""
        return None

    def edges(self) -> list[str]:
        """Return a line about each Rollout."""
        return [seen.text for seen in self._fleet.states().values()]

    def edge_log(self, since: str) -> list[Failure]:  # noqa: ARG002 - there is none to ask
        """Return nothing: the logs of the cluster's router are elsewhere."""
        return []

    # --- what runs -------------------------------------------------------------------------------------------------------

    def current(self) -> History:
        """Return the history of the journal."""
        return self._releases.history()

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return a release's pods; of a service whose pods were stopped, while its ReplicaSet is kept, one instance at rest."""
        return self._releases.instances(release_id)

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return where a pod answers: through the API server, or at its address."""
        return self._releases.endpoint(instance, side)

    def states(self, workers: Sequence[Instance]) -> list[WorkerState]:
        """Return the state of each worker's pod; of instances at rest, whether the ReplicaSet is there that starts them again."""
        return self._releases.states(workers)

    # --- deployment ------------------------------------------------------------------------------------------------------

    def plan(self, release: Release) -> list[str]:
        """Return what people should know of the Rollouts. Raises NotTrueError where one cannot be driven, or verdicts cannot be had."""
        states = self._at_rest(release)
        entries = self._settings.rollouts
        problems: list[str] = []
        lines = self._releases.changed_since(states)
        for service, seen in states.items():
            problems += rollouts.obstacles(seen.document, entries[service], self._settings)
            if seen.stable and not seen.finished and seen.release != release.id:
                problems.append(f"{seen.text}: it is not at rest, and nothing is begun beside what is under way")
            lines += rollouts.remarks(seen.document, entries[service], self._context.rollback_window_minutes)
        if self._counting is None and self._config.rollout.inconclusive != "pass":
            problems.append(
                "target.kubernetes.counters and edge are missing: without counted requests every stage is inconclusive, and rollout."
                'inconclusive = "abort" would take every release back; count requests, or accept probes alone with inconclusive = "pass"'
            )
        if problems:
            raise NotTrueError(
                "The Rollouts cannot be driven",
                what="\n".join(problems),
                where=f"namespace {self._settings.namespace}",
                next_step="change what the lines above name, and re-run the job: nothing was begun",
            )
        verb = f"counted by {self._counting.name}" if self._counting else "not counted: verdicts rest on probes alone"
        return [f"{len(states)} Rollouts in namespace {self._settings.namespace}, requests {verb}", *lines]

    def _at_rest(self, release: Release) -> States:
        """Return the states, as soon as no Rollout is on its way; an autoscaler or a release that was taken back may still move them."""
        deadline = self._clock.monotonic() + REST_SECONDS
        while True:
            states = self._fleet.states()
            moving = [seen for seen in states.values() if seen.stable and not seen.finished and seen.release != release.id]
            if not moving or self._clock.monotonic() > deadline:
                return states
            self._clock.sleep(POLL_SECONDS)

    def deploy(self, release: Release, percent: int) -> tuple[Instance, ...]:
        """Give every Rollout the release and take its steps up to ``percent``; traffic follows as soon as the pods are ready."""
        self._expected = None
        self._lock.renew()
        self._begin(release)
        self._note("weight", release.id, percent=percent)
        started = [service.id for service in self._config.staged]

        def reached(service: str, seen: RolloutState) -> bool:
            return self._releases.is_own(service, release, seen) and (seen.held_at(percent) or seen.finished)

        advance = self._advance(release, percent)
        states = self._fleet.await_all(started, reached, advance, seconds=self._context.health_timeout, purpose=f"at {percent} %")
        self._note_hashes(release, states)
        self._fleet.others.require_watch(states.values())
        for seen in states.values():
            self._say(f"✓ {seen.text}")
        return self.instances(release.id)

    def _begin(self, release: Release) -> None:
        history = self.current()
        deployed = history.releases.get(release.id)
        if deployed is None or deployed.outcome != DEPLOYING:
            self._note("begin", release.id, version=release.version, digests=dict(release.digests), previous=history.serving)
        for service, seen in self._fleet.states().items():
            if seen.release == release.id:
                continue
            facts = {"base": seen.stable, **proofs.noted(self._config.service(service))}
            self._note("instance", release.id, service=service, number=NUMBER, **facts)  # before the change: going back needs the base
            self._start(service, release)
        self.current()  # the hashes of an earlier attempt do not count any more

    def _start(self, service: str, release: Release) -> None:
        image = self._releases.image(service, release.digests[service])
        given = {"DEPLOYMENT_ID": release.id, "SERVICE": service, "VERSION": release.bare}

        def start(seen: RolloutState, token: str) -> Sequence[Document] | None:
            index = rollouts.container_index(seen.document, self._settings.rollouts[service].container)
            if seen.release == release.id or index is None:
                return None
            return rollouts.start(seen.document, token, index, image, given)

        self._fleet.change(service, start, status=False)

    def _note_hashes(self, release: Release, states: States) -> None:
        deployed = self.current().releases[release.id]
        for service in (service.id for service in self._config.staged):
            facts = deployed.instances.get((service, NUMBER), {})
            if facts.get("hash") != states[service].current:
                kept = {name: value for name, value in facts.items() if name not in {"at", "event", "deployment_id", "service", "number"}}
                noted = {**kept, **proofs.noted(self._config.service(service)), "hash": states[service].current}
                self._note("instance", release.id, service=service, number=NUMBER, **noted)

    def _advance(self, release: Release, percent: int) -> Callable[[str, RolloutState], None]:
        """Return what ends the pauses before a weight, but for one in which a person is to decide."""
        said: set[tuple[str, bool]] = set()

        def advance(service: str, seen: RolloutState) -> None:
            self._releases.require_own(service, release, seen)
            if seen.free and seen.percent < percent:
                self._fleet.change(service, rollouts.going_on(seen))
            elif (seen.undecided or seen.analysing) and (service, seen.undecided) not in said:
                said.add((service, seen.undecided))
                self._say_waits(seen)
            self._lock.renew()

        return advance

    def _say_waits(self, seen: RolloutState) -> None:
        reason = "has no verdict: Argo pauses until a person decides (kubectl argo rollouts promote, or abort)"
        text = reason if seen.undecided else "measures: its end is waited for"
        lines = [f"{seen.name}: an analysis of its own {text}", *self._analyses(seen)]
        self.notes += lines if seen.undecided else []
        for line in lines:
            self._say(line)

    def _analyses(self, *states: RolloutState) -> list[str]:
        return [each.text for each in self._fleet.others.analyses([seen.current for seen in states])]

    def run_once(self, service_id: str, release: Release) -> None:
        """Raise NotTrueError: the configuration refuses jobs and singletons on this target."""
        raise NotTrueError(
            "Nothing runs once on this target",
            what=f"{service_id} of {release.version} is a job or a singleton",
            where="services.*.kind",
            next_step="give it to Helm, Argo CD or a Kubernetes Job",
        )

    def set_weight(self, release: Release, percent: int) -> Mapping[str, Mapping[str, int]]:
        """Read back the weights to which ``deploy`` moved traffic. Raises NotTrueError where they are not these."""
        self._lock.renew()
        # An autoscaler may have changed a Rollout in this moment: its status counts again when the controller has seen that.
        services = list(self._settings.rollouts)
        states = self._fleet.await_all(
            services,
            lambda _, seen: seen.settled,
            lambda service, seen: self._releases.require_own(service, release, seen),
            seconds=REST_SECONDS,
            purpose="settled",
        )
        bases = facts_of(self.current().releases[release.id], "base")
        expected = Expected(release, percent, frozenset(states) - frozenset(bases))
        for service, seen in states.items():
            self._releases.require_own(service, release, seen)
            if not expected.holds(service, seen) or not (seen.finished or seen.reads(percent)):
                raise self._fleet.others.moved(seen, percent)
        self._expected = expected
        return self._releases.weights(states)

    def finish_stage(self, release: Release, evidence: Mapping[str, object]) -> None:
        """Store a stage's evidence in the journal, but for its ticks, and show what analyses of users say by now."""
        self._note("stage", release.id, stage=brief(evidence))
        for line in self._analyses(*self._fleet.states().values()):
            self._say(line)

    def promote(self, release: Release) -> None:
        """Note the promotion, so that a rerun goes forward from then on, and end the last pause of every Rollout."""
        self._expected = None
        self._lock.renew()
        self.notes += self._analyses(*self._fleet.states().values())
        self._journal.promote(rfc3339(self._api.now()), release.id)

        def promoted(service: str, seen: RolloutState) -> bool:
            return self._releases.is_own(service, release, seen) and seen.finished

        services = [service.id for service in self._config.staged]
        advance = self._advance(release, BEYOND)
        states = self._fleet.await_all(services, promoted, advance, seconds=self._context.health_timeout, purpose="promoted")
        if previous := self.current().before(release.id):
            self._note("kept", previous.id, **self._releases.kept(previous.id, states, self._api.now()))

    def remove(self, release_id: str) -> None:
        """Note that a release is not gone back to any more; its ReplicaSets are Argo Rollouts' to remove."""
        self._note("removed", release_id)

    # --- going back ------------------------------------------------------------------------------------------------------

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> AbortResult:
        """Have every Rollout go back to what was stable before, prove it, and put the stable template back."""
        begun = self._clock.monotonic()
        self._expected = None
        history = self.current()
        deployed, previous = history.releases.get(release.id), history.before(release.id)
        way = Return(self._fleet, release.id, facts_of(deployed, "base") if deployed else {})
        way.require_goals()
        if deployed:
            self.notes += self._journal.go_back(rfc3339(self._api.now()), release.id, reason)
        seconds = HURRIED_SECONDS if hurry else RETURN_SECONDS
        states = way.go(seconds)
        serving = serving_pods(states, self._releases.hashes(release.id), release.id)
        left = self._releases.await_unready(serving, self._clock, begun + seconds)
        safe_after = self._clock.monotonic() - begun
        way.finish(states, self._clock, 0 if hurry else REST_SECONDS)
        if deployed:
            self._journal.end(rfc3339(self._api.now()), release.id, reason)
        self.notes += way.notes
        detail, proved = read_back(states, left, release.id, self._releases.hashes(release.id))
        name = name_before(previous, states, release.id, self._releases.hashes(previous.id) if previous else {})
        returned = AbortResult(name, safe_after, proved, None, detail)
        return self._proved(returned, release, previous, hurry=hurry)

    def _proved(self, returned: AbortResult, release: Release, previous: Deployed | None, *, hurry: bool) -> AbortResult:
        """Add to what the Rollouts say what else is seen: counted requests, ready pods of what is not routed, the old version's health."""
        details, proved, after, ended = [returned.detail], returned.proved, None, False
        if self._counting is not None and not hurry:
            try:
                after = self._releases.requests_after(release.id, self._clock, PROOF_SECONDS)
                counted = f"{after} requests were counted at the new version in the {PROOF_SECONDS:g} s after"
                # Prometheus forgets what is counted of pods that are no more: their end is the proof then, and nothing else is.
                ended = after is None and not self._releases.await_unready(self._releases.hashes(release.id).values(), self._clock, 0)
                unknown = f"the counters of the new version fell: {'its pods ended' if ended else 'its requests are not known'}"
                details.append(unknown if after is None else counted)
            except UnreachableError as error:
                details.append(f"requests could not be counted: {error.what}")
            proved = proved and (after == 0 or ended)
        if previous is not None and not hurry:
            old = [instance for instance in self.instances(previous.id) if not instance.resting]
            findings = workers.probe(self, Prober(self._clock), old, OLD, PROBE_SECONDS)
            sick = [f"{finding.endpoint.name}: {finding.detail}" for finding in findings if not finding.passed]
            details += [f"{len(findings) - len(sick)} of {len(findings)} instances of {previous.version} are healthy", *sick[:1]]
            proved = proved and not sick and bool(findings)
        return replace(returned, proved=proved, requests_after=after, detail="; ".join(details))

    # --- observe -----------------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """Return counters, weights and dead pods. While a stage is watched, raise NotTrueError when somebody else moved a Rollout."""
        states, history = self._fleet.states(), self.current()
        if self._expected is not None:
            for service, seen in states.items():
                self._releases.require_own(service, self._expected.release, seen)
                if seen.settled and not self._expected.holds(service, seen):
                    raise self._fleet.others.moved(seen, self._expected.percent)
            self._fleet.require_controller()
        shown = self._releases.shown(history, states)
        counters = self._releases.counters([deployed.id for deployed in shown], states)
        return Observation(counters, self._releases.weights(states), self._releases.troubled(shown))

    # --- inside ------------------------------------------------------------------------------------------------------------

    def _note(self, event: str, deployment_id: str, **facts: Any) -> None:
        self._journal.add(rfc3339(self._api.now()), event, deployment_id, **facts)

    def _say(self, line: str) -> None:
        self._context.log.say(line)

    def _explain(self, _service: str, seen: RolloutState) -> str:
        if seen.undecided:
            return "; ".join(("an analysis has no verdict", *self._analyses(seen)))
        return pods.explain(self._pods.of([seen.current])[seen.current]) if seen.current else ""
