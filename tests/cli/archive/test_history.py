"""The history of a real archive as a person reads it, and its verification."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from azora_ci.cli.main import main
from azora_ci.clients.signing.signatures import Signatures
from azora_ci.core import schemas
from azora_ci.record import rollback
from azora_ci.record.archive import Archive
from azora_ci.record.chain import archived_bytes
from tests.record.test_archive import document
from tests.record.test_deployment import FACTS
from tests.record.test_verification import location, records
from tests.support import deploy_config
from tests.support.signing import KeyFileSigner

ID = "1764000000-abc123"


def run(*arguments: str, command: str = "history") -> tuple[int, str]:
    result = CliRunner().invoke(main, [command, "--config", "deploy.toml", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def rows(output: str) -> list[list[str]]:
    """Return the cells of the table's lines, which two spaces or more separate."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in output.split("\n\n", maxsplit=1)[0].splitlines() if line
    ]


def keep(archive: Archive, seconds: int, **changes: Any) -> str:
    before = archive.newest()
    link = {"previous_record_sha256": before.sha256, "previous_record_location": archive.bucket.url(before.key)} if before else {}
    return archive.keep_record({**document(seconds, status=changes.pop("status", "success")), **link, **changes}).location


def take_back(archive: Archive, seconds: int) -> str:
    before = archive.newest()
    assert before is not None
    evidence: dict[str, Any] = {
        "reason": "checkout fails", "to": {"version": "v1.2.2", "deployment_id": "1763000000-0f0f0f"}, "after_deadline": False,
        "rollback_deadline": "2025-11-24T12:36:00.125Z", "already_back": False, "fenced": None, "instances": ["api_gateway#1"],
        "seconds_to_safe": 0.4, "proved": True, "requests_after": 0, "detail": "nothing reached it", "smoke_status": "passed", "tests": [],
        "health": {"database": "healthy"}, "notes": [],
        "record": {"location": archive.bucket.url(before.key), "sha256": before.sha256},
    }  # fmt: skip
    taken_back = {"deployment_id": f"{seconds}-abc123", "version": "v1.2.3", "migrations_applied": 2}
    facts = rollback.RollbackCircumstances(
        timestamp="2025-11-24T12:00:00.000Z",
        run=FACTS.run,
        previous_record_sha256=before.sha256,
        previous_record_location=archive.bucket.url(before.key),
    )
    made = rollback.assemble(evidence, taken_back, facts)
    schemas.validate(made, rollback.SCHEMA, where="test")
    return archive.keep_rollback(made).location


def test_deployments_and_rollbacks_newest_first(archive: Archive):
    keep(archive, 1764000000)
    take_back(archive, 1764000000)
    keep(archive, 1764000100, status="failed", triggered_by="mo\x1bna")
    code, output = run()
    assert code == 0
    assert rows(output) == [
        ["time", "id", "version", "status", "who", "took", "backup", "rolled back"],
        ["2025-11-24T11:36:00Z", "1764000100-abc123", "v1.2.3", "failed", "mo�na", "36 min 0 s", "proven", "no"],
        ["2025-11-24T12:00:00Z", ID, "v1.2.3", "rollback completed", "octocat", "0.4 s", "–", "–"],
        ["2025-11-24T11:36:00Z", ID, "v1.2.3", "success", "octocat", "36 min 0 s", "proven", "yes"],
    ]


def test_the_document_fits_its_schema_and_has_where_each_record_lies(archive: Archive):
    first = keep(archive, 1764000000)
    back = take_back(archive, 1764000000)
    code, output = run("--json", "--limit", "2", "--verify")
    listed = json.loads(output)
    schemas.validate(listed, "history", where="test")
    assert (code, listed["archived"], listed["verification"]["records"], listed["verification"]["findings"]) == (0, 2, 2, [])
    assert [(entry["location"], entry["kind"], entry["rolled_back_by"]) for entry in listed["entries"]] == [
        (back, "rollback", None), (first, "deployment", "rollback"),
    ]  # fmt: skip
    assert json.loads(run("--json", "--limit", "1")[1])["entries"] == listed["entries"][:1]


def test_another_environment_has_another_history(archive: Archive):
    keep(archive, 1764000000)
    assert run("--environment", "staging") == (0, f"No record lies in s3://{archive.bucket.name}/records/staging/\n")


