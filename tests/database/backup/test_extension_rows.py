"""Of an extension's table a dump holds the rows that the extension names; these are compared, and no others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.database.postgres import find_binary
from azora_ci.database.restore import scripts
from tests.rollback.test_instructions import Rescue
from tests.support.backup_world import ID, SIMPLE, BackupWorld

CONTROL = "default_version = '1.0'\nrelocatable = false\nschema = reference\n"
SCRIPT = """
CREATE TABLE ref_sys (srid int PRIMARY KEY, name text);
INSERT INTO ref_sys SELECT n, 'stock ' || n FROM generate_series(1, 100) n;
SELECT pg_catalog.pg_extension_config_dump('ref_sys', 'WHERE srid > 100');
CREATE TABLE ref_note (note text, ignored int GENERATED ALWAYS AS (1) STORED, "Odd, (name" int);
SELECT pg_catalog.pg_extension_config_dump('ref_note', '');
CREATE TABLE ref_inner (id int);
INSERT INTO ref_inner VALUES (1), (2);
"""
ROWS = """
CREATE EXTENSION azora_reference;
INSERT INTO reference.ref_sys SELECT n, 'own ' || n FROM generate_series(101, 103) n;
INSERT INTO reference.ref_note VALUES ('a', DEFAULT, 1), ('b', DEFAULT, 2);
CREATE TABLE reference.beside (id int);
INSERT INTO reference.beside VALUES (1);
"""


@pytest.fixture(scope="module")
def production(postgres_cluster) -> Iterator[str]:
    """Give a database with an extension of our own, which the cluster of a proof finds as well."""
    folders = {
        Path(postgres_cluster.execute(postgres_cluster.cluster.url(), "SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")[0][0])
    }
    pg_config = find_binary("postgres", postgres_cluster.cluster.major).with_name("pg_config")
    folders.add(Path(subprocess.run([pg_config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()))
    files = {"azora_reference.control": CONTROL, "azora_reference--1.0.sql": SCRIPT}
    paths = {folder / "extension" / name: text for folder in folders for name, text in files.items()}
    for path, text in paths.items():
        path.write_text(text)
    try:
        yield postgres_cluster.fresh(SIMPLE + ROWS)
    finally:
        for path in paths:
            path.unlink()


@pytest.mark.parametrize("depth", ["full", "counts"])
def test_rows_beside_the_stock_are_proven(tmp_path: Path, s3_server, production: str, depth: str):
    world = BackupWorld(tmp_path, s3_server)
    outcome = world.run(production, BACKUP_PROOF=depth)
    assert outcome.code == 0, outcome
    tables = {table["name"]: table["rows"] for table in world.manifest()["tables"]}
    assert (tables["reference.ref_sys"], tables["reference.ref_note"], tables["reference.beside"]) == (3, 2, 1)
    assert "reference.ref_inner" not in tables
    assert outcome.evidence["rows"] == 1501 + 6
    drill = world.run("", "restore_drill", BACKUP_PROOF=depth)
    assert drill.code == 0, drill


def test_a_row_too_many_after_the_restore_is_named(tmp_path: Path, s3_server, production: str, postgres_cluster):
    """A stock row that the condition chooses comes twice: from the extension and from the dump."""
    world = BackupWorld(tmp_path, s3_server)
    change = "UPDATE pg_extension SET extcondition[1] = 'WHERE srid > 99' WHERE extname = 'azora_reference'"
    postgres_cluster.execute(production, change)
    try:
        outcome = world.run(production)
    finally:
        postgres_cluster.execute(production, change.replace("99", "100"))
    assert outcome.code == 1
    assert "ref_sys" in outcome.error["what"]
    assert "TABLE DATA reference.ref_sys" in outcome.error["where"]


def test_the_script_counts_the_same_rows(tmp_path: Path, s3_server, production: str, postgres_cluster):
    rescue = Rescue(tmp_path, postgres_cluster, s3_server)
    outcome = BackupWorld(tmp_path, s3_server).run(production)
    assert outcome.code == 0, outcome
    completed = rescue.bash(scripts.restore_script(outcome.evidence, ID))
    assert completed.returncode == 0, completed.stderr
    assert rescue.rows("reference.ref_sys", f"{rescue.database}_restore_{ID.split('-')[0]}") == 103
