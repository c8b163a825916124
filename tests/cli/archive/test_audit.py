"""An audit of a real archive, beside what the hosts themselves noted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from azora_ci.clients.signing.signatures import Signatures
from azora_ci.core import schemas
from azora_ci.core.clock import rfc3339
from azora_ci.record.archive import Archive
from azora_ci.targets.journal import Journal
from tests.cli.archive.test_history import ID, keep, replace, run, take_back
from tests.record.audit.test_verify_record import pem
from tests.support import deploy_config, years
from tests.support.signing import KeyFileSigner
from tests.support.stores import Stores

DAY = ("--from", "2025-11-24", "--to", "2025-11-24", "--out", "out")


def test_an_audit_is_written_from_the_archive_and_says_when_that_is_not_whole(archive: Archive):
    first = keep(archive, 1764000000)
    back = take_back(archive, 1764000000)
    code, output = run(*DAY, command="audit")
    assert (code, output) == (
        0,
        "2 changes from 2025-11-24 to 2025-11-24, 2 in the sample: out/audit.html\n! the hosts were not asked: PROD_HOST is not set here\n",
    )
    audit = json.loads(Path("out/audit.json").read_bytes())
    schemas.validate(audit, "audit", where="test")
    assert [change["location"] for change in audit["changes"]] == [back, first]
    elements = {element["element"]: element for change in audit["changes"] for element in change["elements"]}
    assert elements["request"]["detail"].startswith("v1.2.3, commit ") and back in elements["way back"]["detail"]
    assert elements["rollback"] | {"links": []} == {
        "element": "rollback", "answer": "yes", "detail": "to v1.2.2 in 0.4 s: nothing reached it", "links": [],
        "fields": ["/proved", "/detail", "/to", "/seconds_to_safe"],
    }  # fmt: skip
    page = Path("out/audit.html").read_text()
    assert f'<a href="records/{ID}-rollback-1.html#/proved">' in page and f",{back}," in Path("out/audit.csv").read_text()
    key = first.split("/", 3)[3]
    replace(archive, key, archive.bucket.read(key).replace(b"octocat", b"mallory"))
    code, output = run(*DAY, command="audit")
    assert (code, f"✗ changed: {first}" in output, f"changed</strong>: <code>{first}" in Path("out/audit.html").read_text()) == (
        1,
        True,
        True,
    )
    code, output = run("--from", "2025-11-25", "--to", "2025-11-24", command="audit")
    assert (code, "--to is before --from" in output) == (2, True)


def test_every_field_leads_to_its_value_and_the_record_beside_it_can_be_verified(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    signer = KeyFileSigner(Path("key.pem"))
    signed = Archive(archive.bucket, "production", signatures=Signatures(archive.bucket, signer))
    monkeypatch.setattr(Signatures, "of", classmethod(lambda cls, bucket, _signing: cls(bucket, signer)))
    keep(archive, 1763990000)  # from before signing was turned on: it is a change of the period like any other
    time.sleep(1.1)  # the store's times are whole seconds
    keep(signed, 1764000000)
    take_back(signed, 1764000000)
    code, output = run(*DAY, command="audit")
    assert (code, output.splitlines()[0]) == (0, "3 changes from 2025-11-24 to 2025-11-24, 3 in the sample: out/audit.html"), output
    audit = json.loads(Path("out/audit.json").read_bytes())
    assert (audit["set_aside"], audit["verification"]["unsigned_before_signing"]) == ([], 1)
    page = Path("out/audit.html").read_text()
    for change in audit["changes"]:
        name = "records/" + "-".join(change["location"].rsplit("/", 2)[1:]).removesuffix(".json")
        values = Path(f"out/{name}.html").read_text()
        for field in (field for element in change["elements"] for field in element["fields"]):
            assert f'href="{name}.html#{field}"' in page and f'<tr id="{field}">' in values, field
    Path("public.pem").write_bytes(pem(signer))
    argv = [sys.executable, "-I", "out/records/verify_record.py", f"out/records/{ID}-1.json", "--public-key", "public.pem"]
    assert subprocess.run(argv, capture_output=True, text=True, check=False).returncode == 0


def test_what_the_hosts_deployed_without_a_record_is_named(archive: Archive):
    keep(archive, 1764000000)
    on_loopback = {"api_gateway": deploy_config.service("API", "http://127.0.0.1:9/health", command=["true"])}
    location = f"s3://{archive.bucket.name}/prod"
    deploy_config.write(Path("deploy.toml").resolve(), backup={"location": location}, services=on_loopback, public_url="http://127.0.0.1:9")
    journal = Journal(Path("state/journal.jsonl"))
    for name, version in ((ID, "v1.2.3"), ("1764009999-bbbbbb", "v6.6.6")):
        journal.add("2025-11-24T12:00:00.000Z", "begin", name, version=version, digests={}, previous=None)
        journal.add("2025-11-24T12:30:00.000Z", "promote", name)
    journal.add(rfc3339(datetime.now(UTC) - timedelta(minutes=5)), "begin", "1764019999-cccccc", version="v7", digests={}, previous=None)
    code, output = run(*DAY, "--hosts", command="audit")
    assert code == 1, output
    assert output.splitlines()[1:] == [
        "✗ unrecorded: 1764009999-bbbbbb (v6.6.6): promoted on the hosts, and the archive has no record of it"
    ]
    hosts = json.loads(Path("out/audit.json").read_bytes())["hosts"]
    assert (hosts["asked"], hosts["journalled"], hosts["not_asked"]) == (["this machine"], 2, None)
    assert run(*DAY, "--no-hosts", command="audit")[0] == 0


def test_a_host_that_cannot_be_asked_stops_no_audit_and_is_said(archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    keep(archive, 1764000000)
    location = f"s3://{archive.bucket.name}/prod"
    target = {
        "kind": "docker_hosts",
        "docker_hosts": {"edge_image": "envoy@sha256:" + "0" * 64, "guard_image": "python@sha256:" + "0" * 64},
    }
    deploy_config.write(
        tmp_path / "deploy.toml", backup={"location": location}, target=target, edge={}, registry={"repository": "r.example/azora"}
    )
    key = tmp_path / "ssh"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    known = f"[127.0.0.1]:9 {key.with_suffix('.pub').read_text()}"
    access = {"PROD_HOST": "127.0.0.1:9", "PROD_USER": "deploy", "PROD_KEY": key.read_text(), "PROD_KNOWN_HOSTS": known}
    for name, value in access.items():
        monkeypatch.setenv(name, value)
    code, output = run(*DAY, command="audit")
    assert code == 3, output
    assert "! the hosts were not asked: " in output and "host-1 of PROD_HOST did not answer" in Path("out/audit.html").read_text()
    monkeypatch.delenv("PROD_KEY")
    code, output = run(*DAY, command="audit")
    assert (code, "PROD_KEY" in output) == (2, True), output


def test_a_signed_record_costs_two_requests(archive: Archive, s3_server: Stores, monkeypatch: pytest.MonkeyPatch):
    signer = KeyFileSigner(Path("key.pem"))
    monkeypatch.setattr(Signatures, "of", classmethod(lambda cls, bucket, _signing: cls(bucket, signer)))
    records = years.chained(list(years.history(40)), archive.bucket.name)
    years.keep(s3_server, archive.bucket.name, records, signer)
    with s3_server.server.recorded_requests() as requests:
        code, output = run("--from", "2025-01-01", "--to", "2025-12-31", "--sample", "5", "--out", "out", command="audit")
    assert (code, output.splitlines()[0]) == (0, "40 changes from 2025-01-01 to 2025-12-31, 5 in the sample: out/audit.html"), output
    operations = [request.operation for request in requests]
    assert (operations.count("GetObject"), operations.count("HeadObject")) == (2 * 40 + 5, 0)
    assert operations.count("ListObjectsV2") <= 2
