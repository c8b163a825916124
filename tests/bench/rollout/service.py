"""A service to measure rollouts with; it runs alone, as ``python service.py``: 20 to 50 ms of work, a database query, and an orderly end.

``DATABASE_URL`` is a PostgreSQL database, ``postgresql://user:password@host:port/name`` or ``postgresql://user:password@/name?host=FOLDER&port=…``
for a Unix socket. ``SICK`` is a file: while it exists, the instances of the version that it names answer 503 for their health, and go on
serving. Standard library only, so that it runs in the smallest of images; of PostgreSQL's protocol
(https://www.postgresql.org/docs/current/protocol.html) it speaks what one query needs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import random
import secrets
import signal
from collections import deque
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LEAST, MOST = 0.020, 0.050  # seconds of work
SKEW = 0.125  # most answers take nearly the longest: the mean is 47 ms
DRAIN_SECONDS = 4.0
ROWS = 1000
VERSION = os.environ.get("VERSION", "")
SICK = Path(os.environ.get("SICK", "/nonexistent"))


class Database:
    """One connection to PostgreSQL. Queries are sent as they come; answers come back in the same order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: deque[asyncio.Future[str]] = deque()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, url: str) -> Database:
        """Connect and log in. Raises OSError."""
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        if "host" in query:
            opened = await asyncio.open_unix_connection(f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}")
        else:
            opened = await asyncio.open_connection(parts.hostname, parts.port)
        self = cls(*opened)
        await self._log_in(unquote(parts.username or ""), unquote(parts.password or ""), parts.path.strip("/"))
        self._task = asyncio.create_task(self._read())
        return self

    async def course(self, number: int) -> str:
        """Return the name of a course."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._send(b"Q", b"SELECT name FROM courses WHERE id = %d\0" % number)
        return await answer

    def _send(self, kind: bytes, data: bytes) -> None:
        self._writer.write(kind + (len(data) + 4).to_bytes(4, "big") + data)

    async def _message(self) -> tuple[bytes, bytes]:
        head = await self._reader.readexactly(5)
        return head[:1], await self._reader.readexactly(int.from_bytes(head[1:], "big") - 4)

    async def _log_in(self, user: str, password: str, name: str) -> None:
        """SCRAM-SHA-256 (RFC 5802, RFC 7677), as PostgreSQL asks for it."""
        self._send(b"", (196608).to_bytes(4, "big") + f"user\0{user}\0database\0{name}\0\0".encode())
        first = f"n=,r={secrets.token_urlsafe(18)}"
        while True:
            kind, data = await self._message()
            step = int.from_bytes(data[:4], "big") if kind == b"R" else 0
            if kind == b"E":
                raise OSError(data.decode(errors="replace"))
            if kind == b"Z":
                return
            if step == 10:
                hello = f"n,,{first}".encode()
                self._send(b"p", b"SCRAM-SHA-256\0" + len(hello).to_bytes(4, "big") + hello)
            elif step == 11:
                self._send(b"p", _proof(password, first, data[4:].decode()))

    async def _read(self) -> None:
        name, failed = "", ""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, data = await self._message()
                if kind == b"D":
                    name = data[6:].decode()  # one column: two bytes of number, four of length
                elif kind == b"E":
                    failed = data.decode(errors="replace")
                elif kind == b"Z":
                    waiting = self._waiting.popleft()
                    if failed:
                        waiting.set_exception(OSError(failed))
                    else:
                        waiting.set_result(name)
                    name, failed = "", ""
        while self._waiting:
            self._waiting.popleft().set_exception(OSError("the database has gone"))


def _proof(password: str, first: str, server: str) -> bytes:
    values = dict(part.split("=", 1) for part in server.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(values["s"]), int(values["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    last = f"c=biws,r={values['r']}"
    signature = hmac.digest(hashlib.sha256(key).digest(), f"{first},{server},{last}".encode(), "sha256")
    proof = bytes(left ^ right for left, right in zip(key, signature, strict=True))
    return f"{last},p={base64.b64encode(proof).decode()}".encode()


class Service:
    """State that all connections share."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tasks: set[asyncio.Task[None]] = set()
        self.links: set[Link] = set()
        self.ending = asyncio.Event()

    def end(self) -> None:
        """Take no new connection, and close connections without a request in work."""
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
        """Remember the connection."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._service.links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._service.links.discard(self)

    def data_received(self, data: bytes) -> None:
        """Answer when a request is complete."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = 0
        for line in head.lower().split(b"\r\n")[1:]:
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(body) < length:
            return
        self._buffer = body[length:]
        self.busy = True
        path = head.split(b" ", 2)[1].decode()
        if path.endswith("/health"):
            self._health()
            return
        task = asyncio.get_running_loop().create_task(self._work())
        self._service.tasks.add(task)
        task.add_done_callback(self._service.tasks.discard)

    async def _work(self) -> None:
        end = asyncio.get_running_loop().time() + LEAST + (MOST - LEAST) * random.random() ** SKEW
        try:
            name = await self._service.database.course(random.randrange(ROWS))
        except OSError as error:
            self._answer(500, {"version": VERSION, "error": str(error)})
            return
        await asyncio.sleep(end - asyncio.get_running_loop().time())
        self._answer(200, {"version": VERSION, "course": name})

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
    service, loop = Service(await Database.connect(os.environ["DATABASE_URL"])), asyncio.get_running_loop()
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])
    server = await loop.create_server(lambda: Link(service), host, port, backlog=512)
    loop.add_signal_handler(signal.SIGTERM, service.end)
    await service.ending.wait()
    server.close()
    await service.drained()


if __name__ == "__main__":
    asyncio.run(main())
