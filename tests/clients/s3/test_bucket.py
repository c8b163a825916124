"""Buckets through our own client, against a real S3 server: what they promise, writing once, reading what was stored."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta

import pytest

from azora_ci.clients.s3 import objects
from azora_ci.clients.s3.bucket import BucketFacts, open_bucket
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from azora_ci.core.settings import Aws
from tests.support.stores import QUICK, Stores, aws

JSON = "application/json"


def test_a_bucket_says_what_it_promises(s3_server: Stores) -> None:
    name = s3_server.make_bucket(object_lock=True, encryption="AES256")
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "prod/"}, "Expiration": {"Days": 400}}
    s3_server.boto3().put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [rule]})
    assert s3_server.open(name).facts().lines() == (
        "versioning: on",
        "Object Lock: on",
        "default encryption: AES256",
        "lifecycle rules: old (Enabled): Expiration after 400 days under 'prod/'",
    )


def test_a_plain_bucket_promises_nothing(s3_server: Stores) -> None:
    facts = s3_server.open(s3_server.make_bucket(versioning=False)).facts()
    assert facts == BucketFacts(versioning=False, object_lock=False, encryption=None, encryption_key=None, lifecycle=())


def test_what_the_store_does_not_tell_is_unknown_and_no_obstacle(s3_server: Stores) -> None:
    s3_server.fault("error", "GetObjectLockConfiguration", status=403, code="AccessDenied")
    s3_server.fault("error", "GetBucketLifecycleConfiguration", status=501, code="NotImplemented")
    facts = s3_server.open().facts()
    assert (facts.object_lock, facts.lifecycle, facts.versioning) == (None, None, True)


def test_a_missing_bucket_is_bad_input(s3_server: Stores) -> None:
    with pytest.raises(BadInputError, match="The bucket does not exist") as caught:
        s3_server.open("no-such-bucket").facts()
    assert caught.value.where == "s3://no-such-bucket/"


def test_an_object_is_written_once(s3_server: Stores) -> None:
    bucket = s3_server.open()
    stored = bucket.put_once("records/ü +%.json", b'{"a": 1}\n', content_type=JSON)
    assert (stored.size, stored.checksum, stored.lock_until) == (9, objects.crc32(b'{"a": 1}\n'), None)
    assert stored.version_id
    assert bucket.read(stored.key, stored.version_id) == b'{"a": 1}\n'
    with pytest.raises(objects.AlreadyThereError) as other:
        bucket.put_once(stored.key, b"{}", content_type=JSON)
    with pytest.raises(objects.AlreadyThereError) as same:
        bucket.put_once(stored.key, b'{"a": 1}\n', content_type=JSON)
    assert (other.value.identical, same.value.identical) == (False, True)
    assert other.value.existing == stored
    assert bucket.read(stored.key) == b'{"a": 1}\n'


def test_a_lost_answer_to_our_own_write_is_recognised(s3_server: Stores) -> None:
    bucket = s3_server.open()
    lost = s3_server.fault("lose_answer", "PutObject")
    stored = bucket.put_once("a.json", b"{}", content_type=JSON)
    assert lost.fired == 1
    assert bucket.read("a.json", stored.version_id) == b"{}"


def test_a_write_is_repeated_after_a_conflict_and_after_an_error(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("error", "PutObject", status=409, code="ConditionalRequestConflict")
    s3_server.fault("error", "PutObject", status=503, code="SlowDown")
    s3_server.fault("damage_arrival", "PutObject")
    assert bucket.put_once("a.json", b"{}", content_type=JSON).size == 2


def test_retention_applies_where_the_bucket_has_object_lock(s3_server: Stores) -> None:
    bucket = s3_server.open(s3_server.make_bucket(object_lock=True, encryption="AES256"))
    before = datetime.now(UTC).replace(microsecond=0)
    stored = bucket.put_once("a.json", b"{}", content_type=JSON, lock_days=365, lock_mode="COMPLIANCE")
    assert (stored.lock_mode, stored.encryption) == ("COMPLIANCE", "AES256")
    assert stored.lock_until is not None
    assert before + timedelta(days=365) <= stored.lock_until <= datetime.now(UTC) + timedelta(days=365)
    assert s3_server.open().put_once("a.json", b"{}", content_type=JSON, lock_days=365).lock_until is None


def test_a_listing_has_every_page(s3_server: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.open()
    keys = [f"prod/{number} ü.json" for number in range(5)]
    for key in [*keys, "other/x"]:
        bucket.put_once(key, b"{}", content_type=JSON)
    call = bucket.calls.call
    monkeypatch.setattr(bucket.calls, "call", lambda *which, **parameters: call(*which, MaxKeys=2, **parameters))
    assert [stored.key for stored in bucket.list("prod/")] == keys


def test_head_says_none_for_what_is_not_there(s3_server: Stores) -> None:
    bucket = s3_server.open()
    assert bucket.head("nothing") is None
    with pytest.raises(BadInputError, match="nothing is not in the bucket"):
        bucket.read("nothing")


def test_reading_goes_on_where_the_connection_broke(s3_server: Stores) -> None:
    bucket, data = s3_server.open(), os.urandom(3 * 1024 * 1024 + 7)
    bucket.put_once("a", data, content_type="text/plain")
    cuts = [s3_server.fault("cut", "GetObject", bytes=length) for length in (0, 1, 1024 * 1024)]
    assert b"".join(bucket.stream("a")) == data
    assert [cut.fired for cut in cuts] == [1, 1, 1]


def test_reading_gives_up_when_nothing_comes(s3_server: Stores) -> None:
    bucket = s3_server.open()
    bucket.put_once("a", b"some bytes", content_type="text/plain")
    s3_server.fault("cut", "GetObject", bytes=0, times=None)
    with pytest.raises(UnreachableError, match="failed after 4 attempts"):
        bucket.read("a")


def test_a_flipped_bit_in_the_object_is_found(s3_server: Stores) -> None:
    bucket = s3_server.open()
    stored = bucket.put_once("a", b"x" * 100, content_type="text/plain")
    s3_server.fault("damage_read", "GetObject", bytes=99)
    with pytest.raises(NotTrueError, match="The stored object is damaged"):
        bucket.read("a", stored.version_id)


@pytest.mark.parametrize(
    ("credentials", "fragment"),
    [({"secret": "wrong"}, "SignatureDoesNotMatch"), ({"key_id": "AKIANOBODY"}, "InvalidAccessKeyId")],
)
def test_wrong_keys_are_told_apart(s3_server: Stores, credentials: dict[str, str], fragment: str) -> None:
    with pytest.raises((BadInputError, UnreachableError), match=fragment) as caught:
        list(s3_server.open(**credentials).list(""))
    assert "AWS_ACCESS_KEY_ID" in caught.value.next_step
    assert "wrong" not in caught.value.message()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken"])
@pytest.mark.parametrize("ask", ["head", "list"])
def test_an_expired_token_says_to_assume_the_role_again(s3_server: Stores, ask: str, code: str) -> None:
    bucket = s3_server.open()
    s3_server.fault("error", "*", times=None, status=400, code=code)
    with pytest.raises(UnreachableError, match="AWS credentials have expired") as caught:
        bucket.head("a") if ask == "head" else list(bucket.list(""))
    assert "assume the role again" in caught.value.next_step


def test_a_bucket_that_refuses_writes_is_named(s3_server: Stores) -> None:
    bucket = s3_server.open()
    s3_server.fault("error", "PutObject", status=403, code="AccessDenied", times=None)
    with pytest.raises(UnreachableError, match="S3 denies access") as caught:
        bucket.put_once("a", b"", content_type=JSON)
    assert caught.value.where == f"s3://{bucket.name}/a"
    assert caught.value.exit_code == 3


def test_a_store_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as reserved:  # bound but not listening: nobody else gets the port, and it refuses
        reserved.bind(("127.0.0.1", 0))
        bucket = open_bucket(aws(f"http://127.0.0.1:{reserved.getsockname()[1]}"), "azora", patience=QUICK)
        with pytest.raises(UnreachableError, match="failed after 4 attempts: EndpointConnectionError"):
            bucket.facts()


def test_an_endpoint_that_is_none_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="Invalid endpoint"):
        open_bucket(aws("no url"), "azora")


def test_repeated_calls_are_told_with_their_numbers(s3_server: Stores) -> None:
    messages: list[str] = []
    bucket = open_bucket(s3_server.settings, s3_server.make_bucket(), patience=QUICK, say=messages.append)
    s3_server.fault("error", "HeadBucket", times=2)
    bucket.facts()
    assert [line.rsplit(" in ", 1)[0] for line in messages] == [
        f"s3://{bucket.name}/: head_bucket got 500; attempt {attempt} of 4" for attempt in (2, 3)
    ]


def test_without_keys_in_the_settings_boto3_finds_its_own(s3_server: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, s3_server.environ[name])
    settings = Aws(
        aws_access_key_id=None,
        aws_secret_access_key=None,
        aws_session_token=None,
        aws_region="us-east-1",
        aws_endpoint_url_s3=s3_server.endpoint,
    )
    assert open_bucket(settings, s3_server.make_bucket()).facts().versioning is True
