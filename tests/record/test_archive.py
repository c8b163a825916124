"""Records and artifacts in a real S3 server: written once, found again, in the order in which they were written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from azora_ci.core import schemas
from azora_ci.core.errors import NotTrueError
from azora_ci.record import chain, deployment, run
from azora_ci.record.archive import LOOK_BACK, Archive
from azora_ci.record.chain import Document, doubts, sha256
from tests.record.test_deployment import FACTS, FAILURE
from tests.support import fragments_builder as build


@pytest.fixture
def archive(s3_server):
    return Archive(s3_server.open(s3_server.make_bucket(object_lock=True)), "production")


def document(seconds: int, *, attempt: int = 1, status: str = "success") -> Document:
    facts = replace(FACTS, deployment_id=f"{seconds}-abc123", run=replace(FACTS.run, attempt=attempt))
    return deployment.assemble(build.complete(), facts, status=status, failure=None if status == "success" else FAILURE)


def test_a_record_is_kept_once_and_recognised_again(archive):
    first = archive.keep_record(document(1764000000))
    again = archive.keep_record(document(1764000000))
    assert (first.recognised, again.recognised) == (False, True)
    assert first.location == f"s3://{archive.bucket.name}/records/production/1764000000-abc123/1.json"
    assert again.sha256 == first.sha256
    assert again.lock_until == first.lock_until is not None


def test_a_record_is_never_replaced(archive):
    kept = archive.keep_record(document(1764000000))
    with pytest.raises(NotTrueError, match="other bytes"):
        archive.keep_record({**document(1764000000), "triggered_by": "mallory"})
    assert sha256(archive.records_of("1764000000-abc123")[1]) == kept.sha256


def test_nothing_comes_before_the_first_record(archive):
    assert archive.previous("1764000000-abc123", 1) == run.Previous()


def test_previous_is_the_newest_record_and_the_last_success(archive):
    archive.keep_record(document(1764000000))
    failed = archive.keep_record(document(1764000100, status="failed"))
    previous = archive.previous("1764000200-abc123", 1)
    assert previous == run.Previous(failed.sha256, "1764000000-abc123", build.VERSION, record_location=failed.location)


def test_an_older_deployment_that_is_run_again_links_to_what_was_written_last(archive):
    archive.keep_record(document(1764000000, status="failed"))
    newer = archive.keep_record(document(1764000100))
    assert archive.previous("1764000000-abc123", 2).record_sha256 == newer.sha256


def test_own_record_is_not_its_own_previous(archive):
    archive.keep_record(document(1764000000))
    assert archive.previous("1764000000-abc123", 1) == run.Previous()


def test_environments_have_chains_of_their_own(archive):
    archive.keep_record(document(1764000000))
    assert Archive(archive.bucket, "staging").previous("1764000100-abc123", 1) == run.Previous()


NEWEST = "records/production/1764000100-abc123/1.json"
POISONS = {
    "no json": (b"no json", "no JSON"),
    "deep": (b"[" * 1000 + b"]" * 1000, "nested deeper than 64"),
    "unclosed": (b"[" * 1000, "a bracket is not closed"),
    "huge": (b'"' + b" " * chain.LIMITS.size + b'"', "at most 2097152 are read"),
    "infinite": (b'{"deployment_id": 1e999}', "a number is too large"),
    "digits": (b'{"deployment_id": ' + b"9" * 5000 + b"}", "a number of more than 32 characters"),
    "twice": (b'{"status": "failed", "status": "success"}', "a key stands twice"),
    "a list": (b"[]", "no JSON object"),
    "another's": (b'{"status": "success", "deployment_id": "1764000000-abc123"}', "no record of 1764000100-abc123"),
    "shape": (b'{"status": {}, "deployment_id": "1764000100-abc123"}', "status and version are no texts"),
    "link": (b'{"deployment_id": "1764000100-abc123", "previous_record_sha256": 1}', "the SHA-256 of the record before it is none"),
}


def poisoned(archive: Archive, data: bytes, key: str = NEWEST) -> None:
    archive.bucket.put_once(key, data, content_type="application/json")


@pytest.mark.parametrize("poison", POISONS)
def test_what_is_no_record_is_set_aside_and_named_and_the_chain_goes_on_without_it(archive, poison):
    data, flaw = POISONS[poison]
    kept = archive.keep_record(document(1764000000))
    poisoned(archive, data)
    (line,) = archive.previous("1764000200-abc123", 1).set_aside
    assert line.startswith(f"s3://{archive.bucket.name}/{NEWEST} ({len(data)} bytes")
    assert flaw in line
    assert (sha256(data) in line) is (poison != "huge")  # it is not even read
    expected = run.Previous(kept.sha256, "1764000000-abc123", build.VERSION, (line,), kept.location)
    assert archive.previous("1764000200-abc123", 1) == expected
    assert archive.newest().sha256 == kept.sha256
    assert archive.record_to_take_back(None).sha256 == kept.sha256
    assert archive.newest_with("status").sha256 == kept.sha256
    entries, place = archive.around("records/production/1764000000-abc123/1.json")
    assert [entry.document == {} for entry in entries] == [False, True]
    assert doubts([entry.data for entry in entries], place, [1]) == []
    with pytest.raises(NotTrueError, match=r"the record of 1764000100-abc123 is set aside\nset aside: s3://"):
        archive.record_to_take_back("1764000100-abc123")


def test_what_is_not_a_record_may_lie_beside_them_and_is_none_of_our_business(archive):
    poisoned(archive, b"hello", "records/production/readme.txt")
    assert archive.previous("1764000200-abc123", 1) == run.Previous()


def test_a_success_that_does_not_fit_the_schema_is_not_taken_back_in_place_of_the_real_one(archive):
    kept = archive.keep_record(document(1764000000))
    forged = {"deployment_id": "1764000100-abc123", "status": "success", "version": "v9.9.9", "previous_record_sha256": kept.sha256}
    poisoned(archive, schemas.canonical(forged))
    assert archive.record_to_take_back(None).sha256 == kept.sha256
    assert "no deployment record: (top level): " in archive.set_aside[0]


def test_a_flood_of_poison_does_not_hide_the_last_success(archive):
    kept = archive.keep_record(document(1764000000))
    for number in range(LOOK_BACK + 5):
        poisoned(archive, b"[" * 1000, f"records/production/{1764000100 + number}-abc123/1.json")
    previous = archive.previous("1764009999-abc123", 1)
    assert (previous.record_sha256, previous.deployment_id, len(previous.set_aside)) == (kept.sha256, "1764000000-abc123", LOOK_BACK + 5)


def test_a_record_behind_one_that_was_overwritten_by_poison_can_still_be_believed(archive):
    first = archive.keep_record(document(1764000000))
    second = archive.keep_record({**document(1764000100), "previous_record_sha256": first.sha256})
    third = archive.keep_record({**document(1764000200), "previous_record_sha256": second.sha256})
    archive.bucket.calls.call("put_object", "test", Bucket=archive.bucket.name, Key=NEWEST, Body=b"[" * 1000)
    entries, place = archive.around("records/production/1764000200-abc123/1.json")
    place = [entry.sha256 for entry in entries].index(third.sha256)
    aside = [number for number, entry in enumerate(entries) if entry.flaw]
    assert doubts([entry.data for entry in entries], place, aside) == []
    assert "it names" in doubts([entry.data for entry in entries], place)[0]  # were it not set aside


def test_records_of_a_deployment_by_attempt(archive):
    for attempt in (1, 2, 10):
        archive.keep_record(document(1764000000, attempt=attempt))
    archive.keep_record(document(1764000001))
    assert {attempt: json.loads(data)["run_attempt"] for attempt, data in archive.records_of("1764000000-abc123").items()} == {
        1: 1, 2: 2, 10: 10,
    }  # fmt: skip


def test_artifacts_are_kept_with_their_paths_and_again_without_harm(archive, tmp_path):
    (tmp_path / "logs" / "record").mkdir(parents=True)
    (tmp_path / "logs" / "record" / "job.json").write_text("{}")
    (tmp_path / "logs" / "ä b.log").write_text("log")
    (tmp_path / "logs" / "link").symlink_to("/etc/hostname")
    for _ in range(2):
        kept = archive.keep_artifacts(tmp_path, "1764000000-abc123", 1)
        assert (kept.files, kept.size_bytes, kept.problems) == (2, 5, ())
    prefix = "artifacts/production/1764000000-abc123/1/"
    assert {stored.key for stored in archive.bucket.list("artifacts/")} == {f"{prefix}logs/record/job.json", f"{prefix}logs/ä b.log"}
    assert archive.bucket.head(f"{prefix}logs/record/job.json").lock_until is not None


def test_a_changed_artifact_is_named_and_not_replaced(archive, tmp_path):
    (tmp_path / "a.log").write_text("first")
    archive.keep_artifacts(tmp_path, "1764000000-abc123", 1)
    (tmp_path / "a.log").write_text("other")
    kept = archive.keep_artifacts(tmp_path, "1764000000-abc123", 1)
    assert kept.files == 0
    assert kept.problems[0].startswith("a.log: another file is archived as s3://")
    assert archive.bucket.read("artifacts/production/1764000000-abc123/1/a.log") == b"first"


def test_nothing_received_is_nothing_kept(archive, tmp_path):
    assert archive.keep_artifacts(tmp_path / "missing", "1764000000-abc123", 1).files == 0


def test_what_can_be_taken_back_is_the_newest_that_reached_production(archive):
    with pytest.raises(NotTrueError, match="no record of a deployment"):
        archive.record_to_take_back(None)
    archive.keep_record(document(1764000000))
    failed = {**document(1764000100, status="failed"), "rollback_available": False}
    archive.keep_record(failed)
    assert archive.record_to_take_back(None).document["deployment_id"] == "1764000000-abc123"
    assert archive.record_to_take_back("1764000100-abc123").document["status"] == "failed"  # named: it is refused for what it is
    archive.keep_record(document(1764000200, status="failed"))  # failed smoke tests: the new version serves, and can go back
    assert archive.record_to_take_back(None).document["deployment_id"] == "1764000200-abc123"
    with pytest.raises(NotTrueError, match="no record of 1764000300-abc123"):
        archive.record_to_take_back("1764000300-abc123")


def test_records_of_rollbacks_lie_beside_the_deployments_and_are_links_of_the_same_chain(archive):
    kept = archive.keep_record(document(1764000000))
    rollback = {"deployment_id": "1764000000-abc123", "kind": "rollback", "version": "v1.2.3", "status": "completed"}
    rollback["previous_record_sha256"] = archive.newest().sha256
    locations = [archive.keep_rollback({**rollback, "number": number}).location for number in (1, 2)]
    assert [location.rsplit("/", 1)[1] for location in locations] == ["rollback-1.json", "rollback-2.json"]
    entries, place = archive.around("records/production/1764000000-abc123/1.json")
    assert (place, entries[0].sha256, len(entries)) == (0, kept.sha256, 3)
    assert archive.previous("1764000100-abc123", 1) == run.Previous(
        entries[2].sha256, "1764000000-abc123", build.VERSION, record_location=archive.bucket.url(entries[2].key)
    )
    assert archive.newest().sha256 == entries[2].sha256
    assert archive.record_to_take_back(None).sha256 == kept.sha256
    assert list(archive.records_of("1764000000-abc123")) == [1]
