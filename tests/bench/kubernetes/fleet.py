"""Many Rollouts in one release: what our process takes of a core, and what it asks of the API server."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import Child, Processes
from tests.bench.kubernetes import audit, world
from tests.bench.kubernetes.audit import Audited, Request
from tests.bench.kubernetes.scenes import Size

PODS = 2  # of each Rollout
SAMPLE_SECONDS = 0.05
SECONDS = 1200.0  # for a release
WINDOW = 10.0  # seconds of the busiest window that is told

APP = """#!{python} -S
import os, socket
body = b'{{"status": "healthy", "version": "%s"}}' % os.environ.get("VERSION", "0.0.1").encode()
head = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body)
server = socket.create_server((os.environ["POD_IP"], 8080), backlog=128)
while True:
    link, _ = server.accept()
    with link:
        link.settimeout(1)
        try:
            if link.recv(65536):
                link.sendall(head + body)
        except OSError:
            pass
"""


class Place(Protocol):
    """Where the Rollouts are made."""

    cluster: Audited
    folder: Path
    processes: Processes


def fleet(place: Place, size: Size) -> dict[str, Any]:
    """Release so many Rollouts of two pods by the real step, and count. Stages have the length of ``fleet_stage``, probes the interval of
    production.

    ``cpu_share``: CPU of our process, start included, over the seconds of the step. ``requests_per_second``: every request of our
    account that the API server's audit log holds, probes of pods included, over the same seconds.
    """
    clock = Clock()
    services = tuple(f"svc_{number:02}" for number in range(1, size.rollouts + 1))
    inner = small_pods()(place.cluster, place.folder, services=services, replicas=PODS, timeout=SECONDS, lease_seconds=30)
    inner.install()
    steps = world.steps(inner, place.folder, place.processes)
    try:
        world.promote(inner.target(inner.restricted()), steps.next_release())
        begun, begun_at = clock.monotonic(), clock.now().timestamp()
        more = {"HEALTH_CHECK_INTERVAL": str(size.fleet_interval), "HEALTH_CHECK_TIMEOUT": "300"}
        step = steps.start(steps.next_release(), (size.fleet_stage,) * 3, **more)
        cpu = cpu_seconds(step, clock)
        seconds, ended_at = clock.monotonic() - begun, clock.now().timestamp()
        evidence = steps.finish(step, 0)
    finally:
        world.remove(place.cluster, inner.namespace, clock)
    user = f"system:serviceaccount:{inner.namespace}:{world.ACCOUNT}"
    requests = [each for each in audit.requests_of(place.cluster.audit, user) if begun_at <= each.at <= ended_at]
    if not requests:
        raise NotTrueError("Nothing was counted", what=f"no request of {user}", where="audit.log", next_step="is the audit log on?")
    driving = [each for each in requests if not each.probe]
    return {
        "rollouts": len(services),
        "pods": PODS * len(services),
        "stages_seconds": [round(stage["duration_minutes"] * 60, 1) for stage in evidence["stages"]],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 2),
        "cpu_share": round(cpu / seconds, 4),
        "requests_per_second": round(len(requests) / seconds, 2),
        "requests_per_second_without_probes": round(len(driving) / seconds, 2),
        "busiest_per_second": busiest(requests),
        "busiest_per_second_without_probes": busiest(driving),
        "by_kind": dict(Counter(each.kind for each in requests).most_common()),
    }


def small_pods() -> Any:
    """Return the project's own namespace of tests with pods that take little of the machine: nodes ask each five times a second."""
    tests: Any = importlib.import_module("tests.support.kubernetes_target")

    class Small(tests.World):  # type: ignore[misc] # of the tests, which have no types
        def image(self, behaviour: str) -> str:
            path = self.folder / f"app-{behaviour}"
            path.write_text(APP.format(python=sys.executable), encoding="utf-8")
            path.chmod(0o755)
            return str(self.cluster.image(path).partition("@")[2])

    return Small


def cpu_seconds(step: Child, clock: Clock) -> float:
    """Return the CPU seconds that a process has had when it ends, its children's included; the last moments may be missing."""
    total, process = 0.0, psutil.Process(step.pid)
    while step.poll() is None:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            break
        total = max(total, times.user + times.system + times.children_user + times.children_system)
        clock.sleep(SAMPLE_SECONDS)
    return total


def busiest(requests: Sequence[Request]) -> float:
    """Return the requests a second in the busiest window of ``WINDOW`` seconds."""
    most, first = 0, 0
    for last, request in enumerate(requests):
        while request.at - requests[first].at > WINDOW:
            first += 1
        most = max(most, last - first + 1)
    return round(most / WINDOW, 2)
