"""Access to Prisma's data: the folder of migrations, the table ``_prisma_migrations``, and the application's own migrate command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from azora_ci.core.errors import BadInputError
from azora_ci.core.process import Completed, Processes
from azora_ci.core.process.isolation import Isolation
from azora_ci.database import transport
from azora_ci.database.migrations import encoding
from azora_ci.database.migrations.history import LOCK, Migration, Row
from azora_ci.database.migrations.session import session
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.transport import Protection

TABLE = "_prisma_migrations"
# Prisma checks for updates, and npx offers to download packages that are not installed: a deployment must do neither.
QUIET = {"CHECKPOINT_DISABLE": "1", "PRISMA_HIDE_UPDATE_MESSAGE": "1", "npm_config_yes": "false", "npm_config_update_notifier": "false"}
DEPLOY_SECONDS = 3300.0  # the job's limit is an hour


def read_folder(folder: Path) -> list[Migration]:
    """Return the migrations in a folder, in order of their names. Raises BadInputError when there are none or one cannot be read."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    incomplete = [path.name for path in folders if not (path / "migration.sql").is_file()]
    if next(folder.glob("*/*/ops.json"), None) is not None:
        raise BadInputError(
            "Migrations of Prisma 8 are not supported",
            what="it holds ops.json and no migration.sql: Prisma 8 plans migrations from a contract, and notes them in other tables",
            where=str(folder),
            next_step="stay with Prisma 7 for now; or run Prisma 8's own command with [migrations] command, with the catalogue as evidence",
        )
    if not folders or incomplete:
        raise BadInputError(
            "No migrations" if not folders else "A migration has no migration.sql",
            what=f"without migration.sql: {', '.join(incomplete)}" if incomplete else "no folder of a migration is there",
            where=str(folder),
            next_step="correct database.migrations_dir in the deployment configuration, or commit the missing files; to replay the step by "
            "hand, run it in the application's folder; an application without Prisma has [migrations] command",
        )
    migrations = [Migration(path.name, (path / "migration.sql").read_bytes()) for path in folders]
    unreadable = [f"{migration.name}/migration.sql: {problem}" for migration in migrations if (problem := encoding.problem(migration.sql))]
    if unreadable:
        raise BadInputError(
            "A migration is not UTF-8",
            what="\n".join(unreadable),
            where=str(folder),
            next_step="save it as UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > migration.sql), then release again",
        )
    return migrations


def schema_of(url: DatabaseUrl, configured: str) -> str:
    """Return the schema that holds Prisma's table: the connection string's, otherwise the configured schema."""
    return url.schema if url.schema != "public" else configured


_ROWS = """SELECT migration_name, checksum, started_at, finished_at, rolled_back_at, applied_steps_count, logs
    FROM {} ORDER BY started_at, migration_name"""


def read_table(url: DatabaseUrl, schema: str) -> list[Row]:
    """Return the rows of ``_prisma_migrations``; empty when the table does not exist yet. Raises UnreachableError."""
    from psycopg2 import sql

    with session(url) as cursor:
        cursor.execute("SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)) IS NOT NULL", (schema, TABLE))
        if cursor.fetchone() != (True,):
            return []
        cursor.execute(sql.SQL(_ROWS).format(sql.Identifier(schema, TABLE)))
        return [Row(*row) for row in cursor.fetchall()]


_ROLLED_BACK = "UPDATE {} SET rolled_back_at = now() WHERE migration_name = %s AND finished_at IS NULL AND rolled_back_at IS NULL"


def mark_rolled_back(url: DatabaseUrl, schema: str, name: str) -> None:
    """Note that a failed attempt of a migration is undone, as ``prisma migrate resolve --rolled-back`` does. Raises UnreachableError."""
    from psycopg2 import sql

    with session(url) as cursor:
        cursor.execute(sql.SQL(_ROLLED_BACK).format(sql.Identifier(schema, TABLE)), (name,))


_HOLDERS = """SELECT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.client_addr::text, 'local'), a.backend_start
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = %s
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


def lock_holders(url: DatabaseUrl) -> list[str]:
    """Return the holders of Prisma's advisory lock as text: process id, application, address, start. Raises UnreachableError."""
    with session(url) as cursor:
        cursor.execute(_HOLDERS, (LOCK,))
        return [f"process {pid} ({name}, from {address}, since {since:%H:%M:%S %Z})" for pid, name, address, since in cursor.fetchall()]


