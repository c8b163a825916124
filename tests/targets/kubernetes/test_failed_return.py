"""Going back when not everything is as it should be: what can go back does, and what cannot is left to Argo Rollouts, not to nobody."""

from __future__ import annotations

import pytest

from azora_ci.clients.kubernetes.api import ConflictError, ForbiddenError
from azora_ci.core.clock import parse_rfc3339
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.targets.kubernetes.rollouts import FENCE
from azora_ci.targets.release import Release
from tests.support.kubernetes_memory import RELEASE, World
from tests.support.kubernetes_target import owner

BAD = Release(RELEASE, "v1.1.0", {})


def is_taken_back_by_argo(world: World) -> bool:
    """Return whether the AnalysisTemplate's condition is false: no exemption holds, and the last renewal is long ago."""
    spec = world.lease
    return bool(spec["holderIdentity"]) and spec.get("leaseTransitions") != 1 and parse_rfc3339(spec["renewTime"]).year < 2000


def test_a_lock_is_freed_when_nothing_is_under_way():
    world = World("api")
    with world.target.locked(owner("clean")):
        pass
    assert world.lease["holderIdentity"] == ""
    with world.target.locked(owner(RELEASE)):
        world.begin()
        assert world.target.abort(BAD, "sick").proved
    assert (world.taken_back(), world.lease["holderIdentity"]) == (["api"], "")


def test_the_rollouts_that_are_there_go_back_when_one_is_missing():
    world = World("api", "web")
    with pytest.raises(NotTrueError, match="no Rollout web, but api"), world.target.locked(owner(RELEASE)):
        world.begin()
        del world.api.objects[world.path("web")]
        world.target.abort(BAD, "sick")
    assert world.taken_back() == ["api"]
    assert is_taken_back_by_argo(world)
    with world.target.locked(owner("later")):
        assert world.target.current().unfinished.id == RELEASE
        with pytest.raises(NotTrueError, match="no Rollout web"):
            world.target.abort(BAD, "its run died")
    assert is_taken_back_by_argo(world)


@pytest.mark.parametrize("refusal", [ConflictError, ForbiddenError])
def test_a_rollout_that_cannot_be_changed_keeps_none_of_the_others(refusal):
    world = World("api", "web")
    with pytest.raises(refusal), world.target.locked(owner(RELEASE)):
        world.begin()
        world.api.refused[world.path("api")] = refusal("Refused", what="-", where="-", next_step="-")
        world.target.abort(BAD, "sick")
    assert world.taken_back() == ["web"]
    assert is_taken_back_by_argo(world)


def test_a_mark_of_the_lock_that_somebody_removed_is_written_again():
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        del world.api.objects[world.path("api")]["metadata"]["annotations"][FENCE]
        assert world.target.abort(BAD, "sick").proved
    assert world.taken_back() == ["api"]


def test_what_is_on_its_way_goes_back_although_another_has_nothing_to_go_back_to():
    world = World("api", "web")
    status = world.api.objects[world.path("web")]["status"]
    status |= {"stableRS": "h2", "phase": "Healthy", "pauseConditions": None, "controllerPause": False}
    world.api.objects[f"{world.names.group('apps/v1', 'replicasets')}/kept"]["metadata"]["labels"] = {"rollouts-pod-template-hash": "h0"}
    with pytest.raises(NotTrueError, match="web: ReplicaSet h1 is gone"), world.target.locked(owner(RELEASE)):
        world.begin()
        world.target.abort(BAD, "sick")
    assert world.taken_back() == ["api"]
    assert is_taken_back_by_argo(world)


def test_a_journal_that_cannot_be_read_does_not_free_the_lock():
    world = World("api")
    with pytest.raises(BadInputError, match="another shape"), world.target.locked(owner(RELEASE)):
        world.begin()
        world.api.objects[f"{world.names.core('configmaps')}/{world.names.journal}"]["data"]["journal"] += "[]\n"
        world.target.abort(BAD, "sick")
    assert is_taken_back_by_argo(world)


def test_a_run_that_cannot_mark_everything_leaves_a_dead_runners_release_to_argo():
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
    world.api.refused[world.path("api")] = ForbiddenError("Refused", what="-", where="-", next_step="-")
    with pytest.raises(ForbiddenError), world.target.locked(owner("later")):
        pass
    assert is_taken_back_by_argo(world)


def test_a_weight_of_somebody_elses_template_is_no_proof():
    world = World("api", "web")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        web = world.api.objects[world.path("web")]
        web["spec"]["template"]["metadata"]["annotations"] = {}
        returned = world.target.abort(BAD, "sick")
    assert (world.taken_back(), returned.proved) == (["api"], False)
    assert "reads 0 on 1 of 2 Rollouts; not 0 is the weight of web: Paused at step 3, 50 % of traffic to h2" in returned.detail


@pytest.mark.parametrize("covered", [False, True])
def test_a_release_that_keeps_all_traffic_is_not_proved_to_have_none(covered):
    world = World("api")
    with world.target.locked(owner(RELEASE)):
        world.begin()
        world.target._note("instance", RELEASE, service="api", number=1, base="", hash="h2")
        api = world.api.objects[world.path("api")]
        api["status"] |= {"stableRS": "h2", "canary": {"weights": {"canary": {"weight": 0}}}}
        if covered:  # by a template of somebody else, whose weight is 0 still
            api["status"]["currentPodHash"] = "h9"
            api["spec"]["template"]["metadata"]["annotations"] = {}
        returned = world.target.abort(BAD, "sick")
    assert not returned.proved
    assert "the release itself is what is stable on api, and has its traffic" in returned.detail
