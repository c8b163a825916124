"""Store artifacts of a rehearsed run by the rules of actions/upload-artifact and actions/download-artifact.

The store is a folder with one folder per artifact. Rules kept, from those actions' READMEs: an artifact is immutable and its
name is taken for the whole run, re-runs included; some characters are refused in names; hidden files are left out unless asked
for; a single folder or file becomes the root, several paths keep what is below their least common ancestor; a line that starts
with ``!`` excludes; a download by name or ids that finds nothing fails, a download by pattern that finds nothing does not.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from azora_ci.core import environment

FORBIDDEN = '":<>|*?\\/\r\n'
MAGIC = "*?["
# act hands on the output of a skipped job as the text of its expression; on GitHub it is empty.
UNEVALUATED = re.compile(r"\$\{\{.*?\}\}")


class ArtifactError(Exception):
    """An error with which the real action would fail, too."""


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
    """Return the folder that becomes the artifact's root, and the sorted files that ``paths`` name."""
    lines = [line.strip() for line in paths.splitlines() if line.strip()]
    included = [line for line in lines if not line.startswith("!")]
    excluded = [str(root / line[1:].rstrip("/")) for line in lines if line.startswith("!")]
    matches: set[Path] = set()
    bases: list[Path] = []
    for pattern in included:
        entries = [Path(entry) for entry in glob.glob(str(root / pattern), recursive=True, include_hidden=hidden)]  # noqa: PTH207 - Path.glob cannot leave hidden files out
        bases.append(_base_of(root / pattern))
        for entry in entries:
            matches.update(_files_below(entry) if entry.is_dir() else [entry])
    files = [file for file in matches if not any(_matches(file, pattern) for pattern in excluded)]
    if not hidden:
        files = [file for file in files if not any(_is_hidden(file, base) for base in bases if file.is_relative_to(base))]
    base = bases[0] if len(bases) == 1 else Path(os.path.commonpath(bases)) if bases else root
    return base, sorted(files)


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


def _is_hidden(file: Path, base: Path) -> bool:
    """Say whether a file, or a folder between it and the one that is uploaded (``base``, itself included), has a hidden name."""
    return any(part.startswith(".") for part in file.relative_to(base.parent).parts)


def artifact_id(name: str) -> int:
    """Return the id of an artifact: a number that follows from its name, which is taken only once in a run."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:10], 16)


def download(store: Path, target: Path, *, name: str = "", ids: str = "", pattern: str = "", merge: bool = False) -> list[str]:
    """Copy artifacts to ``target``, return their names: the one called ``name``, those with these comma-separated ids, else by ``pattern``.

    As v7 of the real action does (src/download-artifact.ts): a single artifact goes to ``target`` itself, several into a folder each
    unless ``merge``; empty ids are skipped, and unknown ones, too, where another is known. Raises ArtifactError where nothing is
    found by name or id.
    """
    if name and ids:
        raise ArtifactError("Inputs 'name' and 'artifact-ids' cannot be used together. Please specify only one.")
    target.mkdir(parents=True, exist_ok=True)
    stored = sorted(path.name for path in store.iterdir()) if store.is_dir() else []
    if name:
        names = [artifact for artifact in stored if artifact == name]
    elif ids:
        numbers = _parse_ids(ids)
        names = [artifact for artifact in stored if artifact_id(artifact) in numbers]
    else:
        names = [artifact for artifact in stored if not pattern or _fits(artifact, pattern)]
    if (name or ids) and not names:
        raise ArtifactError(f"unable to find an artifact with {f'the name {name}' if name else f'an id of {ids}'}; there are: {stored}")
    for artifact in names:
        shutil.copytree(store / artifact, target if merge or len(names) == 1 else target / artifact, dirs_exist_ok=True)
    return names


def _parse_ids(text: str) -> set[int]:
    ids = [part.strip() for part in UNEVALUATED.sub("", text).split(",") if part.strip()]
    if not ids:
        raise ArtifactError("No valid artifact IDs provided in 'artifact-ids' input")
    if not all(part.isdecimal() for part in ids):
        raise ArtifactError(f"Invalid artifact ID in {text!r}. Must be a number.")
    return {int(part) for part in ids}


def _fits(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, alternative) for alternative in _braces(pattern))


def _braces(pattern: str) -> Iterable[str]:
    """Expand one level of ``{a,b}``, which the real action's minimatch knows."""
    prefix, opening, remainder = pattern.partition("{")
    inside, closing, suffix = remainder.partition("}")
    if not (opening and closing):
        return [pattern]
    return [f"{prefix}{choice}{suffix}" for choice in inside.split(",")]


def main(action: str) -> int:
    """Run the composite action ``upload`` or ``download``: inputs are ``INPUT_*``, the store is ``REHEARSAL_ARTIFACTS``."""
    environ = environment.process_environment()

    def get_input(name: str) -> str:
        return environ.get(f"INPUT_{name}", "")

    store, workspace = Path(environ["REHEARSAL_ARTIFACTS"]), Path(environ["GITHUB_WORKSPACE"])
    try:
        if action == "upload":
            name, hidden = get_input("NAME"), get_input("INCLUDE_HIDDEN_FILES") == "true"
            files = upload(store, name, get_input("PATH"), root=workspace, hidden=hidden, if_none=get_input("IF_NO_FILES_FOUND"))
            note = "" if files else f"::warning::No files were found with the provided path: {get_input('PATH')}\n"
            print(f"{note}artifact {name}: {len(files)} files")
            if files:
                with Path(environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as output:
                    output.write(f"artifact-id={artifact_id(name)}\n")
        else:
            merge = get_input("MERGE_MULTIPLE") == "true"
            names = download(
                store, workspace / get_input("PATH"), name=get_input("NAME"), ids=get_input("ARTIFACT_IDS"), pattern=get_input("PATTERN"),
                merge=merge,
            )  # fmt: skip
            print(f"downloaded {len(names)} artifacts: {', '.join(names) or '(none)'}")
    except ArtifactError as error:
        print(f"::error::{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
