"""An open-loop client: requests start on a fixed schedule, whatever the answers do, each on a connection of its own choosing.

A process of its own, ``python -m tests.bench.rollout.client '{"addresses": …}'``: it sends until ``requests`` were sent
*and* its standard input was closed, waits for the answers, and prints one JSON line. Nothing is ever sent twice: what a user's browser
would try again by itself counts as failed here.

Latency is from the moment at which a request was due, so a client that is late makes answers look slower, never faster; how late it was
is reported (``lag_ms``). Every request that was due is accounted for: answered, failed with a kind, or unanswered at the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from azora_ci.core.clock import Clock

TICK = 0.002  # seconds between two looks at the schedule
TIMEOUT = 15.0  # seconds for an answer, unless the arguments say otherwise
LAST_ANSWERS = 2.0  # seconds beyond that
EXAMPLES = 5  # failures of each kind that are reported in full
WARM = 32  # connections per address that are there before the first request
MOST_KINDS = 20  # kinds of failures that are counted apart


@dataclass(eq=False)
class Sent:
    """One request on its way. ``due``: seconds of the loop's clock. ``link``: the connection that has it."""

    number: int
    due: float
    method: str
    address: int
    settled: bool = False  # answered or failed
    link: Link | None = None


@dataclass
class Results:
    """Counts and times of requests and answers. Times are seconds since the epoch. ``lags``: seconds by which requests were sent late."""

    sent: Counter[str] = field(default_factory=Counter)
    sent_to: Counter[int] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failed_at: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    versions: list[Counter[str]] = field(default_factory=list)
    last_sent: dict[str, float] = field(default_factory=dict)
    last_answer: dict[str, float] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    connections: int = 0


@dataclass
class InFlight:
    """How many requests are on their way: the mean over time, not over samples."""

    current: int = 0
    most: int = 0
    area: float = 0.0  # requests x seconds
    since: float = 0.0
    begun: float = 0.0

    def change(self, by: int, at: float) -> None:
        """Add ``by`` requests from the moment ``at`` (seconds of the loop's clock) on."""
        self.area += self.current * (at - self.since)
        self.since = at
        self.current += by
        self.most = max(self.most, self.current)

    def mean(self) -> float:
        """Return the mean from ``begun`` until the last change."""
        return self.area / max(1e-9, self.since - self.begun)


