"""The folder that OpenSSH works from: private key, known host keys, one ssh_config file per connection, and the forwarded sockets.

Everything that names production is in files of mode 0600 in a folder of mode 0700, and nothing of it is on a command line, where every
user of the machine could read it. The folder is wiped at the end; one that a killed process has left is wiped by the next. Options as in
ssh_config(5).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from azora_ci.clients.ssh import host_keys
from azora_ci.clients.ssh.host_keys import ACCEPTED, PINNED, RECORDED, HostKey, SeenKey
from azora_ci.core.errors import BadInputError
from azora_ci.core.hosts import normal_key, user_name
from azora_ci.core.process import birth
from azora_ci.core.variables import Secret

CONNECT_SECONDS = 10
PREFIX = "azora-ssh-"
OWNER_FILE = "owner"
# A dead peer is noticed after 15 s.
OPTIONS: Mapping[str, str] = {
    "BatchMode": "yes",
    "CheckHostIP": "no",
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ControlPath": "none",
    "ExitOnForwardFailure": "yes",
    "FingerprintHash": "sha256",
    "GlobalKnownHostsFile": "none",
    "HashKnownHosts": "no",
    "IdentitiesOnly": "yes",
    "IdentityAgent": "none",
    "LogLevel": "INFO",
    "PasswordAuthentication": "no",
    "ServerAliveCountMax": "3",
    "ServerAliveInterval": "5",
    "StreamLocalBindMask": "0177",
    "UpdateHostKeys": "no",
    "VisualHostKey": "yes",  # prints the fingerprint of the key that was accepted
}


def config_text(alias: str, options: Mapping[str, str], forwards: Iterable[str]) -> str:
    """Return the text of an ssh_config file with one ``Host``: the common options, its own, its forwards.

    Raises ValueError for a value with a line break, a quote or a ``$``: it could become another line or another value.
    """
    lines = [f"{name} {_quoted(value)}" for name, value in {**OPTIONS, **options}.items()]
    return "\n".join([f"Host {alias}", *(f"  {line}" for line in [*lines, *map(_checked, forwards)])]) + "\n"


def _quoted(value: str) -> str:
    return f'"{_checked(value)}"' if re.search(r"[\s#]", value) else _checked(value)


def _checked(value: str) -> str:
    if not value or re.search(r"[\x00-\x1f\x7f\"'\\$]", value):
        raise ValueError("a value for OpenSSH's configuration is empty or holds a line break, a quote, a backslash or a $")
    return value


class Credentials:
    """User, private key and known host keys, as files that live only as long as this object.

    ``known_hosts`` pins the host keys. Without it those ``recorded`` by the last deployment count (the text of a known_hosts file, see
    ``host_keys.lines_of``); a host of which none is recorded may show any key once, with ``accept_new``. ``seen`` fills up with what the
    hosts showed. Raises BadInputError when no key could be checked.
    """

    def __init__(self, user: str, key: Secret, *, known_hosts: str | None, recorded: str = "", accept_new: bool = False) -> None:
        if known_hosts is None and not recorded and not accept_new:
            raise _nothing_known()
        self.user, text_of_key = user_name(user), normal_key(key.reveal())
        self._pinned = known_hosts is not None
        self._recorded = recorded
        self._accept_new = accept_new
        self.seen: dict[str, SeenKey] = {}
        wipe_stale(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))  # mode 0700
        self.key_file, self.known_hosts_file = self.folder / "key", self.folder / "known_hosts"
        self.write(OWNER_FILE, owner_text(os.getpid()))
        self.write("key", text_of_key)
        text = (known_hosts if known_hosts is not None else recorded).replace("\r", "").rstrip("\n")
        self.write("known_hosts", f"{text}\n" if text else "")

    def write(self, name: str, text: str) -> Path:
        """Write a file of mode 0600 in the folder, or write it anew, and return its path."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def options_for(self, name: str) -> dict[str, str]:
        """Return the options that say who we are and which keys this host may show. Raises BadInputError when none is known."""
        known = self.known(name)  # a key that was accepted a moment ago is among them
        if not known and not self._pinned and not self._accept_new:
            raise _nothing_known()
        return {
            "User": self.user,
            "IdentityFile": str(self.key_file).replace("%", "%%"),
            "UserKnownHostsFile": str(self.known_hosts_file).replace("%", "%%"),
            "StrictHostKeyChecking": "yes" if known or self._pinned else "accept-new",
        }

    def known(self, name: str) -> list[HostKey]:
        """Return the keys that are known of a host by now."""
        return host_keys.keys_of(self.known_hosts_file.read_text(encoding="utf-8"), name)

    def note(self, name: str, fingerprint: str | None) -> None:
        """Keep what a host showed: this fingerprint, or None for the key that has just been accepted. The first sight counts."""
        key = next((one for one in self.known(name) if fingerprint in {None, one.fingerprint}), None)
        shown = fingerprint or (key.fingerprint if key else None)
        if name not in self.seen and shown is not None:
            self.seen[name] = SeenKey(shown, key, self._source(name))

    def _source(self, name: str) -> str:
        if self._pinned:
            return PINNED
        return RECORDED if host_keys.keys_of(self._recorded, name) else ACCEPTED

    def evidence(self) -> list[dict[str, Any]]:
        """Return what the hosts showed, without their names (``schemas/fragment-gradual-rollout.schema.json``)."""
        return [one.document(name, secrets.token_bytes(host_keys.SALT_BYTES)) for name, one in self.seen.items()]

    def to_be_pinned(self) -> str:
        """Return what to tell people of keys that were accepted, without the hosts' names; empty when there are none."""
        found = [one for one in self.seen.values() if one.source == ACCEPTED]
        lines = [f"HOST {one.key.key_type} {one.key.blob} ({one.fingerprint})" if one.key else one.fingerprint for one in found]
        return "\n".join(["compare them with the hosts' own keys and pin them in PROD_KNOWN_HOSTS:", *lines]) if found else ""

    def wipe(self) -> None:
        """Overwrite the key and remove the folder."""
        wipe(self.folder)


