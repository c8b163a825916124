"""Whether the version that runs is still healthy on the schema that the migrations left: asked once more before any traffic moves.

gradual-rollout asks it: database-migrations has no access to hosts, and nothing stands between its end and this beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.config import Service
from azora_ci.core.errors import NotTrueError
from azora_ci.gates import reachability
from azora_ci.gates.production import as_serving, expected_versions
from azora_ci.gates.reachability import Reached
from azora_ci.targets.journal import History


def healthy_before(checks: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the public health addresses that pre-deployment-validation, whose evidence ``checks`` is, found healthy. Pure."""
    return frozenset(str(check["url"]) for check in checks if check["kind"] == "endpoint" and check["passed"])


@dataclass(frozen=True)
class RunningVersion:
    """The version that runs, as the target's history has it. ``before``: addresses that were healthy before the migrations."""

    history: History
    services: Sequence[Service]
    before: Collection[str]
    actions: Actions
    say: Callable[[str], None]

    def require_healthy(self, evidence: dict[str, Any], attempts: Iterable[object]) -> None:
        """Ask, again while it is not healthy; record the answers. Raises NotTrueError where it was healthy before and is not now."""
        for _ in attempts:
            found = self._ask()
            sick = [finding for finding in found if not finding.passed]
            if not sick:
                break
        version = self.history.releases[self.history.serving or ""].version
        evidence["running_version"] = {
            "version": version,
            "healthy": bool(found) and not sick,
            "endpoints": [{"url": finding.url, "passed": finding.passed, "conclusion": finding.conclusion} for finding in found],
        }
        told = "\n".join(f"{finding.url}: {finding.conclusion}" for finding in sick)
        if any(finding.url in self.before for finding in sick):
            raise NotTrueError(
                "The running version is not healthy on the new schema",
                what=f"{told}\nit was healthy before the migrations; no traffic was moved, users are still on {version}",
                where=f"public health addresses of {version}",
                next_step=f"read the logs of {version} and what database-migrations applied; undo that by hand, or, where the new version "
                "is the repair, re-run all jobs with PRODUCTION_MAY_BE_DOWN=true",
            )
        if sick or not found:
            reason = told or "it has no public health address"
            self.actions.warning(
                "Whether the running version bears the new schema is not known", f"not healthy before it, either: {reason}"
            )
            return
        self.say(f"✓ the running version {version} is healthy on the new schema")

    def _ask(self) -> list[Reached]:
        versions = expected_versions(self.history)
        return [reachability.endpoint(service, versions) for service in as_serving(self.services, self.history)]
