from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from azora_ci.rehearsal.standins.slack import SlackReceiver
from tests.support import deploy_config, hostile_dumps, signing
from tests.support.backup_world import ID, SIMPLE, BackupWorld
from tests.support.hostile import NESTED


@pytest.fixture(scope="module")
def url(postgres_cluster) -> str:
    return postgres_cluster.fresh(SIMPLE)


def test_newest_backup_is_restored_and_a_damaged_one_is_told(tmp_path: Path, s3_server, url: str):
    world = BackupWorld(tmp_path, s3_server)
    assert world.run(url, DEPLOYMENT_ID="1763000000-abc123").code == 0
    assert world.run(url).code == 0

    outcome = world.run("", "restore_drill")
    assert outcome.code == 0, outcome
    assert outcome.evidence["backup_id"] == f"backup-{ID}"
    assert outcome.evidence["depth"] == "full"
    assert outcome.fragment["deployment_id"] == ID

    older = world.run("", "restore_drill", BACKUP_ID="1763000000-abc123", BACKUP_PROOF="counts")
    assert older.code == 0, older
    assert older.evidence["backup_id"] == "backup-1763000000-abc123"

    poison = {"Bucket": world.bucket_name, "Key": "prod/backup-1765000000-abc123.manifest.json", "Body": NESTED}
    world.stores.boto3().put_object(**poison)
    drilled = world.run("", "restore_drill", BACKUP_PROOF="counts")
    assert drilled.code == 0, drilled
    assert drilled.evidence["backup_id"] == f"backup-{ID}"
    assert drilled.evidence["set_aside"] == [f"s3://{poison['Bucket']}/{poison['Key']}: no JSON: a bracket is not closed, or not opened"]

    damage_record_of_rows(world)
    messages = tmp_path / "slack.jsonl"
    with SlackReceiver(messages) as slack:
        failing = world.run("", "restore_drill", SLACK_WEBHOOK=slack.url)
    assert failing.code == 1, failing
    assert "public.users" in failing.error["what"]
    assert failing.evidence["notified"]
    assert "Restore drill FAILED" in messages.read_text()
    assert world.leftovers() == []


def damage_record_of_rows(world: BackupWorld) -> None:
    """Make the manifest say that there was one more user."""
    document = world.manifest()
    next(table for table in document["tables"] if table["name"] == "public.users")["rows"] += 1
    key = f"prod/backup-{ID}.manifest.json"
    world.stores.boto3().put_object(Bucket=world.bucket_name, Key=key, Body=json.dumps(document).encode())


def test_no_backup_is_a_failed_drill(tmp_path: Path, s3_server):
    outcome = BackupWorld(tmp_path, s3_server).run("", "restore_drill")
    assert outcome.code == 1
    assert outcome.error["title"] == "There is no backup to restore"


def test_a_backup_with_a_command_of_psql_runs_nothing_and_fails_the_drill(tmp_path: Path, s3_server, url: str):
    world = BackupWorld(tmp_path, s3_server)
    assert world.run(url).code == 0
    planted = tmp_path / hostile_dumps.PLANTED
    world.replace_backup(lambda sql: sql)
    assert world.run("", "restore_drill").code == 0, "another object with a document that fits is restored: only the command matters here"
    world.replace_backup(lambda sql: hostile_dumps.with_command(sql, str(planted).encode()))
    outcome = world.run("", "restore_drill")
    assert not planted.exists()
    assert outcome.code == 1, outcome
    assert "a command of psql is in the dump" in outcome.error["what"]
    assert outcome.error["title"] == "The backup could not be restored"


# Passes the scanner, which reads no bodies of functions. A check constraint of production's tables could do the same.
STARTS_A_PROGRAM = b"DO $evil$ BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''env > %b; true'''; END $evil$;\n"
END = b"--\n-- PostgreSQL database dump complete"


def test_a_program_that_the_sql_of_a_backup_starts_gets_nowhere(tmp_path: Path, s3_server, url: str):
    world = BackupWorld(tmp_path, s3_server)
    assert world.run(url).code == 0
    planted = Path("/var/tmp") / f"azora-ci-{hostile_dumps.PLANTED}-{secrets.token_hex(8)}"  # where any user may write
    command = STARTS_A_PROGRAM.replace(b"%b", str(planted).encode())
    world.replace_backup(lambda sql: sql.replace(END, command + END))
    outcome = world.run("", "restore_drill")
    try:
        assert not planted.exists(), outcome
    finally:
        planted.unlink(missing_ok=True)
    assert outcome.code == 0, outcome
    assert "without isolation" not in outcome.output


def test_with_signing_on_only_what_kms_signed_is_restored(tmp_path: Path, s3_server, url: str):
    with signing.kms() as endpoint:
        world = BackupWorld(tmp_path, s3_server, object_lock=True)
        signed_by = f"kms:{signing.make_key(endpoint)}"
        deploy_config.write(world.config, backup={"location": world.location}, evidence={"signing": signed_by}, migrations={"command": []})
        made = world.run(url, AWS_ENDPOINT_URL_KMS=endpoint)
        assert made.code == 0, made
        assert json.loads(world.bucket.read(f"prod/backup-{ID}.manifest.json"))["signed_by"] == signed_by
        assert world.run("", "restore_drill", AWS_ENDPOINT_URL_KMS=endpoint).code == 0

        world.replace_backup(lambda sql: sql)  # another object and a manifest that fits it, as who can write the bucket would leave them
        forged = world.run("", "restore_drill", AWS_ENDPOINT_URL_KMS=endpoint)
        assert forged.code == 1, forged
        assert forged.error["title"] == "There is no backup to restore"
        assert f"backup-{ID}.manifest.json" in forged.error["what"]
        assert "sign" in forged.error["what"]

        world.stores.boto3().delete_object(Bucket=world.bucket_name, Key=f"prod/backup-{ID}.manifest.json")
        world.replace_backup(lambda sql: sql, "pending")  # a forged object must not be proven, and its manifest signed, by us
        leftover = world.run(url, AWS_ENDPOINT_URL_KMS=endpoint)
        assert leftover.code == 1, leftover
        assert f"backup-{ID}.pending.json" in leftover.error["where"]
