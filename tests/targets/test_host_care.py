"""How production hosts are cared for: room for both versions, edge and guard, old images, whoever comes at the same time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci import config
from azora_ci.errors import NotTrueError
from azora_ci.targets import Release
from tests.docker_world import NEW, Lan, World

SMALL = ("api_gateway",)


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[World]:
    made = World(network, tmp_path, services=SMALL)
    made.built()
    yield made
    made.close()


def with_host_settings(world: World, **changes: object) -> None:
    """Change the settings of the hosts, in the file that steps read, too."""
    before = f"edge_image = {json.dumps(world.lan.edge_image)}"
    text = world.config_path.read_text()
    assert before in text
    more = "".join(f", {name} = {json.dumps(value)}" for name, value in changes.items())
    world.config_path.write_text(text.replace(before, before + more))
    world.config = config.load(world.config_path)


# --- room ------------------------------------------------------------------------------------------------------------------


def test_too_little_disk_for_both_versions_is_refused_before_anything_starts(world):
    world.deploy_old()
    before = world.running()
    with_host_settings(world, disk_reserve="999999g")
    code, output = world.finish(world.start())
    assert code == 1, output
    assert "too little disk" in output
    assert "1,023,998,976 MiB are to stay free" in output
    assert "nothing was started" in output
    assert world.running() == before
    assert world.versions_now() == {"1.0.0"}
    target, missing = world.target(), Release(NEW, "v1.1.0", {"api_gateway": "sha256:" + "0" * 64}, {"api_gateway": 1 << 60})
    world.config = replace(world.config, services=tuple(replace(one, memory=None) for one in world.config.services))
    with pytest.raises(NotTrueError, match="1 of 1 images are to be pulled and take up to 1,649,267,441,664 MiB"):
        target.plan(missing)


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
