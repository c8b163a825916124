"""The sample application's files as two releases, which the scratch repository commits as v1.0.0 and v1.1.0."""

from __future__ import annotations

import shutil
from pathlib import Path

SAMPLE = Path(__file__).resolve().parent / "sample"
OLD_RELEASE = "1.0.0"
NEW_RELEASE = "1.1.0"
OLD_MIGRATIONS = ("20260901080000_accounts", "20260915080000_education", "20261001080000_marketplace")
NEW_MIGRATIONS = ("20261120080000_course_ratings", "20261121080000_course_level")
FAILING_MIGRATION = "20261122080000_order_totals"
# The first statement succeeds; the second cannot, because old orders have no total.
_FAILING_SQL = """\
ALTER TABLE "orders" ADD COLUMN "total_cents" INTEGER;

ALTER TABLE "orders" ALTER COLUMN "total_cents" SET NOT NULL;
"""

LATE_MIGRATION = "20261123080000_named_users"
# The first statement succeeds; the second cannot where somebody wrote a user without a name after the backup.
_LATE_SQL = """\
ALTER TABLE "users" ADD COLUMN "nick" TEXT;

ALTER TABLE "users" ADD CONSTRAINT "users_named" CHECK ("name" <> '');
"""
LATE_ROW = "INSERT INTO users (email, name) VALUES ('late@azora.example', '')"


AMBIGUOUS_MIGRATION = "20261124080000_listing_names"
# Nothing is taken away: no reading of the migration finds a fault. But the old version says "name" where two tables have that column now.
_AMBIGUOUS_SQL = 'ALTER TABLE "listings" ADD COLUMN "name" TEXT;\n'


def write_release(folder: Path, release: str = NEW_RELEASE) -> None:
    """Write the files of one release into a folder; files that are already there are overwritten, others stay."""
    shutil.copytree(SAMPLE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "dist", "__pycache__"))
    if release == OLD_RELEASE:
        for name in NEW_MIGRATIONS:
            shutil.rmtree(migrations(folder) / name)


def migrations(folder: Path) -> Path:
    """Return the folder of the migrations in an application folder."""
    return folder / "prisma" / "migrations"


def add_migration(folder: Path, name: str, sql: str) -> Path:
    """Add a migration and return its file."""
    path = migrations(folder) / name / "migration.sql"
    path.parent.mkdir(parents=True)
    path.write_text(sql, encoding="utf-8")
    return path


def add_failing_migration(folder: Path) -> None:
    """Add a typical faulty migration: its first statement is applied and stays, its second fails on existing rows."""
    add_migration(folder, FAILING_MIGRATION, _FAILING_SQL)


def add_late_migration(folder: Path) -> None:
    """Add a migration that every row of the backup allows, and ``LATE_ROW`` does not: its first statement is applied and stays."""
    add_migration(folder, LATE_MIGRATION, _LATE_SQL)


def add_ambiguous_migration(folder: Path) -> None:
    """Add a migration that breaks the old version, and correct the query of the new one."""
    add_migration(folder, AMBIGUOUS_MIGRATION, _AMBIGUOUS_SQL)
    service = folder / "services" / "marketplace-service" / "service.json"
    service.write_text(service.read_text(encoding="utf-8").replace(" name AS", " u.name AS"), encoding="utf-8")


def break_build(folder: Path) -> None:
    """Break the production build with a syntax error in the server program."""
    server = folder / "services" / "shared" / "server.mjs"
    server.write_text(server.read_text(encoding="utf-8") + "\nfunction {\n", encoding="utf-8")
