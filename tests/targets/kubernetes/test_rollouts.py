"""What a Rollout's document says, and which Rollouts cannot be driven."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from azora_ci.core.config import KubernetesSettings, RolloutNames
from azora_ci.targets.kubernetes import pods, rollouts
from azora_ci.targets.kubernetes.returning import read_back, serving_pods

NAMES = RolloutNames("web", "app", "web-stable", "web-canary")
SETTINGS = KubernetesSettings("shop", {"web": NAMES})
STEPS = [{"setWeight": 5}, {"pause": {}}, {"setWeight": 50}, {"pause": {}}, {"setWeight": 100}, {"pause": {}}]

WATCH = {"templates": [{"templateName": "azora-runner-alive"}]}


def document(canary: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    strategy = {
        "steps": STEPS,
        "stableService": "web-stable",
        "canaryService": "web-canary",
        "trafficRouting": {"nginx": {}},
        "analysis": WATCH,
    }
    spec = {
        "replicas": 4,
        "strategy": {"canary": strategy | (canary or {})},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "old"}]}},
    }
    return {"metadata": {"name": "web", "generation": 3, "annotations": {}}, "spec": spec | more, "status": {"observedGeneration": "3"}}


def with_status(**status: Any) -> rollouts.RolloutState:
    made = document()
    made["status"] |= status
    return rollouts.state(made)


def test_a_status_of_an_older_spec_is_not_believed():
    paused = {"phase": "Paused", "currentStepIndex": 1, "pauseConditions": [{"reason": "CanaryPauseStep"}], "controllerPause": True}
    weights = {"canary": {"weights": {"canary": {"weight": 5}, "stable": {"weight": 95}}}}
    assert with_status(**paused, **weights).held_at(5)
    assert not with_status(**paused, **weights).held_at(50)
    assert not with_status(**paused, **weights, observedGeneration="2").held_at(5)
    assert not with_status(**paused, canary={"weights": {"canary": {"weight": 0}}}).held_at(5)  # traffic has not moved yet
    promoted = with_status(**{**paused, "pauseConditions": None}, **weights)
    assert not promoted.settled  # somebody has just ended the pause
    assert promoted.owed


def test_an_abort_that_the_controller_did_not_take_is_not_safe():
    asked = with_status(abort=True, phase="Degraded", stableRS="a", currentPodHash="b", canary={"weights": {"canary": {"weight": 0}}})
    assert (asked.aborted, asked.safe, asked.owed) == (False, False, True)
    done = with_status(abort=True, abortedAt="2026-11-24T11:00:00Z", phase="Degraded", canary={"weights": {"canary": {"weight": 0}}})
    assert (done.aborted, done.safe, done.owed) == (True, True, False)
    assert not with_status(abort=True, abortedAt="2026-11-24T11:00:00Z", canary={"weights": {"canary": {"weight": 5}}}).safe


def test_a_weight_that_nobody_says_or_verified_is_not_read_back():
    paused = {"phase": "Paused", "currentStepIndex": 1, "pauseConditions": [{"reason": "CanaryPauseStep"}], "controllerPause": True}
    back = {"abort": True, "abortedAt": "2026-11-24T11:00:00Z", "stableRS": "a", "currentPodHash": "b"}
    doubted = {"canary": {"weights": {"canary": {"weight": 0}, "verified": False}}}
    assert not with_status(**paused).held_at(5)
    assert not with_status(**paused, canary={"weights": {"canary": {"weight": 5}, "verified": False}}).held_at(5)
    assert with_status(**paused, canary={"weights": {"canary": {"weight": 5}, "verified": True}}).held_at(5)
    for status in ({}, doubted):
        seen = with_status(**back, **status)
        assert not seen.safe
        assert read_back({"web": seen}, 0, "1-a", {}) == (
            "the weight of the new version reads 0 on 0 of 1 Rollouts; the weight of web cannot be read back",
            False,
        )
    finished = {"phase": "Healthy", "stableRS": "a", "currentPodHash": "a"}
    assert not with_status(**finished).safe
    assert with_status(**finished, canary={"weights": {"canary": {"weight": 0}}}).safe


def test_a_change_of_somebody_else_that_has_no_traffic_yet_is_no_proof():
    weights = {"canary": {"weights": {"canary": {"weight": 0}}}}
    theirs = with_status(phase="Progressing", stableRS="a", currentPodHash="c", **weights)
    told, proved = read_back({"web": theirs}, 0, "1-a", {"web": "b"})
    assert not proved
    assert "a change of somebody else is under way on web, and its traffic moves by itself" in told
    taken_back = with_status(abort=True, abortedAt="2026-11-24T11:00:00Z", stableRS="a", currentPodHash="c", **weights)
    assert read_back({"web": taken_back}, 0, "1-a", {"web": "b"})[1]
    never_stable = with_status(phase="Progressing", currentPodHash="c", **weights)  # a service that is new, and not begun with
    assert read_back({"web": never_stable}, 0, "1-a", {})[1]


def test_pods_of_what_is_not_routed_serve_as_long_as_they_are_ready():
    made = document({"stableService": None, "canaryService": None, "trafficRouting": None})
    made["spec"]["template"]["metadata"]["annotations"] = {rollouts.RELEASE: "1-a"}
    made["status"] |= {"abort": True, "abortedAt": "2026-11-24T11:00:00Z", "stableRS": "a", "currentPodHash": "b"}
    seen = rollouts.state(made)
    assert seen.safe  # as far as its status goes
    assert serving_pods({"web": seen}, {}, "1-a") == {"b"}
    assert serving_pods({"web": seen}, {"web": "c"}, "2-b") == {"c"}
    assert serving_pods({"web": with_status(stableRS="a", currentPodHash="b")}, {"web": "b"}, "1-a") == set()  # routed: its weight is read
    assert read_back({"web": seen}, 2, "1-a", {}) == ("traffic of web is not routed: 2 pods of the new version are ready", False)
    assert read_back({"web": seen}, 0, "1-a", {})[1]


def test_a_rollout_with_our_steps_has_no_obstacle():
    assert list(rollouts.obstacles(document(), NAMES, SETTINGS)) == []
    fine = {"trafficRouting": {"nginx": {}, "maxTrafficWeight": 100}, "analysis": WATCH | {"dryRun": [{"metricName": "latency"}]}}
    assert list(rollouts.obstacles(document(fine), NAMES, SETTINGS)) == []
    inline = [*STEPS[:2], {"analysis": {"templates": []}}, {"setCanaryScale": {"weight": 60}}, *STEPS[2:]]
    assert list(rollouts.obstacles(document({"steps": inline}), NAMES, SETTINGS)) == []
    (remark, *_) = rollouts.remarks(document({"steps": inline}), NAMES, 60)
    assert "analysis, setCanaryScale, which Argo takes by itself" in remark


@pytest.mark.parametrize(
    ("canary", "more", "words"),
    [
        ({"steps": STEPS[:4]}, {}, "its steps pause at 5 %, 50 %; our stages need"),
        ({"steps": []}, {}, "its steps pause at no weight"),
        ({"steps": [{"setWeight": 20}, *STEPS[1:]]}, {}, "pause at 20 %, 50 %, 100 %"),
        ({"steps": [STEPS[0], {"pause": {"duration": 60}}, *STEPS[2:]]}, {}, "step 1 is a pause that ends by itself"),
        ({"analysis": {}}, {}, "python -m azora_ci edge install adds it"),
        ({"analysis": {"startingStep": 2, "templates": [{"templateName": "azora-runner-alive"}]}}, {}, "edge install adds it"),
        ({"stableService": "other"}, {}, "stableService is other, target.kubernetes says web-stable"),
        ({"trafficRouting": None}, {}, "trafficRouting is missing"),
        ({"trafficRouting": {"nginx": {}, "maxTrafficWeight": 1000}}, {}, "maxTrafficWeight is 1000"),
        ({"analysis": WATCH | {"dryRun": [{"metricName": "other"}, {"metricName": ".*"}]}}, {}, "analysis.dryRun covers the metric"),
        ({"analysis": WATCH | {"dryRun": [{"metricName": "\\pL+"}]}}, {}, "analysis.dryRun covers the metric"),  # not read by Python
        ({"antiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": {"weight": 1}}}, {}, "canary.antiAffinity changes what"),
        ({}, {"paused": True}, "somebody stopped it"),
        ({}, {"revisionHistoryLimit": 0}, "nothing would be left to go back to"),
        ({}, {"workloadRef": {"kind": "Deployment"}}, "move the template into the Rollout"),
        ({}, {"strategy": {"blueGreen": {}}}, "its strategy is not canary"),
        ({}, {"template": {"spec": {"containers": [{"name": "sidecar"}]}}}, "has no container app, but sidecar"),
    ],
)
def test_what_cannot_be_driven_is_named(canary, more, words):
    problems = list(rollouts.obstacles(document(canary, **more), NAMES, SETTINGS))
    assert len(problems) == 1, problems
    assert words in problems[0]


def test_what_goes_back_slowly_is_said():
    (short,) = rollouts.remarks(document(revisionHistoryLimit=3), NAMES, 60)
    assert "runs for 30 s after the promotion" in short
    assert "write scaleDownDelaySeconds: 3600" in short
    assert list(rollouts.remarks(document({"scaleDownDelaySeconds": 3600}), NAMES, 60)) == []
    (few,) = rollouts.remarks(document({"scaleDownDelaySeconds": 3600}, revisionHistoryLimit=1), NAMES, 60)
    assert "write revisionHistoryLimit: 2 or more" in few
    (pods, cold) = rollouts.remarks(document(), RolloutNames("web", "app"), 60)
    assert "shares are those of its 4 pods" in pods
    assert "runs for 0 s" in cold
    assert "without trafficRouting nothing keeps it warm" in cold


@pytest.mark.parametrize(
    ("canary", "replicas", "noted", "until"),
    [
        ({}, 2, "2026-11-24T11:00:40Z", "2026-11-24T11:00:40Z"),  # the controller has noted it
        ({}, 2, None, "2026-11-24T11:00:30Z"),
        ({"scaleDownDelaySeconds": 600}, 2, None, "2026-11-24T11:10:00Z"),
        ({}, 0, "2026-11-24T11:00:40Z", "2026-11-24T11:00:00Z"),  # its pods are stopped already
        ({"trafficRouting": None}, 2, None, "2026-11-24T11:00:00Z"),  # they are replaced, and not kept
    ],
)
def test_until_when_the_version_before_runs_is_what_the_cluster_keeps(canary, replicas, noted, until):
    replica_set = {"metadata": {"annotations": {rollouts.SCALE_DOWN: noted} if noted else {}}, "spec": {"replicas": replicas}}
    assert rollouts.runs_until(replica_set, document(canary), datetime(2026, 11, 24, 11, tzinfo=UTC)) == until


def test_a_patch_changes_one_container_and_keeps_its_other_variables():
    made = document()
    containers = made["spec"]["template"]["spec"]["containers"]
    containers[0]["env"] = [{"name": "KEEP", "valueFrom": {}}, {"name": "VERSION", "value": "0"}]
    before = copy.deepcopy(made)
    given = {"DEPLOYMENT_ID": "1-a", "SERVICE": "web", "VERSION": "1.2.3"}
    patch = rollouts.start(made, "token", 0, "new", given)
    assert made == before
    changes = {each["path"]: each["value"] for each in patch if each["op"] != "test"}
    names = [each["name"] for each in changes["/spec/template/spec/containers/0/env"]]
    assert names == ["KEEP", "DEPLOYMENT_ID", "SERVICE", "VERSION"]
    assert patch[0] == {"op": "test", "path": "/metadata/annotations/azora-ci~1fence", "value": "token"}


def test_the_template_of_a_replica_set_is_put_back_without_its_hash():
    template = {"metadata": {"labels": {"app": "web", rollouts.HASH_LABEL: "abc"}}, "spec": {"containers": []}}
    (*_, change) = rollouts.put_template(document(), "token", {"spec": {"template": template}})
    assert change["value"]["metadata"]["labels"] == {"app": "web"}
    assert template["metadata"]["labels"][rollouts.HASH_LABEL] == "abc"


@pytest.mark.parametrize(
    ("number", "present", "wanted", "asked"),
    [(1, 2, 2, 0), (2, 1, 2, None), (2, 1, 1, 0), (4, 2, 2, 1), (4, 2, 4, None), (3, 2, 2, 0), (1, 0, 1, None), (1, 0, 0, None)],
)
def test_a_pod_that_vanished_is_nobody_else(number, present, wanted, asked):
    assert pods.place(number, present, wanted) == asked
