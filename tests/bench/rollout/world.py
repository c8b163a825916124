"""A production to measure rollouts on: Envoy and services as processes of this machine, PostgreSQL, and an open-loop client."""

from __future__ import annotations

import hashlib
import io
import json
import re
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, parse_rfc3339, rfc3339
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Child, Processes, send_signal
from azora_ci.database.cluster import Cluster
from azora_ci.record import fragments
from azora_ci.targets.base import Owner, TargetContext
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.envoy.state import command
from azora_ci.targets.local_processes.processes import LOOPBACK, free_port
from azora_ci.targets.local_processes.target import LocalProcesses, deploy_at_once, install_edge
from azora_ci.targets.release import Release
from tests.bench.rollout import service as rollout_service
from tests.support import fragments_builder as build
from tests.support.databases import create_database

SERVICE = "web"
SHA = "0" * 40
FIRST_ID = 1764000000
DATABASE = "bench"
MOST_CONNECTIONS = 200  # each instance has one; old ones keep running
OWNER_URL = "https://runs.example/bench"
GO_BACK_SECONDS = 15.0  # for a cancelled step
WAIT_SECONDS = 120.0  # for anything that must come
SCHEMA = (
    "CREATE TABLE courses (id integer PRIMARY KEY, name text); INSERT INTO courses SELECT n, 'Course ' || n FROM generate_series(0, 999) n"
)
# The verdict is not what is measured: only a version that says of itself that it is sick goes back.
ROLLOUT = {"error_rate_points": 100.0, "latency_factor": 1000.0, "minimum_requests": 20, "inconclusive": "pass"}


def toml(document: Mapping[str, Any]) -> str:
    """Return a document as TOML, one line per top-level key."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in document.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def configuration(service: Mapping[str, Any], target: Mapping[str, Any], **more: Any) -> str:
    """Return a deployment configuration with one service."""
    base = {"title": "Web", "route_prefix": "/", "health_path": "/health"}
    document = {
        "schema_version": 1,
        "application": "bench",
        "public_url": "http://127.0.0.1",
        "on_call": "nobody",
        "checks": {"required": ["test"], "build": [["true"]]},
        "build": {"commands": [["true"]]},
        "database": {},
        "backup": {"location": "s3://bench/prod"},
        "rollout": ROLLOUT,
        "target": target,
        "services": {SERVICE: {**base, **service}},
    }
    return toml({**document, **more})


def until(condition: Callable[[], object], what: str, clock: Clock, seconds: float = WAIT_SECONDS) -> float:
    """Wait until ``condition`` is true; return the seconds it took. Raises NotTrueError after ``seconds``."""
    begun = clock.monotonic()
    while not condition():
        if clock.monotonic() - begun > seconds:
            raise NotTrueError(
                "Measurement ended early", what=f"not within {seconds:g} s: {what}", where="bench rollout", next_step="see above"
            )
        clock.sleep(0.02)
    return clock.monotonic() - begun


def ended(child: Child, seconds: float) -> int:
    """Return a child's exit code. Raises NotTrueError when it still runs after so many seconds; it is ended then."""
    try:
        return child.wait(seconds)
    except TimeoutError as error:
        child.end()
        output = "".join(child.lines["stdout"])[-2000:]
        raise NotTrueError("Measurement ended early", what=f"{error}\n{output}", where="bench rollout", next_step="see above") from None


