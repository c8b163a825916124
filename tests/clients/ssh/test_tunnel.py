"""One SSH connection per host, against a real sshd: forwarded socket, pinned keys, wrong keys, broken connections."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import asyncssh
import pytest

from azora_ci.clients.ssh import tunnel
from azora_ci.clients.ssh.credentials import Credentials
from azora_ci.clients.ssh.host_keys import HostKey, hashed_line, lines_of
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from azora_ci.core.hosts import HostAddress, JumpHost, normal_key, parse_hosts, parse_jump
from azora_ci.core.process import birth
from azora_ci.core.variables import Secret
from azora_ci.targets.docker_hosts.connection import Connection
from tests.support import ROOT
from tests.support.sshd import DockerStandIn, Sshd, free_port, keygen, ping
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


def end_sessions(server):
    for pid in server.sessions():
        os.kill(pid, signal.SIGKILL)


def listening_ports():
    """Return the ports of loopback on which this process listens."""
    own_sockets = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own_sockets}


class Opened:
    """Makes connections and cleans up after them."""

    def __init__(self, docker_socket):
        self.docker_socket, self.all, self.lines = docker_socket, [], []

    def connection(self, sshd, *, key=None, known_hosts="pinned", recorded="", accept_new=False, host="127.0.0.1", port=None, jump=None):
        pinned = sshd.known_hosts if known_hosts == "pinned" else known_hosts
        credentials = Credentials(sshd.user, Secret(key or sshd.key), known_hosts=pinned, recorded=recorded, accept_new=accept_new)
        address = HostAddress(host, port or sshd.port)
        connection = Connection(
            address, credentials=credentials, clock=Clock(), remote_socket=str(self.docker_socket), jump=jump, say=self.lines.append
        )
        self.all.append(connection)
        return connection, credentials


@pytest.fixture
def opened(docker_socket, monkeypatch):
    monkeypatch.setattr(tunnel, "ATTEMPTS", 2)
    connections = Opened(docker_socket)
    yield connections
    for connection in connections.all:
        connection.close()


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a.example", [("a.example", 22)]),
        ("a.example:2222, 10.0.0.1", [("a.example", 2222), ("10.0.0.1", 22)]),
        ("[2001:db8::1]:22", [("2001:db8::1", 22)]),
    ],
)
def test_hosts(text, hosts):
    assert [(address.host, address.port) for address in parse_hosts(text)] == hosts


@pytest.mark.parametrize("bad", ["", ",", "-oProxyCommand=x", "a b", "a:0", "a:99999", "a,a", "user@host", "a;b", "a..b", f"{'a' * 64}.b"])
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


def test_the_docker_socket_is_a_local_file_of_this_user_alone(opened, sshd):
    connection, _ = opened.connection(sshd, key=sshd.key.replace("\n", "\r\n"))
    with connection:
        assert ping(connection.docker_socket) == b"OK"
        assert connection.docker_socket.stat().st_mode & 0o777 == 0o600
        assert connection.docker_socket.parent.stat().st_mode & 0o777 == 0o700
    assert not connection.docker_socket.parent.exists()


def test_the_host_connects_to_where_it_is_asked_to(opened, sshd, docker_socket):
    connection, _ = opened.connection(sshd)
    with connection:
        with connection.dial(("127.0.0.1", sshd.port), 10) as channel:
            assert channel.recv(4) == b"SSH-"
        with connection.dial(docker_socket, 10) as channel:
            channel.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            assert channel.recv(100).startswith(b"HTTP/1.0 200")
        with pytest.raises(ConnectionRefusedError, match="Connection refused"):
            connection.dial(("127.0.0.1", free_port()), 10)
    with pytest.raises(OSError):
        connection.dial(("127.0.0.1", sshd.port), 10)


def test_files_in_the_home_folder_are_not_read(opened, sshd, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    (folder / "crt").mkdir(parents=True)
    (folder / "ca-bundle.crt").write_text("no certificate")
    (folder / "config").write_text(f"Host *\n  HostName 127.0.0.9\n  Port {free_port()}\n  User nobody\n  ProxyCommand false\n")
    (folder / "known_hosts").write_text(f"@revoked * {sshd.known_hosts.partition(' ')[2]}")
    connection, _ = opened.connection(sshd)
    with connection:
        assert ping(connection.docker_socket) == b"OK"
        options = connection._connection._options
        assert (options.x509_trusted_certs, options.x509_trusted_cert_paths, options.gss_host) == (None, [], None)


def test_what_arrives_at_once_and_in_bulk_arrives_whole(opened, sshd, tmp_path):
    connection, _ = opened.connection(sshd)
    data = os.urandom(1 << 20) * 8
    with socket.create_server(("127.0.0.1", 0)) as server, connection:
        sender = threading.Thread(target=lambda: [peer := server.accept()[0], peer.sendall(data), peer.close()])
        sender.start()
        with connection.dial(server.getsockname(), 10) as channel, channel.makefile("rb") as stream:
            assert stream.read() == data
        sender.join()


def test_no_secret_is_in_a_file_or_on_a_command_line_and_no_port_is_open(opened, sshd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    connection, _ = opened.connection(sshd)
    children, ports = Path("/proc/self/task").glob("*/children"), listening_ports()
    before = sorted(path.read_text() for path in children)
    with connection:
        assert sorted(path.read_text() for path in Path("/proc/self/task").glob("*/children") if path.read_text()) == list(
            filter(None, before)
        )
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["owner"]
        assert listening_ports() <= ports


def test_a_host_that_never_speaks_is_given_up(opened, sshd, monkeypatch):
    monkeypatch.setattr(tunnel, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection, _ = opened.connection(sshd, port=silent.getsockname()[1])
        with pytest.raises(UnreachableError, match="cannot be reached") as caught:
            connection.open(1)
    assert caught.value.what == "no answer within 0.5 s"


def test_a_host_that_falls_silent_is_noticed(opened, sshd, monkeypatch):
    monkeypatch.setattr(tunnel, "KEEPALIVE_SECONDS", 0.2)
    connection, _ = opened.connection(sshd)
    with connection:
        (session,) = sshd.sessions()
        stopped = [session, *map(int, Path(f"/proc/{session}/task/{session}/children").read_text().split())]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: not connection.is_open(), "the connection is given up", 30)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)


def test_no_pinned_key_is_refused_unless_opted_in(opened, sshd):
    with pytest.raises(BadInputError, match="No host key is pinned"):
        opened.connection(sshd, known_hosts=None)
    connection, credentials = opened.connection(sshd, known_hosts=None, accept_new=True)
    with connection:
        (host_key,) = credentials.seen.values()
    assert (host_key.source, host_key.key.blob) == ("accepted", sshd.known_hosts.split()[2])


def test_a_host_that_is_not_among_the_pinned_ones_is_refused(opened, sshd):
    connection, _ = opened.connection(sshd, known_hosts="other.example " + sshd.known_hosts.partition(" ")[2])
    with pytest.raises(NotTrueError, match="Host key is not the pinned one") as caught:
        connection.open()
    assert caught.value.what == f"known: (none); the host shows: {HostKey(*sshd.known_hosts.split()[1:3]).fingerprint}"


def test_another_host_key_is_refused(opened, sshd, tmp_path):
    other_key = keygen(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    connection, _ = opened.connection(sshd, known_hosts=f"[127.0.0.1]:{sshd.port} {' '.join(other_key)}\n")
    with pytest.raises(NotTrueError, match="key") as caught:
        connection.open()
    assert caught.value.exit_code == 1


def test_a_key_that_was_accepted_and_recorded_is_all_that_the_next_connection_needs(opened, sshd):
    first_connection, accepted = opened.connection(sshd, known_hosts=None, accept_new=True)
    with first_connection:
        (evidence,) = accepted.evidence()
    assert "127.0.0.1" not in str(evidence)
    assert evidence["known_hosts"].endswith(" ".join(sshd.known_hosts.split()[1:3]))
    second_connection, recorded = opened.connection(sshd, known_hosts=None, recorded=lines_of([evidence]))
    with second_connection:
        (recorded_evidence,) = recorded.evidence()
    assert (recorded_evidence["source"], recorded_evidence["fingerprint"]) == ("recorded", evidence["fingerprint"])
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


def test_a_revoked_key_is_refused_although_it_is_pinned(opened, sshd):
    connection, _ = opened.connection(sshd, known_hosts=f"{sshd.known_hosts}@revoked {sshd.known_hosts}@revoked * ssh-new AAAA\n")
    with pytest.raises(NotTrueError, match="Host key is revoked") as caught:
        connection.open()
    assert caught.value.what.startswith(f"revoked: {HostKey(*sshd.known_hosts.split()[1:3]).fingerprint}, ")  # and one of an unknown type


def certified(folder, name):
    """Return an sshd whose key an authority vouches for under a name, and the authority's public key."""
    server = Sshd(folder)
    authority = keygen(folder / "authority")
    sign = ["ssh-keygen", "-q", "-s", authority, "-I", "test", "-h", "-n", name, server.host_key.with_suffix(".pub")]
    subprocess.run(sign, check=True, timeout=30)
    with (server.folder / "sshd_config").open("a") as file:
        file.write(f"HostCertificate {server.folder / 'host_key-cert.pub'}\n")
    server.start()
    return server, HostKey(*authority.with_suffix(".pub").read_text().split()[:2])


