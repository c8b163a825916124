"""Calls from service to service, through a real edge: each version's callers reach their own version, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from azora_ci.targets.base import Owner
from tests.support.docker_world import NEW, OLD, Lan, Load, World

CALL = """
import http.client, json, sys
for pair in sys.argv[2:]:
    name, _, address = pair.partition("@")
    for _ in range(int(sys.argv[1])):
        try:
            connection = http.client.HTTPConnection(address or name, timeout=5)
            connection.request("GET", "/auth/work", headers={"host": name})
            answer = connection.getresponse()
            print(json.loads(answer.read())["version"] if answer.status == 200 else f"HTTP {answer.status}")
        except OSError as error:
            print(type(error).__name__)
"""


@pytest.fixture
def world(network: Lan, tmp_path: Any) -> Iterator[World]:
    docker_world = World(network, tmp_path)
    api = replace(docker_world.config.service("api_gateway"), talks_to=("auth_service",))
    docker_world.config = replace(docker_world.config, services=(docker_world.config.service("auth_service"), api))
    yield docker_world
    docker_world.close()


def called(world: World, release: str, service: str, *names: str, times: int = 5) -> set[str]:
    """Return what the instances of a release get from what they call by these names."""
    answers = set()
    for container in world.machines[0].containers(release):
        if container.labels["world.azora.service"] == service:
            code, output = container.exec_run(["python3", "-c", CALL, str(times), *names])
            assert code == 0, output
            answers |= set(output.decode().split("\n")) - {""}
    return answers


def test_callers_of_each_version_reach_their_own_version_alone(world):
    names = ("auth_service", "auth-service", "auth_service:80")
    world.deploy_old()
    assert called(world, OLD, "api_gateway", *names) == {"1.0.0"}
    assert called(world, OLD, "api_gateway", "api_gateway", times=1) == {"gaierror"}
    edge = world.machines[0].client.containers.get("azora-edge").attrs["NetworkSettings"]["Networks"]
    from_callee = called(world, OLD, "auth_service", f"auth_service@{edge['azora-to-auth_service']['IPAddress']}")
    assert from_callee <= {"ConnectionResetError", "RemoteDisconnected"}  # it talks to nobody
    target, release = world.target(), world.release("1.1.0", NEW)
    with Load(world) as load, target.locked(Owner(NEW, "https://runs.example/2", "tests")):
        target.deploy(release, 5)
        target.set_weight(release, 5)
        for percent in (5, 100):
            assert called(world, OLD, "api_gateway", *names) == {"1.0.0"}
            assert called(world, NEW, "api_gateway", *names) == {"1.1.0"}
            target.deploy(release, 100)
            target.set_weight(release, percent)
        (callee,) = (
            container for container in world.machines[0].containers(NEW) if container.labels["world.azora.service"] == "auth_service"
        )
        callee.stop(timeout=1)
        assert called(world, NEW, "api_gateway", *names, times=1) == {"HTTP 503"}  # not the other version
        assert called(world, OLD, "api_gateway", *names) == {"1.0.0"}
        callee.start()
        caller = next(container for container in world.machines[0].containers(NEW) if container.id != callee.id)
        caller.exec_run(["python3", "-c", CALL, "50000", "auth_service"], detach=True)
        returned = target.abort(release, "a test")  # what one of its instances asks another is no user's request
        assert (returned.to, returned.requests_after) == ("v1.0.0", 0)
    assert called(world, OLD, "api_gateway", *names) == {"1.0.0"}
    assert load.failed == []


def test_the_health_of_a_new_instance_may_depend_on_what_it_calls(world):
    """An instance's calls are taken before it is healthy, and before users are led to its release."""
    target, release = world.target(), world.release("1.0.0", OLD)
    node_seen: list[set[str]] = []
    with target.locked(Owner(OLD, "https://runs.example/1", "tests")):
        node = target._nodes[0].node
        usual = node.await_health

        def await_health(services: list[str], release: Any) -> None:
            if "api_gateway" in services:
                node_seen.append(called(world, OLD, "api_gateway", "auth_service"))
            usual(services, release)

        node.await_health = await_health  # looks from inside at the moment that matters
        target.deploy(release, 100)
    assert node_seen == [{"1.0.0"}]
