"""Faults on demand: which request fails, and how."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ACTIONS = {
    "error": "answer with `status` and `code` (an expired session token: 400 and ExpiredToken); the server never sees the request",
    "hang": "wait `seconds`, then close the connection without an answer; the server never sees the request",
    "reset": "read `bytes` of the body, then reset the connection; the server never sees the request",
    "delay": "wait `seconds`, or until the fault is removed, then go on",
    "lose_answer": "let the server do it, then reset the connection instead of answering",
    "damage_arrival": "flip a bit of the request's body at offset `bytes`",
    "damage_read": "flip a bit of the answer's body at offset `bytes`",
    "cut": "send only `bytes` of the answer's body, then close the connection",
}


@dataclass
class Fault:
    """One rule: of the requests for ``operation`` and ``key`` (patterns), let ``skip`` pass, then fail ``times`` (None: always).

    ``header``: only requests that carry a header whose name (in lower case) fits this pattern; empty: all of them.
    """

    action: str
    operation: str = "*"
    key: str = "*"
    header: str = ""
    skip: int = 0
    times: int | None = 1
    status: int = 500
    code: str = "InternalError"
    seconds: float = 0.0
    bytes: int = 0
    fired: int = field(default=0, compare=False)
    removed: threading.Event = field(default_factory=threading.Event, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"{self.action!r} is none of {', '.join(ACTIONS)}")

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Fault:
        """Return the fault that a JSON object describes. Raises ValueError for unknown keys or actions."""
        unknown = set(document) - {item.name for item in fields(cls) if item.init}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        return cls(**document)

    def take(self, operation: str, key: str, headers: Iterable[str] = ()) -> bool:
        """Count a request and return whether it fails."""
        if not (fnmatchcase(operation, self.operation) and fnmatchcase(key, self.key)):
            return False
        if self.header and not any(fnmatchcase(name, self.header) for name in headers):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.fired >= self.times:
            return False
        self.fired += 1
        return True


class Faults:
    """The faults of a proxy, added by its own process or listed in a JSON file that may be rewritten at any time."""

    def __init__(self, file: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._rules: list[Fault] = []
        self._file = file
        self._read_at = 0  # modification time of the file, nanoseconds

    def add(self, fault: Fault) -> Fault:
        """Add a fault and return it; ``fired`` counts the requests that met it."""
        with self._lock:
            self._rules.append(fault)
        return fault

    def clear(self) -> None:
        """Remove every fault; requests that one of them delays go on at once."""
        with self._lock:
            self._replace(())

    def take(self, operation: str, key: str, headers: Iterable[str] = ()) -> Fault | None:
        """Return the fault that this request meets, None when it meets none. Raises ValueError when the file cannot be used."""
        with self._lock:
            self._read_file()
            return next((rule for rule in self._rules if rule.take(operation, key, headers)), None)

    def _replace(self, rules: Iterable[Fault]) -> None:
        for rule in self._rules:
            rule.removed.set()
        self._rules = list(rules)

    def _read_file(self) -> None:
        if self._file is None or not self._file.exists():
            return
        changed_at = self._file.stat().st_mtime_ns
        if changed_at == self._read_at:
            return
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            return  # it is being written; the next request reads it again
        try:
            self._replace([Fault.parse(item) for item in document])
        except (TypeError, ValueError) as error:
            raise ValueError(f"the faults file cannot be used: {error}") from error
        self._read_at = changed_at