def test_a_pinned_authority_vouches_for_a_host(opened, tmp_path):
    server, authority = certified(tmp_path / "certified", "127.0.0.1")
    pinned = f"@cert-authority [127.0.0.1]:* {authority.key_type} {authority.blob}\n"
    try:
        connection, credentials = opened.connection(server, known_hosts=pinned)
        with connection:
            (host_key,) = credentials.seen.values()
        assert (host_key.source, host_key.key, host_key.fingerprint) == ("pinned", None, authority.fingerprint)
        connection, credentials = opened.connection(server)  # which pins the host's own key
        with connection:
            assert [host_key.key for host_key in credentials.seen.values()] == [HostKey(*server.known_hosts.split()[1:3])]
        with pytest.raises(NotTrueError, match="Host key"):
            opened.connection(server, known_hosts=pinned + pinned.replace("@cert-authority", "@revoked"))[0].open()
        with pytest.raises(NotTrueError, match="Host key is revoked") as caught:
            opened.connection(server, known_hosts=pinned + "@revoked * " + server.known_hosts.partition(" ")[2])[0].open()
        assert caught.value.what == f"revoked: {HostKey(*server.known_hosts.split()[1:3]).fingerprint}"
    finally:
        server.stop()


def test_an_authority_that_vouches_for_another_host_is_refused(opened, tmp_path):
    server, authority = certified(tmp_path / "certified", "other.example")
    try:
        with pytest.raises(NotTrueError, match="Host key"):
            opened.connection(server, known_hosts=f"@cert-authority * {authority.key_type} {authority.blob}\n")[0].open()
    finally:
        server.stop()


