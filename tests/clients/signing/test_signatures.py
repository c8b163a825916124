"""Signatures in a real S3 server: with a key file, with KMS; verified by openssl as an outsider would."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from azora_ci.clients.s3.bucket import Bucket
from azora_ci.clients.signing import envelope
from azora_ci.clients.signing.kms import KmsSigner
from azora_ci.clients.signing.signatures import Signatures, signature_key
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from tests.support import signing
from tests.support.signing import KeyFileSigner

KEY, DOCUMENT = "records/production/1-abc123/1.json", b'{"version": "v1.2.3"}\n'
LOCK: dict[str, Any] = {"lock_days": 1, "lock_mode": "GOVERNANCE"}


@pytest.fixture
def bucket(s3_server) -> Bucket:
    return s3_server.open(s3_server.make_bucket(object_lock=True))


@pytest.fixture
def signed(bucket: Bucket, tmp_path: Path) -> Signatures:
    signatures = Signatures(bucket, KeyFileSigner(tmp_path / "key.pem"))
    signatures.keep(KEY, DOCUMENT, **LOCK)
    return signatures


def replace(bucket: Bucket, s3_server, data: bytes, key: str = KEY) -> None:
    s3_server.boto3().put_object(Bucket=bucket.name, Key=signature_key(key), Body=data)


def test_what_was_signed_is_believed_and_signed_once(bucket: Bucket, signed: Signatures):
    signed.require(KEY, DOCUMENT)
    before = bucket.head(signature_key(KEY))
    signed.keep(KEY, DOCUMENT, **LOCK)
    assert bucket.head(signature_key(KEY)) == before
    assert before is not None and before.lock_until is not None


def other_key(data: bytes, bucket: Bucket, folder: Path) -> bytes:
    return envelope.sign(KeyFileSigner(folder / "mallory.pem"), bucket.url(KEY), DOCUMENT)


def claimed_key(data: bytes, bucket: Bucket, folder: Path) -> bytes:
    forged = json.loads(other_key(data, bucket, folder))
    forged["signatures"][0]["keyid"] = json.loads(data)["signatures"][0]["keyid"]
    return json.dumps(forged).encode()


def of_another_url(data: bytes, bucket: Bucket, folder: Path) -> bytes:
    return envelope.sign(KeyFileSigner(folder / "key.pem"), bucket.url("records/production/2-abc123/1.json"), DOCUMENT)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_key, "is not signed by the key SHA256:"),
        (claimed_key, "its signature is wrong"),
        (of_another_url, "of another document"),
        (lambda _data, _bucket, _folder: b"[" * 5000, "cannot be read"),
        (lambda _data, _bucket, _folder: b'{"signatures": 5, "payload": ""}', "cannot be read"),
        (lambda _data, _bucket, _folder: b"null", "cannot be read"),
    ],
    ids=["another key", "another key under our name", "moved", "deep", "wrong types", "null"],
)
def test_a_wrong_signature_is_not_believed(
    bucket: Bucket, signed: Signatures, s3_server, tmp_path: Path, change: Callable[..., bytes], reason: str
):
    replace(bucket, s3_server, change(bucket.read(signature_key(KEY)), bucket, tmp_path))
    assert reason in str(signed.doubt(KEY, DOCUMENT))
    with pytest.raises(NotTrueError, match="not signed as it must be") as refusal:
        signed.keep(KEY, DOCUMENT, **LOCK)
    assert bucket.url(KEY) in refusal.value.where


def test_a_changed_or_unsigned_document_is_not_believed(signed: Signatures):
    assert "another document" in str(signed.doubt(KEY, DOCUMENT + b" "))
    assert "is not signed" in str(signed.doubt("records/production/1-abc123/2.json", DOCUMENT))


def test_without_a_signer_nothing_is_signed(bucket: Bucket):
    signatures = Signatures.of(bucket, "none")
    signatures.keep(KEY, DOCUMENT, **LOCK)
    assert signatures.doubt(KEY, DOCUMENT) is None and bucket.head(signature_key(KEY)) is None
    assert signatures.name == "none"


def test_an_outsider_verifies_it_offline_with_openssl(bucket: Bucket, signed: Signatures, tmp_path: Path):
    stored = json.loads(bucket.read(signature_key(KEY)))
    payload = base64.b64decode(stored["payload"])
    kind = stored["payloadType"].encode()
    (tmp_path / "message").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    (tmp_path / "signature").write_bytes(base64.b64decode(stored["signatures"][0]["sig"]))
    (tmp_path / "public.der").write_bytes(base64.b64decode(stored["public_key"]))
    argv = ["openssl", "dgst", "-sha256", "-verify", "public.der", "-keyform", "DER", "-signature", "signature", "message"]
    completed = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert completed.stdout == "Verified OK\n", completed.stderr
    assert json.loads(payload)["subject"] == [{"name": bucket.url(KEY), "digest": {"sha256": hashlib.sha256(DOCUMENT).hexdigest()}}]


def test_kms_signs_and_only_its_key_is_believed(bucket: Bucket):
    with signing.kms() as endpoint:
        ours, other = (Signatures.of(bucket, f"kms:{signing.make_key(endpoint)}") for _ in range(2))
        ours.keep(KEY, DOCUMENT, **LOCK)
        ours.require(KEY, DOCUMENT)
        assert ours.name.startswith("kms:")
        assert "is not signed by the key" in str(other.doubt(KEY, DOCUMENT))


@pytest.mark.parametrize(("spec", "usage"), [("RSA_2048", "SIGN_VERIFY"), ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"), (None, "")])
def test_a_key_that_cannot_sign_is_named(bucket: Bucket, spec: str | None, usage: str):
    with signing.kms() as endpoint:
        key = signing.make_key(endpoint, spec, usage) if spec else "alias/missing"
        with pytest.raises(BadInputError, match="signing key cannot be used") as refusal:
            Signatures.of(bucket, f"kms:{key}").keep(KEY, DOCUMENT, **LOCK)
    assert key in refusal.value.where


def test_kms_that_does_not_answer_is_unreachable(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    with pytest.raises(UnreachableError, match="KMS cannot be reached"):
        KmsSigner("alias/azora", bucket.calls.settings).sign(b"")
