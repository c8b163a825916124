"""One deployment at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import birth
from azora_ci.targets.base import FencedError, Owner
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
    first.release()  # the lock is no longer its own
    second.renew()


def test_the_lock_of_a_process_that_died_is_taken_over_at_once(tmp_path):
    script = (
        "from pathlib import Path; from azora_ci.core.clock import Clock; from azora_ci.targets.base import Owner;"
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


# --- a rollback takes it, a person takes it ------------------------------------------------------------------------------

RESCUER = Owner("1764000000-aaaaaa", "https://runs.example/3", "rescuer", fence="users see errors")


def test_a_rollback_fences_a_living_deployment_which_can_change_nothing_from_then_on(tmp_path):
    deployment, rollback = Lock(tmp_path / "lock.json", Clock()), Lock(tmp_path / "lock.json", Clock())
    deployment.acquire(OTHER)
    with deployment.while_owned():
        pass
    rollback.acquire(RESCUER)
    assert rollback.fenced == "1764000100-bbbbbb of hubot (https://runs.example/2)"
    with pytest.raises(FencedError, match="now belongs to 1764000000-aaaaaa, a rollback: users see errors"), deployment.while_owned():
        pytest.fail("a fenced deployment changed something")
    with pytest.raises(FencedError):
        deployment.renew()
    deployment.release()
    rollback.renew()
    entry = json.loads((tmp_path / "lock.log.jsonl").read_text())
    assert (entry["event"], entry["deployment_id"], entry["reason"], entry["by"]) == (
        "fenced",
        OTHER.deployment_id,
        RESCUER.fence,
        "rescuer",
    )


def test_a_rollback_does_not_fence_a_rollback_and_a_deployment_waits_for_it(tmp_path):
    Lock(tmp_path / "lock.json", Clock()).acquire(RESCUER)
    for owner in (RESCUER, OTHER):
        with pytest.raises(NotTrueError, match=r"a rollback by rescuer holds the lock until .*: users see errors"):
            Lock(tmp_path / "lock.json", Clock()).acquire(owner)


def test_who_holds_the_lock_and_taking_it_away_by_hand(tmp_path):
    lock = Lock(tmp_path / "lock.json", Clock())
    assert (lock.holder(), lock.break_open("nothing there", "me")) == (None, None)
    lock.acquire(ME)
    held = lock.holder()
    assert (held.owner, held.alive) == (ME, True)
    assert lock.break_open("its runner hangs", "hubot") == held
    assert lock.holder() is None
    with pytest.raises(FencedError, match="belongs to nobody"):
        lock.renew()
    assert "its runner hangs" in (tmp_path / "lock.log.jsonl").read_text()


def test_a_rollback_that_asks_while_a_change_is_made_waits_for_its_end(tmp_path):
    deployment, rollback = Lock(tmp_path / "lock.json", Clock()), Lock(tmp_path / "lock.json", Clock())
    deployment.acquire(OTHER)
    order = []
    with deployment.while_owned():
        thread = threading.Thread(target=lambda: (rollback.acquire(RESCUER), order.append("fenced")))
        thread.start()
        thread.join(0.2)
        order.append("changed")
    thread.join(30)
    assert order == ["changed", "fenced"]
