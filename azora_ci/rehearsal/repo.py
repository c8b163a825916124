"""The scratch repository: the sample application with azora-ci adopted as users do it, an old release, and the one to deploy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from azora_ci.cli.adopt import plan
from azora_ci.core.process import Processes
from azora_ci.rehearsal import application
from azora_ci.targets.envoy.edge import ADMIN_SOCKET

NAME = "azora/sample"
SETUP_COMMIT = "5e7" + "0" * 37  # the set-up action is replaced by a local one; any commit id will do
OLD_VERSION = f"v{application.OLD_RELEASE}"
NEW_VERSION = f"v{application.NEW_RELEASE}"
WORKFLOW = plan.WORKFLOW_FOLDER / "deploy-production.yml"
REQUIRED_CHECKS = ("lint", "test", "security")
RULESET_CHECK = "build"
BUCKET = "azora-backups"
# What the registry knows of the sample's packages: of an older pg, and a mild one that closes no gate.
ADVISORIES = {
    "advisories": {
        "pg": [
            {
                "id": 1,
                "url": "https://github.com/advisories/GHSA-wc9v-mj63-m9g5",
                "title": "Remote code execution in pg",
                "severity": "critical",
                "vulnerable_versions": "<7.1.2",
            }
        ],
        "pgpass": [{"id": 2, "url": "", "title": "A mild one", "severity": "low", "vulnerable_versions": "<2"}],
    }
}
SERVICES = {  # id -> (title, folder, route prefix, health path)
    "api_gateway": ("API Gateway", "api-gateway", "/api", "/api/health"),
    "auth_service": ("Auth", "auth-service", "/auth", "/auth/health"),
    "education_service": ("Education", "education-service", "/api/education", "/api/education/health"),
    "marketplace_service": ("Marketplace", "marketplace-service", "/api/marketplace", "/api/marketplace/health"),
}
CRITICAL_PATHS = {"courses": "/api/education/courses", "listings": "/api/marketplace/listings"}
_IDENTITY = {"NAME": "Release Engineer", "EMAIL": "release@azora.example"}


class Production(Protocol):
    """A rehearsal's production: its addresses, the file that tells services to fail, and its part of the configuration."""

    @property
    def public_url(self) -> str:
        """Return the public address of the application."""

    @property
    def admin_socket(self) -> Path:
        """Return Envoy's admin socket."""

    @property
    def fault_file(self) -> Path:
        """Return the file that services read at every request."""

    def tables(self) -> dict[str, dict[str, object]]:
        """Return the configuration's tables that say where instances run."""

    def service(self, folder: str) -> dict[str, object]:
        """Return the configuration's keys about building and running the service in ``folder``."""


@dataclass(frozen=True)
class Places:
    """A production of local processes: addresses, folders, and the program that runs services."""

    edge_port: int
    edge_folder: Path
    state_folder: Path
    archive_folder: Path
    fault_file: Path
    node: Path

    @property
    def public_url(self) -> str:
        """Return the public address of the application."""
        return f"http://127.0.0.1:{self.edge_port}"

    @property
    def admin_socket(self) -> Path:
        """Return Envoy's admin socket."""
        return self.edge_folder / ADMIN_SOCKET

    def tables(self) -> dict[str, dict[str, object]]:
        """Return the tables of edge and target."""
        return {
            "edge": {"config_dir": str(self.edge_folder)},
            "target": {"kind": "local_processes"},
            "target.local_processes": {"state_dir": str(self.state_folder), "archive_dir": str(self.archive_folder)},
        }

    def service(self, folder: str) -> dict[str, object]:
        """Return context, command and environment of a service."""
        run = {"context": f"services/{folder}/dist", "command": [str(self.node), "server.mjs"]}
        return {**run, "env": {"FAULT_FILE": str(self.fault_file)}}


