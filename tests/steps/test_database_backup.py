"""These tests run database-backup as a user does, on a real PostgreSQL and a real S3 server."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl
from tests.database.test_session import hostile
from tests.support import deploy_config, hostile_dumps
from tests.support.backup_world import ID, SIMPLE, BackupWorld
from tests.support.pooler import SessionProxy, TransactionPooler


@pytest.fixture
def world(tmp_path: Path, s3_server) -> BackupWorld:
    return BackupWorld(tmp_path, s3_server)


def untouched(evidence: dict[str, Any]) -> dict[str, Any]:
    """Return the evidence of an attempt that had no need to connect to the database."""
    return {name: value for name, value in evidence.items() if name != "database_transport"}


@pytest.fixture(scope="module")
def simple(postgres_cluster) -> str:
    return postgres_cluster.fresh(SIMPLE)


def test_backup_is_made_proven_and_recognised(tmp_path: Path, s3_server, simple: str):
    world = BackupWorld(tmp_path, s3_server, object_lock=True, encryption="AES256")
    outcome = world.run(simple)
    assert outcome.code == 0, outcome
    assert world.listing() == [f"backup-{ID}{end}" for end in (".manifest.json", ".pending.json", ".sql.gz")]
    assert outcome.evidence["tables"] == 3
    assert outcome.evidence["rows"] == 1501
    assert outcome.evidence["proof"]["depth"] == "full"
    assert outcome.evidence["lock_until"] and outcome.evidence["version_id"]
    assert not outcome.evidence["reused"]
    assert {table["name"]: table["rows"] for table in world.manifest()["tables"]} == {
        "public.users": 500,
        "public.orders": 1000,
        "public._prisma_migrations": 1,
    }
    assert all(table["hash"] for table in world.manifest()["tables"])
    assert world.leftovers() == []
    assert DatabaseUrl.parse(simple).password not in outcome.output + outcome.log
    verified = world.verified_manifest()
    assert verified.sha256 == outcome.evidence["manifest_sha256"]

    rerun = world.run("postgresql://nobody:nothing@127.0.0.1:1/unreachable")
    assert rerun.code == 0, rerun
    assert rerun.evidence == untouched(outcome.evidence) | {"reused": True}
    assert len(world.listing()) == 3


def test_foreign_object_is_refused_and_named(world: BackupWorld, simple: str):
    world.bucket.put_once(f"prod/backup-{ID}.sql.gz", b"somebody else's", content_type="application/gzip")
    outcome = world.run(simple)
    assert outcome.code == 1
    assert f"backup-{ID}.sql.gz" in outcome.error["where"]
    assert "15 bytes" in outcome.error["what"]
    assert world.listing() == [f"backup-{ID}.sql.gz"]


def test_object_replaced_after_the_proof_closes_the_gate(world: BackupWorld, simple: str):
    assert world.run(simple).code == 0
    world.stores.boto3().put_object(Bucket=world.bucket_name, Key=f"prod/backup-{ID}.sql.gz", Body=b"replaced")
    with pytest.raises(NotTrueError, match="Another object"):
        world.verified_manifest()
    outcome = world.run(simple)
    assert outcome.code == 1
    assert "8 bytes" in outcome.error["what"]


@pytest.mark.parametrize(
    ("sql", "title"),
    [("", "There is no table in the dump"), ("CREATE SCHEMA s; CREATE VIEW v AS SELECT 1", "There is no table in the dump")],
)
def test_database_without_tables_is_no_backup(world: BackupWorld, postgres_cluster, sql: str, title: str):
    outcome = world.run(postgres_cluster.fresh(sql))
    assert outcome.code == 1
    assert outcome.error["title"] == title
    assert world.listing() == [] and world.uploads() == [] and world.leftovers() == []


def test_empty_tables_are_a_backup(world: BackupWorld, postgres_cluster):
    outcome = world.run(postgres_cluster.fresh("CREATE TABLE t (id int)"))
    assert outcome.code == 0, outcome
    assert outcome.evidence["rows"] == 0


def test_bad_url_is_named_and_not_shown(world: BackupWorld):
    outcome = world.run("mysql://me:hidden-word@db/azora")
    assert outcome.code == 2
    assert outcome.error["where"] == "PROD_DATABASE_URL"
    assert "hidden-word" not in outcome.output + outcome.log


def test_unreachable_database_is_exit_3_without_the_password(world: BackupWorld, simple: str):
    url = DatabaseUrl.parse(simple)
    wrong = DatabaseUrl(url.host, url.port, url.user, "p@ss/w%rd:wrong", url.database)
    outcome = world.run(wrong.text)
    assert outcome.code == 3
    assert "p@ss" not in outcome.output + outcome.log and "p%40ss" not in outcome.output + outcome.log
    assert world.listing() == [] and world.uploads() == []


def test_surroundings_do_not_matter(world: BackupWorld, simple: str, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".psqlrc").write_text("\\echo from psqlrc\n\\q\n")
    (home / ".pg_service.conf").write_text("[elsewhere]\nhost=192.0.2.1\n")
    surroundings = {"PGOPTIONS": "-c statement_timeout=1", "PGSERVICE": "elsewhere", "PGHOST": "192.0.2.1", "PGSSLMODE": "verify-full"}
    outcome = world.run(simple, HOME=str(home), PGDATESTYLE="German", **surroundings)
    assert outcome.code == 0, outcome


def test_counts_by_size_and_none_with_a_reason(world: BackupWorld, simple: str):
    outcome = world.run(simple, BACKUP_FULL_PROOF_MAX_GIB="0.001", DEPLOYMENT_ID="1764000001-abc123")
    assert outcome.code == 0, outcome
    assert outcome.evidence["proof"]["depth"] == "counts"
    assert "BACKUP_FULL_PROOF_MAX_GIB" in outcome.evidence["proof"]["reason"]
    assert world.run(simple, BACKUP_PROOF="none").code == 2
    outcome = world.run(simple, BACKUP_PROOF="none", BACKUP_PROOF_REASON="incident 4711")
    assert outcome.code == 0, outcome
    assert outcome.evidence["proof"]["depth"] == "none"
    assert outcome.evidence["proof"]["reason"] == "incident 4711"
    assert "✓ backup restored" not in outcome.output
    rerun = world.run(simple, BACKUP_PROOF="none", BACKUP_PROOF_REASON="incident 4711")
    assert rerun.evidence == untouched(outcome.evidence) | {"reused": True}
    assert "was never restored and is unchanged" in rerun.output
    assert "is proven" not in rerun.output
    proven = world.run(simple)
    assert proven.code == 0, proven
    assert (proven.evidence["backup_id"], proven.evidence["proof"]["depth"]) == (f"backup-{ID}-attempt-2", "full")
    assert world.verified_manifest().backup_id == f"backup-{ID}-attempt-2"


def test_prisma_parameters_and_an_odd_password(world: BackupWorld, postgres_cluster):
    url = postgres_cluster.fresh("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    postgres_cluster.execute(url, "CREATE ROLE odd LOGIN SUPERUSER PASSWORD 'p@ss/w%rd?#x'")
    parsed = DatabaseUrl.parse(url)
    raw = f"postgresql://odd:p@ss/w%rd?#x@{parsed.host}:{parsed.port}/{parsed.database}?schema=public&connection_limit=5&pool_timeout=2"
    outcome = world.run(raw)
    assert outcome.code == 0, outcome
    assert "connection_limit, pool_timeout, schema" in outcome.output
    assert "p@ss/w%rd" not in outcome.output + outcome.log


def test_what_an_address_is_called_decides_nothing(world: BackupWorld, simple: str):
    with SessionProxy(simple) as proxy:
        outcome = world.run(f"{proxy.url}?pgbouncer=true")
    assert outcome.code == 0, outcome
    assert world.manifest()["server"]["through_pooler"]
    assert "✓ sessions at this address share a snapshot" in outcome.output


def test_a_pooler_of_transactions_is_refused_before_anything_is_made(world: BackupWorld, simple: str):
    with TransactionPooler(simple) as pooler:
        outcome = world.run(pooler.url)
    assert outcome.code == 2
    assert outcome.error["title"] == "Two sessions cannot share a snapshot at this address"
    assert "directUrl" in outcome.error["next"]
    assert world.listing() == [] and world.uploads() == []


def test_settings_of_the_database_end_no_session_and_change_no_row(world: BackupWorld, postgres_cluster):
    rows = r"INSERT INTO users (email, note) VALUES ('Ж', '\x00'), ('ß', NULL);"
    blobs = r"CREATE TABLE blobs (b bytea); INSERT INTO blobs VALUES ('\x00ff5c');"
    outcome = world.run(hostile(postgres_cluster, SIMPLE + rows + blobs))
    assert outcome.code == 0, outcome
    assert outcome.evidence["rows"] == 1504
    drill = world.run("", "restore_drill")
    assert drill.code == 0, drill


def test_scratch_must_not_be_production(world: BackupWorld, simple: str, postgres_cluster):
    outcome = world.run(simple, BACKUP_VERIFY_DATABASE_URL=postgres_cluster.cluster.url())
    assert outcome.code == 2
    assert "production server itself" in outcome.error["what"]
    assert world.listing() == [] and world.uploads() == []


def test_role_that_may_not_read_everything_fails_the_backup(world: BackupWorld, postgres_cluster):
    url = postgres_cluster.fresh("CREATE TABLE \"weak-word\" (id int); CREATE ROLE weak LOGIN PASSWORD 'weak-word'")
    parsed = DatabaseUrl.parse(url)
    outcome = world.run(DatabaseUrl(parsed.host, parsed.port, "weak", "weak-word", parsed.database).text)
    assert outcome.code == 3
    assert "permission denied for table ***" in outcome.error["what"]
    assert "weak-word" not in outcome.output + outcome.log
    assert world.listing() == [] and world.uploads() == []


@pytest.mark.parametrize("bad", ["../x", "1764000000-abc123\n", "1" * 1100])
def test_deployment_id_that_is_none_touches_nothing(world: BackupWorld, simple: str, bad: str):
    outcome = world.run(simple, DEPLOYMENT_ID=bad)
    assert outcome.code == 2
    assert "DEPLOYMENT_ID" in outcome.output
    assert world.listing() == []


def test_extension_that_scratch_lacks_is_refused_before_the_dump(world: BackupWorld, postgres_cluster):
    url = postgres_cluster.fresh("CREATE TABLE t (id int); CREATE EXTENSION citext")
    postgres_cluster.execute(url, "UPDATE pg_extension SET extname = 'only_in_production' WHERE extname = 'citext'")
    outcome = world.run(url)
    assert outcome.code == 2
    assert "only_in_production" in outcome.error["what"]
    assert "BACKUP_VERIFY_DATABASE_URL" in outcome.error["next"]
    assert world.listing() == [] and world.uploads() == []


def test_proof_on_a_given_server_leaves_nothing_there(world: BackupWorld, simple: str, postgres_cluster, tmp_path: Path):
    postgres_cluster.execute(simple, 'CREATE ROLE "Only In Production"; ALTER TABLE orders OWNER TO "Only In Production"')
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    with Cluster.start(tmp_path / "verify", processes=processes, major=postgres_cluster.cluster.major) as verify:
        outcome = world.run(simple, BACKUP_VERIFY_DATABASE_URL=verify.url())
        assert outcome.code == 0, outcome
        assert world.manifest()["proof"]["where"] == "BACKUP_VERIFY_DATABASE_URL"
        assert verify.password not in outcome.output + outcome.log
        left = "SELECT datname::text FROM pg_database UNION SELECT rolname::text FROM pg_roles WHERE rolname ~ 'Only'"
        names = postgres_cluster.execute(verify.url(), left)
        assert sorted(names) == [("postgres",), ("template0",), ("template1",)]


def test_a_store_without_checksums_is_refused_until_somebody_agrees(world: BackupWorld, simple: str):
    world.stores.boto3().delete_object(Bucket=world.bucket_name, Key="prod/trial.full-object")  # as if nobody had tried the store yet
    lacks = {"header": "x-amz-checksum-type", "status": 400, "code": "InvalidPart", "times": None}
    world.stores.fault("error", "CompleteMultipartUpload", **lacks)
    outcome = world.run(simple)
    assert outcome.code == 2
    assert outcome.error["title"] == "The store lacks what a backup needs"
    assert "InvalidPart" in outcome.error["what"] and 'checksums = "read-back"' in outcome.error["next"]
    assert world.listing() == [] and world.uploads() == []
    deploy_config.write(world.config, backup={"location": world.location, "checksums": "read-back"}, migrations={"command": []})
    agreed = world.run(simple, BACKUP_PROOF="none", BACKUP_PROOF_REASON="to see who reads it back")
    assert agreed.code == 0, agreed
    assert 'checksums = "read-back"' in agreed.evidence["bucket"][-1]
    assert "read_back" in agreed.evidence["seconds"], "nobody checked what the store keeps"


def test_a_command_of_psql_in_an_unproven_backup_runs_nothing_and_is_never_proven(world: BackupWorld, simple: str):
    assert world.run(simple).code == 0
    world.stores.boto3().delete_object(Bucket=world.bucket_name, Key=f"prod/backup-{ID}.manifest.json")  # as if the proof had not ended
    planted = world.folder / hostile_dumps.PLANTED
    world.replace_backup(lambda sql: hostile_dumps.with_command(sql, str(planted).encode()), "pending")
    outcome = world.run(simple)
    assert not planted.exists()
    assert "cannot be proven" in outcome.output and "a command of psql is in the dump" in outcome.output
    assert outcome.code == 0, outcome
    assert outcome.evidence["backup_id"] == f"backup-{ID}-attempt-2"
