"""The journal in a ConfigMap: it stays small, and traffic goes back when it cannot be written."""

from __future__ import annotations

import pytest

from azora_ci.clients.kubernetes.api import ForbiddenError
from azora_ci.core.errors import NotTrueError
from azora_ci.health.traffic import Counters
from azora_ci.rollout.decision import Action, Decision
from azora_ci.rollout.report import tick_evidence
from azora_ci.targets.base import FencedError
from azora_ci.targets.kubernetes import journal as journals
from azora_ci.targets.release import Release
from tests.support.kubernetes_memory import RELEASE, World
from tests.support.kubernetes_target import owner

BAD = Release(RELEASE, "v1.1.0", {})


def text_of(world: World) -> str:
    return world.api.objects[path_of(world)]["data"]["journal"]


def path_of(world: World) -> str:
    return f"{world.names.core('configmaps')}/{world.names.journal}"


def evidence(ticks: int, failures: int = 0) -> dict[str, object]:
    """Return what a stage leaves."""
    counters = {"v1.1.0": Counters(requests=123456), "v1.0.0": Counters(requests=1234567)}
    tick = tick_evidence(1234.567, Decision(Action.WATCH, "healthy so far"), (20, 20), counters, 0)
    last_failures = {f"api-{number}": "no answer " * 30 for number in range(failures)}
    return {"stage": "canary", "ticks": ticks, "decisions": [tick] * ticks, "last_failures": last_failures, "reason": "x" * 9000}


@pytest.mark.parametrize(("ticks", "failures"), [(720, 3), (5, 500)])
def test_a_stage_leaves_a_short_line(ticks, failures):
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        world.target.finish_stage(BAD, evidence(ticks, failures))
        (stage,) = world.target.current().releases[RELEASE].stages
    assert (stage["ticks"], stage["decisions"], stage["stage"]) == (ticks, [], "canary")
    assert len(stage["last_failures"]) == (3 if failures == 3 else 0)
    assert max(len(line) for line in text_of(world).split("\n")) < journals.STAGE + 500


def test_a_long_reason_is_cut():
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        world.target.abort(BAD, "sick " * 100_000)
    assert len(text_of(world)) < 10_000
    assert world.target.current().releases[RELEASE].reason.startswith("sick sick")


def test_a_journal_without_anything_to_drop_loses_the_evidence_of_stages(monkeypatch):
    monkeypatch.setattr(journals, "LIMIT", 30_000)
    monkeypatch.setattr(journals, "KEPT", 20_000)
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        for _ in range(10):
            world.target.finish_stage(BAD, evidence(1, 30))
            assert len(text_of(world)) <= 30_000
        history = world.target.current()
    assert (history.unfinished.id, set(history.unfinished.instances)) == (RELEASE, {("api", 1)})
    assert len(history.unfinished.stages) < 10


def test_traffic_goes_back_when_the_journal_refuses():
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        world.api.refused[path_of(world)] = ForbiddenError("Refused", what="too large", where="-", next_step="-")
        with pytest.raises(NotTrueError, match="Traffic went back, but the journal could not be written: Refused: too large"):
            world.target.abort(BAD, "sick")  # an error: a run that recovers must not go round and round
    assert world.taken_back() == ["api"]
    assert world.target.notes == ["traffic goes back although the journal could not be written: Refused: too large"]
    assert world.lease["holderIdentity"] != ""  # the release is unfinished
    world.api.refused.clear()
    with world.target.locked(owner("later")):
        assert world.target.abort(BAD, "its run died").proved
    assert (world.target.current().unfinished, world.lease["holderIdentity"]) == (None, "")


def test_nothing_is_changed_when_the_lock_is_somebody_elses():
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        world.lease["holderIdentity"] = "other"
        world.api.objects[path_of(world)]["metadata"]["annotations"]["azora-ci/fence"] = "other"
        with pytest.raises(FencedError):
            world.target.abort(BAD, "sick")
    assert (world.taken_back(), world.lease["holderIdentity"]) == ([], "other")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_a_reason_may_have_any_separator_of_lines(separator):
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        world.target.abort(BAD, f"sick{separator}very")
        assert world.target.current().releases[RELEASE].reason == f"sick{separator}very"
    assert world.target.current().unfinished is None


def test_a_promotion_that_only_the_lease_has_outlives_the_next_release():
    """Its runner died between the two, nobody ran it again, and another release begins, whose promotion the lease notes in its place."""
    world = World("api")
    journal = world.target._journal
    with world.target.locked(owner(RELEASE)):
        world.begin()
        world.api.refused[path_of(world)] = ForbiddenError("Refused", what="the runner died", where="-", next_step="-")
        with pytest.raises(ForbiddenError):
            journal.promote("2026-11-24T12:00:00Z", RELEASE)
    world.api.refused.clear()
    assert "promote" not in text_of(world)
    assert (world.target.current().serving, world.target.current().unfinished) == (RELEASE, None)
    with world.target.locked(owner("later")):
        at = "2026-11-24T12:01:00Z"
        journal.add(at, "begin", "later", version="v1.2.0", digests={}, previous=RELEASE)
        journal.promote(at, "later")
    history = world.target.current()
    assert (history.serving, history.unfinished, history.releases[RELEASE].promoted_at) == ("later", None, "2026-11-24T12:00:00Z")
