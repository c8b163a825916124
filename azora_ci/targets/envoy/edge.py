"""The Envoy edge's files and admin socket. A change is written next to the current files and switched by one rename.

``<config_dir>/current`` is a symbolic link to the generation in force. Its files are the truth about weights, also when Envoy or the
runner dies. A change counts when the admin socket answers that it is in force.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from azora_ci.core.clock import Clock
from azora_ci.core.documents import MEBIBYTE, Limits, expected_shape, read_file, read_json
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.health.probes import Dial, ProbeRequest, fetch, unix_dial
from azora_ci.health.traffic import Counters
from azora_ci.targets.envoy import config, counting
from azora_ci.targets.envoy.admin import (
    certificate_days,
    cluster_hosts,
    effective_weights,
    expected_hosts,
    expected_weights,
    waiting_requests,
)
from azora_ci.targets.envoy.state import EdgeOptions, EdgeService, EdgeState

T = TypeVar("T")
GENERATIONS_KEPT = 20
NO_OPTIONS = EdgeOptions()
ADMIN_SOCKET = "admin.sock"  # in the folder of files, of a local edge
SOCKET_LENGTH = 107  # bytes of a Unix socket's path: the kernel's limit
ADMIN_TIMEOUT = 5.0  # seconds, for one answer of the admin socket
READ_BACK_SECONDS = 10.0  # Envoy reloads within milliseconds, on a loaded machine later
WAITING = r"^cluster\..*\.upstream_rq_pending_active$"
LIMITS = Limits(size=64 * MEBIBYTE, values=5_000_000)  # the admin socket is trusted, and answers grow with the number of clusters


def install(config_dir: Path, *, listen: str, services: tuple[EdgeService, ...], options: EdgeOptions = NO_OPTIONS) -> Path:
    """Write Envoy's bootstrap and a first generation without any release; return the bootstrap file. ``listen`` is ``host:port``.

    An edge that exists already keeps its releases and weights. Raises BadInputError for a folder whose name is too long for a socket.
    """
    folder = config_dir.resolve()
    admin = folder / ADMIN_SOCKET
    if len(str(admin).encode()) > SOCKET_LENGTH:
        raise BadInputError(
            "The edge's folder has too long a name",
            what=f"{admin} has {len(str(admin).encode())} bytes, a Unix socket's path may have {SOCKET_LENGTH}",
            where="edge.config_dir in the deployment configuration",
            next_step="choose a folder with a shorter path",
        )
    folder.mkdir(parents=True, exist_ok=True)
    bootstrap = folder / "bootstrap.json"
    bootstrap.write_text(json.dumps(config.bootstrap(folder, admin, 0o600, _files()), indent=1), encoding="utf-8")
    if not (folder / "current").exists():
        switch(folder, EdgeState(services, listen, options=options))
    return bootstrap


def _files() -> int:
    """Return how many files a process of this user may open; Envoy raises its own limit to that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2 * config.MAX_USERS if hard == resource.RLIM_INFINITY else hard


def switch(config_dir: Path, state: EdgeState) -> str:
    """Write a new generation and put it in force by one rename; return its number as text."""
    folder = config_dir.resolve()
    numbers = _generations(folder)
    generation = str(max(numbers, default=0) + 1)
    target = folder / "generations" / generation
    target.mkdir(parents=True)
    for name, document in config.render(state, folder, generation).items():
        (target / name).write_text(json.dumps(document, indent=1), encoding="utf-8")
    link = folder / "next"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("generations") / generation)
    link.replace(folder / "current")
    for number in sorted(numbers)[:-GENERATIONS_KEPT]:
        shutil.rmtree(folder / "generations" / str(number), ignore_errors=True)
    return generation


def _generations(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "generations").glob("*") if path.name.isdigit()]


