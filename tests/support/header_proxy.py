"""A proxy in front of the edge that hides from each side the headers that it does not know; it lets synthetic requests through."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from azora_ci.health.answers import RELEASE_HEADER


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # synthetic requests come many at once


class HeaderProxy:
    """``with HeaderProxy(port, behind):`` answers at a port of this machine with what another port answers."""

    def __init__(self, port: int, behind: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = {name: value for name, value in self.headers.items() if name.lower() == RELEASE_HEADER}
                try:
                    request = urllib.request.Request(f"http://127.0.0.1:{behind}{self.path}", headers=known)
                    answer = urllib.request.urlopen(request, timeout=30)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    body = answer.read()
                self.send_response(answer.status)
                self.send_header("content-type", answer.headers.get("content-type", ""))
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", port), Handler)

    def __enter__(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
