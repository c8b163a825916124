"""Children that end with this process, also when it is killed: a runner's SIGKILL must not leave an open connection to production.

The kernel signals a child at the end of the *thread* that started it (prctl(2), PR_SET_PDEATHSIG). Connections are opened by threads
that end soon after, so a single thread, which lives as long as the process, starts all of these children.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from azora_ci.core.process import Child, Processes

TERMINATED_WITH_US = ("setpriv", "--pdeathsig", "TERM")  # part of util-linux; without it a child ends only when it is ended


@cache
def _starter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


def start(processes: Processes, argv: tuple[str, ...]) -> Child:
    """Start a command that ends with this process, and return the child. Raises what ``Processes.start`` raises."""
    if not shutil.which(TERMINATED_WITH_US[0]) or not shutil.which(argv[0]):
        return processes.start(argv)
    return _starter().submit(processes.start, (*TERMINATED_WITH_US, *argv)).result()
