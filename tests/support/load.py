"""Requests as users send them: one GET, and a light steady load whose every answer is kept."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Sequence

Address = tuple[str, int]
PATIENCE = 20.0  # seconds that a user waits for an answer


def get(
    address: Address, path: str, method: str = "GET", headers: dict[str, str] | None = None, *, patience: float = PATIENCE
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers (names in lower case) and body of one answer, over a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=patience)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


class Load:
    """A light steady load on some addresses and paths in turn: which status and version came back, in order; 0 is no answer."""

    def __init__(
        self, addresses: Sequence[Address], paths: Sequence[str], *, pause: float = 0.02, threads: int = 1, patience: float = PATIENCE
    ) -> None:
        self.answers: list[tuple[int, str]] = []
        self._targets = [(address, path) for path in paths for address in addresses]
        self._pause, self._patience = pause, patience
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _get(self, target: tuple[Address, str]) -> tuple[int, dict[str, str], bytes]:
        return get(*target, patience=self._patience)

    def _send(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                status, _, body = self._get(self._targets[number % len(self._targets)])
                version = json.loads(body).get("version", "") if status == 200 else ""
            except (OSError, ValueError, http.client.HTTPException) as error:
                status, version = 0, repr(error)
            self.answers.append((status, version))
            self._stop.wait(self._pause)

    @property
    def failed(self) -> list[tuple[int, str]]:
        return [answer for answer in self.answers if answer[0] != 200]

    @property
    def versions(self) -> Counter[str]:
        return Counter(version for status, version in self.answers if status == 200)
