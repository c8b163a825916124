"""Check whether the previous version still runs, before traffic returns to it by hand or because smoke tests failed."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci.core.clock import Clock
from azora_ci.core.config import DeployConfig
from azora_ci.health.answers import OLD
from azora_ci.health.probes import Prober
from azora_ci.targets import workers
from azora_ci.targets.base import Target
from azora_ci.targets.journal import Deployed

PROBE_SECONDS = 5.0  # for the answers of all its instances, which are probed at once


@dataclass(frozen=True)
class KeptVersion:
    """What is left of a version: names of its instances, number of healthy instances, a sentence for each sick or missing one, and
    number of workers at rest, which are started again.
    """

    names: tuple[str, ...]
    healthy: int
    sick: tuple[str, ...]
    resting: int = 0

    def summary(self, version: str) -> str:
        """Return a sentence with the number of healthy instances, and what is wrong with the others."""
        at_rest = f", and {self.resting} workers are at rest" if self.resting else ""
        counts = f"{self.healthy} of {len(self.names) - self.resting} instances of {version} are healthy{at_rest}"
        return "; ".join((counts, *self.sick))


def look(target: Target, config: DeployConfig, clock: Clock, *, before: Deployed, leaving: str) -> KeptVersion:
    """Probe health and version of every instance of the release ``before``; ``leaving`` is the id of the release that serves now.

    Only services with which ``before`` was built and that the configuration still names are probed: a service that it never had cannot
    be missing, and no probe is known for a service that the configuration does not name. A service without an instance of ``before``,
    on a host that has instances of either release, counts as sick, unless it is a singleton, which another release may still have running.
    """
    services = {service.id for service in (*config.staged, *config.singletons) if service.id in before.digests}
    instances = [instance for instance in target.instances(before.id) if instance.service in services]
    running, resting = ([each for each in instances if each.resting is at_rest] for at_rest in (False, True))
    findings = workers.probe(target, Prober(clock), running, OLD, PROBE_SECONDS)
    hosts = {instance.host for instance in (*instances, *target.instances(leaving))} or {""}
    expected = {(service.id, host) for service in config.staged if service.id in services for host in hosts}
    missing = expected - {(instance.service, instance.host) for instance in instances}
    problems = [f"{finding.endpoint.name}: {finding.detail}" for finding in findings if not finding.passed]
    states = zip(resting, target.states(resting) if resting else (), strict=True)
    problems += [f"{worker.name}: it cannot be started again, {state.detail}" for worker, state in states if state.gone]
    if not services:
        problems.append(f"{before.version} has no service that the configuration names")
    problems += [f"{service}{f' on {host}' if host else ''}: no instance of {before.version} is there" for service, host in sorted(missing)]
    names = tuple(instance.name for instance in instances)
    return KeptVersion(names, sum(finding.passed for finding in findings), tuple(problems), len(resting))
