"""Start a cluster and keep it until SIGTERM: ``python -m azora_ci.rehearsal.kubernetes FOLDER [NODES]``.

One line of JSON says where it is: ``{"kubeconfig": …, "edge": "127.0.0.1:…", "images": …, "components": {name: process id}}``; the same
document is written to ``FOLDER/cluster.json``. An image is an executable, ``images/sha256/HEX``. SIGHUP starts each component again that
somebody ended, and writes the document anew.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal.kubernetes import build
from azora_ci.rehearsal.kubernetes.cluster import Cluster


def main(arguments: list[str]) -> int:
    """Run a cluster; return the exit code."""
    folder, nodes = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 1
    ended, again = threading.Event(), threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    clock = Clock()
    processes = Processes(JobLog(Actions(stream=io.StringIO()), clock))
    try:
        binaries = build.ensure(processes, clock, say=partial(print, file=sys.stderr, flush=True))
        with Cluster(folder, binaries, processes, clock, nodes=nodes) as cluster:
            print(_write(cluster), flush=True)
            while not clock.wait(ended, 0.2):  # signals arrive between waits
                if again.is_set():
                    again.clear()
                    cluster.restart_ended()
                    _write(cluster)
    except AzoraError as error:
        print(f"{error.title}\n{error.message()}", file=sys.stderr)
        return error.exit_code
    return 0


def _write(cluster: Cluster) -> str:
    document = json.dumps(cluster.document())
    part = cluster.folder / "cluster.part"
    part.write_text(document, encoding="utf-8")
    part.rename(cluster.folder / "cluster.json")
    return document


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
