"""Hosts to measure rollouts on: each a network namespace with dockerd, sshd, Envoy and guard, on one bridge with a registry.

The hosts are those of the project's own tests (``tests.support.docker_world``), so this needs the repository and root, as they do.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, parse_rfc3339
from azora_ci.core.errors import BadInputError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database.cluster import SUPERUSER
from azora_ci.targets.base import Owner, Target
from azora_ci.targets.release import Release
from tests.bench.rollout import scenes
from tests.bench.rollout import service as rollout_service
from tests.bench.rollout.kills import LEASE_SECONDS
from tests.bench.rollout.scenes import Size
from tests.bench.rollout.world import DATABASE, OWNER_URL, SERVICE, Steps, configuration, database

INSTANCES = 2  # per host
REQUESTS = 40  # requests per host that must all be answered by one version
SERVICE_PORT = 8080
SYSTEM_PATH = f"{os.defpath}:/usr/sbin:/usr/local/sbin:/usr/local/bin"


class HostsWorld:
    """One or several hosts with 1.0.0 in production."""

    revives = True
    hold_seconds = 0.0

    def __init__(self, lan: Any, folder: Path, machines: int) -> None:
        self.clock = Clock()
        folder.mkdir(parents=True)
        self.processes = Processes(JobLog(Actions(stream=io.StringIO()), self.clock, folder / "bench.log"))
        self.lan, self.folder = lan, folder
        self._stack = ExitStack()
        self._tests = _tests()
        try:
            self._start(lan, folder, machines)
        except BaseException:
            self.close()
            raise

    def _start(self, lan: Any, folder: Path, machines: int) -> None:
        folder.chmod(0o711)
        self._cluster = self._stack.enter_context(database(folder / "database", self.processes))
        self._inner = self._tests.World(lan, folder, machines, lease=LEASE_SECONDS)
        self._inner.config_path.write_text(self._configuration(), encoding="utf-8")
        self._inner.config = config.load(self._inner.config_path)
        digest = image(lan)
        self.reference = f"{lan.registry}/{SERVICE}@{digest}"
        self.steps = Steps(folder, self._inner.config_path, self.processes, access=self._inner.access, digest=lambda _version: digest)
        self.stable = self.steps.next_release()
        target = self.target()
        with target.locked(self.owner(self.stable)):
            target.deploy(self.stable, 100)
            target.set_weight(self.stable, 100)
            target.promote(self.stable)

    @property
    def machines(self) -> list[Any]:
        """Return the hosts."""
        machines: list[Any] = self._inner.machines
        return machines

    def _configuration(self) -> str:
        volumes = [f"{self._inner.flags}:/flags", *self.mounts]
        service = {
            "public_health_url": f"http://{self.machines[0].address}:{self._tests.HTTP_PORT}/health",
            "instances": INSTANCES,
            "port": SERVICE_PORT,
            "env": {"SICK": "/flags/sick", "DATABASE_URL": self.database_url},
            "volumes": volumes,
            "allow_host_paths": [volume.partition(":")[0] for volume in volumes],
            "stop_grace_seconds": 5,
        }
        hosts = {"edge_image": self.lan.edge_image, "guard_image": self.lan.guard_image, "http_port": self._tests.HTTP_PORT}
        target = {"kind": "docker_hosts", "docker_hosts": {**hosts, "lease_seconds": LEASE_SECONDS}}
        return configuration(service, target, registry={"repository": self.lan.registry})

    @property
    def database_url(self) -> str:
        """Return the database as instances reach it: by its Unix socket, for the hosts have no way out."""
        cluster = self._cluster
        return f"postgresql://{SUPERUSER}:{cluster.password}@/{DATABASE}?host=/database&port={cluster.port}"

    @property
    def mounts(self) -> list[str]:
        """Return what instances need of this machine: the program, and the database's socket."""
        return [f"{Path(rollout_service.__file__)}:/app/service.py:ro", f"{self._cluster.sockets}:/database"]

    def target(self) -> Target:
        """Return the target, to be moved without a step."""
        target: Target = self._inner.target()
        return target

    @staticmethod
    def owner(release: Release) -> Owner:
        """Return the owner of a lock."""
        return Owner(release.id, OWNER_URL, "bench")

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Return where users come in."""
        return [(machine.address, self._tests.HTTP_PORT) for machine in self.machines]

    def states(self) -> list[dict[str, Any]]:
        """Return the routes in force on each host, from its volume."""
        return [self._inner.edge_state(machine) for machine in self.machines]

    @staticmethod
    def left(release: Release) -> bool:
        """Say that a guard takes back whatever is not promoted."""
        del release
        return False

    @staticmethod
    def at_rest() -> bool:
        """Say that routes do not move by themselves: only a guard moves them, at once."""
        return True

    def await_lock(self) -> None:
        """Do nothing: a run takes over what its own deployment left."""

    def at(self, release: Release, percent: int) -> bool:
        """Say whether that share of traffic goes to a release on every host."""
        return all((routes["canary"], routes["percent"]) == (release.id, percent) for routes in self.states())

    def kill_new_instance(self, release: Release) -> None:
        """Kill the process of a new instance on the first host; dockerd starts it again."""
        import psutil

        container = self.machines[0].containers(release.id)[0]
        container.reload()
        psutil.Process(container.attrs["State"]["Pid"]).kill()

    def make_sick(self, version: str) -> None:
        """Have the instances of a version say that they are not healthy."""
        (self._inner.flags / "sick").write_text(version.removeprefix("v"), encoding="utf-8")

    def started(self, release: Release) -> list[datetime]:
        """Return when the instances of a release began to be made."""
        return sorted(
            parse_rfc3339(container.attrs["Created"]) for machine in self.machines for container in machine.containers(release.id)
        )

    def promoted(self, release: Release) -> bool:
        """Say whether a host's journal holds the promotion."""
        journalled = []
        for machine in self.machines:
            text = (machine.folder / "d/volumes/azora-edge/_data/journal.jsonl").read_text(encoding="utf-8")
            entries = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
            journalled.append(
                any(entry["entry"] == "promote" and (entry.get("event") or {}).get("deployment_id") == release.id for entry in entries)
            )
        return any(journalled)

    def versions_now(self) -> set[str]:
        """Return the versions that answer users now."""
        answers: Counter[str] = Counter()
        for machine in self.machines:
            for _ in range(REQUESTS):
                status, _, body = self._tests.get(machine.address, "/work")
                answers[json.loads(body)["version"] if status == 200 else f"HTTP {status}"] += 1
        return set(answers)

    def close(self) -> None:
        """End what was started; the instances first, then their database."""
        with ExitStack() as stack:
            stack.callback(self._stack.close)
            stack.callback(self.processes.end_all)
            if hasattr(self, "_inner"):
                stack.callback(self._inner.close)


