"""One OpenSSH connection per host, against a real sshd: forwarded socket, pinned keys, wrong keys, broken connections."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from azora_ci.clients.ssh import tunnel
from azora_ci.clients.ssh.credentials import Credentials
from azora_ci.clients.ssh.host_keys import HostKey, hashed_line, lines_of
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from azora_ci.core.hosts import HostAddress, JumpHost, normal_key, parse_hosts, parse_jump
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, is_alive
from azora_ci.core.variables import Secret
from tests.support import ROOT
from tests.support.sshd import DockerStandIn, Sshd, free_port, keygen
from tests.support.waiting import until


@pytest.fixture(scope="module")
def short_folder():
    """Unix socket paths are at most 107 bytes long."""
    with tempfile.TemporaryDirectory(prefix="az-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def docker_socket(short_folder):
    stand_in = DockerStandIn(short_folder / "d.sock")
    yield short_folder / "d.sock"
    stand_in.close()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def processes(tmp_path):
    made = Processes(JobLog(Actions(stream=io.StringIO()), Clock(), tmp_path / "job.log"))
    yield made
    made.end_all()


class Opened:
    """Makes connections and cleans up after them."""

    def __init__(self, processes, docker_socket):
        self.processes, self.docker_socket, self.all, self.lines = processes, docker_socket, [], []

    def connection(self, sshd, *, key=None, known_hosts="pinned", recorded="", accept_new=False, port=None, jump=None):
        pinned = sshd.known_hosts if known_hosts == "pinned" else known_hosts
        credentials = Credentials(sshd.user, Secret(key or sshd.key), known_hosts=pinned, recorded=recorded, accept_new=accept_new)
        address = HostAddress("127.0.0.1", port or sshd.port)
        made = tunnel.Connection(
            address, credentials=credentials, processes=self.processes, clock=Clock(), remote_socket=str(self.docker_socket),
            jump=jump, say=self.lines.append,
        )  # fmt: skip
        self.all.append((made, credentials))
        return made, credentials


@pytest.fixture
def opened(processes, docker_socket, monkeypatch):
    monkeypatch.setattr(tunnel, "ATTEMPTS", 2)
    made = Opened(processes, docker_socket)
    yield made
    for connection, credentials in made.all:
        connection.close()
        credentials.wipe()


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a.example", [("a.example", 22)]),
        ("a.example:2222, 10.0.0.1", [("a.example", 2222), ("10.0.0.1", 22)]),
        ("[2001:db8::1]:22", [("2001:db8::1", 22)]),
    ],
)
def test_hosts(text, hosts):
    assert [(one.host, one.port) for one in parse_hosts(text)] == hosts


@pytest.mark.parametrize("bad", ["", ",", "-oProxyCommand=x", "a b", "a:0", "a:99999", "a,a", "user@host", "a;b"])
def test_bad_hosts_are_refused(bad):
    with pytest.raises(ValueError):
        parse_hosts(bad)


@pytest.mark.parametrize(
    ("text", "jump"),
    [
        ("bastion.example", JumpHost(HostAddress("bastion.example"))),
        ("ops@bastion.example:2222", JumpHost(HostAddress("bastion.example", 2222), "ops")),
    ],
)
def test_jump_hosts(text, jump):
    assert parse_jump(text) == jump


@pytest.mark.parametrize("bad", ["", "a,b", "a b@c", "@a", "-oX@a", 'a"@b', "a@b@c d"])
def test_bad_jump_hosts_are_refused(bad):
    with pytest.raises(ValueError):
        parse_jump(bad)


def test_a_pasted_key_is_normalised_and_a_public_key_is_refused():
    assert normal_key("-----BEGIN OPENSSH PRIVATE KEY-----\r\nabc\r\n-----END").endswith("\nabc\n-----END\n")
    with pytest.raises(ValueError, match="not a private key"):
        normal_key("ssh-ed25519 AAAA user@host")


def test_the_docker_socket_is_forwarded_and_the_key_is_wiped(opened, sshd, processes, tmp_path):
    connection, credentials = opened.connection(sshd, key=sshd.key.replace("\n", "\r\n"))
    with connection:
        answer = tunnel.UnixConnection(connection.docker_socket, timeout=10)
        answer.request("GET", "/_ping")
        assert answer.getresponse().read() == b"OK"
        assert credentials.key_file.stat().st_mode & 0o777 == 0o600
    credentials.wipe()
    assert not credentials.folder.exists()
    assert not connection.docker_socket.exists()
    assert "PRIVATE KEY" not in (tmp_path / "job.log").read_text()


def test_no_command_line_names_production(opened, sshd):
    connection, credentials = opened.connection(sshd)
    with connection:
        parts = Path(f"/proc/{connection._child.pid}/cmdline").read_text().split("\0")
    assert parts == ["ssh", "-F", str(credentials.folder / "config-azora-1"), "-N", "-T", "azora-1", ""]


def test_what_names_production_is_in_files_of_mode_0600(opened, sshd):
    connection, credentials = opened.connection(sshd)
    with connection:
        files = [path for path in credentials.folder.iterdir() if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert credentials.folder.stat().st_mode & 0o777 == 0o700
        text = (credentials.folder / "config-azora-1").read_text()
        assert f"  HostName 127.0.0.1\n  Port {sshd.port}\n" in text


def test_no_pinned_key_is_refused_unless_opted_in(opened, sshd):
    with pytest.raises(BadInputError, match="No host key is pinned"):
        opened.connection(sshd, known_hosts=None)
    connection, credentials = opened.connection(sshd, known_hosts=None, accept_new=True)
    with connection:
        (seen,) = credentials.seen.values()
    assert (seen.source, seen.key.blob) == ("accepted", sshd.known_hosts.split()[2])


def test_a_host_that_is_not_among_the_pinned_ones_is_refused(opened, sshd):
    connection, _ = opened.connection(sshd, known_hosts="other.example " + sshd.known_hosts.partition(" ")[2])
    with pytest.raises(NotTrueError, match="Host key is not the pinned one") as caught:
        connection.open()
    assert caught.value.what == "known: (none); the host shows: a key of type ED25519, of which none is known"


def test_another_host_key_is_refused(opened, sshd, tmp_path):
    other = keygen(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    connection, _ = opened.connection(sshd, known_hosts=f"[127.0.0.1]:{sshd.port} {' '.join(other)}\n")
    with pytest.raises(NotTrueError, match="key") as caught:
        connection.open()
    assert caught.value.exit_code == 1


def test_a_key_that_was_accepted_and_recorded_is_all_that_the_next_connection_needs(opened, sshd):
    first, accepted = opened.connection(sshd, known_hosts=None, accept_new=True)
    with first:
        (evidence,) = accepted.evidence()
    assert "127.0.0.1" not in str(evidence)
    assert evidence["known_hosts"].endswith(" ".join(sshd.known_hosts.split()[1:3]))
    second, recorded = opened.connection(sshd, known_hosts=None, recorded=lines_of([evidence]))
    with second:
        (again,) = recorded.evidence()
    assert (again["source"], again["fingerprint"]) == ("recorded", evidence["fingerprint"])
    assert recorded.to_be_pinned() == ""
    assert evidence["fingerprint"] in accepted.to_be_pinned()
    assert "127.0.0.1" not in accepted.to_be_pinned()


@pytest.mark.parametrize("accept_new", [False, True])
def test_a_host_with_another_key_than_the_recorded_one_is_refused(opened, sshd, tmp_path, accept_new):
    old = HostKey(*keygen(tmp_path / "old").with_suffix(".pub").read_text().split()[:2])
    new = HostKey(*sshd.known_hosts.split()[1:3])
    line = hashed_line(f"[127.0.0.1]:{sshd.port}", old, bytes(20))
    connection, _ = opened.connection(sshd, known_hosts=None, recorded=line, accept_new=accept_new)
    with pytest.raises(NotTrueError, match="Host key") as caught:
        connection.open()
    assert f"known: {old.fingerprint} (ssh-ed25519); the host shows: {new.fingerprint}" == caught.value.what


def test_a_key_of_another_type_is_no_new_host(opened, sshd, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "old"], check=True, timeout=30)
    old = HostKey(*(tmp_path / "old.pub").read_text().split()[:2])
    line = hashed_line(f"[127.0.0.1]:{sshd.port}", old, bytes(20))
    connection, _ = opened.connection(sshd, known_hosts=None, recorded=line, accept_new=True)
    with pytest.raises(NotTrueError, match="Host key") as caught:
        connection.open()
    assert old.fingerprint in caught.value.what
    assert HostKey(*sshd.known_hosts.split()[1:3]).fingerprint in caught.value.what


def test_a_wrong_user_key_is_refused_at_once(opened, sshd, tmp_path):
    connection, _ = opened.connection(sshd, key=keygen(tmp_path / "stranger").read_text())
    with pytest.raises(BadInputError, match="refuses the key") as caught:
        connection.open()
    assert "authorized_keys" in caught.value.next_step
    assert opened.lines == []


def test_an_unreachable_host_is_tried_again_and_named(opened, sshd):
    connection, _ = opened.connection(sshd, port=free_port())
    with pytest.raises(UnreachableError, match="cannot be reached"):
        connection.open()
    assert "attempt 1 of 2" in opened.lines[0]


def test_forbidden_forwarding_names_the_sshd_lines(opened, tmp_path):
    server = Sshd(tmp_path / "strict", "AllowTcpForwarding no", "AllowStreamLocalForwarding no")
    server.start()
    try:
        connection, _ = opened.connection(server)
        with pytest.raises(BadInputError, match="forbids forwarding") as caught:
            connection.open()
        assert "AllowStreamLocalForwarding yes" in caught.value.next_step
    finally:
        server.stop()


def test_a_broken_connection_is_opened_again(opened, sshd):
    connection, _ = opened.connection(sshd)
    with connection:
        os.killpg(connection._child.pid, signal.SIGKILL)
        connection._child.wait(30)
        connection.ensure()
        assert connection.docker_socket.exists()
        assert "connection lost" in opened.lines[0]


# --- a jump host --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bastion(tmp_path_factory, sshd):
    """Another sshd, which admits the same key."""
    server = Sshd(tmp_path_factory.mktemp("bastion"), "AllowTcpForwarding yes", f"PermitOpen 127.0.0.1:{sshd.port}")
    (server.folder / "authorized_keys").write_text(sshd.key_file.with_suffix(".pub").read_text())
    server.start()
    yield server
    server.stop()


def jump_to(server, user=None):
    return JumpHost(HostAddress("127.0.0.1", server.port), user)


def test_a_host_is_reached_through_a_jump_host_and_no_command_line_names_either(opened, sshd, bastion):
    connection, credentials = opened.connection(sshd, known_hosts=sshd.known_hosts + bastion.known_hosts, jump=jump_to(bastion))
    with connection:
        answer = tunnel.UnixConnection(connection.docker_socket, timeout=10)
        answer.request("GET", "/_ping")
        assert answer.getresponse().read() == b"OK"
        assert len(bastion.sessions()) == 1
        children = [connection._child, connection._via._child]
        parts = [Path(f"/proc/{one.pid}/cmdline").read_text().split("\0")[2:6] for one in children]
        folder = credentials.folder
        assert parts == [[str(folder / f"config-{alias}"), "-N", "-T", alias] for alias in ("azora-1", "azora-1-jump")]
        assert [one.source for one in credentials.seen.values()] == ["pinned", "pinned"]
    until(lambda: bastion.sessions() == [], "the jump host's connection is closed", 30)


def test_a_lost_jump_host_is_connected_to_again(opened, sshd, bastion):
    connection, _ = opened.connection(sshd, known_hosts=sshd.known_hosts + bastion.known_hosts, jump=jump_to(bastion))
    with connection:
        os.killpg(connection._via._child.pid, signal.SIGKILL)
        until(lambda: not connection.is_open(), "the connection is lost", 60)
        connection.ensure()
        connection._check()


def test_keys_of_both_are_accepted_and_recorded(opened, sshd, bastion):
    first, accepted = opened.connection(sshd, known_hosts=None, accept_new=True, jump=jump_to(bastion))
    with first:
        evidence = accepted.evidence()
    assert {one["known_hosts"].split()[2] for one in evidence} == {one.known_hosts.split()[2] for one in (sshd, bastion)}
    second, recorded = opened.connection(sshd, known_hosts=None, recorded=lines_of(evidence), jump=jump_to(bastion))
    with second:
        assert [one.source for one in recorded.seen.values()] == ["recorded", "recorded"]


def test_a_host_behind_the_jump_host_with_another_key_is_refused(opened, sshd, bastion):
    stolen = f"[127.0.0.1]:{sshd.port} " + bastion.known_hosts.partition(" ")[2]
    connection, _ = opened.connection(sshd, known_hosts=stolen + bastion.known_hosts, jump=jump_to(bastion))
    with pytest.raises(NotTrueError, match="Host key does not match") as caught:
        connection.open()
    assert caught.value.where == "host-1 of PROD_HOST through PROD_JUMP_HOST"


def test_a_jump_host_with_another_key_is_refused(opened, sshd, bastion):
    stolen = f"[127.0.0.1]:{bastion.port} " + sshd.known_hosts.partition(" ")[2]
    connection, _ = opened.connection(sshd, known_hosts=stolen + sshd.known_hosts, jump=jump_to(bastion))
    with pytest.raises(NotTrueError, match="Host key does not match") as caught:
        connection.open()
    assert caught.value.where == "PROD_JUMP_HOST"


def test_a_jump_host_that_forbids_forwarding_is_named(opened, sshd, tmp_path):
    server = Sshd(tmp_path / "strict", "AllowTcpForwarding no")
    (server.folder / "authorized_keys").write_text(sshd.key_file.with_suffix(".pub").read_text())
    server.start()
    try:
        connection, _ = opened.connection(sshd, known_hosts=sshd.known_hosts + server.known_hosts, jump=jump_to(server))
        with pytest.raises(BadInputError, match="The jump host forbids forwarding"):
            connection.open()
    finally:
        server.stop()


# --- a killed runner ----------------------------------------------------------------------------------------------------

RUNNER = """
import io, json, os, sys, threading
from azora_ci import ssh, ssh_folder
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.process import Processes
from azora_ci.core.variables import Secret

