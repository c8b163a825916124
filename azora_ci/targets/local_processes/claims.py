"""Processes of which there is one at most: a shell claims a file before it becomes the program, so that a second one ends at once.

The files of a claim: ``<claim>`` is locked while the program runs, which the kernel sees to; ``<claim>.pid`` holds process id and birth of
the process that has it; ``<claim>.code`` holds the exit code of a job that ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock
from azora_ci.core.config import Service
from azora_ci.core.process import Processes, birth
from azora_ci.targets.local_processes import processes as local
from azora_ci.targets.node_parts import CREATED, ENDED, RUNNING, Facts, JobStatus

_CLAIM = 'exec 9>>"$0"; flock -n 9 || exit 75; '
_OWNER = 'echo "$$ $(cut -d" " -f22 "/proc/$$/stat")" > "$0.pid"; '  # the second is what ``process.birth`` returns
# A job that was started is not started again. Its shell survives SIGTERM, which goes to the whole session, to note the exit code.
JOB = f'{_CLAIM}[ ! -e "$0.pid" ] || exit 75; trap : TERM; {_OWNER}"$@"; echo $? > "$0.code"'
SINGLETON = f'{_CLAIM}{_OWNER}exec "$@"'
KILLED = 137  # exit code of a program that SIGKILL ended, as shells and Docker have it


def guarded(service: Service, claim: Path) -> Service:
    """Return a singleton whose command makes its claim first."""
    claim.parent.mkdir(parents=True, exist_ok=True)
    return replace(service, entrypoint=("sh", "-c", SINGLETON, str(claim)), command=service.argv)


def start(processes: Processes, argv: tuple[str, ...], script: str, facts: Facts, *, options: Mapping[str, Any], clock: Clock) -> None:
    """Start a program and wait until its claim is made, by it or by another process. ``options``: env and cwd of ``start_detached``."""
    pid = processes.start_detached(("sh", "-c", script, facts["claim"], *argv), log=Path(facts["log"]), **options)
    while owner(facts) is None and birth(pid) is not None:
        clock.sleep(0.01)


def owner(facts: Facts) -> dict[str, Any] | None:
    """Return process id and birth of the process that got a claim last, whether it runs or not; None before there is one."""
    try:
        pid, born = Path(f"{facts['claim']}.pid").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return {"pid": int(pid), "birth": born}


def status(facts: Facts) -> JobStatus | None:
    """Return the state of a job; None when its process is gone and left no exit code."""
    process = owner(facts)
    if process is None:
        return JobStatus(CREATED)
    running = local.is_running(process)  # before the exit code is read, which a job that ends leaves in between
    begun, code = Path(f"{facts['claim']}.pid"), Path(f"{facts['claim']}.code")
    text = code.read_text(encoding="utf-8").strip() if code.exists() else ""
    if text:
        return JobStatus(ENDED, int(text), code.stat().st_mtime - begun.stat().st_mtime)
    return JobStatus(RUNNING) if running else None


def end(facts: Facts, grace: float, clock: Clock) -> None:
    """End a job that runs."""
    process = owner(facts)
    if process is None:
        return
    local.stop([(process, grace)], clock, lambda: None)
    code = Path(f"{facts['claim']}.code")
    if not code.exists():
        code.write_text(f"{KILLED}\n", encoding="utf-8")
