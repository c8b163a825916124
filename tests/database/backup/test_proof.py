"""The comparison itself: every kind of difference is named, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

from azora_ci.database.backup import catalog, manifest, proof
from azora_ci.database.backup.copy_stream import TableData


def table(name: str, rows: int, digest: str | None = "a" * 32) -> TableData:
    return TableData(b"public", name.encode(), b"public." + name.encode(), rows, digest)


def restored(*tables: TableData) -> dict[tuple[bytes, bytes], TableData]:
    return {(table_data.schema, table_data.name): table_data for table_data in tables}


CATALOG = catalog.Catalog(
    tables=(("public", "users"),),
    sequences={("public", "up"): (1, 10), ("public", "down"): (-1, -10), ("public", "unused"): (1, None)},
    constraints=frozenset({("public", "users", "users_pkey", "p", True)}),
    indexes=frozenset({("public", "users", "users_pkey")}),
    large_objects=2,
)


def test_equal_tables_have_no_findings():
    assert proof.table_findings([table("users", 3)], restored(table("users", 3)), "UTF8") == []
    assert proof.count_findings([table("users", 3)], {("public", "users"): 3}, "UTF8") == []


def test_every_difference_of_a_table_is_named():
    assert "3 rows in the dump, 2 restored" in proof.table_findings([table("users", 3)], restored(table("users", 2)), "UTF8")[0]
    assert "none restored" in proof.table_findings([table("users", 3)], {}, "UTF8")[0]
    other = restored(table("users", 3, "b" * 32))
    assert "the content differs" in proof.table_findings([table("users", 3)], other, "UTF8")[0]
    prisma = restored(table("_prisma_migrations", 3, "b" * 32))
    assert "Prisma's migrations differ" in proof.table_findings([table("_prisma_migrations", 3)], prisma, "UTF8")[0]


def test_rows_that_the_dump_lacks_are_named():
    findings = proof.count_findings([table("users", 3)], {("public", "users"): 4, ("public", "orders"): 1}, "UTF8")
    assert findings == ["public.orders: 1 rows on the snapshot, none in the dump", "public.users: 4 rows on the snapshot, 3 in the dump"]


def test_a_stored_backup_is_compared_with_its_document():
    recorded = {"public.users": {"rows": 3, "hash": "a" * 32}}
    assert proof.account_findings(recorded, [table("users", 3)], "UTF8", "s", "s") == []
    assert len(proof.account_findings(recorded, [table("users", 3, "b" * 32)], "UTF8", "s", "t")) == 2
    assert len(proof.account_findings(recorded, [table("others", 3)], "UTF8", "s", "s")) == 2


def test_the_same_catalog_has_no_differences():
    later = replace(CATALOG, sequences={**CATALOG.sequences, ("public", "up"): (1, 11), ("public", "down"): (-1, -11)})
    for again in (CATALOG, later):
        assert catalog.differences(CATALOG, again) == []
        assert manifest.catalog_findings(manifest.catalog_document(CATALOG), again) == []


def test_every_difference_of_the_catalog_is_named():
    changes = {
        "tables": (),
        "constraints": frozenset({("public", "users", "users_pkey", "p", False)}),
        "indexes": frozenset(),
        "large_objects": 1,
        "sequences": {**CATALOG.sequences, ("public", "up"): (1, 9)},
    }
    for name, value in changes.items():
        again = replace(CATALOG, **{name: value})
        assert catalog.differences(CATALOG, again), name
        assert manifest.catalog_findings(manifest.catalog_document(CATALOG), again), name
    for last in (-9, None):
        again = replace(CATALOG, sequences={**CATALOG.sequences, ("public", "down"): (-1, last)})
        assert catalog.differences(CATALOG, again) == [f"sequence public.down is behind: {last} restored, -10 at the snapshot"]
