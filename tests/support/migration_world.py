"""A deployment whose database is at v1.0.0, for tests that run database-migrations with a real PostgreSQL, Prisma and S3 server."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.database.backup import manifest
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.rehearsal import application
from azora_ci.rehearsal.node import NodeJs
from azora_ci.steps import runner
from tests.conftest import DatabaseMaker
from tests.support import backups, deploy_config, fragments_builder, trees
from tests.support.sample import Sample
from tests.support.stores import Stores

ID = "1764000000-abc123"
PRISMA = ["npx", "prisma", "migrate", "deploy"]


class Deployment:
    """A deployment holds an application folder, a production database and a verified backup, and runs the step on them."""

    def __init__(self, folder: Path, url: str, stores: Stores, maker: DatabaseMaker, node: NodeJs) -> None:
        self.folder = folder
        self.url = url
        self.stores = stores
        self.maker = maker
        self.node = node.environment()
        self.shown = node.isolation_shown
        self.bucket = stores.make_bucket()
        self.received = folder / "received-artifacts"
        self.logs = folder / "deployment-logs"
        self.output = folder / "output.txt"
        self.scratch = folder.parent / "scratch"
        self.built = False  # whether a test handed a tree over by itself
        self.configure()

    def configure(self, migrate: list[str] | None = None, prepare: list[list[str]] | None = None, **database: Any) -> None:
        self._write({"database": {"migrate": migrate or PRISMA, "prepare": prepare or [], **database}})

    def configure_command(self, command: list[str], **database: Any) -> None:
        """Have another tool than Prisma migrate, or none."""
        self._write({"database": database, "migrations": {"command": command}})

    def _write(self, tables: dict[str, Any]) -> None:
        self.config = deploy_config.write(self.folder / "deploy.toml", backup={"location": f"s3://{self.bucket}/prod"}, **tables)

    def back_up(self, age: timedelta = timedelta(minutes=1), *, url: str | None = None, fragment: bool = True, depth: str = "full") -> None:
        backup = config.load(self.config).backup
        stored = backups.store(self.stores.open(self.bucket), backup, ID, url or self.url, age, depth)
        if fragment:
            backups.fragment(self.received, stored)

    @property
    def manifest(self) -> Path:
        return self.received / f"backup-logs-{ID}" / manifest.HANDED_OVER

    def hand_over(self, **changes: Any) -> Path:
        """Hand the application over as the job build does; ``changes`` of its evidence."""
        return trees.hand_over(self.folder, self.received, ID, left_out=("received-artifacts", "deployment-logs"), **changes)

    def environ(self, **changes: str) -> dict[str, str]:
        """Return the step's environment; the tree is handed over as the folder is now, unless a test did that."""
        if not self.built:
            self.hand_over()
        return {
            **os.environ,
            **self.node,
            **self.stores.environ,
            "DEPLOYMENT_ID": ID,
            "VERSION": "v1.1.0",
            "GIT_SHA": "abc123" + "0" * 34,
            "PROD_DATABASE_URL": self.url,
            "DEPLOY_CONFIG": str(self.config),
            "DEPLOYMENT_LOG_DIR": str(self.logs),
            "RECEIVED_ARTIFACTS_DIR": str(self.received),
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_RUN_ID": "1",
            "NEEDS": fragments_builder.needs_of(self.received, ID),
            "ISOLATION_SHOWN": self.shown,
            **changes,
        }

    def try_out(self, **changes: str) -> dict[str, Any]:
        """Run database-backup, as the workflow does before database-migrations, and return its fragment."""
        logs = self.received / f"backup-logs-{ID}"
        here = {"DEPLOYMENT_LOG_DIR": str(logs), "GITHUB_OUTPUT": "", "BACKUP_SCRATCH_DIR": str(self.scratch)}
        runner.execute("database-backup", self.environ(**{**here, **changes}))
        fragment: dict[str, Any] = json.loads((logs / "record" / "database-backup.json").read_text(encoding="utf-8"))
        return fragment

    def run(self, **changes: str) -> int:
        return runner.execute("database-migrations", self.environ(**changes))

    def fragment(self) -> dict[str, Any]:
        return json.loads((self.logs / "record" / "database-migrations.json").read_text(encoding="utf-8"))

    @property
    def evidence(self) -> dict[str, Any]:
        return self.fragment()["evidence"]

    @property
    def error(self) -> dict[str, Any]:
        return self.fragment()["error"]

    @property
    def log(self) -> str:
        return (self.logs / "database-migrations.log").read_text(encoding="utf-8")

    def applied(self) -> list[object]:
        rows = self.maker.execute(self.url, "SELECT migration_name FROM _prisma_migrations WHERE finished_at IS NOT NULL ORDER BY 1")
        return [name for (name,) in rows]

    def add(self, name: str, sql: str) -> None:
        application.add_migration(self.folder, name, sql)


@pytest.fixture
def production(
    sample: Sample, migrated: str, postgres_cluster: DatabaseMaker, s3_server: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """Return a deployment of v1.1.0 whose database is at v1.0.0 and has no backup yet."""
    url = postgres_cluster.fresh(options=f"TEMPLATE {DatabaseUrl.parse(migrated).database}")
    folder = sample.copy(tmp_path / "application")
    monkeypatch.chdir(folder)
    node = sample.node.environment()
    for name, value in node.items():
        monkeypatch.setenv(name, value)
    return Deployment(folder, url, s3_server, postgres_cluster, sample.node)
