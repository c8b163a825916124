"""The first process of an isolated command: makes the mounts, starts the command as another user, and outlives nothing of it.

It runs as root inside new namespaces (``isolation.argv``), with the standard library alone. Line 1 of its standard input is a document
(``isolation.document``). The end of its standard input means: end the command. When this process ends, the kernel kills whatever is
left in its process namespace before anybody learns of the end, also what called ``setsid`` and forked twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MARK = "isolation failed:"  # begins the line on standard error when the command was never started
FAILED = 125  # exit code then, as that of env, nohup and docker run
GRACE_SECONDS = 2.0  # between SIGTERM and the end of everything
BUSY_SECONDS = 5.0  # for which a mount that is to be read-only may be written to
FIRST_UID = 59870  # the first free one from here on; below the ranges that systemd gives out dynamically
NAME = "isolated"
HOME = Path("/home") / NAME
TOOLS = "/usr/sbin:/usr/bin:/sbin:/bin"
METADATA = ("169.254.169.254", "fd00:ec2::254")  # of clouds: a machine's role gives credentials to every process that asks there
MS_BIND, MS_REC = 4096, 16384  # mount(2)
AT_FDCWD, AT_RECURSIVE = -100, 0x8000  # openat(2), mount_setattr(2)
MOUNT_ATTR_RDONLY = 1
SYS_MOUNT_SETATTR = 442  # the same number on every architecture; Linux 5.12
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
LOOPBACK = "127.0.0.1"
LISTENING = "listening"

_LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """Mount, as mount(2). Raises OSError."""
    texts = [None if text is None else os.fsencode(text) for text in (source, str(target), kind, options)]
    if _LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def set_read_only(target: Path, *, recursive: bool = False, on: bool = True) -> None:
    """Make a mount, or all below it, read-only or writable. Raises OSError."""
    change = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY if on else 0, 0 if on else MOUNT_ATTR_RDONLY, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    latest = time.monotonic() + BUSY_SECONDS
    while _LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), flags, ctypes.byref(change), ctypes.sizeof(change)) != 0:
        number = ctypes.get_errno()
        if number != errno.EBUSY or time.monotonic() > latest:
            raise OSError(number, os.strerror(number), str(target))
        time.sleep(0.02)  # somebody writes there in this moment


def free_uid(passwd: str) -> int:
    """Return the first user id from ``FIRST_UID`` on that /etc/passwd does not name."""
    taken = {line.split(":")[2] for line in passwd.splitlines() if line.count(":") >= 2}
    return next(uid for uid in range(FIRST_UID, FIRST_UID + 1000) if str(uid) not in taken)


def hide(path: Path) -> None:
    """Put an empty folder over a folder, and nothing over a file or socket. What is not there stays so."""
    if path.is_dir():
        shared = path in {Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")}  # noqa: S108 - it gets ones of its own there
        mount("tmpfs", path, "tmpfs", 0, "mode=1777" if shared else "mode=0755")
    elif path.exists():
        mount("/dev/null", path, None, MS_BIND)


def show(descriptor: int, target: Path) -> None:
    """Bring back an open folder or file that was hidden."""
    if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - Path would resolve to the hidden name
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(f"/proc/self/fd/{descriptor}", target, None, MS_BIND | MS_REC)


def replace(path: Path, text: str, scratch: Path) -> None:
    """Show another text under a file's name."""
    copy = scratch / path.name
    copy.write_text(text, encoding="utf-8")
    copy.chmod(0o644)
    mount(str(copy), path, None, MS_BIND)


