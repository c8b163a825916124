"""A TLS connection whose time limit holds for all that follows, not for each read: a gateway may send a byte now and then."""

from __future__ import annotations

import ssl
from typing import Any

from azora_ci.core.clock import Clock

CLOCK = Clock()  # TLS itself makes the sockets, and hands nothing over


class DeadlineSocket(ssl.SSLSocket):
    """A connection on which ``settimeout`` begins a time limit, in seconds, for all reads and writes until it is called again."""

    _deadline: float | None = None

    def settimeout(self, value: float | None) -> None:
        """Begin a time limit; None or 0 for none."""
        self._deadline = CLOCK.monotonic() + value if value else None
        super().settimeout(value)

    def setblocking(self, flag: bool) -> None:
        """End the time limit."""
        self._deadline = None
        super().setblocking(flag)

    def read(self, *arguments: Any) -> Any:
        """Read as ``SSLSocket`` does. Raises TimeoutError."""
        self._limit()
        return super().read(*arguments)

    def send(self, *arguments: Any) -> int:
        """Send as ``SSLSocket`` does. Raises TimeoutError."""
        self._limit()
        return super().send(*arguments)

    def _limit(self) -> None:
        if self._deadline is None:
            return
        left = self._deadline - CLOCK.monotonic()
        if left <= 0:
            raise TimeoutError("The time limit of the whole exchange is over")
        super().settimeout(left)
