"""The guard: on every production host, the only writer of the edge's routes. Standard library only: it runs in a container.

It listens on a Unix socket, which root and the group of the host's Docker socket may use (0660), and on no port.

A runner locks the host, gets a fencing token, and sends it with each change. The token is 128 random bits. The journal has only its
SHA-256, so that a guard that was killed still knows the token, and nobody who reads the journal does.

From the first weight until the promotion is journalled the runner holds a **lease**, which it must renew; when the lease runs out, the
guard puts the old routes back by itself. So a runner that dies, hangs or loses its network leaves production on the old version. A runner
that comes back late is refused: its token is superseded.

* Leases are timed by the monotonic clock of the guard: neither a jump of the host's clock nor the runner's clock moves them.
* A change is a *generation*: a folder of files. It takes effect by one rename of the symbolic link ``current``.
* The journal (``journal.jsonl``) is append-only and synced before a change is made, so a guard that was killed can continue: if a
  lease has not ended in the journal, the guard grants the runner one full lease to come back, then puts the old routes back.
* A weight rises only after the space for going back was reserved (``store.py``); on a full disk it is refused.

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
import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import socketserver
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from .store import FullError, Store  # relative: in its container the guard is a package of its own

STATUS_ENTRIES = 20  # journal entries shown by /status
BODY_LIMIT = 16 * 1024 * 1024  # bytes of a request
LEASE_SECONDS = 45.0  # default
LEASES_PER_LOCK = 2  # a lock that is not renewed ends after so many leases
LEASE_LIMITS = 0.1, 3600.0  # seconds: of the option --lease-seconds
TOKEN_BYTES = 16
LARGEST = 1e15  # of a number in a request, in absolute value: bytes, milliseconds and counts are smaller
SOCKET_MASK = 0o117  # leaves mode 0660
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
_LENGTH = re.compile(r"[0-9]{1,10}")  # a Content-Length


class RefusedError(Exception):
    """A request that is not allowed now; the text goes to the caller with status 409."""


class Guard:
    """Lock, lease and generations of one edge. ``monotonic`` returns seconds of a clock that never jumps."""

    def __init__(self, folder: Path, *, lease_seconds: float = LEASE_SECONDS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = Store(folder)
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._mutex = threading.RLock()
        self._lock: dict[str, Any] | None = None
        self._lock_until = 0.0
        self._safe_generation: str | None = None  # generation to return to while a lease is held
        self._lease_until = 0.0
        self._token_sha256 = ""  # of the lock's token; "" while there is none
        self._number = 0  # of locks so far
        self._sequence = 0
        self._entries: list[dict[str, Any]] = []
        self._read_journal()

    # --- requests of a runner --------------------------------------------------------------------------------------------

    def lock(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the lock, or raise RefusedError naming its holder. ``fence`` takes it from any holder, and needs a ``reason``.

        A rerun takes the lock from an earlier run of its deployment, but never from the rollback that fenced that run.
        """
        with self._mutex:
            self.check()
            holder = {name: str(request[name])[:500] for name in ("owner", "run_url", "deployment_id")}
            if request.get("fence") and not request.get("reason"):
                raise RefusedError("fencing needs a reason")
            fence = bool(request.get("fence"))
            if self._lock and not fence and (self._lock["fence"] or self._lock["deployment_id"] != holder["deployment_id"]):
                raise RefusedError(f"locked by {self._describe_holder()}")
            if self._safe_generation is not None:
                # Every new holder starts on the old routes, a rerun of the same deployment too.
                self._put_back(f"taken over by {holder['owner']}")
            lock: dict[str, Any] = {**holder, "seconds": LEASES_PER_LOCK * self._lease_seconds, "fence": fence}
            token, number = secrets.token_hex(TOKEN_BYTES), self._number + 1
            self._write("lock", number=number, token_sha256=_sha256(token), reason=request.get("reason"), **lock)
            self._token_sha256, self._number, self._lock = _sha256(token), number, lock
            self._lock_until = self._monotonic() + lock["seconds"]
            return {"token": token, "number": number, "lease_seconds": self._lease_seconds}

    def renew(self, request: dict[str, Any]) -> dict[str, Any]:
        """Extend lock and lease."""
        with self._mutex:
            self._require_token(request)
            assert self._lock is not None  # noqa: S101 - _require_token has checked it
            self._lock_until = self._monotonic() + self._lock["seconds"]
            if self._safe_generation is not None:
                self._lease_until = self._monotonic() + self._lease_seconds
            return self._remaining()

    def apply(self, request: dict[str, Any]) -> dict[str, Any]:
        """Switch to a generation of files by one rename. ``hold`` starts the lease, if none is held."""
        with self._mutex:
            self._require_token(request)
            generation, files = request["generation"], request["files"]
            if not _NAME.fullmatch(generation) or not all(_NAME.fullmatch(name) for name in files):
                raise RefusedError("names of generations and files are letters, digits, dots, dashes and underscores")
            if not all(isinstance(text, str) for text in files.values()):
                raise TypeError("a file is a text")
            hold, back = bool(request.get("hold")), bool(request.get("back"))
            self._write_generation(generation, files, back=back)
            current = self.current()
            self._write("apply", back=back, generation=generation, previous=current, hold=hold, event=request.get("event"))
            if hold and self._safe_generation is None:
                self._write("lease", back=False, safe=current)
                self._safe_generation = current
            if self._safe_generation is not None:
                self._lease_until = self._monotonic() + self._lease_seconds
            self._switch(generation)
            self._store.sweep({generation, self._safe_generation})
            return {"generation": generation, **self._remaining()}

    def note(self, request: dict[str, Any]) -> dict[str, Any]:
        """Add an event of the runner to the journal."""
        with self._mutex:
            self._require_token(request)
            self._write("note", back=bool(request.get("back")), event=request["event"])
            return {"sequence": self._sequence}

    def events(self) -> list[Any]:
        """Return all events that runners sent with any request, oldest first."""
        with self._mutex:
            return [entry["event"] for entry in self._store.entries() if entry.get("event") is not None]

    def files(self) -> dict[str, str]:
        """Return the files of the generation in force."""
        with self._mutex:
            return self._store.files(self.current())

    def promote(self, request: dict[str, Any]) -> dict[str, Any]:
        """Journal the promotion: from now on the new version stays, whatever happens to the runner."""
        with self._mutex:
            self._require_token(request)
            self._write("promote", back=False, generation=self.current(), event=request.get("event"))
            self._safe_generation = None
            return {"generation": self.current()}

    def abort(self, request: dict[str, Any]) -> dict[str, Any]:
        """Put the old routes back by one rename."""
        with self._mutex:
            self._require_token(request)
            if self._safe_generation is None:
                self._write("abort", generation=self.current(), reason=request.get("reason"), event=request.get("event"))
            else:
                self._put_back(str(request.get("reason", "asked for")), event=request.get("event"))
            return {"generation": self.current()}

    def unlock(self, request: dict[str, Any]) -> dict[str, Any]:
        """Release the lock. If a lease is still held, put the old routes back first."""
        with self._mutex:
            self._require_token(request)
            if self._safe_generation is not None:
                self._put_back("unlocked before the promotion")
            self._write("unlock", reason=request.get("reason"))
            self._end_lock()
            return {}

    def status(self) -> dict[str, Any]:
        """Return lock, lease, current generation and the last journal entries."""
        with self._mutex:
            self.check()
            return {
                "lock": {**self._lock, "number": self._number} if self._lock else None,
                **self._remaining(),
                "held": self._safe_generation is not None,
                "safe_generation": self._safe_generation,
                "generation": self.current(),
                **self._store.disk(),
                "now": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "journal": self._entries[-STATUS_ENTRIES:],
            }

    def check(self) -> None:
        """Act on the time that has passed: put the old routes back when the lease ran out, drop the lock when it expired."""
        with self._mutex:
            if self._safe_generation is not None and self._monotonic() >= self._lease_until:
                self._put_back(f"the lease of {self._lease_seconds:g} s ran out")
                self._end_lock()  # the runner that comes back late is refused
                self._try_write("fence", reason="lease ran out")
            elif self._lock is not None and self._safe_generation is None and self._monotonic() >= self._lock_until:
                self._try_write("expire", reason=f"not renewed for {self._lock['seconds']:g} s", owner=self._lock["owner"])
                self._end_lock()

    def current(self) -> str | None:
        """Return the generation that ``current`` points to."""
        return self._store.current()

    # --- internals ---------------------------------------------------------------------------------------------------------

    def _require_token(self, request: dict[str, Any]) -> None:
        self.check()
        token = request.get("token")
        if self._lock is None or not isinstance(token, str) or not hmac.compare_digest(_sha256(token), self._token_sha256):
            held = f"the lock is held by {self._describe_holder()}" if self._lock else "nobody holds the lock: it expired or was given back"
            raise RefusedError(f"the token is superseded, or never was one: {held}")

    def _end_lock(self) -> None:
        self._lock, self._token_sha256 = None, ""

    def _describe_holder(self) -> str:
        assert self._lock is not None  # noqa: S101 - callers have checked it
        seconds = max(0.0, self._lock_until - self._monotonic())
        return f"{self._lock['owner']}, deployment {self._lock['deployment_id']}, {self._lock['run_url']}, for another {seconds:.0f} s"

    def _remaining(self) -> dict[str, Any]:
        now = self._monotonic()
        return {
            "lock_seconds": round(max(0.0, self._lock_until - now), 3) if self._lock else None,
            "lease_seconds": round(max(0.0, self._lease_until - now), 3) if self._safe_generation is not None else None,
        }

    def _put_back(self, reason: str, *, event: Any = None) -> None:
        """Put the old routes back and end the lease, also when a full disk does not take the journal entry."""
        safe = self._safe_generation
        retry = bool(self._entries) and self._entries[-1]["entry"] == "return" and event is None  # the last switch failed
        full = None if retry else self._try_write("return", generation=safe, previous=self.current(), reason=reason, event=event)
        if safe is not None and safe != self.current():
            self._switch(safe)
        self._safe_generation = None
        if full is not None and event is not None:
            raise full  # the runner must learn that its event was not kept

    def _write_generation(self, generation: str, files: dict[str, str], *, back: bool) -> None:
        """Write a generation; one that exists must have the same files. Unless ``back``, also reserve the space that going back needs."""
        if not self._store.has(generation):
            self._store.write_generation(generation, files, reserve=back)
        elif self._store.files(generation) != files:
            raise RefusedError(f"generation {generation} exists with other files")
        if not back:
            current = self._safe_generation or self.current()
            self._store.reserve(self._store.files(current) | files)
            if current is not None:
                self._store.prepare(current)

    def _switch(self, generation: str) -> None:
        self._store.switch(generation)

    def _write(self, event_name: str, *, back: bool = True, **facts: Any) -> None:
        """Journal an entry, which is on disk when this returns. Raises FullError; with ``back`` the reserve may be used."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"sequence": self._sequence + 1, "at": at, "entry": event_name, **facts}
        self._store.append(entry, reserve=back)
        self._sequence += 1
        self._entries = [*self._entries[-200:], entry]

    def _try_write(self, event_name: str, **facts: Any) -> FullError | None:
        """Journal an action of the guard itself, which a full disk must not prevent; return the FullError, if any."""
        try:
            self._write(event_name, **facts)
        except FullError as error:
            return error
        return None

    def _read_journal(self) -> None:
        pending: str | None = None  # generation of the last "return" entry, if nothing was applied after it
        for entry in self._store.entries():
            self._replay(entry)
            if entry["entry"] in {"return", "apply"}:
                pending = entry["generation"] if entry["entry"] == "return" else None
        if self._safe_generation is not None:
            self._lease_until = self._monotonic() + self._lease_seconds
        if pending is not None and pending != self.current():
            try:
                self._switch(pending)  # the guard was killed between the journal entry and the rename
            except (OSError, FullError):
                self._safe_generation, self._lease_until = pending, self._monotonic()  # check() tries again
        if self._lock is not None:
            self._lock_until = self._monotonic() + max(self._lock["seconds"], self._lease_seconds)

    def _replay(self, entry: dict[str, Any]) -> None:
        self._sequence = entry["sequence"]
        self._entries = [*self._entries[-200:], entry]
        kind = entry["entry"]
        if kind == "lock":
            self._lock = {name: entry[name] for name in ("owner", "run_url", "deployment_id")}
            self._lock |= {"seconds": self._bounded(entry["seconds"]), "fence": entry.get("fence", False)}
            # An earlier version numbered its tokens: they can be guessed, so that no token of its locks is accepted.
            self._number = int(entry["number"] if "number" in entry else entry["token"])
            self._token_sha256 = entry.get("token_sha256", "")
        elif kind in {"unlock", "fence", "expire"}:
            self._end_lock()
        elif kind == "lease":
            self._safe_generation = entry["safe"]
        elif kind in {"promote", "return"}:
            self._safe_generation = None

    def _bounded(self, seconds: float) -> float:
        """Return the seconds of a lock in the journal; those of an earlier version were whatever its caller had asked for."""
        longest = LEASES_PER_LOCK * self._lease_seconds
        return seconds if 0 < seconds <= longest else longest


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


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
