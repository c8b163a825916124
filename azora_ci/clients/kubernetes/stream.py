"""One connection to a port of a pod: a WebSocket to the API server, which passes it on to the kubelet.

Subprotocol ``v4.channel.k8s.io``: the first byte of each message names its channel (wsstream in k8s.io/apimachinery), and the first
message of each channel is the port number (pkg/cri/streaming/portforward in k8s.io/kubelet). Frames: RFC 6455. Nobody can close one
direction only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import select
import socket
import ssl
import struct
from typing import Self

from azora_ci.clients.kubernetes.api import Api, bearer
from azora_ci.core.errors import UnreachableError

PROTOCOL = "v4.channel.k8s.io"
DATA, ERROR = 0, 1  # channels of the only port
CONTINUATION, BINARY, CLOSE, PING, PONG = 0x0, 0x2, 0x8, 0x9, 0xA
CONTROL = frozenset({CLOSE, PING, PONG})
FINAL, RESERVED, OPCODE = 0x80, 0x70, 0x0F  # bits of a frame's first byte
LARGEST_CONTROL = 125  # bytes; RFC 6455, 5.5
HANDSHAKE_SECONDS = 15.0
PING_SECONDS = 20.0  # of silence; gateways in front of API servers end connections that are silent for 60 s or more
KEEPALIVE_SECONDS = 20
DEAD_SECONDS = 60  # until the kernel gives up a peer that acknowledges nothing
CHUNK = 32 * 1024
FULL = 1024 * 1024  # bytes that wait for a slow reader, in each direction; then TCP lets the other side wait
LARGEST = 16 * 1024 * 1024  # bytes of a frame; servers send 32 KiB
HEAD = 64 * 1024  # bytes of an answer that is no WebSocket
REASON = 64 * 1024  # bytes kept of what the node says of a connection
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class Stream:
    """A connection, as a context manager. Raises the errors of ``Api.get`` when it is made."""

    def __init__(self, api: Api, namespace: str, pod: str, port: int) -> None:
        self.pod = pod
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
        self._received = bytearray()  # of frames that are not complete
        self._sent = bytearray()  # frames that are not sent yet
        self._pong: bytes | None = None  # what the last PING asks for
        self._continues = False  # whether the last frame's message does
        self._channel: int | None = None  # of that message; None while its first byte is still to come
        self._preambles = {DATA: 2, ERROR: 2}  # bytes of the port number that are still to come
        self._error = bytearray()  # what the node says of the connection
        self._ended = False
        self._socket = self._open(api, port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def join(self, client: socket.socket) -> bool:
        """Copy between the pod and a client until one of them closes; return whether it was the client.

        Raises ConnectionError, with a reason, when the way between breaks.
        One thread does it all: a TLS connection may not be used by two at once.
        """
        client.setblocking(False)
        self._socket.setblocking(False)
        arrived = bytearray()  # for the client
        leaving = False
        while arrived or self._sent or not (leaving or self._ended):
            for end, events in self._wait(client, arrived, leaving=leaving):
                if end is client and events & ~select.POLLOUT and not leaving:
                    leaving = not self._take(client)
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._flush()
            if len(arrived) < FULL and not self._ended:
                self._receive(arrived)
            try:
                if arrived:
                    del arrived[: client.send(arrived)]
            except BlockingIOError:
                pass
            except OSError:  # the client is gone, and wants nothing more
                return True
        if self._error and not leaving:
            raise ConnectionResetError(self._error[:500].decode("utf-8", "replace"))
        return leaving

    # --- between the two -----------------------------------------------------------------------------------------------

    def _wait(self, client: socket.socket, arrived: bytearray, *, leaving: bool) -> list[tuple[object, int]]:
        """Wait until something can be done; return what happened at which end."""
        poll, ends = select.poll(), {client.fileno(): client, self._socket.fileno(): self._socket}
        reads_client = not leaving and not self._ended and len(self._sent) < FULL
        wanted = (select.POLLIN if reads_client else 0) | (select.POLLOUT if arrived else 0)
        if wanted:
            poll.register(client, wanted)
        wanted = (select.POLLIN if len(arrived) < FULL and not self._ended else 0) | (
            select.POLLOUT if self._sent or self._pong is not None else 0
        )
        if wanted:
            poll.register(self._socket, wanted)
        buffered = len(arrived) < FULL and not self._ended and self._socket.pending()
        happened = poll.poll(0 if buffered else PING_SECONDS * 1000)
        if not happened and not buffered and not self._ended:
            self._send(PING, b"")
        return [(ends[descriptor], events) for descriptor, events in happened]

    def _take(self, client: socket.socket) -> bool:
        """Read what a client sends; return False when it has closed, and nothing more will come."""
        try:
            data = client.recv(CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._send(BINARY, bytes((DATA,)) + data) if data else self._send(CLOSE, struct.pack("!H", 1000))
        return bool(data)

    def _send(self, opcode: int, payload: bytes) -> None:
        """Have a frame sent, masked as those of clients are."""
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size <= 0xFFFF:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        mask = os.urandom(4)
        pattern = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        self._sent += head + mask + (int.from_bytes(payload, "big") ^ pattern).to_bytes(size, "big")

    def _flush(self) -> None:
        # RFC 6455, 5.5.3: of several PINGs the last one may be answered alone. Not to read while others wait would stop both directions.
        if self._pong is not None and len(self._sent) < FULL:
            self._send(PONG, self._pong)
            self._pong = None
        while self._sent:
            try:
                del self._sent[: self._socket.send(self._sent[:CHUNK])]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                raise ConnectionResetError(f"the API server takes nothing more: {error}") from error

    def _receive(self, arrived: bytearray) -> None:
        """Read what the API server sends; data of the pod goes to ``arrived``. Raises ConnectionError where it ends without a word."""
        try:
            data = self._socket.recv(CHUNK)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise ConnectionResetError(f"the connection to the API server broke: {error}") from error
        if not data:
            raise ConnectionResetError("the API server ended the connection: it, a gateway before it or the node went away")
        self._received += data
        self._parse(arrived)

    def _parse(self, arrived: bytearray) -> None:
        while not self._ended and (frame := self._frame()) is not None:
            first, payload = frame
            opcode = first & OPCODE
            if opcode == PING:
                self._pong = payload
            elif opcode == CLOSE:
                self._ended = True
            elif opcode != PONG:
                self._take_part(first, payload, arrived)

    def _take_part(self, first: int, payload: bytes, arrived: bytearray) -> None:
        """Take a frame of a message, whose first byte, in whichever frame it comes, names the channel."""
        if (first & OPCODE == CONTINUATION) != self._continues:
            raise ConnectionResetError(
                "what the API server sends is no WebSocket: a message begins inside another, or goes on after its end"
            )
        if not self._continues:
            self._channel = None
        self._continues = not first & FINAL
        if payload and self._channel is None:
            self._channel, payload = payload[0], payload[1:]
        if payload:
            self._sort(payload, arrived)

    def _sort(self, payload: bytes, arrived: bytearray) -> None:
        if self._channel not in self._preambles:
            raise ConnectionResetError(f"the API server sends on a channel {self._channel}, which nobody asked for")
        skipped = min(self._preambles[self._channel], len(payload))
        self._preambles[self._channel] -= skipped
        if self._channel == DATA:
            arrived += payload[skipped:]
        else:
            self._error += payload[skipped : skipped + REASON - len(self._error)]

    def _frame(self) -> tuple[int, bytes] | None:
        """Return the next complete frame's first byte and content, None where it has not arrived."""
        buffer = self._received
        if len(buffer) < 2:
            return None
        self._require_known(buffer[0], buffer[1])
        size, start = buffer[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if buffer[1] & 0x80 or size > LARGEST:
            raise ConnectionResetError("what the API server sends is no WebSocket")
        if len(buffer) < start + size:
            return None
        frame = buffer[0], bytes(buffer[start : start + size])
        del buffer[: start + size]
        return frame

    @staticmethod
    def _require_known(first: int, second: int) -> None:
        """Raise ConnectionError for a frame that nobody may send, or that nobody asked for: texts, extensions."""
        opcode = first & OPCODE
        known = opcode in {CONTINUATION, BINARY} or (opcode in CONTROL and first & FINAL and second & 0x7F <= LARGEST_CONTROL)
        if first & RESERVED or not known:
            raise ConnectionResetError(f"what the API server sends is no WebSocket of {PROTOCOL}: a frame that begins with {first:#04x}")

    # --- opening -------------------------------------------------------------------------------------------------------

    def _open(self, api: Api, port: int) -> ssl.SSLSocket:
        token = api.credentials.token()
        opened, status, body = self._shake_hands(api, port, token)
        if status == 401 and api.credentials.refused(token):
            opened.close()
            opened, status, body = self._shake_hands(api, port, api.credentials.token())
        if status == 101:
            self._received += body
            return opened
        opened.close()
        api.document("GET", self._path, status, body)  # raises for every status of an error
        raise self._unreachable(api, f"HTTP {status} where a WebSocket was asked for")

    def _shake_hands(self, api: Api, port: int, token: str | None) -> tuple[ssl.SSLSocket, int, bytes]:
        """Return the connection, the status of the answer, and what came after its head. Raises UnreachableError."""
        key = base64.b64encode(os.urandom(16)).decode()
        headers = {"Host": api.host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        headers |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Protocol": PROTOCOL, **bearer(token)}
        head = f"GET {api.base_path}{self._path}?ports={port} HTTP/1.1\r\n" + "".join(
            f"{name}: {text}\r\n" for name, text in headers.items()
        )
        try:
            opened = api.dial("", 0, HANDSHAKE_SECONDS)
            try:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_SECONDS * 1000)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.sendall(f"{head}\r\n".encode())
                status, fields, body = _read_head(opened)
            except BaseException:
                opened.close()
                raise
        except OSError as error:
            raise self._unreachable(api, f"{type(error).__name__}: {error}") from error
        expected = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()  # noqa: S324 - RFC 6455 demands it
        if status == 101 and (fields.get("sec-websocket-accept"), fields.get("sec-websocket-protocol")) != (expected, PROTOCOL):
            opened.close()
            raise self._unreachable(api, "what answers is no API server: it speaks another protocol")
        return opened, status, body

    def _unreachable(self, api: Api, what: str) -> UnreachableError:
        return UnreachableError(
            "No connection through the API server",
            what=what,
            where=f"{self._path} of {api.host}",
            next_step="check that gateways in front of the API server let WebSockets pass, and the pod's node",
        )


def _read_head(opened: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return an answer's status, its headers with names in lower case, and what follows: all of it where it is an error. Raises OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = opened.recv(CHUNK)
        if not more or len(data) > HEAD:
            raise ConnectionResetError("the connection was closed without an answer" if not more else "the answer has no end")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    try:
        status = int(first.split(" ", 2)[1])
    except (IndexError, ValueError):
        raise ConnectionResetError(f"the answer is not HTTP: {first[:100]!r}") from None
    fields = {name.strip().lower(): text.strip() for name, _, text in (line.partition(":") for line in rest)}
    length = fields.get("content-length", "")
    while status != 101 and length.isdigit() and len(body) < min(int(length), HEAD) and (more := opened.recv(CHUNK)):
        body += more
    return status, fields, body
