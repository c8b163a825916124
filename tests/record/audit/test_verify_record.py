"""An outsider verifies records in files: with the script of the artifact in an empty environment, and with the command."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from azora_ci.cli.main import main
from azora_ci.clients.signing import envelope
from azora_ci.clients.signing.signatures import Signatures
from azora_ci.record.archive import Archive
from azora_ci.record.audit import verify_record
from azora_ci.record.audit.artifact import write_beside
from azora_ci.record.chain import archived_bytes, parse_record, sha256
from tests.record.test_verification import location, records
from tests.support.signing import KeyFileSigner

COUNT = 9  # the chain's records of deployments; the tenth is a rollback without all fields


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a chain of records, in files named 0.json to 8.json, and the script beside them."""
    for number, data in enumerate(records()[:COUNT]):
        (tmp_path / f"{number}.json").write_bytes(data)
    (tmp_path / "verify_record.py").write_bytes(Path(verify_record.__file__).read_bytes())
    return tmp_path


def script(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run the script where our package is not to be found, with openssl as the only program."""
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "bin/openssl").exists():
        (folder / "bin/openssl").symlink_to("/usr/bin/openssl")
    argv = [sys.executable, "-I", "-S", "verify_record.py", *arguments]
    environ = {"PATH": str(folder / "bin")}
    completed = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert completed.stderr == "", completed.stderr
    return completed.returncode, completed.stdout.splitlines()


def command(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(main, ["verify", *arguments])
    finally:
        os.chdir(before)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output.splitlines()


both = pytest.mark.parametrize("verify", [script, command])
ALL = tuple(f"{number}.json" for number in range(COUNT))
NEWEST = ("--sha256", sha256(records()[COUNT - 1]))


def wrong(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("✓")]


def test_the_script_is_short_and_needs_the_standard_library_only():
    text = Path(verify_record.__file__).read_text()
    assert len(text.splitlines()) <= 100
    names = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert names <= sys.stdlib_module_names


@both
def test_a_whole_chain_is_proved_by_its_newest_record(folder: Path, verify):
    code, lines = verify(folder, *ALL, *NEWEST)
    assert (code, wrong(lines)) == (0, [])
    assert lines[0] == "✓ 0.json: 1.json names it"
    assert lines[-1] == "✓ 8.json: it has a SHA-256 that you gave"


@both
def test_nothing_proves_the_newest_by_itself(folder: Path, verify):
    code, lines = verify(folder, "8.json")
    assert (code, lines[0].startswith("? 8.json: nothing proves it: give its --sha256")) == (2, True)


@both
@pytest.mark.parametrize("number", range(COUNT))
def test_a_flipped_byte_is_seen_and_its_record_named(folder: Path, verify, number: int):
    chooser, data = random.Random(number), records()[number]
    place = chooser.randrange(len(data))
    (folder / f"{number}.json").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    code, lines = verify(folder, *ALL, *NEWEST)
    assert code == 1
    named = [line for line in lines if line.startswith("✗")]
    assert any(line.startswith((f"✗ {number}.json: ", "✗ no file has the SHA-256")) for line in named), lines
    assert not any(line.startswith(f"✗ {other}.json") for other in range(COUNT) for line in named if other != number), lines


@both
def test_records_alone_show_which_was_changed(folder: Path, verify):
    (folder / "4.json").write_bytes(records()[4].replace(b"octocat", b"mallory"))
    code, lines = verify(folder, *ALL)
    assert (code, [line[:8] for line in lines if line.startswith("✗")]) == (1, ["✗ 4.json"])
    assert "one of the two was changed" in "".join(lines)
    (folder / "4.json").write_bytes(records()[4].replace(sha256(records()[3]).encode(), b"0" * 64))  # it accuses 3.json
    code, lines = verify(folder, *reversed(ALL))
    assert (code, [line[:8] for line in lines if line.startswith("✗")]) == (1, ["✗ 4.json"])
    (folder / "8.json").write_bytes(records()[8].replace(b":", b": ", 1))
    assert verify(folder, "8.json") == (1, ["✗ 8.json: its bytes are not canonical JSON"])


@both
def test_a_record_of_an_odd_form_proves_nothing_and_stops_nothing(folder: Path, verify):
    odd = [
        {"previous_record_sha256": [1]},
        {"previous_record_sha256": {"a": 1}},
        {"deployment_record": "x"},
        {"environment": [], "timestamp": 1},
    ]
    odd += [{"deployment_record": {"sha256": [], "location": {}}}, {"run_attempt": None, "previous_record_location": 7}]
    for number, changes in enumerate(odd):
        (folder / f"odd-{number}.json").write_bytes(archived_bytes(parse_record(records()[3]) | changes))
    (folder / "odd-0.json.sig.json").write_bytes(b"[" * 100_000)
    (folder / "public.pem").write_bytes(pem(KeyFileSigner(folder / "key.pem")))
    code, lines = verify(folder, *(f"odd-{number}.json" for number in range(len(odd))), *ALL, *NEWEST, "--public-key", "public.pem")
    assert code != 0 and [line for line in lines if line.startswith("✓ odd")] == []
    assert sum(line.startswith("✓") for line in lines) == COUNT, lines


@both
def test_a_record_of_another_environment_is_not_proved_by_this_ones_chain(folder: Path, verify):
    foreign = archived_bytes(parse_record(records()[4]) | {"environment": "staging"})
    (folder / "4.json").write_bytes(foreign)
    code, lines = verify(folder, *ALL, *NEWEST)
    assert code != 0 and not any(line.startswith("✓ 4.json") for line in lines), lines
    signer = KeyFileSigner(folder / "key.pem")
    (folder / "public.pem").write_bytes(pem(signer))
    (folder / "4.json.sig.json").write_bytes(envelope.sign(signer, location(4), foreign))  # signed for production's place
    assert verify(folder, "4.json", "--public-key", "public.pem") == (1, ["✗ 4.json: its signature is of another document"])


def pem(signer: KeyFileSigner) -> bytes:
    key = serialization.load_der_public_key(signer.public_key)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@both
def test_a_signature_proves_a_record_to_who_has_the_public_key(folder: Path, verify):
    signer, other = KeyFileSigner(folder / "key.pem"), KeyFileSigner(folder / "mallory.pem")
    for name, by in (("public.pem", signer), ("other.pem", other)):
        (folder / name).write_bytes(pem(by))
    (folder / "8.json.sig.json").write_bytes(envelope.sign(signer, location(8), records()[8]))
    assert verify(folder, "8.json", "7.json", "--public-key", "public.pem") == (
        0, ["✓ 8.json: signed by public.pem", "✓ 7.json: 8.json names it"],
    )  # fmt: skip
    assert verify(folder, "8.json", "--public-key", "other.pem") == (1, ["✗ 8.json: its signature is not of other.pem"])
    (folder / "8.json").write_bytes(records()[8].replace(b"octocat", b"mallory"))
    assert verify(folder, "8.json", "--public-key", "public.pem") == (1, ["✗ 8.json: its signature is of another document"])
    (folder / "8.json.sig.json").write_bytes(b"[]")
    code, lines = verify(folder, "8.json", "--public-key", "public.pem")
    assert (code, "its signature cannot be read" in lines[0]) == (1, True)


def test_the_artifact_has_the_signature_of_the_archive(folder: Path, s3_server):
    bucket, signer = s3_server.open(s3_server.make_bucket()), KeyFileSigner(folder / "key.pem")
    archive = Archive(bucket, "production", signatures=Signatures(bucket, signer))
    kept = archive.keep_record(parse_record(records()[0]))
    write_beside(folder / "0.json", archive, kept.location)
    (folder / "public.pem").write_bytes(pem(signer))
    assert script(folder, "0.json", "--public-key", "public.pem") == (0, ["✓ 0.json: signed by public.pem"])


def test_the_command_also_reads_the_schema(folder: Path):
    data = records()[8].replace(b'"triggered_by":"octocat"', b'"triggered_by":7')
    (folder / "8.json").write_bytes(data)
    code, lines = command(folder, "8.json", "--sha256", sha256(data))
    assert (code, "it does not fit its schema: triggered_by" in lines[0]) == (1, True), lines
