"""A steady load of requests through the edge that records version and status of every answer.

The load is open loop: requests start on a fixed schedule, however slow the answers are. It runs in a separate process, so that harness
and load do not slow each other down, and writes one JSON line per answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from azora_ci.core.clock import Clock

WORKERS = 24
TIMEOUT_SECONDS = 10.0
NO_VERSION = "none"


@dataclass(frozen=True)
class LoadAnswer:
    """One answer: when its request was due (epoch seconds), path, status (0: no answer), version in its body, milliseconds."""

    at: float
    path: str
    status: int
    version: str
    milliseconds: float
    error: str = ""

    @property
    def failed(self) -> bool:
        """Say whether a user would have seen an error."""
        return self.status != 200


def version_in(body: bytes, headers: Message | Mapping[str, str], source: str = "answer") -> str:
    """Return the version that an answer names without a ``v`` in front, else ``none``.

    ``source``: ``answer`` (the key version of its JSON, else the header x-azora-version), ``json:a.b``, ``header:<name>``, or ``image``
    (it names none).
    """
    kind, _, place = source.partition(":")
    version: object = headers.get(place) if kind == "header" else None
    if kind in {"answer", "json"}:
        with contextlib.suppress(ValueError):
            version = json.loads(body)
            for key in (place or "version").split("."):
                version = version.get(key) if isinstance(version, dict) else None
        version = version if isinstance(version, str) else headers.get("x-azora-version") if kind == "answer" else None
    return re.sub(r"^v(?=\d)", "", str(version or NO_VERSION))


def read(path: Path) -> list[LoadAnswer]:
    """Return the answers in a log; a line that is still being written is left out."""
    answers = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, TypeError):
            answers.append(LoadAnswer(**json.loads(line)))
    return answers


class _Client:
    """One connection that is kept open between requests."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)

    def get(self, path: str, source: str) -> tuple[int, str]:
        """Return status and version of an answer, as ``source`` says where it is. Raises OSError or HTTPException."""
        try:
            self._connection.request("GET", path, headers={"user-agent": "rehearsal-load"})
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        return response.status, version_in(body, response.headers, source)


class Load:
    """Sends ``rate`` requests a second to ``base_url`` until stopped; answers go to ``log``.

    ``paths``: path, or path and source of its version (see ``version_in``) with a space between.
    """

    def __init__(self, base_url: str, log: Path, *, rate: float, paths: Sequence[str], clock: Clock | None = None) -> None:
        self._address = urlsplit(base_url)
        self._log = log
        self._rate = rate
        self._sources = {path: source or "answer" for path, _, source in (entry.partition(" ") for entry in paths)}
        self._paths = tuple(self._sources)
        self._clock = clock or Clock()
        self._due: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[LoadAnswer | None] = queue.SimpleQueue()

    def run(self, stop: threading.Event) -> None:
        """Send requests until ``stop`` is set, then wait for the outstanding answers."""
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(WORKERS)]
        writer = threading.Thread(target=self._write, daemon=True)
        for thread in (*workers, writer):
            thread.start()
        start, number = self._clock.monotonic(), 0
        while not self._clock.wait(stop, start + number / self._rate - self._clock.monotonic()):
            self._due.put((self._clock.now().timestamp(), self._paths[number % len(self._paths)]))
            number += 1
        for _ in workers:
            self._due.put(None)
        for worker in workers:
            worker.join(TIMEOUT_SECONDS + 1)
        self._answers.put(None)
        writer.join()

    def _work(self) -> None:
        client = _Client(self._address.hostname or "127.0.0.1", self._address.port or 80)
        for at, path in iter(self._due.get, None):
            status, version, error = 0, NO_VERSION, ""
            try:
                status, version = client.get(path, self._sources[path])
            except (OSError, http.client.HTTPException) as problem:
                error = f"{type(problem).__name__}: {problem}"
            milliseconds = round((self._clock.now().timestamp() - at) * 1000, 1)
            self._answers.put(LoadAnswer(round(at, 3), path, status, version, milliseconds, error))

    def _write(self) -> None:
        with self._log.open("a", encoding="utf-8", buffering=1) as file:
            for answer in iter(self._answers.get, None):
                file.write(json.dumps(asdict(answer)) + "\n")


def counts(answers: Iterable[LoadAnswer]) -> dict[str, int]:
    """Return how many answers came from each version, by version."""
    numbers: dict[str, int] = {}
    for answer in answers:
        numbers[answer.version] = numbers.get(answer.version, 0) + 1
    return dict(sorted(numbers.items()))


def main(arguments: Sequence[str]) -> None:
    """Run as ``python -m azora_ci.rehearsal.judge.load BASE_URL LOG RATE PATH…`` until SIGTERM or SIGINT."""
    base_url, log, rate, *paths = arguments
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Load(base_url, Path(log), rate=float(rate), paths=paths).run(stop)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
