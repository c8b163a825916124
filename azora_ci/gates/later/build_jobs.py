"""Whether the release is still being built while its migrations wait: production's schema is not changed for images that never come.

The jobs that build run beside database-migrations, so no need of the workflow speaks for them. GitHub is asked right before the migrate
command. Where GitHub cannot be asked the migrations go on with a warning: they passed every gate and were tried, nothing but an unneeded
change is at stake (no traffic moves without the images), and an outage of GitHub's API must not hold up the repair of production.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.clients.github import GitHub
from azora_ci.core.actions import Actions
from azora_ci.core.errors import AzoraError, NotTrueError

NAMES = ("Application build", "Application images", "Build and push")  # of build, images and build-and-push in the workflow
FAILED = frozenset({"failure", "cancelled", "timed_out", "startup_failure", "action_required", "stale"})
PATIENCE_SECONDS = 60.0  # for GitHub's rate limits: the lock of deployments is held meanwhile


def states(jobs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return name -> conclusion (or status) of the jobs that build. A called workflow's are named ``caller / name``. Pure."""
    named = ((str(job.get("name")).rpartition(" / ")[2], job) for job in jobs)
    return {name: str(job.get("conclusion") or job.get("status")) for name, job in named if name in NAMES}


@dataclass(frozen=True)
class BuildJobs:
    """The jobs that build in attempt ``attempt`` of run ``run_id``; ``github`` is None where there is none to ask."""

    github: GitHub | None
    run_id: str
    attempt: int
    actions: Actions
    say: Callable[[str], None]

    def require(self, evidence: dict[str, Any]) -> None:
        """Record how the jobs stand. Raises NotTrueError when one has failed or was cancelled."""
        evidence["build_checked"] = {"checked": False, "jobs": {}, "reason": "there is no GITHUB_TOKEN, or no run of GitHub"}
        if self.github is None:
            self.say(f"- whether the build has failed meanwhile is not asked: {evidence['build_checked']['reason']}")
            return
        try:
            found = states(self.github.jobs_of_attempt(self.run_id, self.attempt))
            reason = None if found else f"GitHub lists none of {', '.join(NAMES)}"
        except AzoraError as error:
            found, reason = {}, f"{error.title}: {error.what}; {error.next_step}"
        evidence["build_checked"] = {"checked": reason is None, "jobs": found, "reason": reason}
        if reason is not None:
            self.actions.warning("Whether the build has failed meanwhile is not known", f"{reason}\nThe migrations go on without that")
            return
        failed = [f"{name}: {state}" for name, state in found.items() if state in FAILED]
        if failed:
            raise NotTrueError(
                "The build has failed meanwhile",
                what="\n".join([*failed, "nothing was applied: this release has no images"]),
                where=f"run {self.run_id}, attempt {self.attempt}",
                next_step="read that job; correct it and release again, or re-run the failed jobs",
            )
        self.say(f"✓ the build has not failed meanwhile: {', '.join(f'{name} {state}' for name, state in found.items())}")
