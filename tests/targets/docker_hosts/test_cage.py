"""What a container of a host may do, and where an instance's packets get to, on a dockerd with its usual firewall."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from azora_ci.core.errors import NotTrueError
from azora_ci.targets.base import Owner
from azora_ci.targets.docker_hosts import doctor
from tests.support.docker_world import NEW, OLD, Lan, World, get, inside, ip

METADATA, NEIGHBOUR = "169.254.169.254", "169.254.169.253"
DROPPED = ["AUDIT_WRITE", "MKNOD", "NET_RAW", "SETFCAP", "SYS_CHROOT"]
RAW = """
import socket
for family, protocol in ((socket.AF_PACKET, 0x0300), (socket.AF_INET, socket.IPPROTO_ICMP)):
    try:
        socket.socket(family, socket.SOCK_RAW, protocol)
        print("open")
    except OSError as error:
        print(type(error).__name__)
"""
ANSWERS = """
import http.client, sys
for address in sys.argv[1:]:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/api/work")
        print(connection.getresponse().status)
    except OSError as error:
        print(type(error).__name__)
"""
MAY_WRITE = """
for path in ("/app/x", "/tmp/x", "/flags/x"):
    try:
        open(path, "w").close()
        print("yes")
    except OSError as error:
        print(error.strerror)
