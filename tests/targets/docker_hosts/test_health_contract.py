"""Containers that answer ``{"status": "ok"}`` and name no version: the digest that runs, and the edges of the hosts, prove it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from azora_ci.health.answers import NEW as NEW_SIDE
from tests.support.docker_world import NEW, OLD, Lan, Load, Machine, World, get


class Plain(World):
    health: ClassVar[dict[str, Any]] = {"healthy": ["ok"], "version_from": "image"}


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[Plain]:
    plain = Plain(network, tmp_path, 2, services=("api_gateway",))
    plain.built()
    for version in ("1.0.0", "1.1.0"):
        plain.flag(f"{version}.plain")
    yield plain
    plain.close()


def test_two_hosts_prove_the_version_of_what_names_none(world):
    world.deploy_old()
    first = [world.edge_state(machine)["secret"] for machine in world.machines]
    with Load(world) as load:
        code, output = world.finish(world.start())
    assert code == 0, output
    assert load.failed == []
    proofs = [stage["version_proof"] for stage in world.fragment().evidence["stages"]]
    assert proofs == [{"api_gateway": {"instances": "image", "public": "edge"}}] * 3
    secrets = [world.edge_state(machine)["secret"] for machine in world.machines]
    assert len(set(secrets)) == 1, "any host may answer in public"
    assert secrets[0] not in first, "each deployment has its own"
    artifacts = output + "".join(path.read_text() for path in (world.folder / "job-1").rglob("*") if path.is_file())
    assert secrets[0] not in artifacts
    assert secrets[0] not in str(get(world.machines[0].address, "/api/health"))
    another_image_under_the_name_of_an_instance_is_refused(world)


def another_image_under_the_name_of_an_instance_is_refused(world: World) -> None:
    machine = world.machines[1]
    target = world.target()
    with target.connected():
        instances = [instance for instance in target.instances(NEW) if instance.host == machine.alias]
        assert [target.endpoint(instance, NEW_SIDE).observed for instance in instances] == ["v1.1.0"] * 2
        replace_image(machine, instances[0].address, world.lan.digests["1.0.0"]["api_gateway"])
        assert [target.endpoint(instance, NEW_SIDE).observed for instance in instances] == ["of another digest", "v1.1.0"]
        remove(machine, instances[1].address)
        assert target.endpoint(instances[1], NEW_SIDE).observed == "of another digest"
        assert {target.endpoint(instance, NEW_SIDE).observed for instance in target.instances(OLD)} == {"v1.0.0"}


def at(machine: Machine, address: str) -> Any:
    for container in machine.containers():
        for network in container.attrs["NetworkSettings"]["Networks"].values():
            if network["IPAddress"] == address.partition(":")[0]:
                return container
    raise AssertionError(address)


def replace_image(machine: Machine, address: str, digest: str) -> None:
    """Have a container of another image with the name and the address of an instance."""
    container = at(machine, address)
    ((network, settings),) = container.attrs["NetworkSettings"]["Networks"].items()
    name, image = container.name, container.labels["world.azora.image"].partition("@")[0]
    container.remove(force=True)
    api = machine.client.api
    endpoint = api.create_endpoint_config(ipv4_address=settings["IPAddress"])
    networks = api.create_networking_config({network: endpoint})
    api.start(api.create_container(f"{image}@{digest}", name=name, networking_config=networks, environment={"FLAGS": "/"}))


def remove(machine: Machine, address: str) -> None:
    at(machine, address).remove(force=True)
