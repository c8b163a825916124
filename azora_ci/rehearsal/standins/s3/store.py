"""What the server keeps: buckets, versions of objects, unfinished uploads. Bytes are on disk, facts in memory and on disk.

An object that was uploaded in parts stays in its part files: completing it moves nothing.
"""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock, parse_rfc3339, rfc3339
from azora_ci.rehearsal.standins.s3.body import Received
from azora_ci.rehearsal.standins.s3.errors import S3Error

NULL = "null"  # the version id of objects in a bucket without versioning


@dataclass
class Lock:
    """Retention: GOVERNANCE or COMPLIANCE until a moment."""

    mode: str
    until: datetime


@dataclass
class Traits:
    """What an object is given when it is made, beside its bytes."""

    headers: dict[str, str] = field(default_factory=dict)  # content-type, x-amz-meta-*, encryption: echoed as they are
    lock: Lock | None = None

    @property
    def opaque_etag(self) -> bool:
        """Whether the ETag is no MD5, as that of objects encrypted by KMS."""
        return self.headers.get("x-amz-server-side-encryption") == "aws:kms"


@dataclass
class Version:
    """One version of an object, or a delete marker."""

    key: str
    version_id: str
    order: int
    modified: datetime
    etag: str = ""
    size: int = 0
    segments: list[tuple[str, int]] = field(default_factory=list)  # files below the bucket's folder, and their bytes
    checksums: dict[str, str] = field(default_factory=dict)
    checksum_type: str = "FULL_OBJECT"
    traits: Traits = field(default_factory=Traits)
    delete_marker: bool = False


@dataclass
class Part:
    """An uploaded part."""

    number: int
    received: Received


@dataclass
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    key: str
    upload_id: str
    initiated: datetime
    traits: Traits
    algorithm: str | None
    checksum_type: str | None
    parts: dict[int, Part] = field(default_factory=dict)


