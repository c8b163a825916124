"""The application's tree that build packed, and the migrations in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import tree as packing
from azora_ci.database.migrations import tree


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    for name in ("1_first", "2_second"):
        (folder / "migrations" / name).mkdir(parents=True)
        (folder / "migrations" / name / "migration.sql").write_text(f"SELECT '{name}';", encoding="utf-8")
    (folder / "migrations" / "migration_lock.toml").write_text("provider", encoding="utf-8")
    return folder


def hand_over(folder: Path, received: Path, name: str = "application-tree") -> dict[str, object]:
    (received / name).mkdir(parents=True)
    return packing.pack(folder, received / name / "tree.tar.zst").evidence()


def test_the_tree_that_was_built(checkout: Path, tmp_path: Path) -> None:
    recorded = hand_over(checkout, tmp_path / "received")
    tree.unpack(tmp_path / "received", recorded, tmp_path / "tree")
    assert tree.require_same_migrations(checkout / "migrations", tmp_path / "tree" / "migrations") == 3


def test_no_tree_and_two_trees(checkout: Path, tmp_path: Path) -> None:
    recorded = hand_over(checkout, tmp_path / "received", "application-tree-attempt-2")
    with pytest.raises(NotTrueError, match="build packed none"):
        tree.unpack(tmp_path / "received", None, tmp_path / "tree")
    with pytest.raises(NotTrueError, match="0 artifacts"):
        tree.unpack(tmp_path / "elsewhere", recorded, tmp_path / "tree")
    hand_over(checkout, tmp_path / "received")
    with pytest.raises(NotTrueError, match="2 artifacts"):
        tree.unpack(tmp_path / "received", recorded, tmp_path / "tree")


def test_another_tree(checkout: Path, tmp_path: Path) -> None:
    recorded = hand_over(checkout, tmp_path / "received")
    with pytest.raises(NotTrueError, match="not the one that was built"):
        tree.unpack(tmp_path / "received", {**recorded, "sha256": "0" * 64}, tmp_path / "tree")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "1_first" / "migration.sql").write_text("DROP TABLE users;"), "1_first/migration.sql has other bytes"),
        (lambda folder: (folder / "2_second" / "migration.sql").unlink(), "2_second/migration.sql is not in the tree"),
        (lambda folder: (folder / "3_third.sql").write_text(""), "3_third.sql is not in the commit"),
        (lambda folder: (folder / "migration_lock.toml").write_text("mysql"), "migration_lock.toml has other bytes"),
        (lambda folder: (folder / "link").symlink_to("1_first"), "link is not in the commit"),
    ],
)
def test_migrations_that_the_build_changed(checkout: Path, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    recorded = hand_over(checkout, tmp_path / "received")
    tree.unpack(tmp_path / "received", recorded, tmp_path / "tree")
    change(tmp_path / "tree" / "migrations")
    with pytest.raises(NotTrueError, match=message) as caught:
        tree.require_same_migrations(checkout / "migrations", tmp_path / "tree" / "migrations")
    assert "1 of " in caught.value.what
