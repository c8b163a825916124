"""A real Envoy in front of small servers that keep the requests they got: what the edge makes of requests, without a rollout around it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock
from azora_ci.targets.envoy import edge as edges
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.envoy.state import EdgeRelease, EdgeService, command
from tests.support.edge_world import ENVOY, NEW, OLD, free_ports
from tests.support.waiting import until


class Backend:
    """An instance of a version: answers its version and the request's headers, and remembers every request it worked on."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.open: set[socket.socket] = set()
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                backend.open.add(self.connection)

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                backend.requests.append((self.command, self.path))
                backend.answer(self)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 512

            def handle_error(self, *_: object) -> None:
                pass  # a client that hangs up is no news

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request; another server may do something else."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = json.dumps({"version": self.version, "address": self.address, "headers": headers}).encode()
        request.send_response(200)
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def die(self) -> None:
        """Close everything, as a killed process would."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Give an address at which nobody answers, not even with a refusal: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as waiting:
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusing() -> str:
    """Return an address at which connections are refused."""
    return f"127.0.0.1:{free_ports(1)[0]}"


class Lab:
    """An Envoy with one service at ``/``; ``put`` says which addresses the old and the new version have."""

    def __init__(self, folder: Path, **service: Any) -> None:
        (self.port,) = free_ports(1)
        self.service = replace(EdgeService("api", "/", 15), **service)
        bootstrap = edges.install(folder, listen=f"127.0.0.1:{self.port}", services=(self.service,))
        self.edge = Edge(folder, Clock())
        self._log = folder / "envoy.log"
        with self._log.open("ab") as log:
            self._envoy = subprocess.Popen(command(bootstrap, binary=ENVOY), stdout=log, stderr=log)
        until(self._listens, "Envoy listens")

    def _listens(self) -> bool:
        assert self._envoy.poll() is None, self._log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def put(self, old: list[str], new: list[str] | None, percent: int = 0, **changes: Any) -> None:
        """Have the old version at these addresses and the new one at those, with that share."""
        state = replace(self.edge.state(), services=(self.service,), **changes)
        state = state.with_release(EdgeRelease(OLD, "v1.0.0", {"api": tuple(old)}))
        if new is not None:
            state = state.with_release(EdgeRelease(NEW, "v1.1.0", {"api": tuple(new)}))
        self.edge.apply(state)
        self.edge.apply(replace(state, stable=OLD, canary=NEW if new is not None else None, percent=percent))

    def weigh(self, percent: int) -> None:
        """Change the share."""
        self.edge.apply(replace(self.edge.state(), percent=percent))

    def abort(self) -> None:
        """Have the old version only."""
        self.edge.apply(replace(self.edge.state(), canary=None, percent=0))

    def failed_share(self, release_id: str) -> float:
        """Return what share of a release's requests the edge counts as failed."""
        return self.edge.counters(self.edge.state())["api", release_id].failed_share

    def close(self) -> None:
        self._envoy.kill()
        self._envoy.wait()


def send(port: int, number: int, method: str = "GET", *, threads: int = 4, headers: dict[str, str] | None = None) -> Counter[str]:
    """Send requests over kept connections and return how many each version answered; other answers are counted by their status."""
    answers: Counter[str] = Counter()
    lock = threading.Lock()

    def work(share: int, thread: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        own_answers: Counter[str] = Counter()
        for count in range(share):
            connection.request(method, f"/{thread}/{count}", b"x" if method == "POST" else None, headers or {})
            response = connection.getresponse()
            body = response.read()
            own_answers[json.loads(body)["version"] if response.status == 200 else f"HTTP {response.status}"] += 1
        connection.close()
        with lock:
            answers.update(own_answers)

    workers = [threading.Thread(target=work, args=(number // threads, index)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return answers
