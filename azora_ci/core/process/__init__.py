"""The only module that starts processes.

Every child has its own session, so that it can be ended with all its descendants; its output is read line by line, masked,
stamped with the time, and kept in the job's log. Children get no secret unless a caller hands it over (``environment.child_environment``).
Code of the application that must run beside a secret is isolated (``isolation``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from azora_ci.core.environment import child_environment
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import isolation as isolated
from azora_ci.core.process.child import Child as Child
from azora_ci.core.process.child import CommandFailedError as CommandFailedError
from azora_ci.core.process.child import Completed as Completed
from azora_ci.core.process.child import IsolatedChild
from azora_ci.core.process.child import ending as ending
from azora_ci.core.process.isolation import Isolation

CAPTURE_LIMIT = 8 * 1024 * 1024  # characters of output kept in memory per stream; the log keeps all of it

C = TypeVar("C", bound=Child)
LineFilter = Callable[[str], str | None]


class Processes:
    """Starts children, writes what they print to the job's log, and ends those that still run at the job's end."""

    def __init__(self, log: JobLog) -> None:
        self.log = log
        self._lock = threading.Lock()
        self._withheld: set[str] = set()
        self._children: list[Child] = []

    def withhold(self, variables: Iterable[str]) -> None:
        """Remove these variables from the environment of every later child, unless a caller passes one in ``env``."""
        self._withheld |= set(variables)

    def run(  # noqa: PLR0913 - the options of a command, all by keyword
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        check: bool = True,
        echo: bool = True,
        user: int | None = None,
        next_step: str = "read the output above",
    ) -> Completed:
        """Run a command to its end. ``env`` is added to the environment without secrets.

        Raises CommandFailedError for an exit code other than 0 (unless ``check=False``), BadInputError when the program cannot
        be started, NotTrueError when it takes longer than ``timeout`` seconds.
        """
        child = self.start(argv, env=env, cwd=cwd, stdin=stdin is not None, echo=echo, user=user)
        feeder = None
        if stdin is not None:
            feeder = threading.Thread(target=_feed, args=(child, stdin), daemon=True)
            feeder.start()
        return self._finish(child, timeout, check=check, next_step=next_step)

    def run_isolated(  # noqa: PLR0913 - the options of a command, all by keyword
        self,
        argv: Sequence[str],
        isolation: Isolation,
        *,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = True,
        echo: bool = True,
        withheld: bool = False,
        next_step: str = "read the output above",
    ) -> Completed:
        """Run code of the application to its end; all that it started has ended, too, when this returns.

        It gets ``env`` and what ``environment.application_environment`` allows, and sees what ``isolation`` says. What it prints is only
        returned when it is ``withheld``: neither shown nor logged. Raises what ``run`` raises, and BadInputError when the machine cannot
        isolate it.
        """
        child = self.start_isolated(argv, isolation, env=env, echo=echo, withheld=withheld)
        if not isolation.active:
            return self._finish(child, timeout, check=check, next_step=next_step)
        completed = self._finish(child, timeout, check=False, next_step=next_step)
        isolated.require_start(completed.returncode, completed.stderr)
        if check and completed.returncode != 0:
            raise CommandFailedError(completed, next_step=next_step)
        return completed

    def start_isolated(
        self,
        argv: Sequence[str],
        isolation: Isolation,
        *,
        env: Mapping[str, str] | None = None,
        echo: bool = True,
        withheld: bool = False,
    ) -> Child:
        """Start code of the application, isolated as in ``run_isolated``, and return at once. The caller ends it, or ``end_all`` does.

        Raises BadInputError when the machine cannot isolate it, or the program cannot be started.
        """
        echo = echo and not withheld
        if not isolation.active:
            variables = isolation.environment(env)
            child = self._spawn(argv, argv, Child, env=variables, cwd=isolation.work, stdin=subprocess.DEVNULL, user=None)
            self._pump_both(child, echo=echo, logged=not withheld)
            return child
        isolated.require_programs()
        wrapped = isolated.argv(root=isolated.is_root(), network=isolation.door is None)
        document = isolation.document(argv, env)
        started = self._spawn(wrapped, argv, IsolatedChild, env=child_environment(), cwd=None, stdin=subprocess.PIPE, user=None)
        self._pump_both(started, echo=echo, logged=not withheld)
        assert started.stdin is not None  # noqa: S101 - PIPE was asked for
        with contextlib.suppress(BrokenPipeError):
            started.stdin.write(document)
            started.stdin.flush()
        return started

    def _finish(self, child: Child, timeout: float | None, *, check: bool, next_step: str) -> Completed:
        try:
            code = child.wait(timeout)
        except TimeoutError:
            raise NotTrueError(
                f"{Path(child.argv[0]).name} took too long",
                what=f"no end after {timeout} s; it was stopped",
                where=" ".join(child.argv),
                next_step=next_step,
            ) from None
        finally:
            child.end()
            self._forget(child)
        completed = Completed(child.argv, code, "".join(child.lines["stdout"]), child.stderr_text)
        if check and code != 0:
            raise CommandFailedError(completed, next_step=next_step)
        return completed

    def start(  # noqa: PLR0913 - the options of a command, all by keyword
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        only_env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bool | int = False,
        stdout_pipe: bool = False,
        echo: bool = False,
        user: int | None = None,
        stderr_filter: LineFilter | None = None,
    ) -> Child:
        """Start a command and return at once. ``stdout_pipe``: its standard output is a binary pipe for the caller.

        ``env`` is added to the environment without secrets; ``only_env`` is all that the child gets, where given. ``user`` is a numeric
        user id to run as. ``stdin`` True makes a binary pipe; an integer is a file descriptor. ``stderr_filter``
        returns what may be kept of a line of standard error. The caller ends the child (``Child.end``) or leaves that to ``end_all``.
        Raises BadInputError when the program cannot be started.
        """
        stdin_source = subprocess.PIPE if stdin is True else subprocess.DEVNULL if stdin is False else stdin
        variables = child_environment(env, self._withheld) if only_env is None else only_env
        child = self._spawn(argv, argv, Child, env=variables, cwd=cwd, stdin=stdin_source, user=user)
        self._pump_both(child, echo=echo, but_not_stdout=stdout_pipe, stderr_filter=stderr_filter)
        return child

    def _spawn(  # noqa: PLR0913 - the options of a command, all by keyword
        self,
        argv: Sequence[str],
        logged: Sequence[str],
        kind: type[C],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        stdin: int,
        user: int | None,
    ) -> C:
        """Start ``argv`` with this whole environment; ``logged`` stands for it in the log. Raises BadInputError."""
        masked_argv = tuple(self.log.masked(part) for part in logged)
        self.log.write(f"$ {' '.join(masked_argv)}")
        try:
            popen = subprocess.Popen(
                list(argv), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env), cwd=cwd, start_new_session=True,
                user=user,
            )  # fmt: skip
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise BadInputError(
                f"{Path(argv[0]).name} cannot be started",
                what=str(error),
                where=" ".join(masked_argv),
                next_step="install the program, or correct the command in the configuration",
            ) from error
        child = kind(popen, masked_argv)
        with self._lock:
            self._children.append(child)
        return child

    def _pump_both(
        self, child: Child, *, echo: bool, logged: bool = True, but_not_stdout: bool = False, stderr_filter: LineFilter | None = None
    ) -> None:
        assert child.popen.stderr is not None  # noqa: S101 - PIPE was asked for
        write = self.log.write if logged else _drop
        self._pump(child, child.popen.stderr, "stderr", echo, write, stderr_filter or str)
        if not but_not_stdout:
            assert child.popen.stdout is not None  # noqa: S101 - PIPE was asked for
            child.stdout = None
            self._pump(child, child.popen.stdout, "stdout", echo, write)

    def start_detached(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        cwd: Path | None = None,
        user: int | None = None,
    ) -> int:
        """Start a process that outlives this job (a service of the local target) and return its process id.

        ``env`` is the whole environment that it gets; its output goes to ``log``. ``user`` is a numeric user id to run as.
        """
        with log.open("ab") as file:
            popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                user=user,
            )
        self.log.write(f"$ {' '.join(self.log.masked(part) for part in argv)} & [{popen.pid}]")
        return popen.pid

    def end_all(self) -> None:
        """End every child that still runs, with its descendants."""
        with self._lock:
            children, self._children = self._children, []
        for child in children:
            child.signal(signal.SIGTERM)
        for child in children:
            child.end()

    def _forget(self, child: Child) -> None:
        with self._lock:
            if child in self._children:
                self._children.remove(child)

    def _pump(
        self, child: Child, stream: IO[bytes], name: str, echo: bool, write: Callable[[str], None], line_filter: LineFilter = str
    ) -> None:
        lines = child.lines[name]

        def keep(line: str) -> None:
            lines.append(line)
            child.captured[name] += len(line)
            while child.captured[name] > CAPTURE_LIMIT and len(lines) > 1:
                child.captured[name] -= len(lines.pop(0))

        pump = threading.Thread(target=self._pump_lines, args=(stream, keep, echo, write, line_filter), daemon=True)
        child.pumps.append(pump)
        pump.start()

    def _pump_lines(
        self, stream: IO[bytes], keep: Callable[[str], None], echo: bool, write: Callable[[str], None], line_filter: LineFilter
    ) -> None:
        wrapping = self.log.actions.foreign_output() if echo else contextlib.nullcontext()
        with stream, wrapping:
            for raw in stream:
                kept = line_filter(raw.decode("utf-8", errors="replace"))
                if kept is None:
                    continue
                line = self.log.masked(kept)
                keep(line)
                write(line.rstrip("\r\n"))
                if echo:
                    self.log.actions.print(f"  {line.rstrip()}")


def _drop(_line: str) -> None:
    pass


def _feed(child: Child, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        if child.stdin is not None:
            child.stdin.write(data)
            child.stdin.close()


def is_alive(pid: int) -> bool:
    """Return whether a process with this id runs (a zombie does not)."""
    return birth(pid) is not None


def send_signal(pid: int, number: int) -> None:
    """Send a signal to the session of a detached process, if it still runs."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def birth(pid: int) -> str | None:
    """Return the start time of a running process in clock ticks since boot, or None. It tells a reused process id from the old one."""
    try:
        parts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if parts[0] in {"Z", "X"} else parts[19]


@contextlib.contextmanager
def undisturbed(*, deliver: bool = True) -> Iterator[None]:
    """Hold SIGINT and SIGTERM back inside the block, so that a cancellation does not interrupt steps that belong together.

    The first signal that arrived is raised again at the end, or dropped with ``deliver=False`` (when the job ends anyway). Handlers
    are replaced rather than signals blocked: a child would inherit the blocking. Outside the main thread no signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda received, _frame: arrived.append(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if deliver and arrived:
        signal.raise_signal(arrived[0])
