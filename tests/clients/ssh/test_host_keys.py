"""Host keys, compared with what OpenSSH's own ssh-keygen makes of the same files."""

from __future__ import annotations

import subprocess

import pytest

from azora_ci.clients.ssh.host_keys import HostKey, hashed_line, keys_of, known_name, lines_of
from tests.support.sshd import keygen

SALT = bytes(range(20))


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return keygen(tmp_path_factory.mktemp("keys") / "host").with_suffix(".pub")


@pytest.fixture(scope="module")
def key(public):
    return HostKey(*public.read_text().split()[:2])


def ssh_keygen(*arguments: str) -> str:
    completed = subprocess.run(["ssh-keygen", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=True)
    return completed.stdout


def test_a_fingerprint_is_the_one_that_openssh_shows(public, key):
    assert ssh_keygen("-l", "-f", public).split()[1] == key.fingerprint


@pytest.mark.parametrize("name", ["web1.example", "[web1.example]:2222", "10.0.0.1", "[2001:db8::1]:22"])
def test_openssh_finds_a_hashed_line_by_its_name_and_nobody_reads_the_name(key, tmp_path, name):
    file = tmp_path / "known_hosts"
    file.write_text(hashed_line(name, key, SALT) + "\n")
    assert key.blob in ssh_keygen("-F", name, "-f", file)
    assert name not in file.read_text()
    assert keys_of(file.read_text(), name) == [key]
    assert keys_of(file.read_text(), "other.example") == []


def test_lines_that_openssh_hashed_are_understood(key, tmp_path):
    file = tmp_path / "known_hosts"
    file.write_text(f"web1.example {key.key_type} {key.blob}\n")
    ssh_keygen("-H", "-f", file)
    assert keys_of(file.read_text(), "web1.example") == [key]


@pytest.mark.parametrize(
    ("names", "name", "matches"),
    [
        ("web1.example,10.0.0.1", "10.0.0.1", True),
        ("*.example", "web1.example", True),
        ("WEB1.example", "web1.example", True),
        ("*.example,!web1.example", "web1.example", False),
        ("[web1.example]:2222", "[web1.example]:2222", True),
        ("[web1.example]:2222", "web1.example", False),
        ("@revoked web1.example", "web1.example", False),
        ("# web1.example", "web1.example", False),
        ("|1|not base64|x", "web1.example", False),
    ],
)
def test_names_of_a_line(key, names, name, matches):
    assert (keys_of(f"\n{names} {key.key_type} {key.blob} a comment\n", name) == [key]) is matches


def test_a_port_of_its_own_is_part_of_the_name():
    assert known_name("Web1.example", 22) == "web1.example"
    assert known_name("web1.example", 2222) == "[web1.example]:2222"


def test_evidence_becomes_lines_again(key):
    line = hashed_line("web1.example", key, SALT)
    assert lines_of([{"known_hosts": line}, {"known_hosts": None}]) == line + "\n"
