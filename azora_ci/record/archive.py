"""The archive of deployment records and artifacts. It lies in the bucket of the backups.

Each object is written once, and locked for a year where the bucket supports locks. Records are
``s3://<bucket>/records/<environment>/<deployment-id>/<attempt>.json``; the records of a deployment's rollbacks lie in the same folder as
``rollback-<number>.json``. Artifacts are ``s3://<bucket>/artifacts/<environment>/<deployment-id>/<attempt>/…``. All records of an
environment form one chain of hashes.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from azora_ci.clients.s3.bucket import Bucket, open_bucket
from azora_ci.clients.s3.calls import Patience
from azora_ci.clients.s3.objects import AlreadyThereError, StoredObject
from azora_ci.core.clock import Clock
from azora_ci.core.config import BackupSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.core.settings import Aws
from azora_ci.record.chain import Document, archived_bytes, parse_record, sha256
from azora_ci.record.run import Previous

LOCK_DAYS = 365  # the guide's retention of audit evidence
LARGEST_ARTIFACT_BYTES = 64 * 1024 * 1024
MOST_ROLLBACKS = 1000  # of one deployment
LOOK_BACK = 20  # records read to find the last deployment that succeeded
_RECORD_KEY = re.compile(r"records/[^/]+/([1-9][0-9]{0,11}-[0-9a-f]{6})/(rollback-)?([1-9][0-9]*)\.json")


@dataclass(frozen=True)
class KeptRecord:
    """An archived record: its URL, its SHA-256, whether it was archived already, and until when the bucket locks it."""

    location: str
    sha256: str
    recognised: bool
    lock_until: datetime | None


@dataclass(frozen=True)
class KeptArtifacts:
    """Which artifacts of a run are archived (newly, or identical before), and which files could not be archived, with the reason."""

    location: str
    files: int
    size_bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Archived:
    """A record as it is stored in the archive: its key in the bucket and its bytes."""

    key: str
    data: bytes

    @property
    def document(self) -> Document:
        """Return the parsed record; {} when the bytes are not a JSON object."""
        return parse_record(self.data)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the record's bytes."""
        return sha256(self.data)


