"""Runs commands of the application (audit, build), shows their output and records them as evidence."""

from __future__ import annotations

from typing import Any

from azora_ci.core.config import Command
from azora_ci.core.process import CommandFailedError
from azora_ci.steps.job import Job


def run(job: Job[Any], purpose: str, command: Command) -> None:
    """Run one command and add it to the evidence ``commands``. Raises CommandFailedError for another exit code than 0."""
    command_line = " ".join(command)
    started = job.clock.monotonic()
    with job.actions.group(f"{purpose}: {command_line}"):
        completed = job.processes.run(command, check=False)
    seconds = round(job.clock.monotonic() - started, 1)
    entry = {"purpose": purpose, "argv": list(completed.argv), "exit_code": completed.returncode, "seconds": seconds}
    job.evidence["commands"].append(entry)
    if completed.returncode != 0:
        raise CommandFailedError(completed, next_step=f"repair what the {purpose} command reports, and release a new version")
    job.tick(f"{purpose} command {command_line} ended with exit code 0 after {seconds} s")
