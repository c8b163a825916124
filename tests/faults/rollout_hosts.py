"""Hosts of unusual kinds: a dockerd with live-restore, a guard whose wall clock can be set, a disk that can be filled."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from azora_ci.core import config
from tests.support.docker_world import Lan, Machine, World

# All containers of a machine share its clock, and a test may not set that: so the guard's Python is told another time than the
# kernel's. Only the wall clock: CLOCK_MONOTONIC does not move when a clock is set, and the lease is timed by it.
SKEWED = """
import datetime, pathlib

class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        try:
            seconds = float(pathlib.Path("/edge/clock-offset").read_text())
        except (OSError, ValueError):
            seconds = 0.0
        return super().now(tz) + datetime.timedelta(seconds=seconds)

datetime.datetime = Skewed
"""


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


@contextmanager
def host_of_kind(kind: str, world: World) -> Iterator[None]:
    """Have a first host of this kind in the world; "" is the usual one."""
    if kind == "live-restore":
        with live_restore(world):
            yield
    elif kind == "clock":
        usual_image, world.lan.guard_image = world.lan.guard_image, skewable_guard(world.lan)
        world.config = config.load(world.configure())
        try:
            yield
        finally:
            world.lan.guard_image = usual_image
    elif kind == "small disk":
        with small_disk(world):
            yield
    else:
        assert not kind
        yield


@contextmanager
def live_restore(world: World) -> Iterator[None]:
    """Have a dockerd with ``--live-restore``: its own proxy of published ports ends with it, rules of the firewall stay."""
    machine = world.machines[0]
    machine.options = ["--live-restore"]
    machine.restart_docker()
    try:
        yield
    finally:
        machine.reset()
        machine.options = list(type(machine).options)
        machine.restart_docker()


@contextmanager
def small_disk(world: World) -> Iterator[None]:
    """Have a host whose disk can be filled, and a configuration that asks for little room."""
    machine = SmallMachine(world.lan, 8)
    world.machines, world.host_settings = [machine], {"disk_reserve": "1m"}
    try:
        yield
    finally:
        machine.close()


def skewable_guard(lan: Lan) -> str:
    """Return the reference of a guard's image whose wall clock follows the file ``clock-offset`` on the edge's volume."""
    context = io.BytesIO()
    dockerfile = f"FROM {lan.registry}/guard:local\nCOPY sitecustomize.py /skew/\nENV PYTHONPATH=/skew\n"
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, text in (("Dockerfile", dockerfile), ("sitecustomize.py", SKEWED)):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    context.seek(0)
    lan.machines[0].client.images.build(fileobj=context, custom_context=True, tag=f"{lan.registry}/skewed-guard:local", rm=True)
    return lan.push("skewed-guard")
