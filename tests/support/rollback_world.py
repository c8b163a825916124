"""What a rollback by hand talks to besides the target: archived records in a real S3 server, Slack, a database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azora_ci.core.clock import rfc3339
from azora_ci.record import deployment
from azora_ci.record.archive import Archive, KeptRecord
from azora_ci.rehearsal.standins.slack import SlackReceiver
from tests.record.test_deployment import FACTS
from tests.support import fragments_builder as build
from tests.support.edge_world import NEW, OLD, SHA
from tests.support.prisma_table import with_migrations
from tests.support.stores import Stores

REASON = "checkout fails <everywhere>"
MIGRATIONS = with_migrations(*(migration["name"] for migration in build.evidence("database-migrations")["applied"]))


class Surroundings:
    """Archive, Slack and the variables that lead a step to them. ``close`` ends the Slack receiver."""

    def __init__(self, folder: Path, stores: Stores, database: str) -> None:
        self.bucket = stores.make_bucket(object_lock=True)
        self.records = Archive(stores.open(self.bucket), "production")
        self.slack = SlackReceiver(folder / "slack.jsonl").__enter__()
        self.variables = {**stores.environ, "PROD_DATABASE_URL": database, "SLACK_WEBHOOK": self.slack.url, "GITHUB_ACTOR": "octocat"}
        self.variables |= {"ROLLBACK_REASON": REASON, "HEALTH_CHECK_RETRIES": "2", "GITHUB_ACTIONS": "true", "DEPLOYMENT_ID": ""}

    @property
    def backup(self) -> dict[str, str]:
        """Return the configuration's table of the backup."""
        return {"location": f"s3://{self.bucket}/prod"}

    def close(self) -> None:
        self.slack.__exit__(None, None, None)

    def keep(self, deployment_id: str = NEW, version: str = "v1.1.0", *, minutes_ago: float = 1, **changed: Any) -> KeptRecord:
        """Archive the record of a deployment that ended so many minutes ago."""
        previous = {"version": "v1.0.0", "deployment_id": OLD}
        fragments = build.complete(r=build.fragment("gradual-rollout", previous=previous))
        previous_record = self.records.previous(deployment_id, 1)
        facts = replace(FACTS, deployment_id=deployment_id, version=version, git_sha=SHA, previous=previous_record)
        ended = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        times = {"timestamp": rfc3339(ended), "rollback_deadline": rfc3339(ended + timedelta(minutes=60))}
        return self.records.keep_record({**deployment.assemble(fragments, facts, status="success"), **times, **changed})

    def rollback_records(self) -> list[dict[str, Any]]:
        """Return the records of rollbacks, oldest first."""
        return [kept.document for kept in self.chain() if "kind" in kept.document]

    def chain(self) -> list[Any]:
        """Return all archived records as a chain."""
        records = self.records.records()
        return self.records.around(records[0].key)[0] if records else []


def evidence(folder: Path, attempt: int) -> dict[str, Any]:
    """Return the evidence that a rollback left in a job's folder."""
    rollback: dict[str, Any] = json.loads((folder / f"job-{attempt}" / "record" / "rollback.json").read_text())["evidence"]
    return rollback
