"""The signature of one stored document: a DSSE envelope around an in-toto statement that names the document's URL and SHA-256. Pure.

An outsider verifies it offline: the signature is ECDSA (P-256, SHA-256) over DSSE's pre-authentication encoding; the envelope also
holds the public key, whose fingerprint is to be compared with one that was obtained elsewhere.
https://github.com/secure-systems-lab/dsse, https://in-toto.io/Statement/v1
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Protocol

from azora_ci.core import schemas
from azora_ci.core.documents import read_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:azora-ci:evidence:1"


class Signer(Protocol):
    """One private key. ``name`` is that of the configuration; ``public_key`` is DER (SubjectPublicKeyInfo) of a P-256 key."""

    name: str

    @property
    def public_key(self) -> bytes:
        """Return the public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the ECDSA signature (DER) over the message's SHA-256. A message has less than 4096 bytes."""
        ...


def fingerprint(public_key: bytes) -> str:
    """Return ``SHA256:`` and the SHA-256 of a public key in DER, in hex."""
    return f"SHA256:{hashlib.sha256(public_key).hexdigest()}"


def sign(signer: Signer, url: str, document: bytes) -> bytes:
    """Return the envelope, as JSON, for a document that is stored under a URL."""
    payload = _statement(url, document)
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {"keyid": fingerprint(signer.public_key), "sig": base64.b64encode(signer.sign(_authenticated(payload))).decode()},
        ],
        "public_key": base64.b64encode(signer.public_key).decode(),
        "signed_by": signer.name,
    }
    return schemas.canonical(envelope)


def doubt(envelope: bytes, url: str, document: bytes, public_key: bytes) -> str | None:
    """Return why an envelope does not prove that the owner of this key signed this document for this URL; None: it does."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        content: Any = read_json(envelope)
        payload = base64.b64decode(content["payload"], validate=True)
        signature = next(part["sig"] for part in content["signatures"] if part["keyid"] == fingerprint(public_key))
        signature_bytes = base64.b64decode(signature, validate=True)
    except StopIteration:
        return f"it is not signed by the key {fingerprint(public_key)}"
    except (ValueError, KeyError, TypeError, binascii.Error):
        return "its signature cannot be read"
    if payload != _statement(url, document):
        return "its signature is of another document"
    key = serialization.load_der_public_key(public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - signers have no other keys
    try:
        key.verify(signature_bytes, _authenticated(payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return "its signature is wrong"
    return None


def _statement(url: str, document: bytes) -> bytes:
    digest = hashlib.sha256(document).hexdigest()
    subject = [{"name": url, "digest": {"sha256": digest}}]
    return schemas.canonical({"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": {}})


def _authenticated(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
