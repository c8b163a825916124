"""Progress for people: a bar on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from azora_ci.core.clock import Clock

LINE_SECONDS = 10.0
BAR_SECONDS = 0.25
BAR_WIDTH = 24
MIB = 1024 * 1024


class Meter:
    """Numbers of a running transfer, written by the threads that do the work. Sizes in bytes; ``expected`` is an estimate."""

    def __init__(self, phase: str, *, clock: Clock, expected: int = 0, tables: int = 0) -> None:
        self.phase = phase
        self.expected = expected
        self.tables = tables
        self.done = 0
        self.sent = 0
        self.tables_done = 0
        self._clock = clock
        self._start = clock.monotonic()

    def line(self) -> str:
        """Return the numbers as one line: bytes, MB/s, tables done, time left where it can be estimated."""
        seconds = max(self._clock.monotonic() - self._start, 1e-3)
        parts = [f"{self.phase}: {self.done / MIB:,.1f} MiB", f"{self.done / 1e6 / seconds:,.1f} MB/s"]
        if self.sent:
            parts.append(f"{self.sent / MIB:,.1f} MiB compressed")
        if self.tables:
            parts.append(f"{self.tables_done} of {self.tables} tables")
        if 0 < self.done < self.expected:
            parts.append(f"about {seconds * (self.expected - self.done) / self.done:,.0f} s left")
        return ", ".join(parts)

    def bar(self) -> str:
        """Return the line with a bar before it."""
        share = min(1.0, self.done / self.expected) if self.expected else 0.0
        filled = int(share * BAR_WIDTH)
        return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {self.line()}"


class Progress:
    """Shows a meter while the ``with`` block runs."""

    def __init__(self, meter: Meter, say: Callable[[str], None], clock: Clock, *, terminal: bool | None = None) -> None:
        self._meter = meter
        self._say = say
        self._clock = clock
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self._meter

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        if self._terminal:
            _draw("")
        if error is None:
            self._say(self._meter.line())

    def _show(self) -> None:
        while not self._clock.wait(self._end, BAR_SECONDS if self._terminal else LINE_SECONDS):
            if self._terminal:
                _draw(self._meter.bar())
            else:
                self._say(self._meter.line())


def _draw(text: str) -> None:
    """Replace the terminal's current line; text beyond its width is cut, because a wrapped line cannot be erased."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 80
    sys.stderr.write(f"\r\x1b[K{text[: max(columns - 1, 0)]}")
    sys.stderr.flush()
