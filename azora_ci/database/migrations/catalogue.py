"""What a database defines, one line for each object in every schema, so that two moments can be compared. Rows are not compared.

The histories that tools of migrations keep are the exception: their rows are lines, too, and name what was applied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from azora_ci.database.migrations.session import session
from azora_ci.database.postgres import DatabaseUrl

MOST = 100  # lines of a change that are recorded
HISTORY = "history "  # begins the line of a row in a history
# Tables in which Django, Alembic, Flyway, Rails (also dbmate, golang-migrate), Knex, Kysely, Sequelize, TypeORM, Drizzle, node-pg-migrate,
# goose, Entity Framework, Liquibase, SQLx and Diesel note what they have applied.
HISTORIES = (
    "django_migrations",
    "alembic_version",
    "flyway_schema_history",
    "schema_migrations",
    "knex_migrations",
    "kysely_migration",
    "SequelizeMeta",
    "migrations",
    "__drizzle_migrations",
    "pgmigrations",
    "goose_db_version",
    "__EFMigrationsHistory",
    "databasechangelog",
    "_sqlx_migrations",
    "__diesel_schema_migrations",
)
_PRISMA = "_prisma_migrations"  # its rows are read by themselves
_ROWS = 10_000  # of one history
# search_path: names of the schema public are written without it. What belongs to an extension comes and goes with that.
_SETTINGS = "SET LOCAL search_path = public; SET LOCAL bytea_output = hex"
_LINES = """WITH space AS (SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
    extended AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e'),
    relation AS (SELECT c.oid, c.relkind, relrowsecurity, relacl, c.oid::regclass::text AS name
        FROM pg_class c JOIN space ON space.oid = c.relnamespace
        WHERE c.relpersistence <> 't' AND c.relname <> %(prisma)s
        AND NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_class'::regclass AND objid = c.oid))
    SELECT concat('schema ', quote_ident(nspname)) FROM space
    UNION ALL SELECT concat(CASE relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' WHEN 'S' THEN 'sequence '
        WHEN 'f' THEN 'foreign table ' ELSE 'table ' END, name,
        CASE WHEN relkind IN ('v', 'm') THEN concat(', definition ', left(md5(pg_get_viewdef(oid)), 12)) END,
        CASE WHEN relrowsecurity THEN ', row level security' END, ', privileges ' || relacl::text)
    FROM relation WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    UNION ALL SELECT concat('column ', name, '.', quote_ident(attname), ' ', format_type(atttypid, atttypmod),
        CASE WHEN attnotnull THEN ' not null' END,
        CASE WHEN attidentity <> '' THEN ' identity' END, ' default ' || left(pg_get_expr(adbin, adrelid), 80))
    FROM pg_attribute JOIN relation ON relation.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'f')
    UNION ALL SELECT concat('index ', quote_ident(i.relname), ' on ', relation.name, CASE WHEN indisunique THEN ' unique' END,
        CASE WHEN NOT indisvalid THEN ' invalid' END, ' ', left(substring(pg_get_indexdef(indexrelid) FROM ' USING (.*)$'), 80))
    FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN relation ON relation.oid = indrelid
    UNION ALL SELECT concat('constraint ', quote_ident(conname), ' on ', name, ' ', left(pg_get_constraintdef(k.oid), 80))
    FROM pg_constraint k JOIN relation ON relation.oid = conrelid WHERE contype IN ('c', 'f', 'x')
    UNION ALL SELECT concat('trigger ', quote_ident(tgname), ' on ', name, ', definition ', left(md5(pg_get_triggerdef(t.oid)), 12))
    FROM pg_trigger t JOIN relation ON relation.oid = tgrelid WHERE NOT tgisinternal
    UNION ALL SELECT concat('rule ', quote_ident(rulename), ' on ', name, ', definition ', left(md5(pg_get_ruledef(r.oid)), 12))
    FROM pg_rewrite r JOIN relation ON relation.oid = ev_class WHERE rulename <> '_RETURN'
    UNION ALL SELECT concat('policy ', quote_ident(polname), ' on ', name, ', definition ',
        left(md5(concat(polcmd, polpermissive, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))), 12))
    FROM pg_policy JOIN relation ON relation.oid = polrelid
    UNION ALL SELECT concat('function ', p.oid::regprocedure, ', definition ', left(md5(concat(prosrc, probin, prosecdef, proconfig)), 12))
    FROM pg_proc p JOIN space ON space.oid = pronamespace
    WHERE NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_proc'::regclass AND objid = p.oid)
    UNION ALL SELECT concat('type ', t.oid::regtype, (
        SELECT concat(' of ', string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder))
        FROM pg_enum WHERE enumtypid = t.oid HAVING count(*) > 0))
    FROM pg_type t JOIN space ON space.oid = typnamespace LEFT JOIN pg_class c ON c.oid = typrelid
    WHERE typtype IN ('e', 'd', 'r', 'c') AND (c.relkind IS NULL OR c.relkind = 'c')
        AND NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_type'::regclass AND objid = t.oid)
    UNION ALL SELECT concat('extension ', quote_ident(extname), ' ', extversion) FROM pg_extension"""
_HISTORIES = """SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relname = ANY(%s) AND has_table_privilege(c.oid, 'SELECT')"""


def lines_query() -> str:
    """Return the query of a catalogue's lines, without those of histories; names depend on ``search_path = public``."""
    return _LINES.replace("%(prisma)s", f"'{_PRISMA}'")


