"""How a connection to PostgreSQL is protected: the parameters of libpq and of Prisma that demand TLS and SCRAM. Pure.

libpq: https://www.postgresql.org/docs/current/libpq-connect.html (34.1.2), https://www.postgresql.org/docs/current/libpq-ssl.html.
``require_auth`` needs libpq 16; an older pg_dump or psql ignores it, and ``channel_binding=require`` (libpq 13) demands SCRAM of it, too.
Prisma's engine knows other words: of ``sslmode`` only disable, prefer and require, and it takes any other, libpq's ``verify-full`` too, for
prefer. It checks the certificate with ``sslaccept=strict``, against ``sslcert`` or the system's certificates.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

SCRAM = "scram-sha-256"
MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")  # of libpq's sslmode, the weakest first
LOOPBACK, TUNNEL, PLAIN, REQUIRE, VERIFY_FULL = "loopback", "tunnel", "plain", "require", "verify-full"
SYSTEM = "system"  # sslrootcert: the certificates that the operating system trusts, libpq 16
_PRISMAS_OWN = {"sslmode", "sslaccept", "sslcert", "sslkey", "sslrootcert", "channel_binding", "require_auth"}
_NO_TLS = "does not support SSL"
_NO_SCRAM = ("authentication method requirement", "channel binding")


@dataclass(frozen=True)
class Protection:
    """What protects a connection (``level``: loopback, tunnel, plain, require, verify-full), and libpq's parameters that demand it."""

    level: str
    parameters: Mapping[str, str]


def protection_of(
    host: str, parameters: Mapping[str, str], *, has_password: bool, through_tunnel: bool = False, plain_accepted: bool = False
) -> Protection:
    """Return how a connection is protected. Raises ValueError with a reason when it would not be, and nobody accepted that.

    On loopback the connection string alone decides. Everywhere else the password is proven by SCRAM and never sent. TLS is demanded unless
    SSH carries the connection or ``plain_accepted``. The server's certificate is checked where a CA is named; where none is, SCRAM is bound
    to the TLS channel, so that nobody in between can pass the proof on. ``channel_binding`` in the connection string switches that off, for
    a proxy that ends TLS.
    """
    if is_local(parameters.get("hostaddr") or host):
        return Protection(LOOPBACK, parameters)
    mode = parameters.get("sslmode", "")
    if mode and mode not in MODES:
        raise ValueError(f"sslmode={mode} is none of {', '.join(MODES)}")
    if parameters.get("require_auth", SCRAM) != SCRAM:
        raise ValueError(f"require_auth={parameters['require_auth']} would let the server ask for the password itself")
    scram = {"require_auth": SCRAM} if has_password else {}
    if through_tunnel:
        return Protection(TUNNEL, {**parameters, **scram})
    demands_tls = "sslrootcert" in parameters or mode in MODES[3:]
    if plain_accepted and not demands_tls:
        return Protection(PLAIN, {**parameters, **scram})
    if mode == "disable":
        raise ValueError("sslmode=disable sends everything in clear text")
    if "sslrootcert" in parameters or mode in MODES[4:]:
        return Protection(VERIFY_FULL, {**parameters, **scram, "sslmode": VERIFY_FULL})
    bound = {"channel_binding": parameters.get("channel_binding", "require")} if has_password else {}
    return Protection(REQUIRE, {**parameters, **scram, **bound, "sslmode": REQUIRE})


def is_local(addresses: str) -> bool:
    """Say whether every one of the comma separated addresses is a folder of Unix sockets, ``localhost`` or a loopback address."""
    return all(address.startswith("/") or address == "localhost" or _is_loopback(address) for address in addresses.split(","))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def prisma_query(query: str, protection: Protection, ca_file: str | None) -> str:
    """Return the query of a connection string in Prisma's words, with the demands of ``protection``.

    ``ca_file``: absolute path of the CA's certificates, None for those of the system. Prisma cannot be told to demand SCRAM; bound to the
    TLS channel, it refuses everything else.
    """
    if protection.level not in {REQUIRE, VERIFY_FULL}:
        return query
    parts = [part for part in query.split("&") if part]
    strict = protection.level == VERIFY_FULL or "sslaccept=strict" in parts
    demands = ["sslmode=require", f"sslaccept={'strict' if strict else 'accept_invalid_certs'}"]
    demands += [f"sslcert={ca_file}"] if ca_file else []
    binding = protection.parameters.get("channel_binding")
    demands += [f"channel_binding={binding}"] if binding else []
    return "&".join([part for part in parts if part.partition("=")[0] not in _PRISMAS_OWN] + demands)


def next_step_for(message: str) -> str:
    """Return what to do about libpq's message that no connection was made."""
    if _NO_TLS in message:
        return "switch TLS on at the server (ssl = on), or accept a plain connection: PROD_DATABASE_PLAIN=true, which lands in the record"
    if any(words in message for words in _NO_SCRAM):
        return (
            "let the server prove passwords by SCRAM (password_encryption = 'scram-sha-256', set the password again, scram-sha-256 in "
            "pg_hba.conf); behind a proxy that ends TLS, add channel_binding=prefer to the connection string"
        )
    return "check host, port, user, password, and that this machine may connect (firewall, pg_hba.conf)"
