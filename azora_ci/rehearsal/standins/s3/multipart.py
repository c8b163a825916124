"""Operations on uploads in parts. Limits: "Amazon S3 multipart upload limits" in the user guide."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import uuid
from typing import Any
from xml.etree import ElementTree

from azora_ci.rehearsal.standins.s3.body import KNOWN, Crc32
from azora_ci.rehearsal.standins.s3.errors import S3Error, not_implemented
from azora_ci.rehearsal.standins.s3.exchange import (
    Answer,
    Request,
    encoder,
    parse_xml,
    require_checksum_for_lock,
    require_free,
    traits_of,
    xml,
)
from azora_ci.rehearsal.standins.s3.objects import checksum_headers, encryption_headers, version_header
from azora_ci.rehearsal.standins.s3.store import NULL, Bucket, Part, Upload, Version

PARTS = 10_000
SMALLEST = 5 * 1024**2  # bytes of every part but the last
LARGEST = 5 * 1024**3
LARGEST_OBJECT = 5 * 1024**4


def create_multipart_upload(request: Request) -> Answer:
    """CreateMultipartUpload: traits, lock and checksum of the object to come."""
    algorithm = (request.header("x-amz-checksum-algorithm") or "").lower() or None
    kind = (request.header("x-amz-checksum-type") or "").upper() or None
    if algorithm is not None and algorithm not in KNOWN:
        raise not_implemented(f"checksum {algorithm}; this server knows {', '.join(KNOWN)}")
    if kind is not None and (algorithm is None or kind not in {"COMPOSITE", "FULL_OBJECT"}):
        raise S3Error(400, "InvalidRequest", "The checksum type needs a checksum algorithm and is COMPOSITE or FULL_OBJECT")
    if kind == "FULL_OBJECT" and algorithm != "crc32":
        raise S3Error(400, "InvalidRequest", f"The FULL_OBJECT checksum type cannot be used with the {algorithm} checksum algorithm.")
    store = request.store
    with store.lock:
        traits = traits_of(request, store.clock.now())
        kind = kind or ("COMPOSITE" if algorithm else None)
        upload = Upload(request.key, uuid.uuid4().hex, store.clock.now(), traits, algorithm, kind)
        store.bucket(request.bucket).uploads[upload.upload_id] = upload
    headers = {name: value for name, value in traits.headers.items() if name.startswith("x-amz-server-side-encryption")}
    if algorithm and kind:
        headers |= {"x-amz-checksum-algorithm": algorithm.upper(), "x-amz-checksum-type": kind}
    document = {"Bucket": request.bucket, "Key": request.key, "UploadId": upload.upload_id}
    return xml("InitiateMultipartUploadResult", document, headers=headers)


def _upload(request: Request) -> tuple[Bucket, Upload]:
    bucket = request.store.bucket(request.bucket)
    upload = bucket.uploads.get(request.query.get("uploadId", ""))
    if upload is None or upload.key != request.key:
        raise S3Error(404, "NoSuchUpload", "The specified multipart upload does not exist. It may have been aborted or completed.")
    return bucket, upload


def upload_part(request: Request) -> Answer:
    """UploadPart: verified as it arrives; a part of the same number is replaced."""
    if request.header("x-amz-copy-source") is not None:
        raise not_implemented("UploadPartCopy")
    number = request.query.get("partNumber", "")
    if not re.fullmatch(r"[0-9]{1,5}", number) or not 1 <= int(number) <= PARTS:
        raise S3Error(400, "InvalidArgument", f"Part number must be an integer between 1 and {PARTS}, inclusive")
    if request.body.left > LARGEST + 1024**2:
        raise S3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
    with request.store.lock:
        bucket, upload = _upload(request)
        require_checksum_for_lock(request, upload.traits.lock)
        path = bucket.new_file()
    received = request.body.receive(path, opaque_etag=upload.traits.opaque_etag)
    sent = next(iter(received.declared), None)
    with request.store.lock:
        try:
            _upload(request)  # it may have been aborted meanwhile
            if upload.algorithm is not None and sent != upload.algorithm:
                text = f"Checksum Type mismatch occurred, expected checksum Type: {upload.algorithm}, actual checksum Type: {sent}"
                raise S3Error(400, "InvalidRequest", text)
        except S3Error:
            path.unlink()
            raise
        replaced = upload.parts.get(int(number))
        upload.parts[int(number)] = Part(int(number), received)
        if replaced is not None:
            replaced.received.path.unlink(missing_ok=True)
    headers = {"etag": f'"{received.etag}"', **{f"x-amz-checksum-{name}": value for name, value in received.declared.items()}}
    return Answer(200, headers, touched=(path,))


def complete_multipart_upload(request: Request) -> Answer:
    """CompleteMultipartUpload: parts, sizes and checksums verified, then visible at once."""
    root = parse_xml(request.body.text(about_body=False))
    listed = root.findall("Part")
    if root.tag != "CompleteMultipartUpload" or not listed:
        raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema")
    store = request.store
    with store.lock:
        bucket, upload = _upload(request)
        parts = _chosen(upload, listed)
        size = sum(part.received.size for part in parts)
        _verify_size(request, size)
        checksums = _object_checksum(upload, parts)
        _verify_checksum(request, upload, checksums)
        require_free(request)
        for number, part in upload.parts.items():
            if part not in parts:
                upload.parts[number].received.path.unlink(missing_ok=True)
        digest = hashlib.md5(b"".join(bytes.fromhex(part.received.etag) for part in parts), usedforsecurity=False).hexdigest()
        version = bucket.add(
            Version(
                upload.key,
                NULL,
                0,
                store.clock.now(),
                etag=f"{digest}-{len(parts)}",
                size=size,
                segments=[(f"data/{part.received.path.name}", part.received.size) for part in parts],
                checksums=checksums,
                checksum_type=upload.checksum_type or "FULL_OBJECT",
                traits=upload.traits,
            )
        )
        del bucket.uploads[upload.upload_id]
    content: dict[str, Any] = {"Location": f"/{request.bucket}/{request.key}", "Bucket": request.bucket, "Key": request.key}
    content |= {"ETag": f'"{version.etag}"', **{f"Checksum{name.upper()}": value for name, value in checksums.items()}}
    content |= {"ChecksumType": version.checksum_type} if checksums else {}
    headers = {**version_header(version), **encryption_headers(version), **checksum_headers(version)}
    touched = tuple(part.received.path for part in parts)
    answer = xml("CompleteMultipartUploadResult", content, headers=headers)
    answer.touched = touched
    return answer


def _chosen(upload: Upload, listed: list[ElementTree.Element]) -> list[Part]:
    """Return the parts that the completion lists. Raises S3Error for wrong order, unknown parts, other ETags, short parts."""
    numbers = [int(text) if (text := item.findtext("PartNumber", "")).isdigit() else 0 for item in listed]
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise S3Error(400, "InvalidPartOrder", "The list of parts was not in ascending order. Parts must be ordered by part number.")
    parts = []
    for number, item in zip(numbers, listed, strict=True):
        part = upload.parts.get(number)
        if part is None or item.findtext("ETag", "").strip('"') != part.received.etag:
            raise S3Error(400, "InvalidPart", f"Part {number} could not be found, or its entity tag did not match the part's entity tag.")
        _verify_part(upload, part, item)
        parts.append(part)
    for part in parts[:-1]:
        if part.received.size < SMALLEST:
            text = f"Your proposed upload is smaller than the minimum allowed size: part {part.number} has {part.received.size} bytes"
            raise S3Error(400, "EntityTooSmall", text)
    return parts


def _verify_part(upload: Upload, part: Part, item: ElementTree.Element) -> None:
    for name in KNOWN:
        value = item.findtext(f"Checksum{name.upper()}")
        if value is not None and value != part.received.declared.get(name):
            raise S3Error(400, "InvalidPart", f"The checksum of part {part.number} did not match the part's checksum.")
        if value is None and name == upload.algorithm and upload.checksum_type == "COMPOSITE":
            raise S3Error(400, "InvalidRequest", f"The complete request must include the checksum for each part, as part {part.number}.")


def _verify_size(request: Request, size: int) -> None:
    wanted = request.header("x-amz-mp-object-size")
    if wanted is not None and wanted != str(size):
        raise S3Error(400, "InvalidRequest", f"The provided 'x-amz-mp-object-size' header does not match what was computed: {size}.")
    if size > LARGEST_OBJECT:
        raise S3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size.")


def _object_checksum(upload: Upload, parts: list[Part]) -> dict[str, str]:
    """Return the checksum of the whole: of its bytes (FULL_OBJECT), or of its parts' checksums with their number (COMPOSITE)."""
    from isal import isal_zlib

    if upload.algorithm is None:
        return {}
    if upload.checksum_type == "FULL_OBJECT":
        crc = 0
        for part in parts:
            crc = isal_zlib.crc32_combine(crc, part.received.crc32, part.received.size)
        return {"crc32": base64.b64encode(crc.to_bytes(4, "big")).decode()}
    joined = b"".join(base64.b64decode(part.received.declared[upload.algorithm]) for part in parts)
    whole = Crc32() if upload.algorithm == "crc32" else hashlib.new(upload.algorithm, usedforsecurity=False)
    whole.update(memoryview(joined))
    return {upload.algorithm: f"{base64.b64encode(whole.digest()).decode()}-{len(parts)}"}


