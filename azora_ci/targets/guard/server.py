"""The guard: on every production host, the only writer of the edge's routes. Standard library only: it runs in a container.

It listens on a Unix socket, which root and the group of the host's Docker socket may use (0660), and on no port. What a request may
change, and until when, is decided in ``lease.py``.

HTTP API, JSON in and out, no number above ``LARGEST``; 409 (not allowed) and 507 (disk full) give the reason in ``error``; ``back`` lets
a request use the reserve::

    GET  /status                                               lock, lease, current generation, free bytes, last journal entries
    GET  /files                                                files of the current generation, name -> text
    GET  /journal                                              all events that runners noted, oldest first
    POST /lock     {owner, run_url, deployment_id, fence, reason}     -> {token, number, lease_seconds}
    POST /renew    {token}                                     -> {lock_seconds, lease_seconds}
    POST /apply    {token, generation, files, hold, back, event}     switch to a generation; ``hold`` starts the lease
    POST /note     {token, event, back}                        add a runner's event to the journal
    POST /promote  {token, event}                              the new version stays; ends the lease
    POST /abort    {token, reason, event}                      old routes back; ends the lease
    POST /unlock   {token, reason}
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from .lease import LEASE_SECONDS, Guard, RefusedError  # relative: in its container the guard is a package of its own
from .store import FullError

BODY_LIMIT = 16 * 1024 * 1024  # bytes of a request
LEASE_LIMITS = 0.1, 3600.0  # seconds: of the option --lease-seconds
LARGEST = 1e15  # of a number in a request, in absolute value: bytes, milliseconds and counts are smaller
SOCKET_MASK = 0o117  # leaves mode 0660
_LENGTH = re.compile(r"[0-9]{1,10}")  # a Content-Length


def read_request(data: bytes) -> dict[str, Any]:
    """Return the object of a request. Raises TypeError for another value, ValueError for no JSON and numbers above ``LARGEST``."""

    def number(kind: Callable[[str], float]) -> Callable[[str], float]:
        def read(text: str) -> float:
            value = kind(text)
            if not abs(value) <= LARGEST:  # false for NaN, too
                raise ValueError(f"the number {text[:30]} is too large")
            return value

        return read

    try:
        request = json.loads(data, parse_int=number(int), parse_float=number(float), parse_constant=number(float))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(request, dict):
        raise TypeError("a request is an object")
    return request


def handler(guard: Guard) -> type[BaseHTTPRequestHandler]:
    """Return the request handler of a guard."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            resources: dict[str, Callable[[], Any]] = {"/status": guard.status, "/journal": guard.events, "/files": guard.files}
            if self.path not in resources:
                self._answer(404, {"error": "no such resource"})
                return
            try:
                self._answer(200, resources[self.path]())
            except FullError as error:  # putting the old routes back was tried and finds no room yet
                self._answer(507, {"error": str(error)})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            action = self.path.strip("/")
            is_action = action in {"lock", "renew", "apply", "note", "promote", "abort", "unlock"}
            if not is_action or not _LENGTH.fullmatch(length) or int(length) > BODY_LIMIT:
                self.close_connection = True
                self._answer(404, {"error": "no such action, or a body that is too large or of unknown length"})
                return
            try:
                request = read_request(self.rfile.read(int(length)))
                self._answer(200, getattr(guard, action)(request))
            except RefusedError as error:
                self._answer(409, {"error": str(error)})
            except FullError as error:
                self._answer(507, {"error": str(error)})
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                self._answer(400, {"error": f"{type(error).__name__}: {error}"})

        def _answer(self, status: int, document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: Any) -> None:
            """Log no requests; the journal is the log."""

    return Handler


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """HTTP on a Unix socket of mode 0660 and this process's group. Raises PermissionError for a folder in which others may write."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, handler_class: type[BaseHTTPRequestHandler]) -> None:
        folder = path.parent.stat()
        if folder.st_uid != os.geteuid() or folder.st_mode & 0o022:
            raise PermissionError(f"others may write in {path.parent}: whoever replaces the socket there would be taken for the guard")
        path.unlink(missing_ok=True)  # of a guard that ran before
        before = os.umask(SOCKET_MASK)
        try:
            super().__init__(str(path), handler_class)
        finally:
            os.umask(before)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="Guard of one edge: the only writer of its routes.")
    parser.add_argument("--folder", type=Path, required=True, help="the volume that Envoy reads its files from")
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to listen on")
    parser.add_argument("--lease-seconds", type=float, default=LEASE_SECONDS)
    arguments = parser.parse_args()
    if not LEASE_LIMITS[0] <= arguments.lease_seconds <= LEASE_LIMITS[1]:
        parser.error("--lease-seconds: {} to {}".format(*LEASE_LIMITS))
    guard = Guard(arguments.folder, lease_seconds=arguments.lease_seconds)
    server = UnixServer(arguments.socket, handler(guard))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"guard of {arguments.folder} listens on {arguments.socket}", flush=True)
    while not stop.wait(0.1):
        try:
            guard.check()
        except (OSError, FullError) as error:  # check() runs again soon: a guard that ended would protect nothing
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