def configuration(places: Production, registry: str) -> str:
    """Return the text of a completely filled in ``deploy-production.toml``. ``registry``: the address that is asked for advisories."""
    top = {"schema_version": 1, "application": "azora-sample", "public_url": places.public_url, "on_call": "#azora-on-call on Slack"}
    install, build = ["npm", "ci"], ["npm", "run", "build"]
    tables: dict[str, dict[str, object]] = {
        "checks": {
            "required": list(REQUIRED_CHECKS),
            "rulesets": True,
            "wait_minutes": 0.2,
            "build": [install, ["npm", "test"]],
        },
        "validation.audit": {"level": "high", "registry": registry},
        "toolchain": {"node": "22"},
        "build": {"commands": [install, build]},
        "database": {"migrate": ["npx", "prisma", "migrate", "deploy"], "migrations_dir": "prisma/migrations"},
        "backup": {"location": f"s3://{BUCKET}/prod"},
        "rollout": {"minimum_requests": 30, "inconclusive": "abort", "latency_factor": 20, "drain_seconds": 2},
        **places.tables(),
    }
    lines = [_pair(name, value) for name, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_pair(key, value) for key, value in table.items())]
    for name, path in CRITICAL_PATHS.items():
        lines += ["", "[[smoke.endpoints]]", _pair("name", name), _pair("url", places.public_url + path), _pair("contains", '"items"')]
    for service in SERVICES:
        lines += ["", f"[services.{service}]", *(_pair(key, value) for key, value in _service(service, places).items())]
    return "\n".join(lines) + "\n"


def _service(service: str, places: Production) -> dict[str, object]:
    title, folder, prefix, health = SERVICES[service]
    table: dict[str, object] = {
        "title": title,
        "route_prefix": prefix,
        "health_path": health,
        "public_health_url": places.public_url + health,
        "instances": 2,
        **places.service(folder),
        "secrets": ["PROD_DATABASE_URL"],
        "stop_grace_seconds": 5,
    }
    return table if service != "api_gateway" else {**table, "depends_on": ["auth_service"]}


def _pair(name: str, value: object) -> str:
    return f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pair(json.dumps(name), item) for name, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)  # JSON's texts, numbers, truth values and lists are TOML's


@dataclass
class ScratchRepository:
    """The repository at ``folder``. Make it with ``begin``, then ``release`` the version to deploy.

    ``reusable``: its workflows call the published ones.
    """

    folder: Path
    processes: Processes
    reusable: bool = False

    def git(self, *arguments: str) -> str:
        """Run git without the machine's configuration and return its output. Raises CommandFailedError."""
        env = {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in _IDENTITY.items()}
        env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        return self.processes.run(("git", *arguments), env=env, cwd=self.folder, timeout=60, echo=False).stdout.strip()

    def begin(self) -> None:
        """Commit and tag the release that production runs before the rehearsal's deployment."""
        application.write_release(self.folder, application.OLD_RELEASE)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("remote", "add", "origin", f"https://github.com/{NAME}.git")  # never contacted: checkouts come from this folder
        self._commit("First release", OLD_VERSION)

    def adopt(self, places: Production, registry: str) -> None:
        """Adopt azora-ci as its command does, and fill in the configuration."""
        plan.adopt(self.folder, action_ref=SETUP_COMMIT, reusable=self.reusable)
        (self.folder / plan.CONFIG).write_text(configuration(places, registry), encoding="utf-8")
        plan.adopt(self.folder, action_ref=SETUP_COMMIT)  # adds the secrets that the configuration names to the workflow
        plan.check(plan.plan(self.folder))

    def release(self, version: str, change: Callable[[Path], None] | None = None) -> str:
        """Commit and tag the release to deploy, after ``change`` edited its files; add a later commit. Return the release's commit."""
        application.write_release(self.folder, application.NEW_RELEASE)
        _append(self.folder / "services" / "shared" / "server.mjs", f"// {version}")  # new code: other digests than the old release's
        if change is not None:
            change(self.folder)
        commit = self._commit(f"Release {version}", version)
        _append(self.folder / "README.md", "\nWork goes on after the release.")
        self._commit("Work on", None)
        return commit

    def published(self, workflow: str) -> str | None:
        """Return the text of the published workflow that an adopted one calls, with its actions pinned; None for a copy."""
        if not plan.is_reusable(self.folder):
            return None
        action = plan.pinned_action(self.folder)
        return plan.pinned((plan.template_folder() / workflow).read_text(encoding="utf-8"), action)

    def check_out(self, ref: str) -> None:
        """Check out a ref without a branch; act takes GITHUB_SHA from it."""
        self.git("checkout", "--quiet", "--detach", ref)

    def _commit(self, message: str, tag: str | None) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", message)
        if tag is not None:
            self.git("tag", "--annotate", "-m", message, tag)
        return self.git("rev-parse", "HEAD")


def _append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
