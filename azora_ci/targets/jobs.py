"""Jobs of a release on one node: each runs once per deployment, whatever happens to the runner that started it.

The journal gets three entries, each before what follows from it: INTENDED, then the container or folder of the job is created, whose
name is the same for every runner; CREATED, then the job is started; ENDED with its exit code. So a later runner knows where it stands:
without CREATED nothing was started, and with CREATED a job of which nothing is left may have run, which only a person can find out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from azora_ci.core.clock import parse_rfc3339, rfc3339
from azora_ci.core.config import Service
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.base import TargetContext
from azora_ci.targets.journal import Deployed
from azora_ci.targets.node_parts import CREATED, ENDED, RUNNING, Facts, JobStatus, Parts
from azora_ci.targets.release import Release

INTENDED = "intended"
POLL_SECONDS = 0.2
TAIL_CHARACTERS = 2000  # of a job's last lines that journal and evidence keep
TAKEN_BACK = "it still ran when its release was taken back, and was ended"


class Jobs:
    """Runs and ends the jobs of one node. An entry is what the journal holds of a job."""

    def __init__(self, context: TargetContext, parts: Parts) -> None:
        self._context, self._clock, self._parts = context, context.clock, parts
        self._runner = parts.runner

    def run(self, service: Service, release: Release) -> None:
        """Run a job to its end, or go on with what an earlier runner left of it; the journal then holds how it ended.

        Raises NotTrueError when it was started and nothing is left that tells how it ended.
        """
        entry = self._entry(service.id, release.id)
        if entry.get("state") == ENDED:
            self._context.log.say(f"{summary(entry)}: it ran in an earlier attempt and is not run again")
            self._keep_log(service.id, release.id, entry)
            return
        if not entry:
            self._note(service.id, release.id, INTENDED, {"when": service.when, "host": self._parts.host})
        if entry.get("state") == CREATED and self._status(service.id, release, entry).name != CREATED:
            self._context.log.say(f"job {service.id}: an earlier attempt started it; waiting for its end")
        else:
            self._start(service, release)
        self._await_end(service, release)

    def _entry(self, service_id: str, release_id: str) -> dict[str, Any]:
        return self._parts.journal.history().releases[release_id].jobs.get(service_id, {})

    def _note(self, service_id: str, release_id: str, state: str, facts: Mapping[str, Any]) -> None:
        entry = {**self._entry(service_id, release_id), **facts, "service": service_id, "state": state}
        known = {name: value for name, value in entry.items() if name not in {"at", "event", "deployment_id"}}
        self._parts.journal.add(rfc3339(self._clock.now()), "job", release_id, **known)

    def _start(self, service: Service, release: Release) -> None:
        self._runner.prepare(service, release)
        self._keep_alive()
        facts = self._runner.create_job(service, release)
        self._note(service.id, release.id, CREATED, {**facts, "started_at": rfc3339(self._clock.now())})
        if self._status(service.id, release, facts).name == CREATED:
            self._runner.start_job(service, release)
        self._context.log.say(f"job {service.id} of {release.version} was started")

    def _keep_alive(self) -> None:
        self._parts.checkpoint()
        self._parts.lock.renew()

    def _status(self, service_id: str, release: Release, entry: Facts) -> JobStatus:
        status = self._runner.job_status(entry)
        if status is None:
            raise NotTrueError(
                "Nothing is left of a job that was started",
                what=f"job {service_id} of {release.version} ({release.id}) was started; neither it nor its exit code is there any more, "
                "so it may have done all of its work, some or none. It is not started a second time",
                where=self._parts.host or "this machine",
                next_step="find out what it did, and undo or finish it; then start a new run, which has another deployment id and runs it",
            )
        return status

    def _await_end(self, service: Service, release: Release) -> None:
        entry = self._entry(service.id, release.id)
        deadline = parse_rfc3339(entry["started_at"]) + timedelta(seconds=service.timeout_seconds)
        reason = None
        while (status := self._status(service.id, release, entry)).name != ENDED:
            if reason is None and self._clock.now() > deadline:
                reason = f"no end within {service.timeout_seconds:g} s: it was ended"
                self._runner.end_job(entry, service.stop_grace_seconds)
            self._keep_alive()
            self._clock.sleep(POLL_SECONDS)
        self._note_end(service.id, release.id, status, reason)

    def _note_end(self, service_id: str, release_id: str, status: JobStatus, reason: str | None) -> None:
        entry = self._entry(service_id, release_id)
        ended = {"exit_code": status.exit_code, "seconds": round(status.seconds, 3), "reason": reason}
        log = self._keep_log(service_id, release_id, entry)
        tail = self._runner.log_tail(entry)[-TAIL_CHARACTERS:]
        self._note(service_id, release_id, ENDED, {**ended, "log": log, "log_tail": tail})
        self._context.log.say(f"{summary(self._entry(service_id, release_id))}; end of its log:\n{tail or '(empty)'}")

    def _keep_log(self, service_id: str, release_id: str, entry: Facts) -> str:
        name = f"jobs/{release_id}-{service_id}.log"
        self._runner.keep_log(entry, self._context.log_dir / name)
        return name

    def end(self, deployed: Deployed, grace: Callable[[str], float]) -> list[str]:
        """End the jobs of a release that still run; return a sentence for each. ``grace``: service id -> seconds between the signals."""
        lines = []
        for service_id, entry in deployed.jobs.items():
            status = self._runner.job_status(entry) if entry["state"] == CREATED else None
            if status is None or status.name == CREATED:
                continue  # it ended before, or was never started, or nothing is left of it
            reason = None
            if status.name == RUNNING:
                reason = TAKEN_BACK
                self._runner.end_job(entry, grace(service_id))
                status = self._runner.job_status(entry) or status
            self._note_end(service_id, deployed.id, status, reason)
            lines.append(summary(self._entry(service_id, deployed.id)))
        return lines


def summary(entry: Mapping[str, Any]) -> str:
    """Return a sentence about a job from its journal entry."""
    name = f"job {entry['service']} ({entry['when']})"
    if entry["state"] != ENDED:
        return f"{name} {'was started, and its end was not seen' if entry['state'] == CREATED else 'was not started'}"
    reason = f": {entry['reason']}" if entry["reason"] else ""
    return f"{name} ended after {entry['seconds']:.1f} s with exit code {entry['exit_code']}{reason}"


def evidence(deployed: Deployed | None) -> list[dict[str, Any]]:
    """Return what the journal holds of a release's jobs, as the rollout's evidence has it; what is not known is None."""
    names = ("service", "when", "host", "state", "exit_code", "seconds", "reason", "log", "log_tail")
    return [
        {**{name: entry.get(name) for name in names}, "passed": _passed(entry), "summary": summary(entry)}
        for entry in (deployed.jobs.values() if deployed else ())
    ]


def _passed(entry: Mapping[str, Any]) -> bool:
    return entry["state"] == ENDED and entry["exit_code"] == 0 and entry["reason"] is None
