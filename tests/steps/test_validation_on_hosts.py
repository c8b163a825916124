"""pre-deployment-validation asks a production host with a real dockerd and sshd for what gradual-rollout would miss there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from azora_ci.steps.runner import execute
from tests.steps.test_pre_deployment_validation import World as Gates
from tests.steps.test_pre_deployment_validation import edge, site, world  # noqa: F401 - fixtures
from tests.support import deploy_config
from tests.support.docker_world import HTTP_PORT, Lan, Machine, lan

ONES = "sha256:" + "1" * 64


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    with lan(tmp_path_factory.mktemp("lan")) as made:
        yield made


@pytest.fixture
def gates(request: pytest.FixtureRequest) -> Gates:
    made: Gates = request.getfixturevalue("world")
    return made


@pytest.fixture
def machine(network: Lan) -> Machine:
    machine = network.more(1)[0]
    machine.reset()
    return machine


def validate(gates: Gates, network: Lan, machine: Machine, registry: str, old_version: str = "true", **changes: Any) -> int:
    """Run the step for a release to the machine. ``changes``: keys of [target.docker_hosts] and ``memory`` of the service."""
    service = deploy_config.service("API", f"http://{machine.address}:{HTTP_PORT}/health", memory=changes.pop("memory", "64m"))
    hosts = {"edge_image": network.edge_image, "guard_image": network.guard_image, "http_port": HTTP_PORT, **changes}
    (gates.folder / "Dockerfile").write_text("FROM scratch\n")
    gates.sections = {
        "public_url": f"http://{machine.address}:{HTTP_PORT}",
        "smoke": {"endpoints": [{"name": "health", "url": f"http://{machine.address}:{HTTP_PORT}/health"}]},
        "services": {"api_gateway": service},
        "target": {"kind": "docker_hosts", "docker_hosts": hosts},
        "edge": None,
        "registry": {"repository": f"{registry}/azora", "insecure": True},
        "migrations": {"command": ["true"], "old_version": {"read": ["/"]}},
    }
    access = {"PROD_HOST": machine.address, "PROD_USER": machine.sshd.user, "PROD_KEY": machine.sshd.key}
    access["VARIABLES"] = json.dumps({"MIGRATIONS_OLD_VERSION": old_version, "CANARY_MINUTES": "5"})
    return execute("pre-deployment-validation", gates.environment() | access | {"PROD_KNOWN_HOSTS": machine.sshd.known_hosts})


def containers(machine: Machine) -> list[str]:
    return [container.name for container in machine.client.containers.list(all=True)]


def test_a_host_that_lacks_nothing_before_its_first_deployment(gates: Gates, network: Lan, machine: Machine, docker_registry: str) -> None:
    assert validate(gates, network, machine, docker_registry) == 0, gates.error
    looked_at = {check["name"] for check in gates.evidence["checks"] if check["kind"] == "target" and check["passed"]}
    wanted = ("connection", "host key", "Docker", "clock", "memory and disk", "port", "images of edge and guard", "guard", "edge", "wall")
    assert {f"host-1: {name}" for name in wanted} <= looked_at
    assert gates.evidence["checks"][-1]["passed"] is False  # nothing answers yet, which is a note
    assert containers(machine) == []
    assert machine.address not in gates.log


def test_everything_that_a_host_lacks_is_reported_at_once(gates: Gates, network: Lan, machine: Machine, docker_registry: str) -> None:
    total = machine.client.info()["MemTotal"] >> 20
    missing = f"{network.registry}/guard@{ONES}"
    stranger = machine.client.containers.run(
        network.guard_image, ["python3", "-m", "http.server", "80"], entrypoint="", name="stranger", detach=True, ports={80: HTTP_PORT},
        network=machine.client.networks.create("strangers").name,
    )  # fmt: skip
    try:
        assert validate(gates, network, machine, docker_registry, memory=f"{total + 1}m", guard_image=missing, old_version="") == 1
        problems = {problem["where"]: problem["what"] for problem in gates.evidence["problems"]}
        assert "too little memory for both versions" in problems["host-1: memory and disk"]
        assert "container stranger publishes it" in problems["host-1: port"]
        assert missing in problems["host-1: images of edge and guard"]
        assert "no login to pull what is in production" in problems["MIGRATIONS_OLD_VERSION"]
        assert containers(machine) == ["stranger"]
    finally:
        stranger.remove(force=True)
        machine.client.networks.get("strangers").remove()


def test_a_host_that_nobody_reaches_is_reported_beside_the_rest(
    gates: Gates,
    network: Lan,
    machine: Machine,
    private_registry: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(machine, "address", f"127.0.0.1:{silent.getsockname()[1]}")
        silent.close()
        assert validate(gates, network, machine, private_registry) == 1
    said = json.dumps(gates.evidence["problems"])
    assert "host-1: connection" in said
    assert "Production host cannot be reached" in said
    assert "login: none is set" in said
