"""What a PostgreSQL server says about itself and a database of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from azora_ci.core.errors import UnreachableError
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.properties import Properties, read_properties
from azora_ci.database.session import settle


@dataclass(frozen=True)
class ServerFacts:
    """A database as its server describes it. ``size_bytes``: the whole database on disk; ``system_identifier`` None: not readable.

    ``superusers`` are the roles that only superusers may replace as owners: those of event triggers, foreign data wrappers and the like.
    ``through_pooler``: somebody between invents the process id of the handshake, which says nothing of what works there.
    """

    version: str
    major: int
    database: str
    encoding: str
    collate: str
    ctype: str
    size_bytes: int
    system_identifier: str | None
    in_recovery: bool
    through_pooler: bool
    extensions: tuple[str, ...]
    roles: tuple[str, ...]
    tablespaces: tuple[str, ...]
    superusers: tuple[str, ...] = ()
    role: str | None = None  # the session's own
    memberships: tuple[str, ...] = ()  # roles whose rights it has
    database_properties: Properties | None = None  # None: in documents of before they were kept
    # How pg_dump writes amounts of the type money, and bytes: it leaves that to what the database sets.
    lc_monetary: str | None = None
    bytea_output: str | None = None


FACTS = """SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,
    d.datname AS database, pg_encoding_to_char(d.encoding) AS encoding, d.datcollate AS collate, d.datctype AS ctype,
    current_setting('lc_monetary') AS lc_monetary, current_setting('bytea_output') AS bytea_output, pg_database_size(d.oid) AS size_bytes,
    pg_is_in_recovery() AS in_recovery, pg_backend_pid() AS backend,
    ARRAY(SELECT extname::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1) AS extensions,
    ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1) AS roles,
    ARRAY(SELECT spcname::text FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1) AS tablespaces,
    ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' AND (rolsuper OR oid IN (
        SELECT evtowner FROM pg_event_trigger UNION SELECT fdwowner FROM pg_foreign_data_wrapper UNION SELECT pubowner FROM pg_publication
        UNION SELECT subowner FROM pg_subscription)) ORDER BY 1) AS superusers, current_user::text AS role,
    ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname <> current_user AND pg_has_role(oid, 'MEMBER') ORDER BY 1) AS memberships
    FROM pg_database d WHERE d.datname = current_database()"""


def server_facts(url: DatabaseUrl) -> ServerFacts:
    """Return the server's facts about itself and the database. Raises UnreachableError."""
    import psycopg2

    connection = url.connect()
    try:
        with connection.cursor() as cursor:
            settle(cursor)
            cursor.execute(FACTS)
            assert cursor.description is not None  # noqa: S101 - a SELECT has columns
            row: dict[str, Any] = dict(zip([column.name for column in cursor.description], cursor.fetchone() or (), strict=True))
            try:
                cursor.execute("SELECT system_identifier::text FROM pg_control_system()")
                row["system_identifier"] = (cursor.fetchone() or (None,))[0]
            except psycopg2.Error:
                row["system_identifier"] = None
            row["database_properties"] = read_properties(cursor, row["database"])
        # A proxy may invent the process id in its handshake: it is the key of its own cancel protocol.
        row["through_pooler"] = connection.info.backend_pid != row.pop("backend")
        return facts_of_document(row)
    except psycopg2.Error as error:
        raise session_error(url, error) from error
    finally:
        connection.close()


def facts_of_document(document: dict[str, Any]) -> ServerFacts:
    """Return the facts from a mapping of their names to values; a list becomes a tuple."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
    if isinstance(values.get("database_properties"), dict):
        values["database_properties"] = Properties.of_document(values["database_properties"])
    return ServerFacts(**values)


def session_error(url: DatabaseUrl, error: Exception) -> UnreachableError:
    """Return the error for a production session that failed."""
    return UnreachableError(
        "The production database did not answer",
        what=str(error).strip() or type(error).__name__,
        where=url.location,
        next_step="check the server's log; re-run the job: nothing was published",
    )
