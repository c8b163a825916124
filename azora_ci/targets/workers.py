"""Workers of a release: whether they run, their rest after the next release was promoted, and their return.

Old workers go on beside the new ones until the promotion, so that going back until then has nothing to start. After it they rest: they are
stopped and stay where they are. Going back stops the new ones first, then starts the old ones again. The journal has the intention before
anything is stopped, so that whoever comes next finishes it. A guard that goes back by itself moves traffic and stops nothing: new workers
go on beside the old ones until the next run takes their release back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from azora_ci.core.clock import rfc3339
from azora_ci.core.config import WORKER
from azora_ci.core.errors import AzoraError
from azora_ci.core.process import undisturbed
from azora_ci.health import workers
from azora_ci.health.answers import Endpoint, ProbeResult
from azora_ci.health.probes import Prober
from azora_ci.health.workers import WorkerState
from azora_ci.targets.base import AbortResult, Instance, TargetContext
from azora_ci.targets.journal import Deployed
from azora_ci.targets.node_parts import Facts, Parts

RESUMED_SECONDS, HURRIED_SECONDS = 1.0, 0.2  # that a worker must have run for after its return
_ENTRY = ("at", "event", "deployment_id", "resting")  # of a journal entry, beside the facts of the runner

Grace = Callable[[str], float]  # service id -> seconds between SIGTERM and SIGKILL


class Looked(Protocol):
    """The members of a target that tell how its instances are; see ``base.Watched``."""

    def states(self, workers: Sequence[Instance]) -> Sequence[WorkerState]:
        """Return the state of each worker."""

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return the address of an instance."""


def probe(target: Looked, prober: Prober, instances: Sequence[Instance], side: str, seconds: float) -> list[ProbeResult]:
    """Return a finding for each instance, in their order: of a worker whether it runs, of what has an address what it answers there."""
    asked, processes = [instance for instance in instances if instance.address], [instance for instance in instances if instance.worker]
    answers = dict(zip(asked, prober.probe([target.endpoint(instance, side) for instance in asked], seconds), strict=True))
    states = zip(processes, target.states(processes) if processes else (), strict=True)
    findings = {instance: look(instance, side, state) for instance, state in states}
    return [findings[each] if each in findings and not (each in answers and findings[each].passed) else answers[each] for each in instances]


def look(instance: Instance, side: str, state: WorkerState, restarts: int = 0) -> ProbeResult:
    """Return the finding of a worker's state. Its configured address counts in place of its image's HEALTHCHECK."""
    endpoint = Endpoint(f"{instance.name}, process" if instance.address else instance.name, instance.service, side, "")
    return workers.classify(endpoint, replace(state, health="") if instance.address else state, restarts)


def of(deployed: Deployed) -> list[Facts]:
    """Return the workers of a release, running or at rest."""
    return [facts for facts in list(deployed.instances.values()) if facts.get("kind") == WORKER]


def at_rest(workers_facts: Sequence[Facts]) -> list[Facts]:
    """Return those of workers that are at rest."""
    return [facts for facts in workers_facts if facts.get("resting")]


class Workers:
    """Stops and starts the workers of a node's releases. Singletons are not among them: see ``singletons``."""

    def __init__(self, context: TargetContext, parts: Parts) -> None:
        self._clock, self._say = context.clock, context.log.say
        self._journal, self._runner, self._lock, self._host = parts.journal, parts.runner, parts.lock, parts.host
        self._singletons = {service.id for service in context.config.singletons}

    def _note(self, event: str, release_id: str, **facts: Any) -> None:
        self._journal.add(rfc3339(self._clock.now()), event, release_id, **facts)

    def _staged(self, deployed: Deployed) -> list[Facts]:
        return [facts for facts in of(deployed) if facts["service"] not in self._singletons]

    def settle(self, grace: Grace) -> None:
        """Have the workers of every release but the serving one rest, then those of the serving one run."""
        history = self._journal.history()
        for deployed in list(history.releases.values()):
            if deployed.id != history.serving:
                self.rest(deployed, self._staged(deployed), grace)
        serving = history.releases[history.serving] if history.serving else None
        for problem in self._resume(serving, self._staged(serving)) if serving else ():
            self._say(f"✗ {problem}")

    def rest(self, deployed: Deployed, leaving: Sequence[Facts], grace: Grace) -> None:
        """Stop workers of a release, which may have been begun by a run that died."""
        if not leaving:
            return
        new = [facts for facts in leaving if not facts.get("resting")]
        for facts in new:
            self._note("rest", deployed.id, service=facts["service"], number=facts["number"])
        self._runner.stop([(facts, grace(facts["service"])) for facts in leaving], self._lock.renew)
        if new:
            self._say(f"workers of {deployed.version} are stopped, and start again when it comes back: {self._names(deployed, new)}")

    def _resume(self, deployed: Deployed, leaving: Sequence[Facts]) -> list[str]:
        """Start those workers of a release that are at rest; return a sentence for each that does not start."""
        problems = []
        for facts in at_rest(leaving):
            name = self._names(deployed, [facts])
            with undisturbed():
                try:
                    started = self._runner.resume(facts)
                except AzoraError as error:
                    problems.append(f"{name} does not start again: {error.what}")
                    continue
                kept = {key: value for key, value in {**facts, **started}.items() if key not in _ENTRY}
                self._note("resume", deployed.id, **kept)
            self._say(f"{name} was started again")
        return problems

    def return_to(self, previous: Deployed | None, returned: AbortResult, *, hurry: bool) -> AbortResult:
        """Start the workers of the version that traffic went back to. One that does not run afterwards means that it is not proved."""
        resting = at_rest(self._staged(previous)) if previous else []
        return self.bring_back(previous, resting, returned, hurry=hurry) if previous and resting else returned

    def bring_back(self, deployed: Deployed, resting: Sequence[Facts], returned: AbortResult, *, hurry: bool) -> AbortResult:
        """Start workers of a release that are at rest; return ``returned`` with what came of it."""
        problems = self._resume(deployed, resting)
        self._clock.sleep(HURRIED_SECONDS if hurry else RESUMED_SECONDS)
        current = self._journal.history().releases[deployed.id].instances
        for facts in (current[facts["service"], facts["number"]] for facts in resting):
            state = self._runner.state(facts)
            if not facts.get("resting") and (not state.running or state.restarts):
                problems.append(f"{self._names(deployed, [facts])} ended after its return")
        detail = "; ".join(problems) or f"its workers run again: {self._names(deployed, resting)}"
        return replace(returned, proved=returned.proved and not problems, detail=f"{returned.detail}; {detail}")

    def _names(self, deployed: Deployed, workers_facts: Sequence[Facts]) -> str:
        where = f" on {self._host}" if self._host else ""
        return ", ".join(f"{facts['service']}#{facts['number']} {deployed.version}{where}" for facts in workers_facts)
