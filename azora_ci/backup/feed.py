"""Processes of their own that read the spool file while it still grows, so that they never hold the dump up.

``python -m azora_ci.backup.feed account SPOOL REPORT DEPTH`` counts and hashes the rows and writes what it found to REPORT;
``python -m azora_ci.backup.feed restore SPOOL FIFO`` hands the SQL to psql. On standard input they are told ``done <size>`` when
the file is complete, or see the end of input when whoever started them is gone.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from azora_ci.backup.copy_stream import CopyScanner, TableData
from azora_ci.backup.memory import return_large_blocks
from azora_ci.clock import Clock

PIECE = 128 * 1024  # bytes of compressed data read at a time
BLOCK = 1024 * 1024  # bytes of SQL handed on at a time
GROWTH_POLL_SECONDS = 0.02
MIGRATIONS = b"_prisma_migrations"


class Orders:
    """What the parent process says: the final size of the spool, or nothing any more."""

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
    """Yield the spool's bytes up to the size that ``orders`` names, waiting while it grows. Raises EOFError when abandoned."""
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


def inflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of exactly one gzip member, its checksum and length verified. Raises EOFError when it is cut."""
    from isal import isal_zlib

    engine = isal_zlib.decompressobj(wbits=31)
    for piece in pieces:
        rest = piece
        while rest:
            yield engine.decompress(rest, BLOCK)  # a piece of zeros may hold a thousand times its length
            rest = engine.unconsumed_tail
        if engine.unused_data:
            raise ValueError("something follows the gzip member")
    if not engine.eof:
        raise EOFError("the gzip member is cut")


def account(spool: Path, report: Path, depth: str, orders: Orders) -> None:
    """Write the report: tables with rows and hashes (``depth`` full: of all tables), raw bytes, SHA-256 of the SQL, completeness."""
    scanner = CopyScanner(lambda table: depth == "full" or table.name == MIGRATIONS)
    digest, size = hashlib.sha256(), 0
    for block in inflate(follow(spool, orders, Clock())):
        digest.update(block)
        size += len(block)
        scanner.feed(block)
    found: dict[str, Any] = {"raw_bytes": size, "sha256": digest.hexdigest(), "complete": scanner.complete}
    found["objects"] = scanner.objects.hexdigest() if depth == "full" else None
    found["tables"] = [_document(table) for table in scanner.tables]
    temporary = report.with_suffix(".part")
    temporary.write_text(json.dumps(found), encoding="ascii")
    temporary.replace(report)


def restore(spool: Path, fifo: Path, orders: Orders) -> None:
    """Write the SQL to a pipe that psql reads."""
    with fifo.open("wb") as sink:
        for block in inflate(follow(spool, orders, Clock())):
            sink.write(block)


def _document(table: TableData) -> dict[str, Any]:
    """Return a table as JSON; bytes of the dump's encoding travel as the characters with the same numbers."""
    names = {part: getattr(table, part).decode("latin-1") for part in ("schema", "name", "statement")}
    return {**names, "rows": table.rows, "hash": table.hash}


def read_report(report: Path) -> tuple[dict[str, Any], list[TableData]]:
    """Return a report and its tables."""
    found = json.loads(report.read_text(encoding="ascii"))
    tables = [_table(one) for one in found["tables"]]
    return found, tables


def _table(one: dict[str, Any]) -> TableData:
    schema, name, statement = (one[part].encode("latin-1") for part in ("schema", "name", "statement"))
    return TableData(schema, name, statement, one["rows"], one["hash"])


def main() -> int:
    """Run as a process. Exit code 1 when the spool is damaged or abandoned, or psql is gone; the reason is on standard error."""
    mode, spool, *rest = sys.argv[1:]
    return_large_blocks()
    orders = Orders(sys.stdin)
    try:
        if mode == "account":
            account(Path(spool), Path(rest[0]), rest[1], orders)
        else:
            restore(Path(spool), Path(rest[0]), orders)
    except (EOFError, ValueError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
