"""Applications of ``tests/gallery``: a repository of each with two releases, adopted as a person does it.

``<name>/app`` is the application, ``<name>/edits.toml`` says what its newest release adds and what a person writes into the
configuration by hand: ``{ table = "services.web", key = "singleton", value = "true" }`` is one line, without a value one to delete.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt import plan
from azora_ci.gates import readiness
from tests.support import ROOT
from tests.support.commands import git

GALLERY = ROOT / "tests" / "gallery"
NAMES = tuple(sorted(folder.parent.name for folder in GALLERY.glob("*/edits.toml")))
COMMIT = "5e7" + "0" * 37
# What only its owner knows of any application: host names and contacts. Secrets are no lines of the configuration.
OWN = {"public_url", "on_call", "public_health_url", "repository", "location", "endpoints"}


@dataclass(frozen=True)
class Edit:
    """A line that a person writes, replaces or deletes in a table of the configuration; ``value`` is TOML, None deletes it."""

    table: str
    key: str
    value: str | None = None

    def apply(self, text: str) -> str:
        """Return the configuration with this line."""
        header = f"[{self.table}]\n"
        if header not in text:
            return f"{text}\n{header}{self.key} = {self.value}\n"
        start = text.index(header) + len(header)
        end = text.find("\n[", start)
        table, rest = text[start : end if end != -1 else len(text)], text[end:] if end != -1 else ""
        line = f"{self.key} = {self.value}\n" if self.value is not None else ""
        pattern = re.compile(rf"^{re.escape(self.key)} = .*\n?", re.MULTILINE)
        table = pattern.sub(lambda _: line, table, count=1) if pattern.search(table) else line + table
        return text[:start] + table + rest


class GalleryApplication:
    """An application of the gallery."""

    def __init__(self, name: str) -> None:
        self.name = name
        document: dict[str, Any] = tomllib.loads((GALLERY / name / "edits.toml").read_text(encoding="utf-8"))
        self.new: tuple[str, ...] = tuple(document["new"])
        self.options: tuple[str, ...] = tuple(document.get("rehearse", ()))
        self.edits = tuple(Edit(**edit) for edit in document["edits"])

    def repository(self, folder: Path) -> Path:
        """Make a repository with the old release as v1.0.0 and the new one as its HEAD; return its folder."""
        shutil.copytree(GALLERY / self.name / "app", folder)
        later = {path: folder.parent / f"{folder.name}-later-{number}" for number, path in enumerate(self.new)}
        for path, aside in later.items():
            (folder / path).rename(aside)
        git(folder, "init", "--quiet", "--initial-branch=main")
        _commit(folder, "First release")
        git(folder, "tag", "-a", "v1.0.0", "-m", "1.0.0")
        for path, aside in later.items():
            aside.rename(folder / path)
        _commit(folder, "Go on")
        return folder

    def adopt(self, folder: Path) -> str:
        """Adopt the repository as the command does, with what a person writes by hand, and commit; return the configuration."""
        plan.adopt(folder, action_ref=COMMIT)
        path = folder / plan.CONFIG
        text = path.read_text(encoding="utf-8")
        for edit in self.edits:
            text = edit.apply(text)
        path.write_text(text, encoding="utf-8")
        plan.adopt(folder, action_ref=COMMIT)  # the workflows name the services and secrets of the configuration
        _commit(folder, "Adopt azora-ci")
        return text

    def by_hand(self, text: str) -> list[str]:
        """Return the lines that a person writes beyond host names and contacts: the edits, and every other line that is marked."""
        lines = text.splitlines()
        marked = [lines[number - 1].partition("=")[0].strip() for number, _ in readiness.to_fill_in(text)]
        return [*(f"[{edit.table}] {edit.key}" for edit in self.edits), *_without(marked, OWN)]


def _without(keys: Iterable[str], left_out: set[str]) -> list[str]:
    return [key for key in keys if key not in left_out]


def _commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "-m", message)
