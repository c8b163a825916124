"""The deployment lock of a target: one deployment at a time, with owner, run and expiry.

A lock is taken over when it has expired, or when its owner was a process of this machine that no longer runs. A rollback may also take
it from a deployment that is alive ("fencing": ``Owner.fence``). A deployment that lost the lock can change nothing any more: its changes
go through ``while_owned``. ``<lock>.log.jsonl`` records which lock was taken away, from whom and why.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock, parse_rfc3339, rfc3339
from azora_ci.core.documents import expected_shape, read_file
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.process import birth
from azora_ci.targets.base import FencedError, LockHolder, Owner

LEASE_SECONDS = 120.0


class Lock:
    """A lock file with a token. ``taken_over`` names the owner whose lock was replaced, ``fenced`` an owner that was alive."""

    def __init__(self, path: Path, clock: Clock, *, lease: float = LEASE_SECONDS) -> None:
        self._path = path
        self._clock = clock
        self._lease = lease
        self._token: str | None = None
        self.taken_over: str | None = None
        self.fenced: str | None = None

    def acquire(self, owner: Owner) -> None:
        """Take the lock. Raises NotTrueError naming the owner when somebody else holds it and may not be fenced."""
        with self._exclusive():
            lock = self._read()
            if lock is not None:
                if self._is_held(lock):
                    self._fence(lock, owner)
                self.taken_over = f"{lock['deployment_id']} ({lock['run_url']}), expiry {lock['expires_at']}"
            self._token = uuid.uuid4().hex
            self._write({**asdict(owner), "token": self._token, "pid": os.getpid(), "birth": birth(os.getpid())})

    def renew(self) -> None:
        """Extend the expiry. Raises NotTrueError when the lock was taken over: then its former owner may change nothing any more."""
        with self._exclusive():
            self._write(self._require_own())

    @contextmanager
    def while_owned(self) -> Iterator[None]:
        """Run a change while nobody can take the lock. Raises NotTrueError when the lock was taken over.

        Not reentrant. Keep the change short: everybody else who asks for the lock waits for it.
        """
        with self._exclusive():
            self._require_own()
            yield

    def holder(self) -> LockHolder | None:
        """Return the owner of the lock, dead or alive, or None when the lock is free."""
        lock = self._read()
        if lock is None:
            return None
        owner = Owner(lock["deployment_id"], lock["run_url"], lock["actor"], lock.get("fence"))
        return LockHolder(owner, lock["renewed_at"], lock["expires_at"], self._is_held(lock))

    def break_open(self, reason: str, actor: str) -> LockHolder | None:
        """Take the lock from its owner, log the reason, and return that owner, or None when the lock was free."""
        held = self.holder()
        with self._exclusive():
            lock = self._read()
            if lock is not None:
                self._log("released by hand", lock, reason=reason, by=actor)
                self._path.unlink()
        return held

    def release(self) -> None:
        """Release the lock if it is still this run's."""
        with self._exclusive():
            lock = self._read()
            if lock is not None and lock["token"] == self._token:
                self._path.unlink()
        self._token = None

    def _fence(self, lock: dict[str, Any], owner: Owner) -> None:
        """Log that a rollback takes the lock from a living deployment. Raises NotTrueError in other cases: two rollbacks would fight."""
        if owner.fence is None or lock.get("fence") is not None:
            raise _held_error(lock, self._path)
        self._log("fenced", lock, reason=owner.fence, by=owner.actor)
        self.fenced = f"{lock['deployment_id']} of {lock['actor']} ({lock['run_url']})"

    def _require_own(self) -> dict[str, Any]:
        lock = self._read()
        if lock is None or lock["token"] != self._token:
            raise FencedError(
                "The lock was taken over",
                what=f"it now belongs to {lock['deployment_id'] if lock else 'nobody'}{_fence_reason(lock)}",
                where=str(self._path),
                next_step="read what the other deployment or rollback did before starting this one again",
            )
        return lock

    def _log(self, event: str, lock: dict[str, Any], **facts: str) -> None:
        entry = {"at": rfc3339(self._clock.now()), "event": event, "deployment_id": lock["deployment_id"], "run_url": lock["run_url"]}
        with self._path.with_suffix(".log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, **facts}, ensure_ascii=False) + "\n")

    def _is_held(self, lock: dict[str, Any]) -> bool:
        if parse_rfc3339(lock["expires_at"]) <= self._clock.now():
            return False
        return bool(birth(lock["pid"]) == lock["birth"])

    def _read(self) -> dict[str, Any] | None:
        with expected_shape(self._unreadable):
            try:
                document: dict[str, Any] = read_file(self._path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            texts = ("deployment_id", "run_url", "actor", "token", "renewed_at", "expires_at")
            if not all(isinstance(document[name], str) for name in texts) or not isinstance(document["pid"], int):
                raise TypeError(f"{', '.join(texts)} and pid are not all texts and a number")
            parse_rfc3339(document["expires_at"])
            return document

    def _unreadable(self, problem: str) -> BadInputError:
        return BadInputError(
            "The lock cannot be read",
            what=problem,
            where=str(self._path),
            next_step="find out who wrote it; when no deployment runs, remove the file",
        )

    def _write(self, document: dict[str, Any]) -> None:
        now = self._clock.now()
        document = {**document, "renewed_at": rfc3339(now), "expires_at": rfc3339(now + timedelta(seconds=self._lease))}
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
        temporary.replace(self._path)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield


def _fence_reason(lock: dict[str, Any] | None) -> str:
    return f", a rollback: {lock['fence']}" if lock and lock.get("fence") else ""


def _held_error(lock: dict[str, Any], path: Path) -> NotTrueError:
    if lock.get("fence") is not None:
        return NotTrueError(
            "A rollback is running",
            what=f"a rollback by {lock['actor']} holds the lock until {lock['expires_at']}: {lock['fence']} ({lock['run_url']})",
            where=str(path),
            next_step="wait for that rollback to end; it holds the lock for a minute or two",
        )
    return NotTrueError(
        "Another deployment is running",
        what=f"deployment {lock['deployment_id']} of {lock['actor']} holds the lock until {lock['expires_at']} ({lock['run_url']})",
        where=str(path),
        next_step="wait for that run to end, or cancel it; a lock whose owner died is taken over when it expires",
    )
