"""Two applications on one host: each has an edge, a guard with its lock, networks and instances of its own, and touches no other's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.base import Owner
from tests.support import load
from tests.support.docker_world import HTTP_PORT, NEW, OLD, Lan, World

SHOP_PORT = HTTP_PORT + 1
OF_THE_SHOP = NEW  # two repositories may have one id


class Shop(World):
    """Another application on the machines of a world, which is not reset."""

    def __init__(self, other: World, folder: Path, **settings: Any) -> None:
        folder.mkdir()
        self.__dict__ |= {**vars(other), "folder": folder, "host_settings": settings}
        self.config_path = self.configure()
        self.config = config.load(self.config_path)


def containers(world: World) -> set[str]:
    return {container["Names"][0].lstrip("/") for container in world.machines[0].client.api.containers()}


def deploy(world: World, version: str, deployment_id: str) -> None:
    target, release = world.target(), world.release(version, deployment_id)
    with target.locked(Owner(deployment_id, "https://runs.example/2", "tests")):
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)


def versions(world: World, port: int) -> set[str]:
    answers = [load.get((world.machines[0].address, port), path) for path in world.paths for _ in range(10)]
    return {json.loads(body)["version"] if status == 200 else f"HTTP {status}" for status, _, body in answers}


def test_two_applications_share_a_host_and_nothing_else(network: Lan, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    world = World(network, tmp_path / "first", services=("auth_service",))
    world.deploy_old()
    before = containers(world)
    shop = Shop(world, tmp_path / "shop", name="shop", http_port=SHOP_PORT)
    deploy(shop, "1.1.0", OF_THE_SHOP)
    assert (versions(world, HTTP_PORT), versions(shop, SHOP_PORT)) == ({"1.0.0"}, {"1.1.0"})
    of_the_shop = containers(world) - before
    assert before <= containers(world)
    assert {"shop-edge", "shop-guard", f"shop-auth_service-{OF_THE_SHOP}-1"} <= of_the_shop
    assert all(name.startswith("shop-") for name in of_the_shop)

    # Each has a history and a lock of its own.
    with world.target().locked(Owner(NEW, "https://runs.example/3", "tests")), shop.target().connected():
        other = shop.target()
        with other.locked(Owner("1764000009-5e0e5e", "https://runs.example/4", "tests")):
            assert set(other.current().releases) == {OF_THE_SHOP}
    assert set(world.target().current().releases) == {OLD}

    # A deployment of one, and going back, change nothing of the other.
    left_alone = {name for name in containers(world) if name.startswith("shop-")}
    deploy(world, "1.1.0", NEW)
    target = world.target()
    with target.locked(Owner(NEW, "https://runs.example/3", "tests")):
        assert target.abort(world.release("1.1.0", NEW), "a test").proved
        target.remove(NEW)
    assert (versions(world, HTTP_PORT), versions(shop, SHOP_PORT)) == ({"1.0.0"}, {"1.1.0"})
    assert {name for name in containers(world) if name.startswith("shop-")} == left_alone


@pytest.mark.parametrize("name", ["other", "azora"])
def test_the_port_of_another_application_is_not_taken(network: Lan, tmp_path: Path, name: str) -> None:
    (tmp_path / "first").mkdir()
    world = World(network, tmp_path / "first", services=("auth_service",))
    shop = Shop(world, tmp_path / "shop", name="shop")
    deploy(shop, "1.0.0", OF_THE_SHOP)
    second = Shop(world, tmp_path / "second", name=name)
    target = second.target()
    with pytest.raises(NotTrueError, match="port is taken") as caught, target.locked(Owner(NEW, "https://runs.example/3", "tests")):
        target.plan(second.release("1.1.0", NEW))
    assert "container shop-edge publishes it" in caught.value.what
    assert "http_port" in caught.value.next_step
    assert versions(shop, HTTP_PORT) == {"1.0.0"}
