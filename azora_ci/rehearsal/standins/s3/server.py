"""The HTTP side of the S3 server: read a request, verify its signature, meet its fault, do it, answer."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import socketserver
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from azora_ci.core.clock import Clock, rfc3339
from azora_ci.rehearsal.standins.s3 import buckets, multipart, objects, signature
from azora_ci.rehearsal.standins.s3.body import Body
from azora_ci.rehearsal.standins.s3.errors import S3Error, not_implemented
from azora_ci.rehearsal.standins.s3.exchange import Answer, Request
from azora_ci.rehearsal.standins.s3.faults import Fault, Faults
from azora_ci.rehearsal.standins.s3.signature import Credential
from azora_ci.rehearsal.standins.s3.store import Store, flip_bit

CONTROL = "/-/"  # no bucket can have this name
LONGEST_KEY = 1024  # bytes
REMEMBERED = 10_000  # requests

Operation = Callable[[Request], Answer]
# (method, has a key, what the query must hold) -> operation; the first that fits.
ROUTES: tuple[tuple[str, bool, str, str, Operation], ...] = (
    ("PUT", True, "uploadId", "UploadPart", multipart.upload_part),
    ("PUT", True, "", "PutObject", objects.put_object),
    ("GET", True, "uploadId", "ListParts", multipart.list_parts),
    ("GET", True, "", "GetObject", objects.get_object),
    ("HEAD", True, "", "HeadObject", objects.head_object),
    ("POST", True, "uploads", "CreateMultipartUpload", multipart.create_multipart_upload),
    ("POST", True, "uploadId", "CompleteMultipartUpload", multipart.complete_multipart_upload),
    ("DELETE", True, "uploadId", "AbortMultipartUpload", multipart.abort_multipart_upload),
    ("DELETE", True, "", "DeleteObject", objects.delete_object),
    ("GET", False, "versioning", "GetBucketVersioning", buckets.get_configuration),
    ("GET", False, "object-lock", "GetObjectLockConfiguration", buckets.get_configuration),
    ("GET", False, "encryption", "GetBucketEncryption", buckets.get_configuration),
    ("GET", False, "lifecycle", "GetBucketLifecycleConfiguration", buckets.get_configuration),
    ("PUT", False, "versioning", "PutBucketVersioning", buckets.put_configuration),
    ("PUT", False, "object-lock", "PutObjectLockConfiguration", buckets.put_configuration),
    ("PUT", False, "encryption", "PutBucketEncryption", buckets.put_configuration),
    ("PUT", False, "lifecycle", "PutBucketLifecycleConfiguration", buckets.put_configuration),
    ("GET", False, "location", "GetBucketLocation", buckets.get_location),
    ("GET", False, "uploads", "ListMultipartUploads", multipart.list_multipart_uploads),
    ("GET", False, "versions", "ListObjectVersions", buckets.list_object_versions),
    ("GET", False, "", "ListObjectsV2", buckets.list_objects),
    ("HEAD", False, "", "HeadBucket", buckets.head_bucket),
    ("PUT", False, "", "CreateBucket", buckets.create_bucket),
    ("DELETE", False, "", "DeleteBucket", buckets.delete_bucket),
)
# What a query may hold beside the name that chooses the operation; anything else is a sub-resource that is not done here.
PLAIN = {
    "x-id", "uploadId", "partNumber", "versionId", "list-type", "prefix", "delimiter", "max-keys", "continuation-token", "start-after",
    "encoding-type", "fetch-owner", "key-marker", "upload-id-marker", "version-id-marker", "max-uploads", "max-parts",
    "part-number-marker",
}  # fmt: skip


def route(method: str, key: str, query: Mapping[str, str]) -> tuple[str, Operation]:
    """Return the operation's name and function. Raises S3Error for what is not done here."""
    for wanted, with_key, part, name, operation in ROUTES:
        if method == wanted and bool(key) == with_key and (not part or part in query):
            if not set(query) <= PLAIN | {part}:
                raise not_implemented(f"{method} with {', '.join(sorted(set(query) - PLAIN))}")
            return name, operation
    raise not_implemented(f"{method} with {', '.join(query) or 'no query'}")