def test_a_wrong_user_key_is_refused_at_once(opened, sshd, tmp_path):
    connection, _ = opened.connection(sshd, key=keygen(tmp_path / "stranger").read_text())
    with pytest.raises(BadInputError, match="refuses the key") as caught:
        connection.open()
    assert "authorized_keys" in caught.value.next_step
    assert caught.value.what == "it does not let the user in with this key"
    assert opened.lines == []


def test_an_unreachable_host_is_tried_again_and_named(opened, sshd):
    connection, _ = opened.connection(sshd, port=free_port())
    with pytest.raises(UnreachableError, match="cannot be reached") as caught:
        connection.open()
    assert caught.value.what == "Connection refused"
    assert opened.lines == ["host-1 of PROD_HOST: production host cannot be reached, attempt 1 of 2: Connection refused"]


@pytest.mark.parametrize(
    ("error", "explanation"),
    [
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 113] ('10.0.0.1', 1)"),
            "Connection refused, No route",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (ConnectionAbortedError("10.0.0.1 went away"), "ConnectionAbortedError"),
        (asyncssh.DisconnectError(2, "Go\n::error::away\x1b[31m\u202e " + "x" * 300), "Go ::error::away[31m xxx"),
        (asyncssh.ConnectionLost(""), "ConnectionLost"),
    ],
)
def test_a_failure_is_told_in_one_line_without_addresses(error, explanation):
    text = tunnel.explain(error, "host-1").what
    assert text.startswith(explanation)
    assert "10.0.0.1" not in text
    assert len(text) <= 200


