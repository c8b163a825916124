"""Workers beside web services, as processes: their share of the stages, their rest, their return, and what ends them."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from azora_ci.record import fragments
from azora_ci.rollback import previous_version
from azora_ci.targets.base import Owner
from azora_ci.targets.local_processes.target import LocalProcesses
from azora_ci.targets.release import Release
from tests.support.edge_world import NEW, OLD, World

OWNER = Owner(NEW, "https://runs.example/2", "tests")
THIRD = "1764000200-cccccc"


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


def resting(world: World, release: str) -> int:
    return sum(instance.resting for instance in world.target().instances(release))


def test_a_worker_follows_the_stages_rests_after_the_promotion_and_comes_back(world):
    code, output = world.finish(world.start("gradual_rollout"))
    assert code == 0, output
    evidence = world.fragment().evidence
    counts = [sum(name.startswith("mailer#") for name in stage["instances"]) for stage in evidence["stages"]]
    assert counts == [1, 2, 4]
    assert "new instances: auth_service 1, api_gateway 1, mailer 2" in output
    assert "those of v1.0.0 run until the promotion" in output
    assert events(world) == ["starts 1.0.0"] * 4 + ["starts 1.1.0"] * 4 + ["ends 1.0.0"] * 4
    assert (world.running_workers(), world.running()) == ({"v1.1.0": 4}, {"v1.0.0": 2, "v1.1.0": 2})
    assert "stopped, and started again by going back: mailer#3 v1.0.0, at rest, mailer#4" in evidence["notes"][-1]
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
    assert events(world)[-8:] == ["ends 1.1.0"] * 4 + ["starts 1.0.0"] * 4
    assert {line.rpartition(" ")[2] for line in (world.flags / "mailer.log").read_text().splitlines()} == {"secret-14"}
    assert (world.running_workers(), world.running()) == ({"v1.0.0": 4}, {"v1.0.0": 2})


def test_a_worker_that_ends_at_once_gets_no_release_any_traffic(world):
    world.flag("1.1.0.mailer.ends")
    code, output = world.finish(world.start("gradual_rollout"))
    assert code == 1, output
    assert "A new worker did not become healthy" in output
    assert "does not run, its process has ended" in output
    assert "mailer 1.1.0 starts with []" in output  # the end of its log
    assert world.fragment().evidence["stages"] == []
    nothing_but_the_old_version_runs(world)


def nothing_but_the_old_version_runs(world: World) -> None:
    assert "ends 1.0.0" not in events(world)
    assert (world.running_workers(), world.running()) == ({"v1.0.0": 4}, {"v1.0.0": 2})
    assert resting(world, OLD) == 0
    assert world.versions_now(5) == {"1.0.0"}


def test_a_worker_that_ends_at_50_percent_takes_the_release_back(world):
    step = world.start("gradual_rollout", PROGRESSIVE_MINUTES="1")
    world.wait_for_weight(50, step)
    world.flag("1.1.0.mailer.ends")
    code, output = world.finish(step)
    assert code == 1, output
    assert "worker mailer not healthy" in output
    evidence = world.fragment().evidence
    ended = r"mailer#[34] v1\.1\.0 failed 3 of 3 probes in a row \(does not run, its process has ended\)"  # both do, within a moment
    assert re.search(ended, evidence["abort"]["reason"])
    assert (evidence["rollout_status"], evidence["abort"]["proved"]) == ("rolled_back", True)
    nothing_but_the_old_version_runs(world)


def test_a_cancelled_run_leaves_the_old_workers_alone(world):
    step = world.start("gradual_rollout", PROGRESSIVE_MINUTES="1")
    world.wait_for_weight(50, step)
    step.send_signal(signal.SIGINT)
    code, output = world.finish(step)
    assert code == 1, output
    assert world.fragment().status == "cancelled"
    nothing_but_the_old_version_runs(world)


def test_a_runner_that_is_killed_leaves_no_worker_behind_once_it_is_rerun(world):
    step = world.start("gradual_rollout", PROGRESSIVE_MINUTES="1")
    world.wait_for_weight(50, step)
    step.kill()
    world.finish(step)
    assert world.running_workers() == {"v1.0.0": 4, "v1.1.0": 2}
    code, output = world.finish(world.start("gradual_rollout", 2))
    assert code == 0, output
    assert events(world)[4:] == [*["starts 1.1.0"] * 2, *["ends 1.1.0"] * 2, *["starts 1.1.0"] * 4, *["ends 1.0.0"] * 4]
    assert (world.running_workers(), resting(world, OLD)) == ({"v1.1.0": 4}, 4)


# --- a runner that dies between two steps ----------------------------------------------------------------------------------


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of the run happens after it."""


Death = Callable[[LocalProcesses, pytest.MonkeyPatch], None]


