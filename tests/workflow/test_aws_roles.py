"""The roles in .github/aws allow what each job asks of S3 and nothing that could replace, unlock or remove evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml
from moto.iam.access_control import IAMPolicy, PermissionResult

from azora_ci.cli.adopt import plan
from azora_ci.record.archive import Archive
from azora_ci.rehearsal.standins.s3.operations import OPERATIONS
from azora_ci.rehearsal.standins.slack import SlackReceiver
from tests.gates.entry.test_emergency import Asked, keep
from tests.support import ROOT, record_world
from tests.support import fragments_builder as build
from tests.support.backup_world import ID, SIMPLE, BackupWorld
from tests.support.stores import Stores

ROLES = ROOT / ".github/aws"
WORKFLOWS = ROOT / ".github/workflows"
# Job -> the variable that names a role of its own; without it AWS_ROLE_ARN counts.
OWN_ROLE = {
    "pre-deployment-validation": "AWS_READ_ROLE_ARN",
    "database-backup": "AWS_BACKUP_ROLE_ARN",
    "deployment-record": "AWS_RECORD_ROLE_ARN",
    "deployment-failure-handler": "AWS_RECORD_ROLE_ARN",
    "rollback": "AWS_RECORD_ROLE_ARN",
    "restore-drill": None,  # in the environment operations, whose AWS_ROLE_ARN is another one
}
BUCKET = "arn:aws:s3:::azora-backups"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555"
RECORD = "records/production/1764000000-abc123/1.json"
STAGED = "records/staging/1764000000-abc123/1.json"
ARTIFACT = "artifacts/production/1764000000-abc123/1/build-logs/build.log"
BACKUP = "prod/backup-1764000000-abc123.sql.gz"
# S3 operation -> the action that a policy must allow (AWS, Service Authorization Reference, "Amazon S3").
ACTIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "GetBucketVersioning": "s3:GetBucketVersioning",
    "GetObject": "s3:GetObject",
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "ListParts": "s3:ListMultipartUploadParts",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}
# (what, action, resource) -> the roles that may.
TABLE = {
    ("write a backup", "s3:PutObject", f"{BUCKET}/{BACKUP}"): {"backup-role"},
    ("lock a backup", "s3:PutObjectRetention", f"{BUCKET}/{BACKUP}"): {"backup-role"},
    ("read a backup", "s3:GetObject", f"{BUCKET}/{BACKUP}"): {"backup-role", "record-role", "drill-role"},
    ("write a record", "s3:PutObject", f"{BUCKET}/{RECORD}"): {"record-role"},
    ("write an artifact", "s3:PutObject", f"{BUCKET}/{ARTIFACT}"): {"record-role"},
    ("read a record", "s3:GetObject", f"{BUCKET}/{RECORD}"): {"record-role", "read-role"},
    ("write a record of another environment", "s3:PutObject", f"{BUCKET}/{STAGED}"): set(),
    ("read a record of staging", "s3:GetObject", f"{BUCKET}/{STAGED}"): {"read-role"},
    ("write elsewhere in the bucket", "s3:PutObject", f"{BUCKET}/index.html"): set(),
    ("write to another bucket", "s3:PutObject", f"{BUCKET}-of-others/{BACKUP}"): set(),
    ("delete a backup", "s3:DeleteObject", f"{BUCKET}/{BACKUP}"): set(),
    ("delete a version of a record", "s3:DeleteObjectVersion", f"{BUCKET}/{RECORD}"): set(),
    ("shorten a lock", "s3:BypassGovernanceRetention", f"{BUCKET}/{RECORD}"): set(),
    ("change the lock of the bucket", "s3:PutBucketObjectLockConfiguration", BUCKET): set(),
    ("suspend versioning", "s3:PutBucketVersioning", BUCKET): set(),
    ("expire objects", "s3:PutLifecycleConfiguration", BUCKET): set(),
    ("open the bucket", "s3:PutBucketPolicy", BUCKET): set(),
    ("sign", "kms:Sign", KEY): {"backup-role", "record-role"},
    ("check a signature", "kms:GetPublicKey", KEY): {"backup-role", "record-role", "read-role", "drill-role"},
    ("schedule the key's deletion", "kms:ScheduleKeyDeletion", KEY): set(),
    ("use another key", "kms:Sign", KEY.replace("1111", "9999")): set(),
}


def role_names() -> list[str]:
    return sorted(path.stem for path in ROLES.glob("*-role.json"))


def may(role: str, action: str, resource: str) -> bool:
    policy = IAMPolicy((ROLES / f"{role}.json").read_text(encoding="utf-8"))
    return policy.is_action_permitted(action, resource) is PermissionResult.PERMITTED


@pytest.mark.parametrize(("what", "action", "resource"), TABLE, ids=[what for what, _, _ in TABLE])
def test_each_role_may_do_its_own_work_only(what: str, action: str, resource: str):
    assert {role for role in role_names() if may(role, action, resource)} == TABLE[what, action, resource]


@pytest.mark.parametrize("role", role_names())
def test_every_statement_names_actions_and_resources(role: str):
    for statement in json.loads((ROLES / f"{role}.json").read_text(encoding="utf-8"))["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"]), statement["Sid"]
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        assert all(resource.startswith((f"{BUCKET}/", KEY)) or resource == BUCKET for resource in resources), statement["Sid"]


def test_every_operation_of_the_stand_in_has_an_action():
    assert {name for choices in OPERATIONS.values() for name in choices.values()} == set(ACTIONS)


@contextmanager
def requests_allowed_by(role: str, stores: Stores) -> Iterator[None]:
    """Fail unless the role allows every request that the S3 server gets inside the block, and at least one came."""
    with stores.server.recorded_requests() as requests:
        yield
    assert requests
    needed = {(ACTIONS[request.operation], request.key) for request in requests}
    needed |= {("s3:PutObjectRetention", request.key) for request in requests if request.locks}
    needed |= {("s3:GetObjectVersion", request.key) for request in requests if request.versioned}
    refused = sorted(action for action, key in needed if not may(role, action, f"{BUCKET}/{key}" if key else BUCKET))
    assert not refused, refused


def test_backup_role_is_enough_for_the_backup_and_drill_role_for_the_drill(tmp_path, s3_server, postgres_cluster):
    world, url = BackupWorld(tmp_path, s3_server, object_lock=True), postgres_cluster.fresh(SIMPLE)
    with requests_allowed_by("backup-role", s3_server):
        assert world.run(url).code == 0
    with requests_allowed_by("drill-role", s3_server):
        assert world.run("", "restore_drill", BACKUP_ID=ID).code == 0


def test_record_role_is_enough_for_records_of_success_and_failure(tmp_path, s3_server):
    with SlackReceiver(tmp_path / "slack.jsonl") as slack:
        world = record_world.world(tmp_path, s3_server, slack)
        build.receive(world.received, *build.complete().values())
        with requests_allowed_by("record-role", s3_server):
            assert world.run("deployment-record").code == 0
        with requests_allowed_by("record-role", s3_server):
            assert world.run("deployment-failure-handler", GITHUB_RUN_ATTEMPT="2").code in {0, 1}
        assert len(world.records()) == 2


def test_read_role_is_enough_to_ask_staging(s3_server):
    archive = Archive(s3_server.open(s3_server.make_bucket(object_lock=True)), "staging")
    keep(archive, 1764000000)
    with requests_allowed_by("read-role", s3_server):
        Asked(archive=archive).staging()


@pytest.mark.parametrize(
    ("form", "subject"),
    [
        ("names", "repo:OWNER/REPOSITORY:environment:production"),
        ("ids", "repo:OWNER@OWNER_ID/REPOSITORY@REPOSITORY_ID:environment:production"),
    ],
)
def test_trust_policies_admit_one_environment_of_one_repository(form: str, subject: str):
    (statement,) = json.loads((ROLES / f"trust-policy.{form}.json").read_text(encoding="utf-8"))["Statement"]
    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert list(statement["Condition"]) == ["StringEquals"]  # StringLike with a star admits branches and pull requests
    claims = statement["Condition"]["StringEquals"]
    assert claims == {
        "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
        "token.actions.githubusercontent.com:sub": subject,
    }


def test_a_role_can_admit_the_published_workflows_alone():
    (statement,) = json.loads((ROLES / "trust-policy.reusable.json").read_text(encoding="utf-8"))["Statement"]
    assert statement["Condition"].keys() == {"StringEquals"}
    published = [
        plan.called(name, plan.SetupAction(plan.REPOSITORY, "1" * 40)).split("\n    uses: ")[1].split("\n")[0]
        for name in ("deploy-production.yml", "rollback-production.yml")
    ]
    assert statement["Condition"]["StringEquals"]["token.actions.githubusercontent.com:sub"] == [
        f"repo:OWNER/REPOSITORY:environment:production:job_workflow_ref:{workflow.replace('1' * 40, 'COMMIT')}" for workflow in published
    ]


def test_each_job_assumes_its_own_role_where_there_is_one():
    assumed = {}
    for path in WORKFLOWS.glob("*.yml"):
        for job, definition in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            for step in (step for step in definition["steps"] if "configure-aws-credentials" in step.get("uses", "")):
                assumed[job] = (step["if"], step["with"]["role-to-assume"])
    assert set(assumed) == set(OWN_ROLE)
    for job, variable in OWN_ROLE.items():
        role = f"vars.{variable} || vars.AWS_ROLE_ARN" if variable else "vars.AWS_ROLE_ARN"
        condition = f"({role})" if variable else role
        assert assumed[job] == (f"{condition} != ''", f"${{{{ {role} }}}}")