def _tests() -> Any:
    try:
        return importlib.import_module("tests.support.docker_world")
    except ImportError as error:
        raise BadInputError(
            "The hosts are missing", what=str(error), where="tests/support/docker_world.py", next_step="run scripts/bench in the repository"
        ) from error


def image(lan: Any) -> str:
    """Push the image of the service to the hosts' registry and return its digest; the program itself is mounted."""
    client = lan.machines[0].client
    digest = lan.digests["1.0.0"]["api_gateway"]
    client.images.get(f"{lan.registry}/api_gateway@{digest}").tag(f"{lan.registry}/{SERVICE}", "v1")
    return str(lan.push(SERVICE, "v1")).rpartition("@")[2]


Factory = Callable[[int], AbstractContextManager[HostsWorld]]


@contextmanager
def place(folder: Path) -> Iterator[Factory]:
    """Provide a network; the factory makes a world of so many hosts on it, with nothing left of the world before."""
    numbers, tests = itertools.count(1), _tests()
    (folder / "lan").mkdir()
    if shutil.which("iptables", path=SYSTEM_PATH):
        # As on production's hosts: the kernel hands published ports on. Without it every byte goes through docker-proxy, which takes as
        # much of a core as the service itself, and ends for good at the first connection that it has no descriptor for.
        tests.Machine.options = []
    with tests.lan(folder / "lan") as lan:

        @contextmanager
        def make(machines: int = 1) -> Iterator[HostsWorld]:
            world = HostsWorld(lan, folder / f"world-{next(numbers)}", machines)
            try:
                yield world
            finally:
                world.close()

        yield make


def shares(make: Factory, size: Size) -> dict[str, Any]:
    """Count who answers, on one host and on three."""
    figures: dict[str, Any] = {}
    for machines in (1, 3):
        with make(machines) as world:
            counted = scenes.shares(world, size)
        for key, value in counted.items():
            figures[f"{key}_on_{machines}"] = value
        for percent in (5, 50):
            key = f"share_at_{percent}"
            figures[key] = scenes.furthest([*([figures[key]] if key in figures else []), counted[key]], percent)
    return figures