def test_a_user_id_without_a_name_is_explained(opened, sshd, monkeypatch):
    def getuser():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", getuser)
    with pytest.raises(BadInputError, match="SSH cannot be set up") as caught:
        opened.connection(sshd)[0].open()
    assert caught.value.what.startswith("Unknown local username: set one of")


def test_a_peer_that_disconnects_chooses_one_line_at_most(opened, sshd):
    words = b"Go\r\naway \x1b[2J" + b"x" * 300
    body = b"\x01" + (2).to_bytes(4, "big") + len(words).to_bytes(4, "big") + words + bytes(4)
    padding = 8 - (len(body) + 5) % 8 + 8
    packet = (len(body) + padding + 1).to_bytes(4, "big") + bytes([padding]) + body + bytes(padding)
    with socket.create_server(("127.0.0.1", 0)) as server:
        greeting = threading.Thread(target=lambda: [peer := server.accept()[0], peer.sendall(b"SSH-2.0-x\r\n" + packet), peer.recv(1)])
        greeting.start()
        with pytest.raises(UnreachableError) as caught:
            opened.connection(sshd, port=server.getsockname()[1])[0].open(1)
        greeting.join()
    assert caught.value.what == ("Go away [2J" + "x" * 300)[:200]


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
        end_sessions(sshd)
        until(lambda: not connection.is_open(), "the connection is lost", 30)
        connection.ensure()
        assert ping(connection.docker_socket) == b"OK"
        assert (connection.openings, len(opened.lines)) == (2, 1)
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


def test_a_host_is_reached_through_a_jump_host(opened, sshd, bastion):
    connection, credentials = opened.connection(sshd, known_hosts=sshd.known_hosts + bastion.known_hosts, jump=jump_to(bastion))
    with connection:
        assert ping(connection.docker_socket) == b"OK"
        assert len(bastion.sessions()) == 1
        assert [key.source for key in credentials.seen.values()] == ["pinned", "pinned"]
    until(lambda: bastion.sessions() == [], "the jump host's connection is closed", 30)


def test_a_jump_host_that_refuses_its_user_does_not_name_it(opened, sshd, bastion):
    jump = jump_to(bastion, "jumper")
    connection, _ = opened.connection(sshd, known_hosts=sshd.known_hosts + bastion.known_hosts, jump=jump)
    with pytest.raises(BadInputError, match="refuses the key") as caught:
        connection.open()
    assert "jumper" not in caught.value.message()


def test_a_lost_jump_host_is_connected_to_again(opened, sshd, bastion):
    connection, _ = opened.connection(sshd, known_hosts=sshd.known_hosts + bastion.known_hosts, jump=jump_to(bastion))
    with connection:
        end_sessions(bastion)
        until(lambda: not connection.is_open(), "the connection is lost", 60)
        connection.ensure()
        assert ping(connection.docker_socket) == b"OK"


def test_keys_of_both_are_accepted_and_recorded(opened, sshd, bastion):
    first_connection, accepted = opened.connection(sshd, known_hosts=None, accept_new=True, jump=jump_to(bastion))
    with first_connection:
        evidence = accepted.evidence()
    assert {entry["known_hosts"].split()[2] for entry in evidence} == {server.known_hosts.split()[2] for server in (sshd, bastion)}
    second_connection, recorded = opened.connection(sshd, known_hosts=None, recorded=lines_of(evidence), jump=jump_to(bastion))
    with second_connection:
        assert [host_key.source for host_key in recorded.seen.values()] == ["recorded", "recorded"]


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
import json, sys, threading
from azora_ci.clients.ssh.credentials import Credentials
from azora_ci.core.clock import Clock
from azora_ci.core.hosts import HostAddress
from azora_ci.core.variables import Secret
from azora_ci.targets.docker_hosts.connection import Connection

