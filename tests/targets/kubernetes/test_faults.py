"""What goes wrong around a release on a real cluster: dead runners, a controller that is down, other people, missing rights."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from azora_ci.clients.kubernetes.api import ConflictError, NotFoundError
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, NotTrueError, UnreachableError
from azora_ci.rehearsal.kubernetes.cluster import CONTROLLER, Cluster
from azora_ci.targets.base import FencedError
from azora_ci.targets.kubernetes import doctor, manifests, rollouts
from azora_ci.targets.kubernetes.cluster import Names
from tests.support.kubernetes_target import World, deploy, owner
from tests.support.waiting import until

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def world(cluster: Cluster, tmp_path) -> World:
    made = World(cluster, tmp_path, services=("api_gateway",), lease_seconds=8)
    made.install()
    return made


def at(world: World, percent: int, number: int = 2):
    """Return a target that holds the lock with a release at a weight, and the context that frees it."""
    target, release = world.target(), world.release(number)
    holding = target.locked(owner(release.id))
    holding.__enter__()
    target.deploy(release, percent)
    target.set_weight(release, percent)
    return target, release, holding


def die(target) -> None:
    """Have a target do nothing any more, as a runner that was killed."""
    target._lock._ended.set()


class Ahead(Clock):
    """The clock of a runner that is wrong by ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._wrong = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return super().now() + self._wrong


@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_a_dead_runner_is_taken_back_by_the_cluster_itself(world, ahead):
    first = world.release(1)
    deploy(world, first)
    world.clock = Ahead(ahead)
    target, _, _ = at(world, 50)
    time.sleep(world.lease_seconds + 4)  # while it lives, nothing happens
    assert world.weights() == {"api_gateway": 50}
    target.observe()
    die(target)
    begun = time.monotonic()
    until(lambda: set(world.ask("api_gateway", 20)) == {"1.0.1"}, "users have the old version", world.lease_seconds + 15)
    seconds = time.monotonic() - begun
    print(f"a dead runner, {ahead} s ahead: back after {seconds:.1f} s with a lease of {world.lease_seconds} s")
    assert seconds < world.lease_seconds + 5
    until(lambda: world.weights() == {"api_gateway": 0}, "its status says so, too")
    with pytest.raises(NotTrueError, match=r"the lease of this run was not renewed in time: AnalysisRun .*: metric runner-alive is Failed"):
        target.observe()  # said of our own watch, and of no analysis of the user
    world.clock = Clock()
    later = world.target()
    until(lambda: not later.holder().alive, "the lease has run out")
    with later.locked(owner("later")):
        assert later.abort(later.current().unfinished.release, "its run died").proved
    world.wait_healthy("api_gateway")
    assert world.version("api_gateway") == "1.0.1"
    assert later.current().unfinished is None


def test_a_runner_that_dies_while_it_promotes_is_not_taken_back(world):
    deploy(world, world.release(1))
    target, second, _ = at(world, 100)

    def killed(*_, **__) -> None:
        die(target)
        raise InterruptedError

    target._fleet.await_all = killed  # after the note, before the first change
    with pytest.raises(InterruptedError):
        target.promote(second)
    time.sleep(world.lease_seconds + 8)
    assert (world.weights(), world.phase("api_gateway")) == ({"api_gateway": 100}, "Paused")
    later = world.target()
    assert (later.holder().alive, later.current().serving) == (False, second.id)
    with later.locked(owner(second.id)):
        later.promote(second)
    assert set(world.ask("api_gateway", 10)) == {"1.0.2"}


def test_a_canary_of_a_person_without_a_run_goes_on(world):
    deploy(world, world.release(1))
    change = [{"op": "add", "path": "/spec/template/metadata/annotations/person", "value": "me"}]
    world.cluster.api.patch(world.path("api_gateway"), change, "application/json-patch+json")
    until(lambda: world.phase("api_gateway") == "Paused", "the canary waits")
    time.sleep(world.lease_seconds + 4)
    assert world.phase("api_gateway") == "Paused"
    with pytest.raises(NotTrueError, match="it is not at rest"):
        world.target().plan(world.release(2))


