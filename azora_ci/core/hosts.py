"""Names of hosts, users and keys as the environment gives them, checked before anything is written into a configuration. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from azora_ci.core.errors import BadInputError

_HOST = re.compile(r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, order=True)
class HostAddress:
    """A production host and the port of its sshd.

    What people and records read is ``host-1``, ``host-2``, …, its place in PROD_HOST: the address is a secret.
    """

    host: str
    port: int = 22
    number: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return f"host-{self.number}"


def parse_hosts(text: str) -> tuple[HostAddress, ...]:
    """Return the hosts of ``PROD_HOST``: one or several, comma separated, ``host[:port]``. Raises ValueError with a reason."""
    hosts: list[HostAddress] = []
    for part in filter(None, (entry.strip() for entry in text.split(","))):
        match = _HOST.fullmatch(part)
        if match is None or not 0 < int(match["port"] or 22) < 65536:
            raise ValueError("holds something that is not host or host:port")
        if not all(0 < len(label) < 64 for label in match["host"].split(".")):
            raise ValueError("holds a name of a host with an empty part, or one over 63 characters")
        hosts.append(HostAddress(match["host"].strip("[]"), int(match["port"] or 22), len(hosts) + 1))
    if not hosts:
        raise ValueError("names no host")
    if len(set(hosts)) != len(hosts):
        raise ValueError("names a host twice")
    return tuple(hosts)


@dataclass(frozen=True)
class JumpHost:
    """A host through which production is reached, and the user there (None: the same as in production)."""

    address: HostAddress
    user: str | None = None


def parse_jump(text: str) -> JumpHost:
    """Return what ``PROD_JUMP_HOST`` says: ``[user@]host[:port]``. Raises ValueError with a reason."""
    user, at, place = text.strip().rpartition("@")
    hosts = parse_hosts(place)
    if len(hosts) != 1:
        raise ValueError("names more than one host")
    return JumpHost(hosts[0], user_name(user) if at else None)


_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}[A-Za-z0-9_-]|[A-Za-z0-9_]")


def user_name(text: str) -> str:
    """Return the name of a user, checked. Raises ValueError."""
    if not _USER.fullmatch(text):
        raise ValueError("is not the name of a user: letters, digits and . _ - @ +")
    return text


# How the body of an OpenSSH key begins ("openssh-key-v1", PROTOCOL.key in OpenSSH's sources), and how where its cipher is "none".
_OPENSSH_KEY, _OPENSSH_PLAIN_KEY = "b3BlbnNzaC1rZXktdjEA", "b3BlbnNzaC1rZXktdjEAAAAABG5v"


def normal_key(text: str) -> str:
    """Return a private key with plain line ends. Raises ValueError when it is none, and BadInputError when it has a passphrase."""
    key = text.replace("\r\n", "\n").replace("\r", "\n").strip("\n") + "\n"
    if not re.match(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n", key):
        raise ValueError("is not a private key in PEM or OpenSSH format")
    header, body = key.split("\n", 2)[:2]
    if "ENCRYPTED" in header + body or (body.startswith(_OPENSSH_KEY) and not body.startswith(_OPENSSH_PLAIN_KEY)):
        raise BadInputError(
            "PROD_KEY has a passphrase",
            what="nobody is there to type it in",
            where="PROD_KEY",
            next_step="make a key for deployments (ssh-keygen -t ed25519 -N '' -f deploy_key), add deploy_key.pub to authorized_keys on the"
            " hosts, and set PROD_KEY to the file deploy_key",
        )
    return key


def is_loopback(url: str) -> bool:
    """Say whether a URL's host is a loopback address or ``localhost``."""
    return bool(re.fullmatch(r"localhost|127(?:\.[0-9]{1,3}){3}|::1", urlsplit(url).hostname or ""))
