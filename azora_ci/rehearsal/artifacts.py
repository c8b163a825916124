"""Artifacts of a rehearsed run, with the rules of actions/upload-artifact and actions/download-artifact.

The store is a folder with one folder per artifact. Rules kept, from those actions' READMEs: an artifact is immutable and its
name is taken for the whole run, re-runs included; some characters are refused in names; hidden files are left out unless asked
for; a single folder or file becomes the root, several paths keep what is below their least common ancestor; a line that starts
with ``!`` excludes; a download by name that finds nothing fails, a download by pattern that finds nothing does not.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from azora_ci import settings

FORBIDDEN = '":<>|*?\\/\r\n'
MAGIC = "*?["


class ArtifactError(Exception):
    """What the real action would fail with."""


def upload(store: Path, name: str, paths: str, *, root: Path, hidden: bool = False, if_none: str = "warn") -> list[Path]:
    """Store the files that ``paths`` (lines of globs, folders, files below ``root``) name; return them relative to the artifact.

    Raises ArtifactError for a name that is taken or not allowed, and for no files with ``if_none="error"``.
    """
    if not name or any(character in FORBIDDEN for character in name):
        raise ArtifactError(f"the artifact name {name!r} is not valid: none of {FORBIDDEN!r} may be in it")
    base, files = find_files(paths, root=root, hidden=hidden)
    if not files:
        if if_none == "error":
            raise ArtifactError(f"no files were found with the provided path: {paths!r}")
        return []
    folder = store / name
    store.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        raise ArtifactError(f"409 Conflict: an artifact with the name {name} already exists on the workflow run") from None
    stored = [file.relative_to(base) for file in files]
    for file, target in zip(files, stored, strict=True):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / target)
    return stored


def find_files(paths: str, *, root: Path, hidden: bool) -> tuple[Path, list[Path]]:
    """Return the folder that becomes the artifact's root and the files, sorted."""
    lines = [line.strip() for line in paths.splitlines() if line.strip()]
    wanted = [line for line in lines if not line.startswith("!")]
    unwanted = [str(root / line[1:].rstrip("/")) for line in lines if line.startswith("!")]
    found: set[Path] = set()
    bases: list[Path] = []
    for pattern in wanted:
        hits = [Path(hit) for hit in glob.glob(str(root / pattern), recursive=True, include_hidden=hidden)]  # noqa: PTH207 - Path.glob cannot leave hidden files out
        bases.append(_base_of(root / pattern))
        for hit in hits:
            found.update(_files_below(hit) if hit.is_dir() else [hit])
    kept = [file for file in found if not any(_matches(file, pattern) for pattern in unwanted)]
    if not hidden:
        kept = [file for file in kept if not _is_hidden(file, root)]
    base = bases[0] if len(bases) == 1 else Path(os.path.commonpath(bases)) if bases else root
    return base, sorted(kept)


def _base_of(pattern: Path) -> Path:
    """Return the folder below which a pattern's files keep their relative paths."""
    plain: list[str] = []
    for part in pattern.parts:
        if any(character in MAGIC for character in part):
            return Path(*plain)
        plain.append(part)
    return pattern if pattern.is_dir() else pattern.parent


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _matches(file: Path, pattern: str) -> bool:
    return fnmatch.fnmatchcase(str(file), pattern) or str(file).startswith(pattern + "/")


def _is_hidden(file: Path, root: Path) -> bool:
    relative = file.relative_to(root) if file.is_relative_to(root) else file
    return any(part.startswith(".") and part not in {".", ".."} for part in relative.parts)


def download(store: Path, target: Path, *, name: str = "", pattern: str = "", merge: bool = False) -> list[str]:
    """Copy artifacts to ``target`` and return their names: one by name, else those that fit ``pattern``, each in its own folder.

    Raises ArtifactError when an artifact asked for by name is not there.
    """
    target.mkdir(parents=True, exist_ok=True)
    there = sorted(path.name for path in store.iterdir()) if store.is_dir() else []
    if name:
        if name not in there:
            raise ArtifactError(f"unable to find an artifact with the name {name}; there are: {', '.join(there) or '(none)'}")
        shutil.copytree(store / name, target, dirs_exist_ok=True)
        return [name]
    chosen = [one for one in there if not pattern or _fits(one, pattern)]
    for one in chosen:
        shutil.copytree(store / one, target if merge else target / one, dirs_exist_ok=True)
    return chosen


def _fits(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, one) for one in _braces(pattern))


def _braces(pattern: str) -> Iterable[str]:
    """Expand one level of ``{a,b}``, which the real action's minimatch knows."""
    before, opening, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    if not (opening and closing):
        return [pattern]
    return [f"{before}{choice}{after}" for choice in inside.split(",")]


def main(action: str) -> int:
    """Act as the composite action does: inputs come as ``INPUT_*``, the store is ``REHEARSAL_ARTIFACTS``."""
    environ = settings.environment()

    def given(name: str) -> str:
        return environ.get(f"INPUT_{name}", "")

    store, workspace = Path(environ["REHEARSAL_ARTIFACTS"]), Path(environ["GITHUB_WORKSPACE"])
    try:
        if action == "upload":
            hidden = given("INCLUDE_HIDDEN_FILES") == "true"
            files = upload(store, given("NAME"), given("PATH"), root=workspace, hidden=hidden, if_none=given("IF_NO_FILES_FOUND"))
            note = "" if files else f"::warning::No files were found with the provided path: {given('PATH')}\n"
            print(f"{note}artifact {given('NAME')}: {len(files)} files")
        else:
            merge = given("MERGE_MULTIPLE") == "true"
            names = download(store, workspace / given("PATH"), name=given("NAME"), pattern=given("PATTERN"), merge=merge)
            print(f"downloaded {len(names)} artifacts: {', '.join(names) or '(none)'}")
    except ArtifactError as error:
        print(f"::error::{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
