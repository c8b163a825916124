from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from azora_ci.core.errors import BadInputError
from azora_ci.database import scratch


def test_too_little_disk_names_the_way_out(tmp_path: Path):
    with pytest.raises(BadInputError, match="Not enough disk") as caught:
        scratch.require_space(tmp_path, 10**18, private=True)
    assert "BACKUP_VERIFY_DATABASE_URL" in caught.value.next_step
    scratch.require_space(tmp_path, 1000, private=True)


def test_only_dead_runs_are_swept(tmp_path: Path):
    dead, alive, other = tmp_path / "azora-backup-dead", tmp_path / "azora-backup-alive", tmp_path / "somebody-elses"
    for folder in (dead, alive, other):
        folder.mkdir()
    with (alive / "alive").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert scratch.sweep(tmp_path) == [dead]
    assert alive.exists() and other.exists() and not dead.exists()


def test_work_folder_goes_whatever_happens(tmp_path: Path):
    with pytest.raises(RuntimeError), scratch.work_folder(tmp_path) as folder:
        (folder / "spool").write_bytes(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
