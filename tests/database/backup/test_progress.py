"""What people see of a running backup: a bar on a (pseudo) terminal, lines elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from azora_ci.core.clock import Clock
from azora_ci.database.backup.progress import LINE_SECONDS, Meter, Progress
from tests.support.waiting import until

PROGRAM = """
import sys
from azora_ci.database.backup.progress import Meter, Progress
from azora_ci.core.clock import Clock
clock = Clock()
meter = Meter("dump", clock=clock, expected=100 << 20, tables=7)
with Progress(meter, print, clock):
    for line in sys.stdin:
        meter.done, meter.sent, meter.tables_done = int(line) << 20, int(line) << 18, 3
"""


class Terminal:
    """A program whose standard error is a terminal of so many columns; ``written`` returns all that the program wrote to it."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.set_blocking(self._master, False)
        argv, pipe = [sys.executable, "-c", PROGRAM], subprocess.PIPE
        self.program = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=slave, text=True)
        os.close(slave)
        self._written = b""

    def written(self) -> str:
        try:
            while more := os.read(self._master, 65536):
                self._written += more
        except OSError:  # nothing more for now, or the program has ended
            pass
        return self._written.decode()

    def frames(self) -> list[str]:
        """Return what stood in the line at each moment: every frame clears it first."""
        return self.written().split("\r\x1b[K")

    def tell(self, done_mib: int) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(f"{done_mib}\n")
        self.program.stdin.flush()

    def end(self) -> str:
        """Let the program end and return its standard output."""
        output, _ = self.program.communicate(timeout=30)
        return output

    def close(self) -> None:
        self.program.kill()
        self.program.communicate()
        os.close(self._master)


@pytest.fixture(params=[200, 60])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    pseudo_terminal = Terminal(request.param)
    yield pseudo_terminal
    pseudo_terminal.close()


def test_a_terminal_shows_a_bar_that_grows_in_one_line_and_goes(terminal: Terminal, request: pytest.FixtureRequest) -> None:
    until(lambda: f"[{'.' * 24}] dump: 0.0 MiB" in terminal.written(), "an empty bar")
    terminal.tell(50)
    until(lambda: f"[{'#' * 12}{'.' * 12}] dump: 50.0 MiB" in terminal.written(), "half a bar")
    output = terminal.end()
    columns = request.node.callspec.params["terminal"]
    frames = terminal.frames()
    assert max(map(len, frames)) < columns, "a frame that wraps leaves its first line behind"
    assert "\n" not in terminal.written()
    assert frames[-1] == "", "the bar is cleared at the end"
    half = next(frame for frame in frames if "50.0 MiB" in frame)
    assert ("3 of 7 tables, about" in half) == (columns == 200)
    assert re.fullmatch(r"dump: 50\.0 MiB, [0-9.,]+ MB/s, 12\.5 MiB compressed, 3 of 7 tables, about [0-9,]+ s left\n", output)


def test_elsewhere_it_is_a_line_at_times_and_one_at_the_end() -> None:
    lines: list[str] = []
    clock = Hasty()
    meter = Meter("restore", clock=clock)
    with Progress(meter, lines.append, clock, terminal=False):
        meter.done = 3 << 20
        until(lambda: len(lines) >= 2, "a line")
    assert set(clock.waited) == {LINE_SECONDS}
    assert all(line.startswith("restore: 3.0 MiB") for line in lines[1:])


def test_what_failed_is_not_summed_up() -> None:
    lines: list[str] = []
    with pytest.raises(ZeroDivisionError), Progress(Meter("dump", clock=Clock()), lines.append, Clock(), terminal=False):
        raise ZeroDivisionError
    assert lines == []


class Hasty(Clock):
    """A clock that waits a hundredth of what it is told."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    def wait(self, event, seconds):
        self.waited.append(seconds)
        return super().wait(event, seconds / 100)
