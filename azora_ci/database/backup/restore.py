"""A restore that runs at the same time as the dump: spool file -> feed process -> psql -> scratch database."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.process import Processes, ending
from azora_ci.database.backup import messages, spool_reader
from azora_ci.database.backup.copy_stream import TableData
from azora_ci.database.postgres import DatabaseUrl


@dataclass(frozen=True)
class Account:
    """The content of a backup as read: tables with row counts and hashes, the large objects' hash, bytes and SHA-256 of the SQL."""

    tables: tuple[TableData, ...]
    raw_bytes: int
    raw_sha256: str
    objects: str | None


def psql_argv(program: Path, script: Path) -> tuple[str, ...]:
    """Return psql's command line: no start-up file, one transaction, stop at the first error, which is told with its context.

    Such messages may hold rows: they are kept without them, see ``messages.WithoutRows``.
    """
    options = ("--no-psqlrc", "--no-password", "--quiet", "--single-transaction", "--output=/dev/null")
    return (str(program), *options, "--set=ON_ERROR_STOP=1", "--set=SHOW_CONTEXT=errors", f"--file={script}")


def knows_restrict(psql: Path) -> bool:
    """Return whether this psql can refuse its own commands: its help text, which is part of the program, names the command."""
    return b"\\restrict " in psql.read_bytes()


class Follower:
    """A process that follows the spool (see spool_reader.py)."""

    def __init__(self, processes: Processes, *arguments: str) -> None:
        search_path = Path(spool_reader.__file__).resolve().parents[3]  # the folder that holds azora_ci
        argv = (sys.executable, "-m", spool_reader.__name__, *arguments)
        self.child = processes.start(argv, env={"PYTHONPATH": str(search_path)}, stdin=True)

    def done(self, size: int) -> None:
        """Tell the process that the spool is complete with ``size`` bytes."""
        assert self.child.stdin is not None  # noqa: S101 - a pipe was asked for
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(f"done {size}\n".encode())
            self.child.stdin.close()


class Accountant:
    """Counts and hashes the rows of the spool in a separate process; ``depth`` full: of all tables, else only of Prisma's table."""

    def __init__(self, spool: Path, depth: str, processes: Processes) -> None:
        self._report = spool.with_name("account.json")
        self._follower = Follower(processes, "account", str(spool), str(self._report), depth)

    def finish(self, size: int) -> Account:
        """Wait for the end of a spool of ``size`` bytes and return its account. Raises NotTrueError for a damaged backup."""
        self._follower.done(size)
        code = self._follower.child.wait()
        if code != 0:
            raise _failed("reading the backup", code, self._follower.child.stderr_text)
        report, tables = spool_reader.read_report(self._report)
        if not report["complete"]:
            raise _failed("reading the backup", 0, "the SQL does not end with pg_dump's completion line")
        return Account(tuple(tables), report["raw_bytes"], report["sha256"], report["objects"])

    def abandon(self) -> None:
        """End the process."""
        self._follower.child.end()


class Restore:
    """A running restore of the spool with psql."""

    def __init__(self, spool: Path, psql: Path, database: DatabaseUrl, processes: Processes) -> None:
        self._clock = Clock()
        self._start = self._clock.monotonic()
        fifo = spool.with_name("sql")
        os.mkfifo(fifo, 0o600)
        self._spool = spool
        env = {**database.libpq_env(), "PGAPPNAME": "azora-ci restore"}
        self._psql = processes.start(psql_argv(psql, fifo), env=env, stderr_filter=messages.WithoutRows())
        self._mode = mode = spool_reader.RESTRICTED if knows_restrict(psql) else spool_reader.UNRESTRICTED
        if mode == spool_reader.UNRESTRICTED:
            processes.log.say(f"{psql} does not know \\restrict (August 2025): the scanner alone keeps psql's commands out of the restore")
        self._follower = Follower(processes, "restore", str(spool), str(fifo), mode)

    def finish(self, size: int) -> float:
        """Wait for the end of a spool of ``size`` bytes and return the seconds since the start. Raises NotTrueError."""
        self._follower.done(size)
        feeder = self._follower.child
        while feeder.poll() is None and self._psql.poll() is None:
            self._clock.sleep(0.02)
        input_cut = feeder.poll() not in {None, 0} and self._psql.poll() is None
        if input_cut:
            self._psql.end()  # psql would mistake the end of its input for the end of the script
        elif feeder.poll() is None and self._psql.poll() != 0:
            feeder.end()  # psql no longer reads its output
        if not input_cut and (code := self._psql.wait()) != 0:
            raise self._refused(code, self._psql.stderr_text, size)
        if (code := feeder.wait()) != 0:
            raise _failed("reading the backup", code, feeder.stderr_text)
        return self._clock.monotonic() - self._start

    def abandon(self) -> None:
        """End both processes."""
        self._follower.child.end()
        self._psql.end()

    def _refused(self, code: int, output: str, size: int) -> NotTrueError:
        """Return the error for what psql said, with the object that it could not restore."""
        error = _failed("psql", code, output)
        error.next_step = messages.next_step(output) or error.next_step
        line = messages.line_of_error(output)
        if line is not None:
            line -= self._mode == spool_reader.RESTRICTED  # the line that this project puts before the dump
            with contextlib.suppress(OSError, EOFError, ValueError):
                pieces = spool_reader.inflate(spool_reader.pieces_of(self._spool, size))
                error.where += f", restoring {messages.object_at(pieces, line) or 'the head of the dump'}"
        return error


def _failed(program: str, code: int, output: str) -> NotTrueError:
    return NotTrueError(
        "The backup could not be restored",
        what=f"{program}: {ending(code)}\n{output.strip()[-2000:] or '(no output)'}",
        where="the scratch database",
        next_step="the backup is not proven and migrations stay closed; correct the cause (the message names it), then re-run the job",
    )
