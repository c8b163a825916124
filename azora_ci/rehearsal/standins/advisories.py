"""A server of a package registry's audit endpoints, for rehearsals and tests. It answers from a JSON file, read at each request.

The file's keys, all optional:

- ``advisories``: ``{"<package>": [{"id", "url", "title", "severity", "vulnerable_versions"}]}``, as the registry answers them; an
  advisory is given whatever versions are asked about, so that a client has to compare versions itself
- ``answers``: ``[{"status", "body", "times"}]``: each replaces ``times`` answers (default 1)

``POST /-/npm/v1/security/advisories/bulk`` takes ``{"<package>": ["<version>", …]}``, gzip compressed or not. The older endpoints
``audits`` and ``audits/quick`` answer 410: the public registry retired them in 2026, which ended ``yarn audit`` of Yarn 1 and
``pnpm audit`` of pnpm 10 and older.
"""

from __future__ import annotations

import argparse
import gzip
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

BULK = "/-/npm/v1/security/advisories/bulk"
RETIRED = ("/-/npm/v1/security/audits", "/-/npm/v1/security/audits/quick")


class AdvisoryServer:
    """The server, a context manager. ``url``: its address; ``asked``: the bodies of all requests, by path."""

    def __init__(self, state: Path, *, port: int = 0) -> None:
        self.state = state
        self.asked: list[tuple[str, Any]] = []
        self._replaced: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> AdvisoryServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Serve until interrupted."""
        self._server.serve_forever()

    def write(self, **state: Any) -> None:
        """Replace the answers by one rename."""
        part = self.state.with_suffix(".part")
        part.write_text(json.dumps(state), encoding="utf-8")
        part.replace(self.state)

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a request."""
        state = json.loads(self.state.read_text(encoding="utf-8"))
        question = json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body or b"{}")
        with self._lock:
            self.asked.append((path, question))
            for number, answer in enumerate(state.get("answers", [])):
                if self._replaced[number] < answer.get("times", 1):
                    self._replaced[number] += 1
                    text = answer.get("body", {"error": "told to answer this"})
                    return answer["status"], text.encode() if isinstance(text, str) else json.dumps(text).encode()
        if path in RETIRED:
            return 410, b'{"error":"This endpoint is being retired. Use the bulk advisory endpoint instead."}'
        if path != BULK:
            return 404, b'{"error":"not found"}'
        advisories = state.get("advisories", {})
        return 200, json.dumps({name: advisories[name] for name in question if name in advisories}).encode()


def _handler(server: AdvisoryServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "advisories-stand-in"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = server.answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
            """Stay silent: the requests are kept in ``AdvisoryServer.asked``."""

    return Handler


def main() -> None:
    """Serve a state file: ``python -m azora_ci.rehearsal.standins.advisories STATE --port N``."""
    parser = argparse.ArgumentParser(description="Stand-in of a package registry's audit endpoints")
    parser.add_argument("state", type=Path, help="JSON file with the answers")
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 lets the kernel choose")
    arguments = parser.parse_args()
    server = AdvisoryServer(arguments.state, port=arguments.port)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
