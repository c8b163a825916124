"""Instances of a known capacity, and users who come at a steady rate and leave when they have waited long enough; all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

HUNG_UP = (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
LIVE = "/live"


class Instance:
    """Answers ``rate`` requests a second, one after the other, also those of users who have left; 0: each at once.

    ``worked``: users' requests that it has answered, or tried to; ``hangs``: it takes requests and answers none.
    """

    def __init__(self, version: str, rate: float = 0.0) -> None:
        self.address, self.came, self.worked, self.hangs = "", 0, 0, False
        self._pause, self._free_at = 1 / rate if rate else 0.0, 0.0
        self._answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(version), version.encode())
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen; again where it did before."""
        port = int(self.address.rpartition(":")[2] or 0)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=1024)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def kill(self) -> None:
        """Close everything, as a killed process would."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(*HUNG_UP, asyncio.CancelledError):  # the last when the loop ends, which nobody needs to hear of
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                while self.hangs:
                    await asyncio.sleep(0.05)
                if not head.startswith(b"GET %s " % LIVE.encode()):
                    await self._work()
                writer.write(self._answer)
        self._writers.discard(writer)
        writer.close()

    async def _work(self) -> None:
        """Take the time of one request after all that came before; kept by the clock, so that sleeping too long costs no capacity."""
        self.came += 1
        if self._pause:
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + self._pause
            await asyncio.sleep(self._free_at - now)
        self.worked += 1


@dataclass(frozen=True)
class Visit:
    """One user's GET: seconds from the begin of the measurement until it came, status (0: left, or cut off), version, seconds it took."""

    at: float
    status: int
    version: str
    seconds: float


async def visit(port: int, patience: float, begun: float) -> Visit:
    """Send a GET over a connection of its own and wait for its answer."""
    clock = asyncio.get_running_loop().time
    came, status, version = clock(), 0, ""
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET / HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n")
                answer = await reader.read()
                status, version = int(answer[9:12]), answer.rpartition(b"\r\n\r\n")[2].decode()
            finally:
                writer.transport.abort()
    except (TimeoutError, ValueError, *HUNG_UP):
        status = 0
    return Visit(came - begun, status, version, clock() - came)


async def come(port: int, rate: float, seconds: float, *, patience: float = 1.0) -> list[Visit]:
    """Have users come at a rate, whether or not others are served; return their visits in order."""
    users: list[asyncio.Task[Visit]] = []
    clock = asyncio.get_running_loop().time
    begun = clock()
    while (number := len(users)) < rate * seconds:
        await asyncio.sleep(max(0.0, begun + number / rate - clock()))
        users.append(asyncio.create_task(visit(port, patience, begun)))
    return list(await asyncio.gather(*users))
