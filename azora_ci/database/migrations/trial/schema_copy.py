"""A copy of production's schema alone, for a trial where the backup is restored nowhere on this machine: no row but Prisma's history."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from azora_ci.core.errors import NotTrueError
from azora_ci.database.migrations.prisma import TABLE
from azora_ci.database.migrations.session import session
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.database.scratch import Scratch, carry_properties, fresh_database, open_scratch, work_folder

if TYPE_CHECKING:
    from azora_ci.core.process import Processes
    from azora_ci.database.server import ServerFacts

_COLUMNS = ("id", "checksum", "migration_name", "started_at", "finished_at", "rolled_back_at", "applied_steps_count")


@contextmanager
def schema_copy(
    production: DatabaseUrl, facts: ServerFacts, history: str, parent: Path | None, processes: Processes
) -> Iterator[tuple[Scratch, DatabaseUrl]]:
    """Yield a private server and a database with production's schema on it; both are removed at the end.

    ``history``: schema of Prisma's table, whose rows are copied where it is. Raises BadInputError where no server can be started,
    UnreachableError, NotTrueError when the schema cannot be restored.
    """
    with (
        work_folder(parent) as folder,
        open_scratch(None, folder, facts, processes, logs_to_file=True) as scratch,
        fresh_database(scratch, "schema_only", facts) as database,
    ):
        _restore(_dump(production, facts, processes), database)
        carry_properties(scratch, database.database, facts)
        _copy_history(production, database, history)
        yield scratch, database


def _dump(production: DatabaseUrl, facts: ServerFacts, processes: Processes) -> str:
    with tempfile.TemporaryDirectory(prefix="azora-ci-") as folder:
        file = Path(folder) / "schema.sql"
        argv = (str(find_binary("pg_dump", facts.major)), "--schema-only", "--encoding=UTF8", f"--file={file}")
        processes.run(argv, env=production.libpq_env(), echo=False, next_step="read the message of pg_dump")
        lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith(("\\restrict ", "\\unrestrict ")))  # psql's own; no psql reads this


def _restore(text: str, database: DatabaseUrl) -> None:
    import psycopg2

    connection = database.connect()
    with closing(connection), connection.cursor() as cursor:
        try:
            cursor.execute(text)
        except psycopg2.Error as error:
            raise NotTrueError(
                "Production's schema cannot be restored to try migrations on it",
                what=str(error).strip().partition("\n")[0],
                where="a private server on this machine",
                next_step="read the message; MIGRATIONS_TRIAL=false leaves the trial out for a reason",
            ) from error


def _copy_history(production: DatabaseUrl, database: DatabaseUrl, schema: str) -> None:
    """Copy the rows of Prisma's table, without the errors that it notes."""
    from psycopg2 import sql

    table, columns = sql.Identifier(schema, TABLE), sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
    with session(production) as cursor:
        cursor.execute("SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)) IS NOT NULL", (schema, TABLE))
        if cursor.fetchone() != (True,):
            return
        cursor.execute(sql.SQL("SELECT {} FROM {}").format(columns, table))
        rows = cursor.fetchall()
    with session(replace(database, parameters={})) as cursor:
        for row in rows:
            cursor.execute(sql.SQL("INSERT INTO {} ({}) SELECT %s, %s, %s, %s, %s, %s, %s").format(table, columns), row)
