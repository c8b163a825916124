"""The rehearsal's production database: a real cluster whose tables the application's own migrations made. Fills those of the sample."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from azora_ci.core.process import Processes
from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl

DATABASE = "azora"
# Eight old and eight new instances with three connections each, a backup in parallel sessions, Prisma, and a person.
SETTINGS = {"max_connections": "120", "max_locks_per_transaction": "64", "wal_level": "replica", "autovacuum": "on"}
ROWS = {"users": 20_000, "sessions": 25_000, "courses": 500, "enrollments": 60_000, "listings": 5_000, "orders": 30_000}
_SEED = {
    "users": "INSERT INTO users (email, name) SELECT 'user' || n || '@example.org', 'User ' || n FROM generate_series(1, %s) n",
    "sessions": """INSERT INTO sessions (user_id, token, expires_at)
        SELECT 1 + n %% 20000, md5('session' || n) || md5(n::text), now() + n * interval '1 minute' FROM generate_series(1, %s) n""",
    "courses": """INSERT INTO courses (title, description)
        SELECT 'Course ' || n, repeat('What is taught in course ' || n || '. ', 8) FROM generate_series(1, %s) n""",
    "enrollments": """INSERT INTO enrollments (user_id, course_id, progress)
        SELECT 1 + n %% 20000, 1 + (n / 20000 * 160 + n %% 160), n %% 101 FROM generate_series(0, %s - 1) n""",
    "listings": """INSERT INTO listings (seller_id, title, price_cents)
        SELECT 1 + (n * 7) %% 20000, 'Listing ' || n, 100 + n %% 9900 FROM generate_series(1, %s) n""",
    "orders": """INSERT INTO orders (buyer_id, listing_id, status)
        SELECT 1 + (n * 11) %% 20000, 1 + n %% 5000, (ARRAY['paid', 'shipped', 'returned'])[1 + n %% 3]
        FROM generate_series(1, %s) n""",
}


@dataclass(frozen=True)
class ProductionDatabase:
    """The running database. ``url``: connection string of its owner, who is no superuser; ``rows``: table -> number of rows."""

    cluster: Cluster
    url: str
    rows: dict[str, int]

    def __enter__(self) -> ProductionDatabase:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server and remove its files."""
        self.cluster.stop()


def start(
    folder: Path, *, processes: Processes, migrate: Callable[[str], None], fill: Callable[[Cluster], object], detached: bool = False
) -> ProductionDatabase:
    """Start a cluster below ``folder`` with a database that ``migrate`` (called with its owner's address) and ``fill`` make.

    ``detached``: the server outlives this process. Raises BadInputError, UnreachableError, CommandFailedError.
    """
    cluster = Cluster.start(folder, processes=processes, settings=SETTINGS, detached=detached)
    try:
        url = create_owned_database(cluster, DATABASE)
        for secret in (url, DatabaseUrl.parse(url).password):
            processes.log.add_secret(secret)
        migrate(url)
        fill(cluster)
        return ProductionDatabase(cluster, url, count(cluster.url(DATABASE)))
    except BaseException:
        cluster.stop()
        raise


def create_owned_database(cluster: Cluster, name: str) -> str:
    """Create a database that belongs to a role of its own, as in production, and return the owner's connection string."""
    from psycopg2 import sql

    password = secrets.token_urlsafe(24)
    role = f"{name}_owner"
    connection = DatabaseUrl.parse(cluster.url()).connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s").format(sql.Identifier(role)), (password,))
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(role)))
    finally:
        connection.close()
    return DatabaseUrl("127.0.0.1", str(cluster.port), role, password, name).text


def seed(cluster: Cluster) -> None:
    """Fill the sample's tables.

    Foreign keys are not checked row by row, which takes ten times longer; restoring a backup checks them all.
    """
    connection = DatabaseUrl.parse(cluster.url(DATABASE)).connect(autocommit=False)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            for table, statement in _SEED.items():
                cursor.execute(statement, (ROWS[table],))
        with connection, connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    finally:
        connection.close()


def count(url: str) -> dict[str, int]:
    """Return the number of rows of each table, by its name; of one in another schema than public by ``<schema>.<table>``."""
    from psycopg2 import sql

    connection = DatabaseUrl.parse(url).connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)' ORDER BY 1, 2")
            numbers: dict[str, int] = {}
            for schema, table in cursor.fetchall():
                cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table)))
                row = cursor.fetchone()
                numbers[table if schema == "public" else f"{schema}.{table}"] = row[0] if row else 0
            return numbers
    finally:
        connection.close()
