"""The dump in one pass with bounded memory: pg_dump -> one gzip member -> the object's upload and a spool file.

The caller completes the upload, and only after all checks here passed: pg_dump exited 0, its completion line was read, at least
one table was dumped, every part was acknowledged.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.core.process import Child, Processes, ending
from azora_ci.database.backup.copy_stream import CopyScanner, TableData
from azora_ci.database.backup.gzip_member import BLOCK, GzipMember
from azora_ci.database.backup.progress import Meter
from azora_ci.database.backup.spool_reader import MIGRATIONS, enlarge_pipe
from azora_ci.database.postgres import DatabaseUrl

QUEUE_BLOCKS = 2  # compressed blocks on their way to the upload
EXIT_SECONDS = 60.0  # for pg_dump to end after its last byte


class Upload(Protocol):
    """A destination of the compressed bytes."""

    def write(self, data: bytes) -> int:
        """Accept bytes and return their number."""
        ...


@dataclass(frozen=True)
class Dumped:
    """The facts of a finished dump: sizes in bytes, SHA-256 in hex, tables in the order of the dump with their row counts."""

    raw_bytes: int
    size_bytes: int
    raw_sha256: str
    sha256: str
    tables: tuple[TableData, ...]
    seconds: float

    @property
    def rows(self) -> int:
        """Return the number of rows of all tables."""
        return sum(table.rows for table in self.tables)


@dataclass(frozen=True)
class DumpPlan:
    """How to dump: program, connection, encoding of the database (and of the dump, whatever the database sets for its clients), snapshot,
    compression level and how many seconds the snapshot may be held.
    """

    program: Path
    url: DatabaseUrl
    encoding: str
    snapshot: str
    level: int
    limit_seconds: float

    def argv(self) -> tuple[str, ...]:
        """Return pg_dump's command line; the connection is in the environment."""
        return (str(self.program), "--no-password", "--format=plain", f"--encoding={self.encoding}", f"--snapshot={self.snapshot}")

    def env(self) -> Mapping[str, str]:
        """Return pg_dump's environment: the connection, and UTC so that times read the same everywhere."""
        return {**self.url.libpq_env(), "PGTZ": "UTC", "PGAPPNAME": "azora-ci pg_dump"}


class Sink:
    """Writes compressed blocks to the spool and the upload on a separate thread, and hashes them."""

    def __init__(self, upload: Upload, spool: IO[bytes], meter: Meter) -> None:
        self._upload = upload
        self._spool = spool
        self._meter = meter
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_BLOCKS)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._write_blocks, name="upload", daemon=True)
        self._digest = hashlib.sha256()
        self.size = 0
        self._thread.start()

    def put(self, block: bytes) -> None:
        """Queue a block. Raises the error that writing an earlier block raised."""
        if self._failure is not None:
            raise self._failure
        self._queue.put(block)

    def close(self) -> str:
        """Wait until every block is written and return their SHA-256 in hex."""
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Stop writing blocks."""
        self._failure = self._failure or EOFError("abandoned")
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _write_blocks(self) -> None:
        while (block := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # keep emptying the queue, so that ``put`` wakes up and raises the failure
            try:
                self._spool.write(block)
                self._digest.update(block)
                self.size += len(block)
                self._upload.write(block)
                self._meter.sent = self.size
            except BaseException as error:
                self._failure = error


def dump(plan: DumpPlan, processes: Processes, upload: Upload, spool: IO[bytes], meter: Meter) -> Dumped:
    """Run pg_dump to its end, pass its compressed output to the upload and the spool, and return the facts of the dump.

    Raises UnreachableError when pg_dump fails, NotTrueError when its output is not a complete dump, and the upload's errors.
    """
    clock = Clock()
    start = clock.monotonic()
    child = processes.start(plan.argv(), env=plan.env(), stdout_pipe=True)
    sink = Sink(upload, spool, meter)
    limit_timer = threading.Timer(plan.limit_seconds, child.end)
    limit_timer.daemon = True
    limit_timer.start()
    try:
        digest, scanner = _compress(child, GzipMember(level=plan.level), sink, meter)
        code = child.wait(EXIT_SECONDS)
        _require_complete(child, code, scanner, plan, clock.monotonic() - start)
        sha256 = sink.close()
    except BaseException:
        sink.abandon()
        child.end()
        raise
    finally:
        limit_timer.cancel()
    return Dumped(meter.done, sink.size, digest, sha256, tuple(scanner.tables), clock.monotonic() - start)


def _compress(child: Child, member: GzipMember, sink: Sink, meter: Meter) -> tuple[str, CopyScanner]:
    """Pass pg_dump's compressed output to the sink; return the SHA-256 of the SQL and the scanner that read it."""
    scanner, digest = CopyScanner(lambda table: table.name == MIGRATIONS), hashlib.sha256()
    with member:
        for block in _blocks(child):
            _judge(scanner.feed, block)
            digest.update(block)
            for compressed in member.add(block):
                sink.put(compressed)
            meter.done, meter.tables_done = member.raw_bytes, len(scanner.tables)
        _judge(scanner.end)
        for compressed in member.finish():
            sink.put(compressed)
    return digest.hexdigest(), scanner


def _judge(read: Callable[..., object], *block: bytes) -> None:
    """Have the scanner read. Raises NotTrueError where it refuses the dump, because no restore would run it."""
    try:
        read(*block)
    except ValueError as error:
        raise NotTrueError(
            "The dump cannot be restored safely",
            what=str(error),
            where="the output of pg_dump",
            next_step="nothing was published; if production's schema really holds this, report it: every restore refuses it",
        ) from error


def _blocks(child: Child) -> Iterator[bytes]:
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    enlarge_pipe(child.stdout)
    while block := child.stdout.read(BLOCK):
        yield block


def _require_complete(child: Child, code: int, scanner: CopyScanner, plan: DumpPlan, seconds: float) -> None:
    if code != 0 and seconds >= plan.limit_seconds:
        raise NotTrueError(
            "The dump took too long",
            what=f"pg_dump was stopped after {seconds:.0f} s so that production need not keep its snapshot longer",
            where=plan.url.location,
            next_step="raise BACKUP_SNAPSHOT_MAX_MINUTES, or find out what slows the dump; nothing was published",
        )
    if code != 0:
        raise UnreachableError(
            "pg_dump failed",
            what=f"{ending(code)}\n{child.stderr_text.strip()[-2000:] or '(no output)'}",
            where=plan.url.location,
            next_step="read its message; nothing was published; re-run the job when the cause is gone",
        )
    if not scanner.complete:
        raise NotTrueError(
            "The dump is not complete",
            what="pg_dump exited 0, but its line 'PostgreSQL database dump complete' is missing at the end",
            where=plan.url.location,
            next_step="nothing was published; look for what cut the stream (memory, disk, a proxy), then re-run the job",
        )
    if not scanner.tables:
        raise NotTrueError(
            "There is no table in the dump",
            what="pg_dump exited 0 and dumped no table at all",
            where=plan.url.location,
            next_step="check that PROD_DATABASE_URL names the right database and that its user may read the tables",
        )
