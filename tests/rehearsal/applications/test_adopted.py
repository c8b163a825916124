"""Which releases of somebody's repository are rehearsed, and that nothing but its commits is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from azora_ci.cli.adopt import plan
from azora_ci.core.errors import BadInputError
from azora_ci.core.process import Processes
from azora_ci.rehearsal.applications.adopted import Adopted
from azora_ci.rehearsal.repo import ScratchRepository
from tests.support.commands import git
from tests.support.gallery import GalleryApplication


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    application = GalleryApplication("production_overrides")
    folder = application.repository(tmp_path / "bookings")
    application.adopt(folder)
    return folder


def begun(theirs: Path, processes: Processes, old_ref: str | None = None) -> tuple[Adopted, ScratchRepository]:
    adopted = Adopted(theirs, old_ref=old_ref)
    scratch = ScratchRepository(theirs.parent / "scratch" / str(len(list(theirs.parent.glob("scratch/*")))), processes)
    adopted.begin(scratch)
    return adopted, scratch


def test_production_runs_the_newest_earlier_tag(theirs: Path, processes: Processes) -> None:
    adopted, scratch = begun(theirs, processes)
    assert (adopted.old, adopted.new, adopted.name) == ("v1.0.0", "v1.0.1", "local/bookings")
    assert scratch.git("rev-parse", "v1.0.0^{commit}") == git(theirs, "rev-parse", "v1.0.0^{commit}")
    demand = adopted.demand()
    assert demand.old_migrations == ("20260901080000_orders",)
    assert demand.migrations == {"20260901080000_orders": True, "20261101080000_note": True}
    assert adopted.load_paths == ("/health answer",) and demand.versioned_paths == ("/health",)


def test_a_tagged_head_is_that_release(theirs: Path, processes: Processes) -> None:
    git(theirs, "tag", "v2.0.0")
    git(theirs, "tag", "v1.5.0-rc1")
    git(theirs, "tag", "valid-name-but-no-version", "HEAD~1")
    adopted, _ = begun(theirs, processes)
    assert (adopted.old, adopted.new) == ("v1.0.0", "v2.0.0")


def test_without_an_earlier_tag_head_is_deployed_twice(theirs: Path, processes: Processes) -> None:
    git(theirs, "tag", "--delete", "v1.0.0")
    adopted, scratch = begun(theirs, processes)
    assert (adopted.old, adopted.new) == ("v0.1.0", "v0.1.1")
    assert adopted.demand().old_migrations == tuple(adopted.demand().migrations)
    assert any("as if production ran it already" in remark for remark in adopted.remarks())
    adopted.release(scratch, adopted.new, None)
    assert scratch.git("diff", "--name-only", "v0.1.0", "v0.1.1") == "rehearsed-version.txt", "else both would have one digest"


def test_what_production_runs_can_be_named(theirs: Path, processes: Processes) -> None:
    adopted, scratch = begun(theirs, processes, "HEAD~1")
    assert (adopted.old, adopted.new) == ("v0.1.0", "v1.0.1")
    assert scratch.git("rev-parse", "v0.1.0^{commit}") == git(theirs, "rev-parse", "HEAD~1")


def test_uncommitted_changes_are_left_out_and_said(theirs: Path, processes: Processes) -> None:
    (theirs / "server.mjs").write_text("broken", encoding="utf-8")
    adopted, scratch = begun(theirs, processes)
    assert "broken" not in (scratch.folder / "server.mjs").read_text(encoding="utf-8")
    assert any("not committed" in remark for remark in adopted.remarks())


def committed(theirs: Path, edit: Callable[[str], str]) -> None:
    """Commit an edited configuration."""
    path = theirs / plan.CONFIG
    text = path.read_text(encoding="utf-8")
    assert edit(text) != text
    path.write_text(edit(text), encoding="utf-8")
    git(theirs, "commit", "--quiet", "-a", "-m", "Edit")


def test_no_program_of_their_git_configuration_is_run(theirs: Path, processes: Processes) -> None:
    ran = theirs.parent / "ran"
    program = theirs.parent / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n", encoding="utf-8")
    program.chmod(0o755)
    hook = theirs / ".git/hooks/post-index-change"
    hook.symlink_to(program)
    (theirs / ".git/info").mkdir(exist_ok=True)
    (theirs / ".git/info/attributes").write_text("* filter=theirs\n", encoding="utf-8")
    for key in ("filter.theirs.clean", "filter.theirs.smudge", "core.fsmonitor", "core.sshCommand", "core.pager", "diff.external"):
        git(theirs, "config", key, str(program))
    (theirs / "server.mjs").write_text((theirs / "server.mjs").read_text(encoding="utf-8"), encoding="utf-8")
    ran.unlink(missing_ok=True)
    adopted, _ = begun(theirs, processes)
    assert not ran.exists()
    assert not any("not committed" in remark for remark in adopted.remarks())


def test_a_repository_that_would_fetch_what_is_missing_is_refused(theirs: Path, processes: Processes) -> None:
    git(theirs, "config", "remote.origin.promisor", "true")
    with pytest.raises(BadInputError, match="Not a whole repository"):
        begun(theirs, processes)


def test_nothing_outside_of_the_clone_is_written_or_removed(theirs: Path, processes: Processes) -> None:
    outside = theirs.parent / "outside"
    outside.mkdir()
    (outside / ".dockerignore").write_text("keep\n", encoding="utf-8")
    (theirs / "elsewhere").symlink_to(outside)
    git(theirs, "add", "elsewhere")
    git(theirs, "tag", "--delete", "v1.0.0")
    committed(theirs, lambda text: re.sub(r'^context = ".*"$', 'context = "elsewhere"', text, flags=re.MULTILINE))
    adopted, scratch = begun(theirs, processes)
    for act in (
        lambda: adopted.write_old(scratch, theirs.parent / "old"),
        lambda: adopted.base_images(scratch.folder),
        lambda: adopted.release(scratch, adopted.new, None),
    ):
        with pytest.raises(BadInputError, match="leads out"):
            act()
    assert [path.name for path in outside.iterdir()] == [".dockerignore"]


def test_a_link_in_place_of_what_is_written_is_replaced(theirs: Path, processes: Processes) -> None:
    outside = theirs.parent / "outside"
    outside.write_text("keep\n", encoding="utf-8")
    (theirs / "rehearsed-version.txt").symlink_to(outside)
    git(theirs, "add", "rehearsed-version.txt")
    git(theirs, "commit", "--quiet", "-m", "Link")
    git(theirs, "tag", "--delete", "v1.0.0")
    adopted, scratch = begun(theirs, processes)
    adopted.release(scratch, adopted.new, None)
    assert outside.read_text(encoding="utf-8") == "keep\n"
    (theirs / plan.CONFIG).rename(theirs / "real.toml")
    (theirs / plan.CONFIG).symlink_to(theirs / "real.toml")
    git(theirs, "add", "--all")
    git(theirs, "commit", "--quiet", "-m", "Link")
    with pytest.raises(BadInputError, match="not adopted"):
        begun(theirs, processes)


def test_a_repository_that_is_not_adopted_is_refused(theirs: Path, processes: Processes) -> None:
    git(theirs, "rm", "--quiet", plan.CONFIG.as_posix())
    git(theirs, "commit", "--quiet", "-m", "Undo")
    with pytest.raises(BadInputError, match="not adopted") as refused:
        begun(theirs, processes)
    assert "adopt" in refused.value.next_step
    with pytest.raises(BadInputError, match="Not a repository"):
        begun(theirs / "prisma", processes)


def test_secrets_are_given_or_the_database_or_made_up(theirs: Path, processes: Processes) -> None:
    text = (theirs / plan.CONFIG).read_text(encoding="utf-8")
    names = '["DATABASE_URL", "SESSION_SECRET", "STRIPE_KEY", "REPORTS_DB_URL"]'
    lines = [f"secrets = {names}" if line.startswith("secrets =") else line for line in text.splitlines()]
    assert f"secrets = {names}" in lines
    (theirs / plan.CONFIG).write_text("\n".join(lines) + "\n", encoding="utf-8")
    git(theirs, "commit", "--quiet", "-a", "-m", "More secrets")
    adopted, _ = begun(theirs, processes)
    adopted.given_secrets = {"STRIPE_KEY": "sk_test"}
    values = adopted.secrets("postgresql://here/x")
    assert values["DATABASE_URL"] == values["REPORTS_DB_URL"] == "postgresql://here/x"
    assert values["STRIPE_KEY"] == "sk_test" and len(values["SESSION_SECRET"]) == 48
    assert adopted.secrets("x")["SESSION_SECRET"] == values["SESSION_SECRET"]
    said = "\n".join(adopted.remarks())
    assert "secret SESSION_SECRET is made up" in said and "STRIPE_KEY" not in said
    assert not set(values.values()) & set(said.split())


def test_base_images_are_themselves_or_what_was_given(theirs: Path, processes: Processes) -> None:
    adopted, scratch = begun(theirs, processes)
    assert adopted.base_images(scratch.folder) == {"node:22-slim": "node:22-slim"}
    adopted.given_images = {"node:22-slim": "mirror.example/node:22"}
    assert adopted.base_images(scratch.folder) == {"node:22-slim": "mirror.example/node:22"}
