"""The causes in the table of rollout faults: each breaks something real.

A cause is a function of the ``Scene`` it breaks. Permanent damage is repaired by ``scene.mends``, which run before the rerun.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker.errors

from azora_ci.core import config
from azora_ci.targets.base import Owner
from tests.faults.rollout_hosts import SmallMachine
from tests.faults.rollout_users import Users
from tests.support.docker_world import NEW, OLD, Machine, World, ip
from tests.support.sshd import keygen
from tests.support.waiting import until


@dataclass
class Scene:
    """A world in which something is broken: the step that runs, its settings, and when it broke."""

    world: World
    users: Users
    settings: dict[str, str]
    mends: list[Callable[[], object]] = field(default_factory=list)
    step: subprocess.Popen[str] | None = None
    broke: float = 0.0

    @property
    def near(self) -> Machine:
        return self.world.machines[0]

    @property
    def far(self) -> Machine:
        return self.world.machines[-1]

    def running_step(self) -> subprocess.Popen[str]:
        assert self.step is not None
        return self.step

    def log(self) -> str:
        """Return what the step has logged so far."""
        path = self.world.folder / "job-1" / "gradual-rollout.log"
        return path.read_text() if path.exists() else ""

    def answers(self, *versions: str) -> None:
        """Wait until users of the first host get these versions, and nothing else."""
        until(lambda: self.users.versions([self.near]) == set(versions), f"users get {' and '.join(versions)}", 60)

    def mend(self) -> None:
        """Undo what is broken."""
        for mend in reversed(self.mends):
            mend()
        self.mends.clear()


Cause = Callable[[Scene], None]


# --- connections to the hosts ----------------------------------------------------------------------------------------------


def sshd_away(seconds: float) -> Cause:
    """Stop the sshd of the last host, connections too, and start it after so many seconds."""

    def cause(scene: Scene) -> None:
        scene.far.sshd.stop()
        time.sleep(seconds)
        scene.far.sshd.start()

    return cause


def sshd_gone(scene: Scene) -> None:
    """Stop the sshd of the last host."""
    scene.mends.append(scene.far.sshd.start)
    scene.far.sshd.stop()


def black_hole(scene: Scene) -> None:
    """Have the last host drop every packet from and to the runner: nothing is closed or refused, it is silence."""
    route = ("route", "add", "blackhole", f"{scene.world.lan.prefix}.1/32")
    scene.mends.append(lambda: ip("-n", scene.far.name, "route", "del", *route[2:]))
    ip("-n", scene.far.name, *route)


def other_host_key(scene: Scene) -> None:
    """Pin a key that is not the host's."""
    stranger = keygen(scene.world.folder / "stranger").with_suffix(".pub").read_text().split()[:2]
    scene.settings["PROD_KNOWN_HOSTS"] = f"{scene.near.address} {' '.join(stranger)}\n"
    scene.mends.append(lambda: scene.settings.pop("PROD_KNOWN_HOSTS"))


def other_key(scene: Scene) -> None:
    """Come with a key that the host does not know."""
    scene.settings["PROD_KEY"] = keygen(scene.world.folder / "stranger").read_text()
    scene.mends.append(lambda: scene.settings.pop("PROD_KEY"))


# --- the host --------------------------------------------------------------------------------------------------------------


def kill_main_process(container: docker.models.containers.Container) -> None:
    container.reload()
    os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)


def killed(name: str) -> Cause:
    """Kill the main process (SIGKILL) of ``azora-edge`` or ``azora-guard``; dockerd starts it again."""

    def cause(scene: Scene) -> None:
        container = scene.near.client.containers.get(name)

        def is_back() -> bool:
            container.reload()
            return container.status == "running" and container.attrs["RestartCount"] > 0

        kill_main_process(container)
        until(is_back, f"{name} runs again")
        scene.answers("1.0.0", "1.1.0")  # with the same weights: users get both

    return cause


def new_instance_crashes(scene: Scene) -> None:
    """Kill the main process (SIGKILL) of a new instance; dockerd starts it again at once."""
    kill_main_process(scene.near.containers(NEW)[0])


def new_instance_gone(scene: Scene) -> None:
    """Kill a new instance (SIGKILL) by Docker's own command, which leaves it dead."""
    scene.near.containers(NEW)[0].kill()


def docker_restarted(scene: Scene) -> None:
    """Stop dockerd and start it again; its configuration decides what happens to containers."""
    addresses = {
        container.name: next(iter(container.attrs["NetworkSettings"]["Networks"].values()))["IPAddress"]
        for container in scene.near.containers()
    }
    scene.near.restart_docker()
    until(lambda: len(scene.near.containers()) == len(addresses), "the instances run")
    new_addresses = {
        container.name: next(iter(container.attrs["NetworkSettings"]["Networks"].values()))["IPAddress"]
        for container in scene.near.containers()
    }
    assert new_addresses == addresses
    scene.answers("1.0.0", "1.1.0")


def old_instance_stopped(scene: Scene) -> None:
    """Stop one of several old instances."""
    scene.near.containers(OLD)[0].stop(timeout=1)


