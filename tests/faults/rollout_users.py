"""Users of every host, who send GETs all the time: what they got, and from whom."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from azora_ci.health.answers import DEPLOYMENT_HEADER
from tests.support.docker_world import HTTP_PORT, NEW, Machine, World, ip

SLOWEST = 20.0  # seconds that a user waits
PAUSE = 0.02  # seconds between two GETs of one user


class Answer(NamedTuple):
    """What a user got: when (monotonic seconds), from which host, status (0: none), the release that the edge chose, version or error."""

    at: float
    host: str
    status: int
    release: str
    text: str


class Users:
    """GETs to every host's edge, from an address that is not the runner's: a fault of the runner's connection need not break theirs."""

    def __init__(self, world: World, number: int = 1, *, keep: bool = False) -> None:
        self.answers: list[Answer] = []
        self._keep = keep  # connections open, as a balancer in front of the hosts does
        self._paths, self._source = world.paths, f"{world.lan.prefix}.2"
        ip("addr", "add", f"{self._source}/24", "dev", world.lan.name, check=False)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(machine.address,), daemon=True) for machine in world.machines * number]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=SLOWEST + 10)

    def _send(self, host: str) -> None:
        number, connection = 0, self._connection(host)
        while not self._stop.is_set():
            number += 1
            self.answers.append(self._ask(connection, host, self._paths[number % len(self._paths)]))
            if not self._keep:
                connection.close()  # the next GET opens another one
            self._stop.wait(PAUSE)

    def _connection(self, host: str) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(host, HTTP_PORT, timeout=SLOWEST, source_address=(self._source, 0))

    def get(self, host: str, path: str) -> Answer:
        """Send one GET over a connection of its own."""
        with contextlib.closing(self._connection(host)) as connection:
            return self._ask(connection, host, path)

    def _ask(self, connection: http.client.HTTPConnection, host: str, path: str) -> Answer:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            status, release, body = response.status, response.getheader(DEPLOYMENT_HEADER) or "", response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Answer(time.monotonic(), host, 0, "", repr(error))
        try:
            text = str(json.loads(body).get("version", ""))
        except ValueError:
            text = body[:60].decode(errors="replace")
        return Answer(time.monotonic(), host, status, release, text)

    def versions(self, hosts: Sequence[Machine], number: int = 20) -> set[str]:
        """Return what users get now, of all services: versions, and ``HTTP n`` for other answers."""
        answers = [self.get(host.address, path) for host in hosts for path in self._paths for _ in range(number)]
        return {answer.text if answer.status == 200 else f"HTTP {answer.status}" for answer in answers}

    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def last_of_new(self, host: Machine) -> float:
        """Return when the new release last answered a host's users."""
        return max((answer.at for answer in self.answers if answer.release == NEW and answer.host == host.address), default=0.0)
