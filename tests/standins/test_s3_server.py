"""What our product relies on in S3, shown on the real server that stands in for it; and that this server leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError

from azora_ci.clients.s3.bucket import open_bucket
from tests.support.stores import QUICK, Stores, aws, crc, refused
from tests.support.waiting import until

PART = 5 * 1024 * 1024
BODIES = [b"x" * PART, b"y"]
WHOLE = b"".join(BODIES)
RACERS = 8


class Parts:
    """An upload in parts by hand, so that its completion can be wrong or come late."""

    def __init__(self, stores: Stores, bucket: str, **options: object) -> None:
        self.client = stores.boto3(request_checksum_calculation="when_required")
        self.upload = {"Bucket": bucket, "Key": "a"}
        answer = self.client.create_multipart_upload(**self.upload, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT", **options)
        self.upload["UploadId"] = answer["UploadId"]
        self.parts: list[dict[str, object]] = []

    def send(self, body: bytes, checksum: str | None = None) -> None:
        number = len(self.parts) + 1
        answer = self.client.upload_part(**self.upload, PartNumber=number, Body=body, ChecksumCRC32=checksum or crc(body))
        self.parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": crc(body)})

    def complete(self, **options: object) -> dict[str, str]:
        sizes = {"ChecksumCRC32": crc(WHOLE), "ChecksumType": "FULL_OBJECT", "MpuObjectSize": len(WHOLE), "IfNoneMatch": "*"}
        return self.client.complete_multipart_upload(**self.upload, MultipartUpload={"Parts": self.parts}, **{**sizes, **options})


def uploaded(stores: Stores, bucket: str, **options: object) -> Parts:
    parts = Parts(stores, bucket, **options)
    for body in BODIES:
        parts.send(body)
    return parts


def race(attempts: list[Callable[[], object]]) -> list[str]:
    """Make all attempts at once and return how each ended."""

    def ending(attempt: Callable[[], object]) -> str:
        try:
            attempt()
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "won"

    with ThreadPoolExecutor(len(attempts)) as pool:
        return sorted(pool.map(ending, attempts))


def test_of_writers_of_one_key_at_once_one_wins(s3_server: Stores) -> None:
    bucket = s3_server.make_bucket()
    clients = [s3_server.boto3() for _ in range(RACERS)]
    puts = [lambda client=client: client.put_object(Bucket=bucket, Key="a", Body=b"x", IfNoneMatch="*") for client in clients]
    assert race(puts) == ["PreconditionFailed"] * (RACERS - 1) + ["won"]


def test_of_completions_of_one_key_at_once_one_wins(s3_server: Stores) -> None:
    bucket = s3_server.make_bucket()
    uploads = [uploaded(s3_server, bucket) for _ in range(3)]
    assert race([upload.complete for upload in uploads]) == ["PreconditionFailed", "PreconditionFailed", "won"]


def test_a_replaced_or_deleted_version_can_be_read_by_its_id(s3_server: Stores) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket()
    first = client.put_object(Bucket=bucket, Key="a", Body=b"1")["VersionId"]
    second = client.put_object(Bucket=bucket, Key="a", Body=b"22")["VersionId"]
    client.delete_object(Bucket=bucket, Key="a")
    with pytest.raises(ClientError) as gone:
        client.get_object(Bucket=bucket, Key="a")
    assert refused(gone) == (404, "NoSuchKey")
    assert [client.get_object(Bucket=bucket, Key="a", VersionId=version)["Body"].read() for version in (first, second)] == [b"1", b"22"]
    assert client.put_object(Bucket=bucket, Key="a", Body=b"3", IfNoneMatch="*")["VersionId"]  # a delete marker does not take the key


def test_wrong_checksums_are_refused_of_put_part_and_whole(s3_server: Stores) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket()
    parts = Parts(s3_server, bucket)
    parts.send(BODIES[0])
    for wrong in (
        lambda: client.put_object(Bucket=bucket, Key="a", Body=b"x", ChecksumCRC32=crc(b"y")),
        lambda: parts.send(BODIES[1], checksum=crc(b"z")),
        parts.complete,  # the second part lacks
    ):
        with pytest.raises(ClientError) as caught:
            wrong()
        assert caught.value.response["Error"]["Code"] in {"BadDigest", "InvalidRequest"}
    parts.send(BODIES[1])
    with pytest.raises(ClientError) as whole:
        parts.complete(ChecksumCRC32=crc(b"z"))
    assert refused(whole) == (400, "BadDigest")
    parts.complete()
    described = client.head_object(Bucket=bucket, Key="a", ChecksumMode="ENABLED")
    assert (described["ChecksumCRC32"], described["ChecksumType"], described["ContentLength"]) == (crc(WHOLE), "FULL_OBJECT", len(WHOLE))


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_locked_objects_are_not_deleted(s3_server: Stores, mode: str) -> None:
    client, bucket = s3_server.boto3(), s3_server.make_bucket(object_lock=True)
    lock = {"ObjectLockMode": mode, "ObjectLockRetainUntilDate": datetime.now(UTC) + timedelta(days=1)}
    put = client.put_object(Bucket=bucket, Key="put", Body=b"x", ChecksumCRC32=crc(b"x"), **lock)
    completed = uploaded(s3_server, bucket, **lock).complete()
    for key, version in (("put", put["VersionId"]), ("a", completed["VersionId"])):
        with pytest.raises(ClientError) as caught:
            client.delete_object(Bucket=bucket, Key=key, VersionId=version)
        assert refused(caught) == (403, "AccessDenied")
        assert client.head_object(Bucket=bucket, Key=key, VersionId=version)["ObjectLockMode"] == mode


# --- the program -----------------------------------------------------------------------------------------------------------


def test_the_program_serves_on_loopback_and_leaves_nothing_when_killed(tmp_path: Path) -> None:
    folder, ready = tmp_path / "kept", tmp_path / "ready.json"
    argv = [sys.executable, "-m", "azora_ci.rehearsal.standins.s3", str(folder), "--bucket", "azora", "--object-lock"]
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hidden-word"}
    with subprocess.Popen([*argv, "--ready-file", str(ready)], env=environ) as program:
        try:
            until(ready.exists, "the server is ready", 90)
            bucket = open_bucket(aws(json.loads(ready.read_text())["endpoint"], "me", "hidden-word"), "azora", patience=QUICK)
            assert bucket.facts().object_lock is True
            started = psutil.Process(program.pid).children(recursive=True)
            weed = next(process for process in started if process.name() == "weed")
            addresses = {connection.laddr.ip for connection in weed.net_connections("tcp") if connection.status == psutil.CONN_LISTEN}
            assert addresses == {"127.0.0.1"}
            assert not any("hidden-word" in argument for process in started for argument in process.cmdline())
            assert [path.name for path in folder.rglob("*.json") if path.stat().st_mode & 0o077 and "hidden" in path.read_text()] == []
            sockets = [Path(name) for name in (connection.laddr for connection in weed.net_connections("unix")) if name.startswith("/tmp/")]
        finally:
            program.kill()
    until(lambda: not any(process.is_running() for process in started), "the server has ended")
    assert sockets and not any(path.exists() for path in sockets)
