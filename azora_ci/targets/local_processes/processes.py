"""Instances of the local target: unpack archives, start processes on loopback, recognize them by their birth time, stop them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock
from azora_ci.core.config import Service
from azora_ci.core.documents import read_file
from azora_ci.core.environment import process_environment
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.process import Processes, birth, send_signal
from azora_ci.core.variables import Secret

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "NODE_PATH")  # variables of this process
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class StartedProcess:
    """A started process: its id, birth (see ``process.birth``), port and log file."""

    pid: int
    birth: str | None
    port: int
    log: str


def unpack(archive_dir: Path, digest: str, folder: Path) -> Path:
    """Unpack ``sha256-<hex>.tar.gz`` once and return its folder. Raises NotTrueError when the archive does not have the digest."""
    algorithm, _, digits = digest.partition(":")
    archive = archive_dir / f"{algorithm}-{digits}.tar.gz"
    unpacked = folder / digits
    if unpacked.is_dir():
        return unpacked
    try:
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(
            "Archive cannot be read",
            what=f"{type(error).__name__}: {error.strerror}",
            where=str(archive),
            next_step="run build-and-push again, on this machine; target.local_processes.archive_dir must be the same folder for both",
        ) from error
    if algorithm != "sha256" or actual != digits:
        raise NotTrueError(
            "Archive is not what was built",
            what=f"the SHA-256 of its bytes is {actual}, the build's digest is {digest}",
            where=str(archive),
            next_step="find out who changed the file; then remove it and run build-and-push again",
        )
    part = folder / f"{digits}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            _extract(tar, part)
    except tarfile.TarError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise NotTrueError(
            "Archive cannot be unpacked",
            what=f"{type(error).__name__}: {error}",
            where=str(archive),
            next_step="find out what is in it that leads outside its folder, and build it again",
        ) from error
    part.rename(unpacked)
    return unpacked


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpack an archive into ``folder``. Raises TarError for a member that leads out of it.

    Members are checked here where Python has no extraction filters: 3.11.0 to 3.11.3 (Debian 12 has 3.11.2).
    """
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    for member in tar.getmembers():
        destination = folder / member.name
        target = destination.parent / member.linkname if member.issym() else destination
        plain = member.isreg() or member.isdir() or member.issym()
        if not plain or not destination.resolve().is_relative_to(folder.resolve()) or not target.resolve().is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{member.name} leads outside its folder or is a special file")
        tar.extract(member, folder)  # in turn, so that links that are already extracted are resolved in these checks


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def instance_environment(service: Service, facts: Mapping[str, str], secrets: Mapping[str, Secret]) -> dict[str, str]:
    """Return the whole environment of an instance: ``facts`` (PORT, VERSION and others), and only those secrets that the service names."""
    own = process_environment()
    inherited = {name: own[name] for name in INHERITED if name in own}
    return {**inherited, **service.env, **facts, **service.secret_values(secrets)}


def start(processes: Processes, service: Service, *, folder: Path, env: Mapping[str, str], log: Path) -> StartedProcess:
    """Start an instance, detached, so that it outlives this job. Raises BadInputError when its program cannot be started."""
    try:
        pid = processes.start_detached(service.argv, env=env, log=log, cwd=folder)
    except OSError as error:
        raise BadInputError(
            f"{service.title} cannot be started",
            what=f"{type(error).__name__}: {error}",
            where=f"services.{service.id}.command = {list(service.argv)}",
            next_step="correct the command; it runs in the unpacked build context",
        ) from error
    return StartedProcess(pid, birth(pid), int(env["PORT"]), str(log))


def remember(path: Path, argv: Sequence[str], folder: Path, env: Mapping[str, str], started: StartedProcess) -> None:
    """Keep what ``resume`` needs in a file that this user alone can read: it holds secrets, as Docker's file of a container does."""
    document = {"argv": list(argv), "cwd": str(folder), "env": dict(env), **asdict(started)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(document, file)
    part.rename(path)


def resume(processes: Processes, path: Path) -> StartedProcess:
    """Start a process again that ``remember`` keeps, unless it runs. Raises NotTrueError when it cannot be started."""
    try:
        kept = read_file(path)
        started = StartedProcess(kept["pid"], kept["birth"], kept["port"], kept["log"])
        if is_running(asdict(started)):  # a run that died has started it
            return started
        pid = processes.start_detached(kept["argv"], env=kept["env"], log=Path(kept["log"]), cwd=Path(kept["cwd"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise NotTrueError(
            "A worker cannot be started again",
            what=f"{type(error).__name__}: {error}",
            where=str(path),
            next_step="deploy its version again",
        ) from error
    started = replace(started, pid=pid, birth=birth(pid))
    remember(path, kept["argv"], Path(kept["cwd"]), kept["env"], started)
    return started


def is_running(facts: Mapping[str, Any]) -> bool:
    """Return whether a recorded instance still runs; another process that got its process id does not count."""
    return facts["birth"] is not None and birth(facts["pid"]) == facts["birth"]


def stop(instances: Iterable[tuple[Mapping[str, Any], float]], clock: Clock, meanwhile: Callable[[], None]) -> None:
    """Stop instances, pairs of facts and seconds of grace: SIGTERM to all, then SIGKILL to those still running after their grace.

    ``meanwhile`` is called while waiting, to renew a lock.
    """
    waiting = [(facts, grace) for facts, grace in instances if is_running(facts)]
    start_time = clock.monotonic()
    for facts, _ in waiting:
        send_signal(facts["pid"], signal.SIGTERM)
    while waiting:
        elapsed = clock.monotonic() - start_time
        for facts, grace in waiting:
            if elapsed >= grace:
                send_signal(facts["pid"], signal.SIGKILL)
        waiting = [(facts, grace) for facts, grace in waiting if is_running(facts)]
        if waiting:
            meanwhile()
            clock.sleep(0.02)


def keep_log(facts: Mapping[str, Any], target: Path, masked: Callable[[str], str]) -> None:
    """Copy an instance's log into the job's artifact, masked, because many people can read artifacts."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = Path(facts["log"])
    if source.exists():
        with source.open(encoding="utf-8", errors="replace") as lines, target.open("w", encoding="utf-8") as copy:
            copy.writelines(map(masked, lines))


def log_tail(log: str, lines: int = 8) -> str:
    """Return the end of an instance's log, for an error message."""
    with contextlib.suppress(OSError):
        return "\n".join(Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""
