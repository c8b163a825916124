"""The programs that ``--docker`` needs on a machine, and the relay between its networks."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.errors import BadInputError
from azora_ci.rehearsal.docker import machine
from azora_ci.rehearsal.docker.machine import MachineAddresses


@pytest.mark.parametrize(
    ("option", "programs", "packages"),
    [
        (machine.DOCKER, "dockerd, docker-registry, sshd, ssh, ssh-keygen, nsenter, unshare", "docker.io docker-registry openssh-server "
         "openssh-client util-linux"),
        (machine.KUBERNETES, "dockerd, docker-registry, unshare, setpriv", "docker.io docker-registry util-linux"),
    ],
)  # fmt: skip
def test_what_a_machine_lacks_is_named_with_its_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, programs: str, packages: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "SYSTEM_FOLDERS", str(tmp_path))
    (tmp_path / "ip").touch(mode=0o755)
    with pytest.raises(BadInputError) as caught:
        machine.require(option)
    assert f"not installed: {programs}" in caught.value.what
    assert f"apt-get install --no-install-recommends {packages}" in caught.value.next_step
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("option", [machine.DOCKER, machine.KUBERNETES])
def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(BadInputError, match="not root") as caught:
        machine.require(option)
    assert f"sudo scripts/rehearse {option}" in caught.value.next_step


def test_networks_of_a_rehearsal_do_not_overlap() -> None:
    addresses = MachineAddresses(64, 8)
    assert (addresses.network, addresses.link_address(10)) == ("10.64.8.0/23", "10.64.10.10")
    for chosen in (MachineAddresses.choose() for _ in range(200)):
        assert 64 <= chosen.second < 192 and chosen.third % 4 == 0 and chosen.third + 2 < 255


@pytest.fixture
def upper() -> Iterator[str]:
    """Yield the address of a server that answers in capitals once its client has sent everything."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            received = b"".join(iter(lambda: connection.recv(4096), b""))
            connection.sendall(received.upper())

    threading.Thread(target=answer, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.close()


def test_a_relay_forwards_both_ways_to_the_end(upper: str) -> None:
    argv = [sys.executable, "-m", "azora_ci.rehearsal.docker.relay", "127.0.0.1:0", upper]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as relay:
        try:
            assert relay.stdout is not None
            host, port = relay.stdout.readline().strip().split(":")
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(b"hello " * 50_000)
                connection.shutdown(socket.SHUT_WR)
                received = b"".join(iter(lambda: connection.recv(4096), b""))
            assert received == b"HELLO " * 50_000
        finally:
            relay.terminate()
