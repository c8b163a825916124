"""Uploads in parts, against a real S3 server that fails on demand: whole and checked, or nothing at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from azora_ci.clients.s3 import objects
from azora_ci.clients.s3.bucket import Bucket, Patience
from azora_ci.clients.s3.upload import MEBIBYTE, PARTS, part_size
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from tests.support.stores import Stores
from tests.support.waiting import until

PART = 5 * MEBIBYTE  # the smallest that S3 takes
DATA = os.urandom(2 * PART + 12_345)  # three parts
KEY = "prod/backup-1764000000-abc123.sql.gz"
HASTY = Patience(attempts=6, first_wait=0.01, longest_wait=0.05, connect_timeout=20, read_timeout=4)


def upload(bucket: Bucket, data: bytes = DATA, key: str = KEY, **options: int) -> objects.StoredObject:
    with bucket.multipart(key, part_size=PART, **options) as sending:
        for start in range(0, len(data), 1_000_003):
            sending.write(data[start : start + 1_000_003])
        return sending.complete()


def nothing_left(bucket: Bucket) -> bool:
    return list(bucket.pending_uploads("")) == [] and list(bucket.list("")) == []


def test_a_stream_becomes_one_object(s3_server: Stores) -> None:
    bucket = s3_server.open()
    stored = upload(bucket)
    assert (stored.size, stored.checksum) == (len(DATA), objects.crc32(DATA))
    assert stored.etag.endswith("-3")
    assert stored.version_id
    assert bucket.read(KEY, stored.version_id) == DATA
    assert list(bucket.pending_uploads("")) == []


@pytest.mark.parametrize("length", [0, 1, PART, PART + 1])
def test_every_length_fits(s3_server: Stores, length: int) -> None:
    bucket = s3_server.open()
    stored = upload(bucket, DATA[:length])
    assert stored.size == length
    assert bucket.read(KEY) == DATA[:length]


def test_nothing_is_visible_before_completion_and_nothing_stays_without_it(s3_server: Stores) -> None:
    bucket = s3_server.open()
    with bucket.multipart(KEY, part_size=PART) as sending:
        sending.write(DATA)
        sending.finish()
        assert sending.size == len(DATA)
        assert sending.checksum == objects.crc32(DATA)
        assert bucket.head(KEY) is None
        assert [pending.key for pending in bucket.pending_uploads("prod/")] == [KEY]
    assert nothing_left(bucket)


def test_an_error_while_writing_aborts(s3_server: Stores) -> None:
    bucket = s3_server.open()
    with pytest.raises(RuntimeError, match="the source died"), bucket.multipart(KEY, part_size=PART) as sending:
        sending.write(DATA)
        raise RuntimeError("the source died")
    assert nothing_left(bucket)
    with pytest.raises(ValueError, match="has ended"):
        sending.complete()


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize(
    "fault",
    [
        {"action": "error"},
        {"action": "error", "status": 503, "code": "SlowDown", "times": 3},
        {"action": "reset"},
    ],
    ids=["500", "503 thrice", "reset"],
)
def test_a_passing_fault_is_overcome(s3_server: Stores, operation: str, fault: dict[str, object]) -> None:
    bucket = s3_server.open()
    bucket.facts()
    rule = s3_server.fault(operation=operation, **fault)
    stored = upload(bucket)
    assert rule.fired == fault.get("times", 1)
    assert bucket.read(KEY, stored.version_id) == DATA
    assert list(bucket.pending_uploads("")) == []


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "reset", "bytes": 3_000_000, "skip": 1},
        {"action": "damage_arrival"},
        {"action": "lose_answer", "skip": 2},
        {"action": "hang", "seconds": 60},
    ],
    ids=["reset in the middle", "damaged on the way", "lost answer", "timeout"],
)
def test_a_part_that_fails_is_sent_again(s3_server: Stores, fault: dict[str, object]) -> None:
    bucket = s3_server.open(patience=HASTY)
    rule = s3_server.fault(operation="UploadPart", **fault)
    stored = upload(bucket)
    assert rule.fired == 1
    assert bucket.read(KEY, stored.version_id) == DATA


def test_a_part_that_keeps_failing_ends_the_upload(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("error", "UploadPart", skip=1, times=None, status=503, code="SlowDown")
    with pytest.raises(UnreachableError, match="upload_part failed after 8 attempts: HTTP 503 SlowDown"):
        upload(bucket, DATA * 3)
    assert nothing_left(bucket)


def test_a_taken_key_is_refused_and_named(s3_server: Stores) -> None:
    bucket = s3_server.open()
    existing = bucket.put_once(KEY, b"another's", content_type="text/plain")
    with pytest.raises(objects.AlreadyThereError) as caught:
        upload(bucket)
    assert (caught.value.existing, caught.value.identical) == (existing, False)
    assert bucket.read(KEY) == b"another's"
    assert list(bucket.pending_uploads("")) == []


def test_the_same_bytes_of_another_upload_are_not_taken_for_ours(s3_server: Stores) -> None:
    bucket = s3_server.open()
    first = upload(bucket)
    with pytest.raises(objects.AlreadyThereError) as caught:
        upload(bucket)
    assert (caught.value.existing, caught.value.identical) == (first, True)


def test_two_uploads_of_one_key_at_once_give_one_object(s3_server: Stores) -> None:
    bucket = s3_server.open()
    with bucket.multipart(KEY, part_size=PART) as first, bucket.multipart(KEY, part_size=PART) as second:
        first.write(DATA)
        second.write(DATA[::-1])
        stored = second.complete()
        with pytest.raises(objects.AlreadyThereError):
            first.complete()
    assert bucket.read(KEY) == DATA[::-1]
    assert bucket.require(KEY).version_id == stored.version_id
    assert list(bucket.pending_uploads("")) == []


def test_a_conflict_on_completion_says_to_start_again(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("error", "CompleteMultipartUpload", status=409, code="ConditionalRequestConflict")
    with pytest.raises(objects.StartAgainError, match="ConditionalRequestConflict"):
        upload(bucket)
    assert nothing_left(bucket)


def test_a_lost_answer_to_a_completion_that_happened_is_recognised(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("lose_answer", "CompleteMultipartUpload")
    stored = upload(bucket)
    assert stored.version_id
    assert bucket.read(KEY, stored.version_id) == DATA


def test_a_completion_that_happened_counts_even_when_no_answer_ever_comes(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("lose_answer", "CompleteMultipartUpload")
    s3_server.fault("error", "CompleteMultipartUpload", times=None)
    assert upload(bucket).checksum == objects.crc32(DATA)


def test_a_completion_that_did_not_happen_is_a_failure(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("error", "CompleteMultipartUpload", times=None)
    with pytest.raises(UnreachableError, match="complete_multipart_upload failed after 8 attempts"):
        upload(bucket)
    assert nothing_left(bucket)


def test_damage_that_a_part_hides_is_found_at_completion(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("error", "CompleteMultipartUpload", status=400, code="BadDigest")
    with pytest.raises(objects.StartAgainError, match="BadDigest"):
        upload(bucket)
    assert nothing_left(bucket)


def test_a_store_that_keeps_something_else_is_found_out(s3_server: Stores) -> None:
    bucket = s3_server.open(s3_server.make_bucket(versioning=False))
    delay = s3_server.fault("delay", "HeadObject", seconds=30)
    with ThreadPoolExecutor(1) as pool:
        uploading = pool.submit(upload, bucket)
        until(lambda: delay.fired, "the upload asks for what was stored")
        s3_server.boto3().put_object(Bucket=bucket.name, Key=KEY, Body=DATA[::-1])
        s3_server.faults.clear()
        with pytest.raises(NotTrueError, match="The store keeps something else than was sent"):
            uploading.result()


def test_credentials_that_expire_half_way_are_told_and_what_stays_is_swept(s3_server: Stores) -> None:
    bucket = s3_server.open()

    def stored_parts(upload_id: str | None) -> int:
        return len(s3_server.boto3().list_parts(Bucket=bucket.name, Key=KEY, UploadId=upload_id).get("Parts", []))

    with pytest.raises(UnreachableError, match="AWS credentials have expired") as caught, bucket.multipart(KEY, part_size=PART) as sending:
        sending.write(DATA[:PART])
        until(lambda: stored_parts(sending.upload_id) == 1, "the first part is stored")
        s3_server.fault("error", "*", times=None, status=400, code="ExpiredToken")
        sending.write(DATA)
        sending.complete()
    assert "assume the role again" in caught.value.next_step
    assert "the next run removes it" in caught.value.what
    s3_server.faults.clear()
    again = s3_server.open(bucket.name)
    assert [pending.key for pending in again.sweep("prod/", timedelta(0))] == [KEY]
    assert nothing_left(again)


def test_sweeping_touches_only_our_own_old_uploads(s3_server: Stores) -> None:
    bucket, client = s3_server.open(), s3_server.boto3()
    ours, foreign = "prod/backup-1764000001-abcdef-attempt-2.sql.gz", "prod/backup-of-mine.sql.gz"
    ids = {key: client.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"] for key in (KEY, ours, foreign, f"else/{ours}")}
    assert bucket.sweep("prod/", timedelta(hours=1)) == ()
    assert [pending.key for pending in bucket.sweep("prod/", timedelta(0), keep=frozenset({ids[KEY]}))] == [ours]
    assert sorted(pending.key for pending in bucket.pending_uploads("")) == sorted([KEY, foreign, f"else/{ours}"])
    bucket.abort_upload(KEY, ids[KEY])
    bucket.abort_upload(KEY, ids[KEY])  # gone already: fine


def test_an_upload_is_locked_and_encrypted_where_the_bucket_is(s3_server: Stores) -> None:
    bucket = s3_server.open(s3_server.make_bucket(object_lock=True, encryption="AES256"))
    with bucket.multipart(KEY, part_size=PART, lock_days=365) as sending:
        sending.write(DATA)
        stored = sending.complete()
    assert (stored.lock_mode, stored.encryption) == ("GOVERNANCE", "AES256")
    assert stored.lock_until is not None
    assert stored.lock_until - datetime.now(UTC) > timedelta(days=364)
    with pytest.raises(Exception, match="AccessDenied"):
        s3_server.boto3().delete_object(Bucket=bucket.name, Key=KEY, VersionId=stored.version_id)


def test_aborting_does_not_wait_for_a_part_that_hangs(s3_server: Stores) -> None:
    bucket = s3_server.open()
    hanging = s3_server.fault("hang", "UploadPart", seconds=60, times=None)
    with bucket.multipart(KEY, part_size=PART) as sending:
        sending.write(DATA)
        until(lambda: hanging.fired, "a part is on its way")
        begun = time.monotonic()
    assert time.monotonic() - begun < 15  # nobody waited for the client's 20 s; a cancelled step has 7 s
    assert nothing_left(bucket)


def test_no_more_parts_are_on_their_way_than_allowed(s3_server: Stores) -> None:
    bucket = s3_server.open()
    delayed = s3_server.fault("delay", "UploadPart", seconds=30, times=None)
    with bucket.multipart(KEY, part_size=PART, in_flight=2) as sending:

        def write() -> None:
            with pytest.raises(ValueError, match="has ended"):
                sending.write(DATA * 2)
            ended.append(True)

        ended: list[bool] = []
        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        until(lambda: delayed.fired == 2, "two parts are on their way")
        writing.join(0.5)
        assert writing.is_alive()
        assert delayed.fired == 2
        s3_server.faults.clear()
        sending.abort()
    writing.join(30)
    assert ended == [True]


def test_memory_is_bounded_by_the_parts_on_their_way(s3_server: Stores) -> None:
    program = """
