"""The archive of deployment records and artifacts. It lies in the bucket of the backups.

Each object is written once, and locked for a year where the bucket supports locks. Records are
``s3://<bucket>/records/<environment>/<deployment-id>/<attempt>.json``; the records of a deployment's rollbacks lie in the same folder as
``rollback-<number>.json``. Artifacts are ``s3://<bucket>/artifacts/<environment>/<deployment-id>/<attempt>/…``. All records of an
environment form one chain of hashes.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path

from azora_ci.clients.s3.bucket import Bucket, open_bucket
from azora_ci.clients.s3.calls import Patience
from azora_ci.clients.s3.objects import AlreadyThereError, StoredObject
from azora_ci.clients.signing.signatures import SUFFIX, Signatures
from azora_ci.core import schemas
from azora_ci.core.clock import Clock
from azora_ci.core.config import BackupSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.core.settings import Aws
from azora_ci.record.chain import LIMITS, Document, archived_bytes, flaw, parse_record, sha256
from azora_ci.record.deployment import SCHEMA
from azora_ci.record.run import Previous

LOCK_DAYS = 365  # the guide's retention of audit evidence
LARGEST_ARTIFACT_BYTES = 64 * 1024 * 1024
MOST_ROLLBACKS = 1000  # of one deployment
LOOK_BACK = 20  # records read to find the last deployment that succeeded
READERS = 8  # connections of the client
MOST_SET_ASIDE = 200  # objects that are no records and are passed over on the way
RECORD_KEY = re.compile(r"records/[^/]+/([1-9][0-9]{0,11}-[0-9a-f]{6})/(rollback-)?([1-9][0-9]*)\.json")


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
    """An object in a record's place: its key in the bucket and its bytes; ``flaw``: why it is no record, and set aside."""

    key: str
    data: bytes
    flaw: str | None = None

    @cached_property
    def document(self) -> Document:
        """Return the parsed record; {} when the object is set aside."""
        return {} if self.flaw else parse_record(self.data)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the record's bytes."""
        return sha256(self.data)


