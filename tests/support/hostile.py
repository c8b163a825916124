"""Documents that somebody outside could hand us, and a server that answers every request with the one that was set."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

NESTED = b"[" * 1000  # the row of the review: Python's own reader raises RecursionError, which is no ValueError
BOMB = gzip.compress(bytes(400 * 1024 * 1024), 9)  # 398 KB
POISONS = [
    NESTED,
    b"[" * 1000 + b"]" * 1000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b"1e999",
    b'{"version": NaN, "status": "healthy"}',
    b"9" * 5000,
    b'{"pid": ' + b"9" * 32 + b"}",
    b'{"status": "healthy", "version": "\\ud800"}',
    b'{"a": 1, "a": 2}',
    b"\xff\xfe[\x00",
    b"",
    b"null",
    b"[]",
    b"[[]]",
    b'[{"event": "begin"}]',
    b'{"message": {}}',
    b'{"lock": 5, "now": 7}',
    b'{"now": "9999-12-31T23:59:59Z", "lock_seconds": 1e308, "lock": {"owner": "x", "seconds": 1e308}}',
    b'{"configs": [{"route_config": {"name": "routes", "virtual_hosts": []}}], "stats": [{}], "certificates": [1]}',
    b'{"configs": 1, "stats": [{"name": 1, "value": "x"}], "certificates": 2, "cluster_statuses": [{"name": []}]}',
    b'{"dependencies": [], "scripts": 3, "prisma": [], "name": {}}',
]
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("9999-12-31T23:59:59Z")
_NAMES = st.text(max_size=3) | st.sampled_from(["status", "version", "deployment_id", "lock", "now", "name", "stats", "message", "result"])
VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=8)
DOCUMENTS: st.SearchStrategy[bytes] = (
    st.sampled_from(POISONS) | VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)
)  # fmt: skip
FEW = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def hostile(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with every poison as its ``document``, and with some random ones."""
    for poison in POISONS:
        test = example(document=poison)(test)
    return FEW(given(document=DOCUMENTS)(test))


class Answering:
    """``body``, ``status``, ``encoding`` and further ``headers`` of the next answers; ``port``; ``requests``: their paths.

    ``drip``: seconds before each byte of the body.
    """

    def __init__(self) -> None:
        self.body, self.status, self.encoding = b"", 200, ""
        self.headers: dict[str, str] = {}
        self.drip = 0.0
        self.requests: list[str] = []
        answers = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                answers.requests.append(self.path)
                self.send_response(answers.status)
                self.send_header("content-type", "application/json")
                if answers.encoding:
                    self.send_header("content-encoding", answers.encoding)
                for name, value in answers.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answers.body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # whoever asked has gone
                    for byte in answers.body if answers.drip else ():
                        time.sleep(answers.drip)
                        self.wfile.write(bytes([byte]))
                    self.wfile.write(b"" if answers.drip else answers.body)

            do_GET = do_POST = _answer  # noqa: N815 - names of http.server

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port

    def reset(self, body: bytes, *, status: int = 200, encoding: str = "", headers: dict[str, str] | None = None, drip: float = 0.0) -> Any:
        self.body, self.status, self.encoding, self.headers, self.drip = body, status, encoding, headers or {}, drip
        self.requests.clear()
        return self


@contextmanager
def answering() -> Iterator[Answering]:
    answers = Answering()
    threading.Thread(target=answers.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield answers
    finally:
        answers.server.shutdown()
        answers.server.server_close()
