"""What a command leaves running when it ends: found and ended, however it forked or called ``setsid``.

Linux makes the nearest ancestor that is a "child subreaper" the parent of a process whose parent ended, see prctl(2); else it would be
init, and nobody could tell whose process it was. A command that may act as root, or that may ask a Docker daemon or systemd to start
something, can still leave what is no descendant of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LONGEST_SECONDS = 3.0  # a cancelled job has 7 s for all of its end
PAUSE_SECONDS = 0.01
OUTRUN_ROUNDS = 500  # of well under a millisecond each
UNLISTED = "what forks faster than processes can be listed"

Process = tuple[int, int]  # its id, and its start in clock ticks since boot: ids are used again

_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def none_left(clock: Clock, say: Callable[[str], None]) -> Iterator[None]:
    """Kill, at the end of the block, what it left running of what it started. Only the calling thread may start children meanwhile.

    Raises NotTrueError that names what could not be ended, after an error of the block too.
    """
    earlier = _children(_processes())
    _adopt_orphans(on=True)
    try:
        yield
    finally:
        try:
            ended, remaining = _end(earlier, clock)
        finally:
            _adopt_orphans(on=False)
        if ended:
            say(f"- ended what the command left running: {len(ended)} processes, {', '.join(sorted(ended)[:20])}")
        if remaining:
            raise NotTrueError(
                "The command left processes that cannot be ended",
                what=", ".join(sorted(remaining)[:20]),
                where=f"this runner, after {LONGEST_SECONDS:g} s of SIGKILL",
                next_step="end in the command what it starts, before it ends; what stays could change what this job hands over",
            )


def _adopt_orphans(*, on: bool) -> None:
    if _LIBC.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(on), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "PR_SET_CHILD_SUBREAPER")


def _end(earlier: set[Process], clock: Clock) -> tuple[set[str], set[str]]:
    """Kill every child that is not an ``earlier`` one, with its descendants, until none is left. Return names of dead and survivors."""
    ended: set[str] = set()
    left: dict[Process, tuple[str, int, str]] = {}
    for _ in clock.ticks(PAUSE_SECONDS, LONGEST_SECONDS):
        processes = _processes()
        left = _with_descendants(_children(processes) - earlier, processes)
        if not left and _outrun({pid for pid, _ in earlier}):
            return ended, set()
        ended |= _named(left, "ZX")
        for pid, _ in left:
            _kill(pid)
        _outrun({pid for pid, _ in earlier})
    # Where only the dead are seen at the end, what they left is younger than the list of processes.
    remaining = _named(left, "ZX") or _named(left) or {UNLISTED}
    return ended - remaining, remaining


def _outrun(earlier: set[int]) -> bool:
    """Kill children as they come, faster than a process forks: listing all of the machine is too slow for what only lives to do that.

    Return whether there was none from the first look on: a list of all of the machine, which takes a while, may have missed one.
    """
    # Of a process's threads it is the main one that inherits orphans. The files of all, of which there may be dozens, take too long.
    path = Path(f"/proc/self/task/{os.getpid()}/children")  # proc(5)
    if not path.exists():  # a kernel without CONFIG_PROC_CHILDREN: the list alone tells
        return True
    with path.open(encoding="ascii") as children:
        for looks in range(OUTRUN_ROUNDS):
            children.seek(0)
            found = {int(pid) for pid in children.read().split()} - earlier
            if not found:
                return looks == 0
            for pid in found:
                _kill(pid)
    return False


def _kill(pid: int) -> None:
    """End a process, and take its exit where it is our child: the dead count as processes until then."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _named(processes: dict[Process, tuple[str, int, str]], without: str = "") -> set[str]:
    """Return the names of processes that are not in one of these states."""
    return {f"{name} [{pid}]" for (pid, _), (name, _, state) in processes.items() if state not in without or not without}


def _processes() -> dict[Process, tuple[str, int, str]]:
    """Return every process of the machine: name, parent's id, state (proc(5))."""
    processes = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                name, _, rest = (folder / "stat").read_text(encoding="utf-8", errors="replace").partition("(")[2].rpartition(")")
                fields = rest.split()
                processes[int(folder.name), int(fields[19])] = (re.sub(r"[^\w.-]", "?", name), int(fields[1]), fields[0])
    return processes


def _children(processes: dict[Process, tuple[str, int, str]]) -> set[Process]:
    """Return our own children."""
    return {process for process, (_, parent, _) in processes.items() if parent == os.getpid()}


def _with_descendants(roots: set[Process], processes: dict[Process, tuple[str, int, str]]) -> dict[Process, tuple[str, int, str]]:
    """Return these processes and all that descend from them."""
    ids = {pid for pid, _ in roots}
    while further := {pid for (pid, _), (_, parent, _) in processes.items() if parent in ids and pid not in ids}:
        ids |= further
    return {process: facts for process, facts in processes.items() if process[0] in ids}
