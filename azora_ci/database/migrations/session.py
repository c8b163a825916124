"""Short sessions that read what migrations left in the production database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from azora_ci.core.errors import UnreachableError
from azora_ci.database.postgres import DatabaseUrl

if TYPE_CHECKING:
    import psycopg2.extensions


@contextlib.contextmanager
def session(url: DatabaseUrl) -> Iterator[psycopg2.extensions.cursor]:
    """Yield a cursor of a new session whose statements may take 30 s. Raises UnreachableError for every error of the server.

    The block is one transaction, and what is set in it is to be set with ``SET LOCAL``: behind a pooler the connection goes on to others.
    """
    import psycopg2

    connection = url.connect(application="azora-ci migrations", autocommit=False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '30s'")
            yield cursor
        connection.commit()
    except psycopg2.Error as error:
        raise UnreachableError(
            "The production database did not answer",
            what=str(error).strip() or type(error).__name__,
            where=url.location,
            next_step="check the server's log and what this user may read",
        ) from error
    finally:
        connection.close()
