"""Runs commands of the application and shows their output, and judges what another job reports of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import Command
from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import CommandFailedError, Processes, leftovers


def run(actions: Actions, processes: Processes, clock: Clock, purpose: str, commands: Iterable[Command]) -> Iterator[dict[str, Any]]:
    """Run commands in their order and yield the evidence of each one: purpose, argv, exit code, seconds.

    Nothing that a command started outlives it (``leftovers``). Raises CommandFailedError for another exit code than 0, after the evidence
    of that command was yielded; later commands are not run.
    """
    for command in commands:
        command_line = " ".join(command)
        started = clock.monotonic()
        with actions.group(f"{purpose}: {command_line}"), leftovers.none_left(clock, processes.log.say):
            completed = processes.run(command, check=False)
        seconds = round(clock.monotonic() - started, 1)
        yield {"purpose": purpose, "argv": list(completed.argv), "exit_code": completed.returncode, "seconds": seconds}
        if completed.returncode != 0:
            raise CommandFailedError(completed, next_step=f"repair what the {purpose} command reports, and release a new version")
        processes.log.say(f"✓ {purpose} command {command_line} ended with exit code 0 after {seconds} s")


def require_success(reported: Sequence[Mapping[str, Any]], demanded: Mapping[str, Sequence[Command]], job: str) -> None:
    """Raise NotTrueError unless a job reports every demanded command (purpose -> commands), each with exit code 0."""
    failed = [entry for entry in reported if entry["exit_code"] != 0]
    lines = [f"{entry['purpose']}: {' '.join(entry['argv'])} ended with exit code {entry['exit_code']}" for entry in failed]
    ended = {(entry["purpose"], tuple(entry["argv"])) for entry in reported}
    not_run = [(purpose, command) for purpose, commands in demanded.items() for command in commands if (purpose, command) not in ended]
    lines += [f"{purpose}: {' '.join(command)} was not run" for purpose, command in not_run]
    if lines:
        raise NotTrueError(
            "The application does not build",
            what="\n".join(lines),
            where=f"the log of the job {job}, whose evidence this is",
            next_step="repair what the command reports, and release a new version",
        )


def require_build(evidence: Mapping[str, Any], demanded: Mapping[str, Sequence[Command]], *, needs_tree: bool) -> None:
    """Raise NotTrueError unless the job build reports success of every demanded command, images that can be built, and the tree."""
    require_success(evidence["commands"], demanded, "build")
    problems = [entry["problem"] for entry in evidence["dockerfiles"] if entry["problem"]]
    if problems:
        raise NotTrueError(
            "Images cannot be built",
            what="\n".join(f"{problem['where']}: {problem['what']}" for problem in problems),
            where=", ".join(problem["where"] for problem in problems),
            next_step="\n".join(dict.fromkeys(problem["next"] for problem in problems)),
        )
    if evidence["tree"] is None and needs_tree:
        raise NotTrueError(
            "The application's tree is missing",
            what="the job build handed no tree over, and the migrations need it",
            where="fragment of build",
            next_step="re-run all jobs",
        )