@dataclass(frozen=True)
class Seen:
    """A request that was answered: the moment, the operation, its object, the status (0: no answer)."""

    time: str
    operation: str
    bucket: str
    key: str
    status: int


class S3Server:
    """The server on a free port of 127.0.0.1, or on a given one: a context manager."""

    def __init__(  # noqa: PLR0913 - the options of a server, all by keyword
        self,
        folder: Path,
        *,
        credentials: tuple[Credential, ...] = (Credential("standin", "standin-secret"),),
        region: str = "us-east-1",
        port: int = 0,
        control_token: str = "",
        faults_file: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.store = Store(folder, self.clock)
        self.region = region
        self.credentials = {credential.key_id: credential for credential in credentials}
        self.control_token = control_token
        self.faults = Faults(faults_file)
        self.seen: deque[Seen] = deque(maxlen=REMEMBERED)
        self.stopping = threading.Event()
        self._http = _Http(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="s3", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._http.server_address[1])

    @property
    def endpoint(self) -> str:
        """The address to give to clients."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> S3Server:
        """Serve in the background and return itself."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop, and cut the connections there are."""
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._http.cut_all()
        self._thread.join()

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def make_bucket(self, name: str, *, versioning: bool = True, object_lock: bool = False, encryption: str | None = None) -> None:
        """Make a bucket if it is not there, without a client."""
        with self.store.lock:
            if name not in self.store.buckets:
                buckets.configure_new(self.store.create(name), versioning=versioning, object_lock=object_lock, encryption=encryption)

    def count(self, operation: str) -> int:
        """Return how often an operation was asked for."""
        return sum(1 for seen in list(self.seen) if seen.operation == operation)

    def note(self, operation: str, bucket: str, key: str, status: int) -> None:
        """Remember a request."""
        self.seen.append(Seen(rfc3339(self.clock.now()), operation, bucket, key, status))

    def control(self, name: str, document: Any) -> dict[str, Any]:
        """Do what the control path asks: ``faults`` (a list of rules), ``flip`` (an object and an offset), ``state``."""
        if name == "faults":
            self.faults.replace(Fault.parse(item) for item in document)
            return {"faults": len(document)}
        if name == "flip":
            self.store.flip_bit(document["bucket"], document["key"], document.get("version_id"), document.get("offset", 0))
            return {"flipped": document["key"]}
        if name == "state":
            with self.store.lock:
                pending = {bucket.name: [upload.key for upload in bucket.uploads.values()] for bucket in self.store.buckets.values()}
            return {"requests": Counter(seen.operation for seen in list(self.seen)), "uploads": pending}
        raise ValueError(f"there is no control {name!r}")


class _Http(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], server: S3Server) -> None:
        self.s3 = server
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the name service, which can take seconds
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""

    def cut_all(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Cut(Exception):  # noqa: N818 - not an error: the connection ends here on purpose
    """End the connection without another word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "AmazonS3"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 300
    server: _Http
    body: Body
    texts: ClassVar[dict[int, str]] = {200: "OK", 204: "No Content", 206: "Partial Content", 304: "Not Modified"}

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Keep quiet: requests are remembered by the server."""

    def handle_expect_100(self) -> bool:
        """Wait with ``100 Continue`` until the head of the request was accepted."""
        return True

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the names that http.server looks for

    def _serve(self) -> None:
        try:
            self._exchange()
        except (_Cut, ConnectionError, TimeoutError):
            self.close_connection = True

    def _exchange(self) -> None:
        path, _, query_text = self.path.partition("?")
        bucket, _, key = unquote(path.removeprefix("/")).partition("/")
        query = dict(parse_qsl(query_text.replace("+", "%2B"), keep_blank_values=True))
        operation, fault = "?", None
        try:
            self.body = Body(self.rfile, self.headers)
            if path.startswith(CONTROL):
                self._send(self._control(path.removeprefix(CONTROL)))
                return
            s3 = self.server.s3
            signature.verify(signature.Signed(self.command, self.path, self.headers), s3.credentials, region=s3.region, now=s3.clock.now())
            if len(key.encode()) > LONGEST_KEY:
                raise S3Error(400, "KeyTooLongError", "Your key is too long")
            function: Operation
            operation, function = ("ListBuckets", buckets.list_buckets) if not bucket else route(self.command, key, query)
            fault = s3.faults.take(operation, key)
            self._before(fault)
            self._continue()
            answer = function(Request(self.command, bucket, key, query, self.headers, self.body, s3.store))
        except S3Error as error:
            answer = self._error(error)
        except (_Cut, ConnectionError, TimeoutError):
            self.server.s3.note(operation, bucket, key, 0)
            raise
        lost = fault is not None and fault.action == "lose_answer"
        self.server.s3.note(operation, bucket, key, 0 if lost else answer.status)
        self._after(fault, answer)
        self._send(answer, cut=fault.bytes if fault is not None and fault.action == "cut" else None)

    def _continue(self) -> None:
        if self.headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            del self.headers["expect"]

    # --- faults -------------------------------------------------------------------------------------------------------

    def _before(self, fault: Fault | None) -> None:
        if fault is None:
            return
        if fault.action in {"hang", "delay"}:
            self.server.s3.clock.wait(self.server.s3.stopping, fault.seconds)
        if fault.action == "hang":
            raise _Cut
        if fault.action == "reset":
            self._continue()
            self.body.skip(fault.bytes)
            self._reset()
        if fault.action == "error":
            raise S3Error(fault.status, fault.code, "This answer was asked for")
        self.body.damage = fault.action in {"damage_arrival", "accept_damage"}
        self.body.verify = fault.action not in {"ignore_checksums", "accept_damage"}

    def _after(self, fault: Fault | None, answer: Answer) -> None:
        if fault is not None and fault.action == "flip_bit" and answer.touched:
            flip_bit(answer.touched[0], fault.bytes)
        if fault is not None and fault.action == "lose_answer":
            self._reset()

    def _reset(self) -> None:
        """Make the end of the connection a reset (RST) instead of an orderly close."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise _Cut

    # --- answers ------------------------------------------------------------------------------------------------------

    def _error(self, error: S3Error) -> Answer:
        resource = escape(unquote(self.path.partition("?")[0]))
        text = f"<Error><Code>{error.code}</Code><Message>{escape(error.text)}</Message><Resource>{resource}</Resource></Error>"
        return Answer(error.status, {"content-type": "application/xml", **error.headers}, text.encode())

    def _send(self, answer: Answer, *, cut: int | None = None) -> None:
        if self.headers.get("expect"):
            self.close_connection = True  # the client was not told to go on, and its body will not come
        else:
            self.body.drain()
        length = answer.length if answer.length is not None else len(answer.body)
        head = [f"HTTP/1.1 {answer.status} {self.texts.get(answer.status, 'Error')}"]
        head += [f"{name}: {value}" for name, value in answer.headers.items()]
        head += [f"content-length: {length}"] if answer.status not in {204, 304} else []
        head += ["connection: close"] if self.close_connection else []
        plain = answer.body if self.command != "HEAD" and answer.status not in {204, 304} else b""
        self.wfile.write("\r\n".join([*head, "", ""]).encode("utf-8") + plain[:cut])
        for path, offset, count in answer.pieces:
            sent = count if cut is None else min(count, cut)
            self._send_piece(path, offset, sent)
            cut = None if cut is None else cut - sent
        if cut is not None:
            raise _Cut

    def _send_piece(self, path: Path, offset: int, count: int) -> None:
        if count > 0:
            with path.open("rb") as file:
                self.connection.sendfile(file, offset, count)

    def _control(self, name: str) -> Answer:
        token = self.server.s3.control_token
        sent = self.headers.get("x-control-token", "")
        if not token or not hmac.compare_digest(token.encode(), sent.encode()):
            raise S3Error(403, "AccessDenied", "The control path needs its token")
        text = b"".join(bytes(piece) for piece in self.body._raw(self.body.left))
        try:
            document = self.server.s3.control(name, json.loads(text or b"null"))
        except (ValueError, TypeError, KeyError) as error:
            raise S3Error(400, "InvalidArgument", str(error)) from None
        return Answer(200, {"content-type": "application/json"}, json.dumps(document).encode())
