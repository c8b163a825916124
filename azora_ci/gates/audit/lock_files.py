"""Finds the lock files of an application and reads them. Reads nothing outside of the repository and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.core.documents import read_json
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.gates.audit import bun_lock, npm_lock, pnpm_lock, yarn_lock
from azora_ci.gates.audit.packages import LIMITS, Locked, mapping

DEEPEST = 64  # levels of YAML; lock files have 5
NOT_OURS = frozenset({"node_modules", ".git", ".yarn"})
# What taking a document apart raises when it has another shape than expected, and what reading it raises.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, RecursionError, OSError)


@dataclass(frozen=True)
class LockFile:
    """A lock file: its path below the repository, the manager that wrote it, and its production packages."""

    path: str
    manager: str
    locked: Locked


def find(repository: Path, contexts: Iterable[Path] = ()) -> list[LockFile]:
    """Return every lock file in the root, in the workspaces' folders, and in ``contexts``, the folders that services are built from.

    Raises NotTrueError when there is none, BadInputError for one that cannot be read.
    """
    root = repository.resolve()
    folders = {root} | set(workspaces(root, root))
    folders |= {root / context for context in contexts if _inside(root, root / context)}
    files = [
        _read(root, path, manager)
        for folder in sorted(folders)
        for name, manager in FILES.items()
        if (path := folder / name).is_symlink() or path.exists()
    ]
    if not files:
        raise NotTrueError(
            "Nothing to audit",
            what=f"no lock file in {len(folders)} folders: without one nobody knows which versions production gets",
            where=", ".join(FILES),
            next_step="commit the package manager's lock file; without any packages set validation.audit.level to none, with a reason",
        )
    return files


def _inside(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root)


def _said(error: Exception) -> str:
    """Return the sentence of one of ``UNREADABLE``; those without one of ours are of a document of another shape."""
    return str(error)[:1000] if isinstance(error, ValueError | OSError) else f"it has another shape: {type(error).__name__}: {error}"[:300]


def _text(root: Path, path: Path) -> str:
    """Return the text of a file of the repository. Raises ValueError for a link that leads out of it, and for a huge file."""
    if not _inside(root, path) or not path.is_file():
        raise ValueError("it is no file of this repository")
    size = path.stat().st_size
    if size > LIMITS.size:
        raise ValueError(f"it has {size} bytes, more than {LIMITS.size}")
    return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark


def _json(root: Path, path: Path) -> dict[str, Any]:
    document = read_json(_text(root, path), LIMITS)
    if not isinstance(document, dict):
        raise ValueError("it holds no object")  # noqa: TRY004 - a wrong document, whatever its type
    return document


def _yaml(text: str) -> list[dict[str, Any]]:
    """Return the mappings of a YAML file's documents, each scalar as text. Raises ValueError for aliases and for deep nesting.

    They are built from the parser's events, because PyYAML's composers recurse: deep nesting would end the process.
    """
    import yaml

    documents: list[dict[str, Any]] = []
    stack: list[list[Any]] = []
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has YAML aliases")  # noqa: TRY004 - a wrong document, no wrong type
            if isinstance(event, yaml.DocumentStartEvent | yaml.CollectionStartEvent):
                stack.append([])
                if len(stack) > DEEPEST:
                    raise ValueError(f"it is nested deeper than {DEEPEST} levels")
            elif isinstance(event, yaml.ScalarEvent):
                stack[-1].append(event.value)
            elif isinstance(event, yaml.SequenceEndEvent):
                items = stack.pop()
                stack[-1].append(items)
            elif isinstance(event, yaml.MappingEndEvent):
                items = stack.pop()
                stack[-1].append({str(name): value for name, value in zip(items[::2], items[1::2], strict=True)})
            elif isinstance(event, yaml.DocumentEndEvent):
                documents += [item for item in stack.pop() if isinstance(item, dict)]
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return documents


# --- one reader for each file -------------------------------------------------------------------------------------------


def _npm(root: Path, path: Path) -> Locked:
    return npm_lock.read(_json(root, path))


def _pnpm(root: Path, path: Path) -> Locked:
    return pnpm_lock.read(_yaml(_text(root, path)))


def _yarn(root: Path, path: Path) -> Locked:
    text, manifests = _text(root, path), _manifests(root, path.parent)
    if "__metadata:" not in text:
        return yarn_lock.read_classic(text, manifests)
    return yarn_lock.read_berry(next(iter(_yaml(text)), {}), manifests)


def _bun(root: Path, path: Path) -> Locked:
    return bun_lock.read(_text(root, path))


def _binary_bun(_root: Path, _path: Path) -> Locked:
    raise ValueError("it is Bun's binary format: write bun.lock with bun install --save-text-lockfile, and remove bun.lockb")


FILES: dict[str, str] = {
    "package-lock.json": "npm",
    "npm-shrinkwrap.json": "npm",
    "pnpm-lock.yaml": "pnpm",
    "yarn.lock": "yarn",
    "bun.lock": "bun",
    "bun.lockb": "bun",
}
_READERS: dict[str, Callable[[Path, Path], Locked]] = {
    "package-lock.json": _npm,
    "npm-shrinkwrap.json": _npm,
    "pnpm-lock.yaml": _pnpm,
    "yarn.lock": _yarn,
    "bun.lock": _bun,
    "bun.lockb": _binary_bun,
}


def _read(root: Path, path: Path, manager: str) -> LockFile:
    relative = path.relative_to(root).as_posix()
    try:
        return LockFile(relative, manager, _READERS[path.name](root, path))
    except UNREADABLE as error:
        raise BadInputError(
            "Lock file cannot be read",
            what=_said(error),
            where=relative,
            next_step=f"write it again with {manager} and commit it",
        ) from error


# --- package.json --------------------------------------------------------------------------------------------------------


def _manifests(root: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Return folder (relative, ``.`` for the root of the workspaces) -> package.json, of a folder and of its workspaces."""
    return {
        workspace.relative_to(folder).as_posix(): _json(root, workspace / "package.json")
        for workspace in [folder, *workspaces(root, folder)]
        if (workspace / "package.json").is_file()
    }


