"""How production hosts are cared for: room for both versions, edge and guard, old images, whoever comes at the same time."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from azora_ci.core import config
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.base import Owner
from azora_ci.targets.docker_hosts.target import DockerHosts
from azora_ci.targets.release import Release
from tests.support.docker_world import HTTP_PORT, NEW, OLD, Lan, Load, World, get
from tests.support.waiting import until

SMALL = ("api_gateway",)


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[World]:
    docker_world = World(network, tmp_path, services=SMALL)
    docker_world.built()
    yield docker_world
    docker_world.close()


def with_host_settings(world: World, **changes: object) -> None:
    """Change the settings of the hosts, in the file that steps read, too."""
    before = f"edge_image = {json.dumps(world.lan.edge_image)}"
    text = world.config_path.read_text()
    assert before in text
    additions = "".join(f", {name} = {json.dumps(value)}" for name, value in changes.items())
    world.config_path.write_text(text.replace(before, before + additions))
    world.config = config.load(world.config_path)


# --- room ------------------------------------------------------------------------------------------------------------------


def test_too_little_disk_for_both_versions_is_refused_before_anything_starts(world):
    world.deploy_old()
    before = world.running()
    with_host_settings(world, disk_reserve="999999g")
    with pytest.raises(NotTrueError, match="1,023,998,976 MiB are to stay free") as refused:
        world.target().plan(world.release("1.1.0", NEW))
    assert refused.value.title == "The host has too little disk for both versions"
    assert refused.value.next_step.startswith("nothing was started; make room")
    assert world.running() == before
    assert world.versions_now() == {"1.0.0"}
    target, missing = world.target(), Release(NEW, "v1.1.0", {"api_gateway": "sha256:" + "0" * 64}, {"api_gateway": 1 << 60})
    world.config = replace(world.config, services=tuple(replace(service, memory=None) for service in world.config.services))
    with pytest.raises(NotTrueError, match="1 of 1 images are to be pulled and take up to 1,649,267,441,664 MiB"):
        target.plan(missing)


@pytest.mark.faults
def test_memory_is_counted_over_all_services_and_instances_and_what_has_no_limit_is_named(network, tmp_path):
    world = World(network, tmp_path)
    world.deploy_old()  # three instances of 256 MiB each
    stranger = world.machines[0].client.containers.run(
        world.lan.guard_image,
        ["python3", "-c", "import time; time.sleep(600)"],
        entrypoint="",
        name="stranger",
        detach=True,
        network="none",
    )
    lines = world.target().plan(world.release("1.1.0", NEW))
    total = world.machines[0].client.info()["MemTotal"] >> 20
    assert f"containers may take 1,536 MiB of {total:,} MiB of memory; without a limit, so not counted: stranger" in lines[0]
    api, auth = world.config.service("api_gateway"), world.config.service("auth_service")
    world.config = replace(world.config, services=(replace(auth, memory=None), replace(api, instances=4, memory=f"{total // 4}m")))
    with pytest.raises(NotTrueError, match=rf"may take 768 MiB, the new ones {total // 4 * 4:,} MiB.*stranger, the new auth_service"):
        world.target().plan(world.release("1.1.0", NEW))
    stranger.remove(force=True)
    assert world.running() == {"v1.0.0": 3}


# --- the port --------------------------------------------------------------------------------------------------------------


SHOP = """
from http.server import BaseHTTPRequestHandler, HTTPServer
import signal, sys
class Shop(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"version": "the old shop"}')
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
HTTPServer(("", 80), Shop).serve_forever()
"""


def shop(world: World, project: str = "shop") -> Any:
    """Start what ``docker-compose up`` starts, on the port that the edge wants."""
    client = world.machines[0].client
    for network in client.networks.list(names=["shop_default"]):
        network.remove()
    client.networks.create("shop_default")
    container = client.containers.run(
        world.lan.guard_image,
        ["python3", "-c", SHOP],
        entrypoint="",
        name="shop_web_1",
        labels={"com.docker.compose.project": project, "com.docker.compose.service": "web"},
        network="shop_default",
        ports={80: HTTP_PORT},
        restart_policy={"Name": "always"},
        detach=True,
    )
    until(lambda: versions(world) == "the old shop", "the shop answers")
    return container


def versions(world: World) -> str:
    try:
        return str(json.loads(get(world.machines[0].address, "/api/work")[2])["version"])
    except (OSError, ValueError, http.client.HTTPException) as error:
        return repr(error)


def state(container: Any) -> tuple[str, str]:
    container.reload()
    return container.status, container.attrs["HostConfig"]["RestartPolicy"]["Name"]


def test_a_port_that_is_taken_is_refused_until_its_compose_project_is_named(world):
    container = shop(world)
    names = {existing.name for existing in world.machines[0].client.containers.list(all=True)}
    code, output = world.finish(world.start())
    assert code == 1, output
    assert f"port {HTTP_PORT}: container shop_web_1 publishes it, of compose project shop; nothing was changed" in output
    assert 'set target.docker_hosts.take_over = "shop"' in output
    assert {existing.name for existing in world.machines[0].client.containers.list(all=True)} == names
    with_host_settings(world, take_over="shop")
    labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": "worker"}
    sleeping = ["python3", "-c", "import time; time.sleep(600)"]
    run = world.machines[0].client.containers.run
    worker = run(world.lan.guard_image, sleeping, entrypoint="", name="shop_worker_1", labels=labels, network="none", detach=True)
    the_new_version_takes_the_port_over(world, container)
    assert state(worker)[0] == "running"


def the_new_version_takes_the_port_over(world: World, container: Any) -> None:
    code, output = world.finish(world.start(attempt=3))
    assert code == 0, output
    assert f"port {HTTP_PORT} is taken over from compose project shop" in output
    assert "shop_worker_1 of that project go on: stop workers among them yourself, or their work is done twice" in output
    assert versions(world) == "1.1.0"
    assert state(container) == ("exited", "no")
    evidence = world.fragment(attempt=3).evidence
    assert (evidence["previous"], evidence["rollback_available"], evidence["rollout_status"]) == (None, False, "completed")
    assert any("was taken over from shop_web_1; nothing answered for at most" in note for note in evidence["notes"]), evidence["notes"]


def a_rerun_changes_nothing(world: World, container: Any) -> None:
    edge = world.machines[0].client.containers.get("azora-edge").id
    code, output = world.finish(world.start(attempt=4))
    assert code == 0, output
    assert "already promoted" in output
    assert world.machines[0].client.containers.get("azora-edge").id == edge
    assert state(container) == ("exited", "no")


@pytest.mark.faults
def test_the_old_containers_run_again_when_the_new_version_fails_or_the_edge_does_not_come_up(world):
    with_host_settings(world, take_over="shop")
    container = shop(world)
    world.flag("1.1.0.api_gateway.sick")
    code, output = world.finish(world.start(attempt=2, HEALTH_CHECK_TIMEOUT="3"))  # never ready to take over
    assert code == 1, output
    assert (state(container), versions(world)) == (("running", "always"), "the old shop")
    world.unflag("1.1.0.api_gateway.sick")
    step = world.start(FULL_MINUTES="2")
    until(lambda: versions(world) == "1.1.0" or step.poll() is not None, "the new version has the port", 60)
    world.flag("1.1.0.api_gateway.sick")
    code, output = world.finish(step)
    assert code == 1, output
    assert (state(container), versions(world)) == (("running", "always"), "the old shop")
    assert f"port {HTTP_PORT} is back with shop_web_1" in world.fragment().evidence["abort"]["detail"]
    world.unflag("1.1.0.api_gateway.sick")
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(Owner(NEW, "https://runs.example/1", "tests")):
        target.deploy(release, 100)
        target._nodes[0].edge_containers._settings = replace(world.config.target.docker_hosts, edge_image=world.lan.guard_image)
        with pytest.raises(NotTrueError, match="could not be taken over"):
            target.set_weight(release, 100)
        assert (state(container), versions(world)) == (("running", "always"), "the old shop")
        target._nodes[0].edge_containers._settings = world.config.target.docker_hosts
        port = target._nodes[0].port
        facts = [port._facts(holder) for holder in port.holders()]
        port._note("took-port", NEW, facts)
        port._stop(facts)  # and here the runner dies
    code, output = world.finish(world.start(attempt=3))
    assert code == 0, output
    assert f"port {HTTP_PORT} is back with shop_web_1" in output
    assert (state(container), versions(world)) == (("exited", "no"), "1.1.0")
    a_rerun_changes_nothing(world, container)
    world.machines[0].restart_docker()
    until(lambda: versions(world) == "1.1.0", "the new version has the port after a restart, too")
    assert state(container) == ("exited", "no")


# --- edge ------------------------------------------------------------------------------------------------------------------


def at_the_keyboard(world: World, *words: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "azora_ci", *words, "--config", str(world.config_path)]
    completed = subprocess.run(argv, env=world.environ(9), cwd=world.folder, capture_output=True, text=True, timeout=120, check=False)
    return completed.returncode, completed.stdout + completed.stderr


def another_edge_image(lan: Lan) -> str:
    client = lan.machines[0].client
    container = client.containers.create(lan.edge_image)
    container.commit(repository=f"{lan.registry}/edge", tag="another", changes="LABEL made=later")
    container.remove()
    return lan.push("edge", "another")


@pytest.mark.faults
def test_an_edge_that_is_configured_anew_is_tried_and_replaced_with_its_weights(world):
    world.deploy_old()
    client = world.machines[0].client
    first_edge = client.containers.get("azora-edge").id
    before = world.config_path.read_text()
    world.config_path.write_text(before.replace(world.lan.edge_image, world.lan.guard_image))  # no Envoy in it
    with Load(world) as load:
        code, output = at_the_keyboard(world, "edge", "install")
        assert code == 1, output
        assert "The new edge does not come up" in output
    assert (load.failed, client.containers.get("azora-edge").id) == ([], first_edge)
    image = another_edge_image(world.lan)
    world.config_path.write_text(before.replace(world.lan.edge_image, image))
    assert "which is not what is configured" in at_the_keyboard(world, "edge", "status")[1]
    world.config = config.load(world.config_path)
    with world.target().locked(Owner(OLD, "https://runs.example/1", "alice", fence="checkout fails")):  # a rollback has other worries
        assert client.containers.get("azora-edge").id == first_edge
    with Load(world) as load:
        code, output = at_the_keyboard(world, "edge", "install")
        assert code == 0, output
        assert "the edge was replaced by the configured one; nothing answered for at most" in output
        until(lambda: load.answers[-1][0] == 200, "users are served")
    assert f"the edge runs {image}, as configured" in at_the_keyboard(world, "edge", "status")[1]
    assert load.versions.keys() == {"1.0.0"}
    assert {container.name for container in client.containers.list(all=True)} >= {"azora-edge"}
    assert not [container for container in client.containers.list(all=True) if container.name in {"azora-edge-next", "azora-edge-trial"}]
    second_edge = client.containers.get("azora-edge").id
    assert second_edge != first_edge
    client.containers.get("azora-edge").rename("azora-edge-next")  # the runner died before the last step
    client.containers.create(image, name="azora-edge-trial")
    assert at_the_keyboard(world, "edge", "install")[0] == 0
    assert client.containers.get("azora-edge").id == second_edge
    assert {container.name for container in client.containers.list(all=True) if container.name.startswith("azora-edge")} == {"azora-edge"}


# --- removal ---------------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_what_is_superseded_is_removed_with_its_images_and_never_the_rollback_target(world):
    client = world.machines[0].client
    world.deploy_old()
    target = world.target()
    releases = [world.release("1.1.0", NEW), Release("1764000200-cccccc", "v1.0.0", world.digests("1.0.0"))]
    for release in releases:
        with target.locked(Owner(release.id, "https://runs.example/1", "tests")):
            target.deploy(release, 100)
            target.set_weight(release, 100)
            target.promote(release)
    images = {version: f"{world.lan.registry}/api_gateway@{world.digests(version)['api_gateway']}" for version in ("1.0.0", "1.1.0")}
    code, output = at_the_keyboard(world, "clean", "--window-minutes", "0")
    assert code == 0, output
    assert f"✓ removed v1.0.0 ({OLD}): 2 instances" in output
    assert f"v1.1.0 ({NEW}) is the rollback target: 2 instances" in output
    assert {release.id: len(world.machines[0].containers(release.id)) for release in releases} == {release.id: 2 for release in releases}
    assert all(client.images.get(image) for image in images.values())  # the first one is what serves again
    fourth = Release("1764000300-dddddd", "v1.0.0", world.digests("1.0.0"))
    with target.locked(Owner(fourth.id, "https://runs.example/1", "tests")):
        target.deploy(fourth, 100)
        target.set_weight(fourth, 100)
        target.promote(fourth)
    assert at_the_keyboard(world, "clean", "--window-minutes", "0")[0] == 0
    assert world.running() == {"v1.0.0": 4}
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get(images["1.1.0"])
    assert client.images.get(images["1.0.0"])


# --- two at once -----------------------------------------------------------------------------------------------------------


def test_two_deployments_at_once_over_the_same_hosts_in_different_order(network, tmp_path):
    world = World(network, tmp_path, 2, services=SMALL)
    near, far = (machine.address for machine in world.machines)
    with world.target(PROD_HOST=far).locked(Owner(OLD, "https://runs.example/1", "somebody")):
        with pytest.raises(NotTrueError, match="somebody"), world.target().locked(Owner(NEW, "https://runs.example/2", "me")):
            pass
        assert world.target(PROD_HOST=near).holder() is None  # what was locked first was given back
    assert [machine.containers() for machine in world.machines] == [[], []]
    targets = {OLD: world.target(PROD_HOST=f"{near},{far}"), NEW: world.target(PROD_HOST=f"{far},{near}")}
    with targets[OLD].connected(), targets[NEW].connected():
        for _ in range(3):
            outcomes = dict.fromkeys(targets, "")
            threads = [threading.Thread(target=try_to_lock, args=(name, target, outcomes)) for name, target in targets.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert sorted(outcomes.values()) == ["locked", "refused"]


def try_to_lock(name: str, target: DockerHosts, outcomes: dict[str, str]) -> None:
    try:
        with target.locked(Owner(name, "https://runs.example/1", name)):
            outcomes[name] = "locked"
            until(lambda: all(outcomes.values()), "the other one has tried")
    except NotTrueError:
        outcomes[name] = "refused"


@pytest.mark.faults
def test_a_first_deployment_whose_runner_dies_keeps_serving_and_a_rerun_finishes(world):
    step = world.start(FULL_MINUTES="5")
    until(lambda: versions(world) == "1.1.0" or step.poll() is not None, "the first version answers", 60)
    os.killpg(step.pid, signal.SIGKILL)
    step.wait()
    deadline = time.monotonic() + world.lease + 3
    while time.monotonic() < deadline:  # nothing was before it that its guard could put back
        assert versions(world) == "1.1.0"
        time.sleep(0.1)
    code, output = world.finish(world.start(attempt=2))
    assert code == 0, output
    assert "taking traffic back first" in output
    assert (versions(world), world.running()) == ("1.1.0", {"v1.1.0": 2})


@pytest.mark.faults
def test_a_guard_whose_new_image_is_nowhere_stays_and_a_rollback_does_not_ask_for_it(world):
    world.deploy_old()
    client = world.machines[0].client
    first_guard = client.containers.get("azora-guard").id
    text = world.config_path.read_text()
    repository = world.lan.guard_image.partition("@")[0]
    world.config_path.write_text(text.replace(world.lan.guard_image, f"{repository}@sha256:{'0' * 64}"))
    world.config = config.load(world.config_path)
    with pytest.raises(NotTrueError), world.target().locked(Owner(NEW, "https://runs.example/2", "alice")):
        pass
    with world.target().locked(Owner(OLD, "https://runs.example/1", "alice", fence="checkout fails")):
        assert world.target().holder().owner.fence == "checkout fails"
    guard = client.containers.get("azora-guard")
    assert (guard.id, guard.status) == (first_guard, "running")