def give(folder: Path, uid: int, gid: int) -> None:
    """Make the user the owner of a folder and of all in it, but of what is only shown there; links are not followed."""
    os.chown(folder, uid, gid, follow_symlinks=False)
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                os.chown(Path(root) / name, uid, gid, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise


def arrange(document: dict[str, Any]) -> int:
    """Arrange the file system that the command sees, and return the user id that it gets. Raises OSError."""
    passwd, group = Path("/etc/passwd"), Path("/etc/group")
    accounts, groups = passwd.read_text(encoding="utf-8", errors="replace"), group.read_text(encoding="utf-8", errors="replace")
    uid, gid = document.get("user") or (free_uid(accounts),) * 2
    work, target = Path(document["work"]), Path(document["target"])
    resolver = Path(os.path.realpath("/etc/resolv.conf"))
    kept = [(os.open(path, os.O_PATH), Path(path)) for path in document["shown"] if Path(path).exists()]
    kept += [(os.open(resolver, os.O_PATH), resolver)] if resolver.exists() else []
    writable = [(os.open(path, os.O_PATH), Path(path)) for path in document.get("writable", ())]
    tree = os.open(work, os.O_PATH)
    if document["owned"]:
        give(work, uid, uid)
    for path in document["hidden"]:
        hide(Path(path))
    scratch = Path("/run")
    replace(passwd, f"{accounts.rstrip()}\n{NAME}:x:{uid}:{uid}::{HOME}:/bin/sh\n", scratch)
    replace(group, f"{groups.rstrip()}\n{NAME}:x:{uid}:\n", scratch)
    for descriptor, path in kept:
        if target not in path.parents and not path.exists():
            show(descriptor, path)
    show(tree, target)
    for path in map(Path, document["hidden"]):
        if target in path.parents:
            hide(path)
    for descriptor, path in kept:
        if target in path.parents:  # as it is in the folder that stands under this name for everybody else
            show(descriptor, path)
    for descriptor, path in writable:
        show(descriptor, path)
    HOME.mkdir(parents=True)
    mount("tmpfs", HOME, "tmpfs", 0, f"mode=0700,uid={uid},gid={gid}")
    set_read_only(Path("/"), recursive=True)
    for path in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), HOME, target, *dict(writable).values(), Path("/proc")):  # noqa: S108 - its own
        if path.is_dir():
            set_read_only(path, on=False)
    return uid


def block_metadata(uid: int) -> None:
    """Keep the user from the metadata addresses of clouds, where the machine has ``ip``. The rule names this user only and stays.

    A rule that cannot be made is said: the command's own output then shows it.
    """
    ip = shutil.which("ip", path=TOOLS)
    for address in METADATA if ip else ():
        family = "-6" if ":" in address else "-4"
        rule = ("to", address, "uidrange", f"{uid}-{uid}", "prohibit")
        rules = subprocess.run([str(ip), family, "rule", "show", "to", address], capture_output=True, text=True, check=False).stdout
        if f"uidrange {uid}-{uid}" not in rules:
            added = subprocess.run([str(ip), family, "rule", "add", *rule], capture_output=True, text=True, check=False)
            if added.returncode != 0 and family == "-4":  # many machines have no IPv6
                print(f"{address} is not kept from this command: {added.stderr.strip()}", file=sys.stderr, flush=True)


def open_door(path: Path, port: int) -> None:
    """Let what listens on the Unix socket ``path`` be reached at ``port`` of this network namespace's loopback. Raises OSError."""
    folder = os.open(path.parent, os.O_PATH)
    listening = socket.create_server((LOOPBACK, port), backlog=64)
    relay(folder, lambda: listening, lambda: connected(socket.AF_UNIX, path.name))
    os.close(folder)
    listening.close()


def open_window(path: Path, port: int) -> None:
    """Let what listens at ``port`` of this network namespace's loopback be reached at the Unix socket ``path``, which is made.

    Raises OSError.
    """
    folder = os.open(path.parent, os.O_PATH)
    relay(folder, lambda: listen_unix(path.name), lambda: connected(socket.AF_INET, (LOOPBACK, port)))
    os.close(folder)


def relay(folder: int, listen: Callable[[], socket.socket], connect: Callable[[], socket.socket]) -> None:
    """Start a process of its own that passes on what clients of a listening socket send, each by a connection of its own.

    It works in an open folder as that folder's owner, whom the command can neither signal nor look at. Raises OSError unless it listens:
    no socket can be made any more once mounts are read-only, which comes next.
    """
    reading, told = os.pipe()
    if os.fork() != 0:
        os.close(told)
        with os.fdopen(reading, encoding="utf-8") as answer:
            said = answer.read()
        if said != LISTENING:
            raise OSError(said or "what opens doors and windows ended")
        return
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the command, which is asked to end, may still need it
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        try:
            os.fchdir(folder)
            if os.geteuid() == 0:
                owner = Path().stat()
                os.setgroups([])
                os.setgid(owner.st_gid)
                os.setuid(owner.st_uid)
            listening = listen()
        except OSError as error:
            os.write(told, str(error).encode())
            raise
        os.write(told, LISTENING.encode())
        os.close(told)
        while True:
            client, _ = listening.accept()
            threading.Thread(target=forward, args=(client, connect), daemon=True).start()
    finally:
        os._exit(FAILED)


