"""More requests than a service can answer: what is served meanwhile, what is worked on in vain, and how soon it is over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.edge_lab import Backend, Lab, send

WORK_SECONDS, PATIENCE_SECONDS = 0.02, 3.0
CAPACITY = 1 / WORK_SECONDS  # requests a second
CONNECTIONS, PENDING = 8, 16


class Busy(Backend):
    """Works on one request at a time, also for users who have left."""

    def __init__(self) -> None:
        super().__init__("1.0.0")
        self.done = 0
        self._alone = threading.Lock()

    def answer(self, request):
        with self._alone:
            time.sleep(WORK_SECONDS)
            self.done += 1
        super().answer(request)


@pytest.fixture
def busy() -> Iterator[Busy]:
    backend = Busy()
    yield backend
    backend.die()


@pytest.fixture
def lab(tmp_path: Path, busy: Busy) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path, max_connections=CONNECTIONS, max_pending_requests=PENDING)
    try:
        edge_lab.put([busy.address], None)
        yield edge_lab
    finally:
        edge_lab.close()


async def ask(port: int) -> int:
    """Return the status of one user's answer; 0 when the user has left before it."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n")
            try:
                return int((await reader.read(12))[9:])
            finally:
                writer.close()
    except (TimeoutError, OSError, ValueError):
        return 0


async def ask_steadily(port: int, rate: float, seconds: float) -> list[int]:
    """Return the statuses of users who come at a rate, whether or not others are served."""
    users = []
    begun = asyncio.get_running_loop().time()
    while (number := len(users)) < rate * seconds:
        await asyncio.sleep(max(0.0, begun + number / rate - asyncio.get_running_loop().time()))
        users.append(asyncio.create_task(ask(port)))
    return list(await asyncio.gather(*users))


def test_an_overload_is_served_as_far_as_it_can_be_and_over_soon(lab, busy):
    async def overloaded() -> tuple[list[int], list[int], list[int]]:
        spike = await ask_steadily(lab.port, 3 * CAPACITY, 4)
        recovering = await ask_steadily(lab.port, CAPACITY / 2, 1)
        return spike, recovering, await ask_steadily(lab.port, CAPACITY / 2, 2)

    spike, recovering, afterwards = asyncio.run(overloaded())
    assert spike.count(200) > 0.2 * len(spike)  # a third is what the service can do
    assert set(spike) <= {200, 503, 0}
    assert afterwards.count(200) >= 0.9 * len(afterwards)
    served = sum(statuses.count(200) for statuses in (spike, recovering, afterwards))
    assert busy.done - served <= CONNECTIONS + PENDING  # worked on in vain


class Whole(Backend):
    """Sends each answer in one piece: whoever is killed after the first of two leaves half an answer, which nobody can repeat."""

    def answer(self, request):
        body = b'{"version": "%s"}' % self.version.encode()
        request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


@pytest.fixture
def instances() -> Iterator[list[Backend]]:
    three: list[Backend] = [Whole("1.0.0") for _ in range(3)]
    yield three
    for instance in three:
        instance.die()


def test_a_killed_instance_fails_no_get_of_a_loaded_service(tmp_path, instances):
    lab = Lab(tmp_path)
    try:
        lab.put([instance.address for instance in instances], None)
        threading.Timer(0.3, instances[0].die).start()
        assert send(lab.port, 2400, threads=48) == {"1.0.0": 2400}
        assert sum(len(instance.requests) for instance in instances[1:]) > len(instances[0].requests) > 0
    finally:
        lab.close()


def test_other_bounds_fail_no_get_either(tmp_path, instances):
    """As when a new version of ours meets the edge of an earlier one, which had none."""
    lab = Lab(tmp_path, max_connections=0, max_pending_requests=0)
    try:
        addresses = [instance.address for instance in instances]
        lab.put(addresses, None)
        state = lab.edge.state()
        bounded = replace(state, services=(replace(lab.service, max_connections=None, max_pending_requests=None),))
        threading.Timer(0.3, lambda: lab.edge.apply(bounded)).start()
        assert send(lab.port, 2400, threads=48) == {"1.0.0": 2400}
        assert lab.edge.state() == bounded
    finally:
        lab.close()