def test_a_controller_that_is_down_is_noticed_and_what_was_asked_happens_later(world):
    deploy(world, world.release(1))
    target, second, holding = at(world, 5)
    world.cluster.kill(CONTROLLER)
    try:
        words = "✗ The Argo Rollouts controller does nothing"
        until(lambda: words in world.log.getvalue(), "it is said that the controller is down, between two ticks", 10)
        with pytest.raises(UnreachableError, match="controller does nothing"):
            target.observe()  # a tick finds nothing to pass on
        with pytest.raises(UnreachableError, match="controller does nothing"):
            target.abort(second, "the controller is down")
        assert world.weights() == {"api_gateway": 5}  # nothing moved, and nothing is said to have
    finally:
        world.cluster.restart(CONTROLLER)
    until(lambda: world.weights() == {"api_gateway": 0}, "it happens when the controller runs again")
    until(lambda: "✓ the Argo Rollouts controller runs again" in world.log.getvalue(), "its return is said")
    assert target.current().unfinished.going_back
    assert target.abort(second, "again").proved
    holding.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"status": {"pauseConditions": None}}, True, "left waiting at 5 %, and is not there any more"),
        ({"status": {"promoteFull": True}}, True, "left waiting at 5 %, and is not there any more"),
        ({"status": {"abort": True}}, True, "was taken back in the cluster"),
        (
            {"spec": {"template": {"metadata": {"annotations": {"azora-ci/deployment-id": "somebody"}}}}},
            False,
            "its template is of somebody now",
        ),
    ],
)
def test_somebody_else_is_noticed_and_everything_goes_back(world, change, status, words):
    deploy(world, world.release(1))
    target, second, holding = at(world, 5)
    world.cluster.api.patch(world.path("api_gateway") + ("/status" if status else ""), change)

    def noticed() -> bool:
        try:
            target.observe()
        except NotTrueError as error:
            return words in f"{error.title} {error.what}"
        return False

    until(noticed, words, 20)
    returned = target.abort(second, "somebody else")
    # A template of somebody's at 5 % is no traffic on the version before: it stays, and nothing is called proved.
    assert returned.proved is ("somebody" not in words), returned
    holding.__exit__(None, None, None)
    if "somebody" not in words:
        world.wait_healthy("api_gateway")
        assert set(world.ask("api_gateway", 10)) == {"1.0.1"}


def test_two_deployments_at_once_and_a_rollback_that_fences_one(world):
    deploy(world, world.release(1))
    target, second, holding = at(world, 5)
    other = world.target()
    with pytest.raises(NotTrueError, match=f"deployment {second.id} of octocat holds the lock"), other.locked(owner("other")):
        pass
    with other.locked(owner(second.id, fence="users complain")):
        assert "fenced the deployment" in world.log.getvalue()
        with pytest.raises(FencedError):
            target.deploy(second, 50)  # it would have gone on
        with pytest.raises(FencedError):
            target.finish_stage(second, {})
        with pytest.raises(FencedError):
            target.abort(second, "not even this")
        assert other.abort(second, "users complain").proved
    holding.__exit__(None, None, None)
    assert set(world.ask("api_gateway", 10)) == {"1.0.1"}


def test_who_is_slow_after_taking_the_lock_stamps_over_nobody(world):
    slow, quick = world.target(), world.target()
    with quick.locked(owner("first")):
        pass  # everything has a token
    asked, entered = slow._lock.confirm, []

    def confirm() -> None:
        asked()
        if not entered:  # between the answer and the stamp that follows it
            entered.append(quick.locked(owner("quick", fence="users complain")))
            entered[0].__enter__()

    slow._lock.confirm = confirm
    with pytest.raises(FencedError), slow.locked(owner("slow")):
        pass
    journal = world.cluster.api.get(quick._journal._path)
    for document in (world.rollout("api_gateway"), journal):
        assert document["metadata"]["annotations"][rollouts.FENCE] == quick._lock.token
    entered[0].__exit__(None, None, None)


