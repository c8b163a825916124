"""Operations on buckets: their configuration, and listings of what is in them."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from azora_ci.rehearsal.standins.s3.errors import S3Error, not_implemented
from azora_ci.rehearsal.standins.s3.exchange import NAMESPACE, Answer, Request, encoder, parse_xml, xml
from azora_ci.rehearsal.standins.s3.store import Bucket, Version

LIMIT = 1000  # entries of a page
# Configuration documents that are kept as they are put: query -> (root element, code when there is none)
DOCUMENTS = {
    "versioning": ("VersioningConfiguration", None),
    "object-lock": ("ObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"),
    "encryption": ("ServerSideEncryptionConfiguration", "ServerSideEncryptionConfigurationNotFoundError"),
    "lifecycle": ("LifecycleConfiguration", "NoSuchLifecycleConfiguration"),
}


def list_buckets(request: Request) -> Answer:
    """ListBuckets."""
    with request.store.lock:
        names = sorted(request.store.buckets)
    entries = [{"Name": name, "CreationDate": request.store.clock.now()} for name in names]
    return xml("ListAllMyBucketsResult", {"Owner": {"ID": "owner"}, "Buckets": {"Bucket": entries}})


def create_bucket(request: Request) -> Answer:
    """CreateBucket, with Object Lock (which brings versioning) where asked for."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", request.bucket):
        raise S3Error(400, "InvalidBucketName", "The specified bucket is not valid.")
    request.body.text()
    with request.store.lock:
        object_lock = (request.header("x-amz-bucket-object-lock-enabled") or "").lower() == "true"
        configure_new(request.store.create(request.bucket), versioning=object_lock, object_lock=object_lock, encryption=None)
    return Answer(200, {"location": f"/{request.bucket}"})


def configure_new(bucket: Bucket, *, versioning: bool, object_lock: bool, encryption: str | None) -> None:
    """Give a new bucket versioning, Object Lock (which needs versioning) and a default encryption."""
    if versioning or object_lock:
        bucket.configure("versioning", _document("versioning", "<Status>Enabled</Status>"))
    if object_lock:
        bucket.configure("object-lock", _document("object-lock", "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"))
    if encryption is not None:
        rule = f"<ApplyServerSideEncryptionByDefault><SSEAlgorithm>{encryption}</SSEAlgorithm></ApplyServerSideEncryptionByDefault>"
        bucket.configure("encryption", _document("encryption", f"<Rule>{rule}</Rule>"))


def _document(subject: str, content: str) -> str:
    root = DOCUMENTS[subject][0]
    return f'<{root} xmlns="{NAMESPACE}">{content}</{root}>'


def delete_bucket(request: Request) -> Answer:
    """DeleteBucket: only an empty one."""
    with request.store.lock:
        request.store.delete(request.bucket)
    return Answer(204)


def head_bucket(request: Request) -> Answer:
    """HeadBucket."""
    with request.store.lock:
        request.store.bucket(request.bucket)
    return Answer(200)


def get_location(request: Request) -> Answer:
    """GetBucketLocation: the region of us-east-1 is an empty text."""
    with request.store.lock:
        request.store.bucket(request.bucket)
    return xml("LocationConstraint", {})


def get_configuration(request: Request) -> Answer:
    """GetBucketVersioning and its like: the document as it was put."""
    subject = next(name for name in DOCUMENTS if name in request.query)
    root, missing = DOCUMENTS[subject]
    with request.store.lock:
        text = request.store.bucket(request.bucket).configuration.get(subject)
    if text is None and missing is not None:
        raise S3Error(404, missing, f"The {root} was not found")
    return Answer(200, {"content-type": "application/xml"}, (text or f'<{root} xmlns="{NAMESPACE}"/>').encode())


def put_configuration(request: Request) -> Answer:
    """PutBucketVersioning and its like."""
    subject = next(name for name in DOCUMENTS if name in request.query)
    data = request.body.text()
    if parse_xml(data).tag != DOCUMENTS[subject][0]:
        raise S3Error(400, "MalformedXML", "The XML you provided did not validate against our published schema")
    with request.store.lock:
        bucket = request.store.bucket(request.bucket)
        if subject == "object-lock" and not bucket.versioned:
            raise S3Error(409, "InvalidBucketState", "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration")
        if subject == "object-lock" and b"<Rule>" in data:
            raise not_implemented("a default retention")
        if subject == "versioning" and bucket.locking and b"Enabled" not in data:
            raise S3Error(409, "InvalidBucketState", "An Object Lock configuration is present on this bucket")
        bucket.configure(subject, data.decode("utf-8"))
    return Answer(200)


