"""A proxy in front of an S3 server: it passes requests on as they are, names each one's operation, and fails on demand.

The Host header stays the client's own, so that signatures remain valid. Bodies are streamed both ways.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from azora_ci.core.clock import Clock
from azora_ci.rehearsal.standins.s3.faults import Fault, Faults
from azora_ci.rehearsal.standins.s3.operations import operation_of
from azora_ci.rehearsal.standins.s3.rules import LOCK, MissingRules

PIECE = 1024 * 1024  # bytes of a body held at a time
TIMEOUT = 300.0  # seconds without a byte
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
READ_WHOLE = {"CreateMultipartUpload", "CompleteMultipartUpload"}  # operations whose documents the rules look into


class Proxy(ThreadingHTTPServer):
    """The proxy on a free port of 127.0.0.1, in front of the S3 server on ``upstream_port``."""

    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream_port: int, faults: Faults) -> None:
        self.upstream_port = upstream_port
        self.faults = faults
        self.rules = MissingRules()
        self.recorders: list[list[Request]] = []
        self.clock = Clock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        """Bind without asking the name service for a name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients that go away are part of the tests."""

    def start(self) -> None:
        """Serve in the background."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="s3 proxy", daemon=True).start()

    def stop(self) -> None:
        """Let delayed requests go on, and accept no more."""
        self.faults.clear()
        self.shutdown()
        self.server_close()


class _Cut(Exception):  # noqa: N818 - not an error: the connection ends here on purpose
    """End the connection without another word."""


@dataclass
class Request:
    """A request to the server: its operation, the key (empty for the bucket), its query, its headers (names in lower case)."""

    operation: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def versioned(self) -> bool:
        """Return whether it asks for one version of an object."""
        return "versionId" in self.query

    @property
    def locks(self) -> bool:
        """Return whether it locks the object that it writes."""
        return any(name.startswith(LOCK) for name in self.headers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = TIMEOUT
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server calls
        """Print nothing."""

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        path, _, text = self.path.partition("?")
        key = unquote(path.removeprefix("/").partition("/")[2])
        query = dict(parse_qsl(text.replace("+", "%2B"), keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.unread = int(headers.get("content-length", 0))
        if "transfer-encoding" in headers:
            self.close_connection = True
            self._refuse(501, "NotImplemented", "The proxy takes bodies with a Content-Length only")
            return
        try:
            self._serve(Request(operation_of(self.command, key, query), key, query, headers))
        except (_Cut, OSError, http.client.HTTPException):
            self.close_connection = True

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the names that http.server looks for

    def _serve(self, request: Request) -> None:
        proxy = self.server
        for recorder in proxy.recorders:
            recorder.append(request)
        try:
            fault = proxy.faults.take(request.operation, request.key, request.headers)
        except ValueError as error:
            self._refuse(500, "InternalError", str(error))
            return
        if fault is not None:
            self._wait_or_reset(fault)
            if fault.action == "error":
                self._refuse(fault.status, fault.code, "This answer was asked for")
                return
        body = b"".join(self._body(fault)) if request.operation in READ_WHOLE else None
        reason = proxy.rules.refusal(request.operation, request.query, request.headers, body or b"")
        if reason is not None:
            self._refuse(400, "InvalidRequest", reason)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=TIMEOUT)
        with proxy.rules.turn(request.operation), contextlib.closing(upstream):
            self._pass_on(upstream, [body] if body is not None else self._body(fault))
            self._answer(request, fault, upstream.getresponse())

    def _wait_or_reset(self, fault: Fault) -> None:
        if fault.action in {"hang", "delay"}:
            self.server.clock.wait(fault.removed, fault.seconds)
        if fault.action == "hang":
            raise _Cut
        if fault.action == "reset":
            self.unread = min(self.unread, fault.bytes)
            self._drain()
            self._reset()

    def _pass_on(self, upstream: http.client.HTTPConnection, body: Iterable[bytes]) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                upstream.putheader(name, value)
        upstream.endheaders()
        accepting = True  # a server that refuses a request may close before it has read the body
        for piece in body:
            if accepting:
                try:
                    upstream.send(piece)
                except (BrokenPipeError, ConnectionResetError):
                    accepting = False

    def _body(self, fault: Fault | None) -> Iterator[bytes]:
        """Yield the request's body in pieces, damaged if the fault says so."""
        flip = fault.bytes if fault is not None and fault.action == "damage_arrival" else None
        while self.unread:
            piece = self.rfile.read1(min(PIECE, self.unread))
            if not piece:
                raise _Cut
            self.unread -= len(piece)
            yield _flipped(piece, flip)
            flip = None if flip is None else flip - len(piece)

    def _drain(self) -> None:
        for _ in self._body(None):
            pass

    def _reset(self) -> None:
        """Make the end of the connection a reset (RST) instead of an orderly close."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise _Cut

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, request: Request, fault: Fault | None, response: http.client.HTTPResponse) -> None:
        length = response.getheader("content-length")
        whole = request.operation in READ_WHOLE or (length is None and self.command != "HEAD")
        data = response.read() if whole else b""
        if response.status < 300:
            self.server.rules.note(request.operation, request.query, request.headers, data)
        if fault is not None and fault.action == "lose_answer":
            self._reset()
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = str(len(data)) if whole else length
        if length is not None and response.status not in {204, 304}:
            self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self._send([data] if whole else iter(lambda: response.read(PIECE), b""), fault)

    def _send(self, pieces: Iterable[bytes], fault: Fault | None) -> None:
        cut = fault.bytes if fault is not None and fault.action == "cut" else None
        flip = fault.bytes if fault is not None and fault.action == "damage_read" else None
        for piece in pieces:
            self.wfile.write(_flipped(piece[:cut], flip))
            if cut is not None and cut <= len(piece):
                raise _Cut
            cut = None if cut is None else cut - len(piece)
            flip = None if flip is None else flip - len(piece)

    def _refuse(self, status: int, code: str, text: str) -> None:
        self._drain()
        data = f"<Error><Code>{code}</Code><Message>{escape(text)}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _flipped(piece: bytes, offset: int | None) -> bytes:
    """Return the bytes with the lowest bit at an offset flipped, if the offset lies within them."""
    if offset is None or not 0 <= offset < len(piece):
        return piece
    return piece[:offset] + bytes([piece[offset] ^ 1]) + piece[offset + 1 :]
