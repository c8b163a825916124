"""A port on loopback that leads to a port of a pod, through the API server: ``pods/portforward``.

Each connection to the port is a WebSocket of its own (``stream``). So there is nothing to open again: the next connection finds its pod
anew, and one that breaks takes no other with it. ``kubectl port-forward`` sends all connections through one stream, ends when its pod
does, and must be on the runner; the official Python client keeps in memory what its reader has not taken yet, where this one lets TCP wait.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

from azora_ci.clients.kubernetes.api import Api, NotFoundError
from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.clients.kubernetes.stream import Stream
from azora_ci.core.clock import Clock
from azora_ci.core.config.kubernetes import ForwardSettings
from azora_ci.core.errors import AzoraError, NotTrueError, UnreachableError

ATTEMPTS = 4  # of opening a connection, while the API server restarts or a node is unwell; waits 1, 2, 4 s between them


class Forward:
    """The port, as a context manager. ``port``: on loopback; ``broken``: why connections ended that nobody here had closed."""

    def __init__(self, api: Api, settings: ForwardSettings, clock: Clock, say: Callable[[str], None]) -> None:
        self._api, self._settings, self._clock, self._say = api, settings, clock, say
        self._listener: socket.socket | None = None
        self.port = 0
        self.broken: list[str] = []

    @property
    def place(self) -> str:
        """Return what it leads to, for messages."""
        kind = "service" if self._settings.service else "pod"
        return f"{kind} {self._settings.namespace}/{self._settings.service or self._settings.pod}, port {self._settings.port}"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), name="port-forward", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # or accept would hold the port
            self._listener.close()

    def dial(self) -> Stream:
        """Return a new connection to the pod. Raises NotFoundError, ForbiddenError, NotTrueError, UnreachableError."""
        for attempt in self._clock.attempts(ATTEMPTS):
            try:
                return Stream(self._api, self._settings.namespace, self._pod(), self._settings.port)
            except UnreachableError:
                if attempt.last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._serve, args=(client,), name="port-forward", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                with self.dial() as stream:
                    if not stream.join(client):
                        self._note(f"pod {stream.pod} closed it first: PostgreSQL ended the session, or the pod went away")
            except AzoraError as error:
                self._break(client, f"{error.title}: {error.what}")
            except OSError as error:
                self._break(client, str(error))

    def _break(self, client: socket.socket, problem: str) -> None:
        with contextlib.suppress(OSError):  # a reset: nobody shall take it for the end of what the pod had to say
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._note(problem)

    def _note(self, problem: str) -> None:
        self.broken.append(problem)
        self._say(f"a connection through {self.place} ended: {problem}")

    def _pod(self) -> str:
        """Return the pod: the given one, or the first ready one, by name, that the Service selects."""
        if self._settings.pod is not None:
            return self._settings.pod
        space = f"/api/v1/namespaces/{self._settings.namespace}"
        selector = member(self._api.get(f"{space}/services/{self._settings.service}"), "spec", "selector")
        if not selector:
            raise NotTrueError(
                "The database's Service selects no pods",
                what="it has no selector",
                where=self.place,
                next_step="name a Service with a selector or a pod: a port can be forwarded to pods only",
            )
        wanted = ",".join(f"{name}={value}" for name, value in sorted(selector.items()))
        pods = self._api.get(f"{space}/pods", labelSelector=wanted)["items"]
        ready = sorted(pod["metadata"]["name"] for pod in pods if _is_ready(pod))
        if not ready:
            raise NotFoundError(
                "No pod of the database is ready",
                what=f"{len(pods)} pods match {wanted}, of which none is ready",
                where=self.place,
                next_step="look at them (kubectl describe pod), and re-run the job",
            )
        return str(ready[0])


def _is_ready(pod: Document) -> bool:
    conditions = member(pod, "status", "conditions") or ()
    leaving = pod["metadata"].get("deletionTimestamp")
    return not leaving and any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
