"""The archive beside the backups: records and artifacts, each written once and locked for a year where the bucket can lock.

``s3://<bucket>/records/<environment>/<deployment-id>/<attempt>.json`` and ``s3://<bucket>/artifacts/<environment>/<deployment-id>/<attempt>/…``;
beside a deployment's record those of its rollbacks, ``rollback-<number>.json``. All records of an environment are one chain.
"""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from azora_ci.errors import NotTrueError
from azora_ci.record import Document, Previous, archived_bytes, sha256

if TYPE_CHECKING:
    from azora_ci.s3 import Bucket, StoredObject

LOCK_DAYS = 365  # the guide's retention of audit evidence
LARGEST_ARTIFACT_BYTES = 64 * 1024 * 1024
MOST_ROLLBACKS = 1000  # of one deployment
LOOK_BACK = 20  # records read to find the last deployment that succeeded
_RECORD_KEY = re.compile(r"records/[^/]+/([1-9][0-9]{0,11}-[0-9a-f]{6})/(rollback-)?([1-9][0-9]*)\.json")


@dataclass(frozen=True)
class KeptRecord:
    """An archived record: where, its SHA-256, whether it was there already, and until when the bucket locks it."""

    location: str
    sha256: str
    recognised: bool
    lock_until: datetime | None


@dataclass(frozen=True)
class KeptArtifacts:
    """What became of the artifacts of a run: files archived or found identical, and those that could not be kept, with the reason."""

    location: str
    files: int
    size_bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Archived:
    """A record as it lies in the archive."""

    key: str
    data: bytes

    @property
    def document(self) -> Document:
        """Return the record; {} for bytes that are none."""
        return _document(self.data)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of its bytes."""
        return sha256(self.data)


class Archive:
    """Records and artifacts of one environment in one bucket. Methods raise UnreachableError, BadInputError or NotTrueError."""

    def __init__(self, bucket: Bucket, environment: str, lock_mode: str = "GOVERNANCE") -> None:
        self.bucket = bucket
        self.environment = environment
        self.lock_mode = lock_mode

    def record_key(self, deployment_id: str, attempt: int) -> str:
        """Return the key of a record."""
        return f"records/{self.environment}/{deployment_id}/{attempt}.json"

    def artifacts_prefix(self, deployment_id: str, attempt: int) -> str:
        """Return the prefix of a run's artifacts, with its final slash."""
        return f"artifacts/{self.environment}/{deployment_id}/{attempt}/"

    def records(self) -> list[StoredObject]:
        """Return the records of this environment, in the order in which they were written."""
        found = [one for one in self.bucket.list(f"records/{self.environment}/") if _RECORD_KEY.fullmatch(one.key)]
        return sorted(found, key=lambda one: (one.modified or datetime.min.replace(tzinfo=UTC), _order(one.key)))

    def records_of(self, deployment_id: str) -> dict[int, bytes]:
        """Return the archived records of one deployment by attempt, those of its rollbacks left out."""
        keys = [one.key for one in self.bucket.list(f"records/{self.environment}/{deployment_id}/")]
        found = {key: match for key in keys if (match := _RECORD_KEY.fullmatch(key)) and not match[2]}
        return {int(match[3]): self.bucket.read(key) for key, match in found.items()}

    def to_take_back(self, deployment_id: str | None) -> Archived:
        """Return the record of this deployment, or of the newest that can be taken back or succeeded. Raises NotTrueError.

        Of several attempts the last one that left a version in production counts.
        """
        chosen: Archived | None = None
        for stored in reversed(self.records()):
            match = _RECORD_KEY.fullmatch(stored.key)
            if match is None or match[2] or deployment_id not in {None, match[1]}:
                continue
            found = Archived(stored.key, self.bucket.read(stored.key))
            if found.document.get("status") == "success" or found.document.get("rollback_available"):
                return found
            chosen = chosen or found
        if chosen is None or deployment_id is None:
            raise _no_record(self.bucket.url(f"records/{self.environment}/"), deployment_id)
        return chosen

    def newest_with(self, name: str) -> Archived | None:
        """Return the newest of the last records of deployments in which this key holds something, or None."""
        keys = [one.key for one in self.records() if not one.key.rpartition("/")[2].startswith("rollback-")]
        found = (Archived(key, self.bucket.read(key)) for key in reversed(keys[-LOOK_BACK:]))
        return next((one for one in found if one.document.get(name)), None)

    def around(self, key: str) -> tuple[list[Archived], int]:
        """Return the chain from some records before this one to the newest, and the place of this one in it."""
        keys = [one.key for one in self.records()]
        first = max(0, keys.index(key) - LOOK_BACK)
        return [Archived(one, self.bucket.read(one)) for one in keys[first:]], keys.index(key) - first

    def newest_sha256(self) -> str | None:
        """Return the SHA-256 of the record that was written last: what the next one names."""
        found = self.records()
        return sha256(self.bucket.read(found[-1].key)) if found else None

    def previous(self, deployment_id: str, attempt: int) -> Previous:
        """Return what came before this record: the hash of the newest one, and the last deployment that succeeded."""
        own = self.record_key(deployment_id, attempt)
        earlier = [one for one in self.records() if one.key != own]
        newest: str | None = None
        for number, stored in enumerate(reversed(earlier[-LOOK_BACK:])):
            data = self.bucket.read(stored.key)
            if number == 0:
                newest = sha256(data)
            document = _document(data)
            if document.get("status") == "success" and document["deployment_id"] != deployment_id:
                return Previous(newest, document["deployment_id"], document["version"])
        return Previous(newest)

    def keep_record(self, document: Document) -> KeptRecord:
        """Archive a record. One that is there already with the same bytes is recognised; other bytes raise NotTrueError."""
        from azora_ci.s3 import AlreadyThereError

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
        """Archive the record of a rollback beside its deployment's, under the next free number."""
        from azora_ci.s3 import AlreadyThereError

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
        """Archive every file below a folder of received artifacts. What cannot be kept is named, it does not end the job."""
        return self.keep_files({path.relative_to(folder).as_posix(): path for path in _files(folder)}, deployment_id, attempt)

    def keep_files(self, found: Mapping[str, Path], deployment_id: str, attempt: int) -> KeptArtifacts:
        """Archive files under these names below the run's artifacts; see ``keep_artifacts``."""
        prefix = self.artifacts_prefix(deployment_id, attempt)
        files, size, problems = 0, 0, list[str]()
        for name, path in found.items():
            problem = self._keep_file(path, prefix + name)
            if problem:
                problems.append(f"{name}: {problem}")
            else:
                files, size = files + 1, size + path.stat().st_size
        return KeptArtifacts(self.bucket.url(prefix), files, size, tuple(problems))

    def _keep_file(self, path: Path, key: str) -> str | None:
        from azora_ci.s3 import AlreadyThereError

        size = path.stat().st_size
        if size > LARGEST_ARTIFACT_BYTES:
            return f"{size} bytes are more than the {LARGEST_ARTIFACT_BYTES} that are archived"
        data = path.read_bytes()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            self.bucket.put_once(key, data, content_type=kind, lock_days=LOCK_DAYS, lock_mode=self.lock_mode)
        except AlreadyThereError as taken:
            if not taken.identical and self.bucket.read(key) != data:
                return f"another file is archived as {self.bucket.url(key)}"
        return None


def _files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder in order, links left out."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _document(data: bytes) -> Document:
    """Return an archived record; {} for bytes that are none, which still are a link of the chain."""
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


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