def before_any_stop(target: LocalProcesses, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(target._runner, "stop", lambda *_: die())


def after_the_stop(target: LocalProcesses, patch: pytest.MonkeyPatch) -> None:
    stop = target._runner.stop

    def stop_and_die(instances, meanwhile):
        stop(instances, meanwhile)
        die()

    patch.setattr(target._runner, "stop", stop_and_die)


def before_a_start(target: LocalProcesses, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(target._runner, "resume", lambda _: die())


def after_a_start(target: LocalProcesses, patch: pytest.MonkeyPatch) -> None:
    resume = target._runner.resume

    def resume_and_die(facts):
        resume(facts)
        die()

    patch.setattr(target._runner, "resume", resume_and_die)


def die() -> None:
    raise KilledError


def promoted(world: World) -> None:
    target = world.target()
    with target.locked(OWNER):
        target.deploy_without_stages(world.release("1.1.0", NEW))


def built_release(world: World) -> Release:
    """Return the release that build-and-push has left to the step."""
    fragment = fragments.read(world.folder / "received" / f"build-logs-{NEW}" / "record" / "build-and-push.json")
    return Release(NEW, "v1.1.0", {name: built["digest"] for name, built in fragment.evidence["services"].items()})


@pytest.mark.parametrize("death", [before_any_stop, after_the_stop])
def test_a_promotion_that_was_cut_off_is_finished_by_the_next_run(world, monkeypatch, death):
    target, release = world.target(), built_release(world)
    with target.locked(OWNER), monkeypatch.context() as patch:
        target.deploy(release, 100)
        target.set_weight(release, 100)
        death(target, patch)
        with pytest.raises(KilledError):
            target.promote(release)
    assert world.target().current().serving == NEW
    code, output = world.finish(world.start("gradual_rollout", 2))
    assert code == 0, output
    assert "already promoted" in output
    assert (world.running_workers(), resting(world, OLD)) == ({"v1.1.0": 4}, 4)


@pytest.mark.parametrize("death", [before_any_stop, after_the_stop, before_a_start, after_a_start])
@pytest.mark.parametrize("follower", ["the same again", pytest.param("the next deployment", marks=pytest.mark.faults)])
def test_a_way_back_that_was_cut_off_is_finished_by_whoever_comes_next(world, monkeypatch, death, follower):
    promoted(world)
    target = world.target()
    with target.locked(OWNER), monkeypatch.context() as patch:
        death(target, patch)
        with pytest.raises(KilledError):
            target.abort(world.release("1.1.0", NEW), "a test")
    assert world.target().current().serving == OLD
    target = world.target()
    with target.locked(OWNER):
        if follower == "the same again":
            assert target.abort(world.release("1.1.0", NEW), "a test").proved
        else:
            target.deploy(world.release("1.2.0", THIRD), 5)
    running = world.running_workers()
    assert running.pop("v1.2.0", 0) == (follower == "the next deployment")
    assert (running, resting(world, OLD)) == ({"v1.0.0": 4}, 0)
    old = [event for event in events(world) if event == "starts 1.0.0"]
    assert len(old) == 8  # four at first, four after the way back: none was started twice
    assert events(world).index("ends 1.1.0") < max(number for number, event in enumerate(events(world)) if event == "starts 1.0.0")


def test_an_old_worker_that_ends_after_its_return_is_said(world):
    promoted(world)
    world.flag("1.0.0.mailer.ends")
    target = world.target()
    with target.locked(OWNER):
        returned = target.abort(world.release("1.1.0", NEW), "a test")
    assert not returned.proved
    assert "mailer#3 v1.0.0 ended after its return; mailer#4 v1.0.0 ended" in returned.detail


def test_an_old_worker_that_cannot_start_again_is_named_before_anything_moves_and_after(world):
    promoted(world)
    target = world.target()
    for facts in target.current().releases[OLD].instances.values():
        if facts.get("kind") == "worker":
            Path(facts["kept"]).unlink()
    before = target.current().releases[OLD]
    looked = previous_version.look(target, world.config, world.clock, before=before, leaving=NEW)
    assert len(looked.sick) == 4
    assert "mailer#3 v1.0.0, at rest: it cannot be started again" in looked.sick[0]
    with target.locked(OWNER):
        returned = target.abort(world.release("1.1.0", NEW), "a test")
    assert not returned.proved
    assert "mailer#3 v1.0.0 does not start again" in returned.detail
    assert world.versions_now(5) == {"1.0.0"}


def test_what_starts_workers_again_is_for_this_user_alone_and_goes_with_the_release(world):
    promoted(world)
    kept = [facts["kept"] for facts in world.target().current().releases[OLD].instances.values() if "kept" in facts]
    assert len(kept) == 4
    assert {Path(path).stat().st_mode & 0o777 for path in kept} == {0o600}
    target = world.target()
    with target.locked(OWNER):
        target.remove(OLD)
    assert not any(Path(path).exists() for path in kept)
