"""What tests of backups share: a database with many shapes, and the job run as a user would."""

from __future__ import annotations

import gzip
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azora_ci.clients.s3.bucket import Bucket, open_bucket
from azora_ci.clients.s3.trial import require_uploads
from azora_ci.core.config import BackupSettings
from azora_ci.database.backup import manifest
from tests.support import ROOT, deploy_config
from tests.support.stores import QUICK, Stores, crc

ID = "1764000000-abc123"
SIMPLE = """
CREATE TABLE users (id serial PRIMARY KEY, email text NOT NULL UNIQUE, note text);
CREATE TABLE orders (id serial PRIMARY KEY, user_id int NOT NULL REFERENCES users (id), total numeric(10, 2));
CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL, migration_name text, finished_at timestamptz);
INSERT INTO users (email, note) SELECT 'user' || n || '@example.org', repeat('x', n % 50) FROM generate_series(1, 500) n;
INSERT INTO orders (user_id, total) SELECT n % 500 + 1, n / 3.0 FROM generate_series(1, 1000) n;
INSERT INTO _prisma_migrations VALUES ('1', 'c0ffee', '20260101_init', now());
"""


class BackupWorld:
    """One bucket, one configuration, one folder; ``run`` is the job as the workflow starts it."""

    def __init__(self, folder: Path, stores: Stores, **bucket: Any) -> None:
        self.folder = folder
        self.stores = stores
        self.bucket_name = stores.make_bucket(**bucket)
        self.location = f"s3://{self.bucket_name}/prod"
        self.config = deploy_config.write(folder / "deploy-production.toml", backup={"location": self.location}, migrations={"command": []})
        self.logs = folder / "logs"
        self.scratch = folder / "scratch"
        self.backup = BackupSettings(self.location, "GOVERNANCE", 365)
        require_uploads(self.bucket, self.backup.key("trial"))  # so that a fault of a test meets the backup itself

    @property
    def bucket(self) -> Bucket:
        return open_bucket(self.stores.settings, self.bucket_name, patience=QUICK)

    def verified_manifest(self) -> manifest.Manifest:
        """Return the newest manifest of the deployment; its object is in the bucket as it says. Raises LookupError when there is none."""
        for attempt in reversed(manifest.attempts(self.bucket, self.backup, ID)):
            if attempt.has_manifest:
                verified = manifest.read(self.bucket, attempt.names)
                manifest.require_object(self.bucket, verified)
                return verified
        raise LookupError("No verified backup")

    def environ(self, url: str, **more: str) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "DEPLOYMENT_LOG_DIR": str(self.logs),
            "DEPLOY_CONFIG": str(self.config),
            "DEPLOYMENT_ID": ID,
            "VERSION": "v1.2.3",
            "GIT_SHA": "0" * 40,
            "PROD_DATABASE_URL": url,
            "BACKUP_SCRATCH_DIR": str(self.scratch),
            "GITHUB_OUTPUT": str(self.folder / "output.txt"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "GITHUB_ACTIONS": "true",
            "GITHUB_RUN_ID": "1",
            **self.stores.environ,
            **more,
        }

    def start(self, url: str, script: str = "database_backup", **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / f"{script}.py")],
            env=self.environ(url, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, url: str, script: str = "database_backup", **more: str) -> Outcome:
        process = self.start(url, script, **more)
        output = process.communicate(timeout=120)[0]
        return self.outcome(process.returncode, output, script)

    def outcome(self, code: int, output: str, script: str = "database_backup") -> Outcome:
        return Outcome(self, code, output, script)

    def listing(self) -> list[str]:
        """Return the names below the location, without the object by which the store was tried."""
        names = (stored.key.removeprefix("prod/") for stored in self.bucket.list("prod/"))
        return [name for name in names if not name.startswith("trial.")]

    def uploads(self) -> list[str]:
        return [pending.key for pending in self.bucket.pending_uploads("")]

    def manifest(self, number: int = 1) -> dict[str, Any]:
        return manifest.read(self.bucket, manifest.Names(self.backup, ID, number)).document

    def replace_backup(self, change: Callable[[bytes], bytes], kind: str = "manifest") -> None:
        """Change the stored SQL as somebody would who can write the bucket: the document beside it fits the new object."""
        key, document_key = f"prod/backup-{ID}.sql.gz", f"prod/backup-{ID}.{kind}.json"
        sql = change(gzip.decompress(self.bucket.read(key)))
        packed = gzip.compress(sql)
        stored = self.stores.boto3().put_object(Bucket=self.bucket_name, Key=key, Body=packed)
        document = json.loads(self.bucket.read(document_key))
        document["raw"] = {"bytes": len(sql), "sha256": hashlib.sha256(sql).hexdigest()}
        document["compressed"] = {"bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest(), "crc32": crc(packed)}
        if kind == "manifest":
            document["version_id"] = stored["VersionId"]
        self.stores.boto3().put_object(Bucket=self.bucket_name, Key=document_key, Body=json.dumps(document).encode())

    def leftovers(self) -> list[Path]:
        return list(self.scratch.glob("*"))


class Outcome:
    """How a run ended: exit code, everything it printed, its fragment."""

    def __init__(self, world: BackupWorld, code: int, output: str, script: str) -> None:
        self.code = code
        self.output = "".join(line for line in output.splitlines(keepends=True) if not line.startswith("::add-mask::"))
        path = world.logs / "record" / f"{script.replace('_', '-')}.json"
        self.fragment: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        log = world.logs / f"{script.replace('_', '-')}.log"
        self.log = log.read_text() if log.exists() else ""

    @property
    def evidence(self) -> dict[str, Any]:
        return self.fragment["evidence"]

    @property
    def error(self) -> dict[str, Any]:
        return self.fragment["error"]

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.output}\n{self.log[-6000:]}"


def stop(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> str:
    """Send a signal and return what the process had printed by its end."""
    process.send_signal(number)
    return process.communicate(timeout=30)[0]
