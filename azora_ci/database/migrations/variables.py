"""Environment variables in which a migrate command finds the production database: the application's own names, each in one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from azora_ci.database.postgres import DatabaseUrl

DEFAULT = {"DATABASE_URL": "url"}
_OF_TLS = ("sslmode", "sslrootcert")  # what clients without libpq know, too
# https://jdbc.postgresql.org/documentation/use/ names these parameters of a jdbc address
_OF_JDBC = {**{name: name for name in (*_OF_TLS, "options")}, "application_name": "ApplicationName"}
WITH_PARAMETERS = frozenset({"url", "jdbc"})  # forms that carry settings of the session


def environment(names: Mapping[str, str], address: str, url: DatabaseUrl) -> dict[str, str]:
    """Return variable -> value for ``names``, variable -> form: url, jdbc, host, port, user, password or database.

    ``address``: the connection string of ``url`` as the command gets it, through a tunnel where there is one.
    """
    location, _, query = address.rpartition("@")[2].partition("?")
    hosts, _, database = location.partition("/")
    parameters = (part.partition("=") for part in query.split("&"))
    jdbc = "&".join(f"{_OF_JDBC[name]}={value}" for name, _, value in parameters if name in _OF_JDBC)
    through_tunnel = url.tunnel_port is not None
    values = {
        "url": address,
        "jdbc": f"jdbc:postgresql://{hosts}/{database}{'?' if jdbc else ''}{jdbc}",
        "host": "127.0.0.1" if through_tunnel else url.host,
        "port": str(url.tunnel_port) if through_tunnel else url.port or "5432",
        "user": url.user,
        "password": url.password,
        "database": url.database,
    }
    return {name: values[form] for name, form in names.items()}


def address(url: DatabaseUrl) -> str:
    """Return the connection string in the words of libpq, which other clients mostly share: without Prisma's parameters, with TLS demanded.

    Raises the errors of ``DatabaseUrl.protection``. A tunnel is not in it (``prisma.through_tunnel``).
    """
    demanded = {name: value for name, value in url.protection.parameters.items() if name in _OF_TLS}
    return replace(url, parameters={**url.parameters, **demanded}, tunnel_port=None).text