def listen_unix(name: str) -> socket.socket:
    """Return a listening Unix socket of the present folder to which everybody may connect who gets there."""
    os.umask(0)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(name)
    listening.listen(64)
    return listening


def connected(family: int, address: Any) -> socket.socket:
    """Return a connection to a Unix socket of the present folder, whose full path may be too long, or to a port. Raises OSError.

    It imports nothing, as ``socket.create_connection`` would: the standard library may be hidden by now.
    """
    connection = socket.socket(family)
    connection.connect(address)
    return connection


def forward(client: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Pass bytes between a client and a new connection, until one of them ends."""
    with client, contextlib.suppress(OSError), connect() as server:
        others = {client: server, server: client}
        while True:
            for ready in select.select([client, server], [], [])[0]:
                data = ready.recv(65536)
                if not data:
                    return
                others[ready].sendall(data)


def open_all(document: dict[str, Any]) -> None:
    """Open the doors and windows of a document. Raises OSError."""
    with socket.socket() as interface:
        fcntl.ioctl(interface, SIOCGIFFLAGS, request := bytearray(struct.pack("16sH22x", b"lo", 0)))
        if not struct.unpack("16sH22x", request)[1] & IFF_UP:
            fcntl.ioctl(interface, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))
    for kind, opening in (("door", open_door), ("window", open_window)):
        if document.get(kind):
            opening(Path(document[kind]["socket"]), document[kind]["port"])


def drop(uid: int, command: list[str], gid: int | None = None) -> tuple[str, ...]:
    """Return the argv that runs a command as a user without further groups, capabilities, or a way to gain any."""
    options = (f"--reuid={uid}", f"--regid={uid if gid is None else gid}", "--clear-groups", "--no-new-privs")
    none = ("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
    return (shutil.which("setpriv", path=TOOLS) or "setpriv", *options, *none, "--", *command)


def start(document: dict[str, Any], uid: int) -> int:
    """Start the command and return its process id."""
    argv = drop(uid, document["command"], (document.get("user") or (uid, uid))[1])
    environment = {**document["environment"], "HOME": str(HOME), "USER": NAME, "LOGNAME": NAME, "SHELL": "/bin/sh", "TMPDIR": "/tmp"}  # noqa: S108 - its own
    os.chdir(document["cwd"])
    for descriptor in (1, 2):
        os.fchown(descriptor, uid, uid)  # so that it may open /dev/stdout
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execve(argv[0], argv, environment)  # noqa: S606 - a list of arguments, as in the package beside it
    return pid


def watch(pid: int) -> int:
    """Wait for the command's end, or for the end of our standard input, and return the exit code."""
    pidfd = os.pidfd_open(pid)
    waiting_for: list[int] = [0, pidfd]
    deadline: float | None = None
    while True:
        ready, _, _ = select.select(waiting_for, [], [], 1.0 if deadline is None else max(0.0, deadline - time.monotonic()))
        if 0 in ready and not os.read(0, 65536):
            waiting_for.remove(0)
            os.kill(-1, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
        code = reap(pid)
        if code is not None:
            return code
        if deadline is not None and time.monotonic() >= deadline:
            return 128 + signal.SIGKILL


def reap(pid: int) -> int | None:
    """Reap orphans that ended, and return the exit code of process ``pid`` once it did (128 and the signal that killed it)."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return FAILED
        if ended == 0:
            return None
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def end_all() -> None:
    """Kill every process of the namespace but this one, and wait until none is left."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def main() -> NoReturn:
    """Run the command that the document on standard input describes, and exit with its exit code.

    With a document on the command line no command is run: doors and windows stay open until this process is killed.
    """
    if len(sys.argv) > 1:
        open_all(json.loads(sys.argv[1]))
        while True:
            signal.pause()
    try:
        line = bytearray()
        while not line.endswith(b"\n"):
            line += os.read(0, 1) or b"\n"  # not a byte more: what follows is the signal to end
        document = json.loads(line)
        owner = Path(document["work"]).stat()
        if document["door"]:
            open_all(document)
        uid = arrange(document)
        if not document["door"] and "user" not in document:  # no other address can be reached with a door; others ask as that user
            block_metadata(uid)
        pid = start(document, uid)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        print(f"{MARK} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)
    code = watch(pid)
    if document["owned"]:
        end_all()  # before the owner changes: nobody may put a link in the way
        give(Path(document["target"]), owner.st_uid, owner.st_gid)
    os._exit(code)


if __name__ == "__main__":
    main()
