"""The deployment lock of a target: one deployment at a time, with owner, run and expiry.

A lock is taken over when it has expired, or when its owner was a process of this machine that no longer runs.
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
from typing import TYPE_CHECKING, Any

from azora_ci.clock import Clock, parse_rfc3339, rfc3339
from azora_ci.errors import NotTrueError
from azora_ci.process import birth

if TYPE_CHECKING:
    from azora_ci.targets import Owner

LEASE_SECONDS = 120.0


class Lock:
    """A lock file with a token; ``taken_over`` names the owner whose stale lock was replaced."""

    def __init__(self, path: Path, clock: Clock, *, lease: float = LEASE_SECONDS) -> None:
        self._path = path
        self._clock = clock
        self._lease = lease
        self._token: str | None = None
        self.taken_over: str | None = None

    def acquire(self, owner: Owner) -> None:
        """Take the lock. Raises NotTrueError naming the owner when somebody else holds it."""
        with self._exclusive():
            found = self._read()
            if found is not None:
                if self._holds(found):
                    raise _busy(found, self._path)
                self.taken_over = f"{found['deployment_id']} ({found['run_url']}), expiry {found['expires_at']}"
            self._token = uuid.uuid4().hex
            self._write({**asdict(owner), "token": self._token, "pid": os.getpid(), "birth": birth(os.getpid())})

    def renew(self) -> None:
        """Extend the expiry. Raises NotTrueError when the lock was taken over: then nothing may be changed any more."""
        with self._exclusive():
            found = self._read()
            if found is None or found["token"] != self._token:
                raise NotTrueError(
                    "The lock was taken over",
                    what=f"it now belongs to {found['deployment_id'] if found else 'nobody'}",
                    where=str(self._path),
                    next_step="read what the other deployment or rollback did before starting this one again",
                )
            self._write(found)

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        with self._exclusive():
            found = self._read()
            if found is not None and found["token"] == self._token:
                self._path.unlink()
        self._token = None

    def _holds(self, found: dict[str, Any]) -> bool:
        if parse_rfc3339(found["expires_at"]) <= self._clock.now():
            return False
        return bool(birth(found["pid"]) == found["birth"])

    def _read(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return document

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


def _busy(found: dict[str, Any], path: Path) -> NotTrueError:
    return NotTrueError(
        "Another deployment is running",
        what=f"deployment {found['deployment_id']} of {found['actor']} holds the lock until {found['expires_at']} ({found['run_url']})",
        where=str(path),
        next_step="wait for that run to end, or cancel it; a lock whose owner died is taken over when it expires",
    )