# --- listings ---------------------------------------------------------------------------------------------------------


def list_objects(request: Request) -> Answer:
    """ListObjectsV2 under a prefix, with delimiter, in pages."""
    if request.query.get("list-type") != "2":
        raise not_implemented("ListObjects of the first version")
    prefix, delimiter, encode = request.query.get("prefix", ""), request.query.get("delimiter", ""), encoder(request)
    after = _token(request.query["continuation-token"]) if "continuation-token" in request.query else request.query.get("start-after", "")
    limit = _limit(request)
    with request.store.lock:
        bucket = request.store.bucket(request.bucket)
        current = {key: versions[-1] for key, versions in bucket.versions.items() if not versions[-1].delete_marker}
    names = _grouped(current, prefix, delimiter)
    later = [name for name in names if name > after]
    page, truncated = later[:limit], len(later) > limit
    contents = [_entry(current[name], encode) for name in page if not names[name]]
    content: dict[str, Any] = {"Name": request.bucket, "Prefix": encode(prefix), "Delimiter": encode(delimiter) or None}
    content |= {"MaxKeys": limit, "KeyCount": len(page), "IsTruncated": truncated, "EncodingType": request.query.get("encoding-type")}
    if truncated:
        content["NextContinuationToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
    prefixes = [{"Prefix": encode(name)} for name in page if names[name]]
    return xml("ListBucketResult", {**content, "Contents": contents, "CommonPrefixes": prefixes})


def _grouped(keys: Any, prefix: str, delimiter: str) -> dict[str, bool]:
    """Return what a listing names, in order: keys (False) and common prefixes (True)."""
    found: dict[str, bool] = {}
    for key in keys:
        if not key.startswith(prefix):
            continue
        head, separator, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        found[prefix + head + separator if separator else key] = bool(separator)
    return dict(sorted(found.items()))


def _limit(request: Request) -> int:
    text = request.query.get("max-keys", str(LIMIT))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise S3Error(400, "InvalidArgument", "Provided max-keys not an integer or within integer range")
    return min(LIMIT, int(text))


def _token(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text).decode("utf-8")
    except (binascii.Error, ValueError):
        raise S3Error(400, "InvalidArgument", "The continuation token provided is incorrect") from None


def _entry(version: Version, encode: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"Key": encode(version.key), "LastModified": version.modified, "ETag": f'"{version.etag}"'}
    entry |= {"ChecksumAlgorithm": [name.upper() for name in version.checksums]}
    return {**entry, "Size": version.size, "StorageClass": "STANDARD"}


def list_object_versions(request: Request) -> Answer:
    """ListObjectVersions under a prefix, newest first, delete markers included, in pages."""
    prefix, encode, limit = request.query.get("prefix", ""), encoder(request), _limit(request)
    if request.query.get("delimiter"):
        raise not_implemented("a delimiter when versions are listed")
    with request.store.lock:
        found = _versions(request.store.bucket(request.bucket), prefix)
    start = _start(found, request.query.get("key-marker", ""), request.query.get("version-id-marker", ""))
    page, truncated = found[start : start + limit], len(found) > start + limit
    content: dict[str, Any] = {"Name": request.bucket, "Prefix": encode(prefix), "MaxKeys": limit, "IsTruncated": truncated}
    content |= {"EncodingType": request.query.get("encoding-type")}
    if truncated:
        content |= {"NextKeyMarker": encode(page[-1][0].key), "NextVersionIdMarker": page[-1][0].version_id}
    versions = [_entry(item, encode) | _identity(item, latest) for item, latest in page if not item.delete_marker]
    markers = [
        {"Key": encode(item.key), "LastModified": item.modified, **_identity(item, latest)} for item, latest in page if item.delete_marker
    ]
    return xml("ListVersionsResult", {**content, "Version": versions, "DeleteMarker": markers})


def _versions(bucket: Bucket, prefix: str) -> list[tuple[Version, bool]]:
    """Return (version, is it the latest) of every key under a prefix, keys in order, newest version first."""
    return [
        (version, version is bucket.versions[key][-1])
        for key in sorted(bucket.versions)
        if key.startswith(prefix)
        for version in reversed(bucket.versions[key])
    ]


def _identity(version: Version, latest: bool) -> dict[str, Any]:
    return {"VersionId": version.version_id, "IsLatest": latest}


def _start(found: list[tuple[Version, bool]], key: str, version_id: str) -> int:
    """Return the place after a marker: after one version, or after every version of a key."""
    for place, (version, _) in enumerate(found):
        if version.key > key or (version.key == key and version_id and version.version_id == version_id):
            return place if version.key > key else place + 1
    return len(found)
