from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from azora_ci.postgres import DatabaseUrl, find_binary
from tests.backup_world import ID, SIMPLE, BackupWorld


@pytest.fixture
def world(tmp_path: Path, s3_server) -> BackupWorld:
    return BackupWorld(tmp_path, s3_server)


@pytest.fixture(scope="module")
def simple(postgres_cluster) -> str:
    return postgres_cluster.fresh(SIMPLE)


def test_backup_is_made_and_proven(world: BackupWorld, simple: str, postgres_cluster):
    outcome = world.run(simple)
    assert outcome.code == 0, outcome
    assert world.keys() == [f"backup-{ID}{end}" for end in (".manifest.json", ".pending.json", ".sql.gz")]
    assert outcome.evidence["tables"] == 3
    assert outcome.evidence["rows"] == 1501
    assert outcome.evidence["proof"]["depth"] == "full"
    assert not outcome.evidence["reused"]
    names = {one["name"]: one["rows"] for one in world.manifest()["tables"]}
    assert names == {"public.users": 500, "public.orders": 1000, "public._prisma_migrations": 1}
    assert all(one["hash"] for one in world.manifest()["tables"])
    assert world.leftovers() == []
    assert "backup-id<<" in (world.folder / "output.txt").read_text()
    guide = postgres_cluster.fresh()
    restore_as_the_guide_says(world, guide)
    assert postgres_cluster.execute(guide, "SELECT count(*) FROM orders") == [(1000,)]


def restore_as_the_guide_says(world: BackupWorld, url: str) -> None:
    """``aws s3 cp s3://… - | gunzip | psql``, with the bytes of the object as they are."""
    packed = world.bucket.read(f"prod/backup-{ID}.sql.gz")
    unpacked = subprocess.run(["gunzip"], input=packed, stdout=subprocess.PIPE, check=True).stdout
    assert unpacked == gzip.decompress(packed)
    target = DatabaseUrl.parse(url)
    psql = find_binary("psql", 18)
    subprocess.run(
        [str(psql), "-X", "-v", "ON_ERROR_STOP=1"], input=unpacked, env=target.libpq_env(), stdout=subprocess.DEVNULL, check=True
    )
