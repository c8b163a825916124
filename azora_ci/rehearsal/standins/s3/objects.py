"""Operations on objects: put, get, head, delete."""

from __future__ import annotations

import re
from pathlib import Path

from azora_ci.rehearsal.standins.s3.errors import S3Error, not_implemented
from azora_ci.rehearsal.standins.s3.exchange import Answer, Request, http_date, require_checksum_for_lock, require_free, traits_of
from azora_ci.rehearsal.standins.s3.store import NULL, Version

LARGEST_PUT = 5 * 1024**3  # bytes


def put_object(request: Request) -> Answer:
    """PutObject: the whole object at once, verified before it is visible."""
    store = request.store
    with store.lock:
        traits = traits_of(request, store.clock.now())
        require_checksum_for_lock(request, traits.lock)
        path = store.bucket(request.bucket).new_file()
    if request.body.left > LARGEST_PUT:
        raise S3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
    received = request.body.receive(path, opaque_etag=traits.opaque_etag)
    with store.lock:
        try:
            require_free(request)
        except S3Error:
            path.unlink()
            raise
        version = store.bucket(request.bucket).add(
            Version(
                request.key,
                NULL,
                0,
                store.clock.now(),
                etag=received.etag,
                size=received.size,
                segments=[(f"data/{path.name}", received.size)],
                checksums=received.declared,
                traits=traits,
            )
        )
    headers = {"etag": f'"{version.etag}"', **version_header(version), **encryption_headers(version), **checksum_headers(version)}
    return Answer(200, headers, touched=(path,))


def version_header(version: Version) -> dict[str, str]:
    """Return the version id's header; objects without versioning have none."""
    return {} if version.version_id == NULL else {"x-amz-version-id": version.version_id}


def encryption_headers(version: Version) -> dict[str, str]:
    """Return what an answer says about encryption."""
    return {name: value for name, value in version.traits.headers.items() if name.startswith("x-amz-server-side-encryption")}


def checksum_headers(version: Version) -> dict[str, str]:
    """Return what an answer says about checksums."""
    if not version.checksums:
        return {}
    values = {f"x-amz-checksum-{algorithm}": value for algorithm, value in version.checksums.items()}
    return {**values, "x-amz-checksum-type": version.checksum_type}


def get_object(request: Request) -> Answer:
    """GetObject, whole or in part."""
    with request.store.lock:
        bucket = request.store.bucket(request.bucket)
        version = bucket.find(request.key, request.version_id)
        answer = _described(request, version)
        files = [(bucket.folder / name, size) for name, size in version.segments]
    if answer.status == 304:
        return answer
    start, length = _range(request, version, answer)
    answer.pieces = _cut(files, start, length)
    answer.length = length
    return answer


def head_object(request: Request) -> Answer:
    """HeadObject: what GetObject would say, without the bytes."""
    answer = get_object(request)
    answer.pieces = []
    return answer


def _described(request: Request, version: Version) -> Answer:
    if "partNumber" in request.query:
        raise not_implemented("partNumber on GetObject and HeadObject")
    etag = f'"{version.etag}"'
    headers = {
        **version.traits.headers,
        **version_header(version),
        "etag": etag,
        "last-modified": http_date(version.modified),
        "accept-ranges": "bytes",
    }
    lock = version.traits.lock
    if lock is not None:
        until = lock.until.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        headers |= {"x-amz-object-lock-mode": lock.mode, "x-amz-object-lock-retain-until-date": until}
    if (request.header("x-amz-checksum-mode") or "").upper() == "ENABLED" and request.header("range") is None:
        headers |= checksum_headers(version)
    wanted, unwanted = request.header("if-match"), request.header("if-none-match")
    if wanted is not None and wanted.strip('"') not in {version.etag, "*"}:
        raise S3Error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
    if unwanted is not None and unwanted.strip('"') in {version.etag, "*"}:
        return Answer(304, {"etag": etag})
    return Answer(200, headers)


def _range(request: Request, version: Version, answer: Answer) -> tuple[int, int]:
    """Return (start, length) of what is asked for, and say so in the answer. Raises S3Error for an impossible range."""
    text = request.header("range")
    if text is None:
        return 0, version.size
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if match is None or not (match[1] or match[2]):
        return 0, version.size  # RFC 9110: a range that is not understood is ignored
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or version.size - 1), version.size - 1)
    else:
        start, end = max(0, version.size - int(match[2])), version.size - 1
    if start >= version.size or end < start:
        headers = {"content-range": f"bytes */{version.size}"}
        raise S3Error(416, "InvalidRange", "The requested range is not satisfiable", headers=headers)
    answer.status = 206
    answer.headers["content-range"] = f"bytes {start}-{end}/{version.size}"
    return start, end - start + 1


def _cut(files: list[tuple[Path, int]], start: int, length: int) -> list[tuple[Path, int, int]]:
    """Return the pieces of files that hold ``length`` bytes from ``start``."""
    pieces = []
    for path, size in files:
        if start < size and length > 0:
            taken = min(size - start, length)
            pieces.append((path, start, taken))
            length -= taken
        start = max(0, start - size)
    return pieces


def delete_object(request: Request) -> Answer:
    """DeleteObject: a delete marker, or one version for good unless it is locked."""
    store = request.store
    with store.lock:
        bucket = store.bucket(request.bucket)
        bypass = (request.header("x-amz-bypass-governance-retention") or "").lower() == "true"
        if request.version_id is None and bucket.versioned:
            marker = bucket.add(Version(request.key, NULL, 0, store.clock.now(), delete_marker=True))
            return Answer(204, {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version_id})
        version = bucket.version(request.key, request.version_id or NULL)
        if version is None:
            return Answer(204)
        bucket.remove(version, now=store.clock.now(), bypass=bypass)
        return Answer(204, version_header(version) | ({"x-amz-delete-marker": "true"} if version.delete_marker else {}))
