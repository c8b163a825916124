"""Hosts that are made in another way than the rest: a dockerd with live-restore, a guard whose wall clock can be set."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from azora_ci import config
from tests.docker_world import Lan, World

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


@contextmanager
def made_as(kind: str, world: World) -> Iterator[None]:
    """Have the world's first host made in that way; "" is as usual."""
    if kind == "live-restore":
        with live_restore(world):
            yield
    elif kind == "clock":
        before, world.lan.guard_image = world.lan.guard_image, skewable_guard(world.lan)
        world.config = config.load(world.configure())
        try:
            yield
        finally:
            world.lan.guard_image = before
    else:
        assert not kind
        yield


@contextmanager
def live_restore(world: World) -> Iterator[None]:
    """Have a dockerd with ``--live-restore``, and with iptables: its own proxy of published ports ends with it, rules stay."""
    machine = world.machines[0]
    machine.options = ["--live-restore", "--iptables=true", "--ip-forward=true"]
    machine.restart_docker()
    try:
        yield
    finally:
        machine.reset()
        machine.options = list(type(machine).options)
        machine.restart_docker()


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