def _verify_checksum(request: Request, upload: Upload, checksums: dict[str, str]) -> None:
    kind = request.header("x-amz-checksum-type")
    if kind is not None and kind != upload.checksum_type:
        raise S3Error(400, "InvalidRequest", f"The upload was created with checksum type {upload.checksum_type}, not {kind}")
    for name in KNOWN:
        value = request.header(f"x-amz-checksum-{name}")
        if value is None or not request.body.verify:
            continue
        if name not in checksums:
            raise S3Error(400, "InvalidRequest", f"The upload was not created with a {name} checksum.")
        if value.partition("-")[0] != checksums[name].partition("-")[0]:
            raise S3Error(400, "BadDigest", f"The {name} you specified did not match the calculated checksum.")


def abort_multipart_upload(request: Request) -> Answer:
    """AbortMultipartUpload: the upload and its parts are gone."""
    with request.store.lock:
        bucket, upload = _upload(request)
        bucket.drop_upload(upload)
    return Answer(204)


def list_parts(request: Request) -> Answer:
    """ListParts, in pages."""
    after, limit = int(request.query.get("part-number-marker") or 0), min(1000, int(request.query.get("max-parts") or 1000))
    with request.store.lock:
        _, upload = _upload(request)
        numbers = sorted(number for number in upload.parts if number > after)
        entries = [
            {
                "PartNumber": number,
                "LastModified": upload.initiated,
                "ETag": f'"{upload.parts[number].received.etag}"',
                "Size": upload.parts[number].received.size,
                **{f"Checksum{name.upper()}": value for name, value in upload.parts[number].received.declared.items()},
            }
            for number in numbers[:limit]
        ]
    truncated = len(numbers) > limit
    content = {"Bucket": request.bucket, "Key": request.key, "UploadId": upload.upload_id, "MaxParts": limit}
    marker = {"NextPartNumberMarker": numbers[limit - 1]} if truncated else {}
    return xml("ListPartsResult", {**content, "IsTruncated": truncated, **marker, "Part": entries})


