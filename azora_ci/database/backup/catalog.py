"""The catalog of a database, read with the same queries from production's snapshot and from the restored copy.

Objects that belong to an extension or to the system are left out, as in pg_dump's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg2.extensions

_USER_OBJECT = """n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = {oid} AND d.deptype = 'e')"""
_TABLE = _USER_OBJECT.format(catalog="pg_class", oid="c.oid")
# relpages is an estimate, but pg_relation_size() would wait for a session that locks the table.
TABLES = f"""SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {_TABLE} ORDER BY c.relpages DESC, 1, 2"""  # noqa: S608 - constants
SEQUENCES = f"""SELECT n.nspname, c.relname, s.seqincrement, pg_sequence_last_value(c.oid)
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence <> 't' AND {_TABLE}"""  # noqa: S608
# PostgreSQL itself names the constraints that partitions inherit by what was there at that moment: they are identified by what they demand.
# Those of NOT NULL exist from PostgreSQL 18 on, and a backup of an older server may be proven on such a one: they are left out.
CONSTRAINTS = f"""SELECT n.nspname, c.relname, k.conname,
    CASE WHEN k.conparentid <> 0 THEN pg_get_constraintdef(k.oid) END, k.contype::text, k.convalidated
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence <> 't' AND {_TABLE}"""  # noqa: S608
INDEXES = f"""SELECT n.nspname, c.relname, i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE x.indisvalid AND x.indisready AND c.relpersistence <> 't' AND c.relkind <> 't' AND {_TABLE}"""  # noqa: S608
# What pg_extension_config_dump() names: of these tables of extensions pg_dump dumps the rows that the condition chooses.
FILTERS = """SELECT n.nspname, c.relname, e.condition
    FROM pg_extension x CROSS JOIN unnest(x.extconfig, x.extcondition) AS e (oid, condition)
    JOIN pg_class c ON c.oid = e.oid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'"""
LARGE_OBJECTS = "SELECT count(*) FROM pg_largeobject_metadata"

Table = tuple[str, str]  # schema, name


@dataclass(frozen=True)
class Catalog:
    """The parts of a database that a restore must reproduce. Sequences: (increment, last value or None) by (schema, name).

    ``filters`` are the conditions (empty, or ``WHERE …``) of the rows that a dump holds of an extension's tables. ``named_constraints`` are
    all constraints by their names, as manifests of before identify them.
    """

    tables: tuple[Table, ...]
    sequences: dict[Table, tuple[int, int | None]]
    constraints: frozenset[tuple[Any, ...]]
    indexes: frozenset[tuple[Any, ...]]
    large_objects: int
    filters: Mapping[Table, str] = field(default_factory=dict)
    named_constraints: frozenset[tuple[Any, ...]] = frozenset()


def read(cursor: psycopg2.extensions.cursor) -> Catalog:
    """Return the catalog that this transaction sees."""

    def rows(query: str) -> list[tuple[Any, ...]]:
        cursor.execute(query)
        return cursor.fetchall()

    constraints = rows(CONSTRAINTS)
    return Catalog(
        tables=tuple((schema, name) for schema, name in rows(TABLES)),
        sequences={(schema, name): (increment, last) for schema, name, increment, last in rows(SEQUENCES)},
        constraints=frozenset(
            (schema, table, demand or name, kind, valid) for schema, table, name, demand, kind, valid in constraints if kind != "n"
        ),
        indexes=frozenset(rows(INDEXES)),
        large_objects=rows(LARGE_OBJECTS)[0][0],
        filters=read_filters(cursor),
        named_constraints=frozenset((schema, table, name, kind, valid) for schema, table, name, _, kind, valid in constraints),
    )


def read_filters(cursor: psycopg2.extensions.cursor) -> dict[Table, str]:
    """Return the conditions under which the rows of extensions' tables are dumped, by table."""
    cursor.execute(FILTERS)
    return {(schema, name): condition for schema, name, condition in cursor.fetchall()}


def quoted_name(table: Table) -> str:
    """Return a table's name as PostgreSQL writes it where every part is quoted, ``"public"."users"``."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table)


def display_name(table: Table) -> str:
    """Return a table's name for people and documents, ``public.users``; unusual parts are quoted."""
    return ".".join(part if part.replace("_", "a").isalnum() and part == part.lower() else f'"{part}"' for part in table)


def differences(production: Catalog, restored: Catalog) -> list[str]:
    """Return what the restored catalog lacks or has in excess: a line per kind of object with the first names; empty when equal."""
    findings: list[str] = []
    for kind, expected, present in (
        ("tables", set(production.tables), set(restored.tables)),
        ("constraints", production.constraints, restored.constraints),
        ("valid indexes", production.indexes, restored.indexes),
        ("sequences", set(production.sequences), set(restored.sequences)),
    ):
        for word, names in (("missing", expected - present), ("unexpected", present - expected)):
            if names:
                findings.append(f"{len(names)} {kind} {word}: {', '.join('.'.join(map(str, name)) for name in sorted(names, key=str)[:5])}")
    if production.large_objects != restored.large_objects:
        findings.append(f"large objects: {production.large_objects} in the snapshot, {restored.large_objects} restored")
    snapshot_sequences = {display_name(name): values for name, values in production.sequences.items()}
    return findings + sequences_behind(snapshot_sequences, {display_name(name): values for name, values in restored.sequences.items()})


Sequences = Mapping[str, tuple[int, int | None]]


def sequences_behind(production: Sequences, restored: Sequences) -> list[str]:
    """Return one line for every restored sequence that is behind the snapshot's; arguments hold (increment, last value) by name.

    A sequence moves outside of transactions: the dump may hold a later value than the snapshot's, never an earlier one.
    """
    findings = []
    for name, (increment, last) in production.items():
        restored_last = restored.get(name, (0, None))[1]
        if last is not None and (restored_last is None or (restored_last < last if increment > 0 else restored_last > last)):
            findings.append(f"sequence {name} is behind: {restored_last} restored, {last} at the snapshot")
    return findings
