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


class Seen(NamedTuple):
    """What a user got: when, from which host, status (0: no answer), the release that the edge chose, and the version or the error."""

    at: float
    host: str
    status: int
    by: str
    said: str


class Users:
    """GETs to every host's edge, from an address that is not the runner's: what breaks the runner's way need not break theirs."""

    def __init__(self, world: World, number: int = 1, *, keep: bool = False) -> None:
        self.seen: list[Seen] = []
        self._keep = keep  # connections open, as a balancer in front of the hosts does
        self._paths, self._source = world.paths, f"{world.lan.prefix}.2"
        ip("addr", "add", f"{self._source}/24", "dev", world.lan.name, check=False)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(one.address,), daemon=True) for one in world.machines * number]

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
            self.seen.append(self._ask(connection, host, self._paths[number % len(self._paths)]))
            if not self._keep:
                connection.close()  # the next GET opens another one
            self._stop.wait(PAUSE)

    def _connection(self, host: str) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(host, HTTP_PORT, timeout=SLOWEST, source_address=(self._source, 0))

    def get(self, host: str, path: str) -> Seen:
        """Send one GET over a connection of its own."""
        with contextlib.closing(self._connection(host)) as connection:
            return self._ask(connection, host, path)

    def _ask(self, connection: http.client.HTTPConnection, host: str, path: str) -> Seen:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            status, by, body = response.status, response.getheader(DEPLOYMENT_HEADER) or "", response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Seen(time.monotonic(), host, 0, "", repr(error))
        try:
            said = str(json.loads(body).get("version", ""))
        except ValueError:
            said = body[:60].decode(errors="replace")
        return Seen(time.monotonic(), host, status, by, said)

    def versions(self, hosts: Sequence[Machine], number: int = 20) -> set[str]:
        """Return what users get now, of all services: versions, and ``HTTP n`` where it is none."""
        found = [self.get(one.address, path) for one in hosts for path in self._paths for _ in range(number)]
        return {one.said if one.status == 200 else f"HTTP {one.status}" for one in found}

    def failed(self) -> list[Seen]:
        return [one for one in self.seen if one.status != 200]

    def last_of_new(self, host: Machine) -> float:
        """Return when a host's users saw the new release last."""
        return max((one.at for one in self.seen if one.by == NEW and one.host == host.address), default=0.0)
