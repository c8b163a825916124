"""The copy of production made safe for code of the application, and told to note what each statement does.

That code connects as production's role of the same name, but no role of the copy can run programs, read files or reach an address through
the server, which is not isolated itself: none is a superuser there, and none has a foreign server, a user mapping or a subscription.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from azora_ci.core.errors import BadInputError
from azora_ci.database.migrations.catalogue import lines_query
from azora_ci.database.migrations.prisma import TABLE
from azora_ci.database.migrations.session import session
from azora_ci.database.postgres import DatabaseUrl

if TYPE_CHECKING:
    import psycopg2.extensions

    from azora_ci.core.clock import Clock
    from azora_ci.database.scratch import Scratch
    from azora_ci.database.server import ServerFacts

SCHEMA = "azora_ci_trial"  # holds the function that notes
MARK = "azora-ci: "
# Predefined roles whose rights end in the database itself; others lead to the server's files and programs.
_HARMLESS = ("pg_read_all_data", "pg_write_all_data", "pg_maintain", "pg_monitor", "pg_read_all_settings", "pg_read_all_stats")
_REACHING = ("dblink", "http", "pg_net", "plproxy")  # extensions whose functions connect to addresses
_OF_THE_WAY = {"host", "port", "hostaddr", "user", "password", "dbname", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslaccept"}
_OF_THE_WAY |= {"sslidentity", "sslpassword", "sslcrl", "sslnegotiation", "channel_binding", "require_auth", "gssencmode", "pgbouncer"}
_UNTRUSTED = """SELECT lanname FROM pg_language l WHERE NOT lanpltrusted AND lanname NOT IN ('c', 'internal')
    AND EXISTS (SELECT FROM pg_proc WHERE prolang = l.oid)
    UNION SELECT fdwname FROM pg_foreign_data_wrapper WHERE fdwname = 'file_fdw'"""
_CLOSING = """SELECT format('DROP USER MAPPING FOR %%s SERVER %%I', CASE umuser WHEN 0 THEN 'PUBLIC'
        ELSE quote_ident(pg_get_userbyid(umuser)) END, srvname) FROM pg_user_mapping u JOIN pg_foreign_server s ON s.oid = umserver
    UNION ALL SELECT format('ALTER SERVER %%I OWNER TO CURRENT_USER', srvname) FROM pg_foreign_server
    UNION ALL SELECT format('ALTER FOREIGN DATA WRAPPER %%I OWNER TO CURRENT_USER', fdwname) FROM pg_foreign_data_wrapper
    UNION ALL SELECT format('REVOKE ALL ON FOREIGN %%s %%I FROM %%s CASCADE', kind, name, CASE grantee WHEN 0 THEN 'PUBLIC'
        ELSE quote_ident(pg_get_userbyid(grantee)) END) FROM (
            SELECT 'SERVER' AS kind, srvname AS name, srvacl AS acl FROM pg_foreign_server
            UNION ALL SELECT 'DATA WRAPPER', fdwname, fdwacl FROM pg_foreign_data_wrapper) f, aclexplode(acl)
        WHERE pg_get_userbyid(grantee) <> current_user
    UNION ALL SELECT format('ALTER SUBSCRIPTION %%I OWNER TO CURRENT_USER', subname) FROM pg_subscription
        WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    UNION ALL SELECT format('REVOKE ALL ON FUNCTION %%s FROM PUBLIC', objid::regprocedure) FROM pg_depend d
        JOIN pg_extension e ON e.oid = refobjid WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND extname = ANY(%s)
    UNION ALL SELECT format('ALTER ROLE %%I NOSUPERUSER NOCREATEROLE NOREPLICATION', rolname) FROM pg_roles
        WHERE (rolsuper OR rolcreaterole OR rolreplication) AND rolname <> current_user AND rolname !~ '^pg_'"""
# At the end of each DDL statement: its objects, the locks that its transaction holds, its seconds, and the lines that the catalogue gained
# and lost by it, as JSON in the server's log. It runs as whoever migrates, who could shadow what it calls.
_NOTING = f"""CREATE SCHEMA {SCHEMA};
GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC;
SET search_path = public;
CREATE TABLE {SCHEMA}.known AS SELECT line FROM ({lines_query()}) AS l (line) WHERE strpos(line, '{SCHEMA}') = 0;
RESET search_path;
GRANT ALL ON {SCHEMA}.known TO PUBLIC;
CREATE FUNCTION {SCHEMA}.note() RETURNS event_trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE objects json; locks json; ended float := extract(epoch FROM clock_timestamp()); present text[]; gained text[]; lost text[];
BEGIN
    IF tg_event = 'sql_drop' THEN
        SELECT json_agg(object_type || ' ' || object_identity) INTO objects FROM pg_event_trigger_dropped_objects() WHERE original;
        RAISE LOG '{MARK}%', json_build_object('dropped', objects);
        RETURN;
    END IF;
    IF (SELECT bool_and(in_extension) FROM pg_event_trigger_ddl_commands()) THEN
        RETURN;
    END IF;
    SELECT json_agg(DISTINCT object_type || ' ' || object_identity) INTO objects FROM pg_event_trigger_ddl_commands()
        WHERE object_identity IS NOT NULL;
    SELECT json_agg(json_build_array(relation::bigint, mode)) INTO locks FROM pg_locks
        WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted AND relation >= 16384;
    SELECT array_agg(line) INTO present FROM ({lines_query()}) AS l (line) WHERE strpos(line, '{SCHEMA}') = 0;
    SELECT array_agg(line) INTO gained FROM unnest(present) AS p (line)
        WHERE NOT EXISTS (SELECT FROM {SCHEMA}.known k WHERE k.line = p.line);
    SELECT array_agg(line) INTO lost FROM {SCHEMA}.known k WHERE line <> ALL (present);
    DELETE FROM {SCHEMA}.known WHERE line = ANY (lost);
    INSERT INTO {SCHEMA}.known SELECT unnest(gained);
    RAISE LOG '{MARK}%', json_build_object('tag', tg_tag, 'objects', objects, 'locks', locks, 'gained', gained, 'lost', lost,
        'began', extract(epoch FROM statement_timestamp()), 'at', ended, 'left', extract(epoch FROM clock_timestamp()));
