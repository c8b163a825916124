"""Who connects to production, and which host keys are trusted there. The private key is in memory only, never in a file."""

from __future__ import annotations

import re
import secrets
from typing import Any

from azora_ci.clients.ssh import host_keys
from azora_ci.clients.ssh.host_keys import ACCEPTED, PINNED, RECORDED, HostKey, SeenKey
from azora_ci.core.errors import BadInputError
from azora_ci.core.hosts import normal_key, user_name
from azora_ci.core.variables import Secret

AUTHORITY, REVOKED = "@cert-authority", "@revoked"  # markers of lines in known_hosts, see sshd(8)
# Types of host keys, by the name of a signature; all are asked for, so that an error can tell which key a host shows.
KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256")
CERTIFICATES = "*-cert-v01@openssh.com"
_NAME_WITH_PORT = re.compile(r"\[(?P<host>.+)\]:[0-9]+")


class Credentials:
    """User, private key and trusted host keys.

    ``known_hosts`` pins the host keys. Without it those ``recorded`` by the last deployment count (the text of a known_hosts file, see
    ``host_keys.lines_of``); a host of which none is recorded may show any key once, with ``accept_new``. ``seen`` fills up with what the
    hosts showed. Raises BadInputError when no key could be checked.
    """

    def __init__(self, user: str, key: Secret, *, known_hosts: str | None, recorded: str = "", accept_new: bool = False) -> None:
        if known_hosts is None and not recorded and not accept_new:
            raise _nothing_known()
        self.user, self.key = user_name(user), Secret(normal_key(key.reveal()))
        self._pinned = known_hosts is not None
        self._accept_new = accept_new and not self._pinned
        self._known_hosts = (known_hosts if known_hosts is not None else recorded) + "\n"
        self.seen: dict[str, SeenKey] = {}

    def known(self, name: str, marker: str = "") -> list[HostKey]:
        """Return the keys that are known of a host by now; like OpenSSH, those of the name without a port where it has none with it."""
        keys = host_keys.keys_of(self._known_hosts, name, marker)
        with_port = _NAME_WITH_PORT.fullmatch(name)
        return keys or (host_keys.keys_of(self._known_hosts, with_port["host"], marker) if with_port else [])

    def key_types(self, name: str) -> str:
        """Return the types of keys that a host is asked for, known ones first. Raises BadInputError when none could be trusted."""
        known_types = {"rsa-sha2-512" if key.key_type == "ssh-rsa" else key.key_type for key in self.known(name)}
        authorities = self.known(name, AUTHORITY)
        if not known_types and not authorities and not self._pinned and not self._accept_new:
            raise _nothing_known()
        return ",".join([CERTIFICATES] * bool(authorities) + sorted(KEY_TYPES, key=lambda key_type: key_type not in known_types))

    def trusts(self, name: str, key: HostKey, marker: str = "") -> bool:
        """Say whether a host may show this key, or be vouched for by the key of this ``AUTHORITY``."""
        known_keys = self.known(name, marker)
        is_new = self._accept_new and not known_keys and not marker
        return (key in known_keys or is_new) and key not in self.known(name, REVOKED)

    def note(self, name: str, key: HostKey, marker: str = "") -> None:
        """Keep the key that a host has proven to have; one that was accepted as new is known from now on. The first sight counts."""
        if name in self.seen:
            return
        source = PINNED if self._pinned else RECORDED if self.known(name, marker) else ACCEPTED
        self.seen[name] = SeenKey(key.fingerprint, None if marker else key, source)
        if source == ACCEPTED:
            self._known_hosts += f"{name} {key.key_type} {key.blob}\n"

    def evidence(self) -> list[dict[str, Any]]:
        """Return what the hosts showed, without their names (``schemas/fragment-gradual-rollout.schema.json``)."""
        return [key.document(name, secrets.token_bytes(host_keys.SALT_BYTES)) for name, key in self.seen.items()]

    def to_be_pinned(self) -> str:
        """Return what to tell people of keys that were accepted, without the hosts' names; empty when there are none."""
        keys = [entry.key for entry in self.seen.values() if entry.source == ACCEPTED and entry.key]
        lines = [f"HOST {key.key_type} {key.blob} ({key.fingerprint})" for key in keys]
        return "\n".join(["compare them with the hosts' own keys and pin them in PROD_KNOWN_HOSTS:", *lines]) if lines else ""


def _nothing_known() -> BadInputError:
    return BadInputError(
        "No host key is pinned",
        what="without a known key anyone on the path could pose as the production host; none is pinned, none was recorded",
        where="PROD_KNOWN_HOSTS",
        next_step="set it to the output of: ssh-keyscan -H HOST (compared with the host's own keys), or, for the very first"
        " deployment only, set PROD_ACCEPT_NEW_HOST_KEY=true",
    )
