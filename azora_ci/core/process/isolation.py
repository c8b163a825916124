"""How code of the application runs beside a secret: as another user, in namespaces of its own, with an environment from an allow list.

The first process in the namespaces is ``init``; it gets a document on its standard input, so that no secret is on a command line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azora_ci.core.documents import read_json
from azora_ci.core.environment import application_environment
from azora_ci.core.errors import BadInputError
from azora_ci.core.process import init

if TYPE_CHECKING:
    from azora_ci.core.process import Processes

INIT = Path(init.__file__)
# What nobody's command needs: homes, temporary files, sockets of services (Docker's, D-Bus', PostgreSQL's). Parents come first.
HIDDEN = ("/home", "/root", "/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run/docker.sock")  # noqa: S108 - hidden, not used


@dataclass(frozen=True)
class Door:
    """The only address that a command reaches: ``port`` on its own loopback, behind which ``socket`` listens, a Unix socket of ours."""

    socket: Path
    port: int


@dataclass(frozen=True)
class Window(Door):
    """The other way round: ``socket``, which is made in a folder of ours, leads to what listens at ``port`` of a command's own loopback."""


@dataclass(frozen=True)
class Isolation:
    """What an isolated command sees.

    ``work`` is a folder that it may use, shown under the name ``target``, its working directory; with ``owned`` it may write there, and
    everything in it changes its owner. ``hidden`` are paths out of its sight besides ``HIDDEN``; ``shown`` are folders and files in hidden
    ones that it may read, such as a toolchain in a home; of ``target`` it sees them in place of those in ``work``. ``active`` False leaves
    only the environment: no namespaces, our own user. With a ``door`` the command has a network namespace in which that alone is reachable;
    with a ``window``, too, we reach the command there.
    """

    work: Path
    target: Path
    owned: bool = False
    hidden: tuple[Path, ...] = ()
    shown: tuple[Path, ...] = ()
    active: bool = True
    door: Door | None = None
    window: Window | None = None

    def environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        """Return the command's environment: what ``application_environment`` allows, and ``extra``."""
        own = () if self.active else ("HOME", "TMPDIR")  # where there are namespaces, init gives it a home of its own
        return application_environment(extra, own)

    def document(self, command: Sequence[str], extra: Mapping[str, str] | None) -> bytes:
        """Return the line that ``init`` reads."""
        hidden = dict.fromkeys([*HIDDEN, *(os.path.realpath(path) for path in self.hidden)])
        document = {
            "command": list(command),
            "environment": self.environment(extra),
            "cwd": str(self.target.absolute()),
            "work": os.path.realpath(self.work),
            "target": str(self.target.absolute()),
            "owned": self.owned,
            "hidden": list(hidden),
            "shown": [str(path.absolute()) for path in self.shown],
            **openings(self.door, self.window),
        }
        return json.dumps(document).encode() + b"\n"


def openings(door: Door | None, window: Window | None) -> dict[str, Any]:
    """Return doors and windows as ``init`` reads them."""
    named = {"door": door, "window": window}
    return {name: {"socket": str(opening.socket), "port": opening.port} if opening else None for name, opening in named.items()}


@dataclass(frozen=True)
class AsUser(Isolation):
    """Isolation of a server of ours that does what others wrote. It keeps a ``user`` (uid, gid), so that its files stay that user's.

    ``writable`` are folders that it may write to besides ``work``. Metadata addresses are not kept from it: others ask as this user.
    """

    user: tuple[int, int] = (0, 0)
    writable: tuple[Path, ...] = ()

    def document(self, command: Sequence[str], extra: Mapping[str, str] | None) -> bytes:
        """Return the line that ``init`` reads."""
        further = {"user": list(self.user), "writable": [os.path.realpath(path) for path in self.writable]}
        return json.dumps(read_json(super().document(command, extra)) | further).encode() + b"\n"


def argv(*, root: bool, network: bool = True, python: str = sys.executable) -> tuple[str, ...]:
    """Return the command line that starts ``init`` in new namespaces, by sudo unless we are ``root``; without ``network`` of that, too."""
    namespaces: tuple[str, ...] = (
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child=SIGKILL",
        "--mount-proc",
        "--ipc",
    )
    namespaces += () if network else ("--net",)
    prefix = () if root else ("sudo", "-n", "--")
    return (*prefix, "unshare", *namespaces, "--", python, "-I", "-S", "-B", str(INIT))


def is_root() -> bool:
    """Return whether this process may make namespaces by itself."""
    return os.geteuid() == 0


def require_programs() -> None:
    """Raise BadInputError when this machine lacks a program that isolation needs."""
    programs = ("unshare", "setpriv") if is_root() else ("unshare", "setpriv", "sudo")
    missing = [name for name in programs if shutil.which(name, path=init.TOOLS) is None]
    if missing:
        raise impossible(f"not on this machine: {', '.join(missing)} (util-linux, sudo)")


def can_isolate(processes: Processes) -> bool:
    """Return whether this machine can isolate commands, without asking anybody for a password."""
    try:
        require_programs()
    except BadInputError:
        return False
    return is_root() or processes.run(("sudo", "-n", "true"), check=False, echo=False).returncode == 0


def require_start(code: int, stderr: str) -> None:
    """Raise BadInputError when a command line of ``argv`` ended before it had started the application's command."""
    first = stderr.lstrip().partition("\n")[0]
    if (code == init.FAILED and first.startswith(init.MARK)) or (code == 1 and first.startswith(("unshare: ", "sudo: "))):
        raise impossible(first)


def impossible(what: str) -> BadInputError:
    """Return the error that refuses to run a command without isolation."""
    return BadInputError(
        "The command cannot be isolated",
        what=what,
        where="this machine; ISOLATION",
        next_step="run on GitHub's own Linux runners, or as root, or allow sudo without a password; with ISOLATION=none and "
        "ISOLATION_REASON the command runs as this user, which the record then says",
    )


def is_chosen(kind: str, reason: str | None) -> bool:
    """Return whether ISOLATION asks for namespaces. Raises BadInputError when it asks for none without a reason."""
    if kind == "none" and not reason:
        raise BadInputError(
            "Running application code without isolation needs a reason",
            what="ISOLATION is none and ISOLATION_REASON is empty",
            where="ISOLATION_REASON",
            next_step="say why in ISOLATION_REASON (it lands in the record), or leave ISOLATION out",
        )
    return kind != "none"
