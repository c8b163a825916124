"""An edge whose memory runs out: it refuses what would need more, goes on with the rest, and does not die."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from azora_ci.targets.docker_hosts.edge_containers import MEMORY
from azora_ci.targets.envoy import config
from tests.support.edge_lab import Backend, Lab
from tests.support.edge_world import NEW, OLD, get

MEBIBYTE = 1024**2
HEAP, UPLOADS, UPLOAD = 64 * MEBIBYTE, 40, 12 * MEBIBYTE


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(config, "MAX_HEAP", HEAP)
    old, new = Backend("1.0.0"), Backend("1.1.0")
    edge_lab = Lab(tmp_path)
    try:
        edge_lab.put([old.address], [new.address], 5)
        yield edge_lab
    finally:
        edge_lab.close()
        old.die()
        new.die()


def upload(port: int, pause: float, enough: threading.Event) -> None:
    """Begin a large request, send most of it a moment later, and wait with the rest."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: edge\r\ncontent-length: %d\r\n\r\n" % (UPLOAD + 1))
        enough.wait(0.5 + pause)
        connection.sendall(b"x" * UPLOAD)
        enough.wait(60)


def is_served(port: int) -> bool:
    with contextlib.suppress(OSError):
        return get(port, "/")[0] == 200
    return False


def test_uploads_beyond_the_memory_are_refused_and_all_else_goes_on(lab):
    process, most, enough = psutil.Process(lab._envoy.pid), 0, threading.Event()
    # One after the other, so that the first have sent what they send, and hold it.
    uploads = [threading.Thread(target=upload, args=(lab.port, number / 50, enough)) for number in range(UPLOADS)]
    for thread in uploads:
        thread.start()
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < 2.5 or (not is_served(lab.port) and time.monotonic() - begun < 20):
            most = max(most, process.memory_info().rss)
            lab.weigh(50)
        assert is_served(lab.port), "those that hold memory have gone"
        assert {OLD, NEW} == {release for _, release in lab.edge.counters(lab.edge.state())}
    finally:
        enough.set()
        for thread in uploads:
            thread.join()
    assert most < 4 * HEAP, f"{most / MEBIBYTE:.0f} MiB; all uploads have {UPLOADS * UPLOAD / MEBIBYTE:.0f}"


def test_the_heap_has_its_limit_well_below_the_container():
    assert MEMORY == "1g"
    assert 1.2 * config.MAX_HEAP < 1024 * MEBIBYTE
