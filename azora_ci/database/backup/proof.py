"""The comparison that proves a backup: the restored database holds what production's snapshot held.

Three sources must agree on every table: production's own count on the snapshot, the rows in the dump, and the restored table
read back in the dump's own text format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from azora_ci.core.errors import NotTrueError
from azora_ci.database.backup import catalog
from azora_ci.database.backup.content_hash import HASH_BITS, ObjectsHash
from azora_ci.database.backup.copy_stream import TableData
from azora_ci.database.backup.progress import Meter
from azora_ci.database.backup.spool_reader import MIGRATIONS
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.session import settle

if TYPE_CHECKING:
    import psycopg2.extensions

    from azora_ci.clients.s3.bucket import Bucket
    from azora_ci.clients.s3.objects import StoredObject

OBJECT_PIECE = 1024 * 1024  # bytes of a large object read at a time
MOST_FINDINGS = 10  # in a message; all of them are in the log


class _RowSink:
    """A file-like object that hashes and counts the rows of COPY's output; libpq passes one line per call."""

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
    """Return the restored database's catalog and its tables, hashed where the dump's tables are hashed, otherwise counted."""
    connection = database.connect(application="azora-ci proof")
    restored = []
    try:
        with connection.cursor() as cursor:
            settle(cursor)
            filters = catalog.read_filters(cursor)
            cursor.execute("SET client_encoding = %s", (encoding,))
            for table in tables:
                condition = filters.get(text_name(table, encoding), "").encode(python_codec(encoding))
                restored.append(_read_table(cursor, table, condition, meter))
                meter.tables_done += 1
            cursor.execute("SET client_encoding = 'UTF8'" if encoding != "SQL_ASCII" else "SELECT 1")
            restored_catalog = catalog.read(cursor)
    finally:
        connection.close()
    return restored_catalog, restored


def _read_table(cursor: psycopg2.extensions.cursor, table: TableData, condition: bytes, meter: Meter) -> TableData:
    """Return a table's rows as the dump holds them: of an extension's table those that its condition chooses."""
    name = b".".join(b'"' + part.replace(b'"', b'""') + b'"' for part in (table.schema, table.name))
    if table.hash is not None:
        sink = _RowSink(meter)
        rows = b"(SELECT %b FROM %b %b)" % (table.columns, name, condition) if condition else table.statement
        cursor.copy_expert(b"COPY " + rows + b" TO STDOUT", sink)
        return TableData(table.schema, table.name, table.statement, sink.rows, sink.hexdigest())
    cursor.execute(b"SELECT count(*) FROM " + (b"%b %b" % (name, condition) if condition else b"ONLY " + name))
    return TableData(table.schema, table.name, table.statement, int((cursor.fetchone() or (0,))[0]))


def restored_objects(database: DatabaseUrl) -> str:
    """Return the hash of the restored large objects."""
    objects_hash = ObjectsHash()
    connection = database.connect(application="azora-ci proof")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT oid::text FROM pg_largeobject_metadata")
            for (oid,) in cursor.fetchall():
                objects_hash.begin(oid.encode())
                position = 0
                while True:
                    cursor.execute("SELECT encode(lo_get(%s::oid, %s, %s), 'hex')", (oid, position, OBJECT_PIECE))
                    piece = (cursor.fetchone() or ("",))[0]
                    if not piece:
                        break
                    objects_hash.feed(piece.encode())
                    position += OBJECT_PIECE
    finally:
        connection.close()
    return objects_hash.hexdigest()


def table_findings(dumped: Iterable[TableData], restored: Mapping[tuple[bytes, bytes], TableData], encoding: str) -> list[str]:
    """Return one line for every table whose restored rows differ from the dump's. Pure."""
    findings = []
    for table in dumped:
        name = catalog.display_name(text_name(table, encoding))
        copy = restored.get((table.schema, table.name))
        if copy is None or copy.rows != table.rows:
            findings.append(f"{name}: {table.rows} rows in the dump, {copy.rows if copy else 'none'} restored")
        elif copy.hash != table.hash:
            difference = "Prisma's migrations differ" if table.name == MIGRATIONS else "the content differs"
            findings.append(f"{name}: {difference} ({table.hash} in the dump, {copy.hash} restored)")
    return findings


def count_findings(dumped: Iterable[TableData], counts: Mapping[catalog.Table, int], encoding: str) -> list[str]:
    """Return one line for every table whose row count on the snapshot differs from the dump's. Pure."""
    rows = {text_name(table, encoding): table.rows for table in dumped}
    return [
        f"{catalog.display_name(name)}: {counted} rows on the snapshot, {rows.get(name, 'none')} in the dump"
        for name, counted in sorted(counts.items())
        if rows.get(name) != counted
    ]


def account_findings(
    recorded: Mapping[str, Mapping[str, Any]], tables: Iterable[TableData], encoding: str, recorded_sha256: str, sha256: str
) -> list[str]:
    """Return how a stored backup's rows differ from its document. Pure. ``recorded`` holds rows and hash by table name."""
    findings = [] if sha256 == recorded_sha256 else [f"SHA-256 of the SQL is {sha256}, recorded is {recorded_sha256}"]
    current = {catalog.display_name(text_name(table, encoding)): table for table in tables}
    for name in sorted(set(recorded) | set(current)):
        entry, table = recorded.get(name), current.get(name)
        if entry is None or table is None or entry["rows"] != table.rows:
            findings.append(f"{name}: {entry['rows'] if entry else 'no'} rows recorded, {table.rows if table else 'none'} in the backup")
        elif None not in {entry["hash"], table.hash} and entry["hash"] != table.hash:
            findings.append(f"{name}: the content differs from what was recorded")
    return findings


def text_name(table: TableData, encoding: str) -> catalog.Table:
    """Return a table's schema and name as text. Bytes that are invalid in the encoding become escapes."""
    codec = python_codec(encoding)
    return table.schema.decode(codec, "backslashreplace"), table.name.decode(codec, "backslashreplace")


def python_codec(encoding: str) -> str:
    """Return Python's name of a PostgreSQL encoding; SQL_ASCII is treated as UTF-8."""
    from psycopg2.extensions import encodings

    return "utf-8" if encoding == "SQL_ASCII" else encodings.get(encoding, "utf-8")


def read_back(bucket: Bucket, stored: StoredObject, sha256: str) -> None:
    """Download exactly this version of the stored object. Raises NotTrueError when its SHA-256 differs from ``sha256``."""
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
    """Raise NotTrueError that lists the findings, if there are any."""
    if findings:
        more = f"\n… and {len(findings) - MOST_FINDINGS} more (see the log)" if len(findings) > MOST_FINDINGS else ""
        raise NotTrueError(
            "The restored backup differs from production's snapshot",
            what=f"{len(findings)} differences\n" + "\n".join(findings[:MOST_FINDINGS]) + more,
            where="the scratch database, compared with the snapshot",
            next_step="the backup is not proven and migrations stay closed; report the differences, then re-run the job",
        )