def clock_off(seconds: float) -> Cause:
    """Have the wall clock of the first host's guard go wrong by so many seconds; the monotonic one goes on, as when a clock is set.

    All containers of a machine share its clock, so the guard's Python is wrapped (``Lan.skewable_guard``) and reads the offset here.
    """

    def cause(scene: Scene) -> None:
        file = scene.near.folder / "d/volumes/azora-edge/_data/clock-offset"
        scene.mends.append(lambda: file.unlink(missing_ok=True))
        file.write_text(f"{seconds}")

    return cause


def disk_filled(scene: Scene) -> None:
    """Fill the disk of the first host's Docker to the last byte."""
    machine = scene.near
    assert isinstance(machine, SmallMachine)
    scene.mends.append((machine.data / "filler").unlink)
    machine.fill()


# --- releases --------------------------------------------------------------------------------------------------------------


def flags(*names: str) -> Cause:
    """Have services misbehave, see ``tests/support/sample_service.py``."""

    def cause(scene: Scene) -> None:
        for name in names:
            scene.world.flag(name)
            scene.mends.append(lambda name=name: scene.world.unflag(name))

    return cause


def flags_until_logged(text: str, *names: str) -> Cause:
    """Have services misbehave until the step logs a text."""

    def cause(scene: Scene) -> None:
        flags(*names)(scene)
        until(lambda: text in scene.log(), f"the step says: {text}")
        scene.mend()

    return cause


def image_missing(scene: Scene) -> None:
    """Have the build's fragment name images that the registry does not have."""
    path = scene.world.folder / "received" / f"build-logs-{NEW}" / "record" / "build-and-push.json"
    original = path.read_text()
    document = json.loads(original)
    for service in document["evidence"]["services"].values():
        service["digest"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(document))
    scene.mends.append(lambda: path.write_text(original))


# --- the runner ------------------------------------------------------------------------------------------------------------


def signal_sent(number: signal.Signals) -> Cause:
    """Cancel the run as GitHub does: this signal, and SIGTERM a moment later."""

    def cause(scene: Scene) -> None:
        step = scene.running_step()
        step.send_signal(number)
        until(lambda: scene.world.edge_state(scene.near)["percent"] == 0, "old weights", 5)
        step.send_signal(signal.SIGTERM)

    return cause


def all_of(*causes: Cause) -> Cause:
    """Apply several causes one after the other."""

    def cause(scene: Scene) -> None:
        for part in causes:
            part(scene)

    return cause


def lose(step: subprocess.Popen[str]) -> None:
    """Kill a runner and its connections as a machine that vanishes does."""
    for pid in [step.pid, *descendants(step.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    step.wait()


def descendants(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return [*children, *(descendant for child in children for descendant in descendants(child))]


def runner_lost(scene: Scene) -> None:
    """Kill the runner, and wait for the guard."""
    lose(scene.running_step())
    world = scene.world
    until(lambda: world.edge_state(scene.near)["percent"] == 0, "the guard goes back by itself", world.lease + 5)


def runners_lost(*seeds: int) -> Cause:
    """Kill one run after the other, each at a moment chosen by its seed: after each, one version soon has all traffic."""

    def cause(scene: Scene) -> None:
        world = scene.world
        for number, seed in enumerate(seeds):
            step = world.start(attempt=100 + number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                step.wait(random.Random(seed).uniform(0.2, 7.0))
            lose(step)
            until(lambda: len(scene.users.versions(world.machines)) == 1, f"one version after seed {seed}", world.lease + 5)
            history = world.target().current()
            if history.serving == NEW:  # it was promoted: the next run must have something to do
                target = world.target()
                with target.locked(Owner(NEW, "https://runs.example/9", "alice", fence="for the next seed")):
                    target.abort(world.release("1.1.0", NEW), "for the next seed")

    return cause


OTHER = "1764000050-dddddd"


def lock_held(scene: Scene) -> None:
    """Have another run hold the lock."""
    held = scene.world.target().locked(Owner(OTHER, "https://runs.example/7", "somebody"))
    held.__enter__()
    scene.mends.append(lambda: held.__exit__(None, None, None))


def lock_left(scene: Scene) -> None:
    """Have another deployment's runner die with the lock: others are refused by name until it expires, which takes two leases."""
    world = scene.world
    build = world.folder / "received" / f"build-logs-{NEW}" / "record" / "build-and-push.json"
    other = world.folder / "received" / f"build-logs-{OTHER}" / "record" / "build-and-push.json"
    other.parent.mkdir(parents=True)
    other.write_text(build.read_text().replace(NEW, OTHER))
    world.flag("1.1.0.hang")
    step = world.start(attempt=50, DEPLOYMENT_ID=OTHER)
    until(lambda: scene.near.containers(OTHER), "it has the lock, and an instance that does not become healthy", 60)
    lose(step)
    world.unflag("1.1.0.hang")
    code, output = world.finish(world.start(attempt=51))
    assert code == 1, output
    assert f"deployment {OTHER}" in output
    until(lambda: world.target().holder() is None, "the lock expires", 2 * world.lease + 5)


# --- settings --------------------------------------------------------------------------------------------------------------


@contextmanager
def configured(world: World, *, lease: float, rollout: dict[str, object]) -> Iterator[World]:
    """Have another configuration."""
    world.lease = lease
    world.rollout |= rollout
    world.config = config.load(world.configure())
    yield world
