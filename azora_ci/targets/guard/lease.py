"""Who may change the routes, and for how long: lock, lease and generations of one edge. Standard library only, like ``server.py``.

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
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .store import FullError, Store  # relative: in its container the guard is a package of its own

STATUS_ENTRIES = 20  # journal entries shown by /status
LEASE_SECONDS = 45.0  # default
LEASES_PER_LOCK = 2  # a lock that is not renewed ends after so many leases
TOKEN_BYTES = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")


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
