"""A private PostgreSQL cluster: started with the machine's programs or those of a wheel; its files are removed when it stops.

PostgreSQL refuses to run as root, so root starts it as ``nobody``. A server to which a dump is restored runs isolated: SQL of the dump
runs there as a superuser, who may start programs, and whoever may write to the bucket or to production's schema may have written that SQL.
The cluster listens on a loopback port that the kernel chooses, with a random scram password; its Unix socket is in a separate folder with a
short path (107 bytes is the limit).
"""

from __future__ import annotations

import contextlib
import errno
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

from azora_ci.core.clock import Clock
from azora_ci.core.environment import child_environment
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.process import Child, Processes, is_alive, isolation, send_signal
from azora_ci.core.process.isolation import AsUser
from azora_ci.database.postgres import DatabaseUrl, find_binary, major_of

SUPERUSER = "azora"
START_SECONDS = 90.0
STOP_SECONDS = 3.0  # a cancelled step has 7 s in all
START_ATTEMPTS = 5
FOLDER_LIST = "places"  # name of the file that lists the folders of a cluster
LOWEST_PORT, CLIENTS_PORTS = 15_000, 32_768  # from the second on they are clients', see free_port
# The data exists elsewhere too, so: no flush to disk, as little WAL as possible, no background work.
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
    "log_min_error_statement": "panic",  # a failing statement may contain rows, which must not appear in a log
}
# What the server says then stays beside its data: with values, and with every statement of a role that asks for it.
LOG_TO_FILE: Mapping[str, str] = {
    "logging_collector": "on",
    "log_destination": "csvlog",
    "log_directory": "log",
    "log_filename": "server",
    "log_timezone": "UTC",
    "log_rotation_age": "0",
    "log_rotation_size": "0",
    "max_logical_replication_workers": "0",
}


