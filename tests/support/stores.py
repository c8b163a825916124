"""The session's S3 server, and fresh buckets in it."""

from __future__ import annotations

import base64
import shutil
import zlib
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from azora_ci.clients.s3 import bucket
from azora_ci.core.settings import Aws
from azora_ci.core.variables import Secret
from azora_ci.rehearsal.standins.s3 import Fault, S3Server

# Quick enough for tests, patient enough for a machine under load: no attempt is given up before 20 s.
QUICK = bucket.Patience(attempts=4, first_wait=0.01, longest_wait=0.05, connect_timeout=20, read_timeout=20)
KEY_ID, SECRET, REGION = "standin", "standin-secret", "us-east-1"


class Stores:
    """``make_bucket()`` returns the name of a fresh bucket, ``open(name)`` our own client for it, ``environ`` what a step needs."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.endpoint = server.endpoint
        self.faults = server.faults
        self.settings = aws(server.endpoint)
        self.environ = {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": server.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.count = 0

    def make_bucket(self, *, versioning: bool = True, object_lock: bool = False, encryption: str | None = None) -> str:
        self.count += 1
        name = f"bucket-{self.count}"
        self.server.make_bucket(name, versioning=versioning, object_lock=object_lock, encryption=encryption)
        return name

    def open(self, name: str | None = None, *, patience: bucket.Patience = QUICK, **credentials: str) -> bucket.Bucket:
        return bucket.open_bucket(aws(self.endpoint, **credentials), name or self.make_bucket(), patience=patience)

    def fault(self, action: str, operation: str, **options: object) -> Fault:
        return self.faults.add(Fault.parse({"action": action, "operation": operation, **options}))

    def boto3(self, *, key_id: str = KEY_ID, secret: str = SECRET, token: str = "", **options: object):
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token or None,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, **options),
        )


def aws(endpoint: str, key_id: str = KEY_ID, secret: str = SECRET, token: str = "") -> Aws:
    return Aws(
        aws_access_key_id=Secret(key_id),
        aws_secret_access_key=Secret(secret),
        aws_session_token=Secret(token) if token else None,
        aws_region=REGION,
        aws_endpoint_url_s3=endpoint,
    )


def crc(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def refused(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    folder = tmp_path_factory.mktemp("s3")
    with S3Server(folder, keys=(KEY_ID, SECRET)) as server:
        yield Stores(server)
    shutil.rmtree(folder)


@pytest.fixture
def s3_server(s3_session: Stores) -> Iterator[Stores]:
    s3_session.faults.clear()
    yield s3_session
    s3_session.faults.clear()