@dataclass
class Steps:
    """Runs the real step as a process, each time for the next deployment."""

    folder: Path
    config_path: Path
    processes: Processes
    number: int = 0
    attempt: int = 0
    access: Mapping[str, str] = field(default_factory=dict)
    digest: Callable[[str], str] = lambda _version: ""
    services: Sequence[str] = (SERVICE,)
    last: Release = field(default_factory=lambda: Release("", "", {}))
    running: Child | None = None

    def next_release(self) -> Release:
        """Return the next version with its digest; it is ``last`` until the next."""
        self.number += 1
        version = f"1.{self.number}.0"
        digests = dict.fromkeys(self.services, self.digest(version))
        self.last = Release(f"{FIRST_ID + 100 * self.number}-{self.number:06x}", f"v{version}", digests)
        return self.last

    def start(self, release: Release, seconds: tuple[float, float, float], **more: str) -> Child:
        """Start gradual-rollout with stages of these lengths."""
        self.attempt += 1
        self._built(release)
        minutes = dict(
            zip(("CANARY_MINUTES", "PROGRESSIVE_MINUTES", "FULL_MINUTES"), (f"{length / 60:.6f}" for length in seconds), strict=True)
        )
        environ = {
            "DEPLOYMENT_ID": release.id,
            "VERSION": release.version,
            "GIT_SHA": SHA,
            "DEPLOY_CONFIG": str(self.config_path),
            "DEPLOYMENT_LOG_DIR": str(self.logs(self.attempt)),
            "RECEIVED_ARTIFACTS_DIR": str(self.folder / "received"),
            "GITHUB_RUN_ID": "1",
            "NEEDS": build.needs_of(self.folder / "received", release.id),
            "GITHUB_RUN_ATTEMPT": str(self.attempt),
            "HEALTH_CHECK_TIMEOUT": "60",
            "HEALTH_CHECK_INTERVAL": "0.5",
            "HEALTH_CHECK_RETRIES": "4",
            "ROLLBACK_WINDOW_MINUTES": "1",
            "SHORT_STAGES_REASON": "measured",
            **minutes,
            **self.access,
            **more,
        }
        argv = (sys.executable, "-c", "from azora_ci.steps.runner import main; main('gradual-rollout')")
        self.running = self.processes.start(argv, env=environ)
        return self.running

    def stop(self) -> None:
        """Cancel the step that was started last, if it still runs, and let it go back."""
        if self.running is not None and self.running.poll() is None:
            self.running.end(GO_BACK_SECONDS)

    def logs(self, attempt: int) -> Path:
        """Return the folder of an attempt's log and fragment."""
        return self.folder / f"job-{attempt}"

    def _built(self, release: Release) -> None:
        services = {
            name: {"digest": digest, "reference": digest, "size_bytes": 1, "seconds": 0.1, "reused": False}
            for name, digest in release.digests.items()
        }
        now, built = rfc3339(Clock().now()), {"services": services, "commands": [], "seconds": 0.1}
        evidence: dict[str, Any] = {"kind": "archives", "isolation": "job", "builder": None, **built}
        fragment = fragments.Fragment("build-and-push", release.id, release.version, SHA, "1", 1, "ok", now, now, evidence)
        path = self.folder / "received" / f"build-logs-{release.id}" / "record" / "build-and-push.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fragment.document()), encoding="utf-8")

    def finish(self, step: Child, code: int | None) -> dict[str, Any]:
        """Wait for a step's end and return its evidence. Raises NotTrueError when it ends with another exit code."""
        exit_code = ended(step, WAIT_SECONDS)
        if code is not None and exit_code != code:
            output = "".join(step.lines["stdout"])[-3000:] + step.stderr_text[-2000:]
            raise NotTrueError(
                "A rollout ended otherwise", what=output, where=f"exit code {exit_code}, expected {code}", next_step="see its output"
            )
        evidence: dict[str, Any] = fragments.read(self.logs(self.attempt) / "record" / "gradual-rollout.json").evidence
        return evidence


