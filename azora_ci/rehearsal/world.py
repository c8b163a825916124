"""The world of a rehearsal: all parts of a production and of what surrounds it, as real software on loopback.

PostgreSQL with the old release's data, an S3 server, the old version of four services behind Envoy, GitHub's API, Slack, and a
steady load. The kernel chooses every port; the run's state file lists every process.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.plan import CONFIG
from azora_ci.clients.docker import build_context
from azora_ci.core import config
from azora_ci.core.clock import Clock
from azora_ci.core.config import ToolchainSettings
from azora_ci.core.environment import child_environment
from azora_ci.core.errors import UnreachableError
from azora_ci.core.process import Processes, is_alive
from azora_ci.core.process.isolation import can_isolate
from azora_ci.core.variables import Secret
from azora_ci.database.cluster import free_port
from azora_ci.health.probes import ProbeRequest, fetch, unix_dial
from azora_ci.rehearsal import repo
from azora_ci.rehearsal.act.runner import dotenv
from azora_ci.rehearsal.applications.base import Application
from azora_ci.rehearsal.applications.sample import Sample
from azora_ci.rehearsal.judge.evidence import RolloutFacts
from azora_ci.rehearsal.node import NodeJs, prepare
from azora_ci.rehearsal.production import Places, Production
from azora_ci.rehearsal.runs import CHECKOUT, DATABASE, Run
from azora_ci.rehearsal.standins import database
from azora_ci.targets.base import Owner, TargetContext
from azora_ci.targets.envoy.state import command
from azora_ci.targets.local_processes.target import LocalProcesses, deploy_at_once, install_edge
from azora_ci.targets.release import Release

START_SECONDS = 60.0
ENVOY_ATTEMPTS = 5
LOAD_RATE = 40.0  # requests a second
RULESET_CHECK = "build"  # that the ruleset of the repository demands
OLD_DEPLOYMENT = "1764000000-01d01d"
ROLE = "arn:aws:iam::123456789012:role/azora-deploy"


@dataclass
class World:
    """The world of one run. Its database, endpoints and secrets are there once ``start`` has returned."""

    run: Run
    cache: Path
    processes: Processes
    clock: Clock
    application: Application = field(default_factory=Sample)
    node: NodeJs = field(init=False)
    places: Production = field(init=False)
    scratch: repo.ScratchRepository = field(init=False)
    database: database.ProductionDatabase = field(init=False)
    s3_endpoint: str = ""
    github_url: str = ""
    slack_url: str = ""
    registry_url: str = ""
    say: Callable[[str], None] = print
    run_id: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def load_log(self) -> Path:
        """Return the file to which the load writes its answers."""
        return self.run.folder / "load.jsonl"

    @property
    def slack_messages(self) -> Path:
        """Return the file to which the Slack stand-in writes its messages."""
        return self.run.folder / "slack.jsonl"

    @property
    def s3_faults(self) -> Path:
        """Return the file from which the S3 server reads its faults."""
        return self.run.folder / "s3-faults.json"

    @property
    def advisories(self) -> Path:
        """Return the file from which the stand-in of the package registry answers."""
        return self.run.folder / "advisories.json"

    @property
    def github_state(self) -> Path:
        """Return the file from which the GitHub stand-in answers."""
        return self.run.folder / "github.json"

    def begin(self) -> None:
        """Make the scratch repository. Raises BadInputError when the application cannot be rehearsed."""
        self.scratch = repo.ScratchRepository(self.run.path("application"), self.processes)
        self.application.begin(self.scratch)

    def start(self) -> None:
        """Start every part, after ``begin``. Raises an AzoraError that names the part that did not start."""
        self.run_id = str(7_000_000_000 + secrets.randbelow(10**9))
        self.keys = {name: secrets.token_hex(16) for name in ("s3", "github", "slack")}
        for secret in self.keys.values():
            self.processes.log.add_secret(secret)
        toolchain = ToolchainSettings(package_manager=self.application.package_manager)
        self.node = prepare(self.processes, self.cache / "node").with_manager(self.processes, toolchain)
        old = self.run.folder / "old-release"
        self.application.write_old(self.scratch, old)
        self.application.prepare(self._run_command, old)
        with ThreadPoolExecutor(3) as pool:
            build = partial(self.application.build, self._run_command, old)
            parts = (lambda: self._start_database(old), self._start_servers, build)
            for start in [pool.submit(part) for part in parts]:
                start.result()
        self._start_edge()
        self.write_github()  # again, with the configuration of the default branch
        self._deploy_old()
        self._start_load()

    def is_new(self, cluster: str) -> bool:
        """Return whether a cluster of the edge is that of the release to deploy."""
        return not cluster.endswith(OLD_DEPLOYMENT)

    def rollouts(self) -> tuple[RolloutFacts, ...]:
        """Return the Rollouts of the cluster; a world without one has none."""
        return ()

    def stop_controller(self) -> None:
        """End what moves traffic at once, as a crash would, where that is a process beside the edge."""

    def start_controller(self) -> None:
        """Start again what ``stop_controller`` ended."""

    def _run_command(self, argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> str:
        return self.node.run(self.processes, argv, folder, env)

    def remarks(self) -> tuple[str, ...]:
        """Return sentences about the started world that are printed for people."""
        unisolated = "the migrate command runs without isolation: this machine gives neither root nor sudo without a password"
        return () if can_isolate(self.processes) else (unisolated,)

    def _detached(self, name: str, argv: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
        """Start a server that may outlive the harness, with its output in ``<name>.log``; return its process id."""
        variables = {**child_environment(), "PYTHONUNBUFFERED": "1", **(env or {})}
        pid = self.processes.start_detached(argv, env=variables, log=self.run.path(f"logs/{name}.log"), cwd=cwd or self.run.folder)
        self.run.note(name, pid)
        return pid

    def _module(self, name: str, arguments: list[str], env: Mapping[str, str] | None = None) -> int:
        return self._detached(name.replace(".", "-"), [sys.executable, "-m", f"azora_ci.rehearsal.{name}", *arguments], env)

    # --- the parts -----------------------------------------------------------------------------------------------------

    def _start_database(self, old: Path) -> None:
        folder = self.run.path(DATABASE)
        migrate = partial(self.application.migrate, self._run_command, old)
        fill = partial(self.application.fill, self._run_command)
        self.database = database.start(folder, processes=self.processes, migrate=migrate, fill=fill, detached=True)
        self.run.note(DATABASE, self.database.cluster.pid)

    def _start_servers(self) -> None:
        self.write_github()
        self.advisories.write_text(json.dumps(self.application.advisories), encoding="utf-8")
        ready = self.run.folder / "s3.json"
        self.s3_faults.write_text("[]", encoding="utf-8")
        s3 = [
            str(self.run.folder / "s3"),
            "--bucket",
            repo.BUCKET,
            "--object-lock",
            "--faults",
            str(self.s3_faults),
            "--ready-file",
            str(ready),
        ]
        s3_pid = self._module("standins.s3", s3, {"AWS_ACCESS_KEY_ID": "AKIAREHEARSAL", "AWS_SECRET_ACCESS_KEY": self.keys["s3"]})
        github = self._module("standins.github", [str(self.github_state)], {"GITHUB_TOKEN": self.keys["github"]})
        slack = self._module("standins.slack", [str(self.slack_messages)])
        registry = self._module("standins.advisories", [str(self.advisories)])
        self.github_url = self._first_line("standins-github", github)
        self.slack_url = self._first_line("standins-slack", slack)
        self.registry_url = self._first_line("standins-advisories", registry)
        self._until(ready.exists, "the S3 server", s3_pid)
        self.s3_endpoint = json.loads(ready.read_text(encoding="utf-8"))["endpoint"]
        credentials = f"ACCESS_KEY_ID=AKIAREHEARSAL\nSECRET_ACCESS_KEY={self.keys['s3']}\n"
        path = self.run.path("credentials.env")
        path.touch(mode=0o600)
        path.write_text(credentials, encoding="utf-8")

    def write_github(self, red: str | None = None) -> None:
        """Write GitHub's answers about the release commit: its checks, of which ``red`` failed, a ruleset, the run's own check."""
        suite = 4242
        checks = self.application.checks
        runs: list[dict[str, Any]] = [{"name": name, "conclusion": "failure" if name == red else "success"} for name in checks]
        runs.append({"name": "Validate release", "status": "in_progress", "suite": suite})
        parameters = {"required_status_checks": [{"context": RULESET_CHECK}]}
        state = {
            "repository": self.application.name,
            "check_runs": runs,
            "statuses": [{"context": RULESET_CHECK, "state": "success"}],
            "rules": [{"type": "required_status_checks", "parameters": parameters}],
            "runs": {self.run_id: suite},
            "deployments": [
                {
                    "id": 1,
                    "environment": "production",
                    "sha": "a" * 40,
                    "payload": {"deployment_id": OLD_DEPLOYMENT},
                    "statuses": [{"state": "success"}],
                }
            ],
            "contents": {CONFIG.as_posix(): path.read_text(encoding="utf-8") for path in self._configuration()},
        }
        part = self.github_state.with_suffix(".part")
        part.write_text(json.dumps(state), encoding="utf-8")
        part.replace(self.github_state)

    def _configuration(self) -> list[Path]:
        """Return the configuration's file in the application's repository; none before the application is adopted."""
        path = self.scratch.folder / CONFIG
        return [path] if path.is_file() else []

    def _start_edge(self) -> None:
        """Start Envoy; when another process took one of its ports meanwhile, try other ports."""
        sibling = Path(sys.executable).parent / "envoy"
        binary = str(sibling) if sibling.is_file() else shutil.which("envoy") or "envoy"
        for attempt in range(ENVOY_ATTEMPTS):
            places = Places(
                edge_port=free_port(),
                edge_folder=self.run.path(f"edge-{attempt}/files").absolute(),
                state_folder=self.run.path("production/state"),
                archive_folder=self.run.path("production/archives"),
                fault_file=self.run.folder / "fault.json",
                node=self.node.bin / "node",
                path=self.node.environment()["PATH"],
            )
            self.places = places
            self.application.adopt(self.scratch, places, self.registry_url)
            deploy_config = config.load(self.scratch.folder / CONFIG)
            bootstrap = install_edge(deploy_config, places.edge_folder, places.edge_port)
            pid = self._detached(f"envoy-{attempt}", list(command(bootstrap, binary=binary)))
            if self._answers(places.admin_socket, pid):
                return
        raise UnreachableError(
            "Envoy does not start",
            what=self._tail(f"envoy-{ENVOY_ATTEMPTS - 1}"),
            where=str(self.run.folder / "logs"),
            next_step="read its log",
        )

    def _deploy_old(self) -> None:
        deploy_config = config.load(self.scratch.folder / CONFIG)
        digests = {}
        for service in deploy_config.services:
            folder = build_context.context_folder(service.context, self.run.folder / "old-release")
            names = build_context.members(folder, dockerfile="")
            digests[service.id] = build_context.store(folder, names, self.run.path("production/archives"))[0].digest
        context = TargetContext(
            deploy_config, self.processes, self.clock, self.run.path("logs/old"), START_SECONDS, self._service_secrets()
        )
        deploy_at_once(LocalProcesses(context), Release(OLD_DEPLOYMENT, self.application.old, digests), self._owner())

    def _service_secrets(self) -> dict[str, Secret]:
        url = self.secrets()["PROD_DATABASE_URL"]
        return {name: Secret(value) for name, value in {"PROD_DATABASE_URL": url, **self.application.secrets(url)}.items()}

    def _owner(self) -> Owner:
        return Owner(OLD_DEPLOYMENT, f"https://github.com/{self.application.name}/actions/runs/1", "rehearsal")

    def _start_load(self) -> None:
        module = "azora_ci.rehearsal.judge.load"
        arguments = [self.places.public_url, str(self.load_log), f"{LOAD_RATE:g}", *self.application.load_paths]
        pid = self._detached("load", [sys.executable, "-m", module, *arguments])
        self._until(lambda: self.load_log.exists() and self.load_log.stat().st_size > 0, "the load", pid)

    # --- waiting -------------------------------------------------------------------------------------------------------

    def _first_line(self, name: str, pid: int) -> str:
        log = self.run.folder / "logs" / f"{name}.log"
        self._until(lambda: log.exists() and "\n" in log.read_text(encoding="utf-8"), name, pid)
        return log.read_text(encoding="utf-8").splitlines()[0].strip()

    def _until(self, condition: Callable[[], object], server: str, pid: int, seconds: float = START_SECONDS) -> None:
        deadline = self.clock.monotonic() + seconds
        while not condition():
            if not is_alive(pid) or self.clock.monotonic() > deadline:
                state = "still runs" if is_alive(pid) else "ended"
                raise UnreachableError(
                    f"{server} does not answer",
                    what=f"process {pid} {state}; nothing within {seconds:g} s",
                    where=str(self.run.folder / "logs"),
                    next_step="read its log there",
                )
            self.clock.sleep(0.05)

    def _answers(self, admin_socket: Path, pid: int) -> bool:
        ready = ProbeRequest("http://admin/ready", dial=unix_dial(admin_socket))
        deadline = self.clock.monotonic() + START_SECONDS
        while is_alive(pid) and self.clock.monotonic() < deadline:
            if fetch(ready, 2.0, self.clock).status == 200:
                return True
            self.clock.sleep(0.05)
        return False

    def _tail(self, name: str) -> str:
        log = self.run.folder / "logs" / f"{name}.log"
        return log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else "(no log)"

    # --- for act -------------------------------------------------------------------------------------------------------

    def secrets(self) -> dict[str, str]:
        """Return the secrets that the repository has on GitHub."""
        own = {"PROD_DATABASE_URL": self.database.url, "SLACK_WEBHOOK": self.slack_url, "GITHUB_TOKEN": self.keys["github"]}
        return {**self._handed_over(self.database.url), **own}

    def _handed_over(self, database_url: str) -> dict[str, str]:
        """Return the secrets of services as the workflow takes them: each by its name, or as lines of one where it calls the published."""
        secrets = dict(self.application.secrets(database_url))
        called = bool(secrets) and self.scratch.published(repo.WORKFLOW.name) is not None
        return {"SERVICE_SECRETS": dotenv(secrets)} if called else secrets

    def variables(self) -> dict[str, str]:
        """Return the repository's variables: short stages, quick probes, and the S3 server's address."""
        return {
            "AWS_ROLE_ARN": ROLE,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint,
            "CANARY_MINUTES": "0.06",
            "PROGRESSIVE_MINUTES": "0.06",
            "FULL_MINUTES": "0.08",
            "SHORT_STAGES_REASON": "a rehearsal",
            "HEALTH_CHECK_TIMEOUT": "60",
            "HEALTH_CHECK_RETRIES": "3",
            "HEALTH_CHECK_INTERVAL": "0.5",
            "CHECK_POLL_SECONDS": "1",
            "MIGRATIONS_OLD_VERSION": "true",
            **self.isolation(),
        }

    def isolation(self) -> dict[str, str]:
        """Return the variables that say how the migrate command runs: isolated where this machine can do that."""
        if can_isolate(self.processes):
            return {"ISOLATION_SHOWN": self.node.isolation_shown}
        return {"ISOLATION": "none", "ISOLATION_REASON": "a rehearsal without root and sudo"}

    def environment(self, attempt: int) -> dict[str, str]:
        """Return the environment that every step gets beside the workflow's own; it holds no secret."""
        return {
            **self.node.environment(),
            "GITHUB_API_URL": self.github_url,
            "GITHUB_RUN_ID": self.run_id,
            "GITHUB_RUN_ATTEMPT": str(attempt),
            "REHEARSAL_PYTHON": sys.executable,
            "REHEARSAL_CHECKOUT": str(CHECKOUT),
            "REHEARSAL_ARTIFACTS": str(self.run.artifacts),
            "REHEARSAL_REPOSITORY": str(self.scratch.folder),
            "REHEARSAL_CREDENTIALS": str(self.run.folder / "credentials.env"),
            "REHEARSAL_MANAGER": str(self.node.manager or ""),
        }
