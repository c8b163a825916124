"""The sample application as a rehearsal deploys it: four services, their releases, and a completely filled in configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt import plan
from azora_ci.database.cluster import Cluster
from azora_ci.rehearsal import application
from azora_ci.rehearsal.applications import toml
from azora_ci.rehearsal.applications.base import HEALTHY, Run
from azora_ci.rehearsal.judge.deployment import Demand
from azora_ci.rehearsal.production import Production
from azora_ci.rehearsal.repo import BUCKET, ScratchRepository
from azora_ci.rehearsal.standins import database

FEWEST_ROWS = 100_000
NAME = "azora/sample"
SETUP_COMMIT = "5e7" + "0" * 37  # the set-up action is replaced by a local one; any commit id will do
OLD_VERSION = f"v{application.OLD_RELEASE}"
NEW_VERSION = f"v{application.NEW_RELEASE}"
REQUIRED_CHECKS = ("lint", "test", "security")
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
TRIED = ("education_service", "marketplace_service")  # of the version in production, on the migrated copy
CRITICAL_PATHS = {"courses": "/api/education/courses", "listings": "/api/marketplace/listings"}
HEALTH_PATHS = {health: "answer" for _, _, _, health in SERVICES.values()}
LOAD_PATHS = ("/api/sessions", "/auth/users", *CRITICAL_PATHS.values(), *HEALTH_PATHS)


class Sample:
    """The sample. See ``base.Application`` for what each member means."""

    name = NAME
    old = OLD_VERSION
    new = NEW_VERSION
    checks = REQUIRED_CHECKS
    advisories: Mapping[str, Any] = ADVISORIES
    package_manager = None
    health_paths: Mapping[str, str] = HEALTH_PATHS
    load_paths = LOAD_PATHS

    def base_images(self, folder: Path) -> Mapping[str, str | None]:  # noqa: ARG002 - all four begin with the same one
        """Return the image of Node.js, which this machine's own replaces."""
        return {"node:22-slim": None}

    def begin(self, scratch: ScratchRepository) -> None:
        """Commit and tag the old release in a new repository."""
        application.write_release(scratch.folder, application.OLD_RELEASE)
        scratch.git("init", "--quiet", "--initial-branch=main")
        scratch.name_origin(NAME)
        scratch.commit("First release", OLD_VERSION)

    def write_old(self, scratch: ScratchRepository, folder: Path) -> None:  # noqa: ARG002 - its files come from the package
        """Write the old release."""
        application.write_release(folder, application.OLD_RELEASE)

    def prepare(self, run: Run, folder: Path) -> None:
        """Install every package."""
        run(("npm", "ci"), folder)

    def migrate(self, run: Run, folder: Path, url: str) -> None:
        """Apply the migrations with its own Prisma."""
        run(("npx", "prisma", "migrate", "deploy"), folder, {"DATABASE_URL": url})

    def fill(self, run: Run, cluster: Cluster) -> None:  # noqa: ARG002 - the rows are generated
        """Insert over 100,000 rows."""
        database.seed(cluster)

    def build(self, run: Run, folder: Path) -> None:
        """Run the production build."""
        run(("npm", "run", "build"), folder)

    def adopt(self, scratch: ScratchRepository, places: Production, registry: str) -> None:
        """Adopt azora-ci as its command does, and fill in the configuration."""
        plan.adopt(scratch.folder, action_ref=SETUP_COMMIT, reusable=scratch.reusable)
        (scratch.folder / plan.CONFIG).write_text(toml.render(configuration(places, registry)), encoding="utf-8")
        plan.adopt(scratch.folder, action_ref=SETUP_COMMIT)  # adds the secrets that the configuration names to the workflow
        plan.check(plan.plan(scratch.folder))

    def release(self, scratch: ScratchRepository, version: str, change: Callable[[Path], None] | None) -> None:
        """Commit and tag the new release; add a later commit, which must not be deployed."""
        application.write_release(scratch.folder, application.NEW_RELEASE)
        # New code: other digests than the old release's.
        _append(scratch.folder / "services" / "shared" / "server.mjs", f"// {version}")
        if change is not None:
            change(scratch.folder)
        scratch.commit(f"Release {version}", version)
        _append(scratch.folder / "README.md", "\nWork goes on after the release.")
        scratch.commit("Work on", None)

    def secrets(self, database_url: str) -> Mapping[str, str]:  # noqa: ARG002 - its services read PROD_DATABASE_URL
        """Return none beyond those of every application."""
        return {}

    def demand(self) -> Demand:
        """Demand that everything is deployed."""
        return Demand(
            old=application.OLD_RELEASE,
            new=application.NEW_RELEASE,
            skipped=("deployment-failure-handler",),
            serving=application.NEW_RELEASE,
            migrations=dict.fromkeys((*application.OLD_MIGRATIONS, *application.NEW_MIGRATIONS), True),
            backup=True,
            stages=HEALTHY,
            record="success",
            services=tuple(SERVICES),
            old_migrations=application.OLD_MIGRATIONS,
            fewest_rows=FEWEST_ROWS,
        )

    def remarks(self) -> tuple[str, ...]:
        """Return nothing: everything of the sample is made for the rehearsal."""
        return ()


def configuration(places: Production, registry: str) -> dict[str, Any]:
    """Return a completely filled in configuration. ``registry``: the address that is asked for advisories."""
    install, build = ["npm", "ci"], ["npm", "run", "build"]
    document: dict[str, Any] = {
        "schema_version": 1,
        "application": "azora-sample",
        "public_url": places.public_url,
        "on_call": "#azora-on-call on Slack",
        "checks": {
            "required": list(REQUIRED_CHECKS),
            "rulesets": True,
            "wait_minutes": 0.2,
            "build": [install, ["npm", "test"]],
        },
        "validation": {"audit": {"level": "high", "registry": registry}},
        "toolchain": {"node": "22"},
        "build": {"commands": [install, build]},
        "database": {"migrate": ["npx", "prisma", "migrate", "deploy"], "migrations_dir": "prisma/migrations"},
        "migrations": {
            "old_version": {"services": list(TRIED), "variables": {"PROD_DATABASE_URL": "url"}, "read": list(CRITICAL_PATHS.values())}
        },
        "backup": {"location": f"s3://{BUCKET}/prod"},
        "rollout": {"minimum_requests": 30, "inconclusive": "abort", "latency_factor": 20, "drain_seconds": 2},
        "smoke": {
            "endpoints": [{"name": name, "url": places.public_url + path, "contains": '"items"'} for name, path in CRITICAL_PATHS.items()]
        },
        "services": {service: _service(service, places) for service in SERVICES},
    }
    for name, table in places.tables().items():
        top, _, below = name.partition(".")
        document.setdefault(top, {}).update({below: table} if below else table)
    return document


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


def _append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
