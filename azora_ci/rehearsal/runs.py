"""The folder of one rehearsal, what it started, and how all of that ends, also when the rehearsal was killed.

``<base>/runs/<name>/state.json`` names the harness and every process it started by process id and birth, so that a reused id is told
apart. What those started themselves (services of a rollout, steps under act) is found by its working folder below the run's.
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

from azora_ci import settings
from azora_ci.backup.cluster import clear
from azora_ci.clock import Clock
from azora_ci.process import birth, send_signal

CHECKOUT = Path(__file__).resolve().parent.parent.parent
DATABASE = "database"  # folder of the PostgreSQL cluster, and the name its process is noted under
DOCKER = "docker.json"  # says what a rehearsal with containers has to end besides processes; see docker_machine
GRACE_SECONDS = 6.0  # between SIGTERM and SIGKILL
REPLAY = "env"  # link in the base folder to the newest kept run's files of variables
PUBLISHED = ("artifacts", "result.json", "logs", "summaries")  # what a run leaves in the base folder


@dataclass(frozen=True)
class Started:
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
        run._write({"harness": asdict(Started("harness", os.getpid(), birth(os.getpid()))), "kept": False, "processes": []})
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
        """Remember a process, so that it is ended with the run."""
        with _locked(self.folder / "state.lock"):
            state = self.state()
            state["processes"].append(asdict(Started(name, pid, birth(pid))))
            self._write(state)

    def keep(self) -> None:
        """Let the run's processes live on after the harness."""
        with _locked(self.folder / "state.lock"):
            self._write({**self.state(), "kept": True})

    @property
    def kept(self) -> bool:
        """Say whether somebody asked to keep it."""
        return bool(self.state().get("kept"))

    @property
    def driven(self) -> bool:
        """Say whether its harness still runs."""
        harness = self.state().get("harness")
        return harness is not None and birth(harness["pid"]) == harness["birth"]

    def living(self) -> list[Started]:
        """Return the processes of this run that still run."""
        noted = [Started(**one) for one in self.state().get("processes", [])]
        found = [one for one in noted if one.birth is not None and birth(one.pid) == one.birth]
        known = {one.pid for one in found}
        return found + [one for one in _working_below(self.folder) if one.pid not in known]

    def end(self, clock: Clock, *, grace: float = GRACE_SECONDS) -> list[str]:
        """End every process of this run and the database's files; return the names of those that needed to be killed."""
        if self._has_docker:
            from azora_ci.rehearsal import docker_machine

            docker_machine.end_containers(self.folder)
        deadline = clock.monotonic() + grace
        living = self.living()
        for one in living:
            _signal(one, signal.SIGINT if one.name == DATABASE else signal.SIGTERM)  # SIGINT is PostgreSQL's fast shutdown
        while living and clock.monotonic() < deadline:
            clock.sleep(0.05)
            living = self.living()
        stubborn = [one.name for one in living]
        for one in living:
            _signal(one, signal.SIGKILL)
        clear(self.folder / DATABASE, clock)
        if self._has_docker:
            docker_machine.remove(self.folder, clock)
        return stubborn

    @property
    def _has_docker(self) -> bool:
        return (self.folder / DOCKER).exists()

    def remove(self) -> None:
        """Remove the run's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _signal(one: Started, number: int) -> None:
    if birth(one.pid) == one.birth:
        send_signal(one.pid, number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one.pid, number)


def _working_below(folder: Path) -> Iterator[Started]:
    """Yield processes whose working folder is below ``folder``, except this one."""
    root = str(folder.resolve())
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                where = os.readlink(entry / "cwd")  # noqa: PTH115 - a removed folder has " (deleted)" behind it, which is no path
            except OSError:
                continue
            found = birth(int(entry.name))
            if found is not None and (where == root or where.startswith(root + "/")):
                yield Started(f"process in {where[len(root) :] or '/'}", int(entry.name), found)


def lose_runner(run: Run) -> None:
    """Kill a run's rollout with everything it started, as when the machine vanishes below it: nothing of it says goodbye."""
    found = [one.pid for one in run.living() if b"scripts/gradual_rollout.py" in _read(f"/proc/{one.pid}/cmdline")]
    children = [child for pid in found for child in _descendants(pid)]
    for pid in [*found, *children]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children = [int(one) for task in Path(f"/proc/{pid}/task").glob("*") for one in _read(f"{task}/children").split()]
    return [*children, *(one for child in children for one in _descendants(child))]


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError:
        return b""


def end_leftovers(base: Path, clock: Clock, *, kept: bool = False) -> list[str]:
    """End and remove runs whose harness no longer runs (``kept``: also those that somebody asked to keep); return their names."""
    found = []
    for folder in sorted((base / "runs").iterdir()) if (base / "runs").is_dir() else []:
        run = Run(folder)
        if run.driven or (run.kept and not kept) or not (folder / "state.json").exists():
            continue
        run.end(clock)
        run.remove()
        found.append(folder.name)
    if (base / REPLAY).is_symlink() and not (base / REPLAY).exists():
        (base / REPLAY).unlink()
    return found


def point_to(base: Path, folder: Path) -> None:
    """Make ``<base>/env`` lead to the files with which steps of a kept run are replayed, by one rename."""
    link = base / f"{REPLAY}.{os.getpid()}.part"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    link.replace(base / REPLAY)


def publish(base: Path, files: dict[str, Path]) -> None:
    """Put a run's artifacts, result and logs into the base folder in place of an earlier run's; runs side by side take turns."""
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
    """Return where rehearsals live: ``rehearsal/`` in the checkout, or what REHEARSAL_DIR names."""
    return Path(settings.environment().get("REHEARSAL_DIR") or CHECKOUT / "rehearsal").resolve()


def cache_folder(base: Path) -> Path:
    """Return where prepared things are kept between rehearsals: ``.cache/`` in the base folder, or what REHEARSAL_CACHE names."""
    return Path(settings.environment().get("REHEARSAL_CACHE") or base / ".cache").resolve()
