"""A service to measure rollouts with; it runs alone, as ``python service.py``: 20 to 50 ms of work, a database query, and an orderly end.

``DATABASE_URL`` is a PostgreSQL database; where there is none, the query goes to SQLite in memory. ``SICK`` is a file: while it exists,
the instances of the version that it names answer 503 for their health, and go on serving. Standard library, and psycopg2 with a URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

LEAST, MOST = 0.020, 0.050  # seconds of work
DRAIN_SECONDS = 4.0
ROWS = 1000
VERSION = os.environ.get("VERSION", "")
SICK = Path(os.environ.get("SICK", "/nonexistent"))


def _query() -> Callable[[int], str]:
    url = os.environ.get("DATABASE_URL")
    if url:
        import psycopg2

        connection = psycopg2.connect(url)
        connection.autocommit = True
        cursor = connection.cursor()

        def ask(number: int) -> str:
            cursor.execute("SELECT name FROM courses WHERE id = %s", (number,))
            return str((cursor.fetchone() or ("",))[0])

        return ask
    local = sqlite3.connect(":memory:")
    local.execute("CREATE TABLE courses (id integer PRIMARY KEY, name text)")
    local.executemany("INSERT INTO courses VALUES (?, ?)", [(number, f"Course {number}") for number in range(ROWS)])
    return lambda number: str(local.execute("SELECT name FROM courses WHERE id = ?", (number,)).fetchone()[0])


class Service:
    """What all connections share."""

    def __init__(self) -> None:
        self.query = _query()
        self.links: set[Link] = set()
        self.ending = asyncio.Event()

    def end(self) -> None:
        """Take no new connection, and close those on which nothing is being worked at."""
        self.ending.set()
        for link in list(self.links):
            if not link.busy:
                link.transport.close()

    async def drained(self) -> None:
        """Wait until every request that had come was answered, or for ``DRAIN_SECONDS``."""
        for _ in range(int(DRAIN_SECONDS / 0.02)):
            if not self.links:
                return
            await asyncio.sleep(0.02)


class Link(asyncio.Protocol):
    """One connection, which stays open between requests."""

    transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember it."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a TCP server
        self.transport = transport
        self._service.links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """Forget it."""
        self._service.links.discard(self)

    def data_received(self, data: bytes) -> None:
        """Answer when a request is complete."""
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = 0
        for line in head.lower().split(b"\r\n")[1:]:
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        self.busy = True
        path = head.split(b" ", 2)[1].decode()
        if path.endswith("/health"):
            self._health()
            return
        name = self._service.query(random.randrange(ROWS))  # noqa: S311 - load, not secrets
        delay = random.uniform(LEAST, MOST)  # noqa: S311
        asyncio.get_running_loop().call_later(delay, self._answer, 200, {"version": VERSION, "course": name})

    def _health(self) -> None:
        sick = ""
        with contextlib.suppress(OSError):
            sick = SICK.read_text(encoding="utf-8").strip()
        if sick == VERSION:
            self._answer(503, {"status": "unhealthy", "version": VERSION})
        else:
            self._answer(200, {"status": "healthy", "version": VERSION})

    def _answer(self, status: int, document: dict[str, str]) -> None:
        self.busy = False
        if self.transport.is_closing():
            return
        body = json.dumps(document).encode()
        end = self._service.ending.is_set()
        head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Unavailable'}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\n{'connection: close' if end else 'connection: keep-alive'}\r\n\r\n"
        self.transport.write(head.encode() + body)
        if end:
            self.transport.close()


async def main() -> None:
    """Serve until SIGTERM, then answer what had come."""
    service, loop = Service(), asyncio.get_running_loop()
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])
    server = await loop.create_server(lambda: Link(service), host, port, backlog=512)
    loop.add_signal_handler(signal.SIGTERM, service.end)
    await service.ending.wait()
    server.close()
    await service.drained()


if __name__ == "__main__":
    asyncio.run(main())
