"""The log of an edge on this machine: a file in its folder, which every look at the edge bounds. Envoy itself never makes it smaller."""

from __future__ import annotations

import contextlib
import http.client
import os
from pathlib import Path

from azora_ci.core.errors import UnreachableError
from azora_ci.health.probes import DialledConnection, unix_dial
from azora_ci.targets.envoy.edge import ADMIN_SOCKET

LARGEST = 20 * 1024**2  # bytes of the file, and as many of the one before it
READ = 4 * 1024**2  # bytes at most that are read of each: about ten thousand requests
ADMIN_SECONDS = 5.0


class EdgeLog:
    """The files ``log/edge.jsonl`` and, older, ``log/edge.jsonl.1`` of an edge's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.path = self._folder / "log" / "edge.jsonl"  # not in the folder that Envoy watches for changes
        self._older = self.path.with_suffix(".jsonl.1")

    def prepare(self) -> None:
        """Have the folder: Envoy does not take listeners whose log it cannot open. Where it cannot be made, routes go on all the same."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def bound(self) -> None:
        """Put a file aside that has grown too large, and have Envoy begin a new one."""
        with contextlib.suppress(OSError):  # there is none yet; what cannot be read is said when somebody reads it
            if self.path.stat().st_size > LARGEST:
                self.path.replace(self._older)
                self._reopen()

    def _reopen(self) -> None:
        connection = DialledConnection("admin", None, ADMIN_SECONDS, unix_dial(self._folder / ADMIN_SOCKET))
        with contextlib.suppress(OSError, http.client.HTTPException):  # Envoy opens the file anew when it starts
            connection.request("POST", "/reopen_logs", headers={"connection": "close", "content-length": "0"})
            connection.getresponse().read()
        connection.close()

    def lines(self) -> list[str]:
        """Return the latest lines, oldest first. Raises UnreachableError."""
        self.bound()
        return [line for path in (self._older, self.path) for line in _latest(path)]


def _latest(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(-min(READ, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read(READ).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreachableError(
            "The edge's log cannot be read",
            what=f"{type(error).__name__}: {error.strerror}",
            where=str(path),
            next_step="make the file readable to this user: the user that runs Envoy writes it",
        ) from error
