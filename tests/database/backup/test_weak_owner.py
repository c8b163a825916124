from __future__ import annotations

from pathlib import Path

from azora_ci.database.postgres import DatabaseUrl
from tests.support.backup_world import SIMPLE, BackupWorld


def test_owner_without_any_privilege_of_the_cluster_backs_up(tmp_path: Path, s3_server, postgres_cluster):
    """Hosted databases offer such a role: it owns the database and may do nothing else."""
    world = BackupWorld(tmp_path, s3_server)
    url = postgres_cluster.fresh("CREATE ROLE owner LOGIN PASSWORD 'of-the-database'")
    at = DatabaseUrl.parse(url)
    postgres_cluster.execute(url, f"ALTER DATABASE {at.database} OWNER TO owner; ALTER SCHEMA public OWNER TO owner")
    owner = DatabaseUrl(at.host, at.port, "owner", "of-the-database", at.database).text
    postgres_cluster.execute(owner, SIMPLE + "SELECT lo_from_bytea(0, 'something')")
    outcome = world.run(owner)
    assert outcome.code == 0, outcome
    assert world.manifest()["catalog"]["large_objects"] == 1