def list_multipart_uploads(request: Request) -> Answer:
    """ListMultipartUploads under a prefix, in pages."""
    prefix, encode = request.query.get("prefix", ""), encoder(request)
    limit = min(1000, int(request.query.get("max-uploads") or 1000))
    after = (request.query.get("key-marker", ""), request.query.get("upload-id-marker", ""))
    with request.store.lock:
        bucket = request.store.bucket(request.bucket)
        found = sorted((upload for upload in bucket.uploads.values() if upload.key.startswith(prefix)), key=_position)
    later = [upload for upload in found if _position(upload) > after and (after[1] or upload.key > after[0] or not after[0])]
    page, truncated = later[:limit], len(later) > limit
    entries = [{"Key": encode(upload.key), "UploadId": upload.upload_id, "Initiated": upload.initiated} for upload in page]
    content: dict[str, Any] = {"Bucket": request.bucket, "Prefix": encode(prefix), "MaxUploads": limit, "IsTruncated": truncated}
    content |= {"EncodingType": request.query.get("encoding-type")}
    if truncated:
        content |= {"NextKeyMarker": encode(page[-1].key), "NextUploadIdMarker": page[-1].upload_id}
    return xml("ListMultipartUploadsResult", {**content, "Upload": entries})


def _position(upload: Upload) -> tuple[str, str]:
    return upload.key, upload.upload_id
