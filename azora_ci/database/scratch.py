"""Where a backup is restored to prove it: a private cluster, or a fresh database on the server of BACKUP_VERIFY_DATABASE_URL."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from azora_ci.core.errors import BadInputError
from azora_ci.core.process import Processes
from azora_ci.database import properties
from azora_ci.database.cluster import LOG_TO_FILE, Cluster, clear, data_folder
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.properties import DEFAULT_TABLESPACE, Properties
from azora_ci.database.server import ServerFacts, server_facts
from azora_ci.database.session import settle

if TYPE_CHECKING:
    import psycopg2.extensions

PREFIX = "azora-backup-"
RESTORED_SHARE = 1.3  # restored database with the restore's temporary files, as a share of the original
SPOOL_SHARE = 0.6  # compressed SQL as a share of the database on disk, estimated generously
GIB = 1024**3
SCRATCH_SUPERUSER = "azora_ci_scratch"  # no role of production's has this name, so that every one can be an ordinary one there


@dataclass(frozen=True)
class Scratch:
    """A server to restore to. ``url`` leads to its administrator's database; ``private`` means that nobody else uses the server.

    ``cluster`` is the private server itself.
    """

    url: DatabaseUrl
    private: bool
    facts: ServerFacts
    cluster: Cluster | None = None


@contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """Yield a new folder for spool and cluster below ``parent`` (None: the temporary folder), after removing dead runs' folders."""
    root = (parent or Path(tempfile.gettempdir())).resolve()
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    with (folder / "alive").open("w", encoding="utf-8") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        folder.chmod(0o711)  # the cluster's unprivileged user may pass through, but cannot list it
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(root: Path) -> list[Path]:
    """Stop clusters and remove folders of killed runs below ``root``; running runs lock theirs. Return the removed folders."""
    removed = []
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "alive").open("a", encoding="utf-8") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear(folder / "cluster")
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def require_space(folder: Path, database_bytes: int, *, private: bool) -> None:
    """Raise BadInputError unless there is room for the spool and, for a private cluster, the restored database.

    The cluster may lie on another disk than ``folder``: see ``cluster.data_folder``.
    """
    needs = [(folder, SPOOL_SHARE)] + ([(data_folder(folder / "cluster"), RESTORED_SHARE)] if private else [])
    disks: dict[int, tuple[Path, float]] = {}
    for location, share in needs:
        existing = next(path for path in (location, *location.parents) if path.exists())
        device = existing.stat().st_dev
        disks[device] = (existing, share + disks.get(device, (existing, 0.0))[1])
    for location, share in disks.values():
        free, needed = shutil.disk_usage(location).free, int(database_bytes * share)
        if free < needed:
            raise BadInputError(
                "Not enough disk to prove the backup",
                what=f"{free / GIB:.2f} GiB are free, {needed / GIB:.2f} GiB are needed (database {database_bytes / GIB:.2f} GiB: "
                f"{RESTORED_SHARE} x to restore it, {SPOOL_SHARE} x for the spool)",
                where=str(location),
                next_step="set BACKUP_VERIFY_DATABASE_URL to another server, BACKUP_SCRATCH_DIR to another disk, or take a larger runner",
            )


@contextmanager
def open_scratch(
    verify_url: DatabaseUrl | None, folder: Path, production: ServerFacts, processes: Processes, *, logs_to_file: bool = False
) -> Iterator[Scratch]:
    """Yield a server to restore to. Raises BadInputError when it is unsuitable or production itself.

    ``logs_to_file``: a private server's log goes to a file beside its data, and with that.
    """
    if verify_url is not None:
        yield _require_suitable(Scratch(verify_url, False, server_facts(verify_url)), production)
        return
    settings = LOG_TO_FILE if logs_to_file else {}
    with Cluster.start(
        folder / "cluster", processes=processes, major=production.major, settings=settings, superuser=SCRATCH_SUPERUSER, isolated=True
    ) as cluster:
        url = DatabaseUrl.parse(cluster.url())
        processes.log.add_secret(cluster.password)
        yield _require_suitable(Scratch(url, True, server_facts(url), cluster), production)


def _require_suitable(scratch: Scratch, production: ServerFacts) -> Scratch:
    problems = []
    if production.system_identifier is not None and scratch.facts.system_identifier == production.system_identifier:
        problems.append(f"it is the production server itself (system identifier {production.system_identifier})")
    if scratch.facts.major < production.major:
        problems.append(f"it is PostgreSQL {scratch.facts.version}, production is {production.version}")
    missing = _missing_extensions(scratch.url, production.extensions)
    if missing:
        problems.append(f"it lacks the extensions {', '.join(missing)}")
    if problems:
        raise BadInputError(
            "The backup cannot be restored there to prove it",
            what="; ".join(problems),
            where="the scratch server" if scratch.private else "BACKUP_VERIFY_DATABASE_URL",
            next_step="set BACKUP_VERIFY_DATABASE_URL to a server of the same major version with these extensions that is not production",
        )
    return scratch


def _missing_extensions(url: DatabaseUrl, required: tuple[str, ...]) -> list[str]:
    connection = url.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name::text FROM pg_available_extensions")
            available = {row[0] for row in cursor.fetchall()}
    finally:
        connection.close()
    return sorted(set(required) - available)


