"""Workers beside web services, as processes: their share of the stages, their rest, their return, and what ends them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.rollback import previous_version
from azora_ci.targets.base import Owner
from tests.support.edge_world import NEW, OLD, World

OWNER = Owner(NEW, "https://runs.example/2", "tests")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    production = World(tmp_path, instances=1, workers={"mailer": {"instances": 4, "depends_on": ["api_gateway"]}})
    production.built()
    try:
        production.deploy_old()
        yield production
    finally:
        production.close()


def events(world: World) -> list[str]:
    """Return what the workers noted, oldest first: "starts 1.0.0", "ends 1.0.0"."""
    return [line.rpartition(" ")[0] for line in (world.flags / "mailer.log").read_text().splitlines()]


def test_a_worker_follows_the_stages_rests_after_the_promotion_and_comes_back(world):
    code, output = world.finish(world.start("gradual_rollout"))
    assert code == 0, output
    evidence = world.fragment().evidence
    counts = [sum(name.startswith("mailer#") for name in stage["instances"]) for stage in evidence["stages"]]
    assert counts == [1, 2, 4]
    assert "mailer 1" in output
    assert events(world) == ["starts 1.0.0"] * 4 + ["starts 1.1.0"] * 4 + ["ends 1.0.0"] * 4  # old ones run until the promotion
    assert world.running_workers() == {"v1.1.0": 4}
    assert world.running() == {"v1.0.0": 2, "v1.1.0": 2}
    kept = [instance.name for instance in world.target().instances(OLD) if instance.worker]
    assert kept == [f"mailer#{number} v1.0.0, at rest" for number in range(3, 7)]
    assert "not-to-be-seen" not in output
    it_goes_back(world)


def it_goes_back(world: World) -> None:
    target = world.target()
    before = target.current().releases[OLD]
    looked = previous_version.look(target, world.config, world.clock, before=before, leaving=NEW)
    assert (looked.sick, looked.resting, looked.healthy) == ((), 4, 2)
    with target.locked(OWNER):
        returned = target.abort(world.release("1.1.0", NEW), "a test")
    assert returned.proved
    assert "its workers run again: mailer#3 v1.0.0, mailer#4 v1.0.0" in returned.detail
    assert events(world)[-8:] == ["ends 1.1.0"] * 4 + ["starts 1.0.0"] * 4  # never both
    assert {line.rpartition(" ")[2] for line in (world.flags / "mailer.log").read_text().splitlines()} == {"secret-14"}
    assert (world.running_workers(), world.running()) == ({"v1.0.0": 4}, {"v1.0.0": 2})
