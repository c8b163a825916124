"""A bucket of an S3 store: its configuration, its objects, and writes that never replace an object.

Sources: the S3 API reference (conditional writes, checksums, Object Lock). boto3 is imported when a Bucket is created.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from azora_ci.clients.s3.calls import ABSENT, DENIED, CallRefusedError, Calls, Patience, failure
from azora_ci.clients.s3.objects import CONFLICT, EXISTS, AlreadyThereError, NotThereError, PendingUpload, StoredObject, crc32, encode_crc32
from azora_ci.clients.s3.upload import MultipartUpload
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.settings import Aws

SMALL = 64 * 1024 * 1024  # bytes of an object that is read as a whole
CHUNK = 1024 * 1024  # bytes of a stored object held at a time while reading
# The keys that this project uploads in parts; ``sweep`` aborts uploads of these keys only.
OWN_KEY = re.compile(r"(.*/)?backup-[1-9][0-9]{0,11}-[0-9a-f]{6}(-attempt-[0-9]+)?\.sql\.gz")


@dataclass(frozen=True)
class BucketFacts:
    """The configuration of a bucket. None: the store does not report it (not allowed, or not implemented)."""

    versioning: bool | None
    object_lock: bool | None
    encryption: str | None  # AES256, aws:kms, …
    encryption_key: str | None
    lifecycle: tuple[str, ...] | None  # one line a rule

    def lines(self) -> tuple[str, ...]:
        """Return one line of text per fact."""
        words = {True: "on", False: "off", None: "unknown (the store does not tell)"}
        rules = "unknown (the store does not tell)" if self.lifecycle is None else "; ".join(self.lifecycle) or "none"
        return (
            f"versioning: {words[self.versioning]}",
            f"Object Lock: {words[self.object_lock]}",
            f"default encryption: {self.encryption or 'none known'}",
            f"lifecycle rules: {rules}",
        )


def open_bucket(
    settings: Aws,
    name: str,
    *,
    clock: Clock | None = None,
    patience: Patience | None = None,
    say: Callable[[str], None] | None = None,
    checksums: bool = True,
) -> Bucket:
    """Return a bucket that uses the settings' keys, or boto3's own chain of credentials when they are unset.

    ``say`` is called with a line for every repeated call; ``checksums``: the store checks and keeps a checksum of each object that is
    written. No request is sent yet. Raises BadInputError for unusable settings.
    """
    clock = clock or Clock()
    return Bucket(name, Calls(settings, clock=clock, patience=patience or Patience(), say=say), clock, checksums=checksums)


class Bucket:
    """One bucket. Every method raises UnreachableError (exit 3) or BadInputError (exit 2) when the store cannot be used."""

    def __init__(self, name: str, calls: Calls, clock: Clock, *, checksums: bool = True) -> None:
        self.name = name
        self.checksums = checksums
        self.calls = calls
        self.clock = clock
        self._facts: BucketFacts | None = None

    def url(self, key: str) -> str:
        """Return ``s3://bucket/key``."""
        return f"s3://{self.name}/{key}"

    # --- configuration ------------------------------------------------------------------------------------------------

    def facts(self) -> BucketFacts:
        """Return the bucket's configuration, requested once. Raises BadInputError when there is no such bucket."""
        if self._facts is None:
            self.calls.call("head_bucket", self.url(""), Bucket=self.name)
            encryption, key = self._encryption()
            self._facts = BucketFacts(self._versioning(), self._object_lock(), encryption, key, self._lifecycle())
        return self._facts

    def _configuration(self, operation: str, absent: str) -> dict[str, Any] | None:
        """Return one configuration: {} when the store answers ``absent``, None when it does not report it."""
        withheld = DENIED | {"NotImplemented", "MethodNotAllowed", "501", "405", "UnsupportedOperation"}
        try:
            return self.calls.call(operation, self.url(""), expected=withheld | {absent}, Bucket=self.name)
        except CallRefusedError as refused:
            return {} if refused.code == absent else None

    def _versioning(self) -> bool | None:
        answer = self._configuration("get_bucket_versioning", "NoSuchConfiguration")
        return None if answer is None else answer.get("Status") == "Enabled"

    def _object_lock(self) -> bool | None:
        answer = self._configuration("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError")
        return None if answer is None else answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"

    def _encryption(self) -> tuple[str | None, str | None]:
        answer = self._configuration("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError") or {}
        rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        default = rules[0].get("ApplyServerSideEncryptionByDefault", {}) if rules else {}
        return default.get("SSEAlgorithm"), default.get("KMSMasterKeyID")

    def _lifecycle(self) -> tuple[str, ...] | None:
        answer = self._configuration("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration")
        return None if answer is None else tuple(_describe_rule(rule) for rule in answer.get("Rules", []))

    def protection(self, lock_days: int | None, lock_mode: str) -> dict[str, Any]:
        """Return the parameters of a new object for retention (where the bucket has Object Lock) and encryption."""
        facts = self.facts()
        parameters: dict[str, Any] = {}
        if lock_days and facts.object_lock:
            parameters["ObjectLockMode"] = lock_mode
            parameters["ObjectLockRetainUntilDate"] = (self.clock.now() + timedelta(days=lock_days)).replace(microsecond=0)
        if facts.encryption:
            parameters["ServerSideEncryption"] = facts.encryption
        if facts.encryption_key:
            parameters["SSEKMSKeyId"] = facts.encryption_key
        return parameters

    # --- objects ------------------------------------------------------------------------------------------------------

    def head(self, key: str, version_id: str | None = None) -> StoredObject | None:
        """Return an object's facts, None when it does not exist."""
        try:
            answer = self.calls.call(
                "head_object", self.url(key), expected=ABSENT, Bucket=self.name, Key=key, ChecksumMode="ENABLED", **_version(version_id)
            )
        except CallRefusedError:
            return None
        return _stored_object(key, answer)

    def put_once(
        self, key: str, data: bytes, *, content_type: str, lock_days: int | None = None, lock_mode: str = "GOVERNANCE"
    ) -> StoredObject:
        """Write a small object under a free key and return its facts. Retention applies where the bucket has Object Lock.

        Raises AlreadyThereError when the key is taken, unless our own write took it and its answer was lost.
        """
        checksum = crc32(data)
        try:
            answer = self.calls.call(
                "put_object", self.url(key), expected=frozenset({EXISTS}), transient=frozenset({CONFLICT}), Bucket=self.name, Key=key,
                Body=data, ContentType=content_type, IfNoneMatch="*", **self.check(data), **self.protection(lock_days, lock_mode),
            )  # fmt: skip
        except CallRefusedError as refused:
            existing = self.require(key)
            # A store without checksums: the ETag of an object written by one request is its MD5 (not under KMS).
            digests = {existing.checksum} if existing.checksum else {existing.etag}
            identical = existing.size == len(data) and bool(digests & {checksum, hashlib.md5(data, usedforsecurity=False).hexdigest()})
            if identical and refused.answer_lost:
                return existing
            raise AlreadyThereError(self.url(key), existing, identical=identical) from None
        return self.require(key, answer.get("VersionId"))

    def check(self, data: bytes | bytearray) -> dict[str, Any]:
        """Return the parameters of a request by which the store checks the bytes that arrive: our checksum, or S3's oldest means."""
        if self.checksums:
            return {"ChecksumCRC32": crc32(data)}
        return {"ContentMD5": b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")}

    def require(self, key: str, version_id: str | None = None) -> StoredObject:
        """Return an object's facts. Raises NotThereError."""
        stored = self.head(key, version_id)
        if stored is None:
            raise self._not_there(key, version_id)
        return stored

    def _not_there(self, key: str, version_id: str | None) -> NotThereError:
        return NotThereError(
            "The object does not exist",
            what=f"{self.url(key)}{f' version {version_id}' if version_id else ''} is not in the bucket",
            where=self.url(key),
            next_step="check the key and, where one is named, the version",
        )

    def read(self, key: str, version_id: str | None = None, *, most: int = SMALL) -> bytes:
        """Return a small object's bytes, verified as in ``stream``. Raises NotTrueError when there are more than ``most``."""
        return b"".join(self.stream(key, version_id, most=most))

    def stream(self, key: str, version_id: str | None = None, *, most: int | None = None) -> Iterator[bytes]:
        """Yield an object's bytes in chunks of at most 1 MiB; a broken connection is resumed where it broke.

        Raises NotThereError, and NotTrueError when the bytes do not match the object's size and checksum.
        """
        from isal import isal_zlib

        answer = self._get(key, version_id)
        stored, body = _stored_object(key, answer), answer["Body"]
        if most is not None and stored.size > most:
            body.close()
            raise NotTrueError(
                "The stored object is too large",
                what=f"{stored.size} bytes, and at most {most} are read",
                where=self.url(key),
                next_step="find out who wrote it: none of this project's documents is so large",
            )
        position, checksum = 0, 0
        for chunk in self._chunks(stored, version_id, body):
            position += len(chunk)
            checksum = isal_zlib.crc32(chunk, checksum)
            yield chunk
        if position != stored.size or (stored.checksum is not None and stored.checksum != encode_crc32(checksum)):
            raise NotTrueError(
                "The stored object is damaged",
                what=f"{position} bytes with CRC32 {encode_crc32(checksum)} were read; stored were {stored.describe()}",
                where=self.url(key),
                next_step="do not use this object; take another backup and check the store",
            )

    def _get(self, key: str, version_id: str | None) -> dict[str, Any]:
        """Return the store's answer with an object's facts and its bytes to come. Raises NotThereError."""
        named = {"Bucket": self.name, "Key": key, **_version(version_id)}
        try:
            return self.calls.call("get_object", self.url(key), expected=ABSENT, ChecksumMode="ENABLED", **named)
        except CallRefusedError:
            raise self._not_there(key, version_id) from None

    def _chunks(self, stored: StoredObject, version_id: str | None, body: Any) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError

        where, position, failures = self.url(stored.key), 0, 0
        while True:
            resumed_at = position
            try:
                while chunk := body.read(CHUNK):
                    position += len(chunk)
                    yield chunk
                    if position > stored.size:  # a store that sends more than it said would never end
                        return
                if position == resumed_at:
                    return
            except BotoCoreError as error:
                failures = 1 if position > resumed_at else failures + 1
                if failures >= self.calls.attempts and position < stored.size:
                    raise failure(error, "get_object", where, failures) from error
            finally:
                body.close()
            if position >= stored.size:  # also when botocore finds that the bytes do not fit their checksum: our caller says so
                return
            parameters = {"IfMatch": f'"{stored.etag}"', **_version(version_id), "Range": f"bytes={position}-"}
            body = self.calls.call("get_object", where, Bucket=self.name, Key=stored.key, **parameters)["Body"]

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects under a prefix, in the order of their keys."""
        for answer in self._pages("list_objects_v2", prefix, {"ContinuationToken": "NextContinuationToken"}):
            for item in answer.get("Contents", []):
                yield StoredObject(item["Key"], item["Size"], item["ETag"].strip('"'), _utc(item["LastModified"]))

    def _pages(self, operation: str, prefix: str, markers: dict[str, str]) -> Iterator[dict[str, Any]]:
        position: dict[str, Any] = {}
        while True:
            try:
                answer = self.calls.call(
                    operation, self.url(prefix), expected=frozenset({"NoSuchUpload"}), Bucket=self.name, Prefix=prefix, **position
                )
            except CallRefusedError:  # rclone's server answers so for a bucket that never had an upload in parts
                return
            yield answer
            if not answer.get("IsTruncated"):
                return
            position = {parameter: answer[field] for parameter, field in markers.items() if answer.get(field)}

    # --- uploads in parts ---------------------------------------------------------------------------------------------

    def multipart(
        self,
        key: str,
        *,
        content_type: str = "application/octet-stream",
        lock_days: int | None = None,
        lock_mode: str = "GOVERNANCE",
        in_flight: int = 3,
        part_size: int = 8 * 1024 * 1024,
    ) -> MultipartUpload:
        """Return an upload of a stream of unknown length; see MultipartUpload. Nothing is sent before its ``with`` block begins."""
        return MultipartUpload(self, key, content_type=content_type, lock=(lock_days, lock_mode), in_flight=in_flight, part_size=part_size)

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield the multipart uploads under a prefix that were neither completed nor aborted."""
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        for answer in self._pages("list_multipart_uploads", prefix, markers):
            for item in answer.get("Uploads", []):
                yield PendingUpload(item["Key"], item["UploadId"], item["Initiated"])

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload and remove its parts; an upload that no longer exists is no error."""
        with contextlib.suppress(CallRefusedError):
            self.calls.call(
                "abort_multipart_upload", self.url(key), expected=frozenset({"NoSuchUpload"}), Bucket=self.name, Key=key, UploadId=upload_id
            )

    def sweep(
        self, prefix: str, older_than: timedelta, *, pattern: re.Pattern[str] = OWN_KEY, keep: frozenset[str] = frozenset()
    ) -> tuple[PendingUpload, ...]:
        """Abort the project's uploads that a killed run left under a prefix, and return them.

        Aborts only uploads whose whole key matches ``pattern``, that began longer ago than ``older_than`` (the store's time
        against this machine's clock), and whose id is not in ``keep``.
        """
        latest_start = self.clock.now() - older_than
        leftovers = tuple(
            pending
            for pending in self.pending_uploads(prefix)
            if pattern.fullmatch(pending.key) and pending.initiated <= latest_start and pending.upload_id not in keep
        )
        for pending in leftovers:
            self.abort_upload(pending.key, pending.upload_id)
        return leftovers


def _version(version_id: str | None) -> dict[str, Any]:
    return {"VersionId": version_id} if version_id else {}


def _stored_object(key: str, answer: dict[str, Any]) -> StoredObject:
    return StoredObject(
        key=key,
        size=answer["ContentLength"],
        etag=answer.get("ETag", "").strip('"'),
        modified=_utc(answer.get("LastModified")),
        version_id=_real_version(answer.get("VersionId")),
        # A composite checksum ("…-3") is a checksum of part checksums, not of the whole object.
        checksum=None if answer.get("ChecksumType") == "COMPOSITE" else answer.get("ChecksumCRC32"),
        lock_until=_utc(answer.get("ObjectLockRetainUntilDate")),
        lock_mode=answer.get("ObjectLockMode"),
        encryption=answer.get("ServerSideEncryption"),
        metadata=tuple(sorted(answer.get("Metadata", {}).items())),
    )


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC) if moment else None


def _real_version(version_id: str | None) -> str | None:
    return None if version_id in {None, "", "null"} else version_id


def _describe_rule(rule: dict[str, Any]) -> str:
    """Return a lifecycle rule as one line: name, status, actions, prefix."""
    prefix = rule.get("Filter", {}).get("Prefix", rule.get("Prefix", ""))
    actions = [name for name in rule if name not in {"ID", "Filter", "Prefix", "Status"}]
    days = "".join(f" after {rule[name]['Days']} days" for name in actions if isinstance(rule[name], dict) and "Days" in rule[name])
    return f"{rule.get('ID', 'unnamed')} ({rule.get('Status', '?')}): {', '.join(actions)}{days} under {prefix or 'every key'!r}"