class Bucket:
    """One bucket below ``folder``. Guard every use with the store's lock."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.configuration: dict[str, str] = {}  # versioning, object-lock, encryption, lifecycle: XML as it was put
        self.versions: dict[str, list[Version]] = {}  # oldest first
        self.uploads: dict[str, Upload] = {}
        self.order = 0
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "versions").mkdir(exist_ok=True)

    def has(self, subject: str, word: str) -> bool:
        """Say whether a configuration holds a value, such as ``Enabled``."""
        return f">{word}<" in self.configuration.get(subject, "")

    @property
    def versioned(self) -> bool:
        """Whether new objects get versions of their own."""
        return self.has("versioning", "Enabled")

    @property
    def locking(self) -> bool:
        """Whether the bucket has Object Lock."""
        return self.has("object-lock", "Enabled")

    def configure(self, subject: str, text: str) -> None:
        """Keep a configuration document."""
        self.configuration[subject] = text
        (self.folder / "bucket.json").write_text(json.dumps(self.configuration), encoding="utf-8")

    def current(self, key: str) -> Version | None:
        """Return the newest version of a key, which may be a delete marker."""
        versions = self.versions.get(key)
        return versions[-1] if versions else None

    def find(self, key: str, version_id: str | None) -> Version:
        """Return a version that can be read. Raises the S3Error that S3 answers otherwise."""
        if version_id is None:
            found = self.current(key)
            if found is None or found.delete_marker:
                headers = {"x-amz-delete-marker": "true", "x-amz-version-id": found.version_id} if found else {}
                raise S3Error(404, "NoSuchKey", "The specified key does not exist.", headers=headers)
            return found
        found = self.version(key, version_id)
        if found is None:
            raise S3Error(404, "NoSuchVersion", "The specified version does not exist.")
        if found.delete_marker:
            raise S3Error(405, "MethodNotAllowed", "The specified version is a delete marker.", headers={"x-amz-delete-marker": "true"})
        return found

    def version(self, key: str, version_id: str) -> Version | None:
        """Return one version of a key, delete markers included."""
        return next((version for version in self.versions.get(key, []) if version.version_id == version_id), None)

    def add(self, version: Version) -> Version:
        """Make a version the current one, give it its id, and remove what it replaces in a bucket without versioning."""
        self.order += 1
        version.order = self.order
        version.version_id = f"{self.order:08d}{uuid.uuid4().hex}" if self.versioned else NULL
        replaced = None if self.versioned else self.version(version.key, NULL)
        if replaced is not None:
            self._forget(replaced)
        self.versions.setdefault(version.key, []).append(version)
        document = json.dumps(asdict(version), default=_plain)
        self._document(version).write_text(document, encoding="utf-8")
        return version

    def remove(self, version: Version, *, now: datetime, bypass: bool) -> None:
        """Remove a version for good. Raises S3Error while it is locked."""
        lock = version.traits.lock
        if lock is not None and lock.until > now and not (bypass and lock.mode == "GOVERNANCE"):
            raise S3Error(403, "AccessDenied", "Access Denied because object protected by object lock.")
        self._forget(version)

    def _forget(self, version: Version) -> None:
        remaining = [other for other in self.versions[version.key] if other is not version]
        if remaining:
            self.versions[version.key] = remaining
        else:
            del self.versions[version.key]
        self._document(version).unlink(missing_ok=True)
        for name, _ in version.segments:
            (self.folder / name).unlink(missing_ok=True)

    def _document(self, version: Version) -> Path:
        return self.folder / "versions" / f"{version.order:08d}.json"

    def drop_upload(self, upload: Upload) -> None:
        """Remove an upload and its parts."""
        self.uploads.pop(upload.upload_id, None)
        for part in upload.parts.values():
            part.received.path.unlink(missing_ok=True)

    def new_file(self) -> Path:
        """Return the path of a file to be written."""
        return self.folder / "data" / uuid.uuid4().hex

    def load(self) -> None:
        """Read what an earlier server kept here; its unfinished uploads are gone."""
        configuration = self.folder / "bucket.json"
        if configuration.exists():
            self.configuration = json.loads(configuration.read_text(encoding="utf-8"))
        for file in sorted((self.folder / "versions").iterdir()):
            version = _version(json.loads(file.read_text(encoding="utf-8")))
            self.versions.setdefault(version.key, []).append(version)
            self.order = max(self.order, version.order)
        kept = {name for versions in self.versions.values() for version in versions for name, _ in version.segments}
        for data in (self.folder / "data").iterdir():
            if f"data/{data.name}" not in kept:
                data.unlink()


class Store:
    """All buckets below a folder. ``lock`` guards everything in them."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.lock = threading.RLock()
        self.buckets: dict[str, Bucket] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for child in sorted(folder.iterdir()):
            if (child / "versions").is_dir():
                self.buckets[child.name] = Bucket(child, child.name)
                self.buckets[child.name].load()

    def bucket(self, name: str) -> Bucket:
        """Return a bucket. Raises S3Error when there is none."""
        found = self.buckets.get(name)
        if found is None:
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        return found

    def create(self, name: str) -> Bucket:
        """Make a bucket. Raises S3Error when it is there."""
        if name in self.buckets:
            raise S3Error(409, "BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded")
        self.buckets[name] = Bucket(self.folder / name, name)
        self.buckets[name].configure("location", "")
        return self.buckets[name]

    def delete(self, name: str) -> None:
        """Remove an empty bucket. Raises S3Error when something is in it."""
        bucket = self.bucket(name)
        if bucket.versions:
            raise S3Error(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
        del self.buckets[name]
        shutil.rmtree(bucket.folder)

    def flip_bit(self, bucket: str, key: str, version_id: str | None, offset: int) -> None:
        """Damage a stored object: flip the lowest bit of one byte."""
        with self.lock:
            home = self.bucket(bucket)
            for name, size in home.find(key, version_id).segments:
                if offset < size:
                    flip_bit(home.folder / name, offset)
                    return
                offset -= size
        raise ValueError(f"{key} ends {offset + 1} bytes before that offset")


def flip_bit(path: Path, offset: int) -> None:
    """Flip the lowest bit of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return rfc3339(value)
    raise TypeError(type(value).__name__)


def _version(document: dict[str, Any]) -> Version:
    traits = document.pop("traits")
    lock = traits["lock"] and Lock(traits["lock"]["mode"], parse_rfc3339(traits["lock"]["until"]))
    document["modified"] = parse_rfc3339(document["modified"])
    document["segments"] = [(name, size) for name, size in document["segments"]]
    return Version(**document, traits=Traits(traits["headers"], lock))