def workspaces(root: Path, folder: Path) -> Iterator[Path]:
    """Yield the folders of the workspaces that package.json or pnpm-workspace.yaml names. Raises BadInputError."""
    for pattern in _patterns(root, folder):
        try:
            paths = list(folder.glob(pattern.strip("/")))
        except UNREADABLE as error:
            what, where = f"{pattern[:200]!r}: {_said(error)}", f"workspaces of {folder.relative_to(root).as_posix()}/package.json"
            raise BadInputError("A pattern of workspaces cannot be read", what=what, where=where, next_step="correct it") from error
        for path in paths:
            if path.is_dir() and _inside(root, path) and path.is_relative_to(folder) and not NOT_OURS & set(path.relative_to(folder).parts):
                yield path


def _patterns(root: Path, folder: Path) -> list[str]:
    patterns: list[object] = []
    for name in ("package.json", "pnpm-workspace.yaml"):
        path = folder / name
        try:
            if path.exists() and name == "package.json":
                named = _json(root, path).get("workspaces")
                patterns += (mapping(named).get("packages") if isinstance(named, dict) else named) or []
            elif path.exists():
                patterns += [pattern for document in _yaml(_text(root, path)) for pattern in document.get("packages") or []]
        except UNREADABLE as error:
            raise BadInputError(
                f"{name} cannot be read", what=_said(error), where=str(path.relative_to(root)), next_step="correct it"
            ) from error
    usable = [pattern for pattern in patterns if isinstance(pattern, str) and pattern.strip("./")]
    return [pattern for pattern in usable if not pattern.startswith(("!", "/")) and ".." not in Path(pattern).parts]