class LocalWorld:
    """Services on loopback behind Envoy, with 1.0.0 in production. ``close`` ends everything that was started."""

    revives = False

    def __init__(self, folder: Path, processes: Processes, *, instances: int = 3) -> None:
        self.folder, self.processes, self.clock = folder, processes, Clock()
        self._stack = ExitStack()
        folder.chmod(0o711)
        (folder / "archives").mkdir()
        self.sick = folder / "sick"
        try:
            self._start(instances)
        except BaseException:
            self.close()
            raise

    def _start(self, instances: int) -> None:
        cluster = self._stack.enter_context(database(self.folder / "database", self.processes))
        self.port = free_port()
        service = {
            "public_health_url": f"http://{LOOPBACK}:{self.port}/health",
            "instances": instances,
            "command": [sys.executable, "service.py"],
            "env": {"SICK": str(self.sick), "DATABASE_URL": cluster.url(DATABASE)},
            "stop_grace_seconds": 5,
        }
        places = {"state_dir": str(self.folder / "state"), "archive_dir": str(self.folder / "archives")}
        edge = {"config_dir": str(self.folder / "edge")}
        path = self.folder / "deploy.toml"
        path.write_text(configuration(service, {"kind": "local_processes", "local_processes": places}, edge=edge), encoding="utf-8")
        self.config = config.load(path)
        self.steps = Steps(self.folder, path, self.processes, digest=self.archive)
        bootstrap = install_edge(self.config, self.folder / "edge", self.port)
        self.edge = Edge(self.folder / "edge", self.clock)
        self.processes.start(command(bootstrap, binary=str(Path(sys.executable).parent / "envoy")))
        until(self._edge_answers, "Envoy answers", self.clock)
        self.stable = self.steps.next_release()
        deploy_at_once(self.target(), self.stable, self.owner(self.stable))

    def _edge_answers(self) -> bool:
        try:
            return bool(self.edge.weights() is not None)
        except Exception:
            return False

    def archive(self, version: str) -> str:
        """Leave the archive of a version and return its digest."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            tar.add(Path(rollout_service.__file__), "service.py")
            note = io.BytesIO(f"{version}\n".encode())
            info = tarfile.TarInfo("RELEASE")
            info.size = len(note.getvalue())
            tar.addfile(info, note)
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        (self.folder / "archives" / f"sha256-{digest}.tar.gz").write_bytes(data.getvalue())
        return f"sha256:{digest}"

    def target(self) -> LocalProcesses:
        """Return the target, to be moved without a step."""
        return LocalProcesses(
            TargetContext(self.config, self.processes, self.clock, self.folder / "logs", 60.0, rollback_window_minutes=0.001)
        )

    @staticmethod
    def owner(release: Release) -> Owner:
        """Return the owner of a lock."""
        return Owner(release.id, OWNER_URL, "bench")

    def at(self, release: Release, percent: int) -> bool:
        """Say whether that share of traffic goes to a release."""
        state = self.edge.state()
        return state.canary == release.id and state.percent == percent

    def kill_new_instance(self, release: Release) -> None:
        """Kill the instance of a release that was started last."""
        instances = self.target().current().releases[release.id].instances
        send_signal(instances[max(instances, key=lambda key: key[1])]["pid"], signal.SIGKILL)

    def make_sick(self, version: str) -> None:
        """Have the instances of a version say that they are not healthy."""
        self.sick.write_text(version.removeprefix("v"), encoding="utf-8")

    def started(self, release: Release) -> list[datetime]:
        """Return when the instances of a release were started, from the latest step's log."""
        lines = (self.steps.logs(self.steps.attempt) / "gradual-rollout.log").read_text(encoding="utf-8").splitlines()
        return [parse_rfc3339(line.partition(" ")[0]) for line in lines if re.search(r"& \[\d+\]$", line)] if release else []

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Return where users come in."""
        return [(LOOPBACK, self.port)]

    def close(self) -> None:
        """End services, Envoy and database."""
        with ExitStack() as stack:
            stack.callback(self.processes.end_all)
            stack.callback(self._stack.close)
            if hasattr(self, "config"):
                for release in self.target().current().releases.values():
                    for facts in release.instances.values():
                        send_signal(facts["pid"], signal.SIGKILL)


@contextmanager
def database(folder: Path, processes: Processes) -> Iterator[Cluster]:
    """Provide PostgreSQL with the services' table in ``DATABASE``, and end it at the end."""
    from azora_ci.database.postgres import DatabaseUrl

    with Cluster.start(folder, processes=processes, settings={"max_connections": str(MOST_CONNECTIONS)}) as cluster:
        connection = DatabaseUrl.parse(create_database(cluster, DATABASE)).connect()
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(SCHEMA)
        finally:
            connection.close()
        yield cluster


@contextmanager
def local_world(folder: Path) -> Iterator[LocalWorld]:
    """Provide a world, and close it at the end."""
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock(), folder / "bench.log"))
    world = LocalWorld(folder, processes)
    try:
        yield world
    finally:
        world.close()


class Client:
    """The open-loop client as a process."""

    def __init__(self, processes: Processes, addresses: list[tuple[str, int]], **settings: Any) -> None:
        argv = (sys.executable, "-m", "tests.bench.rollout.client", json.dumps({"addresses": addresses, **settings}))
        self._child = processes.start(argv, stdin=True)
        until(lambda: self._child.lines["stdout"] or self._child.poll() is not None, "the client sends", Clock())
        if not self._child.lines["stdout"]:
            raise self._failed()

    def _failed(self) -> NotTrueError:
        details = f"exit code {self._child.wait(10)}: {self._child.stderr_text[-2000:]}"
        return NotTrueError("The client failed", what=details, where="rollout_client", next_step="see its output")

    def finish(self, seconds: float) -> dict[str, Any]:
        """Let the client end once it has sent all its requests, and return its counts. Raises NotTrueError."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        code = ended(self._child, seconds)
        lines = self._child.lines["stdout"]
        if code != 0 or len(lines) < 2:
            raise self._failed()
        counts: dict[str, Any] = json.loads(lines[-1])
        return counts


def seconds_of_starts(log: Path, started: Sequence[datetime]) -> float:
    """Return the seconds a step waited for instances: at each stage from the first start until the last one answered healthy.

    ``log`` is the step's, where "answers healthy" stands with the time; ``started`` are the moments of the starts, in order.
    """
    lines = log.read_text(encoding="utf-8").splitlines()
    healthy = [parse_rfc3339(line.partition(" ")[0]) for line in lines if " ✓ " in line and "answers healthy" in line]
    total, since = 0.0, datetime.min.replace(tzinfo=UTC)
    for moment, following in zip(healthy, [*healthy[1:], None], strict=True):
        if following is not None and not any(moment < start < following for start in started):
            continue  # the last of those that were awaited together counts
        begun = next((start for start in started if since < start < moment), None)
        if begun is not None:
            total += (moment - begun).total_seconds()
        since = moment
    return total