def test_what_is_no_record_is_named_and_hides_no_other(archive: Archive):
    keep(archive, 1764000000)
    archive.bucket.put_once("records/production/1764000100-abc123/1.json", b"[", content_type="application/json")
    odd = {**document(1764000200), "status": "great\x1b[2J"}
    archive.keep_record(odd)
    code, output = run()
    assert code == 0
    assert [row[1] for row in rows(output)[1:2]] == [ID]
    assert "! set aside: s3://" in output and "1764000100-abc123/1.json (1 bytes" in output
    assert "1764000200-abc123/1.json" in output
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [("no bucket", 2, "The bucket does not exist"), ("no keys", 2, "AWS credentials are not accepted"), ("no file", 2, "does not exist")],
)
def test_what_is_missing_is_said(archive: Archive, monkeypatch: pytest.MonkeyPatch, case: str, code: int, words: str):
    if case == "no bucket":
        deploy_config.write(Path("deploy.toml"), backup={"location": "s3://nobody-has-it/prod"})
    elif case == "no keys":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    else:
        Path("deploy.toml").unlink()
    returned, output = run()
    assert returned == code, output
    assert words in output and "Next: " in output


# --- verification ------------------------------------------------------------------------------------------------------


def replace(archive: Archive, key: str, data: bytes) -> None:
    archive.bucket.calls.call("put_object", "test", Bucket=archive.bucket.name, Key=key, Body=data)


def test_verification_names_what_was_done_to_the_archive(archive: Archive):
    places = [keep(archive, 1764000000 + 100 * number) for number in range(5)]
    code, output = run("--verify")
    assert (code, "✓ 5 records, 0 findings; they are not signed" in output) == (0, True), output
    assert json.loads(run("--json")[1])["entries"][0]["sha256"] in output  # of the newest, to compare
    key = places[1].split("/", 3)[3]
    replace(archive, key, archive.bucket.read(key).replace(b"octocat", b"mallory"))
    gone = places[3].split("/", 3)[3]
    replace(archive, gone, b"nothing")
    code, output = run("--verify", "--limit", "1")
    assert code == 1
    assert f"✗ changed: {places[1]}: {places[2]} names it with SHA-256 " in output
    assert f"✗ changed: {places[3]}: {places[4]} names it with SHA-256 " in output
    assert "✗ 5 records, 2 findings" in output
    code, output = run("--verify", "--expect", "0" * 64)
    assert (code, "no record has the SHA-256 0000" in output) == (1, True)


def test_with_signatures_also_the_newest_and_what_was_removed_are_named(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    signer = KeyFileSigner(tmp_path / "key.pem")
    signed = Archive(archive.bucket, "production", signatures=Signatures(archive.bucket, signer))
    places = [keep(signed, 1764000000 + 100 * number) for number in range(3)]
    monkeypatch.setattr(Signatures, "of", classmethod(lambda cls, bucket, _signing: cls(bucket, signer)))
    assert "✓ 3 records, 0 findings; 3 are signed by file:key.pem" in run("--verify")[1]
    key = places[2].split("/", 3)[3]
    replace(archive, key, archive.bucket.read(key).replace(b"octocat", b"mallory"))
    code, output = run("--verify")
    assert (code, f"✗ changed: {places[2]}: its signature is of another document" in output) == (1, True), output
    archive.bucket.calls.call("delete_object", "test", Bucket=archive.bucket.name, Key=key)
    code, output = run("--verify")
    assert (code, f"✗ missing: {places[2]}: its signature is there, and no record" in output) == (1, True), output


def test_many_records_are_read_at_once(archive: Archive):
    for number in range(200):
        key = location(number).split("/", 3)[3]
        replace(archive, key, records()[number])
    begin = time.monotonic()
    _, output = run("--verify", "--json")
    seconds = time.monotonic() - begin
    found = json.loads(output)["verification"]
    newest = (
        location(199).replace("bucket", archive.bucket.name, 1),
        "changed",
    )  # rollbacks of that chain have no more than its links: only the newest is asked for its schema
    assert (found["records"], [(finding["record"], finding["finding"]) for finding in found["findings"]]) == (200, [newest])
    assert seconds < 30, "about 1 s on two quiet cores"
    assert archived_bytes(json.loads(output)) == output.encode()