access = json.load(sys.stdin)
credentials = Credentials(access["user"], Secret(access["key"]), known_hosts=access["known_hosts"])
address = HostAddress("127.0.0.1", access["port"])
connection = Connection(address, credentials=credentials, clock=Clock(), remote_socket=access["socket"])
opening = threading.Thread(target=connection.open)  # which ends, as those that open many connections at once
opening.start()
opening.join()
connection._check()
print("open", flush=True)
threading.Event().wait()
"""


def test_a_killed_runner_leaves_no_connection_and_no_secret(opened, sshd, docker_socket, short_folder, monkeypatch):
    access = {"user": sshd.user, "key": sshd.key, "known_hosts": sshd.known_hosts, "port": sshd.port, "socket": str(docker_socket)}
    folder = short_folder / "runner"
    folder.mkdir()
    environ = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen([sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        runner.stdin.write(json.dumps(access))
        runner.stdin.close()
        assert runner.stdout.readline() == "open\n"
        assert len(sshd.sessions()) == 1
    finally:
        runner.kill()
        runner.wait()
        runner.stdout.close()
    until(lambda: sshd.sessions() == [], "the connection is closed", 30)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["owner"]
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    remaining_folders, own_folder = set(folder.iterdir()), opened.connection(sshd)[0].docker_socket.parent
    opened.connection(sshd)  # which removes what the killed one left, not what a living process uses
    assert remaining_folders.isdisjoint(folder.iterdir())
    assert own_folder.is_dir()


def test_a_folder_with_the_key_that_an_earlier_version_left_is_removed(opened, sshd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    boot, namespace = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), Path("/proc/self/ns/pid").readlink()
    owners = {
        "dead": f"{boot} {namespace} {os.getpid()} 1",  # whose process id is another one's by now
        "earlier-boot": f"00000000-0000 {namespace} 1 1",
        "living": f"{boot} {namespace} {os.getpid()} {birth(os.getpid())}",
        "elsewhere": f"{boot} pid:[1] 4711 1",  # in a container that shares the folder
        "unclear": "x",
    }
    for name, owner in owners.items():
        folder = tmp_path / f"azora-ssh-{name}"
        folder.mkdir()
        (folder / "owner").write_text(owner)
        (folder / "key").write_text("secret")
    opened.connection(sshd)
    assert {path.parent.name for path in tmp_path.rglob("key")} == {"azora-ssh-living", "azora-ssh-elsewhere", "azora-ssh-unclear"}


LOOKUP = """
import socket, sys, time
from azora_ci.clients.ssh import tunnel
from azora_ci.clients.ssh.credentials import Credentials
from azora_ci.core.clock import Clock
from azora_ci.core.hosts import HostAddress
from azora_ci.core.variables import Secret

def hang(*_arguments, **_options):
    print("looking", flush=True)
    time.sleep(25)

socket.getaddrinfo = hang
tunnel.CONNECT_SECONDS = float(sys.argv[1])
credentials = Credentials("deploy", Secret(sys.stdin.read()), known_hosts="")
tunnel.Tunnel(HostAddress("web1.example"), credentials=credentials, clock=Clock()).open(1)
"""


def hanging_lookup(sshd, seconds):
    """Return a process that looks up a name, which hangs; it gives up after so many seconds."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    runner = subprocess.Popen([sys.executable, "-c", LOOKUP, str(seconds)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environ)
    runner.stdin.write(sshd.key)
    runner.stdin.close()
    runner.stdin = None
    assert runner.stdout.readline() == "looking\n"
    return runner


def test_a_hanging_name_lookup_does_not_hold_up_the_end_of_a_cancelled_process(sshd):
    runner = hanging_lookup(sshd, 20)
    runner.send_signal(signal.SIGINT)
    _, errors = runner.communicate(timeout=5)
    assert errors.endswith("KeyboardInterrupt\n")


def test_a_hanging_name_lookup_is_given_up(sshd):
    _, errors = hanging_lookup(sshd, 1).communicate(timeout=10)
    assert "UnreachableError" in errors
    assert "no answer within 1 s" in errors


def test_a_name_is_resolved(opened, sshd):
    connection, _ = opened.connection(sshd, known_hosts=sshd.known_hosts.replace("127.0.0.1", "localhost"), host="localhost")
    with connection:
        assert ping(connection.docker_socket) == b"OK"
    connection, _ = opened.connection(sshd, host="nowhere.invalid")
    with pytest.raises(UnreachableError) as caught:
        connection.open(1)
    assert "nowhere" not in caught.value.message()


def test_docker_that_does_not_answer_is_said(opened, sshd, short_folder):
    opened.docker_socket = short_folder / "nothing.sock"
    connection, _ = opened.connection(sshd)
    with pytest.raises(UnreachableError, match="Docker does not answer"):
        connection.open()
