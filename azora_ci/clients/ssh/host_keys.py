"""Host keys of OpenSSH: parsing ``known_hosts``, fingerprints, and lines that do not reveal the host's name. Pure.

Format of ``known_hosts``: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT. A hashed name is ``|1|salt|HMAC-SHA1(salt, name)``, both in base64,
as ``HashKnownHosts`` writes it: a name can be compared with the hash, but not be read from it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

PINNED, RECORDED, ACCEPTED = "pinned", "recorded", "accepted"
SALT_BYTES = 20  # of a hashed name
_KEY_TYPE = re.compile(r"[a-z0-9@.-]+")


@dataclass(frozen=True)
class HostKey:
    """A public host key: its type (``ssh-ed25519``) and the key itself in base64."""

    key_type: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint as OpenSSH prints it, ``SHA256:…``."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def known_name(host: str, port: int) -> str:
    """Return the name under which OpenSSH looks a host up: ``host``, or ``[host]:port`` where the port is not 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def hashed_line(name: str, key: HostKey, salt: bytes) -> str:
    """Return a known_hosts line for this key, whose name is hashed with a salt of 20 bytes."""
    code = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    hashed = "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, code))
    return f"{hashed} {key.key_type} {key.blob}"


def keys_of(known_hosts: str, name: str, marker: str = "") -> list[HostKey]:
    """Return the keys for a name in the text of a known_hosts file: those in lines with this marker (``@revoked``), or without any."""
    return [key for line_marker, names, key in _parse_lines(known_hosts) if line_marker == marker and _matches(names, name)]


def _parse_lines(known_hosts: str) -> Iterator[tuple[str, str, HostKey]]:
    for line in known_hosts.splitlines():
        parts = line.split()
        marker = parts.pop(0) if parts and parts[0].startswith("@") else ""
        if len(parts) < 3 or parts[0].startswith("#") or not _KEY_TYPE.fullmatch(parts[1]):
            continue
        try:
            base64.b64decode(parts[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        yield marker, parts[0], HostKey(parts[1], parts[2])


def _matches(names: str, name: str) -> bool:
    if names.startswith("|"):
        return _is_hash_of(names, name)
    patterns = [pattern.lower() for pattern in names.split(",")]
    if any(pattern.startswith("!") and _matches_pattern(name, pattern[1:]) for pattern in patterns):
        return False
    return any(_matches_pattern(name, pattern) for pattern in patterns)


def _matches_pattern(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]"))  # * and ? are wildcards, brackets belong to the name


def _is_hash_of(hashed: str, name: str) -> bool:
    parts = hashed.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, code = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), code)


@dataclass(frozen=True)
class SeenKey:
    """The host key of a connection, and why it was trusted: pinned, recorded or accepted.

    ``key`` is None when a pinned authority vouches for the host: then ``fingerprint`` is that of the authority.
    """

    fingerprint: str
    key: HostKey | None
    source: str

    def document(self, name: str, salt: bytes) -> dict[str, Any]:
        """Return the key as evidence that does not reveal the host's name."""
        line = hashed_line(name, self.key, salt) if self.key else None
        key_type = self.key.key_type if self.key else None
        return {"fingerprint": self.fingerprint, "key_type": key_type, "known_hosts": line, "source": self.source}


def lines_of(documents: Iterable[Mapping[str, Any]]) -> str:
    """Return evidence of earlier connections as the text of a known_hosts file."""
    return "".join(f"{document['known_hosts']}\n" for document in documents if document.get("known_hosts"))
