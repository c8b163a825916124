"""Children as this package's other rooms see them: a running one, and how one ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from azora_ci.core.errors import NotTrueError
from azora_ci.core.process.init import GRACE_SECONDS as INIT_SECONDS

GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL; GitHub itself kills a cancelled job 10 s after its first signal


@dataclass(frozen=True)
class Completed:
    """A child that ended: argv, exit code (negative: signal), decoded and masked output."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def ending(returncode: int) -> str:
    """Return a text that says how a process ended: its exit code, or the signal that killed it."""
    return f"exit code {returncode}" if returncode >= 0 else f"killed by signal {-returncode}"


class CommandFailedError(NotTrueError):
    """A command ended with an exit code other than 0."""

    def __init__(self, completed: Completed, *, next_step: str) -> None:
        out, err = completed.stdout.strip()[-2000:], completed.stderr.strip()[-2000:]
        super().__init__(
            f"{Path(completed.argv[0]).name} failed",
            what=f"{ending(completed.returncode)}\nstdout: {out or '(none)'}\nstderr: {err or '(none)'}",
            where=" ".join(completed.argv),
            next_step=next_step,
        )
        self.completed = completed


class Child:
    """A running child. ``stdin`` and ``stdout`` are binary pipes when the caller requested them; other output goes to the log."""

    def __init__(self, popen: subprocess.Popen[bytes], argv: tuple[str, ...]) -> None:
        self.popen = popen
        self.argv = argv
        self.pid = popen.pid
        self.stdin: IO[bytes] | None = popen.stdin
        self.stdout: IO[bytes] | None = popen.stdout
        self.lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.captured = {"stdout": 0, "stderr": 0}  # characters held in ``lines``
        self.pumps: list[threading.Thread] = []

    def poll(self) -> int | None:
        """Return the exit code, or None while the child runs."""
        return self.popen.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the child's end and the last line of its output; return the exit code. Raises TimeoutError after ``timeout`` seconds."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.argv[0]} still runs after {timeout} s") from error
        for pump in self.pumps:
            pump.join(timeout=5)
        return code

    @property
    def stderr_text(self) -> str:
        """Return what the child has written to standard error so far, masked."""
        return "".join(self.lines["stderr"])

    def signal(self, number: int) -> None:
        """Send a signal to the child's whole session, if it still runs."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """End the child and its descendants: SIGTERM, then SIGKILL."""
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(grace)
        self.signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(GRACE_SECONDS)


class IsolatedChild(Child):
    """A running isolated command. It may belong to root, whom we cannot signal: the end of its standard input ends it."""

    def signal(self, number: int) -> None:
        """Have the command and everything that it started end: SIGTERM, then SIGKILL, whatever the number."""
        if self.stdin is not None:
            with contextlib.suppress(OSError):
                self.stdin.close()
        if number == signal.SIGKILL:
            super().signal(number)

    def end(self, grace: float = INIT_SECONDS + GRACE_SECONDS) -> None:
        """End the command and everything that it started; the first process in its namespace has a grace of its own."""
        super().end(grace)