def test_a_lost_answer_leaves_no_lock_behind(world):
    target = world.target()
    replace = target._api.replace

    def lost(*args):
        replace(*args)
        target._api.replace = replace
        raise ConflictError("changed", what="the second try of what was done", where="", next_step="")

    target._api.replace = lost
    with target.locked(owner("lost")):
        assert target.holder().owner.deployment_id == "lost"
    target._lock._stamp = lambda *_: target._api.get("/api/v1/namespaces/none/pods/none")
    with pytest.raises(NotFoundError), target.locked(owner("stamps nothing")):
        pass
    assert target.holder() is None


def test_conflicts_with_other_writers_are_tried_again_while_the_lock_is_ours(world):
    deploy(world, world.release(1))
    stop = threading.Event()

    def scribble() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with suppress(AzoraError):
                world.cluster.api.patch(
                    world.path("api_gateway"), {"metadata": {"annotations": {"other": str(number)}}, "spec": {"replicas": 2 + number % 2}}
                )
            time.sleep(0.3)

    thread = threading.Thread(target=scribble, daemon=True)
    thread.start()
    try:
        deploy(world, world.release(2))  # an autoscaler changes replicas all the while
    finally:
        stop.set()
        thread.join()
    assert set(world.ask("api_gateway", 10)) == {"1.0.2"}


def test_every_right_that_is_missing_is_named(world):
    deploy(world, world.release(1))
    assert all(finding.passed for finding in doctor.findings(world.context(world.restricted())))
    names = Names(world.config().target.kubernetes)
    lacking = tuple(str(right) for right in manifests.rights(names, proxy=True))
    poor = {finding.name: finding for finding in doctor.findings(world.context(world.restricted(without=lacking)))}
    assert poor["rights"].detail == f"missing: {', '.join(lacking)}"
    assert {"patch rollouts/status.argoproj.io", "get pods/proxy", "list replicasets.apps", "list analysisruns.argoproj.io"} < set(lacking)


def test_what_is_not_there_is_said(world):
    with pytest.raises(NotTrueError, match="has no Rollout api-gateway"):
        world.target(namespace="nowhere").plan(world.release(1))
    world.inconclusive = "abort"
    with pytest.raises(NotTrueError, match="every stage is inconclusive"):
        world.target().plan(world.release(1))


def test_the_api_server_restarts_in_the_middle(cluster, tmp_path):
    # Nothing is renewed meanwhile, and a restart takes 3 to 6 s, on a busy machine more than the lease of the other tests.
    world = World(cluster, tmp_path, services=("api_gateway",), lease_seconds=60)
    world.install()
    deploy(world, world.release(1))
    target, second, holding = at(world, 5)
    world.cluster.kill("kube-apiserver")
    said: list[str] = []

    def go_on() -> None:
        try:
            target.deploy(second, 50)
        except NotTrueError as error:
            said.append(error.title)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    world.cluster.restart("kube-apiserver")  # here, since it ends with the thread that starts it
    thread.join(60)
    # Argo's analysis may fail while no API server tells it the token: then the release goes back, which is said, and safe.
    assert said in ([], ["A Rollout was taken back in the cluster"]), said
    assert target.abort(second, "enough").proved
    assert set(world.ask("api_gateway", 10)) == {"1.0.1"}
    holding.__exit__(None, None, None)


def test_a_lock_that_a_person_takes_away_ends_its_release(world):
    deploy(world, world.release(1))
    target, second, _ = at(world, 50)
    held = world.target().unlock("its runner hangs", "octocat")
    assert (held.owner.deployment_id, held.alive) == (second.id, True)
    with pytest.raises(FencedError):
        target.finish_stage(second, {})  # at once, without having noticed
    with pytest.raises(FencedError):
        target.deploy(second, 100)
    until(lambda: world.weights() == {"api_gateway": 0}, "traffic is back", 30)
    assert world.target().holder() is None or not world.target().holder().alive


def test_a_run_that_ends_with_a_release_under_way_leaves_it_to_argo(world):
    deploy(world, world.release(1))
    target, second, holding = at(world, 50)
    holding.__exit__(None, None, None)
    assert not target.holder().alive
    until(lambda: world.weights() == {"api_gateway": 0}, "traffic is back", world.lease_seconds)
    later = world.target()
    with later.locked(owner("later")):
        assert later.abort(second, "its run failed").proved
    assert (later.holder(), later.current().unfinished) == (None, None)
