"""Files with secrets of a cluster: kubeconfigs, and the keys that sign the tokens of service accounts."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any


def private(path: Path, text: str) -> Path:
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def kubeconfig(path: Path, server: str, certificate: Path, token: str, namespace: str) -> Path:
    """Write the access of a user with a token; JSON is YAML."""
    return private(path, json.dumps(_document(server, {"certificate-authority": str(certificate)}, token, namespace), indent=1))


def portable_kubeconfig(server: str, certificate: Path, token: str, namespace: str) -> str:
    """Return the access of a user with a token as a text that names no files, as secrets of repositories must."""
    data = base64.b64encode(certificate.read_bytes()).decode()
    return json.dumps(_document(server, {"certificate-authority-data": data}, token, namespace))


def _document(server: str, authority: dict[str, str], token: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "kubebox",
        "clusters": [{"name": "kubebox", "cluster": {"server": server, **authority}}],
        "users": [{"name": "kubebox", "user": {"token": token}}],
        "contexts": [{"name": "kubebox", "context": {"cluster": "kubebox", "user": "kubebox", "namespace": namespace}}],
    }


def account_keys(key_file: Path, public_file: Path) -> None:
    """Write a new key pair."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private(key_file, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode())
    public_file.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
