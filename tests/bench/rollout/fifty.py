"""Going back on fifty hosts, each an answer of 50 ms away: seconds from the verdict until the last of them has the old routes.

The target is the real ``docker_hosts`` up to the sockets that lead through SSH; those are the stand-ins' own.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.hosts import HostAddress
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret
from azora_ci.targets.base import Owner, TargetContext
from azora_ci.targets.docker_hosts import target as docker_hosts
from azora_ci.targets.docker_hosts.host_node import HostNode
from azora_ci.targets.docker_hosts.target import DockerHosts
from azora_ci.targets.release import Release
from tests.bench.rollout.scenes import Size
from tests.bench.rollout.world import OWNER_URL, SERVICE, configuration

LEASE_SECONDS = 45.0
DIGEST = "sha256:" + "0" * 64
NO_KEY = "-----BEGIN NO PRIVATE KEY-----\nnone\n"  # no connection is opened with it
OLD, NEW = (Release(f"176400000{number}-00000{number}", f"v1.{number}.0", {SERVICE: DIGEST}) for number in (1, 2))


class Forwarded:
    """Stands in for a host's ``Connection``: what it connects to is a stand-in's own. ``ports`` and ``folder`` are set before use."""

    folder = Path()
    ports: tuple[int, ...] = ()

    def __init__(self, address: HostAddress, **_options: Any) -> None:
        self.address = address
        number = int(address.host.removeprefix("h"))
        self.port, self.openings = self.ports[number], 1
        self.docker_socket = self.folder / str(number) / "docker.sock"

    def open(self, _attempts: int | None = None) -> None:
        """Do nothing: the sockets are open."""

    def ensure(self) -> None:
        """Do nothing: the sockets are open."""

    def close(self) -> None:
        """Do nothing: the sockets stay open."""

    def dial(self, destination: tuple[str, int] | Path, seconds: float) -> socket.socket:
        """Connect to the stand-in for ``destination``, which it reads from the first line."""
        connection = socket.create_connection(("127.0.0.1", self.port), seconds)
        name = f"{destination} 0" if isinstance(destination, Path) else f"{destination[0]} {destination[1]}"
        connection.sendall(f"{name}\n".encode())
        if not connection.recv(1):
            connection.close()
            raise ConnectionRefusedError
        return connection


class FiftyHosts(DockerHosts):
    """The target, with stand-ins for its connections."""

    def _host_node(self, address: HostAddress, credentials: Any) -> HostNode:
        names = vars(docker_hosts)
        original = names["Connection"]
        names["Connection"] = Forwarded  # the only part that is not real
        try:
            return super()._host_node(address, credentials)
        finally:
            names["Connection"] = original


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """Deploy to all hosts, bring the next release to 50 %, go back, and read from the hosts when their routes were switched."""
    clock = Clock()
    processes = Processes(JobLog(Actions(stream=io.StringIO()), clock, folder / "fifty.log"))
    with tempfile.TemporaryDirectory(prefix="azf") as short:  # a socket's path may have 107 characters at most
        arguments = (short, str(size.hosts), str(size.latency), str(LEASE_SECONDS))
        argv = (sys.executable, "-m", "tests.bench.rollout.standins", *arguments)
        server = processes.start(argv, stdout_pipe=True)
        try:
            assert server.stdout is not None
            Forwarded.folder, Forwarded.ports = Path(short), tuple(json.loads(server.stdout.readline() or b"[]"))
            target = FiftyHosts(_context(folder, processes, clock, size))
            return _go_back(target, Path(short) / "switches.jsonl", clock, size)
        finally:
            processes.end_all()


def _go_back(target: DockerHosts, switches: Path, clock: Clock, size: Size) -> dict[str, Any]:
    with target.locked(Owner(OLD.id, OWNER_URL, "bench")):
        target.deploy(OLD, 100)
        target.set_weight(OLD, 100)
        target.promote(OLD)
    with target.locked(Owner(NEW.id, OWNER_URL, "bench")):
        begun = clock.monotonic()
        target.deploy(NEW, 50)
        target.set_weight(NEW, 50)
        up = clock.monotonic() - begun
        verdict = clock.now().timestamp()
        returned = target.abort(NEW, "measured")
        whole = clock.now().timestamp() - verdict
    seconds_back: dict[int, float] = {}
    for line in switches.read_text(encoding="utf-8").splitlines():
        switch = json.loads(line)
        if switch["at"] >= verdict and switch["percent"] == 0:
            seconds_back.setdefault(switch["host"], switch["at"] - verdict)
    if len(seconds_back) != size.hosts or not returned.proved:
        raise NotTrueError(
            "Not all hosts went back",
            what=f"{len(seconds_back)} of {size.hosts}; {returned.detail[:500]}",
            where="stand-ins",
            next_step="see above",
        )
    last = max(*seconds_back.values(), returned.seconds)  # the switch that the last host noted, and what the target saw itself
    return {
        "abort_seconds_fifty_hosts": round(last, 3) if size.hosts >= 50 else None,
        "first_host_seconds": round(min(seconds_back.values()), 3),
        "last_host_seconds": round(max(seconds_back.values()), 3),
        "told_by_target_seconds": round(returned.seconds, 3),
        "until_proved_and_stopped_seconds": round(whole, 2),
        "hosts": size.hosts,
        "latency_seconds": size.latency,
        "up_seconds": round(up, 2),
    }


def _context(folder: Path, processes: Processes, clock: Clock, size: Size) -> TargetContext:
    service = {"public_health_url": "http://127.0.0.1/health", "instances": 1, "port": 8080, "stop_grace_seconds": 1}
    images = {"edge_image": f"registry.example/edge@{DIGEST}", "guard_image": f"registry.example/guard@{DIGEST}"}
    target = {"kind": "docker_hosts", "docker_hosts": {**images, "lease_seconds": LEASE_SECONDS}}
    path = folder / "deploy.toml"
    path.write_text(configuration(service, target, registry={"repository": "registry.example"}), encoding="utf-8")
    access = ProductionHosts(
        prod_host=Secret(",".join(f"h{number}" for number in range(size.hosts))),
        kubeconfig_data=None,
        prod_jump_host=None,
        prod_user=Secret("bench"),
        prod_key=Secret(NO_KEY),
        prod_known_hosts="none",
        prod_accept_new_host_key=False,
        pull_username=None,
        pull_password=None,
        docker_username=None,
        docker_password=None,
    )
    return TargetContext(config.load(path), processes, clock, folder / "logs", 60.0, access=access)
