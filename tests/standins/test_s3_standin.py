"""The S3 server itself: boto3 and the AWS command line work against it, and it refuses what S3 refuses."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from azora_ci.clients.s3.bucket import open_bucket
from azora_ci.rehearsal.standins.s3 import Credential, Fault, S3Server
from tests.support.stores import KEY_ID, QUICK, SECRET, Stores, aws, crc, refused
from tests.support.waiting import until

MIB = 1024 * 1024


class Wire:
    """A request signed by botocore and sent byte by byte, so that it can be wrong on purpose."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.host = stores.endpoint.removeprefix("http://")

    def send(
        self, method: str, path: str, body: bytes = b"", *, secret: str = SECRET, payload: str | None = None, **headers: str
    ) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = AWSRequest(method, f"{self.stores.endpoint}{path}", headers=named, data=body)
        signer = S3SigV4Auth(Credentials(KEY_ID, secret), "s3", "us-east-1")
        signer.payload = lambda _request: payload or hashlib.sha256(body).hexdigest()  # type: ignore[method-assign] # what is claimed
        signer.add_auth(request)
        return self.raw(method, path, body, dict(request.headers.items()))

    def raw(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        finally:
            connection.close()
        return answer.status, text.partition("<Code>")[2].partition("</Code>")[0]


@pytest.fixture
def wire(s3_server: Stores) -> Wire:
    return Wire(s3_server)


# --- who may ----------------------------------------------------------------------------------------------------------


def test_a_request_that_is_not_signed_is_refused(wire: Wire) -> None:
    assert wire.raw("GET", f"/{wire.stores.make_bucket()}/a", b"", {}) == (403, "AccessDenied")


def test_a_wrong_signature_is_refused(wire: Wire) -> None:
    path = f"/{wire.stores.make_bucket()}/a%20%C3%BC?x-id=PutObject"
    assert wire.send("PUT", path, b"data", secret="another") == (403, "SignatureDoesNotMatch")
    assert wire.send("PUT", path, b"data") == (200, "")


def test_a_header_that_is_not_signed_is_refused(s3_server: Stores, wire: Wire) -> None:
    request = AWSRequest("PUT", f"{s3_server.endpoint}/{s3_server.make_bucket()}/a", data=b"")
    S3SigV4Auth(Credentials(KEY_ID, SECRET), "s3", "us-east-1").add_auth(request)
    path = request.url.removeprefix(s3_server.endpoint)
    headers = dict(request.headers.items())
    assert wire.raw("PUT", path, b"", {**headers, "x-amz-meta-added": "later"}) == (403, "AccessDenied")
    assert wire.raw("PUT", path, b"", headers) == (200, "")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("us-east-1", "eu-west-9"), (400, "AuthorizationHeaderMalformed")),
        (("AWS4-HMAC", "AWS9-HMAC"), (400, "AuthorizationHeaderMalformed")),
        ((f"{KEY_ID}/", "AKIANOBODY/"), (403, "InvalidAccessKeyId")),
    ],
)
def test_another_authorization_is_refused(s3_server: Stores, wire: Wire, change: tuple[str, str], code: tuple[int, str]) -> None:
    request = AWSRequest("GET", f"{s3_server.endpoint}/{s3_server.make_bucket()}?versions")
    S3SigV4Auth(Credentials(KEY_ID, SECRET), "s3", "us-east-1").add_auth(request)
    headers = dict(request.headers.items())
    headers["Authorization"] = headers["Authorization"].replace(*change)
    assert wire.raw("GET", request.url.removeprefix(s3_server.endpoint), b"", headers) == code