END $$;
CREATE EVENT TRIGGER {SCHEMA}_dropped ON sql_drop EXECUTE FUNCTION {SCHEMA}.note();
CREATE EVENT TRIGGER {SCHEMA}_ended ON ddl_command_end EXECUTE FUNCTION {SCHEMA}.note();"""  # noqa: S608 - constants
_RELATIONS = """SELECT c.oid, c.oid::regclass::text, relkind::text, relfilenode FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND relpersistence <> 't'"""

_ROWS = """SELECT relid::regclass::text, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_all_tables
    WHERE schemaname !~ '^pg_' AND schemaname NOT IN ('information_schema', %s) AND relname <> %s"""
_AT_WORK = "SELECT count(*) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()"
_COUNTING_ATTEMPTS = 20  # at 0.1 s: a session counts its rows when it ends, a moment after its client has


@dataclass(frozen=True)
class Relation:
    """A table, index or other relation: its name, its kind as in pg_class, and the file that holds it (0: none)."""

    name: str
    kind: str
    file: int


@dataclass(frozen=True)
class Copy:
    """A copy that code of the application may change: the address of our own superuser there, the role it gets, and the server's files.

    Once that code has run, our superuser does not connect there any more: a function or trigger of its making could run with his rights.
    """

    url: DatabaseUrl
    role: str
    password: str
    socket: Path
    log: Path

    def as_role(self, production: DatabaseUrl) -> DatabaseUrl:
        """Return the address of the copy for the migrate command, with what production's address says beside the way to the server."""
        kept = {name: value for name, value in production.parameters.items() if name not in _OF_THE_WAY}
        return replace(self.url, user=self.role, password=self.password, parameters=kept, schema=production.schema)

    def address(self, production: str) -> str:
        """Return the same as a connection string, with the parameters of ``production``'s that libpq does not know."""
        kept = [(name, value) for name, value in parse_qsl(production.partition("?")[2]) if name not in _OF_THE_WAY]
        user, database = quote(self.role, safe=""), quote(self.url.database, safe="")
        query = urlencode([*kept, ("sslmode", "disable")], quote_via=quote)
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.url.port}/{database}?{query}"


def relations(url: DatabaseUrl) -> dict[int, Relation]:
    """Return oid -> relation of a database. Raises UnreachableError."""
    with session(url) as cursor:
        cursor.execute("SET LOCAL search_path = public")
        cursor.execute(_RELATIONS)
        return {oid: Relation(name, kind, file) for oid, name, kind, file in cursor.fetchall()}


