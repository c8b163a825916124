"""Jobs of a release, which run once per deployment, on real processes: what passes, what fails, what a later run finds."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.process import send_signal
from azora_ci.targets.local_processes import claims
from tests.support.edge_world import NEW, World
from tests.support.waiting import until

BEFORE, AFTER = "before-rollout", "after-rollout"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    once = {"kind": "job", "command": ["once.py"], "stop_grace_seconds": 2}
    jobs = {"seed": once, "warm": {**once, "when": AFTER, "timeout_seconds": 60, "secrets": []}}
    world = World(tmp_path, instances=1, workers=jobs)
    try:
        world.deploy_old()
        world.built()
        yield world
    finally:
        world.close()


def stamps(world: World, service: str, event: str = "start") -> list[str]:
    """Return the versions of a job that started, or came to their end, in order."""
    path = world.flags / f"{service}.stamps"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [version for name, version, *_ in lines if name == event]


def rollout(world: World, attempt: int = 1, **variables: str) -> tuple[int, str]:
    return world.finish(world.start("gradual_rollout", attempt, **variables))


def waiting(world: World, service: str, attempt: int = 1) -> subprocess.Popen[str]:
    """Start a rollout whose job goes on until its flag goes, and return when the job runs."""
    world.flag(f"1.1.0.{service}.wait")
    step = world.start("gradual_rollout", attempt)
    until(lambda: stamps(world, service) == ["1.1.0"], f"{service} runs", 60)
    return step


def test_jobs_run_once_at_their_moments_and_are_evidence(world):
    code, output = rollout(world)
    assert code == 0, output
    evidence = world.fragment().evidence
    assert [(job["service"], job["when"], job["exit_code"], job["passed"]) for job in evidence["jobs"]] == [
        ("seed", BEFORE, 0, True),
        ("warm", AFTER, 0, True),
    ]
    assert evidence["jobs"][0]["log_tail"] == "seed 1.1.0 works; its secret has 14 characters"
    assert "14 characters" in (world.folder / "job-1" / evidence["jobs"][0]["log"]).read_text()
    assert output.index("job seed of v1.1.0 was started") < output.index("--- canary: 5 %")
    assert output.index("v1.1.0 is promoted") < output.index("job warm of v1.1.0 was started")
    code, output = rollout(world, attempt=2)
    assert code == 0, output
    assert "is not run again" in output
    assert (stamps(world, "seed"), stamps(world, "warm")) == (["1.1.0"], ["1.1.0"])
    assert world.fragment(attempt=2).evidence["jobs"] == evidence["jobs"]


def test_a_job_that_fails_before_the_rollout_ends_it_before_anything_has_traffic(world):
    world.flag("1.1.0.seed.fail")
    code, output = rollout(world)
    assert code == 1, output
    assert "Job seed failed" in output
    assert "it goes wrong" in output
    evidence = world.fragment().evidence
    assert (evidence["rollout_status"], evidence["stages"], evidence["abort"]["stage"]) == ("rolled_back", [], "job seed")
    assert (evidence["jobs"][0]["exit_code"], evidence["jobs"][0]["passed"]) == (3, False)
    assert world.versions_now(5) == {"1.0.0"}
    world.unflag("1.1.0.seed.fail")
    code, output = rollout(world, attempt=2)
    assert code == 1, output  # it is said again, and not run again
    assert stamps(world, "seed") == ["1.1.0"]


def test_a_job_that_fails_after_the_promotion_leaves_the_version(world):
    world.flag("1.1.0.warm.fail")
    code, output = rollout(world)
    assert code == 1, output
    assert "v1.1.0 stays, with 100 % of traffic" in output
    fragment = world.fragment()
    assert (fragment.status, fragment.evidence["rollout_status"], fragment.evidence["abort"]) == ("failed", "completed", None)
    assert fragment.evidence["rollback_available"] is True
    assert fragment.error is not None
    assert fragment.error["title"] == "Job warm failed"
    assert world.versions_now(5) == {"1.1.0"}


def test_a_job_that_takes_too_long_is_ended(world):
    world.workers["seed"]["timeout_seconds"] = 1
    world.configure_edge()
    world.flag("1.1.0.seed.wait")
    code, output = rollout(world)
    assert code == 1, output
    job = world.fragment().evidence["jobs"][0]
    assert (job["exit_code"], job["passed"], job["reason"]) == (143, False, "no end within 1 s: it was ended")
    assert stamps(world, "seed", "stop") == ["1.1.0"]


def test_a_later_run_waits_for_a_job_whose_run_died(world):
    waiting(world, "seed").kill()
    step = world.start("gradual_rollout", attempt=2)
    until(lambda: "waiting for its end" in log_of(world, 2), "the second run waits", 60)
    world.unflag("1.1.0.seed.wait")
    code, output = world.finish(step)
    assert code == 0, output
    assert stamps(world, "seed") == ["1.1.0"]
    assert world.fragment(attempt=2).evidence["jobs"][0]["exit_code"] == 0


def log_of(world: World, attempt: int) -> str:
    path = world.folder / f"job-{attempt}" / "gradual-rollout.log"
    return path.read_text() if path.exists() else ""


def test_a_job_of_which_nothing_is_left_is_not_started_again(world):
    world.flag("1.1.0.seed.deaf")
    waiting(world, "seed").kill()
    job = world.target().current().releases[NEW].jobs["seed"]
    process = claims.owner(job)
    assert process is not None
    send_signal(process["pid"], signal.SIGKILL)
    code, output = rollout(world, attempt=2)
    assert code == 1, output
    assert "may have done all of its work, some or none" in output
    assert stamps(world, "seed") == ["1.1.0"]
    assert world.versions_now(5) == {"1.0.0"}


def test_a_cancelled_run_ends_its_job_and_says_so(world):
    step = waiting(world, "seed")
    step.send_signal(signal.SIGTERM)
    code, output = world.finish(step)
    assert code == 1, output
    fragment = world.fragment()
    assert (fragment.status, fragment.evidence["rollout_status"]) == ("cancelled", "cancelled")
    assert "it still ran when its release was taken back, and was ended" in fragment.evidence["abort"]["detail"]
    assert stamps(world, "seed", "stop") == ["1.1.0"]
