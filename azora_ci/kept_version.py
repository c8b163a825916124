"""Is the version before still there? Asked before traffic goes back to it, by hand or because smoke tests failed."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci.clock import Clock
from azora_ci.config import DeployConfig
from azora_ci.health import OLD
from azora_ci.probes import Prober
from azora_ci.targets import Target
from azora_ci.targets.journal import Deployed

PROBE_SECONDS = 5.0  # for the answers of all its instances, which are asked at once


@dataclass(frozen=True)
class Kept:
    """What is left of a version: names of its instances, how many are healthy, and what is wrong with the others or missing."""

    names: tuple[str, ...]
    healthy: int
    sick: tuple[str, ...]

    def told(self, version: str) -> str:
        """Return a sentence with the numbers."""
        found = f"{self.healthy} of {len(self.names)} instances of {version} are healthy"
        return "; ".join((found, *self.sick))


def look(target: Target, config: DeployConfig, clock: Clock, *, before: Deployed, leaving: str) -> Kept:
    """Ask every instance of the release before for its health and version; ``leaving``: id of the release that serves now.

    Its services are those it was built with that the configuration still knows: what it has not cannot be missing, and nobody knows
    how to ask what the configuration does not name. A service of which it has no instance, on a host that has instances of either
    release, counts as sick.
    """
    services = {service.id for service in config.services if service.id in before.digests}
    found = [one for one in target.instances(before.id) if one.service in services]
    findings = Prober(clock).probe([target.endpoint(one, OLD) for one in found], PROBE_SECONDS)
    hosts = {one.host for one in (*found, *target.instances(leaving))} or {""}
    lacking = {(service, host) for service in services for host in hosts} - {(one.service, one.host) for one in found}
    sick = [f"{one.endpoint.name}: {one.detail}" for one in findings if not one.passed]
    if not services:
        sick.append(f"{before.version} has no service that the configuration names")
    sick += [f"{service}{f' on {host}' if host else ''}: no instance of {before.version} is there" for service, host in sorted(lacking)]
    return Kept(tuple(one.name for one in found), sum(one.passed for one in findings), tuple(sick))