def _nothing_known() -> BadInputError:
    return BadInputError(
        "No host key is pinned",
        what="without a known key anyone on the path could pose as the production host; none is pinned, none was recorded",
        where="PROD_KNOWN_HOSTS",
        next_step="set it to the output of: ssh-keyscan -H HOST (compared with the host's own keys), or, for the very first"
        " deployment only, set PROD_ACCEPT_NEW_HOST_KEY=true",
    )


# --- folders that were left behind --------------------------------------------------------------------------------------


def wipe(folder: Path) -> None:
    """Overwrite the key in a folder of credentials and remove the folder."""
    key = folder / "key"
    with contextlib.suppress(OSError):
        key.write_bytes(b"\0" * key.stat().st_size)
    shutil.rmtree(folder, ignore_errors=True)


def owner_text(pid: int) -> str:
    """Return what tells a process from every other one on this machine: where it is counted, since when, its id and its birth."""
    return f"{_machine()} {pid} {birth(pid)}"


def _machine() -> str:
    """Return the running system and the namespace in which process ids count; another one's processes cannot be seen."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown unknown"  # no Linux


def wipe_stale(place: Path) -> Sequence[Path]:
    """Wipe the folders of processes that died without doing so (SIGKILL, loss of power), and return them."""
    found = [folder for folder in place.glob(f"{PREFIX}*") if _is_stale(folder)]
    for folder in found:
        wipe(folder)
    return found


def _is_stale(folder: Path) -> bool:
    try:
        facts = folder.lstat()
        owner = (folder / OWNER_FILE).read_text(encoding="utf-8").split()
    except OSError:  # just being made, or just being wiped
        return False
    if facts.st_uid != os.getuid() or folder.is_symlink() or len(owner) != 4 or not owner[2].isdigit():
        return False
    boot, namespace = _machine().split()
    if owner[1] != namespace or namespace == "unknown":
        return False
    return owner[0] != boot or birth(int(owner[2])) != owner[3]
