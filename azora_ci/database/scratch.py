"""Where a backup is restored to prove it: a private cluster, or a fresh database on the server of BACKUP_VERIFY_DATABASE_URL."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from azora_ci.core.errors import BadInputError
from azora_ci.core.process import Processes
from azora_ci.database.cluster import Cluster, clear, data_folder
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.server import ServerFacts, server_facts

if TYPE_CHECKING:
    import psycopg2.extensions

PREFIX = "azora-backup-"
RESTORED_SHARE = 1.3  # restored database with the restore's temporary files, as a share of the original
SPOOL_SHARE = 0.6  # compressed SQL as a share of the database on disk, estimated generously
GIB = 1024**3


@dataclass(frozen=True)
class Scratch:
    """A server to restore to. ``url`` leads to its administrator's database; ``private`` means that nobody else uses the server."""

    url: DatabaseUrl
    private: bool
    facts: ServerFacts


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
def open_scratch(verify_url: DatabaseUrl | None, folder: Path, production: ServerFacts, processes: Processes) -> Iterator[Scratch]:
    """Yield a server to restore to. Raises BadInputError when it is unsuitable or production itself."""
    if verify_url is not None:
        yield _require_suitable(Scratch(verify_url, False, server_facts(verify_url)), production)
        return
    with Cluster.start(folder / "cluster", processes=processes, major=production.major) as cluster:
        url = DatabaseUrl.parse(cluster.url())
        processes.log.add_secret(cluster.password)
        yield _require_suitable(Scratch(url, True, server_facts(url)), production)


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

    Database and roles are dropped at the end, except on a private cluster, which is removed as a whole.
    """
    from psycopg2 import sql

    connection = scratch.url.connect()
    roles = sorted(set(production.roles) - set(scratch.facts.roles))
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    try:
        with connection.cursor() as cursor:
            for role in roles:
                cursor.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
            if scratch.private:
                _create_tablespaces(cursor, production.tablespaces)
            cursor.execute(drop)
            _create_database(cursor, name, production)
        yield scratch.url.with_database(name)
    finally:
        if not scratch.private:
            with connection.cursor() as cursor:
                cursor.execute(drop)
                for role in roles:
                    cursor.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
        connection.close()


def _create_tablespaces(cursor: psycopg2.extensions.cursor, names: tuple[str, ...]) -> None:
    from psycopg2 import sql

    if names:
        cursor.execute("SET allow_in_place_tablespaces = on")
    for name in names:
        cursor.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(name)))


def _create_database(cursor: psycopg2.extensions.cursor, name: str, production: ServerFacts) -> None:
    """Create the database with production's locale, or the nearest that this server has: constraints on text may depend on it."""
    import psycopg2
    from psycopg2 import sql

    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}")
    choices = [(production.collate, production.ctype), ("C", production.ctype), ("C.UTF-8", "C.UTF-8"), ("C", "C")]
    for number, (collate, ctype) in enumerate(choices):
        literals = (sql.Literal(production.encoding), sql.Literal(collate), sql.Literal(ctype))
        try:
            cursor.execute(statement.format(sql.Identifier(name), *literals))
        except psycopg2.Error:
            if number == len(choices) - 1:
                raise
        else:
            return
