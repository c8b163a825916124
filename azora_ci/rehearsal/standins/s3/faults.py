"""Faults on demand: which request fails, and how."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from azora_ci.rehearsal.standins.s3.errors import S3Error

ACTIONS = {
    "error": "answer with `status` and `code`",
    "hang": "wait `seconds`, then close the connection without an answer",
    "reset": "read `bytes` of the body, then reset the connection",
    "delay": "wait `seconds`, then go on",
    "lose_answer": "do it, then reset the connection instead of answering",
    "damage_arrival": "flip a bit of the body as it arrives, before anything is verified",
    "accept_damage": "flip a bit of the body as it arrives, and verify nothing",
    "ignore_checksums": "verify nothing of the body",
    "flip_bit": "do it, then flip a bit of what was stored, at offset `bytes`",
    "cut": "send only `bytes` of the answer's body, then close the connection",
}


@dataclass
class Fault:
    """One rule: of the requests for ``operation`` and ``key`` (patterns), let ``skip`` pass, then fail ``times`` (None: always)."""

    action: str
    operation: str = "*"
    key: str = "*"
    skip: int = 0
    times: int | None = 1
    status: int = 500
    code: str = "InternalError"
    seconds: float = 0.0
    bytes: int = 0
    fired: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"{self.action!r} is none of {', '.join(ACTIONS)}")

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Fault:
        """Return the fault that a JSON object describes. Raises ValueError for unknown keys or actions."""
        unknown = set(document) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        return cls(**document)

    def take(self, operation: str, key: str) -> bool:
        """Count a request and say whether it fails."""
        if not (fnmatchcase(operation, self.operation) and fnmatchcase(key, self.key)):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.fired >= self.times:
            return False
        self.fired += 1
        return True


class Faults:
    """The rules of a server, from its own process, its control path or a JSON file (a list of objects) that may be rewritten."""

    def __init__(self, file: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._rules: list[Fault] = []
        self._file = file
        self._seen = 0  # modification time of the file, nanoseconds

    def add(self, fault: Fault) -> Fault:
        """Add a rule and return it; ``fired`` counts what it did."""
        with self._lock:
            self._rules.append(fault)
        return fault

    def replace(self, faults: Iterable[Fault]) -> None:
        """Replace every rule."""
        with self._lock:
            self._rules = list(faults)

    def clear(self) -> None:
        """Let everything pass again."""
        self.replace(())

    def total(self) -> int:
        """Return how many requests met one of the present rules."""
        with self._lock:
            return sum(rule.fired for rule in self._rules)

    def expire_after(self, requests: int) -> Fault:
        """Let so many requests pass, then answer every one as if the session token had expired."""
        return self.add(Fault("error", skip=requests, times=None, status=400, code="ExpiredToken"))

    def take(self, operation: str, key: str) -> Fault | None:
        """Return the fault that this request meets, if any."""
        with self._lock:
            self._read_file()
            return next((rule for rule in self._rules if rule.take(operation, key)), None)

    def _read_file(self) -> None:
        if self._file is None:
            return
        try:
            changed = self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed != self._seen:
            try:
                document = json.loads(self._file.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                return  # it is being written; the next request reads it again
            try:
                self._rules = [Fault.parse(item) for item in document]
            except (TypeError, ValueError) as error:
                raise S3Error(500, "InternalError", f"the faults file cannot be used: {error}") from error
            self._seen = changed
