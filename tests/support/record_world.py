"""What the last three jobs talk to: a real S3 server with the bucket of the backups, a Slack receiver, and a step to run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from azora_ci.clients.s3.bucket import Bucket
from azora_ci.rehearsal.standins.github import GitHubApi
from azora_ci.rehearsal.standins.slack import SlackReceiver
from azora_ci.steps.runner import execute
from tests.support import deploy_config
from tests.support import fragments_builder as build
from tests.support.stores import Stores

TITLES = {
    "api_gateway": "API Gateway",
    "auth_service": "Auth Service",
    "education_service": "Education Service",
    "marketplace_service": "Marketplace Service",
}


@dataclass
class Outcome:
    """What a step left: exit code, outputs, its fragment, its summary and its log folder."""

    code: int
    outputs: dict[str, str]
    fragment: dict[str, Any]
    summary: str
    logs: Path

    @property
    def evidence(self) -> dict[str, Any]:
        return self.fragment["evidence"]

    @property
    def error(self) -> str:
        error = self.fragment["error"]
        return f"{error['title']}: {error['what']}"

    def document(self, name: str) -> dict[str, Any]:
        return json.loads((self.logs / name).read_bytes())


@dataclass
class World:
    """One deployment's surroundings in a folder. ``environ`` is what every step gets; change it before a run."""

    folder: Path
    stores: Stores
    bucket: str
    slack: SlackReceiver
    environ: dict[str, str] = field(default_factory=dict)
    runs: int = 0

    @cached_property
    def store(self) -> Bucket:
        """Return our own client of the bucket; it is made once, because that takes longer than a request."""
        return self.stores.open(self.bucket)

    @property
    def received(self) -> Path:
        return self.folder / "received"

    def github(self, **state: Any) -> GitHubApi:
        """Return the server of GitHub's API, not started yet, that the next steps ask. It knows the deployment before this one."""
        api = GitHubApi(self.folder / "github.json", "the-token")
        before = {"id": 7, "environment": "production", "sha": "b" * 40, "payload": {"deployment_id": build.PREVIOUS_ID}}
        api.write(**{"deployments": [{**before, "statuses": [{"state": "success"}]}], **state})
        self.environ |= {"GITHUB_API_URL": api.url, "GITHUB_TOKEN": "the-token"}
        return api

    def put_backup(self, data: bytes = b"dump") -> dict[str, Any]:
        """Store a backup object and return the evidence that names it."""
        key = f"prod/{build.BACKUP}.sql.gz"
        stored = self.store.put_once(key, data, content_type="application/gzip")
        return {"location": f"s3://{self.bucket}/{key}", "version_id": stored.version_id, "size_bytes": stored.size}

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Return what is stored under a prefix, by key."""
        return {stored.key: self.store.read(stored.key) for stored in self.store.list(prefix)}

    def records(self) -> dict[str, bytes]:
        """Return the archived records by key."""
        return self.objects("records/")

    def run(self, job: str, **more: str | None) -> Outcome:
        """Run a step in this process as its entry point does; None removes a variable."""
        self.runs += 1
        logs, output, summary = (self.folder / f"{name}-{self.runs}" for name in ("logs", "output", "summary"))
        output.touch()
        summary.touch()
        environ: dict[str, str | None] = {
            **self.environ,
            "DEPLOYMENT_LOG_DIR": str(logs),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            **more,
        }
        if "NEEDS" not in environ:
            received = Path(environ["RECEIVED_ARTIFACTS_DIR"] or "")
            environ["NEEDS"] = build.needs_of(received, environ["DEPLOYMENT_ID"] or "")
        code = execute(job, {name: value for name, value in environ.items() if value is not None})
        fragment = json.loads((logs / "record" / f"{job}.json").read_text())
        return Outcome(code, _outputs(output.read_text()), fragment, summary.read_text(), logs)


def _outputs(text: str) -> dict[str, str]:
    """Read GITHUB_OUTPUT: three lines an output (``name<<delimiter``, value, delimiter)."""
    lines = text.splitlines()
    return {lines[n].split("<<")[0]: lines[n + 1] for n in range(0, len(lines), 3)}


def world(folder: Path, stores: Stores, slack: SlackReceiver, *, object_lock: bool = True) -> World:
    """Return a world with a bucket, a configuration, and the environment of a run on GitHub's runner."""
    bucket = stores.make_bucket(object_lock=object_lock)
    services = {
        name: deploy_config.service(TITLES[name], f"https://azora.example/{name}/health", route_prefix=f"/{name}")
        for name in build.SERVICES
    }
    config = deploy_config.write(
        folder / "deploy.toml", services=services, on_call="#azora-on-call (Slack)", backup={"location": f"s3://{bucket}/prod"}
    )
    environ = {
        **stores.environ,
        "DEPLOYMENT_ID": build.DEPLOYMENT_ID,
        "VERSION": build.VERSION,
        "GIT_SHA": build.GIT_SHA,
        "DEPLOY_CONFIG": str(config),
        "RECEIVED_ARTIFACTS_DIR": str(folder / "received"),
        "GITHUB_REPOSITORY": "azora/azora",
        "GITHUB_RUN_ID": "1234567890",
        "GITHUB_ACTOR": "octocat",
        "GITHUB_ACTIONS": "true",
        "SLACK_WEBHOOK": slack.url,
    }
    return World(folder, stores, bucket, slack, environ)
