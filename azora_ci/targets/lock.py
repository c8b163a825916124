"""The deployment lock of a target: one deployment at a time, with owner, run and expiry.

A lock is taken over when it has expired, or when its owner was a process of this machine that no longer runs. A rollback may take
it from a deployment that is well and alive (``Owner.fence``); who lost the lock can change nothing any more (``ours``). What was
taken away, from whom and why, stands in ``<lock>.log.jsonl``.
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
    from azora_ci.targets import Held, Owner

LEASE_SECONDS = 120.0


class FencedError(NotTrueError):
    """The lock belongs to somebody else by now: nothing may be changed, not even for going back."""


class Lock:
    """A lock file with a token; ``taken_over`` names the owner whose lock was replaced, ``fenced`` one that was alive."""

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
            found = self._read()
            if found is not None:
                if self._holds(found):
                    self._fence(found, owner)
                self.taken_over = f"{found['deployment_id']} ({found['run_url']}), expiry {found['expires_at']}"
            self._token = uuid.uuid4().hex
            self._write({**asdict(owner), "token": self._token, "pid": os.getpid(), "birth": birth(os.getpid())})

    def renew(self) -> None:
        """Extend the expiry. Raises NotTrueError when the lock was taken over: then nothing may be changed any more."""
        with self._exclusive():
            self._write(self._own())

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Change something in the knowledge that nobody takes the lock meanwhile. Raises NotTrueError when it was taken over.

        Not reentrant, and short: everybody else waits.
        """
        with self._exclusive():
            self._own()
            yield

    def holder(self) -> Held | None:
        """Return who holds the lock, dead or alive, or None."""
        from azora_ci.targets import Held, Owner

        found = self._read()
        if found is None:
            return None
        owner = Owner(found["deployment_id"], found["run_url"], found["actor"], found.get("fence"))
        return Held(owner, found["renewed_at"], found["expires_at"], self._holds(found))

    def break_open(self, reason: str, actor: str) -> Held | None:
        """Take the lock away from whoever holds it, note why, and return who that was."""
        held = self.holder()
        with self._exclusive():
            found = self._read()
            if found is not None:
                self._log("released by hand", found, reason=reason, by=actor)
                self._path.unlink()
        return held

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        with self._exclusive():
            found = self._read()
            if found is not None and found["token"] == self._token:
                self._path.unlink()
        self._token = None

    def _fence(self, found: dict[str, Any], owner: Owner) -> None:
        """Take the lock from a living deployment, for a reason; from a rollback never: two of them would fight."""
        if owner.fence is None or found.get("fence") is not None:
            raise _busy(found, self._path)
        self._log("fenced", found, reason=owner.fence, by=owner.actor)
        self.fenced = f"{found['deployment_id']} of {found['actor']} ({found['run_url']})"

    def _own(self) -> dict[str, Any]:
        found = self._read()
        if found is None or found["token"] != self._token:
            raise FencedError(
                "The lock was taken over",
                what=f"it now belongs to {found['deployment_id'] if found else 'nobody'}{_why(found)}",
                where=str(self._path),
                next_step="read what the other deployment or rollback did before starting this one again",
            )
        return found

    def _log(self, event: str, found: dict[str, Any], **facts: str) -> None:
        entry = {"at": rfc3339(self._clock.now()), "event": event, "deployment_id": found["deployment_id"], "run_url": found["run_url"]}
        with self._path.with_suffix(".log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, **facts}, ensure_ascii=False) + "\n")

    def _holds(self, found: dict[str, Any]) -> bool:
        if parse_rfc3339(found["expires_at"]) <= self._clock.now():
            return False
        return bool(birth(found["pid"]) == found["birth"])

    def _read(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
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


def _why(found: dict[str, Any] | None) -> str:
    return f", a rollback: {found['fence']}" if found and found.get("fence") else ""


def _busy(found: dict[str, Any], path: Path) -> NotTrueError:
    if found.get("fence") is not None:
        return NotTrueError(
            "A rollback is running",
            what=f"a rollback by {found['actor']} holds the lock until {found['expires_at']}: {found['fence']} ({found['run_url']})",
            where=str(path),
            next_step="wait for that rollback to end; it holds the lock for a minute or two",
        )
    return NotTrueError(
        "Another deployment is running",
        what=f"deployment {found['deployment_id']} of {found['actor']} holds the lock until {found['expires_at']} ({found['run_url']})",
        where=str(path),
        next_step="wait for that run to end, or cancel it; a lock whose owner died is taken over when it expires",
    )