class Archive:
    """Records and artifacts of one environment in one bucket. Methods raise UnreachableError, BadInputError or NotTrueError.

    An object in a record's place that is no record, or not signed as the configuration says, stops nothing: the methods pass over it
    and name it in ``set_aside``.
    """

    def __init__(self, bucket: Bucket, environment: str, lock_mode: str = "GOVERNANCE", signatures: Signatures | None = None) -> None:
        self.bucket = bucket
        self.environment = environment
        self.lock_mode = lock_mode
        self.signatures = signatures or Signatures(bucket, None)
        self._set_aside: dict[str, str] = {}
        self._reasons: dict[str, str | None] = {}

    @property
    def set_aside(self) -> tuple[str, ...]:
        """Return a line for every object that was passed over so far because it is no record: its URL, size and what is wrong with it."""
        return tuple(self._set_aside.values())

    def reason(self, key: str) -> str | None:
        """Return why the object under a key was set aside, None for one that was not."""
        return self._reasons.get(key)

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
        checksums = backup.checksums == "full-object"
        bucket = open_bucket(settings, backup.bucket, clock=clock, patience=patience, say=say, checksums=checksums)
        return cls(bucket, environment, backup.lock_mode, Signatures.of(bucket, backup.signing))

    def record_key(self, deployment_id: str, attempt: int) -> str:
        """Return the key of a record."""
        return f"records/{self.environment}/{deployment_id}/{attempt}.json"

    def artifacts_prefix(self, deployment_id: str, attempt: int) -> str:
        """Return the prefix of a run's artifacts, with its final slash."""
        return f"artifacts/{self.environment}/{deployment_id}/{attempt}/"

    def records(self) -> list[StoredObject]:
        """Return the stored records of this environment, oldest first."""
        stored = [item for item in self.bucket.list(f"records/{self.environment}/") if RECORD_KEY.fullmatch(item.key)]
        return sorted(stored, key=lambda item: (item.modified or datetime.min.replace(tzinfo=UTC), _order(item.key)))

    def signed_keys(self) -> list[str]:
        """Return the keys of this environment's records beside which a signature lies, whether the record is there or not."""
        names = (item.key for item in self.bucket.list(f"records/{self.environment}/") if item.key.endswith(SUFFIX))
        return [key for name in names if RECORD_KEY.fullmatch(key := name.removesuffix(SUFFIX))]

    def read_all(self, stored: Sequence[StoredObject]) -> list[Archived]:
        """Return the objects in records' places, in this order, also those that are set aside."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._read, stored))

    def put_aside(self, archived: Archived, flaw: str) -> None:
        """Note an object that was read as set aside."""
        self._put_aside(replace(archived, flaw=flaw), len(archived.data))

    def believe(self, archived: Archived) -> Archived:
        """Return an object that was set aside for its signature as a record: the verification shows that none is to be expected."""
        self._set_aside.pop(archived.key, None)
        self._reasons.pop(archived.key, None)
        return replace(archived, flaw=None)

    def _read(self, stored: StoredObject) -> Archived:
        """Return the object in a record's place. One that is too large is not read; a damaged or wrongly signed one is set aside, too."""
        match = RECORD_KEY.fullmatch(stored.key)
        deployment_id = match[1] if match else ""
        try:
            data = self.bucket.read(stored.key, most=LIMITS.size)
            archived = Archived(stored.key, data, flaw(data, deployment_id) or self.signatures.doubt(stored.key, data))
        except NotTrueError as error:
            archived = Archived(stored.key, b"", error.what)
        return self._put_aside(archived, stored.size) if archived.flaw else archived

    def _put_aside(self, archived: Archived, size: int) -> Archived:
        checksum = f", SHA-256 {archived.sha256}" if archived.data else ""
        self._reasons[archived.key] = archived.flaw
        self._set_aside[archived.key] = f"{self.bucket.url(archived.key)} ({size} bytes{checksum}): {archived.flaw}"
        return archived

    def _newest_first(self, stored: Sequence[StoredObject]) -> Iterator[Archived]:
        """Yield the records among stored objects, newest first: at most LOOK_BACK, and past at most MOST_SET_ASIDE others."""
        archived = map(self._read, reversed(stored[-LOOK_BACK - MOST_SET_ASIDE :]))
        return islice((record for record in archived if record.flaw is None), LOOK_BACK)

    def records_of(self, deployment_id: str) -> dict[int, bytes]:
        """Return the bytes of one deployment's records by attempt, without the records of its rollbacks."""
        listed = self.bucket.list(f"records/{self.environment}/{deployment_id}/")
        matches = [(stored, match) for stored in listed if (match := RECORD_KEY.fullmatch(stored.key)) and not match[2]]
        return {int(match[3]): archived.data for stored, match in matches if (archived := self._read(stored)).flaw is None}

    def record_to_take_back(self, deployment_id: str | None) -> Archived:
        """Return the record of this deployment; without an id, of the newest that succeeded or can be taken back.

        Of several attempts, the last one that left a version in production counts. What does not fit the schema of records is set aside.
        Raises NotTrueError when there is no such record.
        """
        chosen: Archived | None = None
        for stored in reversed(self.records()):
            match = RECORD_KEY.fullmatch(stored.key)
            if match is None or match[2] or deployment_id not in {None, match[1]}:
                continue
            archived = self._read(stored)
            problems = [] if archived.flaw else schemas.problems(archived.document, SCHEMA)
            if problems:
                self._put_aside(replace(archived, flaw=f"no deployment record: {problems[0]}"), stored.size)
            if archived.flaw or problems:
                continue
            if archived.document.get("status") == "success" or archived.document.get("rollback_available"):
                return archived
            chosen = chosen or archived
        if chosen is None or deployment_id is None:
            raise _no_record(self.bucket.url(f"records/{self.environment}/"), deployment_id, self._set_aside)
        return chosen

    def newest_with(self, name: str) -> Archived | None:
        """Return the newest of the last LOOK_BACK deployment records that holds a value under this key, or None.

        A value that does not fit the schema is passed over; the rest of a record may be of another version of this project.
        """
        of_deployments = [stored for stored in self.records() if not stored.key.rpartition("/")[2].startswith("rollback-")]
        for archived in self._newest_first(of_deployments):
            if archived.document.get(name):
                problems = [problem for problem in schemas.problems(archived.document, SCHEMA) if re.match(rf"{name}\b", problem)]
                if not problems:
                    return archived
                self._put_aside(replace(archived, flaw=problems[0]), len(archived.data))
        return None

    def around(self, key: str) -> tuple[list[Archived], int]:
        """Return the chain from up to LOOK_BACK records before this key to the newest record, and this record's index in it."""
        records = self.records()
        place = [stored.key for stored in records].index(key)
        first = max(0, place - LOOK_BACK)
        return [self._read(stored) for stored in records[first:]], place - first

    def newest(self) -> Archived | None:
        """Return the newest record, which the next record must name, or None without records."""
        return next(self._newest_first(self.records()), None)

    def previous(self, deployment_id: str, attempt: int) -> Previous:
        """Return SHA-256 and URL of the newest other record, and the last other deployment that succeeded."""
        own = self.record_key(deployment_id, attempt)
        earlier = [stored for stored in self.records() if stored.key != own]
        newest: Archived | None = None
        succeeded: Document = {}
        for archived in self._newest_first(earlier):
            newest = newest or archived
            document = archived.document
            if document["status"] == "success" and document["deployment_id"] != deployment_id:
                succeeded = document
                break
        sha256, location = (newest.sha256, self.bucket.url(newest.key)) if newest else (None, None)
        return Previous(sha256, succeeded.get("deployment_id"), succeeded.get("version"), self.set_aside, location)

    def keep_record(self, document: Document) -> KeptRecord:
        """Archive a record. A record already archived with the same bytes is recognised; one with other bytes raises NotTrueError."""
        data = archived_bytes(document)
        key = self.record_key(document["deployment_id"], document["run_attempt"])
        recognised = False
        try:
            stored = self.bucket.put_once(key, data, content_type="application/json", lock_days=LOCK_DAYS, lock_mode=self.lock_mode)
        except AlreadyThereError as taken:
            if taken.existing.size != len(data) or self.bucket.read(key) != data:
                raise _another_record(self.bucket.url(key)) from taken
            stored, recognised = taken.existing, True
        self._sign(key, data)
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
            self._sign(key, data)
            return KeptRecord(self.bucket.url(key), sha256(data), False, stored.lock_until)
        raise _another_record(self.bucket.url(key))

    def _sign(self, key: str, data: bytes) -> None:
        self.signatures.keep(key, data, lock_days=LOCK_DAYS, lock_mode=self.lock_mode)

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
            if not taken.identical and (taken.existing.size != size or self.bucket.read(key) != data):
                return f"another file is archived as {self.bucket.url(key)}"
        return None


def _files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder in sorted order, without symbolic links."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _order(key: str) -> tuple[int, int]:
    match = RECORD_KEY.fullmatch(key)
    assert match is not None  # noqa: S101 - records() keeps only keys of this form
    return int(match[1].split("-")[0]), int(match[3])


def _no_record(where: str, deployment_id: str | None, set_aside: Mapping[str, str]) -> NotTrueError:
    lines = tuple(f"set aside: {line}" for line in set_aside.values())
    if deployment_id and any(f"/{deployment_id}/" in key for key in set_aside):
        return NotTrueError(
            "The record cannot be believed",
            what="\n".join((f"the record of {deployment_id} is set aside", *lines)),
            where=where,
            next_step="find out who changed the archive; to go back without it, deploy the version before again. A record from before "
            "signing was turned on is not signed: that way is the one for it, too",
        )
    missing = f"no record of {deployment_id}" if deployment_id else "no record of a deployment that reached production"
    return NotTrueError(
        "There is no such deployment" if deployment_id else "There is no deployment to take back",
        what="\n".join((missing, *lines)),
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
