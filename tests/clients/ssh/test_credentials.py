"""The folder that OpenSSH works from: what is in its files, and what becomes of it when its process dies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from azora_ci.clients.ssh.credentials import OWNER_FILE, Credentials, config_text, owner_text, wipe_stale
from azora_ci.core.errors import BadInputError
from azora_ci.core.hosts import user_name
from azora_ci.core.variables import Secret

KEY = Secret("-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["deploy", "a", "web_1.deploy-2", "user@domain.example"])
def test_names_of_users(name):
    assert user_name(name) == name
    assert f"  User {name}\n" in config_text("azora-1", {"User": name}, ())


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b", 'a"b', "a\nProxyCommand x", "a%h", "$HOME", "machine$", "a;b"])
def test_what_could_become_another_line_is_no_user(name):
    with pytest.raises(ValueError):
        user_name(name)


@pytest.mark.parametrize("value", ["", "a\nProxyCommand touch /tmp/x", "a\rb", 'a" b', "${HOME}", "a\0b"])
def test_a_value_cannot_become_another_line(value):
    with pytest.raises(ValueError):
        config_text("azora-1", {"HostName": value}, ())
    with pytest.raises(ValueError):
        config_text("azora-1", {}, (f"LocalForward {value or chr(10)}",))


def test_a_value_with_a_space_stays_one_value(tmp_path):
    file = tmp_path / "config"
    file.write_text(config_text("azora-1", {"HostName": "web1.example", "IdentityFile": "/a b/c#d"}, ()))
    done = subprocess.run(["ssh", "-G", "-F", str(file), "azora-1"], capture_output=True, text=True, timeout=30, check=True)
    assert {"hostname web1.example", "identityfile /a b/c#d", "batchmode yes", "identityagent none"} <= set(done.stdout.splitlines())


def test_a_host_of_which_no_key_is_known_is_refused_where_others_are_recorded(place):
    credentials = Credentials("deploy", KEY, known_hosts=None, recorded="web1.example ssh-ed25519 AAAA\n")
    assert credentials.options_for("web1.example")["StrictHostKeyChecking"] == "yes"
    with pytest.raises(BadInputError, match="No host key is pinned"):
        credentials.options_for("web2.example")
    credentials.wipe()
    assert list(place.iterdir()) == []


def test_accepting_does_not_override_what_is_recorded(place):
    credentials = Credentials("deploy", KEY, known_hosts=None, recorded="web1.example ssh-ed25519 AAAA\n", accept_new=True)
    assert credentials.options_for("web1.example")["StrictHostKeyChecking"] == "yes"
    assert credentials.options_for("web2.example")["StrictHostKeyChecking"] == "accept-new"
    credentials.wipe()


def test_the_folder_of_a_dead_process_is_wiped_by_the_next(place):
    code = "import sys; from azora_ci.clients.ssh.credentials import *;"
    code += " c = Credentials('u', Secret(sys.stdin.read()), known_hosts='x'); print(c.folder)"
    command = ["env", f"TMPDIR={place}", sys.executable, "-c", f"{code}; import os; os.kill(os.getpid(), 9)"]
    subprocess.run(command, input=KEY.reveal(), text=True, timeout=60, check=False)
    (left,) = place.iterdir()
    kept = (left / "key").open("rb")
    credentials = Credentials("deploy", KEY, known_hosts="x")
    assert list(place.iterdir()) == [credentials.folder]
    assert set(kept.read()) == {0}  # overwritten, not only unlinked
    kept.close()
    credentials.wipe()


def test_folders_of_the_living_and_of_strangers_stay(place):
    mine = Credentials("deploy", KEY, known_hosts="x")
    stranger, unfinished = place / "azora-ssh-1-a", place / "azora-ssh-999999-b"
    for folder in (stranger, unfinished):
        folder.mkdir()
    boot, namespace, pid, _ = owner_text(os.getppid()).split()
    (stranger / OWNER_FILE).write_text(f"{boot} pid:[1] 99999999 1")  # counted in another container, where it may live
    assert wipe_stale(place) == []
    (stranger / OWNER_FILE).write_text(f"{boot} {namespace} {pid} never")  # its process id is another one's by now
    assert wipe_stale(place) == [stranger]
    mine.wipe()
