"""Frames of a WebSocket as a server of ill will sends them, over a real pair of sockets; real servers: ``test_forward``."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from azora_ci.clients.kubernetes import stream

PORTS = struct.pack("<H", 5432)
KIB, MIB = 1024, 1024 * 1024


def frame(opcode: int, payload: bytes = b"", first: int = stream.FINAL) -> bytes:
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", first | opcode, size) + payload
    return (
        struct.pack("!BBH", first | opcode, 126, size) + payload
        if size <= 0xFFFF
        else struct.pack("!BBQ", first | opcode, 127, size) + payload
    )


def payloads(buffer: bytearray) -> list[bytes]:
    """Return what a client's complete frames hold, and take them out of ``buffer``; none is longer than 64 KiB."""
    taken = []
    while len(buffer) >= 8:
        start = 2 if buffer[1] & 0x7F < 126 else 4
        size = buffer[1] & 0x7F if start == 2 else int.from_bytes(buffer[2:4], "big")
        if len(buffer) < start + 4 + size:
            break
        mask = bytes(buffer[start : start + 4]) * (size // 4 + 1)
        plain = int.from_bytes(buffer[start + 4 : start + 4 + size], "big") ^ int.from_bytes(mask[:size], "big")
        taken.append(plain.to_bytes(size, "big"))
        del buffer[: start + 4 + size]
    return taken


class Wire(socket.socket):
    """A socket that says as one with TLS does when it would block, and holds nothing back."""

    def pending(self) -> int:
        return 0

    def recv(self, *arguments: Any) -> bytes:
        try:
            return super().recv(*arguments)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None

    def send(self, *arguments: Any) -> int:
        try:
            return super().send(*arguments)
        except BlockingIOError:
            raise ssl.SSLWantWriteError from None


class Peer:
    """An API server's end, and a client's end of a stream that a thread joins. ``outcome``: what ``join`` returned or raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, ours = socket.socketpair()
        wire = Wire(fileno=ours.detach())
        monkeypatch.setattr(stream.Stream, "_open", lambda *_: wire)
        self.stream = stream.Stream(None, "n", "p", 5432)  # type: ignore[arg-type] # nobody asks an API server here
        self.client, self._theirs = socket.socketpair()
        for end in (self.server, self.client):
            end.settimeout(10)
        self.outcome: list[Any] = []
        self._thread = threading.Thread(target=self._join, daemon=True)
        self._thread.start()
        self.server.sendall(frame(stream.BINARY, b"\0" + PORTS) + frame(stream.BINARY, b"\1" + PORTS))

    def _join(self) -> None:
        with self._theirs, self.stream:
            try:
                self.outcome.append(self.stream.join(self._theirs))
            except ConnectionError as error:
                self.outcome.append(error)

    def end(self) -> Any:
        """Return the outcome, once it is there."""
        self._thread.join(10)
        return self.outcome[0]

    def close(self) -> None:
        self.server.close()
        self.client.close()
        self._thread.join(10)

    def everything(self) -> bytes:
        data = b""
        while more := self.client.recv(MIB):
            data += more
        return data


@pytest.fixture
def peer(monkeypatch) -> Iterator[Peer]:
    made = Peer(monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize(
    "sent",
    [
        frame(0x1, b"\0a text"),
        frame(0x3, b"\0of no kind"),
        frame(stream.BINARY, b"\0compressed", first=stream.FINAL | 0x40),
        frame(stream.PING, b"x" * 126),
        frame(stream.PING, b"in two parts", first=0),
        frame(0xB),
        frame(stream.CONTINUATION, b"\0of nothing"),
        frame(stream.BINARY, b"\0one", first=0) + frame(stream.BINARY, b"\0inside another"),
    ],
)
def test_what_no_server_may_send_ends_the_connection(peer, sent):
    peer.server.sendall(sent)
    assert "what the API server sends is no WebSocket" in str(peer.end())


def test_the_channel_is_named_by_the_first_byte_in_whichever_frame_it_comes(peer):
    parts = [frame(stream.BINARY, b"", first=0), frame(stream.PING), frame(stream.CONTINUATION, b"", first=0)]
    parts += [frame(stream.CONTINUATION, b"\0", first=0), frame(stream.CONTINUATION, b"wor", first=0), frame(stream.CONTINUATION, b"ld")]
    peer.server.sendall(frame(stream.BINARY, b"\0hello ") + frame(stream.BINARY) + b"".join(parts) + frame(stream.CLOSE))
    assert peer.everything() == b"hello world"
    assert peer.end() is False


def test_nothing_is_taken_after_the_end(peer):
    peer.server.sendall(frame(stream.BINARY, b"\0before") + frame(stream.CLOSE) + frame(stream.BINARY, b"\0after") + frame(0x1))
    assert peer.everything() == b"before"
    assert peer.end() is False


def test_a_node_that_complains_without_end_fills_no_memory(peer):
    for number in range(64):
        peer.server.sendall(frame(stream.BINARY, b"\1" + f"complaint {number} ".encode() + b"x" * 32 * KIB))
    peer.server.sendall(frame(stream.CLOSE))
    assert str(peer.end()).startswith("complaint 0 xxx")
    assert len(peer.stream._error) == stream.REASON


def test_pings_without_end_fill_no_memory_and_the_last_one_is_answered(peer):
    payload = b"p" * 120
    for _ in range(32 * 1024):  # 4 MiB, while nobody reads the answers
        peer.server.sendall(frame(stream.PING, payload))
    assert len(peer.stream._sent) <= stream.FULL + KIB
    peer.server.sendall(frame(stream.PING, b"the last"))
    received = bytearray()
    answers: list[bytes] = []
    while b"the last" not in answers:
        received += peer.server.recv(MIB)
        answers += payloads(received)
    assert len(answers) * len(frame(stream.PONG, payload)) < 2 * MIB


def test_a_client_that_sends_much_to_an_echo_is_not_stuck(peer):
    """Both directions are full at once: nobody may wait for the other one."""
    data = bytes(range(256)) * (32 * KIB)  # 8 MiB

    def echo() -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError):  # the test is over
            while more := peer.server.recv(256 * KIB):
                buffer += more
                for payload in payloads(buffer):
                    peer.server.sendall(frame(stream.BINARY, payload))

    threading.Thread(target=echo, daemon=True).start()
    threading.Thread(target=peer.client.sendall, args=(data,), daemon=True).start()
    received = bytearray()
    while len(received) < len(data):
        received += peer.client.recv(MIB)
    assert received == data
