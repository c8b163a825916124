"""SeaweedFS as an S3 server on loopback, with the proxy in front of it.

One ``weed server`` runs master, volume server, filer and S3 gateway. Started 2 to 4 s later it answers; its first put may still
be refused, so it counts as ready after one that was not. It takes 25 s to end by itself: it is killed. A small shell watches over
it, which kills it when this process ends, however that happens.
"""

from __future__ import annotations

import io
import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Child, Processes
from azora_ci.database.cluster import free_port
from azora_ci.rehearsal.standins.s3.faults import Faults
from azora_ci.rehearsal.standins.s3.proxy import Proxy, Request

REGION = "us-east-1"
START_SECONDS = 90.0
ATTEMPTS = 3  # with other ports, when somebody took one in the meantime
PARTS = ("master", "volume", "filer", "s3")
PORTS = tuple(f"{part}.port{kind}" for part in PARTS for kind in ("", ".grpc"))
OPTIONS = """
-dir=. -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.peers=none -master.telemetry=false -master.volumeSizeLimitMB=1024 -volume.max=4096
-filer=true -filer.localSocket=filer.sock -s3=true -s3.config=identities.json -s3.localSocket=s3.sock -s3.port.iceberg=0 -s3.port.lance=0
-s3.iam=false -s3.autoCreateBucket=false -s3.allowDeleteBucketNotEmpty=false
"""
# Kills the server when standard input ends, and removes the sockets that it makes in /tmp whatever it is told.
WATCH = """trap '' HUP INT TERM
exec 3<&0
"$@" 3<&- & server=$!
exec 2>/dev/null
{{ read -r <&3; kill -KILL $server; }} & reader=$!
wait $server; kill -KILL $reader; rm -f {sockets}"""
MEMORY = "384MiB"  # above which SeaweedFS collects garbage more often; it would take 650 MiB


def command(ports: dict[str, int]) -> tuple[str, ...]:
    """Return the command that serves S3 from its working folder until its standard input ends."""
    sockets = [f"/tmp/seaweedfs-{part}-grpc-{ports[f'{part}.port.grpc']}.sock" for part in PARTS]  # noqa: S108 - SeaweedFS's choice
    weed = Path(sys.executable).parent / "weed"
    options = [*OPTIONS.split(), *(f"-{name}={port}" for name, port in ports.items())]
    return ("bash", "-c", WATCH.format(sockets=" ".join(sockets)), "s3-server", str(weed), "-logtostderr=true", "server", *options)


class S3Server:
    """The server and its proxy: a context manager. ``keys`` are what clients must use; ``endpoint`` is the proxy's address."""

    def __init__(self, folder: Path, *, keys: tuple[str, str], faults_file: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.keys = keys
        self.faults = Faults(faults_file)
        self._clock = Clock()
        self._processes = Processes(JobLog(Actions(stream=io.StringIO()), self._clock))
        self._child: Child | None = None
        self._client: Any = None  # boto3's, past the proxy
        self._proxy: Proxy | None = None
        self._ports: dict[str, int] = {}

    @property
    def endpoint(self) -> str:
        """The address to give to clients."""
        assert self._proxy is not None, "the server was not started"  # noqa: S101 - a mistake of the caller
        return self._proxy.endpoint

    def start(self) -> S3Server:
        """Start both and return itself once an object could be written. Raises UnreachableError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key_id, secret = self.keys
        identity = {"name": "client", "credentials": [{"accessKey": key_id, "secretKey": secret}], "actions": ["Admin"]}
        identities = self.folder / "identities.json"
        identities.touch(mode=0o600)
        identities.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        try:
            port = self._serve()
        except BaseException:
            self.stop()
            raise
        self._proxy = Proxy(port, self.faults)
        self._proxy.start()
        return self

    def stop(self) -> None:
        """End both; what was stored stays in the folder."""
        if self._proxy is not None:
            self._proxy.stop()
        self._end()

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def recorded_requests(self) -> Iterator[list[Request]]:
        """Yield a list that receives every request that the proxy gets during the block."""
        assert self._proxy is not None, "the server was not started"  # noqa: S101 - a mistake of the caller
        requests: list[Request] = []
        self._proxy.recorders.append(requests)
        try:
            yield requests
        finally:
            self._proxy.recorders.remove(requests)

    def make_bucket(self, name: str, *, versioning: bool = True, object_lock: bool = False, encryption: str | None = None) -> None:
        """Make a bucket, past the proxy. ``encryption`` is its default: AES256."""
        grow = urlencode({"collection": name, "count": 1})
        # A bucket's objects lie in volumes of their own; made at the first put, they would be seven, and that put would wait for a second.
        with urlopen(f"http://127.0.0.1:{self._ports['master.port']}/vol/grow?{grow}", timeout=20):
            pass
        self._client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
        if versioning:
            self._client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        if encryption is not None:
            rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": encryption}}
            self._client.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": [rule]})

    def _serve(self) -> int:
        """Start SeaweedFS and return the port of its S3 gateway."""
        for _ in range(ATTEMPTS):
            ports = self._ports = {name: free_port() for name in PORTS}
            # The key is what it encrypts with where a bucket asks for that.
            environment = {"WEED_S3_SSE_KEY": secrets.token_hex(32), "GOMEMLIMIT": MEMORY}
            self._child = self._processes.start(command(ports), env=environment, cwd=self.folder, stdin=True)
            self._client = _client(f"http://127.0.0.1:{ports['s3.port']}", self.keys)
            if self._answers(self._child):
                return ports["s3.port"]
            log = self._child.stderr_text[-2000:]
            self._end()
        raise UnreachableError("SeaweedFS does not start", what=log, where=str(self.folder), next_step="read its log above")

    def _answers(self, child: Child) -> bool:
        """Wait until an object could be written; return False when the server ended or took too long."""
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = self._clock.monotonic() + START_SECONDS
        while child.poll() is None and self._clock.monotonic() < deadline:
            bucket = f"ready-{secrets.token_hex(4)}"
            try:
                self.make_bucket(bucket)
                self._client.put_object(Bucket=bucket, Key="ready", Body=b"?")
            except (BotoCoreError, ClientError, OSError):
                self._clock.sleep(0.05)
            else:
                return True
        return False

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            child.stdin.close()
            child.wait(START_SECONDS)


def _client(endpoint: str, keys: tuple[str, str]) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=20)
    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint, region_name=REGION, aws_access_key_id=keys[0], aws_secret_access_key=keys[1], config=config
    )
