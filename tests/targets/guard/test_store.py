"""The guard on a disk that is really full (a small tmpfs): the way up is refused, the way back works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.targets.guard.lease import Guard, RefusedError
from azora_ci.targets.guard.store import FullError, Store
from tests.support.waiting import until
from tests.targets.guard.test_server import Served

ME = {"owner": "alice", "run_url": "https://github.example/runs/1", "deployment_id": "1-aaaaaa"}
OLD, NEW = {"routes.json": "old" * 400, "edge.json": "{}"}, {"routes.json": "new" * 400, "edge.json": "{}"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, timeout=30)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    assert Store(disk / "edge").disk()["disk_free_bytes"] == 0


def prepared(disk: Path, monotonic: Time) -> tuple[Guard, str]:
    """Return a guard on the old routes, and the token of its lock."""
    guard = Guard(disk / "edge", lease_seconds=10, monotonic=monotonic)
    token = guard.lock(ME)["token"]
    guard.apply({"token": token, "generation": "old", "files": OLD})
    guard.promote({"token": token})
    return guard, token


def held(disk: Path, monotonic: Time) -> tuple[Guard, str]:
    guard, token = prepared(disk, monotonic)
    guard.apply({"token": token, "generation": "new", "files": NEW, "hold": True})
    assert guard.files() == NEW
    return guard, token


def whole(disk: Path) -> list[int]:
    """Return the sequence numbers of the journal, every line of which must be readable."""
    return [entry["sequence"] for entry in Store(disk / "edge").entries()]


def test_no_weight_rises_on_a_full_disk_and_it_does_when_there_is_room(disk):
    guard, token = prepared(disk, Time())
    before = whole(disk)
    fill(disk)
    for request in ({"generation": "new", "files": NEW, "hold": True}, {"generation": "warm", "files": NEW}):
        with pytest.raises(FullError, match="No space"):
            guard.apply({"token": token, **request})
    with pytest.raises(FullError):
        guard.note({"token": token, "event": {"event": "begin", "text": "x" * 5000}})
    assert guard.status()["held"] is False
    assert guard.files() == OLD
    assert whole(disk) == before
    (disk / "filler").unlink()
    guard.apply({"token": token, "generation": "new", "files": NEW, "hold": True})
    assert guard.files() == NEW


def test_without_room_for_the_way_back_nothing_goes_up(disk):
    guard, token = prepared(disk, Time())
    fill(disk)
    with (disk / "filler").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 5 * 4096)  # the new routes fit, what the way back may need does not
    large = NEW | {f"endpoints-{number}.json": "x" * 100 for number in range(3)}
    with pytest.raises(FullError):
        guard.apply({"token": token, "generation": "new", "files": large, "hold": True})
    assert guard.files() == OLD


def test_going_back_works_on_a_full_disk_and_is_kept(disk):
    guard, token = held(disk, Time())
    fill(disk)
    big = {"event": "stage", "evidence": "x" * 5000}
    with pytest.raises(FullError):
        guard.note({"token": token, "event": big})
    with pytest.raises(FullError):
        guard.promote({"token": token, "event": big})
    guard.abort({"token": token, "reason": "5xx", "event": {"event": "going-back", "text": "x" * 5000}})
    assert guard.files() == OLD
    guard.apply({"token": token, "generation": "safe", "files": {"routes.json": "safe", "edge.json": "{}"}, "back": True})
    assert guard.files() == {"routes.json": "safe", "edge.json": "{}"}
    guard.note({"token": token, "event": {"event": "abort", "text": "x" * 5000}, "back": True})
    numbers = whole(disk)
    assert numbers == list(range(1, len(numbers) + 1))
    again = Guard(disk / "edge", lease_seconds=10, monotonic=Time())
    assert [event["event"] for event in again.events()] == ["going-back", "abort"]
    assert again.files() == {"routes.json": "safe", "edge.json": "{}"}
    assert again.renew({"token": token})["lease_seconds"] is None
    (disk / "filler").unlink()
    again.unlock({"token": token, "reason": "done"})
    assert whole(disk) == [*numbers, numbers[-1] + 1]
    assert (disk / "edge" / "journal.jsonl").read_text().count("\n") == len(numbers) + 1  # all in one place again


def test_an_expired_lease_goes_back_also_when_nothing_can_be_written(disk):
    time = Time()
    guard, token = held(disk, time)
    (disk / "edge" / "journal.spare").unlink()
    fill(disk)
    with (disk / "edge" / "journal.jsonl").open("ab") as file, pytest.raises(OSError, match="No space"):
        file.write(b"\n" * 8192)  # to the last byte of its last block
        file.flush()
    time.now = 11.0
    guard.check()
    assert guard.files() == OLD
    assert guard.status()["lock"] is None
    with pytest.raises(RefusedError, match="superseded"):
        guard.apply({"token": token, "generation": "new", "files": NEW, "hold": True})


def test_half_an_entry_does_not_spoil_the_next(disk):
    guard, token = prepared(disk, Time())
    fill(disk)
    with (disk / "filler").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 2 * 4096)
    for _ in range(2):
        with pytest.raises(FullError):
            guard.note({"token": token, "event": {"event": "stage", "evidence": "x" * 100_000}})
    guard.note({"token": token, "event": {"event": "weight"}})
    text = (disk / "edge" / "journal.jsonl").read_text()
    assert [json.loads(line)["sequence"] for line in text.splitlines()] == whole(disk)
    assert Guard(disk / "edge", monotonic=Time()).events() == [{"event": "weight"}]


def test_room_is_reserved_for_what_is_routed_now(disk):
    guard, token = prepared(disk, Time())
    for number in range(3):
        guard.apply({"token": token, "generation": f"g{number}", "files": {f"endpoints-{number}.json": "x"}})
    reserved = {path.name for path in (disk / "edge" / "spares").glob("*/*")}
    assert reserved == {"endpoints-1.json", "endpoints-2.json"}  # room also for the generation before, to which the guard may go back


def test_a_lock_that_cannot_be_journalled_is_not_taken(disk):
    guard, token = prepared(disk, Time())
    guard.unlock({"token": token, "reason": "done"})
    (disk / "edge" / "journal.spare").unlink()
    fill(disk)
    with pytest.raises(FullError):
        guard.lock({**ME, "owner": "x" * 500, "run_url": "x" * 500, "reason": "x" * 5000})
    (disk / "filler").unlink()
    assert guard.status()["lock"] is None
    assert guard.lock({**ME, "deployment_id": "2-bbbbbb"})["number"] == 2


def test_the_prepared_way_back_is_not_made_anew(disk):
    guard, token = held(disk, Time())
    link = disk / "edge" / ".to.old"
    inode = link.lstat().st_ino
    guard.apply({"token": token, "generation": "newer", "files": NEW, "hold": True})
    assert link.lstat().st_ino == inode
    guard.abort({"token": token, "reason": "5xx"})
    assert guard.files() == OLD


def without_room_for_a_link(disk: Path) -> None:
    """Leave no inode on the disk."""
    numbers = os.statvfs(disk)
    used = numbers.f_files - numbers.f_ffree
    subprocess.run(["mount", "-o", f"remount,nr_inodes={used + 20}", disk], check=True, timeout=30)
    with pytest.raises(OSError, match="No space"):
        for number in range(1000):
            (disk / f"filler-{number}").touch()


def test_a_guard_that_cannot_go_back_goes_on_and_does_so_when_there_is_room(disk):
    held(disk, Time())
    (disk / "edge" / ".to.old").unlink()
    without_room_for_a_link(disk)
    served = Served(disk / "edge", lease=0.5)  # the lease begins anew, and ends
    try:
        until(lambda: served.ask("/status")[0] == 507, "it tries to go back")
        served.stop(signal.SIGKILL)
        served.start()  # killed before the rename
        until(lambda: served.ask("/status")[0] == 507, "it tries again")
        assert (served.process.poll(), served.served_route()) == (None, NEW["routes.json"])
        (disk / "filler-0").unlink()
        until(lambda: served.served_route() == OLD["routes.json"], "the old routes")
        until(lambda: served.ask("/status")[1].get("lock", 0) is None, "nobody holds the lock")
        entries = [entry["entry"] for entry in served.ask("/status")[1]["journal"]]
        assert entries[-2:] == ["return", "fence"]
        assert entries.count("return") == 1
    finally:
        served.stop()
