"""What the judgement of migrations needs to know of production's catalogue: sizes, types, keys. Only read."""

from __future__ import annotations

from collections import defaultdict

from azora_ci.database.migrations.judgement.model import Facts, KnownConstraint, Relation
from azora_ci.database.migrations.session import session
from azora_ci.database.postgres import DatabaseUrl

# Names as the judgement has them: without the schema public. What PostgreSQL itself has is left out.
_NAMED = """WITH space AS (SELECT oid, concat(nullif(nspname, 'public') || '.') AS prefix FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
    named AS (SELECT c.oid, relkind, reltuples, concat(prefix, relname) AS name FROM pg_class c JOIN space ON space.oid = relnamespace) """
_RELATIONS = """SELECT name, relkind::text, nullif(reltuples, -1)::bigint, pg_total_relation_size(oid) FROM named
    WHERE relkind IN ('r', 'p', 'm', 'v', 'f', 'S')"""
_TYPES = """SELECT name, attname::text, format_type(atttypid, atttypmod) FROM pg_attribute JOIN named ON named.oid = attrelid
    WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'f')"""
_CONSTRAINTS = """SELECT t.name, conname::text, contype::text, coalesce(other.name, ''),
    ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY(conkey))
    FROM pg_constraint JOIN named t ON t.oid = conrelid LEFT JOIN named other ON other.oid = confrelid"""
_INDEXES = "SELECT i.name, t.name FROM pg_index JOIN named i ON i.oid = indexrelid JOIN named t ON t.oid = indrelid"
_CHILDREN = """SELECT p.name, c.name FROM pg_inherits JOIN named p ON p.oid = inhparent JOIN named c ON c.oid = inhrelid
    WHERE p.relkind IN ('r', 'p', 'f')"""
_DOMAINS = """SELECT concat(prefix, typname), typnotnull OR EXISTS (SELECT FROM pg_constraint WHERE contypid = t.oid)
    FROM pg_type t JOIN space ON space.oid = typnamespace WHERE typtype = 'd'"""


def read_facts(url: DatabaseUrl) -> Facts:
    """Return what the catalogue says, in a transaction that can only read. Raises UnreachableError."""
    with session(url) as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        answers = []
        for query in (_RELATIONS, _TYPES, _CONSTRAINTS, _INDEXES, _CHILDREN, _DOMAINS):
            cursor.execute(_NAMED + query)
            answers.append(cursor.fetchall())
    relations, types, constraints, indexes, pairs, domains = answers
    children: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for parent, child in pairs:
        children[parent] += (child,)
    return Facts(
        known=True,
        relations={name: Relation(kind, rows, size) for name, kind, rows, size in relations},
        types={(table, column): kind for table, column, kind in types},
        constraints=tuple(KnownConstraint(table, name, kind, tuple(columns), end) for table, name, kind, end, columns in constraints),
        indexes=dict(indexes),
        children=dict(children),
        domains=dict(domains),
    )
