"""The table of migrations as Prisma makes it, for databases that no Prisma has touched."""

from __future__ import annotations

import hashlib
from pathlib import Path

TABLE = """CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL, finished_at timestamptz,
    migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz, started_at timestamptz NOT NULL DEFAULT now(),
    applied_steps_count integer NOT NULL DEFAULT 0);
"""


def with_migrations(*names: str, failed: str | None = None, folder: Path | None = None) -> str:
    """Return the SQL of a table with these migrations applied, and one that began and did not finish.

    ``folder``: where their files are; without it they have no checksum.
    """
    rows = [f"('{number}', '{_checksum(folder, name)}', '{name}', now())" for number, name in enumerate(names)]
    rows += [f"('failed', '', '{failed}', NULL)"] if failed else []
    insert = f"INSERT INTO _prisma_migrations (id, checksum, migration_name, finished_at) VALUES {', '.join(rows)};" if rows else ""
    return TABLE + insert


def _checksum(folder: Path | None, name: str) -> str:
    file = folder / name / "migration.sql" if folder else None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else ""
