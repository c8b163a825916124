"""A signing key in a file, and KMS as moto's server plays it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class KeyFileSigner:
    """Signs with the P-256 key of a PEM file, which is made when it is not there."""

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path.name}"
        if not path.exists():
            made = ec.generate_private_key(ec.SECP256R1())
            encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            path.write_bytes(made.private_bytes(*encoding))
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


@contextmanager
def kms() -> Iterator[str]:
    """Start moto's server and yield its address, which boto3 reads in AWS_ENDPOINT_URL_KMS."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = os.environ.get("AWS_ENDPOINT_URL_KMS")
    os.environ["AWS_ENDPOINT_URL_KMS"] = f"http://{host}:{port}"
    try:
        yield os.environ["AWS_ENDPOINT_URL_KMS"]
    finally:
        if before is None:
            del os.environ["AWS_ENDPOINT_URL_KMS"]
        else:
            os.environ["AWS_ENDPOINT_URL_KMS"] = before
        server.stop()


def make_key(endpoint: str, spec: str = "ECC_NIST_P256", usage: str = "SIGN_VERIFY") -> str:
    """Make a key in KMS and return its id."""
    import boto3

    client = boto3.client("kms", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
    return str(client.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"])