class Client:
    """Keeps the schedule and the connections."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._addresses = [tuple(address) for address in settings["addresses"]]
        self._rate, self._requests = float(settings["rate"]), int(settings.get("requests", 0))
        self._post_every = int(settings.get("post_every", 0))
        self._timeout = float(settings.get("timeout", TIMEOUT))
        self._path = settings.get("path", "/work")
        self._loop = asyncio.get_running_loop()
        clock = Clock()
        self._epoch = clock.now().timestamp() - self._loop.time()
        self._idle: list[deque[Link]] = [deque() for _ in self._addresses]
        self._flying: set[Sent] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0
        self._next_look = 0.0
        self._seconds = 0.0
        self._busy = InFlight()
        self.in_flight: dict[str, float] = {}
        self.stop = asyncio.Event()
        self.results = Results(versions=[Counter() for _ in self._addresses])

    async def run(self) -> None:
        """Send, then wait for the answers that are still to come."""
        for address, idle in enumerate(self._idle):
            for _ in range(WARM):
                idle.append(await self._connect(address))
        begun = self._loop.time()
        self._busy = InFlight(since=begun, begun=begun)
        print("sending", flush=True)
        while not (self.stop.is_set() and self._number >= self._requests):
            due = int((self._loop.time() - begun) * self._rate) + 1  # the first request is due at once
            while self._number < due:
                self._send(begun + self._number / self._rate)
            self._expire()
            await asyncio.sleep(TICK)
        self._seconds = self._loop.time() - begun
        mean, most = self._busy.mean(), self._busy.most
        self.in_flight = {"mean": round(mean, 1), "most": most}
        end = self._loop.time() + self._timeout + LAST_ANSWERS
        while self._flying and self._loop.time() < end:
            self._expire()
            await asyncio.sleep(TICK)

    def _send(self, due: float) -> None:
        post = self._post_every and self._number % self._post_every == self._post_every - 1
        sent = Sent(self._number, due, "POST" if post else "GET", self._number % len(self._addresses))
        now = self._loop.time()
        self._number += 1
        self.results.sent[sent.method] += 1
        self.results.sent_to[sent.address] += 1
        self.results.lags.append(now - due)
        self._flying.add(sent)
        self._busy.change(1, now)
        idle = self._idle[sent.address]
        while idle:
            link = idle.pop()
            if not link.closed:
                link.send(sent, self._text(sent))
                return
        task = self._loop.create_task(self._send_on_new(sent))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _landed(self, sent: Sent, now: float) -> None:
        sent.settled = True
        self._flying.discard(sent)
        self._busy.change(-1, now)

    def _text(self, sent: Sent) -> bytes:
        host = f"host: {self._addresses[sent.address][0]}\r\n"
        body = b'{"id": 1}' if sent.method == "POST" else b""
        length = f"content-length: {len(body)}\r\n" if body else ""
        return f"{sent.method} {self._path} HTTP/1.1\r\n{host}{length}\r\n".encode() + body

    async def _send_on_new(self, sent: Sent) -> None:
        try:
            link = await self._connect(sent.address)
        except OSError as error:
            self.fail(sent, f"connect: {error.strerror or error}")
            return
        if sent.settled:  # the request was given up before there was a connection: the next request takes the connection
            self._idle[sent.address].append(link)
        else:
            link.send(sent, self._text(sent))

    async def _connect(self, address: int) -> Link:
        host, port = self._addresses[address]
        self.results.connections += 1
        _, link = await self._loop.create_connection(lambda: Link(self), host, port)
        return link

    def _expire(self) -> None:
        now = self._loop.time()
        if now < self._next_look:
            return
        self._next_look = now + 1.0
        for sent in [flying for flying in self._flying if flying.due < now - self._timeout]:
            self.fail(sent, f"no answer within {self._timeout:g} s")
            if sent.link is not None:
                sent.link.give_up()

    def fail(self, sent: Sent, reason: str) -> None:
        """Note a request that failed, once."""
        if sent.settled:
            return
        self._landed(sent, self._loop.time())
        self.results.failed[sent.method] += 1
        self.results.failed_at[sent.address] += 1
        kind = f"{sent.method} {re.sub(r'[0-9]{4,}', 'N', reason)[:100]}"
        counted_apart = kind in self.results.kinds or len(self.results.kinds) < MOST_KINDS
        self.results.kinds[kind if counted_apart else f"{sent.method} otherwise"] += 1
        if self.results.kinds[kind] <= EXAMPLES and counted_apart:
            at = round(self._epoch + sent.due, 3)
            self.results.examples.append({"at": at, "method": sent.method, "number": sent.number, "reason": reason})

    def answered(self, link: Link, sent: Sent, status: int, body: bytes) -> None:
        """Note an answer, and keep its connection for the next request."""
        if not link.closed:
            self._idle[sent.address].append(link)
        now = self._loop.time()
        if sent.settled:
            return
        self.results.milliseconds.append((now - sent.due) * 1000)
        if status != 200:
            self.fail(sent, f"HTTP {status}: {body[:60]!r}")
            return
        self._landed(sent, now)
        self.results.answered[sent.method] += 1
        _, _, tail = body.partition(b'"version": "')
        version = tail.partition(b'"')[0].decode()
        self.results.versions[sent.address][version] += 1
        self.results.last_sent[version] = max(self.results.last_sent.get(version, 0.0), self._epoch + sent.due)
        self.results.last_answer[version] = self._epoch + now

    def document(self) -> dict[str, Any]:
        """Return all counts and times, as JSON."""
        results = self.results
        return {
            "sent": dict(results.sent),
            "answered": {method: results.answered[method] for method in results.sent},
            "failed": {method: results.failed[method] for method in results.sent},
            "kinds": dict(results.kinds),
            "unanswered": len(self._flying),
            "by_address": [
                {"sent": results.sent_to[address], "answered": results.versions[address].total(), "failed": results.failed_at[address]}
                for address in range(len(self._addresses))
            ],
            "versions": [dict(counts) for counts in results.versions],
            "last_sent": results.last_sent,
            "last_answer": results.last_answer,
            "in_flight": self.in_flight,
            "milliseconds": _spread(results.milliseconds),
            "lag_ms": _spread([lag * 1000 for lag in results.lags]),
            "wanted_rate": self._rate,
            "rate": round(sum(results.sent.values()) / max(1e-9, self._seconds), 1),
            "connections": results.connections,
            "examples": results.examples,
        }


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    percentiles = {name: ordered[int(len(ordered) * part)] for name, part in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}
    return {name: round(value, 1) for name, value in {**percentiles, "max": ordered[-1]}.items()}


class Link(asyncio.Protocol):
    """A connection that stays open between requests."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sent: Sent | None = None
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, sent: Sent, text: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._sent, self._buffer, sent.link = sent, b"", self
        self._transport.write(text)

    def give_up(self) -> None:
        """Close the connection whose answer does not come; no other request may be sent on it."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or self._sent is None:
            return
        length, close = 0, False
        for line in head.lower().split(b"\r\n")[1:]:
            if line.startswith(b"content-length:"):
                length = int(line[15:])
            close = close or line == b"connection: close"
        if len(body) < length:
            return
        sent, self._sent = self._sent, None
        if close:
            self.closed = True
        self._client.answered(self, sent, int(head[9:12]), body)
        if close and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the request whose answer will not come."""
        self.closed = True
        if self._sent is not None:
            self._client.fail(self._sent, f"connection lost: {exc or 'closed by the other side'}")


async def main(arguments: Sequence[str]) -> None:
    """Run one measurement."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # a request that hangs keeps a connection, and others need their own
    client = Client(json.loads(arguments[0]))
    loop = asyncio.get_running_loop()

    def ended() -> None:
        if not sys.stdin.buffer.read(1):
            loop.remove_reader(sys.stdin.fileno())
            client.stop.set()

    loop.add_reader(sys.stdin.fileno(), ended)
    await client.run()
    print(json.dumps(client.document()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
