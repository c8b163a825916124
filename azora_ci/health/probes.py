"""HTTP probes: many requests at once, each within a time limit. The only module that asks services for their health."""

from __future__ import annotations

import http.client
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from azora_ci.core.clock import Clock
from azora_ci.health.answers import (
    ANY,
    DEPLOYMENT_HEADER,
    LIMITS,
    PROOF_HEADER,
    RELEASE_HEADER,
    Answer,
    Endpoint,
    ProbeResult,
    classify,
    pass_word,
)

BODY_LIMIT = LIMITS.size  # bytes of an answer that are read
WORKERS = 32


Dial = Callable[[str, int, float], socket.socket]  # host, port, timeout in seconds -> a connection through another machine


def unix_dial(path: Path) -> Dial:
    """Return a ``Dial`` that connects to a Unix socket of this machine, whatever the address."""

    def dial(_host: str, _port: int, timeout: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(str(path))
        except BaseException:
            connection.close()
            raise
        return connection

    return dial


class ProbeRequest(NamedTuple):
    """One request, mostly a GET: address, headers, and ``dial`` where this machine cannot connect directly."""

    url: str
    headers: Mapping[str, str] = {}
    dial: Dial | None = None
    method: str = "GET"
    body: bytes | None = None


def request_of(endpoint: Endpoint) -> ProbeRequest:
    """Return the request that asks an endpoint for its health."""
    headers = {RELEASE_HEADER: pass_word(endpoint.secret, ANY)} if endpoint.secret else endpoint.headers
    return ProbeRequest(endpoint.url, {PROOF_HEADER: endpoint.edge.secret} if endpoint.edge else headers, endpoint.via)


class DialledConnection(http.client.HTTPConnection):
    """HTTP over a connection that ``dial`` makes."""

    def __init__(self, host: str, port: int | None, timeout: float, dial: Dial) -> None:
        super().__init__(host, port, timeout=timeout)
        self._dial, self._seconds = dial, timeout

    def connect(self) -> None:
        """Connect through the other machine."""
        self.sock = self._dial(self.host, self.port, self._seconds)


def fetch(request: ProbeRequest, timeout: float, clock: Clock, *, limit: int = BODY_LIMIT) -> Answer:
    """Send a request on a new connection and return the answer, also for network errors, which are not raised. Redirects are not followed.

    ``timeout``: seconds for the whole exchange; ``limit``: bytes of the body that are read.
    """
    start = clock.monotonic()
    parts = urlsplit(request.url)
    deadline = start + timeout
    connection = _connection(request, timeout)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(
            request.method, path, request.body, headers={"connection": "close", "user-agent": "azora-ci-probe", **request.headers}
        )
        response = connection.getresponse()
        body = _read(response, limit, deadline, clock)
        milliseconds = (clock.monotonic() - start) * 1000
        answered = {name.lower(): response.getheader(name, "") for name, _ in response.getheaders()}  # of a repeated one: all its values
        content_type, deployment = answered.get("content-type", ""), answered.get(DEPLOYMENT_HEADER)
        return Answer(milliseconds, response.status, content_type, body, deployment, headers=answered)
    except (OSError, http.client.HTTPException) as error:
        return _failure(error, (clock.monotonic() - start) * 1000, timeout)
    finally:
        connection.close()


def _connection(request: ProbeRequest, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(request.url)
    host, port = parts.hostname or "", parts.port
    if request.dial is not None:
        return DialledConnection(host, port, timeout, request.dial)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _read(response: http.client.HTTPResponse, limit: int, deadline: float, clock: Clock) -> bytes:
    # The socket's timeout is per read: a server that sends a byte now and then would keep the probe waiting for ever.
    body = bytearray()
    while len(body) < limit:
        if clock.monotonic() > deadline:
            raise TimeoutError
        part = response.read1(min(BODY_LIMIT, limit - len(body)))
        if not part:
            break
        body += part
    return bytes(body)


def _failure(error: Exception, milliseconds: float, timeout: float) -> Answer:
    if isinstance(error, TimeoutError):
        return Answer(milliseconds, failure="timeout", detail=f"no answer within {timeout:g} s")
    if isinstance(error, ConnectionRefusedError):
        return Answer(milliseconds, failure="refused", detail="connection refused")
    if isinstance(error, socket.gaierror):
        return Answer(milliseconds, failure="broken", detail="host name cannot be resolved")
    return Answer(milliseconds, failure="broken", detail=f"{type(error).__name__}: {str(error)[:120]}")


class Prober:
    """Sends many requests at once. Its threads are daemons: a probe that hangs does not hold up a cancelled job."""

    def __init__(self, clock: Clock, *, workers: int = WORKERS) -> None:
        self._clock = clock
        self._work: queue.SimpleQueue[tuple[int, ProbeRequest, float, queue.SimpleQueue[tuple[int, Answer]]]] = queue.SimpleQueue()
        self._workers = workers
        self._threads: list[threading.Thread] = []

    def fetch_all(self, requests: Iterable[ProbeRequest], timeout: float) -> list[Answer]:
        """Return the answers in the order of the requests; each may take ``timeout`` seconds."""
        pending = list(requests)
        self._ensure_threads(min(self._workers, len(pending)))
        answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        for number, request in enumerate(pending):
            self._work.put((number, request, timeout, answers))
        results = dict(answers.get() for _ in pending)
        return [results[number] for number in range(len(pending))]

    def probe(self, endpoints: Iterable[Endpoint], timeout: float) -> list[ProbeResult]:
        """Probe endpoints at once and return a finding for each, in their order."""
        targets = list(endpoints)
        answers = self.fetch_all(map(request_of, targets), timeout)
        return [classify(endpoint, answer) for endpoint, answer in zip(targets, answers, strict=True)]

    def _ensure_threads(self, number: int) -> None:
        while len(self._threads) < number:
            thread = threading.Thread(target=self._serve, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self) -> None:
        while True:
            number, request, timeout, answers = self._work.get()
            try:
                answer = fetch(request, timeout, self._clock)
            except Exception as error:  # an answer must come, or the caller waits for ever
                answer = Answer(0.0, failure="broken", detail=f"{type(error).__name__}: {str(error)[:120]}")
            answers.put((number, answer))
