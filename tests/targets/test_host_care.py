"""How production hosts are cared for: room for both versions, edge and guard, old images, whoever comes at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci import config
from azora_ci.errors import NotTrueError
from azora_ci.targets import Release
from tests.docker_world import NEW, Lan, Load, Machine, World

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


# --- a full disk -----------------------------------------------------------------------------------------------------------


class SmallMachine(Machine):
    """A host whose Docker has an ext4 file system of its own, which can be filled."""

    def start_docker(self) -> None:
        if not os.path.ismount(self.data):
            self.data.mkdir()
            image = self.folder / "disk"
            with image.open("wb") as file:
                file.truncate(700 << 20)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, timeout=60)
            subprocess.run(["mount", "-o", "loop", image, self.data], check=True, timeout=60)
        super().start_docker()

    @property
    def data(self) -> Path:
        return self.folder / "d"

    def fill(self) -> None:
        with (self.data / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
            file.write(b"x")

    def close(self) -> None:
        (self.data / "filler").unlink(missing_ok=True)
        self.sshd.stop()
        self._stack.close()
        subprocess.run(["umount", "--lazy", self.data], check=True, timeout=60)
        super().close()


@pytest.fixture
def small_disk(network: Lan, tmp_path: Path) -> Iterator[World]:
    machine = SmallMachine(network, 8)
    made = World(network, tmp_path, services=SMALL)
    made.machines = [machine]
    made.configure()
    made.built()
    with_host_settings(made, disk_reserve="1m")
    yield made
    made.close()
    machine.close()


@pytest.mark.faults
def test_a_disk_that_fills_up_during_a_stage_takes_traffic_back(small_disk):
    world = small_disk
    machine = world.machines[0]
    world.deploy_old()
    with Load(world) as load:
        step = world.start(PROGRESSIVE_MINUTES="0.1")
        world.wait_for_weight(50, step)
        machine.fill()
        code, output = world.finish(step)
        assert code == 1, output
        assert "disk is full" in output
        assert world.versions_now() == {"1.0.0"}
        assert world.running() == {"v1.0.0": 2}
        abort = world.fragment().evidence["abort"]
        assert abort["proved"] is True, abort
        code, output = world.finish(world.start(attempt=2))  # nothing starts on a full disk
        assert code == 1, output
        assert "too little disk" in output
        assert world.running() == {"v1.0.0": 2}
        (machine.data / "filler").unlink()
        code, output = world.finish(world.start(attempt=3))
        assert code == 0, output
    assert load.failed == []
    assert world.versions_now() == {"1.1.0"}