import json, os, pathlib, sys
from azora_ci.clients.s3.bucket import open_bucket
from tests.support.stores import aws
bucket = open_bucket(aws(sys.argv[1]), sys.argv[2])
def peak():  # kibibytes; ru_maxrss would be that of the parent, whose memory the child had before exec
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
with bucket.multipart("first") as sending:
    sending.write(b"x")
    sending.complete()
before = peak()
block = os.urandom(1 << 20)
with bucket.multipart("big") as sending:
    for _ in range(200):
        sending.write(block)
    stored = sending.complete()
print(json.dumps([stored.size, peak() - before]))
"""
    argv = [sys.executable, "-c", program, s3_server.endpoint, s3_server.make_bucket()]
    output = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout
    size, kibibytes = json.loads(output)
    assert size == 200 * MEBIBYTE
    assert kibibytes < 48 * 1024  # four parts of 8 MiB, and what the HTTP client holds


def test_parts_grow_so_that_any_object_fits() -> None:
    sizes = [part_size(number) for number in range(1, PARTS + 1)]
    assert set(sizes[:1000]) == {8 * MEBIBYTE}
    assert sizes == sorted(sizes)
    assert sum(sizes) >= 5 * 1024**4
    assert max(sizes) <= 5 * 1024**3


def test_a_stream_that_fits_in_no_object_is_refused(s3_server: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azora_ci.clients.s3.upload.PARTS", 2)
    bucket = s3_server.open()
    with pytest.raises(BadInputError, match="do not fit in 2 parts"):
        upload(bucket)
    assert nothing_left(bucket)


def test_waits_between_attempts_double_up_to_a_limit() -> None:
    patience = Patience(first_wait=1, longest_wait=5)
    for attempt, full in ((2, 1), (3, 2), (4, 4), (5, 5), (50, 5)):
        assert full / 2 <= patience.wait_before(attempt) <= full


def test_an_aborted_upload_does_not_wait_out_its_retries(s3_server: Stores) -> None:
    slow = Patience(attempts=5, first_wait=120, longest_wait=120, connect_timeout=20, read_timeout=20)
    bucket = s3_server.open(patience=slow)
    rule = s3_server.fault("error", "UploadPart", times=None)
    with bucket.multipart("retried", part_size=PART) as sending:
        sending.write(DATA)
        until(lambda: rule.fired > 0, "a part has failed")
    until(lambda: not [thread for thread in threading.enumerate() if "of retried" in thread.name], "nobody sends parts any more")
    assert nothing_left(bucket)
