"""What a release does once, beside the stages: its jobs, each at its moment, and the exchange of its singletons."""

from __future__ import annotations

from collections.abc import Callable

from azora_ci.core.config import BEFORE_ROLLOUT, Service
from azora_ci.core.errors import NotTrueError
from azora_ci.targets import jobs
from azora_ci.targets.base import Target
from azora_ci.targets.release import Release


def run_job(target: Target, service: Service, release: Release, say: Callable[[str], None]) -> str:
    """Run a job and return a sentence about it. Raises NotTrueError when it did not end with exit code 0 in its time."""
    say(f"--- job {service.id}, {service.when}, at most {service.timeout_seconds:g} s")
    target.run_once(service.id, release)
    deployed = target.current().releases[release.id]
    job = next(job for job in jobs.evidence(deployed) if job["service"] == service.id)
    if not job["passed"]:
        state = "the new version has had no traffic" if job["when"] == BEFORE_ROLLOUT else f"{release.version} stays, with 100 % of traffic"
        raise NotTrueError(
            f"Job {service.id} failed",
            what=f"{job['summary']}; {state}; end of its log:\n{job['log_tail'] or '(empty)'}",
            where=f"{job['log']} in the job's artifact",
            next_step="look at what it did, which nothing undoes; this deployment does not run it again: correct it and tag a new version, "
            "or start a new run of this one, which has another deployment id",
        )
    return str(job["summary"])


def exchange(target: Target, service: Service, release: Release, say: Callable[[str], None]) -> str:
    """Exchange a singleton and return a sentence about it. Raises NotTrueError when the old one had to be started again."""
    say(f"--- exchange of {service.id}")
    target.run_once(service.id, release)
    return f"{service.id}: the instance of {release.version} runs, and no other"
