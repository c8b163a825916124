"""One deployment at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from azora_ci.clock import Clock
from azora_ci.errors import NotTrueError
from azora_ci.process import birth
from azora_ci.targets import Owner
from azora_ci.targets.lock import Lock

ME, OTHER = Owner("1764000000-aaaaaa", "https://runs.example/1", "octocat"), Owner("1764000100-bbbbbb", "https://runs.example/2", "hubot")


class Later(Clock):
    """A clock that can be put forward."""

    offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset


def test_a_held_lock_names_its_owner_and_is_free_after_release(tmp_path):
    first, second = Lock(tmp_path / "lock.json", Clock()), Lock(tmp_path / "lock.json", Clock())
    first.acquire(ME)
    with pytest.raises(NotTrueError, match=r"1764000000-aaaaaa of octocat holds the lock until .*https://runs.example/1"):
        second.acquire(OTHER)
    first.release()
    second.acquire(OTHER)
    assert second.taken_over is None


def test_an_expired_lock_is_taken_over_and_its_owner_is_refused_afterwards(tmp_path):
    clock = Later()
    first, second = Lock(tmp_path / "lock.json", clock, lease=60), Lock(tmp_path / "lock.json", clock, lease=60)
    first.acquire(ME)
    clock.offset = timedelta(seconds=50)
    first.renew()
    clock.offset = timedelta(seconds=100)
    with pytest.raises(NotTrueError):
        second.acquire(OTHER)
    clock.offset = timedelta(seconds=200)
    second.acquire(OTHER)
    assert "1764000000-aaaaaa" in second.taken_over
    with pytest.raises(NotTrueError, match="now belongs to 1764000100-bbbbbb"):
        first.renew()
    first.release()  # not its own any more
    second.renew()


def test_the_lock_of_a_process_that_died_is_taken_over_at_once(tmp_path):
    script = (
        "from pathlib import Path; from azora_ci.clock import Clock; from azora_ci.targets import Owner;"
        "from azora_ci.targets.lock import Lock;"
        f"Lock(Path({str(tmp_path / 'lock.json')!r}), Clock()).acquire(Owner('1764000000-aaaaaa', 'u', 'a'))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    lock = Lock(tmp_path / "lock.json", Clock())
    lock.acquire(OTHER)
    assert "1764000000-aaaaaa" in lock.taken_over


def test_a_reused_process_id_is_not_the_owner(tmp_path):
    Lock(tmp_path / "lock.json", Clock()).acquire(ME)
    document = json.loads((tmp_path / "lock.json").read_text())
    assert (document["pid"], document["birth"]) == (os.getpid(), birth(os.getpid()))
    (tmp_path / "lock.json").write_text(json.dumps({**document, "birth": "1"}))
    Lock(tmp_path / "lock.json", Clock()).acquire(OTHER)
