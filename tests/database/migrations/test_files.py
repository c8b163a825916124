"""Which files a tool has not applied yet, by the rows of its history."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.database.migrations import files

NAMES = ("20260101000000_a", "20260201000000_b", "20260301000000_c")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["(20260101000000)", "(20260201000000)"], ["20260301000000_c"]),  # dbmate, Rails
        (["(20260101000000)", "(20260301000000)"], ["20260201000000_b"]),  # one that comes late
        (["(20260201000000,f)"], ["20260301000000_c"]),  # golang-migrate keeps its last one
        (['(1,20260101000000_a,"2026-01-01 00:00:00")', '(2,20260201000000_b,"2026-01-01 00:00:00")'], ["20260301000000_c"]),
        (["(1,20260101000000_a.sql,1,x)", "(2,20260201000000_b.sql,2,x)", "(3,20260301000000_c.sql,3,x)"], []),
        ([], list(NAMES)),
        (["(7,f)"], None),
    ],
)
def test_pending_files_are_those_that_no_row_names(rows: list[str], expected: list[str] | None):
    found = files.pending([Path(f"{name}.sql") for name in NAMES], [f"history public.x: {row}" for row in rows])
    assert (None if found is None else [file.stem for file in found]) == expected


def test_small_numbers_are_not_taken_for_names():
    assert files.pending([Path("1_a.sql"), Path("2_b.sql")], ["history public.goose_db_version: (1,0,t)", "history x.g: (2,1,t)"]) is None


def test_folders_are_named_by_their_moment():
    found = files.pending([Path("2026-01-01-000000_a/up.sql"), Path("2026-02-01-000000_b/up.sql")], ["history p.d: (20260101000000,x)"])
    assert found == [Path("2026-02-01-000000_b/up.sql")]
