"""Children that end with this process, also when it is killed: a runner's SIGKILL must not leave an open connection to production.

The kernel tells a child of the end of the *thread* that started it (prctl(2), PR_SET_PDEATHSIG), and connections are opened by threads
that end soon after. So one thread, which lives as long as the process, starts them all.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from azora_ci.process import Child, Processes

TERMINATED_WITH_US = ("setpriv", "--pdeathsig", "TERM")  # of util-linux; elsewhere a child ends when it is told to, and only then


@cache
def _starter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


def start(processes: Processes, argv: tuple[str, ...]) -> Child:
    """Start a command that ends with this process; otherwise see ``Processes.start``."""
    if not shutil.which(TERMINATED_WITH_US[0]) or not shutil.which(argv[0]):
        return processes.start(argv)
    return _starter().submit(processes.start, (*TERMINATED_WITH_US, *argv)).result()
