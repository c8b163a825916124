"""Host keys that the last deployment recorded, in a real S3 server: found by the next one, not believed where the archive was changed."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from azora_ci.cli import common
from azora_ci.clients.ssh.host_keys import HostKey, SeenKey, lines_of
from azora_ci.core import config, schemas, settings, variables
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.record import host_keys
from azora_ci.record.archive import Archive
from azora_ci.record.chain import sha256
from azora_ci.record.deployment import assemble
from azora_ci.targets.registry import kind_of
from tests.record.test_deployment import FACTS
from tests.support import deploy_config
from tests.support import fragments_builder as build

SALT = bytes(range(20))
FIRST, SECOND = (HostKey("ssh-ed25519", blob) for blob in ("AAAAC3NzaC1lZDI1NTE5AAAAIGmn", "AAAAC3NzaC1lZDI1NTE5AAAAIHxx"))


@pytest.fixture
def archive(s3_server):
    return Archive(s3_server.open(s3_server.make_bucket(object_lock=True)), "production")


def evidence(key: HostKey, source: str = "accepted") -> dict[str, object]:
    return SeenKey(key.fingerprint, key, source).document("web1.example", SALT)


def keep(archive: Archive, seconds: int, *keys: HostKey) -> str:
    collected = build.complete()
    collected["gradual-rollout"].evidence["host_keys"] = [evidence(key) for key in keys]
    newest = archive.newest()
    previous = replace(FACTS.previous, record_sha256=newest.sha256 if newest else None)
    document = assemble(collected, replace(FACTS, deployment_id=f"{seconds}-abc123", previous=previous), status="success")
    schemas.validate(document, "deployment-record", where="test")
    return archive.keep_record(document).location


def test_nothing_is_recorded_before_the_first_deployment(archive):
    assert host_keys.newest(archive) is None
    keep(archive, 1764000000)
    assert host_keys.newest(archive) is None


def test_the_newest_record_that_has_keys_counts(archive):
    keep(archive, 1764000000, FIRST)
    location = keep(archive, 1764000100, SECOND)
    keep(archive, 1764000200)  # it never connected
    recorded = host_keys.newest(archive)
    assert recorded.location == location
    assert recorded.sha256 == sha256(archive.bucket.read("records/production/1764000100-abc123/1.json"))
    assert recorded.known_hosts == f"{evidence(SECOND)['known_hosts']}\n"
    assert "web1.example" not in json.dumps(recorded.document())


def test_a_record_that_was_slipped_in_is_not_believed(archive):
    keep(archive, 1764000000, FIRST)
    record = json.loads(archive.bucket.read("records/production/1764000000-abc123/1.json"))
    record |= {"host_keys": [evidence(SECOND)], "previous_record_sha256": "0" * 64, "deployment_id": "1764000100-abc123"}
    archive.bucket.put_once("records/production/1764000100-abc123/1.json", schemas.canonical(record), content_type="application/json")
    with pytest.raises(NotTrueError, match="cannot be believed") as caught:
        host_keys.newest(archive)
    assert "PROD_KNOWN_HOSTS" in caught.value.next_step


def test_what_this_deployment_saw_counts_beside_what_was_recorded(tmp_path):
    collected = build.complete()
    assert host_keys.of_this_deployment(build.received(tmp_path)) == ""
    recorded = {"location": "s3://b/records/production/1763000000-0f0f0f/1.json", "sha256": "0" * 64, "host_keys": [evidence(FIRST)]}
    validation = collected["pre-deployment-validation"]
    validation.evidence["recorded_host_keys"] = recorded
    build.receive(tmp_path, validation)
    assert host_keys.of_this_deployment(build.received(tmp_path)) == f"{evidence(FIRST)['known_hosts']}\n"
    collected["gradual-rollout"].evidence["host_keys"] = [evidence(SECOND)]
    build.receive(tmp_path, collected["gradual-rollout"])
    assert host_keys.of_this_deployment(build.received(tmp_path)) == lines_of([evidence(FIRST), evidence(SECOND)])


def production(tmp_path, kind: str = "docker_hosts", **database) -> config.DeployConfig:
    images = {"edge_image": "r.example/edge@sha256:" + "0" * 64, "guard_image": "r.example/python@sha256:" + "0" * 64}
    target = {"target": {"kind": "docker_hosts", "docker_hosts": images}, "edge": None} if kind == "docker_hosts" else {}
    written = deploy_config.write(tmp_path / "d.toml", registry={"repository": "r.example/azora"}, database=database, **target)
    return config.load(written)


def access(**environ: str) -> settings.ProductionHosts:
    return variables.load(settings.ProductionHosts, environ)


@pytest.mark.parametrize(
    ("pinned", "kind", "via_ssh", "needed"),
    [
        ({}, "docker_hosts", False, True),
        ({"PROD_KNOWN_HOSTS": "web1.example ssh-ed25519 AAAA"}, "docker_hosts", False, False),
        ({}, "local_processes", False, False),
        ({}, "local_processes", True, True),
    ],
)
def test_recorded_keys_count_where_a_job_connects_and_no_key_is_pinned(tmp_path, pinned, kind, via_ssh, needed):
    loaded = production(tmp_path, kind, via_ssh=via_ssh)
    assert host_keys.are_needed(access(**pinned), loaded, by_target=kind_of(loaded).needs_host_keys) is needed


def test_the_archive_gives_the_keys_of_its_newest_record(archive):
    assert host_keys.of_archive(archive) == ""
    keep(archive, 1764000000, FIRST)
    assert host_keys.of_archive(archive) == f"{evidence(FIRST)['known_hosts']}\n"


def test_a_run_uses_pinned_keys_then_those_of_its_own_jobs_then_the_archive(archive, tmp_path):
    keep(archive, 1764000000, FIRST)
    line = f"{evidence(FIRST)['known_hosts']}\n"
    pinned = access(PROD_KNOWN_HOSTS="web1.example ssh-ed25519 AAAA")
    assert host_keys.for_run(access(), build.received(tmp_path), archive) == line
    assert host_keys.for_run(access(), build.received(tmp_path), None) == ""
    rollout = build.complete()["gradual-rollout"]
    rollout.evidence["host_keys"] = [evidence(SECOND)]
    build.receive(tmp_path, rollout)
    assert host_keys.for_run(access(), build.received(tmp_path), archive) == lines_of([evidence(SECOND)])
    assert host_keys.for_run(pinned, build.received(tmp_path), archive) == ""


def test_a_person_at_a_keyboard_who_may_read_the_archive_needs_no_pinned_key(archive, tmp_path, s3_server, monkeypatch):
    keep(archive, 1764000000, FIRST)
    loaded = replace(production(tmp_path), backup=replace(production(tmp_path).backup, location=f"s3://{archive.bucket.name}/prod"))
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    assert common.recorded_host_keys(access(), loaded, processes) == ""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    assert common.recorded_host_keys(access(), loaded, processes) == f"{evidence(FIRST)['known_hosts']}\n"