def rows(url: DatabaseUrl) -> dict[str, tuple[int, int, int]]:
    """Return table -> rows inserted, updated and deleted since the server began; a transaction that was taken back counts, too.

    Raises UnreachableError.
    """
    with session(url) as cursor:
        cursor.execute("SET LOCAL search_path = public")
        cursor.execute(_ROWS, (SCHEMA, TABLE))
        return {table: (inserted, updated, deleted) for table, inserted, updated, deleted in cursor.fetchall()}


def changed_rows(before: Mapping[str, tuple[int, int, int]], url: DatabaseUrl, clock: Clock) -> list[dict[str, Any]]:
    """Return what changed since ``before``, table by table, once no other session of this role is left. Raises UnreachableError."""
    for _ in clock.attempts(_COUNTING_ATTEMPTS, 0.1, growth=1):
        with session(url) as cursor:
            cursor.execute(_AT_WORK)
            if cursor.fetchone() == (0,):
                break
    changed = {
        table: [new - old for new, old in zip(counts, before.get(table, (0, 0, 0)), strict=True)] for table, counts in rows(url).items()
    }
    kinds = ("inserted", "updated", "deleted")
    return [{"table": table, **dict(zip(kinds, counts, strict=True))} for table, counts in sorted(changed.items()) if any(counts)]


def prepare(scratch: Scratch, database: DatabaseUrl, production: DatabaseUrl, facts: ServerFacts) -> Copy:
    """Make the restored ``database`` of a private server ready to be migrated, and return it.

    Raises BadInputError where its functions could leave the server, UnreachableError.
    """
    assert scratch.cluster is not None  # noqa: S101 - the callers asked for a private server
    password = secrets.token_urlsafe(24)
    with session(database) as cursor:
        role = _role(cursor, production.user, facts)
        _require_closable(cursor)
        cursor.execute(_CLOSING, (list(_REACHING),))
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)
        _let_in(cursor, role, password, facts)
        cursor.execute(_NOTING)
    return Copy(database, role, password, scratch.cluster.socket, scratch.cluster.server_log)


def _role(cursor: psycopg2.extensions.cursor, user: str, facts: ServerFacts) -> str:
    """Return production's role: as the server said, else by its name in the connection string, which a pooler may have lengthened."""
    cursor.execute("SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_'")
    present = {name for (name,) in cursor.fetchall()}
    names = [name for name in (facts.role, user, user.partition(".")[0], user.partition("@")[0]) if name in present]
    if not names:
        raise BadInputError(
            "The migrations cannot be tried",
            what="the copy has no role of the name in the connection string",
            where="PROD_DATABASE_URL",
            next_step="re-run the job; or set MIGRATIONS_TRIAL=false and say why in MIGRATIONS_TRIAL_REASON",
        )
    return str(names[0])


def _require_closable(cursor: psycopg2.extensions.cursor) -> None:
    cursor.execute(_UNTRUSTED)
    names = sorted(name for (name,) in cursor.fetchall())
    if names:
        raise BadInputError(
            "The migrations cannot be tried safely",
            what=f"the database uses {', '.join(names)}, through which its functions or tables reach files and addresses of this machine",
            where="the copy of production",
            next_step="set MIGRATIONS_TRIAL=false and say why in MIGRATIONS_TRIAL_REASON",
        )


def _let_in(cursor: psycopg2.extensions.cursor, role: str, password: str, facts: ServerFacts) -> None:
    """Let the role log in, with the rights of production's but for those of a superuser; the server logs all that it does."""
    from psycopg2 import sql

    name = sql.Identifier(role)
    rank = sql.SQL("BYPASSRLS CREATEDB" if role in facts.superusers else "")
    cursor.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {} {}").format(name, sql.Literal(password), rank))
    logging: Mapping[str, str] = {"log_min_duration_statement": "0", "log_min_error_statement": "error", "log_error_verbosity": "default"}
    for setting, value in logging.items():
        cursor.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.SQL(setting), sql.Literal(value)))
    cursor.execute("SELECT rolname::text FROM pg_roles WHERE rolname <> current_user AND rolname = ANY(%s)", (list(facts.memberships),))
    for (other,) in cursor.fetchall():
        if other != role and (not other.startswith("pg_") or other in _HARMLESS):
            cursor.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(other), name))
