"""Applications as the field has them: each is adopted with few lines by hand, and goes through a whole rehearsal."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.cli.adopt import plan
from azora_ci.cli.common import repository_problems
from azora_ci.core import config
from tests.support.commands import git
from tests.support.gallery import GALLERY, NAMES, GalleryApplication
from tests.support.rehearsals import command, living, rehearse

MEDIAN = 3
ALWAYS = ("nest_status_ok", "production_overrides", "scheduler")  # the others with scripts/test --all


@pytest.mark.parametrize("name", NAMES)
def test_is_adopted_with_its_edits(name: str, tmp_path: Path) -> None:
    application = GalleryApplication(name)
    folder = application.repository(tmp_path / name)
    text = application.adopt(folder)
    config.load(folder / plan.CONFIG)
    lacking = [str(problem) for problem in repository_problems(folder, plan.CONFIG) if problem.where.startswith("services.")]
    assert lacking == []  # each folder and Dockerfile is there; what is still a guess is counted below
    assert {file.state for file in plan.plan(folder).files} == {"same", "kept"}
    assert len(application.by_hand(text)) <= 7, application.by_hand(text)


def test_few_lines_are_written_by_hand(tmp_path: Path) -> None:
    counts = {}
    for name in NAMES:
        application = GalleryApplication(name)
        counts[name] = application.by_hand(application.adopt(application.repository(tmp_path / name)))
    shown = "\n".join(f"{name}: {len(lines)} {lines}" for name, lines in counts.items())
    assert len(counts) >= 8 and statistics.median(map(len, counts.values())) <= MEDIAN, shown


@pytest.fixture
def base() -> Iterator[Path]:
    """Provide a folder for a rehearsal, with a short name, as paths of sockets are."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.rehearsal
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.gallery) for name in NAMES])
def test_goes_through_a_rehearsal(name: str, tmp_path: Path, base: Path) -> None:
    application = GalleryApplication(name)
    folder = application.repository(tmp_path / name)
    application.adopt(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    try:
        rehearsed = rehearse(base, ("--application", str(folder), *application.options))
        rehearsed.well()
        assert "production as it is: v1.0.0 of" in rehearsed.output
        assert "replaced public_url: " in rehearsed.output
    finally:
        command(base, "--end")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "a rehearsal only reads the repository"
    assert git(folder, "status", "--porcelain") == "" and living(base) == []


def test_every_application_says_what_it_is() -> None:
    assert {folder.name for folder in GALLERY.iterdir() if (folder / "app").is_dir()} == set(NAMES)
    assert all((GALLERY / name / "edits.toml").read_text(encoding="utf-8").startswith("# ") for name in NAMES)
