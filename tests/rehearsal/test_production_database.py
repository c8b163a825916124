"""Production's stand-in: related tables with real rows, made by the application's own Prisma."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from azora_ci.database.postgres import DatabaseUrl
from azora_ci.rehearsal import application
from azora_ci.rehearsal.applications.sample import Sample
from azora_ci.rehearsal.standins import database
from tests.support.sample import Sample as BuiltSample

FOREIGN_KEYS = """SELECT conrelid::regclass::text, a.attname, confrelid::regclass::text, b.attname FROM pg_constraint
    JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1]
    JOIN pg_attribute b ON b.attrelid = confrelid AND b.attnum = confkey[1] WHERE contype = 'f'"""


def test_production_has_related_rows_under_the_old_release(sample: BuiltSample, tmp_path: Path) -> None:
    old = sample.copy(tmp_path / "old", application.OLD_RELEASE)
    migrate = partial(Sample().migrate, partial(sample.node.run, sample.processes), old)
    with database.start(tmp_path / "postgres", processes=sample.processes, migrate=migrate, fill=database.seed) as production:
        assert sum(production.rows.values()) >= 100_000
        assert {table: production.rows[table] for table in database.ROWS} == database.ROWS
        assert production.rows["_prisma_migrations"] == 3
        assert database.count(production.url) == production.rows
        connection = DatabaseUrl.parse(production.url).connect()
        with connection.cursor() as cursor:
            cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            assert cursor.fetchone() == (False,)
            cursor.execute(FOREIGN_KEYS)
            keys = cursor.fetchall()
            assert len(keys) == 6
            for table, column, other, key in keys:  # rows were inserted unchecked
                cursor.execute(f"SELECT count(*) FROM {table} WHERE {column} NOT IN (SELECT {key} FROM {other})")
                assert cursor.fetchone() == (0,), f"{table}.{column} names rows that are not in {other}"
        connection.close()
    assert not production.cluster.running
