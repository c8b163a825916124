"""Instances of the local target: archives unpacked, processes started on loopback, told apart from strangers, stopped."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import socket
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.clock import Clock
from azora_ci.config import Service
from azora_ci.errors import BadInputError, NotTrueError
from azora_ci.process import Processes, birth, send_signal
from azora_ci.settings import Secret, environment

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "NODE_PATH")  # all that an instance sees of us
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Started:
    """A started process: its id, when it was born, its port and log."""

    pid: int
    birth: str | None
    port: int
    log: str


def unpack(archive_dir: Path, digest: str, folder: Path) -> Path:
    """Unpack ``sha256-<hex>.tar.gz`` once and return its folder. Raises NotTrueError when the bytes are not those of the digest."""
    kind, _, digits = digest.partition(":")
    archive = archive_dir / f"{kind}-{digits}.tar.gz"
    done = folder / digits
    if done.is_dir():
        return done
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(
            "Archive cannot be read",
            what=f"{type(error).__name__}: {error.strerror}",
            where=str(archive),
            next_step="run build-and-push again, on this machine; target.local_processes.archive_dir must be the same folder for both",
        ) from error
    if kind != "sha256" or found != digits:
        raise NotTrueError(
            "Archive is not what was built",
            what=f"the SHA-256 of its bytes is {found}, the build's digest is {digest}",
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
    part.rename(done)
    return done


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpack members that stay inside ``folder``. Raises TarError for one that leads out of it.

    Python 3.11.0 to 3.11.3 (Debian 12 has 3.11.2) do not know extraction filters.
    """
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    for member in tar.getmembers():
        where = folder / member.name
        target = where.parent / member.linkname if member.issym() else where
        plain = member.isreg() or member.isdir() or member.issym()
        if not plain or not where.resolve().is_relative_to(folder.resolve()) or not target.resolve().is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{member.name} leads outside its folder or is a special file")
        tar.extract(member, folder)  # one by one, so that a link made before counts


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def instance_environment(service: Service, facts: Mapping[str, str], secrets: Mapping[str, Secret]) -> dict[str, str]:
    """Return the whole environment of an instance. ``facts``: PORT, VERSION and the like; secrets only those the service names."""
    ours = environment()
    inherited = {name: ours[name] for name in INHERITED if name in ours}
    return {**inherited, **service.env, **facts, **{name: secrets[name].reveal() for name in service.secrets}}


def start(processes: Processes, service: Service, *, folder: Path, env: Mapping[str, str], log: Path) -> Started:
    """Start an instance, detached: it outlives this job. Raises BadInputError when the program is not there."""
    try:
        pid = processes.start_detached(service.command, env=env, log=log, cwd=folder)
    except OSError as error:
        raise BadInputError(
            f"{service.title} cannot be started",
            what=f"{type(error).__name__}: {error}",
            where=f"services.{service.id}.command = {list(service.command)}",
            next_step="correct the command; it runs in the unpacked build context",
        ) from error
    return Started(pid, birth(pid), int(env["PORT"]), str(log))


def runs(facts: Mapping[str, Any]) -> bool:
    """Say whether a recorded instance still runs, and is not a stranger with its process id."""
    return facts["birth"] is not None and birth(facts["pid"]) == facts["birth"]


def stop(found: Iterable[tuple[Mapping[str, Any], float]], clock: Clock, meanwhile: Callable[[], None]) -> None:
    """Stop (instance, seconds of grace) pairs: SIGTERM to all, then SIGKILL to those that outlast their grace.

    ``meanwhile`` is called while waiting, to keep a lock alive.
    """
    waiting = [(facts, grace) for facts, grace in found if runs(facts)]
    start_time = clock.monotonic()
    for facts, _ in waiting:
        send_signal(facts["pid"], signal.SIGTERM)
    while waiting:
        elapsed = clock.monotonic() - start_time
        for facts, grace in waiting:
            if elapsed >= grace:
                send_signal(facts["pid"], signal.SIGKILL)
        waiting = [(facts, grace) for facts, grace in waiting if runs(facts)]
        if waiting:
            meanwhile()
            clock.sleep(0.02)


def keep_log(facts: Mapping[str, Any], target: Path, masked: Callable[[str], str]) -> None:
    """Copy an instance's log into the job's artifact, which many can read: masked."""
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
