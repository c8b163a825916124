"""Self-made certificates, written as whoever renews them should: beside the old files, then renamed over them."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def renew(folder: Path, *, hosts: tuple[str, ...] = ("localhost",)) -> int:
    """Write ``certificate.pem`` and ``key.pem`` and return the certificate's serial number."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2, hours=12))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    parts = {
        "key.pem": key.private_bytes(pem, form, serialization.NoEncryption()),
        "certificate.pem": certificate.public_bytes(pem),
    }
    for file, data in parts.items():
        (folder / f"{file}.new").write_bytes(data)
    for file in parts:
        (folder / f"{file}.new").replace(folder / file)
    return certificate.serial_number


def served_serial(port: int, host: str = "127.0.0.1") -> int | None:
    """Return the serial number of the certificate that a port serves; None where it does not speak TLS."""
    try:
        text = ssl.get_server_certificate((host, port), timeout=5)
    except OSError:
        return None
    return x509.load_pem_x509_certificate(text.encode()).serial_number