"""


@pytest.fixture(scope="module")
def world(network: Lan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    docker_world = World(network, tmp_path_factory.mktemp("cage"))
    docker_world.deploy_old()
    yield docker_world
    docker_world.close()


def instance(world: World, service: str) -> Any:
    return next(container for container in world.machines[0].containers(OLD) if container.labels["world.azora.service"] == service)


def address(container: Any, network: str) -> str:
    return str(container.attrs["NetworkSettings"]["Networks"][network]["IPAddress"])


def run(container: Any, script: str, *arguments: str) -> list[str]:
    code, output = container.exec_run(["python3", "-c", script, *arguments])
    assert code == 0, output
    return output.decode().splitlines()


def caged(container: Any) -> dict[str, Any]:
    """Return what Docker lets a container do."""
    host = container.attrs["HostConfig"]
    sorted_lists = {key: sorted(host[key] or []) for key in ("CapDrop", "CapAdd", "SecurityOpt")}
    kept = {key: host[key] for key in ("PidsLimit", "ReadonlyRootfs", "Privileged", "NetworkMode", "PidMode", "IpcMode", "UsernsMode")}
    return {**sorted_lists, **kept, "Binds": sorted(bind.partition(":")[0] for bind in host["Binds"] or [])}


def test_every_container_that_is_created_is_caged(world):
    flags = str(world.flags)
    usual = {"SecurityOpt": ["no-new-privileges"], "PidsLimit": 1024, "Privileged": False, "PidMode": "", "IpcMode": "private"}
    usual |= {"UsernsMode": "", "CapAdd": [], "CapDrop": ["ALL"], "ReadonlyRootfs": False}
    service = {"CapDrop": DROPPED, "Binds": [flags]}
    expected = {
        "azora-edge": {"ReadonlyRootfs": True, "NetworkMode": "az-edge", "Binds": ["/run/azora/azora-edge", "azora-edge"]},
        "azora-guard": {"NetworkMode": "none", "Binds": ["/run/azora/azora-guard", "azora-edge"]},
        "azora-wall": {"ReadonlyRootfs": True, "NetworkMode": "host", "CapAdd": ["NET_ADMIN"], "Binds": []},
        f"azora-auth_service-{OLD}-1": {**service, "NetworkMode": "azora-to-auth_service"},
        f"azora-api_gateway-{OLD}-2": {**service, "NetworkMode": "azora-to-api_gateway"},
        f"azora-api_gateway-{OLD}-3": {**service, "NetworkMode": "azora-to-api_gateway"},
    }
    containers = {container.name: caged(container) for container in world.machines[0].client.containers.list(all=True)}
    assert containers == {name: usual | own for name, own in expected.items()}


def test_an_instance_sends_no_packets_of_its_own_making(world):
    assert run(instance(world, "api_gateway"), RAW) == ["PermissionError"] * 2


def test_an_instance_reaches_the_edge_and_no_other_service(world):
    caller, sibling = instance(world, "api_gateway"), instance(world, "auth_service")
    edge = world.machines[0].client.containers.get("azora-edge")
    reached = [
        f"{address(edge, 'azora-to-api_gateway')}:8080",
        f"{address(caller, 'azora-to-api_gateway')}:8080",
        f"{address(sibling, 'azora-to-auth_service')}:8080",
        f"{address(edge, 'azora-to-auth_service')}:8080",
        f"{address(edge, 'az-edge')}:8080",
    ]
    assert run(caller, ANSWERS, *reached) == ["200", "200", *["TimeoutError"] * 3]
    members = {name: set(world.machines[0].client.networks.get(name).attrs["Containers"]) for name in ("az-edge", "azora-to-auth_service")}
    assert members == {"az-edge": {edge.id}, "azora-to-auth_service": {edge.id, sibling.id}}


@contextlib.contextmanager
def provider(world: World) -> Iterator[None]:
    """Have a metadata service on the network that the host is in, and a neighbour of it, which is not special."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with contextlib.ExitStack() as stack:
        for number in (METADATA, NEIGHBOUR):
            ip("addr", "add", f"{number}/32", "dev", world.lan.name)
            ip("-n", world.machines[0].name, "route", "add", number, "via", f"{world.lan.prefix}.1")
            server = ThreadingHTTPServer((number, 80), Handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(ip, "-n", world.machines[0].name, "route", "del", number)
            stack.callback(ip, "addr", "del", f"{number}/32", "dev", world.lan.name)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        yield


def test_the_metadata_service_answers_the_host_and_no_instance(world):
    machine = world.machines[0]
    with provider(world):
        first, second = run(instance(world, "api_gateway"), ANSWERS, METADATA, NEIGHBOUR)
        assert (first != "200", second) == (True, "200"), first
        assert subprocess.run([*inside(machine.name), "curl", "-s", f"http://{METADATA}/"], timeout=30, check=False).returncode == 0
        ip("-n", machine.name, "rule", "del", "priority", "1")
        machine.client.containers.get("azora-wall").restart(timeout=1)  # as after a boot
        until_blocked(world)


def until_blocked(world: World) -> None:
    from tests.support.waiting import until

    until(lambda: run(instance(world, "api_gateway"), ANSWERS, METADATA) != ["200"], "the wall stands again")


def test_a_service_joins_the_networks_that_it_names_and_none_that_is_missing(world, tmp_path):
    machine = world.machines[0]
    backend = machine.client.networks.create("backend")
    api = world.config.service("api_gateway")
    usual = world.config
    try:
        for networks, error in ((("backend",), None), (("elsewhere",), "elsewhere not found")):
            changed = replace(api, networks=networks, read_only=True, cap_drop=("CHOWN",))
            world.config = replace(usual, services=tuple(changed if service is api else service for service in usual.services))
            target, release = world.target(), world.release("1.1.0", NEW)
            if error:
                with pytest.raises(NotTrueError, match=error), target.locked(Owner(NEW, "https://runs.example/2", "tests")):
                    pass
                continue
            with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
                target.deploy(release, 5)
                (new,) = (container for container in machine.containers(NEW) if "api_gateway" in container.name)
                assert set(new.attrs["NetworkSettings"]["Networks"]) == {"azora-to-api_gateway", "backend"}
                assert caged(new)["CapDrop"] == sorted([*DROPPED, "CHOWN"])
                assert run(new, MAY_WRITE) == ["Read-only file system", "yes", "yes"]
                with provider(world):
                    assert run(new, ANSWERS, METADATA)[0] != "200"
                target.abort(release, "a test")
                target.remove(NEW)
    finally:
        world.config = usual
        backend.remove()


def test_an_image_whose_user_is_not_root_has_no_capability_at_all(world):
    lan, text = world.lan, f"FROM {world.lan.registry}/api_gateway:v1.1.0\nUSER 65534:65534\n"
    lan.machines[0].client.images.build(fileobj=io.BytesIO(text.encode()), tag=f"{lan.registry}/api_gateway:nobody", rm=True)
    digest = lan.push("api_gateway", "nobody").rpartition("@")[2]
    target, release = world.target(), world.release("1.1.0", NEW)
    release = replace(release, digests={**release.digests, "api_gateway": digest})
    with target.locked(Owner(NEW, "https://runs.example/4", "tests")):
        target.deploy(release, 5)
        drops = {container.labels["world.azora.service"]: caged(container)["CapDrop"] for container in world.machines[0].containers(NEW)}
        assert drops == {"api_gateway": ["ALL"], "auth_service": DROPPED}
        target.abort(release, "a test")
        target.remove(NEW)


def test_the_doctor_says_when_the_wall_does_not_stand(world):
    wall = world.machines[0].client.containers.get("azora-wall")
    for stop, passed in ((False, True), (True, False)):
        if stop:
            wall.stop(timeout=1)
        context = world.target()._context
        (finding,) = (finding for finding in doctor.findings(context) if finding.name.endswith(": wall"))
        assert finding.passed is passed, finding
    wall.start()
    assert "may reach the metadata service" in finding.detail


def test_a_network_goes_with_the_last_instance_of_its_service(world):
    machine = world.machines[0]
    usual = world.config
    with_auth = {network.name for network in machine.client.networks.list()}
    try:
        world.config = replace(usual, services=(world.config.service("api_gateway"),))
        with world.target().locked(Owner(NEW, "https://runs.example/3", "tests")):
            assert {network.name for network in machine.client.networks.list()} == with_auth  # the old version still has it
        assert json.loads(get(machine.address, "/auth/work")[2])["service"] == "auth_service"
    finally:
        world.config = usual
