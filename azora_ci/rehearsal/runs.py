"""The folder of one rehearsal, the processes that it started, and how they are ended, also after the rehearsal was killed.

``<base>/runs/<name>/state.json`` lists the harness and every process it started by process id and birth, so that a reused id is
recognised. Their children (services of a rollout, steps under act) are found by their working folders, which are below the run's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azora_ci.core import environment
from azora_ci.core.clock import Clock
from azora_ci.core.process import birth, send_signal
from azora_ci.database.cluster import clear
from azora_ci.rehearsal.docker import machine

CHECKOUT = Path(__file__).resolve().parent.parent.parent
DATABASE = "database"  # folder of the PostgreSQL cluster, and the name of its process in state.json
GRACE_SECONDS = 6.0  # between SIGTERM and SIGKILL
REPLAY = "env"  # link in the base folder to the files of variables of the newest kept run
PUBLISHED = ("artifacts", "result.json", "logs", "summaries")  # names that a run leaves in the base folder


@dataclass(frozen=True)
class RunProcess:
    """A process of a run: its purpose, its id, and when it was born."""

    name: str
    pid: int
    birth: str | None


class Run:
    """The folder of a run and its state file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, base: Path, clock: Clock) -> Run:
        """Make the folder of a new run; several may begin at the same moment."""
        (base / "runs").mkdir(parents=True, exist_ok=True)
        run = cls(Path(tempfile.mkdtemp(prefix=f"{clock.now():%Y%m%dT%H%M%S}-", dir=base / "runs")))
        run.folder.chmod(0o755)  # PostgreSQL runs as another user where this one is root
        run._write({"harness": asdict(RunProcess("harness", os.getpid(), birth(os.getpid()))), "kept": False, "processes": []})
        return run

    @property
    def artifacts(self) -> Path:
        """Return the store of the run's artifacts."""
        return self.folder / "artifacts"

    def path(self, name: str) -> Path:
        """Return a path in the run's folder whose parent exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def state(self) -> dict[str, Any]:
        """Return the state file; empty when there is none."""
        try:
            document: dict[str, Any] = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document

    def _write(self, state: dict[str, Any]) -> None:
        part = self.folder / f"state.{os.getpid()}.part"
        part.write_text(json.dumps(state, indent=1), encoding="utf-8")
        part.replace(self.folder / "state.json")

    def note(self, name: str, pid: int) -> None:
        """Add a process to the state file, so that it is ended with the run."""
        with _locked(self.folder / "state.lock"):
            state = self.state()
            state["processes"].append(asdict(RunProcess(name, pid, birth(pid))))
            self._write(state)

    def keep(self) -> None:
        """Mark the run as kept: its processes go on running after the harness has ended."""
        with _locked(self.folder / "state.lock"):
            self._write({**self.state(), "kept": True})

    @property
    def kept(self) -> bool:
        """Say whether the run is marked as kept."""
        return bool(self.state().get("kept"))

    @property
    def driven(self) -> bool:
        """Say whether the run's harness still runs."""
        harness = self.state().get("harness")
        return harness is not None and birth(harness["pid"]) == harness["birth"]

    def living(self) -> list[RunProcess]:
        """Return the run's processes that still run: those in the state file, and those that work below the run's folder."""
        processes = [RunProcess(**process) for process in self.state().get("processes", [])]
        living = [process for process in processes if process.birth is not None and birth(process.pid) == process.birth]
        ids = {process.pid for process in living}
        return living + [process for process in _working_below(self.folder) if process.pid not in ids]

    def end(self, clock: Clock, *, grace: float = GRACE_SECONDS) -> list[str]:
        """End every process of this run and the database's files; return the names of those that needed to be killed."""
        if self._has_docker:
            machine.end_containers(self.folder)
        deadline = clock.monotonic() + grace
        living = self.living()
        for process in living:
            _signal(process, signal.SIGINT if process.name == DATABASE else signal.SIGTERM)  # SIGINT is PostgreSQL's fast shutdown
        while living and clock.monotonic() < deadline:
            clock.sleep(0.05)
            living = self.living()
        stubborn = [process.name for process in living]
        for process in living:
            _signal(process, signal.SIGKILL)
        clear(self.folder / DATABASE, clock)
        if self._has_docker:
            machine.remove(self.folder, clock)
        return stubborn

    @property
    def _has_docker(self) -> bool:
        return (self.folder / machine.NOTE).exists()

    def remove(self) -> None:
        """Remove the run's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _signal(process: RunProcess, number: int) -> None:
    if birth(process.pid) == process.birth:
        send_signal(process.pid, number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _working_below(folder: Path) -> Iterator[RunProcess]:
    """Yield processes whose working folder is below ``folder``, except this one."""
    root = str(folder.resolve())
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                working_folder = os.readlink(entry / "cwd")  # noqa: PTH115 - a removed folder has " (deleted)" behind it, which is no path
            except OSError:
                continue
            born = birth(int(entry.name))
            if born is not None and (working_folder == root or working_folder.startswith(root + "/")):
                yield RunProcess(f"process in {working_folder[len(root) :] or '/'}", int(entry.name), born)


def lose_runner(run: Run) -> None:
    """Kill a run's rollout and all its descendants with SIGKILL, as if their machine vanished: none of them can clean up."""
    rollouts = [process.pid for process in run.living() if b"scripts/gradual_rollout.py" in _read(f"/proc/{process.pid}/cmdline")]
    children = [child for pid in rollouts for child in _descendants(pid)]
    for pid in [*rollouts, *children]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*") for child in _read(f"{task}/children").split()]
    return [*children, *(descendant for child in children for descendant in _descendants(child))]


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError:
        return b""


def end_leftovers(base: Path, clock: Clock, *, kept: bool = False) -> list[str]:
    """End and remove runs whose harness no longer runs (``kept``: also kept runs); return the names of their folders."""
    ended = []
    for folder in sorted((base / "runs").iterdir()) if (base / "runs").is_dir() else []:
        run = Run(folder)
        if run.driven or (run.kept and not kept) or not (folder / "state.json").exists():
            continue
        run.end(clock)
        run.remove()
        ended.append(folder.name)
    if (base / REPLAY).is_symlink() and not (base / REPLAY).exists():
        (base / REPLAY).unlink()
    return ended


def point_to(base: Path, folder: Path) -> None:
    """Make ``<base>/env`` a link to the files that replay a kept run's steps, by one rename."""
    link = base / f"{REPLAY}.{os.getpid()}.part"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    link.replace(base / REPLAY)


def publish(base: Path, files: dict[str, Path]) -> None:
    """Replace an earlier run's artifacts, result and logs in the base folder; a lock makes simultaneous runs take turns."""
    with _locked(base / "publish.lock"):
        for name in PUBLISHED:
            target, source = base / name, files.get(name)
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
            if source is not None and source.is_dir():
                shutil.copytree(source, target)
            elif source is not None and source.exists():
                shutil.copyfile(source, target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def base_folder() -> Path:
    """Return the base folder of rehearsals: ``rehearsal/`` in the checkout, or the folder REHEARSAL_DIR."""
    return Path(environment.process_environment().get("REHEARSAL_DIR") or CHECKOUT / "rehearsal").resolve()


def cache_folder(base: Path) -> Path:
    """Return the cache that rehearsals share (Node.js, modules): ``.cache/`` in the base folder, or the folder REHEARSAL_CACHE."""
    return Path(environment.process_environment().get("REHEARSAL_CACHE") or base / ".cache").resolve()
