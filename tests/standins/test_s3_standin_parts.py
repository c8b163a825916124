"""Uploads in parts by hand, so that each can be wrong in its own way: the S3 server refuses what S3 refuses."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest
from botocore.exceptions import ClientError

from tests.support.stores import Stores, crc, refused

PART = 5 * 1024 * 1024


class Parts:
    """An upload by hand, so that its completion can be wrong."""

    def __init__(self, stores: Stores, bodies: list[bytes], *, algorithm: str = "CRC32", kind: str = "FULL_OBJECT") -> None:
        self.client, self.bucket = stores.boto3(), stores.make_bucket()
        self.named = {"Bucket": self.bucket, "Key": "a"}
        answer = self.client.create_multipart_upload(**self.named, ChecksumAlgorithm=algorithm, ChecksumType=kind)
        self.named["UploadId"] = answer["UploadId"]
        self.parts = []
        for number, body in enumerate(bodies, 1):
            sent = self.client.upload_part(**self.named, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm)
            self.parts.append({"PartNumber": number, "ETag": sent["ETag"], f"Checksum{algorithm}": sent[f"Checksum{algorithm}"]})

    def complete(self, **options: object) -> dict[str, str]:
        return self.client.complete_multipart_upload(**self.named, MultipartUpload={"Parts": self.parts}, **options)


def test_parts_become_an_object(s3_server: Stores) -> None:
    data = os.urandom(PART + 3)
    parts = Parts(s3_server, [data[:PART], data[PART:]])
    listed = parts.client.list_parts(**parts.named)["Parts"]
    assert [(part["PartNumber"], part["Size"], part["ETag"]) for part in listed] == [
        (1, PART, f'"{hashlib.md5(data[:PART]).hexdigest()}"'),
        (2, 3, f'"{hashlib.md5(data[PART:]).hexdigest()}"'),
    ]
    answer = parts.complete(ChecksumCRC32=crc(data), ChecksumType="FULL_OBJECT", MpuObjectSize=len(data), IfNoneMatch="*")
    digest = hashlib.md5(hashlib.md5(data[:PART]).digest() + hashlib.md5(data[PART:]).digest()).hexdigest()
    assert (answer["ETag"], answer["ChecksumCRC32"]) == (f'"{digest}-2"', crc(data))
    got = parts.client.get_object(Bucket=parts.bucket, Key="a", Range=f"bytes={PART - 2}-{PART + 1}")
    assert got["Body"].read() == data[PART - 2 : PART + 2]
    with pytest.raises(ClientError) as twice:
        parts.complete()
    assert refused(twice) == (404, "NoSuchUpload")


def test_a_composite_checksum_is_the_checksum_of_checksums(s3_server: Stores) -> None:
    bodies = [b"x" * PART, b"y"]
    answer = Parts(s3_server, bodies, algorithm="SHA256", kind="COMPOSITE").complete()
    digest = hashlib.sha256(b"".join(hashlib.sha256(body).digest() for body in bodies)).digest()
    assert answer["ChecksumSHA256"] == f"{base64.b64encode(digest).decode()}-2"
    assert answer["ChecksumType"] == "COMPOSITE"


@pytest.mark.parametrize(
    ("change", "options", "code"),
    [
        (lambda parts: parts.reverse(), {}, (400, "InvalidPartOrder")),
        (lambda parts: parts.__setitem__(0, {**parts[0], "ETag": '"0"'}), {}, (400, "InvalidPart")),
        (lambda parts: parts.__setitem__(0, {**parts[0], "ChecksumCRC32": "AAAAAA=="}), {}, (400, "InvalidPart")),
        (lambda parts: parts.append({"PartNumber": 9, "ETag": '"0"'}), {}, (400, "InvalidPart")),
        (lambda parts: parts.clear(), {}, (400, "MalformedXML")),
        (lambda parts: None, {"ChecksumCRC32": "AAAAAA=="}, (400, "BadDigest")),
        (lambda parts: None, {"ChecksumType": "COMPOSITE"}, (400, "InvalidRequest")),
        (lambda parts: None, {"MpuObjectSize": 5}, (400, "InvalidRequest")),
    ],
    ids=["order", "etag", "part checksum", "unknown part", "no part", "checksum", "checksum type", "size"],
)
def test_a_wrong_completion_is_refused_and_the_upload_stays(s3_server: Stores, change, options, code: tuple[int, str]) -> None:
    parts = Parts(s3_server, [b"x" * PART, b"y"])
    change(parts.parts)
    with pytest.raises(ClientError) as caught:
        parts.complete(**options)
    assert refused(caught) == code
    assert len(parts.client.list_multipart_uploads(Bucket=parts.bucket)["Uploads"]) == 1
    parts.client.abort_multipart_upload(**parts.named)
    assert "Uploads" not in parts.client.list_multipart_uploads(Bucket=parts.bucket)


def test_a_short_part_before_the_last_is_refused(s3_server: Stores) -> None:
    with pytest.raises(ClientError) as caught:
        Parts(s3_server, [b"x" * (PART - 1), b"y"]).complete()
    assert refused(caught) == (400, "EntityTooSmall")


def test_a_part_without_the_announced_checksum_is_refused(s3_server: Stores) -> None:
    parts = Parts(s3_server, [])
    client = s3_server.boto3(request_checksum_calculation="when_required")
    with pytest.raises(ClientError) as caught:
        client.upload_part(**parts.named, PartNumber=1, Body=b"x")
    assert refused(caught) == (400, "InvalidRequest")
    for number in (0, 10_001):
        with pytest.raises(ClientError) as wrong:
            client.upload_part(**parts.named, PartNumber=number, Body=b"x")
        assert refused(wrong) == (400, "InvalidArgument")


def test_a_part_sent_twice_counts_once(s3_server: Stores) -> None:
    parts = Parts(s3_server, [b"old"])
    sent = parts.client.upload_part(**parts.named, PartNumber=1, Body=b"new", ChecksumAlgorithm="CRC32")
    parts.parts[0] |= {"ETag": sent["ETag"], "ChecksumCRC32": sent["ChecksumCRC32"]}
    parts.complete()
    assert parts.client.get_object(Bucket=parts.bucket, Key="a")["Body"].read() == b"new"


def test_uploads_are_listed_in_pages(s3_server: Stores) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket()
    for key in ("p/b", "p/a", "p/a", "q"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix="p/", PaginationConfig={"PageSize": 1})
    assert [upload["Key"] for page in pages for upload in page["Uploads"]] == ["p/a", "p/a", "p/b"]