def read(url: DatabaseUrl) -> frozenset[str]:
    """Return the lines of a database as it is now, such as ``column billing.orders.total integer not null``. Raises UnreachableError."""
    from psycopg2 import sql

    with session(url) as cursor:
        cursor.execute(_SETTINGS)
        cursor.execute(_LINES, {"prisma": _PRISMA})
        lines = {line for (line,) in cursor.fetchall()}
        cursor.execute(_HISTORIES, (list(HISTORIES),))
        for schema, table in cursor.fetchall():
            cursor.execute(sql.SQL("SELECT entry::text FROM {} AS entry LIMIT %s").format(sql.Identifier(schema, table)), (_ROWS,))
            lines |= {f"{HISTORY}{schema}.{table}: {row}" for (row,) in cursor.fetchall()}
    return frozenset(lines)


@dataclass(frozen=True)
class Change:
    """What is there after something and was not before, and the other way round; both in order. ``noted``: a history is there."""

    gained: tuple[str, ...]
    lost: tuple[str, ...]
    noted: bool = False

    @staticmethod
    def between(before: Iterable[str], after: Iterable[str]) -> Change:
        """Return the change from one catalogue to a later one."""
        earlier, later = frozenset(before), frozenset(after)
        return Change(tuple(sorted(later - earlier)), tuple(sorted(earlier - later)), any(map(is_history, later)))

    def __bool__(self) -> bool:
        return bool(self.gained or self.lost)

    @property
    def applied(self) -> int | None:
        """Return how many migrations the histories gained; None where they do not say: there is none, or one replaces its row."""
        if not self.noted or any(line.startswith(HISTORY) for line in self.lost):
            return None
        rows = sum(line.startswith(HISTORY) for line in self.gained)
        return rows or (None if self else 0)

    def evidence(self) -> dict[str, list[str]]:
        """Return the change as evidence, at most ``MOST`` lines of each."""
        return {"schema_gained": list(self.gained[:MOST]), "schema_lost": list(self.lost[:MOST])}

    def describe(self) -> str:
        """Return the change as a sentence."""
        if not self:
            return "tables, columns, indexes, constraints and what else is defined are as before, in every schema; rows may have changed"
        return f"since this attempt began the database gained: {_join_some(self.gained)}; and lost: {_join_some(self.lost)}"


def is_history(line: str) -> bool:
    """Return whether a line is that of a table in which a tool notes what it applied; it may be empty."""
    kind, _, name = line.partition(",")[0].partition(" ")
    return kind == "table" and name.rpartition(".")[2].strip('"') in HISTORIES


def _join_some(lines: tuple[str, ...], most: int = 10) -> str:
    return "; ".join(lines[:most]) + (f" and {len(lines) - most} more" if len(lines) > most else "") or "nothing"
