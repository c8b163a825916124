"""Runs commands of the application (audit, build) and shows their output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import Command
from azora_ci.core.process import CommandFailedError, Processes


def run(actions: Actions, processes: Processes, clock: Clock, purpose: str, commands: Iterable[Command]) -> Iterator[dict[str, Any]]:
    """Run commands in their order and yield the evidence of each one: purpose, argv, exit code, seconds.

    Raises CommandFailedError for another exit code than 0, after the evidence of that command was yielded; later commands are not run.
    """
    for command in commands:
        command_line = " ".join(command)
        started = clock.monotonic()
        with actions.group(f"{purpose}: {command_line}"):
            completed = processes.run(command, check=False)
        seconds = round(clock.monotonic() - started, 1)
        yield {"purpose": purpose, "argv": list(completed.argv), "exit_code": completed.returncode, "seconds": seconds}
        if completed.returncode != 0:
            raise CommandFailedError(completed, next_step=f"repair what the {purpose} command reports, and release a new version")
        processes.log.say(f"✓ {purpose} command {command_line} ended with exit code 0 after {seconds} s")