@dataclass(frozen=True)
class MigrateResult:
    """The result of a migrate command. ``code`` is Prisma's (``P3009``) or None."""

    completed: Completed
    code: str | None

    @property
    def ok(self) -> bool:
        """Return whether the command succeeded."""
        return self.completed.returncode == 0

    @property
    def lock_timeout(self) -> bool:
        """Return whether the command gave up waiting for the advisory lock and so changed nothing."""
        return self.code == "P1002" and str(LOCK) in plain(self.completed.stdout + self.completed.stderr)


def _unverified(why: str) -> BadInputError:
    return BadInputError(
        "Migrations cannot verify the server's name through a tunnel",
        what=f"{why}, and the migrate command connects to 127.0.0.1",
        where="PROD_DATABASE_URL, with database.via_ssh or target.kubernetes.database",
        next_step="use sslmode=require and a password: SSH leads to a host whose key is known, a cluster to the pod that is named; or let "
        "the runner reach the database itself",
    )


def through_tunnel(text: str, tunnel_port: int | None) -> str:
    """Return a connection string with ``127.0.0.1:tunnel_port`` in place of its host and port; unchanged if there is no tunnel.

    Raises BadInputError if the string demands a check of the server's name: without hostaddr, 127.0.0.1 would be checked.
    """
    if tunnel_port is None:
        return text
    credentials, at_sign, address = text.strip().rpartition("@")
    location, question_mark, query = address.partition("?")
    parameters = [part for part in query.split("&") if part]
    if {"sslmode=verify-full", "sslaccept=strict"} & set(parameters):
        raise _unverified("the connection string asks for verify-full or sslaccept=strict")
    remaining = "&".join(part for part in parameters if part.partition("=")[0] not in {"host", "port", "hostaddr"})
    return f"{credentials}{at_sign}127.0.0.1:{tunnel_port}/{location.partition('/')[2]}{question_mark}{remaining}"


def address(text: str, url: DatabaseUrl) -> str:
    """Return the connection string ``text`` of ``url`` as Prisma gets it: through the tunnel, and with the same demands as libpq's.

    Behind a tunnel a certificate is for another name than 127.0.0.1. There SCRAM, bound to the TLS channel, shows in place of the CA that
    the server knows the password. Raises the errors of ``through_tunnel`` and of ``DatabaseUrl.protection``.
    """
    location, _, query = through_tunnel(text.strip(), url.tunnel_port).rpartition("@")[2].partition("?")
    credentials = text.strip().rpartition("@")[0]
    protection, ca_file = url.protection, url.ca_file
    if url.tunnel_port is not None and protection.level == transport.VERIFY_FULL:
        if not url.password:
            raise _unverified("a CA is named, and the connection string has no password")
        protection, ca_file = Protection(transport.REQUIRE, {"channel_binding": "require"}), None
    demanded = transport.prisma_query(query, protection, ca_file)
    return f"{credentials}@{location}{'?' if demanded else ''}{demanded}"


def deploy(processes: Processes, command: tuple[str, ...], database: Mapping[str, str], isolation: Isolation) -> MigrateResult:
    """Run the application's migrate command, isolated; only that process gets the variables ``database``, which name the server."""
    completed = processes.run_isolated(command, isolation, env={**QUIET, **database}, timeout=DEPLOY_SECONDS, check=False)
    return MigrateResult(completed, None if completed.returncode == 0 else error_code(completed.stdout + "\n" + completed.stderr))


# Colours, other control sequences, and links of terminals: ECMA-48, 5.4 and 8.3.89.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
# What task runners put in front of a line: "@acme/db:migrate: ", "packages/db migrate: ", "[db] ", "[0] ", "db | ", "│ ".
_PREFIX = r"(?:[^\r\n]{0,120}?[:\]|│>]\s{1,4})?\s{0,8}"
# What the engine in JavaScript prints without a code, and what the driver does.
_TEXTS = {
    r"Can't reach database server|connect (?:ECONNREFUSED|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH)|getaddrinfo (?:ENOTFOUND|EAI_AGAIN)": "P1001",
    r"Authentication failed against (?:the )?database server": "P1000",
}
_ERROR = re.compile(rf"^{_PREFIX}Error: (?:.*\b)?(P\d{{4}})\b", re.MULTILINE)


def plain(output: str) -> str:
    """Return what a terminal would show of an output: without colours, the last of what one line was overwritten with."""
    lines = _CONTROL.sub("", output).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def error_code(output: str) -> str | None:
    """Return the error code that Prisma printed, ``P1002``, or whose text it printed, or None.

    https://www.prisma.io/docs/orm/reference/error-reference
    """
    text = plain(output)
    if matched := _ERROR.search(text):
        return matched[1]
    codes = (code for words, code in _TEXTS.items() if re.search(rf"^{_PREFIX}Error: (?:{words})", text, re.MULTILINE))
    return next(codes, None)
