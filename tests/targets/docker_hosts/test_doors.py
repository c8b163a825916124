"""Who reaches the guard and the admin interface of a host's edge: users of its Docker socket, and nobody else."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.targets.docker_hosts.doors import socket_of
from azora_ci.targets.docker_hosts.names import Names
from tests.support.docker_world import HTTP_PORT, Lan, Machine, World, get, inside, on_host

ASK = """
import http.client, socket, sys
path, method, resource = sys.argv[1:]
connection = http.client.HTTPConnection("guard")
connection.sock = socket.socket(socket.AF_UNIX)
try:
    connection.sock.connect(path)
    connection.request(method, resource, b"{}" if method == "POST" else None)
    print(connection.getresponse().status)
except OSError as error:
    print(type(error).__name__)
"""
REPLACE = """
import os, socket, sys
for change in (lambda: os.unlink(sys.argv[1]), lambda: os.rename(sys.argv[1], sys.argv[1] + "x"),
               lambda: socket.socket(socket.AF_UNIX).bind(sys.argv[1] + "y")):
    try:
        change()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""
# Asked from inside an instance: what answers there, on every port that guard and edge ever had.
FROM_AN_INSTANCE = """
import http.client, os
for address in ({addresses}):
    for port in range(1, 12000):
        connection = http.client.HTTPConnection(address, port, timeout=3)
        try:
            connection.connect()
        except OSError:
            continue
        try:
            connection.request("POST", "/quitquitquit")
            print(address, port, connection.getresponse().status)
        except OSError as error:
            print(address, port, type(error).__name__)
"""


@pytest.fixture(scope="module")
def world(network: Lan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    docker_world = World(network, tmp_path_factory.mktemp("doors"), services=("api_gateway",))
    docker_world.deploy_old()
    yield docker_world
    docker_world.close()


def as_user(machine: Machine, groups: str, script: str, *arguments: object) -> list[str]:
    """Return the lines that a script prints when uid 65534 runs it on the host."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", groups]
    argv = [*on_host(machine.name, machine.run_folder), *user, os.path.realpath(sys.executable), "-c", script, *map(str, arguments)]
    return subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=60, check=True).stdout.split()


@pytest.mark.parametrize("container", [Names().edge, Names().guard])
def test_only_the_group_of_the_docker_socket_reaches_guard_and_admin_interface(world, container):
    machine, resource = world.machines[0], "/ready" if container == Names().edge else "/status"
    group = machine.socket.stat().st_gid
    assert group != 0
    assert as_user(machine, f"--groups={group}", ASK, socket_of(container), "GET", resource) == ["200"]
    for method, wanted in (("GET", resource), ("POST", "/quitquitquit"), ("POST", "/lock")):
        assert as_user(machine, "--clear-groups", ASK, socket_of(container), method, wanted) == ["PermissionError"]
    for groups in ("--clear-groups", f"--groups={group}"):
        assert as_user(machine, groups, REPLACE, socket_of(container)) == ["PermissionError"] * 3
    path = machine.run_folder / socket_of(container).relative_to("/run")
    assert (path.stat().st_mode & 0o777, path.stat().st_uid, path.stat().st_gid) == (0o660, 0, group)
    assert world.versions_now() == {"1.0.0"}


def listening(prefix: list[str]) -> set[int]:
    """Return the TCP ports that something listens on in a network namespace, Docker's own name server (127.0.0.11) excepted."""
    lines = subprocess.run([*prefix, "cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True, text=True, timeout=30, check=True)
    rows = [line.split() for line in lines.stdout.splitlines()]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == "0A" and not row[1].startswith("0B00007F")}


def own_ports() -> set[str]:
    """Return the addresses that this process listens on."""
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, as the one that lists them
            own.add(str(descriptor.readlink()))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/self/net", name).read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


def test_no_port_leads_to_guard_or_admin_interface(world):
    machine, ports_before = world.machines[0], own_ports()
    assert listening(inside(machine.name)) == {22, HTTP_PORT}
    pids = {name: machine.client.api.inspect_container(name)["State"]["Pid"] for name in (Names().edge, Names().guard)}
    ports = {name: listening(["nsenter", f"--target={pid}", "--net"]) for name, pid in pids.items()}
    assert ports == {Names().edge: {8080}, Names().guard: set()}
    assert machine.client.containers.get(Names().guard).attrs["HostConfig"]["NetworkMode"] == "none"
    target = world.target()
    with target.connected():
        assert target.current().serving is not None
        assert own_ports() <= ports_before  # the runner listens on no port either


def test_an_instance_that_wants_the_edge_to_quit_gets_no_answer(world):
    machine = world.machines[0]
    endpoints = machine.client.containers.get(Names().edge).attrs["NetworkSettings"]["Networks"]
    edge = endpoints["azora-to-api_gateway"]["IPAddress"]
    instance = machine.containers()[0]
    script = FROM_AN_INSTANCE.format(addresses=repr((edge, edge.rpartition(".")[0] + ".1")))
    code, output = instance.exec_run(["python3", "-c", script])
    assert code == 0, output
    answers = {tuple(line.split()[1:]) for line in output.decode().splitlines()}
    assert {port for port, _ in answers} <= {"22", "8080", str(HTTP_PORT)}
    assert "200" not in {status for _, status in answers}
    assert get(machine.address, "/api/work")[0] == 200
    assert get(machine.address, "/quitquitquit")[0] == 404


def test_the_socket_of_the_edge_is_there_again_after_a_restart_of_the_host(world):
    machine = world.machines[0]
    shutil.rmtree(machine.run_folder / "azora")  # a boot empties /run
    for name in (Names().guard, Names().edge):
        machine.client.containers.get(name).restart(timeout=1)
    target = world.target()
    with target.connected():
        assert target.observe().weights
        assert target.holders() == {machine.alias: None}
    folder = Path(machine.run_folder / "azora" / Names().guard)
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (0, 0o755)
