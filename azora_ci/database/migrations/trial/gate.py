"""What a trial allows: these very migrations were tried, this is expected of them, and production must become what the copy did."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.core.errors import NotTrueError
from azora_ci.database.migrations.history import Migration
from azora_ci.database.migrations.trial import run
from azora_ci.database.migrations.trial.place import without_histories


@dataclass(frozen=True)
class Tried:
    """The evidence of a trial that passed, or was not wanted for a reason."""

    evidence: Mapping[str, Any]

    @property
    def ran(self) -> bool:
        """Return whether the command ran on a copy."""
        return "passed" in self.evidence

    def summary(self) -> dict[str, Any]:
        """Return what the job that migrates records of it."""
        return {"how": self.evidence["how"], "reason": self.evidence["reason"], "seconds": self.evidence.get("seconds")}

    def expectations(self) -> list[str]:
        """Return lines that say, before anything moves, what is to be expected of production."""
        if not self.ran:
            return [f"no trial: {self.evidence['how']}, {self.evidence['reason']}"]
        lines = run.describe(self.evidence)
        if self.evidence["how"] == run.FULL:  # its server never waits for the disk, and nobody else uses it
            lines.append("production waits for its disk and has users: it may take several times as long")
        return [f"tried on a copy ({self.evidence['how']}): {line}" for line in lines]

    def differences(self, before: Iterable[str], after: Iterable[str], *, whole: bool) -> list[str]:
        """Return a line for each object in which production is not what the copy became. ``whole``: all that was tried was applied now.

        ``before`` and ``after`` are production's catalogue.
        """
        if not self.ran:
            return []
        expected = self.evidence["catalogue"]
        earlier, later = without_histories(before), without_histories(after)
        lines = [f"the copy has, production lacks: {line}" for line in expected["gained"] if line not in later]
        lines += [f"production has, the copy lost: {line}" for line in expected["lost"] if line in later]
        if whole and expected["complete"]:
            lines += [f"production gained, the copy did not: {line}" for line in sorted(later - earlier - set(expected["gained"]))]
            lines += [f"production lost, the copy did not: {line}" for line in sorted(earlier - later - set(expected["lost"]))]
        return lines


def require(trial: Mapping[str, Any] | None, pending: Iterable[Migration], tree_sha256: str | None) -> Tried:
    """Return the trial that database-backup recorded. Raises NotTrueError unless it passed with exactly these migrations and files.

    ``pending`` may be fewer than were tried: an attempt before this one applied the others.
    """
    if trial is not None and trial["how"] == run.OFF:
        return Tried(trial)
    problems = []
    if trial is None:
        problems.append("database-backup recorded no trial")
    else:
        tried = {entry["name"]: entry["sha256"] for entry in trial["files"]}
        untried = [migration.name for migration in pending if tried.get(migration.name) != migration.checksum]
        problems += [f"not tried, or with other bytes: {', '.join(untried)}"] if untried else []
        problems += ["the trial did not pass"] if trial.get("passed") is False else []
        if "passed" in trial and trial["tree_sha256"] != tree_sha256:
            problems.append(f"it was tried in the tree {trial['tree_sha256']}, this one is {tree_sha256}")
    if trial is None or problems:
        raise NotTrueError(
            "The migrations were not tried",
            what="\n".join([*problems, "nothing was applied"]),
            where="evidence of database-backup: trial",
            next_step="re-run all jobs, so that they are tried on a copy; MIGRATIONS_TRIAL=false leaves that out for a reason",
        )
    return Tried(trial)


# --- half-way ---------------------------------------------------------------------------------------------------------------

_UNDO = {
    r"column (?P<table>.+)\.(?P<name>\"[^\"]+\"|\w+) .*": "ALTER TABLE {table} DROP COLUMN {name};",
    r"table (?P<table>[^,]+)(,.*)?": "DROP TABLE {table};",
    r"index (?P<name>\S+) on .*": "DROP INDEX {name};",
    r"constraint (?P<name>\S+) on (?P<table>\S+) .*": "ALTER TABLE {table} DROP CONSTRAINT {name};",
    r"type (?P<name>.+?)( of .*)?": "DROP TYPE {name};",
}


def halfway(tried: Tried, before: Iterable[str], after: Iterable[str], failed: str) -> list[str]:
    """Return, statement by statement, what of the trial is in production after migration ``failed``, and how to finish or undo it.

    Production's catalogue before and after is compared with what it was on the copy behind each statement: lines only where it is one of
    these. A statement that changes rows alone leaves no trace in it.
    """
    statements = tried.evidence.get("statements") or []
    state, later = set(without_histories(before)), without_histories(after)
    matching = [0] if state == later else []
    for number, statement in enumerate(statements, 1):
        state = (state - set(statement["lost"])) | set(statement["gained"])
        matching += [number] if state == later else []
    if not matching:
        return []
    lines = []
    for number, statement in enumerate(statements, 1):
        word = "applied" if number <= matching[0] else "perhaps applied" if number <= matching[-1] else "not applied"
        objects = f" ({', '.join(statement['objects'])})" if statement["objects"] else ""
        lines.append(f"{word}: {statement['tag']}{objects}, {statement['where'] or 'no file'}")
    of_failed = [statement for statement in statements if (statement["where"] or "").startswith(f"{failed}/")]
    applied = [statement for statement in statements[: matching[0]] if statement in of_failed]
    rest = [statement for statement in of_failed if statement not in applied]
    if rest and len(matching) == 1:
        lines.append(f"to finish: run it by hand from {rest[0]['where']} on, then npx prisma migrate resolve --applied {failed}")
    undo = [_undo(line) for statement in reversed(applied) for line in _outermost(statement["gained"])]
    if len(matching) == 1 and all(undo) and not any(statement["lost"] for statement in applied):
        lines.append(f"to undo: {' '.join(filter(None, undo))} then npx prisma migrate resolve --rolled-back {failed}")
    return lines


def _outermost(gained: Iterable[str]) -> list[str]:
    """Return the lines without those that go with a table that is gained itself."""
    lines = list(gained)
    tables = [line.removeprefix("table ").partition(",")[0] for line in lines if line.startswith("table ")]
    return [
        line for line in lines if line.startswith("table ") or not any(f" {table}." in line or f" on {table} " in line for table in tables)
    ]


def _undo(line: str) -> str | None:
    for pattern, command in _UNDO.items():
        if matched := re.fullmatch(pattern, line):
            return command.format(**matched.groupdict())
    return None
