"""With signing on, a record counts only with a signature of our key: whoever can write the bucket cannot forge one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from azora_ci.clients.signing.signatures import Signatures
from azora_ci.core import schemas
from azora_ci.core.errors import NotTrueError
from azora_ci.record import host_keys
from azora_ci.record.archive import Archive
from tests.record.test_archive import document
from tests.record.test_host_keys import FIRST, SECOND, evidence, keep
from tests.support import signing

FORGED = "records/production/1764000100-abc123/1.json"


class Signed:
    """An archive whose records are signed, and the same bucket in the hands of somebody who can write it."""

    def __init__(self, s3_server, folder: Path) -> None:
        self.bucket = s3_server.open(s3_server.make_bucket(object_lock=True))
        self.archive = self.opened(Signatures(self.bucket, signing.KeyFileSigner(folder / "key.pem")))
        self.mallory = self.opened(Signatures(self.bucket, signing.KeyFileSigner(folder / "mallory.pem")))
        self.unsigned = self.opened(None)

    def opened(self, signatures: Signatures | None) -> Archive:
        return Archive(self.bucket, "production", "GOVERNANCE", signatures)


@pytest.fixture
def signed(s3_server, tmp_path: Path) -> Signed:
    return Signed(s3_server, tmp_path)


@pytest.mark.parametrize("author", ["unsigned", "mallory"])
def test_a_record_with_the_right_previous_hash_is_not_believed_and_its_host_key_is_not_expected(signed: Signed, author: str):
    location = keep(signed.archive, 1764000000, FIRST)
    forged = keep(getattr(signed, author), 1764000100, SECOND)  # it names the SHA-256 of the record before it, as it should
    recorded = host_keys.newest(signed.archive)
    assert recorded is not None and recorded.location == location
    assert evidence(SECOND)["known_hosts"] not in recorded.known_hosts
    assert [line for line in signed.archive.set_aside if forged in line and "sign" in line]
    trusting = host_keys.newest(signed.unsigned)
    assert trusting is not None and trusting.location == forged, "without signatures it is believed: this is what they are for"


@pytest.mark.parametrize("author", ["unsigned", "mallory"])
def test_a_forged_newest_record_stops_neither_recording_nor_going_back(signed: Signed, author: str):
    kept = signed.archive.keep_record(document(1764000000))
    forger = getattr(signed, author)
    forged = {**document(1764000100), "previous_record_sha256": "0" * 64}
    forger.keep_record(forged)
    assert signed.archive.newest().sha256 == kept.sha256
    previous = signed.archive.previous("1764000200-abc123", 1)
    assert (previous.record_sha256, previous.deployment_id) == (kept.sha256, "1764000000-abc123")
    chosen = signed.archive.record_to_take_back(None)
    assert chosen.document["deployment_id"] == "1764000000-abc123"
    records, place = signed.archive.around(chosen.key)
    assert ([record.key for record in records if record.flaw is None], place) == ([chosen.key], 0)
    assert signed.archive.records_of("1764000100-abc123") == {}


def test_records_are_signed_when_they_are_written_and_say_by_whom(signed: Signed):
    signed.archive.keep_record(document(1764000000))
    number = signed.archive.keep_rollback({"deployment_id": "1764000000-abc123", "kind": "rollback"}).location.rpartition("/")[2]
    for name in ("1.json", number):
        key = f"records/production/1764000000-abc123/{name}"
        assert signed.archive.signatures.doubt(key, signed.bucket.read(key)) is None
    assert json.loads(signed.bucket.read("records/production/1764000000-abc123/1.json"))["signed_by"] == "none"  # FACTS say so
    assert len(signed.archive.records()) == 2, "signatures are no records"


def test_a_changed_record_is_not_believed(signed: Signed, s3_server):
    signed.archive.keep_record(document(1764000000))
    key = "records/production/1764000000-abc123/1.json"
    changed = {**json.loads(signed.bucket.read(key)), "triggered_by": "mallory"}
    s3_server.boto3().put_object(Bucket=signed.bucket.name, Key=key, Body=schemas.canonical(changed))
    with pytest.raises(NotTrueError, match="no deployment to take back"):
        signed.archive.record_to_take_back(None)
    assert "another document" in signed.archive.set_aside[-1]


@pytest.mark.parametrize("name", ["deployment-record", "rollback-record", "backup-manifest", "backup-pending"])
def test_every_document_says_who_signs_it(name: str):
    schema: dict[str, Any] = schemas.load(name)
    assert schema["properties"]["signed_by"]["type"] == "string"


def test_reading_a_signed_record_takes_two_requests(signed: Signed, s3_server):
    for number in range(3):
        signed.archive.keep_record(document(1764000000 + 100 * number))
    stored = signed.archive.records()
    with s3_server.server.recorded_requests() as requests:
        assert [item.flaw for item in signed.archive.read_all(stored)] == [None] * 3
    assert [request.operation for request in requests] == ["GetObject"] * 6
