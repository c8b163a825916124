"""Sessions of our own: settings that no database's ``ALTER DATABASE … SET`` may change, and whether two sessions can share a snapshot.

pg_dump gives itself the same settings (setup_connection in pg_dump.c); which of them there are depends on the server's version.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from azora_ci.core.errors import AzoraError, BadInputError
from azora_ci.database.postgres import DatabaseUrl

if TYPE_CHECKING:
    import psycopg2.extensions

# A function or operator of somebody's schema must not stand before PostgreSQL's own (CVE-2018-1058).
_SECURE_SEARCH_PATH = "SELECT pg_catalog.set_config('search_path', '', false)"
SETTINGS: Mapping[str, str] = {
    # No server ends a session of ours while it waits for a long dump.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",  # PostgreSQL 17
    "idle_session_timeout": "0",  # PostgreSQL 14
    # Both sides of a comparison write values as the same text.
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    # All rows, in the order in which they are stored, or an error.
    "row_security": "off",
    "synchronize_seqscans": "off",
    # The sessions of the backup choose their isolation themselves; a deferrable one could wait for ever.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "client_min_messages": "warning",
}
_APPLY = """SELECT set_config(s.name, w.value, false) FROM unnest(%s::text[], %s::text[]) AS w (name, value)
    JOIN pg_settings s ON lower(s.name) = w.name"""
_MARK, _SEE_MARK = (
    "SELECT pg_catalog.set_config('azora_ci.session', %s, false)",
    "SELECT pg_catalog.current_setting('azora_ci.session', true)",
)
OTHERS = 3  # sessions beside the first one, each in a transaction: a pooler hands the first one's server connection to one of them


def settle(cursor: psycopg2.extensions.cursor, **more: str) -> None:
    """Give a session the settings that this server's version knows, and ``more``, whatever the database or its role says."""
    cursor.execute(_SECURE_SEARCH_PATH)
    cursor.connection.set_client_encoding("UTF8")
    settings = {**SETTINGS, **more}
    cursor.execute(_APPLY, (list(settings), list(settings.values())))


def require_shared_snapshots(url: DatabaseUrl) -> None:
    """Have one session keep a setting between its transactions, and share its snapshot with others through the same address.

    A backup needs both, and only trying tells: names, ports and process ids of proxies say nothing. No setting that a shared server
    connection could keep is touched. Raises BadInputError when it cannot be done, UnreachableError when nothing answers.
    """
    import psycopg2

    mark = secrets.token_hex(8)
    with ExitStack() as stack:
        first = stack.enter_context(closing(url.connect(application="azora-ci sessions")))
        try:
            _ask(first, _MARK, mark)
            others = [stack.enter_context(closing(url.connect(application="azora-ci sessions"))) for _ in range(OTHERS)]
            for other in others:
                _begin(other)
                if _ask(other, _SEE_MARK) == mark:
                    raise _refused(url, "a setting of one session was seen in another one")
                if _ask(first, _SEE_MARK) != mark:
                    raise _refused(url, "a setting of a session was lost between two of its transactions")
            _begin(first)
            snapshot = _ask(first, "SELECT pg_catalog.pg_export_snapshot()")
            for other in others:
                _ask(other, "ROLLBACK")
                _begin(other)
                _ask(other, "SET TRANSACTION SNAPSHOT %s", snapshot)
        except psycopg2.Error as error:
            raise _refused(url, str(error).strip() or type(error).__name__) from error


def _begin(connection: psycopg2.extensions.connection) -> None:
    _ask(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _ask(connection: psycopg2.extensions.connection, statement: str, *parameters: object) -> str | None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def _refused(url: DatabaseUrl, reason: str) -> AzoraError:
    hint = f" ({url.pooler_hint})" if url.pooler_hint else ""
    return BadInputError(
        "Two sessions cannot share a snapshot at this address",
        what=f"{reason}: a connection pooler or balancer stands between{hint}, and a backup through it would hold several moments in one",
        where=f"PROD_DATABASE_URL ({url.location})",
        next_step="use the server's direct address (Prisma calls it directUrl), or the pooler's session mode",
    )
