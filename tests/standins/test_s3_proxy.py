"""The proxy in front of the S3 server: each fault is what it says, and three rules of S3 hold that the server behind it lacks."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError, ResponseStreamingError

from azora_ci.rehearsal.standins.s3 import Fault, Faults
from azora_ci.rehearsal.standins.s3.operations import operation_of
from azora_ci.rehearsal.standins.s3.proxy import Proxy
from tests.support.stores import Stores, crc, refused

DATA = bytes(range(256)) * 4096


@pytest.fixture
def stored(s3_server: Stores) -> tuple[Stores, str]:
    """A bucket with an object of 1 MiB."""
    bucket = s3_server.make_bucket()
    s3_server.boto3().put_object(Bucket=bucket, Key="a", Body=DATA)
    return s3_server, bucket


def put(stores: Stores, bucket: str, **options: object) -> dict[str, str]:
    return stores.boto3().put_object(Bucket=bucket, Key="b", Body=DATA, ChecksumCRC32=crc(DATA), **options)


def is_there(stores: Stores, bucket: str, key: str = "b") -> bool:
    return stores.open(bucket).head(key) is not None


def test_without_a_fault_bytes_and_signatures_pass_unchanged(stored: tuple[Stores, str]) -> None:
    stores, bucket = stored
    client, key = stores.boto3(), "prod/ü +%~.json"
    client.put_object(Bucket=bucket, Key=key, Body=DATA, Metadata={"who": "me"}, IfNoneMatch="*")
    answer = client.get_object(Bucket=bucket, Key=key, Range="bytes=256-", ChecksumMode="ENABLED")
    assert (answer["Body"].read(), answer["Metadata"]) == (DATA[256:], {"who": "me"})
    assert [item["Key"] for item in client.list_objects_v2(Bucket=bucket, Prefix="prod/ü +")["Contents"]] == [key]
    assert client.put_object(Bucket=bucket, Key="empty", Body=b"")["ETag"]
    with pytest.raises(ClientError) as caught:
        stores.boto3(secret="another").put_object(Bucket=bucket, Key="big", Body=DATA * 8)
    assert refused(caught) == (403, "SignatureDoesNotMatch")


def test_an_error_is_answered_in_place_of_the_server(stored: tuple[Stores, str]) -> None:
    stores, bucket = stored
    stores.fault("error", "PutObject", status=503, code="SlowDown")
    stores.fault("error", "HeadObject", status=400)
    with pytest.raises(ClientError) as caught:
        put(stores, bucket)
    assert refused(caught) == (503, "SlowDown")
    with pytest.raises(ClientError, match="400"):
        stores.boto3().head_object(Bucket=bucket, Key="a")
    assert not is_there(stores, bucket)


@pytest.mark.parametrize(
    ("fault", "error", "happened"),
    [
        ({"action": "hang", "seconds": 0.1}, ConnectionClosedError, False),
        ({"action": "hang", "seconds": 60}, ReadTimeoutError, False),
        ({"action": "reset", "bytes": 1000}, ConnectionClosedError, False),
        ({"action": "lose_answer"}, ConnectionClosedError, True),
    ],
    ids=["closed", "timeout", "reset", "lost answer"],
)
def test_a_connection_ends_without_an_answer(
    stored: tuple[Stores, str], fault: dict[str, object], error: type[Exception], happened: bool
) -> None:
    stores, bucket = stored
    rule = stores.faults.add(Fault.parse({"operation": "PutObject", **fault}))
    with pytest.raises(error):
        stores.boto3(read_timeout=2).put_object(Bucket=bucket, Key="b", Body=DATA)
    assert rule.fired == 1
    assert is_there(stores, bucket) is happened


def test_damage_on_arrival_is_refused_by_the_server(stored: tuple[Stores, str]) -> None:
    stores, bucket = stored
    stores.fault("damage_arrival", "PutObject", bytes=len(DATA) - 1)
    with pytest.raises(ClientError) as caught:
        put(stores, bucket)
    assert refused(caught) == (400, "BadDigest")
    assert not is_there(stores, bucket)


def test_damage_while_reading_is_one_bit(stored: tuple[Stores, str]) -> None:
    stores, bucket = stored
    stores.fault("damage_read", "GetObject", bytes=70_000)
    client = stores.boto3(response_checksum_validation="when_required")
    read = client.get_object(Bucket=bucket, Key="a")["Body"].read()
    assert [(index, sent ^ came) for index, (sent, came) in enumerate(zip(DATA, read, strict=True)) if sent != came] == [(70_000, 1)]


def test_a_cut_answer_has_so_many_bytes(stored: tuple[Stores, str]) -> None:
    stores, bucket = stored
    stores.fault("cut", "GetObject", bytes=70_000)
    body = stores.boto3(response_checksum_validation="when_required").get_object(Bucket=bucket, Key="a")["Body"]
    assert body.read(70_000) == DATA[:70_000]
    with pytest.raises((ResponseStreamingError, http.client.IncompleteRead)):
        body.read()


def test_a_delay_ends_with_its_time(stored: tuple[Stores, str]) -> None:
    stores, bucket = stored
    stores.fault("delay", "PutObject", seconds=0.3)
    begun = time.monotonic()
    put(stores, bucket)
    assert time.monotonic() - begun >= 0.3


def test_a_fault_counts_matching_requests_only() -> None:
    fault = Fault("error", operation="Put*", key="*.gz", skip=1, times=2)
    requests = [("GetObject", "a.gz"), ("PutObject", "a"), *[("PutObject", "a.gz")] * 4]
    assert [fault.take(*request) for request in requests] == [False, False, False, True, True, False]


def test_faults_come_from_a_file_that_may_be_rewritten(stored: tuple[Stores, str], tmp_path: Path) -> None:
    stores, bucket = stored
    rules = tmp_path / "faults.json"
    proxy = Proxy(int(stores.endpoint.rsplit(":", 1)[1]), Faults(rules))  # in front of the other proxy

    def head() -> int:
        connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=30)
        connection.request("HEAD", f"/{bucket}")
        return connection.getresponse().status

    proxy.start()
    try:
        assert head() == 403  # not signed, as the server says
        rules.write_text(json.dumps([{"action": "error", "operation": "HeadBucket", "status": 503, "times": None}]))
        assert head() == 503
        rules.write_text('[{"action": "err')  # still being written: what was there counts
        assert head() == 503
        rules.write_text("[]")
        assert head() == 403
        rules.write_text('[{"action": "explode"}]')
        assert head() == 500
    finally:
        proxy.stop()
    for wrong in ({"action": "explode"}, {"action": "error", "unknown": 1}):
        with pytest.raises(ValueError, match=r"explode|unknown"):
            Fault.parse(wrong)


@pytest.mark.parametrize(
    ("method", "key", "query", "name"),
    [
        ("PUT", "a", "", "PutObject"),
        ("PUT", "a", "uploadId partNumber", "UploadPart"),
        ("POST", "a", "uploads", "CreateMultipartUpload"),
        ("POST", "a", "uploadId", "CompleteMultipartUpload"),
        ("DELETE", "a", "uploadId", "AbortMultipartUpload"),
        ("GET", "a", "versionId", "GetObject"),
        ("HEAD", "a", "", "HeadObject"),
        ("HEAD", "", "", "HeadBucket"),
        ("GET", "", "list-type prefix", "ListObjectsV2"),
        ("GET", "", "uploads prefix", "ListMultipartUploads"),
        ("GET", "", "object-lock", "GetObjectLockConfiguration"),
        ("PATCH", "a", "", "Other"),
    ],
)
def test_requests_have_the_names_of_their_operations(method: str, key: str, query: str, name: str) -> None:
    assert operation_of(method, key, dict.fromkeys(query.split(), "")) == name


# --- rules that the server lacks -------------------------------------------------------------------------------------------


def lock() -> dict[str, object]:
    return {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": datetime.now(UTC) + timedelta(days=1)}


def test_a_completion_that_states_another_size_is_refused(s3_server: Stores) -> None:
    client, upload = s3_server.boto3(), {"Bucket": s3_server.make_bucket(), "Key": "a"}
    upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
    sent = [client.upload_part(**upload, PartNumber=1, Body=body)["ETag"] for body in (b"longer", b"data")]  # the second replaces the first
    parts = {"Parts": [{"PartNumber": 1, "ETag": sent[-1]}]}
    with pytest.raises(ClientError) as caught:
        client.complete_multipart_upload(**upload, MultipartUpload=parts, MpuObjectSize=6)
    assert refused(caught) == (400, "InvalidRequest")
    assert client.complete_multipart_upload(**upload, MultipartUpload=parts, MpuObjectSize=4)["VersionId"]


def test_a_lock_needs_a_checksum(s3_server: Stores) -> None:
    bucket = s3_server.make_bucket(object_lock=True)
    client = s3_server.boto3(request_checksum_calculation="when_required")
    upload = {"Bucket": bucket, "Key": "b"}
    upload["UploadId"] = client.create_multipart_upload(**upload, **lock())["UploadId"]
    sendings: list[Callable[..., dict[str, str]]] = [
        lambda **checksum: client.put_object(Bucket=bucket, Key="a", Body=b"x", **lock(), **checksum),
        lambda **checksum: client.upload_part(**upload, PartNumber=1, Body=b"x", **checksum),
    ]
    for send in sendings:
        with pytest.raises(ClientError) as caught:
            send()
        assert refused(caught) == (400, "InvalidRequest")
        assert send(ChecksumCRC32=crc(b"x"))["ETag"]
