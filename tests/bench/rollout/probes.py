"""A thousand real HTTP endpoints, watched by the real loop of a stage: drift of its ticks, and how busy it keeps a core.

Endpoints and watcher are processes of their own, ``python -m tests.bench.rollout.probes endpoints|watch …``, so that the
watcher's processor time is its own.
"""

from __future__ import annotations

import asyncio
import io
import json
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.health.answers import Endpoint
from azora_ci.health.workers import WorkerState
from azora_ci.rollout.decision import Limits, Stage
from azora_ci.rollout.watch import Rules, StageWatch, Subject
from azora_ci.targets.base import Instance, Observation
from azora_ci.targets.release import Release

VERSION = "1.0.0"
RELEASE = Release("1764000000-000001", f"v{VERSION}", {})
PER_PORT_FILE = 200  # descriptors to spare
MODULE = "tests.bench.rollout.probes"


def probes(folder: Path, endpoints: int, seconds: float, interval: float) -> dict[str, Any]:
    """Start endpoints and watcher and return what the watcher says of itself. Raises NotTrueError when one fails."""
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock(), folder / "probes.log"))
    try:
        server = processes.start((sys.executable, "-m", MODULE, "endpoints", str(endpoints)), stdout_pipe=True)
        assert server.stdout is not None
        ports = server.stdout.readline().decode()
        watch = (sys.executable, "-m", MODULE, "watch", str(seconds), str(interval), str(folder / "watch.log"))
        completed = processes.run(watch, stdin=ports.encode(), timeout=seconds + 120, echo=False)
    finally:
        processes.end_all()
    figures: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    if figures["endpoints"] != endpoints or figures["probes_failed"] or figures["ticks_missed"]:
        raise NotTrueError(
            "Not all endpoints were healthy at every tick", what=str(figures), where="bench rollout", next_step="measure on a quiet machine"
        )
    return figures


async def serve(number: int) -> None:
    """Answer healthy on so many ports, until ended; the ports are printed as JSON."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(_Healthy, "127.0.0.1", 0) for _ in range(number)]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.Event().wait()


class _Healthy(asyncio.Protocol):
    """Answers one request and closes, as a probe asks for."""

    body = json.dumps({"status": "healthy", "version": VERSION}).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if b"\r\n\r\n" in self._buffer and isinstance(self._transport, asyncio.Transport):
            self._transport.write(self.answer)
            self._transport.close()


@dataclass
class NotingClock(Clock):
    """The machine's clock; notes how late every tick came, in seconds."""

    late: list[float] = field(default_factory=list)

    def ticks(self, interval: float, duration: float) -> Iterator[float]:
        """Yield as ``Clock`` does."""
        for elapsed in super().ticks(interval, duration):
            self.late.append(elapsed - int(elapsed / interval + 1e-6) * interval)  # never early: Clock sleeps until a tick is due
            yield elapsed


@dataclass(frozen=True)
class Many:
    """A ``targets.Watched`` whose instances are endpoints."""

    ports: tuple[int, ...]

    def instances(self, release_id: str) -> tuple[Instance, ...]:
        """Return one instance per port."""
        return tuple(Instance(release_id, VERSION, "web", number, f"127.0.0.1:{port}") for number, port in enumerate(self.ports))

    def endpoint(self, instance: Instance, side: str) -> Endpoint:
        """Return where an instance answers."""
        return Endpoint(instance.name, "web", side, f"http://{instance.address}/health", frozenset({VERSION}))

    def states(self, workers: Sequence[Instance]) -> tuple[WorkerState, ...]:
        """Tell of no worker."""
        assert not workers
        return ()

    def renew(self) -> None:
        """Nothing expires."""

    def observe(self) -> Observation:
        """Count nothing."""
        return Observation({}, {})


def watch(ports: Sequence[int], seconds: float, interval: float, log: Path) -> dict[str, Any]:
    """Watch one stage and return drift, processor time and counts."""
    clock = NotingClock()
    processes = Processes(JobLog(Actions(stream=io.StringIO()), clock, log))
    subject = Subject(RELEASE, None, None, ())
    stage_watch = StageWatch(Many(tuple(ports)), subject, Rules(interval, 5, Limits(5.0, 2.0, 1), "pass"), processes, clock)
    stage = Stage("full", 100, seconds)
    before, begun = resource.getrusage(resource.RUSAGE_SELF), clock.monotonic()
    stage_watch.begin(stage)
    _, evidence = stage_watch.watch({})
    after, took = resource.getrusage(resource.RUSAGE_SELF), clock.monotonic() - begun
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "tick_drift_ms": round(max(clock.late) * 1000, 1),
        "probe_cpu_share": round(used / took, 3),
        "endpoints": len(ports),
        "ticks": len(clock.late),
        "ticks_missed": int(seconds / interval + 1e-6) + 1 - len(clock.late),
        "probes": evidence["probes"]["total"],
        "probes_failed": evidence["probes"]["failed"],
        "seconds": round(took, 1),
    }


def main(arguments: Sequence[str]) -> None:
    """Run the endpoints or the watcher, as the first argument says."""
    if arguments[0] == "endpoints":
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        descriptors = 2 * int(arguments[1]) + PER_PORT_FILE
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors if limit == resource.RLIM_INFINITY else min(limit, descriptors), limit))
        asyncio.run(serve(int(arguments[1])))
    else:
        seconds, interval, log = arguments[1:]
        print(json.dumps(watch(json.loads(sys.stdin.readline()), float(seconds), float(interval), Path(log))))


if __name__ == "__main__":
    main(sys.argv[1:])