@contextmanager
def fresh_database(scratch: Scratch, name: str, production: ServerFacts) -> Iterator[DatabaseUrl]:
    """Yield an empty database with production's encoding and locale, and the roles and tablespaces that its dump names.

    The SQL of a dump runs as the scratch server's superuser, and a role becomes one where only a superuser may own what it owns.
    Database and roles are dropped at the end, except on a private cluster, which is removed as a whole.
    """
    from psycopg2 import sql

    connection = scratch.url.connect()
    roles = sorted(set(production.roles) - set(scratch.facts.roles))
    database = scratch.url.with_database(name)
    try:
        with connection.cursor() as cursor:
            as_superuser = _is_superuser(cursor)
            database = database.with_options(
                _session_options(cursor, production, event_triggers=scratch.facts.major >= 17 and as_superuser)
            )
            for role in roles:
                rank = sql.SQL("SUPERUSER" if as_superuser and role in production.superusers else "NOSUPERUSER")
                cursor.execute(sql.SQL("CREATE ROLE {} NOLOGIN {}").format(sql.Identifier(role), rank))
            if scratch.private:
                _create_tablespaces(cursor, production.tablespaces)
            drop_database(cursor, database)
            _create_database(cursor, name, production, scratch)
        yield database
    finally:
        if not scratch.private:
            with connection.cursor() as cursor:
                drop_database(cursor, database)
                for role in roles:
                    cursor.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
        connection.close()


def carry_properties(scratch: Scratch, name: str, production: ServerFacts) -> list[str]:
    """Give the restored database production's own properties; return a line for each that this server could not reproduce."""
    if production.database_properties is None:
        return ["settings, privileges, owner and locale of the database: the backup was made before they were kept"]
    connection = scratch.url.connect()
    try:
        with connection.cursor() as cursor:
            settle(cursor)
            return properties.carry(cursor, name, production.database_properties)
    finally:
        connection.close()


def _is_superuser(cursor: psycopg2.extensions.cursor) -> bool:
    cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    return (cursor.fetchone() or (False,))[0] is True


def _session_options(cursor: psycopg2.extensions.cursor, production: ServerFacts, *, event_triggers: bool) -> tuple[str, ...]:
    """Return the settings with which sessions restore and read: bytes and amounts of money as in production, no trigger at login."""
    import psycopg2

    options = (f"bytea_output={production.bytea_output or 'hex'}", *(("event_triggers=off",) if event_triggers else ()))
    try:
        cursor.execute("SET lc_monetary = %s", (production.lc_monetary or "C",))
    except psycopg2.Error:
        return options  # a machine without this locale: where there are amounts, the comparison tells
    return (*options, f"lc_monetary={production.lc_monetary or 'C'}")


def _create_tablespaces(cursor: psycopg2.extensions.cursor, names: tuple[str, ...]) -> None:
    from psycopg2 import sql

    if names:
        cursor.execute("SET allow_in_place_tablespaces = on")
    for name in names:
        cursor.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(name)))


def _create_database(cursor: psycopg2.extensions.cursor, name: str, production: ServerFacts, scratch: Scratch) -> None:
    """Create the database with production's locale, or the nearest that this server has: constraints on text may depend on it."""
    import psycopg2
    from psycopg2 import sql

    wanted = production.database_properties or Properties.of_libc(production.encoding, production.collate, production.ctype)
    if not scratch.private and wanted.tablespace not in scratch.facts.tablespaces:
        wanted = replace(wanted, tablespace=DEFAULT_TABLESPACE)
    of_libc = replace(wanted, provider="libc", locale=None, icu_rules=None)
    locales = ((wanted.collate, wanted.ctype), ("C", wanted.ctype), ("C.UTF-8", "C.UTF-8"), ("C", "C"))
    choices = [wanted, *(replace(of_libc, collate=collate, ctype=ctype) for collate, ctype in locales)]
    for number, choice in enumerate(choices):
        clause = properties.creation(choice, scratch.facts.major)
        try:
            cursor.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), clause))
        except psycopg2.Error:
            if number == len(choices) - 1:
                raise
        else:
            return


def drop_database(cursor: psycopg2.extensions.cursor, database: DatabaseUrl) -> None:
    """Drop a database, if it is there; a subscription that was restored in it, never connected, would keep it."""
    from psycopg2 import sql

    cursor.execute(
        "SELECT count(*) FROM pg_database d JOIN pg_subscription s ON s.subdbid = d.oid WHERE datname = %s", (database.database,)
    )
    if (cursor.fetchone() or (0,))[0]:
        connection = database.connect()
        try:
            with connection.cursor() as inside:
                inside.execute(
                    "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid AND datname = current_database()"
                )
                for (subscription,) in inside.fetchall():
                    named = sql.Identifier(subscription)
                    for change in ("ALTER SUBSCRIPTION {} DISABLE", "ALTER SUBSCRIPTION {} SET (slot_name = NONE)", "DROP SUBSCRIPTION {}"):
                        inside.execute(sql.SQL(change).format(named))
        finally:
            connection.close()
    cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.database)))
