"""The one pass: pg_dump -> one gzip member -> the object's upload and a spool file, with bounded memory.

The upload is completed by the caller, and only after everything here held: pg_dump exited 0, its completion line was seen, at
least one table was dumped, every part was acknowledged.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from azora_ci.backup.copy_stream import CopyScanner, TableData
from azora_ci.backup.feed import MIGRATIONS
from azora_ci.backup.gzip_member import BLOCK, GzipMember
from azora_ci.backup.progress import Meter
from azora_ci.clock import Clock
from azora_ci.errors import NotTrueError, UnreachableError
from azora_ci.postgres import DatabaseUrl
from azora_ci.process import Child, Processes, ending

QUEUE_BLOCKS = 2  # compressed blocks on their way to the upload
PIPE_BYTES = 1024 * 1024  # of the pipe from pg_dump; 64 KiB make it wait more than it works
EXIT_SECONDS = 60.0  # for pg_dump to end after its last byte
F_SETPIPE_SZ = 1031  # fcntl(2), Linux


class Upload(Protocol):
    """What takes the compressed bytes."""

    def write(self, data: bytes) -> int:
        """Take bytes."""
        ...


@dataclass(frozen=True)
class Dumped:
    """What one dump was: sizes in bytes, SHA-256 in hex, tables in the order of the dump with their rows."""

    raw_bytes: int
    size_bytes: int
    raw_sha256: str
    sha256: str
    tables: tuple[TableData, ...]
    seconds: float

    @property
    def rows(self) -> int:
        """Return the rows of all tables."""
        return sum(table.rows for table in self.tables)


@dataclass(frozen=True)
class DumpPlan:
    """How to dump: program, connection, snapshot, compression level and the longest the snapshot may be held, in seconds."""

    program: Path
    url: DatabaseUrl
    snapshot: str
    level: int
    limit_seconds: float

    def argv(self) -> tuple[str, ...]:
        """Return pg_dump's command line; the connection is in the environment."""
        return (str(self.program), "--no-password", "--format=plain", f"--snapshot={self.snapshot}")

    def env(self) -> Mapping[str, str]:
        """Return pg_dump's environment: the connection, and UTC so that times read the same everywhere."""
        return {**self.url.libpq_env(), "PGTZ": "UTC", "PGAPPNAME": "azora-ci pg_dump"}


class Sink:
    """Writes compressed blocks to the spool and the upload on a thread of its own, and hashes them."""

    def __init__(self, upload: Upload, spool: IO[bytes], meter: Meter) -> None:
        self._upload = upload
        self._spool = spool
        self._meter = meter
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_BLOCKS)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._digest = hashlib.sha256()
        self.size = 0
        self._thread.start()

    def put(self, block: bytes) -> None:
        """Hand a block over. Raises what an earlier one met."""
        if self._failure is not None:
            raise self._failure
        self._queue.put(block)

    def close(self) -> str:
        """Wait until everything was handed on and return the SHA-256."""
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Stop taking blocks."""
        self._failure = self._failure or EOFError("abandoned")
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _run(self) -> None:
        while (block := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # keep emptying the queue, so that whoever fills it wakes up and sees the failure
            try:
                self._spool.write(block)
                self._digest.update(block)
                self.size += len(block)
                self._upload.write(block)
                self._meter.sent = self.size
            except BaseException as error:
                self._failure = error


def dump(plan: DumpPlan, processes: Processes, upload: Upload, spool: IO[bytes], meter: Meter) -> Dumped:
    """Run pg_dump to its end and pass everything on.

    Raises UnreachableError when pg_dump fails, NotTrueError when what came is no complete dump, and whatever the upload raises.
    """
    clock = Clock()
    start = clock.monotonic()
    child = processes.start(plan.argv(), env=plan.env(), stdout_pipe=True)
    _widen(child)
    sink = Sink(upload, spool, meter)
    overdue = threading.Timer(plan.limit_seconds, child.end)
    overdue.daemon = True
    overdue.start()
    try:
        digest, scanner = _pump(child, GzipMember(level=plan.level), sink, meter)
        code = child.wait(EXIT_SECONDS)
        _check(child, code, scanner, plan, clock.monotonic() - start)
        sha256 = sink.close()
    except BaseException:
        sink.abandon()
        child.end()
        raise
    finally:
        overdue.cancel()
    return Dumped(meter.done, sink.size, digest, sha256, tuple(scanner.tables), clock.monotonic() - start)


def _pump(child: Child, member: GzipMember, sink: Sink, meter: Meter) -> tuple[str, CopyScanner]:
    """Return the SHA-256 of the SQL and the scanner that saw it. Everything was handed to the sink."""
    scanner, digest = CopyScanner(lambda table: table.name == MIGRATIONS), hashlib.sha256()
    with member:
        for block in _blocks(child):
            scanner.feed(block)
            digest.update(block)
            for ready in member.add(block):
                sink.put(ready)
            meter.done, meter.tables_done = member.raw_bytes, len(scanner.tables)
        for ready in member.finish():
            sink.put(ready)
    return digest.hexdigest(), scanner


def _widen(child: Child) -> None:
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    with contextlib.suppress(OSError):  # a smaller pipe is slower, nothing else
        fcntl.fcntl(child.stdout.fileno(), F_SETPIPE_SZ, PIPE_BYTES)


def _blocks(child: Child) -> Iterator[bytes]:
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    while block := child.stdout.read(BLOCK):
        yield block


def _check(child: Child, code: int, scanner: CopyScanner, plan: DumpPlan, seconds: float) -> None:
    if code != 0 and seconds >= plan.limit_seconds:
        raise NotTrueError(
            "The dump took too long",
            what=f"pg_dump was stopped after {seconds:.0f} s so that production need not keep its snapshot longer",
            where=plan.url.shown,
            next_step="raise BACKUP_SNAPSHOT_MAX_MINUTES, or find out what slows the dump; nothing was published",
        )
    if code != 0:
        raise UnreachableError(
            "pg_dump failed",
            what=f"{ending(code)}\n{child.stderr_text.strip()[-2000:] or '(no output)'}",
            where=plan.url.shown,
            next_step="read its message; nothing was published; re-run the job when the cause is gone",
        )
    if not scanner.complete:
        raise NotTrueError(
            "The dump is not complete",
            what="pg_dump exited 0, but its line 'PostgreSQL database dump complete' is missing at the end",
            where=plan.url.shown,
            next_step="nothing was published; look for what cut the stream (memory, disk, a proxy), then re-run the job",
        )
    if not scanner.tables:
        raise NotTrueError(
            "There is no table in the dump",
            what="pg_dump exited 0 and dumped no table at all",
            where=plan.url.shown,
            next_step="check that PROD_DATABASE_URL names the right database and that its user may read the tables",
        )