given = json.load(sys.stdin)
credentials = ssh_folder.Credentials(given["user"], Secret(given["key"]), known_hosts=given["known_hosts"])
processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
address = ssh.HostAddress("127.0.0.1", given["port"])
connection = ssh.Connection(address, credentials=credentials, processes=processes, clock=Clock(), remote_socket=given["socket"])
opening = threading.Thread(target=connection.open)  # which ends, as those that open many connections at once
opening.start()
opening.join()
while os.path.exists(f"/proc/self/task/{opening.native_id}"):
    pass
connection._check()
print(connection._child.pid, credentials.folder, flush=True)
threading.Event().wait()
"""


def test_a_killed_runner_leaves_neither_a_connection_nor_for_long_a_key(opened, sshd, docker_socket, short_folder, monkeypatch):
    given = {"user": sshd.user, "key": sshd.key, "known_hosts": sshd.known_hosts, "port": sshd.port, "socket": str(docker_socket)}
    environ = os.environ | {"TMPDIR": str(short_folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUNNER]
    runner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        runner.stdin.write(json.dumps(given))
        runner.stdin.close()
        pid, folder = runner.stdout.readline().split()
        assert is_alive(int(pid))
    finally:
        runner.kill()
        runner.wait()
        runner.stdout.close()
    until(lambda: not is_alive(int(pid)), "the connection is closed", 30)
    assert (Path(folder) / "key").exists()
    monkeypatch.setattr("tempfile.tempdir", str(short_folder))
    _, credentials = opened.connection(sshd)
    assert list(short_folder.glob("azora-ssh-*")) == [credentials.folder]


def test_docker_that_does_not_answer_is_said(opened, sshd, short_folder):
    opened.docker_socket = short_folder / "nothing.sock"
    connection, _ = opened.connection(sshd)
    with pytest.raises(UnreachableError, match="Docker does not answer"):
        connection.open()