def test_an_old_request_is_refused(s3_server: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.make_bucket()
    moment = datetime.now(UTC) + timedelta(minutes=16)
    monkeypatch.setattr(s3_server.server.clock, "now", lambda: moment)
    assert wire.send("GET", f"/{bucket}?versions") == (403, "RequestTimeTooSkewed")


@pytest.mark.parametrize(
    ("token", "ends", "code"),
    [("token", 60, None), ("other", 60, (400, "InvalidToken")), ("", 60, (400, "InvalidToken")), ("token", -1, (400, "ExpiredToken"))],
)
def test_temporary_keys_need_their_token_and_end(s3_server: Stores, token: str, ends: int, code: tuple[int, str] | None) -> None:
    ending = datetime.now(UTC) + timedelta(seconds=ends)
    s3_server.server.credentials["temporary"] = Credential("temporary", "secret", "token", ending)
    client = s3_server.boto3(key_id="temporary", secret="secret", token=token)
    if code is None:
        assert client.list_objects_v2(Bucket=s3_server.make_bucket())["KeyCount"] == 0
        return
    with pytest.raises(ClientError) as caught:
        client.list_objects_v2(Bucket=s3_server.make_bucket())
    assert refused(caught) == code


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "payload", "code"),
    [
        ({}, hashlib.sha256(b"other").hexdigest(), (400, "XAmzContentSHA256Mismatch")),
        ({}, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", (501, "NotImplemented")),
        ({"Content_MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}, None, (400, "BadDigest")),
        ({"Content_MD5": "no base64"}, None, (400, "InvalidDigest")),
        ({"x_amz_checksum_crc32": crc(b"other")}, None, (400, "BadDigest")),
        ({"x_amz_checksum_crc32": crc(b"other")}, "UNSIGNED-PAYLOAD", (400, "BadDigest")),
        ({"x_amz_checksum_crc32": "AAA="}, None, (400, "InvalidRequest")),
        ({"x_amz_checksum_sha256": base64.b64encode(hashlib.sha256(b"other").digest()).decode()}, None, (400, "BadDigest")),
        ({"x_amz_checksum_sha1": base64.b64encode(hashlib.sha1(b"other").digest()).decode()}, None, (400, "BadDigest")),
        ({"x_amz_checksum_crc32": crc(b"data"), "x_amz_checksum_sha1": "AAA="}, None, (400, "InvalidRequest")),
        ({"x_amz_checksum_crc64nvme": "AAAAAAAAAAA="}, None, (501, "NotImplemented")),
        ({"x_amz_copy_source": "/a/b"}, None, (501, "NotImplemented")),
        ({"If_None_Match": '"etag"'}, None, (501, "NotImplemented")),
        ({"x_amz_object_lock_mode": "GOVERNANCE"}, None, (400, "InvalidRequest")),
        ({"x_amz_server_side_encryption": "rot13"}, None, (400, "InvalidArgument")),
        ({"x_amz_checksum_crc32": crc(b"data"), "Content_MD5": base64.b64encode(hashlib.md5(b"data").digest()).decode()}, None, (200, "")),
        ({}, "UNSIGNED-PAYLOAD", (200, "")),
    ],
)
def test_what_a_body_claims_is_verified(wire: Wire, headers: dict[str, str], payload: str | None, code: tuple[int, str]) -> None:
    bucket = wire.stores.make_bucket()
    assert wire.send("PUT", f"/{bucket}/a", b"data", payload=payload, **headers) == code
    assert len(list(wire.stores.open(bucket).list(""))) == (1 if code[0] == 200 else 0)


def chunked(data: bytes, size: int, trailer: str) -> bytes:
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return framed + b"0\r\n" + trailer.encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("trailer", "length", "end", "code"),
    [
        (f"x-amz-checksum-crc32:{crc(b'd' * 1000)}", 1000, None, (200, "")),
        (f"x-amz-checksum-crc32:{crc(b'other')}", 1000, None, (400, "BadDigest")),
        ("x-amz-checksum-crc32:", 1000, None, (400, "InvalidRequest")),
        (f"x-amz-checksum-crc32:{crc(b'd' * 1000)}", 999, None, (400, "IncompleteBody")),
        (f"x-amz-checksum-crc32:{crc(b'd' * 1000)}", 1000, -60, (400, "IncompleteBody")),
    ],
)
def test_chunked_bodies_are_verified_by_their_trailer(
    wire: Wire, trailer: str, length: int, end: int | None, code: tuple[int, str]
) -> None:
    bucket = wire.stores.make_bucket()
    body = chunked(b"d" * 1000, 300, trailer)[:end]
    headers = {"x_amz_trailer": "x-amz-checksum-crc32", "x_amz_decoded_content_length": str(length), "Content_Encoding": "aws-chunked"}
    assert wire.send("PUT", f"/{bucket}/a", body, payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", **headers) == code
    if code[0] == 200:
        stored = wire.stores.boto3().get_object(Bucket=bucket, Key="a", ChecksumMode="ENABLED")
        assert stored["Body"].read() == b"d" * 1000
        assert stored["ChecksumCRC32"] == crc(b"d" * 1000)
        assert "ContentEncoding" not in stored


def test_a_key_that_is_too_long_is_refused(wire: Wire) -> None:
    assert wire.send("PUT", f"/{wire.stores.make_bucket()}/{'k' * 1025}", b"") == (400, "KeyTooLongError")


def test_what_is_not_done_is_said(wire: Wire) -> None:
    bucket = wire.stores.make_bucket()
    for method, query in (("GET", "?acl"), ("POST", "?delete"), ("GET", "?list-type=1"), ("PUT", "/a?tagging")):
        assert wire.send(method, f"/{bucket}{query}") == (501, "NotImplemented")


# --- objects and versions ---------------------------------------------------------------------------------------------


def test_versions_markers_and_conditions(s3_server: Stores) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket()
    first = client.put_object(Bucket=bucket, Key="a", Body=b"1", Metadata={"who": "me"}, ContentType="text/x")
    with pytest.raises(ClientError) as taken:
        client.put_object(Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*")
    assert refused(taken) == (412, "PreconditionFailed")
    second = client.put_object(Bucket=bucket, Key="a", Body=b"22")
    marker = client.delete_object(Bucket=bucket, Key="a")
    with pytest.raises(ClientError) as gone:
        client.get_object(Bucket=bucket, Key="a")
    assert refused(gone) == (404, "NoSuchKey")
    old = client.get_object(Bucket=bucket, Key="a", VersionId=first["VersionId"])
    assert (old["Body"].read(), old["Metadata"], old["ContentType"]) == (b"1", {"who": "me"}, "text/x")
    listed = client.list_object_versions(Bucket=bucket, Prefix="a")
    assert [(item["VersionId"], item["IsLatest"]) for item in listed["Versions"]] == [
        (second["VersionId"], False),
        (first["VersionId"], False),
    ]
    assert [(item["VersionId"], item["IsLatest"]) for item in listed["DeleteMarkers"]] == [(marker["VersionId"], True)]
    assert client.put_object(Bucket=bucket, Key="a", Body=b"3", IfNoneMatch="*")["VersionId"]  # a marker does not take the key


def test_a_bucket_without_versioning_keeps_the_last_object_only(s3_server: Stores) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket(versioning=False)
    for body in (b"1", b"22"):
        assert "VersionId" not in client.put_object(Bucket=bucket, Key="a", Body=body)
    assert [item["VersionId"] for item in client.list_object_versions(Bucket=bucket)["Versions"]] == ["null"]
    client.delete_object(Bucket=bucket, Key="a")
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    client.delete_bucket(Bucket=bucket)
    with pytest.raises(ClientError) as gone:
        client.list_objects_v2(Bucket=bucket)
    assert refused(gone) == (404, "NoSuchBucket")


def test_versions_are_listed_in_pages(s3_server: Stores) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket()
    for key in ("a", "b", "a", "c", "a"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
    assert [item["Key"] for page in pages for item in page["Versions"]] == ["a", "a", "a", "b", "c"]


@pytest.mark.parametrize(
    ("asked", "got"), [("bytes=0-0", "0"), ("bytes=2-5", "2345"), ("bytes=7-", "789"), ("bytes=-3", "789"), ("bytes=5-99", "56789")]
)
def test_ranges(s3_server: Stores, asked: str, got: str) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket()
    client.put_object(Bucket=bucket, Key="a", Body=b"0123456789")
    answer = client.get_object(Bucket=bucket, Key="a", Range=asked)
    assert (answer["Body"].read().decode(), answer["ResponseMetadata"]["HTTPStatusCode"]) == (got, 206)
    with pytest.raises(ClientError) as impossible:
        client.get_object(Bucket=bucket, Key="a", Range="bytes=10-")
    assert refused(impossible) == (416, "InvalidRange")


def test_locked_versions_are_not_deleted(s3_server: Stores) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket(object_lock=True)
    until_then = datetime.now(UTC) + timedelta(days=1)

    def put(mode: str) -> dict[str, str]:
        answer = client.put_object(Bucket=bucket, Key=mode, Body=b"", ObjectLockMode=mode, ObjectLockRetainUntilDate=until_then)
        return {"Bucket": bucket, "Key": mode, "VersionId": answer["VersionId"]}

    for mode, bypass in (("GOVERNANCE", False), ("COMPLIANCE", False), ("COMPLIANCE", True)):
        with pytest.raises(ClientError) as caught:
            client.delete_object(**put(mode), BypassGovernanceRetention=bypass)
        assert refused(caught) == (403, "AccessDenied")
    assert client.head_object(Bucket=bucket, Key="GOVERNANCE")["ObjectLockMode"] == "GOVERNANCE"
    client.delete_object(**put("GOVERNANCE"), BypassGovernanceRetention=True)
    client.delete_object(Bucket=bucket, Key="COMPLIANCE")  # a marker hides it, and takes nothing away
    assert len(client.list_object_versions(Bucket=bucket, Prefix="COMPLIANCE")["Versions"]) == 2


def test_etags_are_md5_unless_kms_encrypts(s3_server: Stores) -> None:
    client, digest = s3_server.boto3(), f'"{hashlib.md5(b"data").hexdigest()}"'
    plain, kms = s3_server.make_bucket(), s3_server.make_bucket(encryption="aws:kms")
    assert client.put_object(Bucket=plain, Key="a", Body=b"data")["ETag"] == digest
    answer = client.put_object(Bucket=kms, Key="a", Body=b"data")
    assert (answer["ETag"] == digest, answer["ServerSideEncryption"]) == (False, "aws:kms")
    assert client.head_object(Bucket=kms, Key="a")["ETag"] == answer["ETag"]


def test_a_lock_needs_a_checksum_and_a_bucket_for_it(s3_server: Stores, wire: Wire) -> None:
    until_then = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    lock = {"x_amz_object_lock_mode": "GOVERNANCE", "x_amz_object_lock_retain_until_date": until_then}
    locking = s3_server.make_bucket(object_lock=True)
    assert wire.send("PUT", f"/{locking}/a", b"x", **lock) == (400, "InvalidRequest")
    assert wire.send("PUT", f"/{locking}/a", b"x", x_amz_checksum_crc32=crc(b"x"), **lock) == (200, "")
    assert wire.send("PUT", f"/{s3_server.make_bucket()}/a", b"x", x_amz_checksum_crc32=crc(b"x"), **lock) == (400, "InvalidRequest")
    past = {**lock, "x_amz_object_lock_retain_until_date": "2020-01-01T00:00:00Z"}
    assert wire.send("PUT", f"/{locking}/a", b"x", x_amz_checksum_crc32=crc(b"x"), **past) == (400, "InvalidArgument")


# --- the AWS command line ---------------------------------------------------------------------------------------------


def aws_cli(stores: Stores, script: str, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, **stores.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-o", "pipefail", "-c", script], check=False, env=environ, capture_output=True, timeout=120, **kwargs)


def test_the_command_line_streams_in_and_out(s3_server: Stores) -> None:
    bucket, data = s3_server.make_bucket(), os.urandom(20 * MIB + 5)
    url = shlex.quote(f"s3://{bucket}/dir/a b")
    done = aws_cli(s3_server, f"aws s3 cp - {url} && aws s3 cp {url} - && aws s3 ls s3://{bucket}/ >&2", input=data)
    assert (done.returncode, done.stdout == data) == (0, True), done.stderr
    assert b"PRE dir/" in done.stderr
    assert s3_server.open(bucket).require("dir/a b").etag.endswith("-3")  # it did go in parts


def test_the_command_line_copies_files(s3_server: Stores, tmp_path: Path) -> None:
    bucket = s3_server.make_bucket()
    (tmp_path / "small").write_bytes(b"small")
    done = aws_cli(s3_server, f"aws s3 cp small s3://{bucket}/small && aws s3 cp s3://{bucket}/small back", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "back").read_bytes()) == (0, b"small"), done.stderr


# --- the server itself ------------------------------------------------------------------------------------------------


def test_what_was_stored_survives_a_restart_and_unfinished_uploads_do_not(s3_server: Stores, tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        server.make_bucket("azora", object_lock=True)
        stores = Stores(server)
        stored = stores.open("azora").put_once("a", b"data", content_type="text/plain", lock_days=2)
        stores.open("azora").put_once("b", b"data", content_type="text/plain")
        stores.boto3().delete_object(Bucket="azora", Key="b")
        stores.boto3().create_multipart_upload(Bucket="azora", Key="c")
    with S3Server(tmp_path) as server:
        bucket = Stores(server).open("azora")
        assert bucket.head("a") == stored
        assert bucket.read("a") == b"data"
        assert (bucket.head("b"), list(bucket.pending_uploads(""))) == (None, [])
        assert bucket.facts().object_lock is True


def control(endpoint: str, name: str, document: object, token: str = "control") -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=30)
    connection.request("POST", f"/-/{name}", json.dumps(document), {"x-control-token": token})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if answer.status == 200 else {}


def test_the_control_path_needs_its_token(s3_server: Stores) -> None:
    rule = {"action": "error", "operation": "HeadBucket", "times": None}
    assert control(s3_server.endpoint, "faults", [rule], token="guess")[0] == 403
    assert control(s3_server.endpoint, "faults", [{**rule, "action": "explode"}])[0] == 400
    assert control(s3_server.endpoint, "faults", [{**rule, "unknown": 1}])[0] == 400
    assert control(s3_server.endpoint, "faults", [rule]) == (200, {"faults": 1})
    with pytest.raises(ClientError):
        s3_server.boto3().head_bucket(Bucket=s3_server.make_bucket())
    status, state = control(s3_server.endpoint, "state", None)
    assert (status, state["requests"]["HeadBucket"] >= 1) == (200, True)  # type: ignore[index] # a JSON document


def test_faults_come_from_a_file_that_may_be_rewritten(tmp_path: Path) -> None:
    rules = tmp_path / "faults.json"
    with S3Server(tmp_path / "kept", faults_file=rules) as server:
        server.make_bucket("azora")
        client = Stores(server).boto3()
        client.head_bucket(Bucket="azora")
        rules.write_text('[{"action": "error", "operation": "Head*", "status": 503, "code": "SlowDown", "times": null}]')
        with pytest.raises(ClientError):
            client.head_bucket(Bucket="azora")
        rules.write_text('[{"action": "err')  # still being written: what was there counts
        with pytest.raises(ClientError):
            client.head_bucket(Bucket="azora")
        rules.write_text("[]")
        client.head_bucket(Bucket="azora")
        rules.write_text('[{"action": "explode"}]')
        with pytest.raises(ClientError, match="cannot be used: 'explode' is none of"):
            client.list_objects_v2(Bucket="azora")


def test_a_fault_counts_matching_requests_only() -> None:
    fault = Fault("error", operation="Put*", key="*.gz", skip=1, times=2)
    asked = [("GetObject", "a.gz"), ("PutObject", "a"), *[("PutObject", "a.gz")] * 4]
    assert [fault.take(*request) for request in asked] == [False, False, False, True, True, False]


def test_the_server_runs_as_a_program_of_its_own(tmp_path: Path, s3_server: Stores) -> None:
    ready = tmp_path / "ready.json"
    argv = [sys.executable, "-m", "azora_ci.rehearsal.standins.s3", str(tmp_path / "kept"), "--bucket", "azora", "--object-lock"]
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hidden", "S3_CONTROL_TOKEN": "t"}
    with subprocess.Popen([*argv, "--ready-file", str(ready)], env=environ, stdout=subprocess.PIPE, text=True) as child:
        try:
            until(ready.exists, "the server is ready")
            endpoint = json.loads(ready.read_text())["endpoint"]
            assert open_bucket(aws(endpoint, "me", "hidden"), "azora", patience=QUICK).facts().object_lock is True
            assert control(endpoint, "state", None, token="t")[0] == 200
        finally:
            child.terminate()
        output, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "hidden" not in output