class Archive:
    """Records and artifacts of one environment in one bucket. Methods raise UnreachableError, BadInputError or NotTrueError."""

    def __init__(self, bucket: Bucket, environment: str, lock_mode: str = "GOVERNANCE") -> None:
        self.bucket = bucket
        self.environment = environment
        self.lock_mode = lock_mode

    @classmethod
    def of(
        cls,
        settings: Aws,
        environment: str,
        backup: BackupSettings,
        *,
        clock: Clock | None = None,
        patience: Patience | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Archive:
        """Return the archive of an environment, in the bucket of its backups. The options are those of ``open_bucket``."""
        bucket = open_bucket(settings, backup.bucket, clock=clock, patience=patience, say=say)
        return cls(bucket, environment, backup.lock_mode)

    def record_key(self, deployment_id: str, attempt: int) -> str:
        """Return the key of a record."""
        return f"records/{self.environment}/{deployment_id}/{attempt}.json"

    def artifacts_prefix(self, deployment_id: str, attempt: int) -> str:
        """Return the prefix of a run's artifacts, with its final slash."""
        return f"artifacts/{self.environment}/{deployment_id}/{attempt}/"

    def records(self) -> list[StoredObject]:
        """Return the stored records of this environment, oldest first."""
        stored = [item for item in self.bucket.list(f"records/{self.environment}/") if _RECORD_KEY.fullmatch(item.key)]
        return sorted(stored, key=lambda item: (item.modified or datetime.min.replace(tzinfo=UTC), _order(item.key)))

    def records_of(self, deployment_id: str) -> dict[int, bytes]:
        """Return the bytes of one deployment's records by attempt, without the records of its rollbacks."""
        keys = [stored.key for stored in self.bucket.list(f"records/{self.environment}/{deployment_id}/")]
        matches = {key: match for key in keys if (match := _RECORD_KEY.fullmatch(key)) and not match[2]}
        return {int(match[3]): self.bucket.read(key) for key, match in matches.items()}

    def record_to_take_back(self, deployment_id: str | None) -> Archived:
        """Return the record of this deployment; without an id, of the newest that succeeded or can be taken back.

        Of several attempts, the last one that left a version in production counts. Raises NotTrueError when there is no such record.
        """
        chosen: Archived | None = None
        for stored in reversed(self.records()):
            match = _RECORD_KEY.fullmatch(stored.key)
            if match is None or match[2] or deployment_id not in {None, match[1]}:
                continue
            archived = Archived(stored.key, self.bucket.read(stored.key))
            if archived.document.get("status") == "success" or archived.document.get("rollback_available"):
                return archived
            chosen = chosen or archived
        if chosen is None or deployment_id is None:
            raise _no_record(self.bucket.url(f"records/{self.environment}/"), deployment_id)
        return chosen

    def newest_with(self, name: str) -> Archived | None:
        """Return the newest of the last LOOK_BACK deployment records that holds a value under this key, or None."""
        keys = [stored.key for stored in self.records() if not stored.key.rpartition("/")[2].startswith("rollback-")]
        newest_first = (Archived(key, self.bucket.read(key)) for key in reversed(keys[-LOOK_BACK:]))
        return next((archived for archived in newest_first if archived.document.get(name)), None)

    def around(self, key: str) -> tuple[list[Archived], int]:
        """Return the chain from up to LOOK_BACK records before this key to the newest record, and this record's index in it."""
        keys = [stored.key for stored in self.records()]
        first = max(0, keys.index(key) - LOOK_BACK)
        return [Archived(chain_key, self.bucket.read(chain_key)) for chain_key in keys[first:]], keys.index(key) - first

    def newest_sha256(self) -> str | None:
        """Return the SHA-256 of the newest record, which the next record must name, or None without records."""
        records = self.records()
        return sha256(self.bucket.read(records[-1].key)) if records else None

    def previous(self, deployment_id: str, attempt: int) -> Previous:
        """Return the SHA-256 of the newest other record, and the last other deployment that succeeded."""
        own = self.record_key(deployment_id, attempt)
        earlier = [stored for stored in self.records() if stored.key != own]
        newest: str | None = None
        for number, stored in enumerate(reversed(earlier[-LOOK_BACK:])):
            data = self.bucket.read(stored.key)
            if number == 0:
                newest = sha256(data)
            document = parse_record(data)
            if document.get("status") == "success" and document["deployment_id"] != deployment_id:
                return Previous(newest, document["deployment_id"], document["version"])
        return Previous(newest)

    def keep_record(self, document: Document) -> KeptRecord:
        """Archive a record. A record already archived with the same bytes is recognised; one with other bytes raises NotTrueError."""
        data = archived_bytes(document)
        key = self.record_key(document["deployment_id"], document["run_attempt"])
        recognised = False
        try:
            stored = self.bucket.put_once(key, data, content_type="application/json", lock_days=LOCK_DAYS, lock_mode=self.lock_mode)
        except AlreadyThereError as taken:
            if self.bucket.read(key) != data:
                raise _another_record(self.bucket.url(key)) from taken
            stored, recognised = taken.existing, True
        return KeptRecord(self.bucket.url(key), sha256(data), recognised, stored.lock_until)

    def keep_rollback(self, document: Document) -> KeptRecord:
        """Archive the record of a rollback in the folder of its deployment, under the next free number."""
        data = archived_bytes(document)
        for number in range(1, MOST_ROLLBACKS + 1):
            key = f"records/{self.environment}/{document['deployment_id']}/rollback-{number}.json"
            if self.bucket.head(key) is not None:
                continue
            try:
                stored = self.bucket.put_once(key, data, content_type="application/json", lock_days=LOCK_DAYS, lock_mode=self.lock_mode)
            except AlreadyThereError:
                continue
            return KeptRecord(self.bucket.url(key), sha256(data), False, stored.lock_until)
        raise _another_record(self.bucket.url(key))

    def keep_artifacts(self, folder: Path, deployment_id: str, attempt: int) -> KeptArtifacts:
        """Archive every file below a folder of received artifacts. Files that cannot be archived are returned as problems."""
        return self.keep_files({path.relative_to(folder).as_posix(): path for path in _files(folder)}, deployment_id, attempt)

    def keep_files(self, paths: Mapping[str, Path], deployment_id: str, attempt: int) -> KeptArtifacts:
        """Archive files under these names in the run's folder of artifacts, as ``keep_artifacts`` does."""
        prefix = self.artifacts_prefix(deployment_id, attempt)
        files, size, problems = 0, 0, list[str]()
        for name, path in paths.items():
            problem = self._keep_file(path, prefix + name)
            if problem:
                problems.append(f"{name}: {problem}")
            else:
                files, size = files + 1, size + path.stat().st_size
        return KeptArtifacts(self.bucket.url(prefix), files, size, tuple(problems))

    def _keep_file(self, path: Path, key: str) -> str | None:
        size = path.stat().st_size
        if size > LARGEST_ARTIFACT_BYTES:
            return f"{size} bytes are more than the {LARGEST_ARTIFACT_BYTES} that are archived"
        data = path.read_bytes()
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            self.bucket.put_once(key, data, content_type=content_type, lock_days=LOCK_DAYS, lock_mode=self.lock_mode)
        except AlreadyThereError as taken:
            if not taken.identical and self.bucket.read(key) != data:
                return f"another file is archived as {self.bucket.url(key)}"
        return None


def _files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder in sorted order, without symbolic links."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _order(key: str) -> tuple[int, int]:
    match = _RECORD_KEY.fullmatch(key)
    assert match is not None  # noqa: S101 - records() keeps only keys of this form
    return int(match[1].split("-")[0]), int(match[3])


def _no_record(where: str, deployment_id: str | None) -> NotTrueError:
    return NotTrueError(
        "There is no such deployment" if deployment_id else "There is no deployment to take back",
        what=f"no record of {deployment_id}" if deployment_id else "no record of a deployment that reached production",
        where=where,
        next_step="look its id up in the run's summary. A deployment that still runs has no record yet: cancel its run; a rollout goes "
        "back by that, and what was promoted already gets its record and can be taken back",
    )


def _another_record(url: str) -> NotTrueError:
    return NotTrueError(
        "Another record is archived",
        what=f"{url} holds other bytes than the record assembled now",
        where=url,
        next_step="compare both (the new one is deployment-record.json in this job's artifact); an archived record is never replaced",
    )
