"""The proof: what was restored is what the snapshot held.

Three accounts of every table must agree: production's own count on the snapshot, the rows that flowed by in the dump, and the
restored table read back in the dump's own text format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from azora_ci.backup import catalog
from azora_ci.backup.copy_stream import HASH_BITS, ObjectsHash, TableData
from azora_ci.backup.feed import MIGRATIONS
from azora_ci.backup.progress import Meter
from azora_ci.errors import NotTrueError
from azora_ci.postgres import DatabaseUrl

if TYPE_CHECKING:
    import psycopg2.extensions

    from azora_ci.s3 import Bucket, StoredObject

OBJECT_PIECE = 1024 * 1024  # bytes of a large object read at a time
SHOWN = 10  # findings in a message; all of them are in the log


class _RowSink:
    """Takes COPY's output line by line, as libpq gives it."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._sum = 0
        self.rows = 0

    def write(self, line: bytes) -> None:
        self._sum += int.from_bytes(blake2b(line[:-1], digest_size=16).digest(), "little")
        self.rows += 1
        self._meter.done += len(line)

    def hexdigest(self) -> str:
        return f"{self._sum % (1 << HASH_BITS):032x}"


def restored_tables(
    database: DatabaseUrl, encoding: str, tables: Iterable[TableData], meter: Meter
) -> tuple[catalog.Catalog, list[TableData]]:
    """Return the restored database's catalog and its tables, hashed where the dump's were, else counted."""
    connection = database.connect(application="azora-ci proof")
    found = []
    try:
        with connection.cursor() as cursor:
            for statement in catalog.SESSION:
                cursor.execute(statement)
            cursor.execute("SET client_encoding = %s", (encoding,))
            for table in tables:
                found.append(_restored(cursor, table, meter))
                meter.tables_done += 1
            cursor.execute("SET client_encoding = 'UTF8'" if encoding != "SQL_ASCII" else "SELECT 1")
            seen = catalog.read(cursor)
    finally:
        connection.close()
    return seen, found


def _restored(cursor: psycopg2.extensions.cursor, table: TableData, meter: Meter) -> TableData:
    if table.hash is not None:
        sink = _RowSink(meter)
        cursor.copy_expert(b"COPY " + table.statement + b" TO STDOUT", sink)
        return TableData(table.schema, table.name, table.statement, sink.rows, sink.hexdigest())
    name = b".".join(b'"' + part.replace(b'"', b'""') + b'"' for part in (table.schema, table.name))
    cursor.execute(b"SELECT count(*) FROM ONLY " + name)
    return TableData(table.schema, table.name, table.statement, int((cursor.fetchone() or (0,))[0]))


def restored_objects(database: DatabaseUrl) -> str:
    """Return the hash of the restored large objects."""
    found = ObjectsHash()
    connection = database.connect(application="azora-ci proof")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT oid::text FROM pg_largeobject_metadata")
            for (oid,) in cursor.fetchall():
                found.begin(oid.encode())
                position = 0
                while True:
                    cursor.execute("SELECT encode(lo_get(%s::oid, %s, %s), 'hex')", (oid, position, OBJECT_PIECE))
                    piece = (cursor.fetchone() or ("",))[0]
                    if not piece:
                        break
                    found.feed(piece.encode())
                    position += OBJECT_PIECE
    finally:
        connection.close()
    return found.hexdigest()


def table_findings(dumped: Iterable[TableData], restored: Mapping[tuple[bytes, bytes], TableData], encoding: str) -> list[str]:
    """Return one line for every table that is not restored as it was dumped. Pure."""
    findings = []
    for table in dumped:
        name = catalog.shown(text_name(table, encoding))
        again = restored.get((table.schema, table.name))
        if again is None or again.rows != table.rows:
            findings.append(f"{name}: {table.rows} rows in the dump, {again.rows if again else 'none'} restored")
        elif again.hash != table.hash:
            kind = "Prisma's migrations differ" if table.name == MIGRATIONS else "the content differs"
            findings.append(f"{name}: {kind} ({table.hash} in the dump, {again.hash} restored)")
    return findings


def count_findings(dumped: Iterable[TableData], counts: Mapping[catalog.Table, int], encoding: str) -> list[str]:
    """Return one line for every table of which the snapshot counts other rows than the dump holds. Pure."""
    rows = {text_name(table, encoding): table.rows for table in dumped}
    return [
        f"{catalog.shown(name)}: {counted} rows on the snapshot, {rows.get(name, 'none')} in the dump"
        for name, counted in sorted(counts.items())
        if rows.get(name) != counted
    ]


def account_findings(
    recorded: Mapping[str, Mapping[str, Any]], tables: Iterable[TableData], encoding: str, recorded_sha256: str, sha256: str
) -> list[str]:
    """Return what a stored backup's rows differ in from its document. Pure. ``recorded`` holds rows and hash by table name."""
    findings = [] if sha256 == recorded_sha256 else [f"SHA-256 of the SQL is {sha256}, recorded is {recorded_sha256}"]
    found = {catalog.shown(text_name(table, encoding)): table for table in tables}
    for name in sorted(set(recorded) | set(found)):
        was, now = recorded.get(name), found.get(name)
        if was is None or now is None or was["rows"] != now.rows:
            findings.append(f"{name}: {was['rows'] if was else 'no'} rows recorded, {now.rows if now else 'none'} in the backup")
        elif None not in {was["hash"], now.hash} and was["hash"] != now.hash:
            findings.append(f"{name}: the content differs from what was recorded")
    return findings


def text_name(table: TableData, encoding: str) -> catalog.Table:
    """Return a table's schema and name as text. Bytes that are no text in the encoding are shown as escapes."""
    codec = python_codec(encoding)
    return table.schema.decode(codec, "backslashreplace"), table.name.decode(codec, "backslashreplace")


def python_codec(encoding: str) -> str:
    """Return Python's name of a PostgreSQL encoding; SQL_ASCII is taken for UTF-8."""
    from psycopg2.extensions import encodings

    return "utf-8" if encoding == "SQL_ASCII" else encodings.get(encoding, "utf-8")


def read_back(bucket: Bucket, stored: StoredObject, sha256: str) -> None:
    """Read the stored object again, that very version of it. Raises NotTrueError when its SHA-256 is not that of what was sent."""
    digest = hashlib.sha256()
    for piece in bucket.stream(stored.key, stored.version_id):
        digest.update(piece)
    if digest.hexdigest() != sha256:
        raise NotTrueError(
            "The stored backup is not what was sent",
            what=f"SHA-256 {digest.hexdigest()} was read back, {sha256} was sent",
            where=f"{bucket.url(stored.key)} version {stored.version_id}",
            next_step="do not use this object; re-run the job: it makes another attempt beside it, and check the store",
        )


def require_none(findings: list[str]) -> None:
    """Raise NotTrueError naming the findings, if there are any."""
    if findings:
        more = f"\n… and {len(findings) - SHOWN} more (see the log)" if len(findings) > SHOWN else ""
        raise NotTrueError(
            "The restored backup differs from production's snapshot",
            what=f"{len(findings)} differences\n" + "\n".join(findings[:SHOWN]) + more,
            where="the scratch database, compared with the snapshot",
            next_step="the backup is not proven and migrations stay closed; report the differences, then re-run the job",
        )
