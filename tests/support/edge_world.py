"""A production of one machine for rollout tests: a real Envoy, real services, a light load, the real steps as processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, birth, send_signal
from azora_ci.health.answers import RELEASE_HEADER, pass_word
from azora_ci.record import fragments
from azora_ci.targets.base import Owner, TargetContext
from azora_ci.targets.envoy import state as envoy
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.local_processes.target import LocalProcesses, deploy_at_once, install_edge
from azora_ci.targets.release import Release
from tests.support import ROOT, deploy_config, load
from tests.support import fragments_builder as build
from tests.support.waiting import until

SHA = "0123456789abcdef0123456789abcdef01234567"
OLD, NEW = "1764000000-aaaaaa", "1764000100-bbbbbb"
ENVOY = str(Path(sys.executable).parent / "envoy")
SERVICES = ("auth_service", "api_gateway")
LOOPBACK = "127.0.0.1"
# A stage is a second or two; a loaded machine may be slow, so the limits that are not under test are generous.
ROLLOUT = {"minimum_requests": 10, "latency_factor": 1000.0, "inconclusive": "abort", "drain_seconds": 2}


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


def get(port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return load.get((LOOPBACK, port), path, method, headers)


class Load(load.Load):
    """A load through the edge at a port of this machine."""

    def __init__(self, port: int, *, pause: float = 0.02, threads: int = 1, patience: float = load.PATIENCE) -> None:
        super().__init__([(LOOPBACK, port)], ("/api/work", "/auth/work"), pause=pause, threads=threads, patience=patience)


class World:
    """``World(tmp_path)`` starts Envoy; ``deploy_old()`` puts 1.0.0 into production; ``rollout()`` runs the real step."""

    health: ClassVar[dict[str, Any]] = {}  # the health settings of each service

    def __init__(
        self,
        folder: Path,
        *,
        instances: int = 2,
        rollout: dict[str, Any] | None = None,
        workers: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        self.folder = folder
        self.workers = workers or {}  # service id -> keys beside those that every worker has
        self.rollback_window_minutes = 60.0
        self.services: tuple[str, ...] = SERVICES
        self.flags = folder / "flags"
        self.archives = folder / "archives"
        for created in (self.flags, self.archives):
            created.mkdir(parents=True)
        self._envoy: subprocess.Popen[bytes] | None = None
        self._steps: list[subprocess.Popen[str]] = []
        self.clock = Clock()
        (self.port,) = free_ports(1)
        self.edge_keys: dict[str, Any] = {"config_dir": str(folder / "edge")}
        self._configured = (instances, ROLLOUT | (rollout or {}), changes)
        self.config_path = self._configure(*self._configured)
        self.config = config.load(self.config_path)
        self.bootstrap = install_edge(self.config, folder / "edge", self.port)
        self.edge = Edge(folder / "edge", self.clock)
        self.start_envoy()

    def _configure(self, instances: int, rollout: dict[str, Any], changes: dict[str, Any]) -> Path:
        services = {}
        for name in self.services:
            prefix = "/api" if name == "api_gateway" else "/auth"
            services[name] = deploy_config.service(
                name.replace("_", " "),
                f"http://127.0.0.1:{self.port}{prefix}/health",
                instances=instances,
                command=[sys.executable, "-S", "service.py"],
                env={"FLAGS": str(self.flags)},
                stop_grace_seconds=5,
                depends_on=["auth_service"] if name == "api_gateway" and "auth_service" in self.services else [],
                secrets=["SERVICE_SECRET"] if name == "api_gateway" else [],
            )
            services[name] |= {
                "route_prefix": prefix,
                "health_path": f"{prefix}/health",
                **({"health": self.health} if self.health else {}),
            }
        for name, keys in self.workers.items():
            services[name] = {
                "title": name, "kind": "worker", "entrypoint": [sys.executable, "-S"], "command": ["worker.py"], "stop_grace_seconds": 5,
                "env": {"FLAGS": str(self.flags)}, "secrets": ["SERVICE_SECRET"], **keys,
            }  # fmt: skip
        smoke = {"endpoints": [{"name": "work", "url": f"http://127.0.0.1:{self.port}/api/work", "contains": '"service": "api_gateway"'}]}
        people = {"public_url": f"http://127.0.0.1:{self.port}", "on_call": "#on-call"}
        keys = {**people, "services": services, "edge": self.edge_keys, "rollout": rollout, "smoke": smoke} | changes
        return deploy_config.write(self.folder / "deploy.toml", **keys)

    def configure_edge(self, **keys: Any) -> None:
        """Change ``[edge]`` of the configuration; the next deployment takes it up."""
        self.edge_keys |= keys
        self.config_path = self._configure(*self._configured)
        self.config = config.load(self.config_path)

    def configure_services(self, *names: str) -> None:
        """Have only these services in the configuration and in releases; the next deployment takes it up."""
        self.services = names
        self.configure_edge()

    def start_envoy(self) -> None:
        with (self.folder / "envoy.log").open("ab") as log:
            self._envoy = subprocess.Popen(envoy.command(self.bootstrap, binary=ENVOY), stdout=log, stderr=log)
        until(self._envoy_answers, "Envoy listens")

    def _envoy_answers(self) -> bool:
        assert self._envoy is not None
        assert self._envoy.poll() is None, (self.folder / "envoy.log").read_text()
        try:
            return get(self.port, "/api/health")[0] > 0
        except OSError:
            return False

    def kill_envoy(self) -> None:
        assert self._envoy is not None
        self._envoy.kill()
        self._envoy.wait()

    def close(self) -> None:
        for step in self._steps:  # a test that failed may have left one that would go on starting instances
            step.kill()
            step.wait()
        self.kill_envoy()
        for release in self.target().current().releases.values():
            for facts in release.instances.values():
                if birth(facts["pid"]) == facts["birth"]:
                    send_signal(facts["pid"], signal.SIGKILL)

    # --- releases ------------------------------------------------------------------------------------------------------

    def target(self, *, health_timeout: float = 30.0) -> LocalProcesses:
        from azora_ci.core.variables import Secret

        self.output = io.StringIO()
        processes = Processes(JobLog(Actions(stream=self.output), self.clock))
        logs = self.folder / "logs"
        secrets = {"SERVICE_SECRET": Secret("not-to-be-seen")}
        return LocalProcesses(
            TargetContext(self.config, processes, self.clock, logs, health_timeout, secrets, self.rollback_window_minutes)
        )

    def release(self, version: str, deployment_id: str) -> Release:
        return Release(deployment_id, f"v{version}", {name: self.archive(version, name) for name in (*self.services, *self.workers)})

    def archive(self, version: str, service: str) -> str:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            tar.add(ROOT / "tests/support/sample_service.py", "service.py")
            tar.add(ROOT / "tests/support/sample_worker.py", "worker.py")
            tar.add(ROOT / "tests/support/sample_once.py", "once.py")
            note = f"{service} {version}\n".encode()
            info = tarfile.TarInfo("RELEASE")
            info.size = len(note)
            tar.addfile(info, io.BytesIO(note))
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        (self.archives / f"sha256-{digest}.tar.gz").write_bytes(data.getvalue())
        return f"sha256:{digest}"

    def deploy_old(self) -> None:
        deploy_at_once(self.target(), self.release("1.0.0", OLD), Owner(OLD, "https://runs.example/1", "tests"))

    def flag(self, name: str) -> None:
        (self.flags / name).touch()

    def unflag(self, name: str) -> None:
        (self.flags / name).unlink()

    # --- steps ---------------------------------------------------------------------------------------------------------

    def environ(self, attempt: int, **more: str) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return inherited | {
            "PYTHONPATH": str(ROOT),
            "DEPLOYMENT_ID": NEW,
            "VERSION": "v1.1.0",
            "GIT_SHA": SHA,
            "DEPLOY_CONFIG": str(self.config_path),
            "DEPLOYMENT_LOG_DIR": str(self.folder / f"job-{attempt}"),
            "RECEIVED_ARTIFACTS_DIR": str(self.folder / "received"),
            "GITHUB_OUTPUT": str(self.folder / f"output-{attempt}.txt"),
            "GITHUB_STEP_SUMMARY": str(self.folder / f"summary-{attempt}.md"),
            "NEEDS": build.needs_of(self.folder / "received", more.get("DEPLOYMENT_ID", NEW)),
            "GITHUB_RUN_ID": "1",
            "GITHUB_RUN_ATTEMPT": str(attempt),
            "HEALTH_CHECK_TIMEOUT": "30",
            "HEALTH_CHECK_INTERVAL": "0.25",
            "HEALTH_CHECK_RETRIES": "3",
            "CANARY_MINUTES": "0.012",
            "PROGRESSIVE_MINUTES": "0.012",
            "FULL_MINUTES": "0.012",
            "SHORT_STAGES_REASON": "a test",
            "SERVICE_SECRET": "not-to-be-seen",
            **more,
        }

    def start(self, script: str, attempt: int = 1, **more: str) -> subprocess.Popen[str]:
        """Start a step as a process."""
        command = [sys.executable, str(ROOT / "scripts" / f"{script}.py")]
        environ, output = self.environ(attempt, **more), subprocess.PIPE
        step = subprocess.Popen(command, env=environ, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT, text=True)
        self._steps.append(step)
        return step

    def built(self, version: str = "1.1.0", deployment_id: str = NEW) -> None:
        """Leave the fragment that build-and-push leaves."""
        services = {
            name: {"digest": digest, "reference": digest, "size_bytes": 1, "seconds": 0.1, "reused": False}
            for name, digest in self.release(version, deployment_id).digests.items()
        }
        moment = "2026-11-24T11:00:00.000Z"
        fragment = fragments.Fragment(
            "build-and-push", deployment_id, f"v{version}", SHA, "1", 1, "ok", moment, moment,
            {"kind": "archives", "isolation": "job", "builder": None, "services": services, "commands": [], "seconds": 0.2},
        )  # fmt: skip
        path = self.folder / "received" / f"build-logs-{deployment_id}" / "record" / "build-and-push.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fragment.document()))

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for a step and return its exit code and output."""
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def fragment(self, job: str = "gradual-rollout", attempt: int = 1) -> fragments.Fragment:
        return fragments.read(self.folder / f"job-{attempt}" / "record" / f"{job}.json")

    def release_header(self, side: str) -> dict[str, str]:
        """Return the header of requests of ours that leads to a side, canary or stable; users do not know its value."""
        secret = self.edge.state().secret
        assert secret is not None
        return {RELEASE_HEADER: pass_word(secret, side)}

    # --- what users see ------------------------------------------------------------------------------------------------

    def versions_now(self, number: int = 30) -> set[str]:
        """Return the versions that answer a user's requests now."""
        versions = set()
        for path in ("/api/work", "/auth/work"):
            for _ in range(number):
                status, _, body = get(self.port, path)
                versions.add(json.loads(body)["version"] if status == 200 else f"HTTP {status}")
        return versions

    def running(self) -> Counter[str]:
        """Return how many processes run per version, by the journal's process ids."""
        return self._count(self.services)

    def running_workers(self) -> Counter[str]:
        """Return how many processes of workers run per version."""
        return self._count(self.workers)

    def _count(self, services: Iterable[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        counted = set(services)
        for release in self.target().current().releases.values():
            alive = [facts for facts in release.instances.values() if birth(facts["pid"]) == facts["birth"]]
            counts[release.version] += sum(facts["service"] in counted for facts in alive)
        return +counts

    def wait_for_weight(self, percent: int, process: subprocess.Popen[str]) -> None:
        """Wait until that share of traffic goes to the new release."""

        def has_weight() -> bool:
            assert process.poll() is None, process.communicate()[0]
            state = self.edge.state()
            return state.canary == NEW and state.percent == percent

        until(has_weight, f"{percent} % for the new version", 60)
