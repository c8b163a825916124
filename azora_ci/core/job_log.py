"""The log of a job: every line of it masked, on the screen and in the file that travels in the job's artifact."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, rfc3339

SHORTEST_SECRET = 3  # shorter texts would mask half of every log
SHORTEST_IN_EVIDENCE = 8  # shorter secrets may be parts of words that evidence needs


def secrets_of_url(url: str) -> list[str]:
    """Return the secret texts of a URL: the whole URL and its password, percent-encoded and decoded."""
    try:
        password = urlsplit(url).password
    except ValueError:
        password = None
    forms = {url}
    if password:
        forms |= {password, unquote(password), quote(unquote(password), safe="")}
    return sorted(forms)


class JobLog:
    """Knows the job's secrets, and shows and keeps lines without them. ``file`` None: lines are shown, and kept nowhere."""

    def __init__(self, actions: Actions, clock: Clock, file: Path | None = None, *, secrets: Iterable[str] = ()) -> None:
        self.actions = actions
        self._clock = clock
        self._file = file
        self._lock = threading.Lock()
        self._secrets: list[str] = []
        self._names: set[str] = set()
        for secret in secrets:
            self.add_secret(secret)

    def add_secret(self, secret: str, *, is_name: bool = False) -> None:
        """Mask a secret in the log and on the screen from now on. Evidence is masked, too, unless it ``is_name`` of a user or host."""
        self.actions.mask(secret)
        parts = {secret, *secret.splitlines()}
        with self._lock:  # tokens are bought in threads of their own
            self._names |= parts if is_name else set()
            maskable = {part for part in parts if len(part.strip()) >= SHORTEST_SECRET} | set(self._secrets)
            self._secrets = sorted(maskable, key=len, reverse=True)

    def masked_evidence(self, value: Any) -> Any:
        """Return evidence with every secret in its sentences replaced by ``***``: a server's answer may quote a secret.

        Only texts with a space are changed: digests, locations and references have none, and later jobs rely on them.
        """
        if isinstance(value, dict):
            return {name: self.masked_evidence(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.masked_evidence(item) for item in value]
        if not isinstance(value, str) or " " not in value:
            return value
        for secret in self._secrets:
            if len(secret) >= SHORTEST_IN_EVIDENCE and secret not in self._names:
                value = value.replace(secret, "***")
        return value

    def masked(self, text: str) -> str:
        """Return ``text`` with every known secret replaced by ``***``."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def write(self, line: str) -> None:
        """Add a masked line with the time to the job's log, which travels in its artifact."""
        if self._file is not None:
            with self._lock, self._file.open("a", encoding="utf-8") as file:
                file.write(f"{rfc3339(self._clock.now())} {self.masked(line)}\n")

    def write_json(self, name: str, documents: Iterable[Mapping[str, Any]]) -> None:
        """Add flat documents as masked lines of JSON, with the time, to a file beside the job's log."""
        if self._file is None:
            return
        at = rfc3339(self._clock.now())
        lines = []
        for document in documents:
            masked = {key: self.masked(value) if isinstance(value, str) else value for key, value in document.items()}
            lines.append(json.dumps({"at": at, **masked}, ensure_ascii=False) + "\n")
        with self._lock, self._file.with_name(name).open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def say(self, line: str) -> None:
        """Print our own line and keep it in the log."""
        self.actions.say(self.masked(line))
        self.write(line)

    def annotate(self, title: str, text: str) -> None:
        """Annotate the run with a warning and keep it in the log."""
        self.actions.warning(self.masked(title), self.masked(text))
        self.write(f"{title}: {text}")
