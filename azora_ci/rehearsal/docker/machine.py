"""Machine side of ``--docker``: a production host in its own network namespace, a build daemon, and a registry; ``--kubernetes`` has the
last two as well.

The host has a real dockerd and a real sshd that sees its socket at ``/var/run/docker.sock``. This module holds addresses, command lines
and configuration files, checks the machine's programs, and ends everything, also after the rehearsal was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azora_ci.core import environment
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes

PACKAGES = {  # program -> its package in Debian
    "dockerd": "docker.io",
    "docker-registry": "docker-registry",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
DOCKER, KUBERNETES = "--docker", "--kubernetes"  # the options that need them
NEEDED = {
    DOCKER: ("dockerd", "docker-registry", "sshd", "ssh", "ssh-keygen", "ip", "nsenter", "unshare"),
    KUBERNETES: ("dockerd", "docker-registry", "ip", "unshare", "setpriv"),
}
ROOT_FOR = {DOCKER: "dockerd, sshd and a network namespace", KUBERNETES: "dockerd, pods and their addresses"}
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # where daemons lie, often not on a person's PATH
MACHINE, HOST, PUBLIC = 1, 10, 80  # last byte of an address: this machine, the host's sshd, the host's edge
API_SECONDS = 30.0
REMOVED_AT_ONCE = 8  # containers
NOTE = "docker.json"  # a run's file with its Note


def search_path() -> str:
    """Return the PATH with the folders of daemons."""
    return f"{environment.process_environment().get('PATH', '/usr/bin:/bin')}{os.pathsep}{SYSTEM_FOLDERS}"


def program(name: str) -> str:
    """Return the path of a program. Raises BadInputError naming its package."""
    path = shutil.which(name, path=search_path())
    if path is None:
        raise _missing_error(DOCKER, [name], root=True)
    return path


def require(option: str) -> None:
    """Raise BadInputError naming every program and right that this machine lacks for ``--docker`` or ``--kubernetes``."""
    missing = [name for name in NEEDED[option] if shutil.which(name, path=search_path()) is None]
    root = os.geteuid() == 0
    if missing or not root:
        raise _missing_error(option, missing, root=root)


def _missing_error(option: str, missing: list[str], *, root: bool) -> BadInputError:
    packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
    gaps = [f"not installed: {', '.join(missing)}"] if missing else []
    steps = [f"apt-get install --no-install-recommends {packages}"] if missing else []
    if not root:
        gaps.append(f"not root: {ROOT_FOR[option]} need its rights")
        steps.append(f"run it as root: sudo scripts/rehearse {option}")
    return BadInputError(
        f"This machine cannot rehearse with {option}",
        what="; ".join(gaps),
        where=f"scripts/rehearse {option}",
        next_step=", then ".join(steps),
    )


@dataclass(frozen=True)
class MachineAddresses:
    """Networks of 10.0.0.0/8: a /23 for the host's instances, a /24 between this machine and the host, and a /24 for what builds run."""

    second: int
    third: int

    @classmethod
    def choose(cls) -> MachineAddresses:
        """Return randomly chosen networks, so that two rehearsals can run side by side."""
        return cls(64 + secrets.randbelow(128), 4 * secrets.randbelow(63))

    @property
    def network(self) -> str:
        """Return the range of the instances' subnets."""
        return f"10.{self.second}.{self.third}.0/23"

    def link_address(self, number: int) -> str:
        """Return an address of the network between this machine and the host."""
        return f"10.{self.second}.{self.third + 2}.{number}"

    @property
    def builds(self) -> str:
        """Return the address of the bridge for what builds run."""
        return f"10.{self.second}.{self.third + 3}.1/24"


@dataclass(frozen=True)
class Note:
    """What has to be removed after a run: the namespace, and a folder with a short path (a socket's path has at most 107 characters)."""

    namespace: str
    folder: str

    @classmethod
    def begin(cls, run_folder: Path) -> Note:
        """Choose names, write them to a file of the run, and return them."""
        note = cls(f"azr{secrets.token_hex(3)}", tempfile.mkdtemp(prefix="azr-"))
        Path(note.run_folder, "sshd").mkdir(parents=True)  # a folder that sshd needs
        Path(note.run_folder, "docker.sock").symlink_to(note.socket("host"))
        part = run_folder / f"{NOTE}.part"
        part.write_text(json.dumps(asdict(note)), encoding="utf-8")
        part.replace(run_folder / NOTE)  # atomic: the code that cleans up after a killed run reads the file
        return note

    @classmethod
    def of(cls, run_folder: Path) -> Note:
        """Return the note that ``begin`` wrote for a run."""
        return cls(**json.loads((run_folder / NOTE).read_text(encoding="utf-8")))

    @property
    def bridge(self) -> str:
        """Return the bridge on this machine without which no RUN of a Dockerfile starts; it leads nowhere."""
        return f"{self.namespace}b"

    def socket(self, daemon: str) -> str:
        """Return the path of a daemon's socket."""
        return f"{self.folder}/{daemon}.sock"

    @property
    def inside(self) -> tuple[str, ...]:
        """Return the command prefix that enters the network namespace; ``ip netns exec`` would hide the cgroups."""
        return (program("nsenter"), f"--net=/run/netns/{self.namespace}")

    @property
    def run_folder(self) -> str:
        """Return the folder that is the host's ``/run``, with Docker's socket in it."""
        return f"{self.folder}/run"

    @property
    def on_host(self) -> tuple[str, ...]:
        """Return the command prefix that enters the network namespace and has the host's ``/run``."""
        mounts = 'mount --bind "$0" /run && exec "$@"'
        return (*self.inside, program("unshare"), "--mount", "--propagation", "private", "sh", "-c", mounts, self.run_folder)


