"""Requests with a body: slow ones hold no instance, too large ones are refused; those of a service of streams pass as they are sent."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.targets.envoy.routes import MAX_BODY
from tests.support.edge_lab import Backend, Lab
from tests.support.waiting import until

BUFFERED, STREAMED = 15, 0  # timeout_seconds


@pytest.fixture
def backend() -> Iterator[Backend]:
    instance = Backend("1.0.0")
    yield instance
    instance.die()


@pytest.fixture
def lab(tmp_path: Path, backend: Backend, request: pytest.FixtureRequest) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path, timeout_seconds=request.param)
    try:
        edge_lab.put([backend.address], None)
        yield edge_lab
    finally:
        edge_lab.close()


def post(port: int, size: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.suppress(OSError):  # refused before the end
        connection.request("POST", "/", iter([bytes(1024**2)] * (size // 1024**2)), {"content-length": str(size)})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("lab", [BUFFERED, STREAMED], indirect=True)
def test_a_body_that_comes_slowly_holds_no_instance(lab, backend):
    with socket.create_connection(("127.0.0.1", lab.port), timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: edge\r\ncontent-length: 10\r\n\r\n12345")
        if lab.service.timeout_seconds == STREAMED:
            until(lambda: backend.open, "the instance has it already")
        else:
            time.sleep(0.5)
            assert not backend.open
        client.sendall(b"67890")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    assert backend.requests == [("POST", "/")]


@pytest.mark.parametrize(("lab", "status"), [(BUFFERED, 413), (STREAMED, 200)], indirect=["lab"])
def test_a_body_is_as_large_as_it_may_be(lab, status):
    assert post(lab.port, MAX_BODY) == 200
    assert post(lab.port, MAX_BODY + 1024**2) == status
