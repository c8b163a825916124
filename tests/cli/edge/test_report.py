"""``edge status`` counts instances by host and reports a release that was taken back on some hosts only."""

from __future__ import annotations

from azora_ci.cli.edge import report
from azora_ci.health.traffic import Counters
from azora_ci.targets.base import Instance, Observation
from azora_ci.targets.journal import ABORTED, PROMOTED, Deployed, History

OLD, NEW = "1764000000-aaaaaa", "1764000100-bbbbbb"
NEAR, FAR = "10.0.0.1", "10.0.0.2"


def history(serving: str, *, going_back: bool = False, outcome: str = PROMOTED) -> History:
    old = Deployed(OLD, "v1.0.0", {}, None, PROMOTED)
    new = Deployed(NEW, "v1.1.0", {}, OLD, outcome, percent=100, going_back=going_back)
    return History({OLD: old, NEW: new}, serving)


def instances(release: str, version: str, *hosts: str) -> tuple[Instance, ...]:
    return tuple(Instance(release, version, "api", number, "10.1.0.9:80", host) for number, host in enumerate(hosts))


def observation(**weights: dict[str, int]) -> Observation:
    return Observation({("api", NEW): Counters(requests=3)}, {route.replace("_", " "): clusters for route, clusters in weights.items()})


def test_instances_are_counted_by_host_where_there_are_several():
    releases = {OLD: instances(OLD, "v1.0.0", NEAR, FAR, FAR), NEW: instances(NEW, "v1.1.0", NEAR)}
    text = report.text(history(NEW), observation(api={f"api-{NEW}": 100}), releases)
    assert f"v1.0.0 ({OLD}, rollback target): 3 instances (1 on {NEAR}, 2 on {FAR})" in text
    assert f"v1.1.0 ({NEW}, stable): 1 instances" in text.splitlines()
    assert "rollback --deployment-id" not in text
    releases[OLD] += (Instance(OLD, "v1.0.0", "mailer", 7, "", worker=True, resting=True),)
    assert ", 1 of them workers at rest" in report.text(history(NEW), observation(), releases)


def test_a_release_that_still_serves_somewhere_is_named_with_the_command_that_finishes_it():
    page = report.text(history(OLD, going_back=True), observation(a={f"api-{OLD}": 100}, b={f"api-{NEW}": 100}), {})
    assert f"✗ v1.1.0 ({NEW}, goes back) was taken back, but not everywhere." in page
    assert f'python -m azora_ci rollback --deployment-id {NEW} --reason "…"' in page
    assert "goes back" in next(line for line in page.splitlines() if line.startswith("b "))


def test_a_rollout_whose_way_back_was_cut_off_is_no_rollback():
    left = history(OLD, going_back=True, outcome=ABORTED)
    assert "is under way, or its run died: 100 %" in report.text(left, observation(a={f"api-{OLD}": 100}), {})