class Edge:
    """One Envoy: its folder of files and its admin socket, to which ``dial`` connects where it is not in that folder."""

    def __init__(self, config_dir: Path, clock: Clock, dial: Dial | None = None) -> None:
        self._folder = config_dir
        self._clock = clock
        self._dial = dial or unix_dial(config_dir.resolve() / ADMIN_SOCKET)

    def state(self) -> EdgeState:
        """Return the state in force, from the files. Raises BadInputError when no edge is installed in the folder."""
        try:
            return EdgeState.from_document(read_file(self._folder / "current" / "edge.json"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInputError(
                "No edge is installed",
                what=f"{self._folder / 'current' / 'edge.json'} cannot be read: {type(error).__name__}: {error}",
                where="edge.config_dir in the deployment configuration",
                next_step="install the edge first (python -m azora_ci edge install), or correct edge.config_dir",
            ) from error

    def switch(self, state: EdgeState) -> str:
        """Put a state in force by one rename, without waiting for Envoy; return the generation."""
        return switch(self._folder, state)

    def apply(self, state: EdgeState, seconds: float = READ_BACK_SECONDS) -> None:
        """Put a state in force and wait until Envoy confirms it. Raises UnreachableError when it does not.

        Plain HTTP is redirected only once TLS works: otherwise a wrong path of a certificate would cut all users off.
        """
        tls = state.options.tls
        if tls is not None and tls.redirect and tls != self.state().options.tls:
            unredirected = replace(state, options=replace(state.options, tls=replace(tls, redirect=False)))
            self.confirm(unredirected, self.switch(unredirected), seconds)
        self.confirm(state, self.switch(state), seconds)

    def confirm(self, state: EdgeState, generation: str, seconds: float = READ_BACK_SECONDS) -> None:
        """Read the effective configuration back until weights and addresses are those of ``state``. Raises UnreachableError."""
        deadline = self._clock.monotonic() + seconds
        while True:
            difference = self._difference(state, generation)
            if difference is None:
                return
            if self._clock.monotonic() > deadline:
                raise UnreachableError(
                    "The edge did not take the change",
                    what=f"{difference} after {seconds:g} s",
                    where=f"the edge's admin socket, /config_dump; {self._folder}",
                    next_step="look at Envoy's log; the files are what it will take when it starts again",
                )
            self._clock.sleep(0.01)

    def _difference(self, state: EdgeState, generation: str) -> str | None:
        try:
            present, weights = self._read("/config_dump?resource=dynamic_route_configs", effective_weights)
            if present != generation:
                return f"Envoy routes by generation {present or '(none)'}, not {generation}"
            if weights != expected_weights(state):
                return f"Envoy's weights are {weights}, not {expected_weights(state)}"
            hosts = self._read("/clusters?format=json", cluster_hosts)
            tls = state.options.tls
            if tls is not None and self.certificate_days() is None:
                names = f"edge.tls_certificate or edge.tls_key ({tls.certificate}, {tls.key} as it sees them)"
                return f"Envoy has no certificate: {names} cannot be read, or they do not belong together"
        except UnreachableError as error:
            return error.what
        for name, addresses in expected_hosts(state).items():
            if set(hosts.get(name, {})) != addresses:
                return f"cluster {name} has {sorted(hosts.get(name, {}))}, not {sorted(addresses)}"
        return None

    def weights(self) -> dict[str, dict[str, int]]:
        """Return the weights that Envoy uses: route prefix -> cluster -> percent."""
        return self._read("/config_dump?resource=dynamic_route_configs", effective_weights)[1]

    def certificate_days(self) -> int | None:
        """Return for how many whole days the edge's certificate is valid; None without a certificate. Raises UnreachableError."""
        return self._read("/certs", certificate_days)

    def counters(self, state: EdgeState) -> dict[tuple[str, str], Counters]:
        """Return (service, release id) -> counters since Envoy started. Raises UnreachableError."""
        path = f"/stats?format=json&histogram_buckets=cumulative&filter={quote(counting.STATS)}"
        return self._read(path, lambda stats: counting.counters(stats, state))

    def requests_to(self, addresses: set[str]) -> int:
        """Return how many requests Envoy has sent to these addresses since its start, through any cluster. Raises UnreachableError."""
        return self._sum(addresses, "rq_total")

    def waiting(self, addresses: set[str]) -> int:
        """Return how many requests wait for a connection to these addresses, through any cluster. Raises UnreachableError."""
        waiting = self._read(f"/stats?format=json&filter={quote(WAITING)}", waiting_requests)
        hosts = self._read("/clusters?format=json", cluster_hosts) if waiting else {}
        return sum(count for name, count in waiting.items() if not addresses.isdisjoint(hosts.get(name, {})))

    def under_way(self, addresses: set[str]) -> int:
        """Return how many requests and upgraded connections are open at these addresses. Raises UnreachableError."""
        return self._sum(addresses, "rq_active")

    def _sum(self, addresses: set[str], stat: str) -> int:
        hosts = self._read("/clusters?format=json", lambda clusters: cluster_hosts(clusters, stat))
        return sum(count for counts in hosts.values() for address, count in counts.items() if address in addresses)

    def _read(self, path: str, reader: Callable[[Mapping[str, Any]], T]) -> T:
        """Return what a reader makes of an answer. Raises UnreachableError, also for an answer of another shape."""
        document = self._get(path)
        with expected_shape(lambda problem: self._silent(path, f"an answer of another shape: {problem}")):
            return reader(document)

    def _get(self, path: str) -> Mapping[str, Any]:
        answer = fetch(ProbeRequest(f"http://admin{path}", dial=self._dial), ADMIN_TIMEOUT, self._clock, limit=LIMITS.size + 1)
        try:
            if answer.status == 200:
                document: Mapping[str, Any] = read_json(answer.body, LIMITS)
                return document
            detail = answer.detail or f"HTTP {answer.status}"
        except ValueError as error:
            detail = str(error)
        raise self._silent(path, detail)

    def _silent(self, path: str, detail: str) -> UnreachableError:
        return UnreachableError(
            "The edge's admin socket does not answer",
            what=f"Envoy's admin socket: {detail}",
            where=f"{self._folder}, {path.split('?', maxsplit=1)[0]}",
            next_step="check that Envoy runs, by the bootstrap file that the last edge install wrote",
        )
