"""Databases in a cluster of the tests."""

from __future__ import annotations

from psycopg2 import sql

from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl


def create_database(cluster: Cluster, name: str, options: str = "") -> str:
    """Create a database (``options`` follow its name in SQL) and return its connection string."""
    connection = DatabaseUrl.parse(cluster.url()).connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(options)))
    finally:
        connection.close()
    return cluster.url(name)
