"""What the last three jobs talk to: a strict S3 server with the bucket of the backups, a Slack receiver, and a step to run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.context import execute
from azora_ci.rehearsal.standins.s3 import S3Server
from azora_ci.rehearsal.standins.slack import SlackReceiver
from tests import deploy_config
from tests import fragments_builder as build

BUCKET = "azora-backups"
TITLES = {
    "api_gateway": "API Gateway",
    "auth_service": "Auth Service",
    "education_service": "Education Service",
    "marketplace_service": "Marketplace Service",
}


def make_bucket(server: S3Server, *, lock: bool = True, versioned: bool = True) -> Any:
    """Make the bucket of the backups and return a boto3 client for the server."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=server.endpoint, region_name="us-east-1", aws_access_key_id="standin", aws_secret_access_key="standin-secret"
    )
    client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=lock)
    if versioned and not lock:
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    return client


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
    server: S3Server
    s3: Any
    slack: SlackReceiver
    environ: dict[str, str] = field(default_factory=dict)
    runs: int = 0

    @property
    def received(self) -> Path:
        return self.folder / "received"

    def put_backup(self, data: bytes = b"dump") -> dict[str, Any]:
        """Store a backup object and return the evidence that names it."""
        answer = self.s3.put_object(Bucket=BUCKET, Key=f"prod/{build.BACKUP}.sql.gz", Body=data)
        return {"version_id": answer.get("VersionId"), "size_bytes": len(data)}

    def records(self) -> dict[str, bytes]:
        """Return the archived records by key."""
        return self.objects("records/")

    def objects(self, prefix: str) -> dict[str, bytes]:
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {one["Key"]: self.s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in listed}

    def run(self, job: str, **more: str | None) -> Outcome:
        """Run a step in this process as its entry point does; None removes a variable."""
        self.runs += 1
        logs, output, summary = (self.folder / f"{name}-{self.runs}" for name in ("logs", "output", "summary"))
        output.touch()
        summary.touch()
        environ = {
            **self.environ,
            "DEPLOYMENT_LOG_DIR": str(logs),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            **more,
        }
        code = execute(job, {name: value for name, value in environ.items() if value is not None})
        fragment = json.loads((logs / "record" / f"{job}.json").read_text())
        return Outcome(code, _outputs(output.read_text()), fragment, summary.read_text(), logs)


def _outputs(text: str) -> dict[str, str]:
    """Read GITHUB_OUTPUT: three lines an output (``name<<delimiter``, value, delimiter)."""
    lines = text.splitlines()
    return {lines[n].split("<<")[0]: lines[n + 1] for n in range(0, len(lines), 3)}


def world(folder: Path, server: S3Server, s3: Any, slack: SlackReceiver) -> World:
    """Return a world with a configuration, and the environment of a run on GitHub's runner."""
    services = {
        name: deploy_config.service(TITLES[name], f"https://azora.example/{name}/health", route_prefix=f"/{name}")
        for name in build.SERVICES
    }
    config = deploy_config.write(folder / "deploy.toml", services=services, on_call="#azora-on-call (Slack), +49 30 1234567")
    environ = {
        "DEPLOYMENT_ID": build.DEPLOYMENT_ID,
        "VERSION": build.VERSION,
        "GIT_SHA": build.GIT_SHA,
        "DEPLOY_CONFIG": str(config),
        "RECEIVED_ARTIFACTS_DIR": str(folder / "received"),
        "GITHUB_REPOSITORY": "azora/azora",
        "GITHUB_RUN_ID": "1234567890",
        "GITHUB_ACTOR": "octocat",
        "GITHUB_ACTIONS": "true",
        "AWS_ACCESS_KEY_ID": "standin",
        "AWS_SECRET_ACCESS_KEY": "standin-secret",
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "SLACK_WEBHOOK": slack.url,
    }
    return World(folder, server, s3, slack, environ)