def host_commands(note: Note, addresses: MachineAddresses) -> Iterator[tuple[str, ...]]:
    """Yield the ``ip`` commands that make the host's namespace, a veth pair to it, and the route to the instances."""
    name, outside = note.namespace, f"{note.namespace}o"
    texts = (
        f"netns add {name}",
        f"link add {outside} type veth peer name eth0 netns {name}",
        f"addr add {addresses.link_address(MACHINE)}/24 dev {outside}",
        f"link set {outside} up",
        f"-n {name} addr add {addresses.link_address(HOST)}/24 dev eth0",
        f"-n {name} addr add {addresses.link_address(PUBLIC)}/24 dev eth0",
        f"-n {name} link set eth0 up",
        f"-n {name} link set lo up",
        f"route add {addresses.network} via {addresses.link_address(HOST)}",
    )
    for text in texts:
        yield (program("ip"), *text.split())


def bridge_commands(note: Note, addresses: MachineAddresses) -> Iterator[tuple[str, ...]]:
    """Yield the ``ip`` commands that make the bridge of the build daemon."""
    for text in (f"link add {note.bridge} type bridge", f"addr add {addresses.builds} dev {note.bridge}", f"link set {note.bridge} up"):
        yield (program("ip"), *text.split())


def dockerd(note: Note, daemon: str, data: Path, *, forwards: bool) -> tuple[str, ...]:
    """Return the command of a daemon with separate folders and socket, which leaves the machine's firewall and other daemons alone.

    ``forwards``: the daemon enables IP forwarding, so that packets from containers can leave its network namespace.
    """
    folder = note.folder
    Path(folder, "daemon.json").write_text("{}", encoding="utf-8")  # not the machine's own configuration
    return (
        program("dockerd"),
        f"--config-file={folder}/daemon.json",
        f"--data-root={data}",
        f"--exec-root={folder}/{daemon}",
        f"--pidfile={folder}/{daemon}.pid",
        f"--host=unix://{note.socket(daemon)}",
        f"--bridge={'none' if forwards else note.bridge}",
        f"--ip-forward={str(forwards).lower()}",
        "--iptables=false",
        "--ip-masq=false",
    )


def registry_configuration(folder: Path) -> str:
    """Return the configuration of a registry on a loopback port that the kernel chooses."""
    storage = f"storage: {{filesystem: {{rootdirectory: {json.dumps(str(folder))}}}}}"
    return f"version: 0.1\nlog: {{level: info}}\n{storage}\nhttp: {{addr: '127.0.0.1:0'}}\n"


def sshd_configuration(folder: Path, host: str) -> str:
    """Return the configuration of an sshd that admits ``user_key`` of its folder and forwards ports and sockets for the target."""
    lines = (
        "Port 22",
        f"ListenAddress {host}",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/user_key.pub",
        f"PidFile {folder}/sshd.pid",
        "StrictModes no",
        "UsePAM yes",  # or a root without a password would be refused as locked
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "AllowTcpForwarding yes",
        "AllowStreamLocalForwarding yes",
    )
    return "\n".join(lines) + "\n"


def sshd(note: Note, folder: Path) -> tuple[str, ...]:
    """Return the command of an sshd on the host."""
    return (*note.on_host, program("sshd"), "-D", "-e", "-f", str(folder / "sshd_config"))


# --- the end -----------------------------------------------------------------------------------------------------------------


def end_containers(run_folder: Path) -> None:
    """Remove all containers of a run's host, and kill container processes that outlived a killed daemon."""
    note = Note.of(run_folder)
    with contextlib.suppress(Exception):  # the daemon may be dead; its containers' processes are killed below
        _remove_containers(note.socket("host"))
    for shim in _shims(note):
        for pid in (*_children(shim), shim):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _remove_containers(socket_path: str) -> None:
    import docker

    client: Any = docker.DockerClient(base_url=f"unix://{socket_path}", timeout=API_SECONDS)
    with contextlib.closing(client), ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        list(pool.map(lambda container: container.remove(force=True, v=True), client.containers.list(all=True)))


def _shims(note: Note) -> Iterator[int]:
    """Yield the process ids of this run's container shims; their working folder is below the note's, and they outlive a killed daemon."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "cwd").startswith(f"{note.folder}/"):  # noqa: PTH115 - as in runs: may be no path
                    yield int(entry.name)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []


def remove(run_folder: Path, clock: Clock) -> None:
    """Remove the namespace, its network link, the bridge and the note's folder; call it after the daemons have ended."""
    note = Note.of(run_folder)
    processes = Processes(JobLog(Actions(stream=io.StringIO()), clock))
    for command in (("link", "del", f"{note.namespace}o"), ("link", "del", note.bridge), ("netns", "del", note.namespace)):
        processes.run((program("ip"), *command), check=False, echo=False, timeout=30)
    shutil.rmtree(note.folder, ignore_errors=True)
