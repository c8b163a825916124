"""What a store lacks is named before a backup, with the way out that was tried there."""

from __future__ import annotations

import pytest

from azora_ci.clients.s3.bucket import Bucket, open_bucket
from azora_ci.clients.s3.trial import require_uploads
from azora_ci.core.errors import BadInputError, UnreachableError
from tests.support.stores import QUICK, Stores

LACKING = [
    pytest.param(
        {"operation": "CompleteMultipartUpload", "header": "x-amz-checksum-type", "status": 400, "code": "InvalidPart"}, id="part"
    ),
    pytest.param({"operation": "CreateMultipartUpload", "header": "x-amz-checksum-*", "status": 501, "code": "NotImplemented"}, id="501"),
    pytest.param({"operation": "UploadPart", "header": "x-amz-checksum-*", "status": 400, "code": "InvalidArgument"}, id="argument"),
]


def unchecked(stores: Stores, name: str) -> Bucket:
    return open_bucket(stores.settings, name, patience=QUICK, checksums=False)


def test_a_store_is_tried_once(s3_server: Stores) -> None:
    bucket = s3_server.open()
    assert require_uploads(bucket, "prod/trial") == "uploads in parts: tried; CRC32 of whole objects checked and kept"
    with s3_server.server.recorded_requests() as requests:
        require_uploads(s3_server.open(bucket.name), "prod/trial")
    assert [request.operation for request in requests] == ["HeadObject"]
    assert list(bucket.pending_uploads("")) == []


@pytest.mark.parametrize("fault", LACKING)
def test_a_store_without_full_object_checksums_is_told_with_what_works(s3_server: Stores, fault: dict[str, object]) -> None:
    bucket = s3_server.open()
    rule = s3_server.fault("error", times=None, **fault)
    with pytest.raises(BadInputError, match="The store lacks what a backup needs") as refusal:
        require_uploads(bucket, "prod/trial")
    assert str(fault["code"]) in refusal.value.what
    assert 'checksums = "read-back"' in refusal.value.next_step and "works here" in refusal.value.next_step
    assert rule.fired == 1, "what a store lacks is not asked for again"
    agreed = unchecked(s3_server, bucket.name)
    assert "every backup is read back" in require_uploads(agreed, "prod/trial")
    stored = agreed.put_once("prod/a.json", b"{}", content_type="text/plain", lock_days=1)
    assert agreed.read(stored.key) == b"{}"


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_a_store_without_uploads_in_parts_is_told_at_once(s3_server: Stores, operation: str) -> None:
    rule = s3_server.fault("error", operation, status=501, code="NotImplemented", times=None)
    with pytest.raises(BadInputError, match="The store lacks") as refusal:
        require_uploads(s3_server.open(), "prod/trial")
    assert "multipart uploads" in refusal.value.next_step and "read-back" not in refusal.value.next_step
    assert rule.fired == 2, "once with checksums, once without"


def test_an_answer_501_is_not_repeated_anywhere(s3_server: Stores) -> None:
    bucket = s3_server.open()
    rule = s3_server.fault("error", "PutObject", status=501, code="NotImplemented", times=None)
    with pytest.raises(UnreachableError, match="The store lacks put_object"):
        bucket.put_once("a", b"", content_type="text/plain")
    assert rule.fired == 1


def test_a_store_that_is_not_there_is_no_store_that_lacks_something(s3_server: Stores) -> None:
    s3_server.fault("reset", "*", times=None)
    with pytest.raises(UnreachableError, match="S3 could not be reached"):
        require_uploads(s3_server.open(), "prod/trial")


def test_parts_without_checksums_are_still_checked_on_their_way_and_locked(s3_server: Stores) -> None:
    bucket = unchecked(s3_server, s3_server.make_bucket(object_lock=True))
    damaged = s3_server.fault("damage_arrival", "UploadPart")
    with bucket.multipart("big", part_size=5 * 1024 * 1024, lock_days=1) as upload:
        upload.write(b"x" * 6_000_000)
        stored = upload.complete()
    assert damaged.fired == 1
    assert stored.lock_until is not None
    assert bucket.read("big") == b"x" * 6_000_000
