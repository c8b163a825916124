"""What is measured of an edge: each scene starts a real Envoy with the product's own configuration and returns its figures."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import socket
import statistics
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.edge.earlier import earlier_edge
from tests.bench.edge.people import LIVE, Instance, Visit, come
from tests.support.edge_lab import Lab

Bounds = Mapping[str, int]  # keys of a service that are not its defaults
Figures = dict[str, float | int]
SPIKE, CALM = 2.5, 0.5  # of the capacity
CANARY = 5  # percent


@dataclass(frozen=True)
class Size:
    """How much is measured: seconds of each part, requests a second of one instance, connections of the attack, kills."""

    before: float = 3.0
    spike: float = 12.0
    after: float = 6.0
    canary: float = 10.0
    hung: float = 10.0
    kills: int = 6
    attack: float = 6.0
    upgrade: float = 6.0
    capacity: float = 100.0
    connections: int = 8000


SMALL = Size(before=0.3, spike=0.5, after=0.5, canary=0.5, hung=2.0, kills=1, attack=1.0, upgrade=1.0, connections=50)


@contextlib.asynccontextmanager
async def edge(folder: Path, old: Sequence[Instance], new: Sequence[Instance] = (), **service: Any) -> AsyncIterator[Lab]:
    """Have an edge with these instances, of which new ones are a canary's."""
    folder.mkdir()
    lab = await asyncio.to_thread(Lab, folder, **service)
    try:
        for instance in (*old, *new):
            await instance.start()
        addresses = [[instance.address for instance in instances] for instances in (old, new)]
        await asyncio.to_thread(lab.put, addresses[0], addresses[1] or None, CANARY if new else 0)
        await come(lab.port, 20, 0.5)
        for instance in (*old, *new):
            instance.came = instance.worked = 0
        yield lab
    finally:
        lab.close()
        for instance in (*old, *new):
            instance.kill()


def served(visits: Sequence[Visit]) -> int:
    """Return how many users got an answer in time."""
    return sum(visit.status == 200 for visit in visits)


async def overload(folder: Path, size: Size, bounds: Bounds) -> Figures:
    """One instance gets far more than it can answer, for some seconds; users leave after 1 s."""
    (instance,) = instances = [Instance("1.0.0", size.capacity)]
    async with edge(folder, instances, (), **bounds) as lab:
        before = await come(lab.port, CALM * size.capacity, size.before)

        async def calm_again() -> list[Visit]:
            await asyncio.sleep(size.spike)
            return await come(lab.port, CALM * size.capacity, size.after)

        spike, after = await asyncio.gather(come(lab.port, SPIKE * size.capacity, size.spike), calm_again())
        await asyncio.sleep(1.5)  # until nobody is worked for
        failed = [visit.at for visit in after if visit.status != 200]
        return {
            "served_share_before": _share(served(before), len(before)),
            "served_share_in_spike": _share(served(spike), len(spike)),
            "capacity_share": round(1 / SPIKE, 3),
            "recovery_seconds": round(max(failed, default=0.0), 2),
            "abandoned_work": instance.worked - served(before) - served(spike) - served(after),
            "bound": sum(lab.service.bounds(1)),
        }


async def canary(folder: Path, size: Size, bounds: Bounds) -> Figures:
    """The old version gets more than it can answer beside a canary that could answer more."""
    old, new = Instance("1.0.0", size.capacity), Instance("1.1.0", size.capacity)
    async with edge(folder, [old], [new], **bounds) as lab:
        visits = await come(lab.port, SPIKE * size.capacity, size.canary)
        return {"canary_share": _share(new.came, len(visits)), "served_share": _share(served(visits), len(visits))}


async def hung(folder: Path, size: Size, bounds: Bounds) -> Figures:
    """One of three instances takes requests and answers none from some moment on; users leave after 1 s."""
    old, new = [Instance("1.0.0") for _ in range(3)], [Instance("1.1.0")]
    async with edge(folder, old, new, liveness_path=LIVE, **bounds) as lab:
        asyncio.get_running_loop().call_later(1.0, lambda: setattr(old[0], "hangs", True))
        visits = await come(lab.port, 100, size.hung)
        failed = [visit.at for visit in visits if visit.status != 200]
        changed = sum(visit.version == "1.1.0" for visit in visits)
        old[0].hangs = False
        return {
            "error_seconds": round(max(failed, default=1.0) - 1.0, 2),
            "failed": len(failed),
            "canary_share": _share(changed, len(visits)),
        }


async def kills(folder: Path, size: Size, bounds: Bounds) -> Figures:
    """Instances are killed and come again, one after the other."""
    old = [Instance("1.0.0") for _ in range(3)]
    async with edge(folder, old, (), **bounds) as lab:

        async def kill() -> None:
            for number in range(size.kills):
                await asyncio.sleep(1.0)
                old[number % 3].kill()
                await asyncio.sleep(1.5)
                await old[number % 3].start()

        visits, _ = await asyncio.gather(come(lab.port, 200, size.kills * 2.5 + 1, patience=20.0), kill())
        return {"requests": len(visits), "failed": len(visits) - served(visits)}


async def slow_connections(folder: Path, size: Size, bounds: Bounds) -> Figures:
    """Strangers open connections and send half a request on each; users come, and a deployment goes on."""
    needed = 2 * size.connections + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    try:
        async with edge(folder, [Instance("1.0.0")], [Instance("1.1.0")], **bounds) as lab:
            with contextlib.ExitStack() as stack:
                await asyncio.to_thread(_attack, lab.port, size.connections, stack)
                users = asyncio.create_task(come(lab.port, 50, size.attack, patience=20.0))
                changes = [await _timed(functools.partial(lab.weigh, percent)) for percent in (50, 100, 5)]
                reads = [await _timed(lambda: lab.edge.counters(lab.edge.state())) for _ in range(5)]
                reads += [await _timed(lambda: lab.edge.under_way({"127.0.0.1:1"})) for _ in range(5)]
                visits = await users
        seconds = [visit.seconds for visit in visits]
        return {
            "connections": size.connections,
            "failed": len(visits) - served(visits),
            "median_get_ms": round(1000 * statistics.median(seconds), 1),
            "slowest_get_ms": round(1000 * max(seconds), 1),
            "route_change_seconds": round(max(changes), 3),
            "admin_read_seconds": round(max(reads), 3),
        }
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _attack(port: int, number: int, stack: contextlib.ExitStack) -> None:
    for _ in range(number):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        connection.sendall(b"GET / HTTP/1.1\r\nhost: edge\r\nx-half: ")


async def upgrade(folder: Path, size: Size, _bounds: Bounds) -> Figures:
    """The files of an edge of an earlier version are followed by those of the present one; Envoy goes on."""
    instance = Instance("1.0.0")
    await instance.start()
    async with earlier_edge(folder, instance.address) as lab:

        async def change() -> float:
            await asyncio.sleep(size.upgrade / 3)
            return await _timed(lab.upgrade)

        visits, seconds = await asyncio.gather(come(lab.port, 200, size.upgrade, patience=20.0), change())
    instance.kill()
    return {"requests": len(visits), "failed": len(visits) - served(visits), "change_seconds": round(seconds, 3)}


async def _timed(call: Callable[[], object]) -> float:
    clock = asyncio.get_running_loop().time
    begun = clock()
    await asyncio.to_thread(call)
    return clock() - begun


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


SCENES = {
    "overload": overload,
    "canary": canary,
    "hung": hung,
    "kills": kills,
    "slow_connections": slow_connections,
    "upgrade": upgrade,
}
