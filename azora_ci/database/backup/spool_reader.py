"""Separate processes that read the spool file while it still grows, so that they never slow the dump down.

``python -m azora_ci.database.backup.spool_reader account SPOOL REPORT DEPTH`` counts and hashes the rows and writes the results to
REPORT; ``… restore SPOOL FIFO MODE`` passes the SQL to psql, and no command of psql; in MODE restricted psql itself refuses them, too.
They read ``done <size>`` from standard input when the file is complete, or the end of input when the process that started them has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from azora_ci.core.clock import Clock
from azora_ci.core.documents import MEBIBYTE, Limits, read_file
from azora_ci.core.process.malloc import reuse_blocks
from azora_ci.database.backup.copy_stream import CopyScanner, Judged, TableData

PIECE = 128 * 1024  # bytes of compressed data read at a time
BLOCK = 256 * 1024  # bytes of SQL passed on at a time
GROWTH_POLL_SECONDS = 0.02
PIPE_BYTES = 1024 * 1024  # of a pipe with SQL; with the usual 64 KiB its ends spend more time waiting than working
F_SETPIPE_SZ = 1031  # fcntl(2), Linux
RESTRICTED, UNRESTRICTED = "restricted", "unrestricted"
MIGRATIONS = b"_prisma_migrations"


class Orders:
    """Messages from the parent process: ``size`` is the spool's final size, ``abandoned`` means that the parent has ended."""

    def __init__(self, stream: IO[str]) -> None:
        self.size: int | None = None
        self.abandoned = False
        self.changed = threading.Event()
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith("done "):
                self.size = int(line.split()[1])
                self.changed.set()
                return
        self.abandoned = True
        self.changed.set()


def follow(spool: Path, orders: Orders, clock: Clock) -> Iterator[bytes]:
    """Yield the spool's bytes up to the size in ``orders``; wait while it grows. Raises EOFError when abandoned or too short."""
    position = 0
    with spool.open("rb", buffering=0) as file:
        while orders.size is None or position < orders.size:
            if orders.abandoned:
                raise EOFError("the job that wrote the spool is gone")
            piece = file.read(PIECE)
            position += len(piece)
            if piece:
                yield piece
            elif orders.size is not None and position < orders.size:
                raise EOFError(f"the spool ends after {position} of {orders.size} bytes")
            else:
                clock.wait(orders.changed, GROWTH_POLL_SECONDS)
                if orders.size is not None:
                    orders.changed.clear()


def pieces_of(spool: Path, size: int) -> Iterator[bytes]:
    """Yield the bytes of a spool that is complete with ``size`` bytes."""
    with spool.open("rb", buffering=0) as file:
        while file.tell() < size and (piece := file.read(PIECE)):
            yield piece


def enlarge_pipe(pipe: IO[bytes]) -> None:
    """Let more bytes wait in a pipe, where the system has that; a smaller pipe is only slower."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, PIPE_BYTES)


def inflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of exactly one gzip member and verify its checksum and length. Raises EOFError when it is truncated."""
    from isal import isal_zlib

    engine = isal_zlib.decompressobj(wbits=31)
    for piece in pieces:
        compressed = piece
        while compressed:
            yield engine.decompress(compressed, BLOCK)  # a piece of zeros may hold a thousand times its length
            compressed = engine.unconsumed_tail
        if engine.unused_data:
            raise ValueError("something follows the gzip member")
    if not engine.eof:
        raise EOFError("the gzip member is cut")


def account(spool: Path, report: Path, depth: str, orders: Orders) -> None:
    """Write the report: tables with row counts and hashes (``depth`` full: of all), raw bytes, SHA-256 of the SQL, completeness."""
    import hashlib

    scanner = CopyScanner(lambda table: depth == "full" or table.name == MIGRATIONS)
    digest, size = hashlib.sha256(), 0
    for block in inflate(follow(spool, orders, Clock())):
        digest.update(block)
        size += len(block)
        scanner.feed(block)
    scanner.end()
    results: dict[str, Any] = {"raw_bytes": size, "sha256": digest.hexdigest(), "complete": scanner.complete}
    results["objects"] = scanner.objects.hexdigest() if depth == "full" else None
    results["tables"] = [_table_document(table) for table in scanner.tables]
    temporary = report.with_suffix(".part")
    temporary.write_text(json.dumps(results), encoding="ascii")
    temporary.replace(report)


def restore(spool: Path, fifo: Path, mode: str, orders: Orders) -> None:
    """Write the SQL to a pipe that psql reads, each part after it was judged. Raises ValueError for a command of psql.

    Under ``restricted`` psql itself refuses its commands by a random word of this process. A psql that is too old for that
    is given nothing that it could read in two ways.
    """
    scanner = CopyScanner()
    with fifo.open("wb") as sink:
        enlarge_pipe(sink)
        if mode == RESTRICTED:
            sink.write(b"\\restrict " + os.urandom(32).hex().encode() + b"\n")
        for block in inflate(follow(spool, orders, Clock())):
            _write_judged(sink, scanner.feed(block), scanner, mode)
        _write_judged(sink, scanner.end(), scanner, mode)


def _write_judged(sink: IO[bytes], judged: list[Judged], scanner: CopyScanner, mode: str) -> None:
    if scanner.doubt is not None and mode != RESTRICTED:
        raise ValueError(f"only a psql that knows \\restrict (a minor release of August 2025 or newer) may read this dump: {scanner.doubt}")
    sink.writelines(judged)


def _table_document(table: TableData) -> dict[str, Any]:
    """Return a table as JSON; bytes of the dump's encoding become the characters with the same code points."""
    names = {part: getattr(table, part).decode("latin-1") for part in ("schema", "name", "statement")}
    return {**names, "rows": table.rows, "hash": table.hash}


def read_report(report: Path) -> tuple[dict[str, Any], list[TableData]]:
    """Return a report and its tables."""
    results = read_file(report, Limits(size=64 * MEBIBYTE, values=1_000_000))
    return results, [_parse_table(document) for document in results["tables"]]


def _parse_table(document: dict[str, Any]) -> TableData:
    schema, name, statement = (document[part].encode("latin-1") for part in ("schema", "name", "statement"))
    return TableData(schema, name, statement, document["rows"], document["hash"])


def main() -> int:
    """Run as a process. Return 1 when the spool is damaged or abandoned, or psql has ended; the reason is on standard error."""
    mode, spool, *arguments = sys.argv[1:]
    reuse_blocks()
    orders = Orders(sys.stdin)
    try:
        if mode == "account":
            account(Path(spool), Path(arguments[0]), arguments[1], orders)
        else:
            restore(Path(spool), Path(arguments[0]), arguments[1], orders)
    except (EOFError, ValueError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
