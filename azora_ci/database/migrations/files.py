"""The files of SQL that hold migrations, wherever a tool keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from azora_ci.core.errors import BadInputError
from azora_ci.database.migrations import encoding
from azora_ci.database.migrations.history import Migration

# What undoes a migration, as dbmate, goose and sql-migrate, Knex and golang-migrate name it: never applied by a deployment.
_DOWN_MARKS = ("-- migrate:down", "-- +goose down", "-- +migrate down")
_DOWN_FILES = (".down.sql", ".undo.sql", "/down.sql")
_FOLDERS = ("prisma/migrations", "migrations", "db/migrations", "drizzle", "supabase/migrations")


def find(path: Path) -> list[Path]:
    """Return the files of SQL below a path in the order in which tools apply them: the file itself, a folder's, or an application's.

    Raises BadInputError when there are none.
    """
    found = [[path]] if path.is_file() else list(folders(path))
    if found:
        return found[0]
    raise BadInputError(
        "No migrations",
        what=f"no *.sql and no */migration.sql is there, nor in {', '.join(_FOLDERS)} below it",
        where=str(path),
        next_step="name a file of SQL, or the folder that holds the migrations",
    )


def folders(path: Path) -> Iterator[list[Path]]:
    """Yield the files of SQL in a folder, then in each of the usual ones below it; without those that undo. None is empty."""
    for folder in (path, *(path / name for name in _FOLDERS)):
        files = {*folder.glob("*/migration.sql"), *folder.glob("*/up.sql"), *folder.glob("*.sql")}
        if applied := sorted(file for file in files if not str(file).lower().endswith(_DOWN_FILES)):
            yield applied


def read(files: Iterable[Path]) -> list[tuple[str, str]]:
    """Return (path, SQL) of each file, without what undoes it. Raises BadInputError for one that is not UTF-8."""
    contents = [(str(file), file.read_bytes()) for file in files]
    unreadable = [f"{name}: {problem}" for name, content in contents if (problem := encoding.problem(content))]
    if unreadable:
        raise BadInputError(
            "A migration is not UTF-8", what="\n".join(unreadable), where=contents[0][0],
            next_step="save it as UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW)",
        )  # fmt: skip
    return [(name, without_down(Migration(name, content).text)) for name, content in contents]


def without_down(text: str) -> str:
    """Return a migration without the part that undoes it."""
    lines = text.splitlines(keepends=True)
    marked = (number for number, line in enumerate(lines) if line.strip().lower().startswith(_DOWN_MARKS))
    return "".join(lines[: next(marked, len(lines))])


def pending(files: Sequence[Path], histories: Iterable[str]) -> list[Path] | None:
    """Return the files that a tool has not noted as applied; None where its history does not say.

    ``histories``: the rows of the tables in which tools note that, as ``catalogue`` reads them. A row names a file by its name, or by the
    moment that begins it; shorter numbers are left alone, because rows have numbers of their own.
    """
    rows = [set(re.split(r"[(),\"\s]+", line.partition(": ")[2])) for line in histories]
    noted = set().union(*rows)
    applied = [bool(_names(file) & noted) for file in files]
    if not any(applied):
        return None if rows else list(files)
    first = len(applied) - applied[::-1].index(True) if len(rows) == 1 else 0  # a tool that keeps one row, its last
    return [file for number, file in enumerate(files) if number >= first and not applied[number]]


def _names(file: Path) -> set[str]:
    own = file.parent.name if file.stem in {"up", "migration"} else file.stem.removesuffix(".up")
    moment = re.match(r"\d{8,}", own.replace("-", ""))
    return {file.name, own, moment[0] if moment else own} - {"up.sql", "migration.sql"}