class Cluster:
    """A running cluster; use it as a context manager or call ``stop()``."""

    def __init__(self, processes: Processes, folder: Path, lock: IO[str], superuser: str) -> None:
        self._processes = processes
        self._lock = lock
        self._clock = Clock()
        self._child: Child | None = None
        self._isolation: AsUser | None = None
        self._folders: list[Path] = []
        self.folder = folder
        self.superuser = superuser
        self.data = folder / "data"
        self.password = secrets.token_urlsafe(24)
        self.port = 0
        self.pid = 0
        self.major = 0

    @classmethod
    def start(  # noqa: PLR0913 - the options of a server, all by keyword
        cls,
        folder: Path,
        *,
        processes: Processes,
        major: int | None = None,
        settings: Mapping[str, str] | None = None,
        detached: bool = False,
        isolated: bool = False,
        superuser: str = SUPERUSER,
    ) -> Cluster:
        """Start a new, empty cluster with its files below ``folder`` and return it when it accepts connections.

        ``settings`` are added to SCRATCH_SETTINGS; ``detached`` lets the server outlive this process; an ``isolated`` one sees neither
        other processes nor homes and temporary files, where the machine can do that (else the log says that it cannot). A cluster that a
        killed run left in ``folder`` is stopped and removed first. If the unprivileged user cannot access ``folder``, the data is stored
        in the machine's folder for temporary files. Raises BadInputError when programs are missing or the folder is in use,
        UnreachableError when the server does not start.
        """
        folder.mkdir(parents=True, exist_ok=True)
        cluster = cls(processes, folder, _lock_folder(folder), superuser)
        try:
            cluster._initialise(major, isolated=isolated)
            cluster._start_server({**SCRATCH_SETTINGS, **(settings or {})}, detached)
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
        return DatabaseUrl("127.0.0.1", str(self.port), self.superuser, self.password, database).text

    @property
    def socket(self) -> Path:
        """Return the Unix socket on which the server listens."""
        return self.sockets / f".s.PGSQL.{self.port}"

    @property
    def server_log(self) -> Path:
        """Return the file with the server's log, where it was started with ``LOG_TO_FILE``."""
        return self.data / LOG_TO_FILE["log_directory"] / f"{LOG_TO_FILE['log_filename']}.csv"

    @property
    def running(self) -> bool:
        """Return whether the server process exists."""
        return self.pid > 0 and is_alive(self.pid)

    def stop(self) -> None:
        """Stop the server and remove its files. May be called twice."""
        if self.pid:
            if self._child is not None and self._child.stdin is not None:  # its end is what ends an isolated server
                with contextlib.suppress(OSError, TimeoutError):
                    self._child.stdin.close()
                    self._child.wait(STOP_SECONDS)
            _end_server(self.pid, self._clock)
            if self._child is not None:
                self._child.end()
            self.pid = 0
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders.clear()
        self._lock.close()

    def _initialise(self, major: int | None, *, isolated: bool) -> None:
        initdb = find_binary("initdb", major)
        self.major = _installed_major(initdb, find_binary("postgres", major))
        self.user = _unprivileged_user()
        self.data = data_folder(self.folder)
        clear(self.folder, self._clock)
        self.sockets = Path(tempfile.mkdtemp(prefix="azora-pg-"))
        self._folders = [self.data, self.sockets]
        self._record_folders()
        self.data.mkdir(mode=0o700)
        for folder in self._folders:
            _change_owner(folder, self.user)
        self.programs = self._readable_programs(initdb.parent)
        self._isolation = self._isolate() if isolated else None
        password_file = self.sockets / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password, encoding="utf-8")
        _change_owner(password_file, self.user)
        self._processes.run(
            (
                *(str(self.programs / "initdb"), "-D", str(self.data), "-U", self.superuser, f"--pwfile={password_file}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"),
            ),
            env={"HOME": str(self.sockets), "TZ": "UTC"},
            cwd=self.sockets,
            echo=False,
            user=self.user,
            next_step="read the message; the folder must be writable and have room",
        )
        password_file.unlink()

    def _record_folders(self) -> None:
        """Write the list of this cluster's folders to a file, so that the next run can remove them if this process is killed."""
        (self.folder / FOLDER_LIST).write_text("\n".join(map(str, self._folders)), encoding="utf-8")

    def _readable_programs(self, programs: Path) -> Path:
        """Return ``programs`` if the unprivileged user can read it, otherwise the same folder in a readable copy of the installation."""
        if self.user is None or _is_accessible(programs, self.user):
            return programs
        copy = Path(tempfile.mkdtemp(prefix="azora-pg-programs-"))
        copy.chmod(0o755)
        self._folders.append(copy)
        self._record_folders()
        installation = programs.parent
        wheel = installation.parent
        shutil.copytree(installation, copy / wheel.name / installation.name, symlinks=True)
        libraries = _libraries(installation)
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        return copy / wheel.name / installation.name / programs.name

    def _start_server(self, settings: Mapping[str, str], detached: bool) -> None:
        """Start the server; try again with another port when a process took the port that the kernel offered."""
        for _attempt in range(START_ATTEMPTS):
            self.port = free_port()
            connection_settings = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.sockets)}
            argv = [str(self.programs / "postgres"), "-D", str(self.data)]
            for name, value in {**settings, **connection_settings}.items():
                argv += ["-c", f"{name}={value}"]
            env = {"HOME": str(self.sockets), "TZ": "UTC", "LC_ALL": "C"}
            if detached:
                log = self.folder / "postgres.log"
                self.pid = self._processes.start_detached(
                    argv, env={**child_environment(), **env}, log=log, cwd=self.sockets, user=self.user
                )
            else:
                self._child = self._start_child(argv, env)
                self.pid = self._child.pid
            if self._wait_until_accepting():
                return
        raise UnreachableError(
            "The scratch database server does not start",
            what=f"{START_ATTEMPTS} attempts; {self._child.stderr_text.strip()[-1000:] if self._child else 'see its log'}",
            where=str(self.folder),
            next_step="read the server's message; disk, memory and shared memory must suffice",
        )

    def _start_child(self, argv: list[str], env: Mapping[str, str]) -> Child:
        if self._isolation is None:
            return self._processes.start(argv, env=env, cwd=self.sockets, user=self.user)
        child = self._processes.start(isolation.argv(root=isolation.is_root()), stdin=True)
        assert child.stdin is not None  # noqa: S101 - a pipe was asked for
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(self._isolation.document(argv, env))
            child.stdin.flush()
        return child

    def _isolate(self) -> AsUser | None:
        """Return how the server runs, as the user that owns the data; None, with a warning, where the machine cannot isolate it."""
        owner = os.getuid() if self.user is None else self.user
        group = os.getgid() if self.user is None else pwd.getpwuid(self.user).pw_gid
        installation = self.programs.parent
        programs = (installation, _libraries(installation))  # shown where they are in a place that is hidden
        workspace = () if Path.cwd() == Path("/") else (Path.cwd(),)
        chosen = AsUser(self.sockets, self.sockets, hidden=workspace, shown=programs, user=(owner, group), writable=(self.data,))
        try:
            self._processes.run_isolated((str(self.programs / "postgres"), "--version"), chosen, echo=False)
        except AzoraError as error:
            self._processes.log.annotate(
                "The backup is restored without isolation",
                f"SQL of the dump can start programs as this user, beside this job's secrets: {error.what}",
            )
            return None
        return chosen

    def _wait_until_accepting(self) -> bool:
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

    Call it only while no running process keeps its cluster there.
    """
    try:
        folders = [Path(line) for line in (folder / FOLDER_LIST).read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    running = _stop_leftover(folders[0], clock or Clock()) if folders else False
    for leftover in folders:
        if leftover.name.startswith("azora-pg-") or leftover.parent == folder.resolve():
            shutil.rmtree(leftover, ignore_errors=True)
    return running


def _stop_leftover(data: Path, clock: Clock) -> bool:
    try:
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, IndexError):
        return False
    if str(data).encode() not in command:
        return False  # the process id now belongs to another program
    _end_server(pid, clock)
    return True


def _end_server(pid: int, clock: Clock) -> None:
    """End the server with SIGQUIT, PostgreSQL's immediate shutdown, then SIGKILL: its files are deleted, so nothing needs saving."""
    for signal_number, seconds in ((signal.SIGQUIT, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        send_signal(pid, signal_number)
        deadline = clock.monotonic() + seconds
        while is_alive(pid) and clock.monotonic() < deadline:
            clock.sleep(0.02)
        if not is_alive(pid):
            return


def free_port() -> int:
    """Return a loopback port that was free a moment ago, and that the kernel gives no client meanwhile, or while a server restarts.

    It takes clients' ports from ``net.ipv4.ip_local_port_range``, by default from 32768 on; who asks a closed port of that range again and
    again may even be connected to itself.
    """
    while True:
        port = LOWEST_PORT + secrets.randbelow(CLIENTS_PORTS - LOWEST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port


def _lock_folder(folder: Path) -> IO[str]:
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


def _unprivileged_user() -> int | None:
    """Return the id of the user who runs the server: ``nobody`` for root, None (no change) for everyone else."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def data_folder(folder: Path) -> Path:
    """Return the data folder of a cluster in ``folder``: below it, or among the temporary files if the server's user cannot enter it."""
    user = _unprivileged_user()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if user is None or _is_accessible(existing, user):
        return folder.resolve() / "data"
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the next run computes the same name and so finds leftovers
    return Path(tempfile.gettempdir()).resolve() / f"azora-pg-data-{name}"


def _is_accessible(path: Path, user: int) -> bool:
    """Return whether another user may enter a folder and all its parents (owner and world bits; the process drops its groups)."""
    for folder in (path.resolve(), *path.resolve().parents):
        status = folder.stat()
        if not status.st_mode & (0o100 if status.st_uid == user else 0o001):
            return False
    return True


def _libraries(installation: Path) -> Path:
    """Return where auditwheel puts shared libraries, which the programs of a wheel find relative to themselves."""
    return installation.parent.with_name(f"{installation.parent.name}.libs")


def _change_owner(path: Path, user: int | None) -> None:
    if user is not None:
        os.chown(path, user, -1)


def _installed_major(initdb: Path, postgres: Path) -> int:

    if initdb.parent != postgres.parent:
        raise BadInputError(
            "PostgreSQL is installed by halves",
            what=f"initdb is in {initdb.parent}, postgres in {postgres.parent}",
            where=str(initdb.parent),
            next_step="install the server package of that major version completely",
        )
    return major_of(postgres) or 0
