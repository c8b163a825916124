"""What a command leaves running is ended, and nothing else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import is_alive, leftovers
from tests.support.waiting import until

DAEMON = """import os, sys, time
for _ in range(2):
    if os.fork(): os._exit(0)
    os.setsid()
open(sys.argv[1], 'a').write('x')
time.sleep(60)"""
# Every process lives only as long as it takes to fork the next one, in a session of its own; at most 20 s, whatever the test does.
RELAY = """import os, time
latest = time.monotonic() + 20
if os.fork(): os._exit(0)
while time.monotonic() < latest:
    if os.fork(): os._exit(0)
    os.setsid()"""


def start(program: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)


def command_lines(word: str) -> list[str]:
    """Return the command lines of processes that hold this word."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if word in line]


def test_daemons_of_the_block_end_and_what_ran_before_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    mark = str(tmp_path / "mark")
    with subprocess.Popen(["sleep", "60"]) as earlier:
        with leftovers.none_left(Clock(), said.append):
            start(DAEMON, mark)
            start(DAEMON, mark)
            until(lambda: Path(mark).exists() and Path(mark).read_text() == "xx", "two daemons")
            assert len(command_lines(mark)) == 2
        assert command_lines(mark) == []
        assert is_alive(earlier.pid)
        earlier.kill()
    assert said[0].startswith("- ended what the command left running: 2 processes, ")


def test_a_relay_of_short_lives_is_outrun(tmp_path: Path) -> None:
    """While four processes more than there are cores compete, listing all processes takes longer than a life of the relay.

    Many threads of ours make it no harder: what servers of other tests left, say.
    """
    mark = str(tmp_path / "relay")
    over = threading.Event()
    threads = [threading.Thread(target=over.wait, daemon=True) for _ in range(100)]
    for thread in threads:
        thread.start()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with leftovers.none_left(Clock(), lambda _: None):
            start(RELAY, mark)
            time.sleep(0.2)
        assert command_lines(mark) == []
    finally:
        over.set()
        for process in busy:
            process.kill()
            process.wait()


def test_what_is_seen_and_never_listed_is_not_called_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "LONGEST_SECONDS", 0.1)
    monkeypatch.setattr(leftovers, "_outrun", lambda _: False)
    with pytest.raises(NotTrueError, match="cannot be ended") as caught, leftovers.none_left(Clock(), lambda _: None):
        pass
    assert leftovers.UNLISTED in caught.value.what


def test_what_cannot_be_ended_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    monkeypatch.setattr(leftovers, "LONGEST_SECONDS", 0.1)
    with monkeypatch.context() as powerless:
        powerless.setattr(leftovers.signal, "SIGKILL", 0)  # as a process of root's is to us
        with pytest.raises(NotTrueError, match="cannot be ended") as caught, leftovers.none_left(Clock(), lambda _: None):
            start(DAEMON, mark)
            until(lambda: Path(mark).exists(), "the daemon")
    assert "python" in caught.value.what
    subprocess.run(["kill", "-KILL", caught.value.what.split("[")[1].rstrip("]")], check=True)
