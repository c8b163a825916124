"""What GitHub's pages, and people on Slack, are told at the end of a deployment; what fails there changes no verdict."""

from __future__ import annotations

import json

import pytest

from azora_ci.rehearsal.standins.github import GitHubApi
from azora_ci.rehearsal.standins.slack import SlackReceiver
from tests.steps.test_deployment_failure_handler import JOB, failed_at
from tests.steps.test_deployment_record import MESSAGE
from tests.support import fragments_builder as build
from tests.support import record_world

TAKEN_BACK = {"to": "v1.2.2", "seconds_to_safe": 0.1, "proved": True, "detail": "x"}


@pytest.fixture
def world(tmp_path, s3_server):
    with SlackReceiver(tmp_path / "slack.jsonl") as slack:
        yield record_world.world(tmp_path, s3_server, slack)


@pytest.fixture
def ready(world):
    build.receive(world.received, *build.complete().values())
    return world


# --- success ----------------------------------------------------------------------------------------------------------------


def states(api: GitHubApi) -> dict[str, list[str]]:
    """Return our deployment id -> the states that GitHub's deployment of it got, oldest first."""
    deployments = [*json.loads(api.state.read_text())["deployments"], *api.deployments]
    return {each["payload"]["deployment_id"]: [status["state"] for status in api.statuses_of(each["id"])] for each in deployments}


def test_github_shows_what_serves_and_what_does_not_any_more(ready):
    with ready.github() as api:
        outcome = ready.run("deployment-record")
        assert states(api) == {build.PREVIOUS_ID: ["success", "inactive"], build.DEPLOYMENT_ID: ["success"]}
        status = api.statuses_of(1000)[-1]
        assert status["environment_url"].startswith("https://") and status["log_url"].endswith("/actions/runs/1234567890#artifacts")
        payload = api.deployments[0]["payload"]
        assert payload["record_location"] == outcome.evidence["record_location"]
        assert payload["record_sha256"] == outcome.evidence["record_sha256"]
        again = ready.run("deployment-record", GITHUB_RUN_ATTEMPT="2")
        assert states(api)[build.DEPLOYMENT_ID] == ["success", "success"] and len(api.deployments) == 1
    assert outcome.evidence["github_deployment"] == again.evidence["github_deployment"] == {
        "number": 1000, "state": "success", "others": {build.PREVIOUS_ID: "inactive"},
        "detail": f"GitHub's deployment 1000 is success, that of {build.PREVIOUS_ID} inactive",
    }  # fmt: skip
    assert "the-token" not in (outcome.logs / "deployment-record.log").read_text()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"read_only": True}, "may not do this"),
        ({"answers": [{"path": "/deployments", "status": 200, "body": "{}"}]}, "another shape"),
        ({"answers": [{"path": "/deployments", "status": 200, "body": "[" * 1000}]}, "not read"),
        ({"answers": [{"path": "/deployments", "status": 404}]}, "does not know this"),
    ],
)
def test_a_github_that_takes_no_state_does_not_change_the_verdict(ready, state, words, capfd):
    with ready.github(**state):
        outcome = ready.run("deployment-record")
    assert outcome.code == 0
    assert outcome.evidence["github_deployment"]["number"] is None
    assert "::warning title=GitHub's deployment has no state::" in capfd.readouterr().out
    assert words in outcome.evidence["github_deployment"]["detail"]
    assert ready.slack.texts() == [MESSAGE]


# --- failure ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "result", "changes", "expected"),
    [
        ("database-migrations", "failure", {"evidence": {"applied": []}}, (["failure"], [])),
        ("gradual-rollout", "cancelled", {"evidence": {}}, (["error"], [])),
        ("smoke-tests", "failure", {"smoke_status": "failed"}, (["failure"], ["inactive"])),
        (
            "smoke-tests",
            "failure",
            {"rollback": {"to": "v1.2.2", "seconds_to_safe": 0.1, "proved": True, "detail": "x"}},
            (["failure"], []),
        ),
    ],
    ids=["before any traffic", "cancelled", "it serves nevertheless", "taken back"],
)
def test_github_is_told_that_it_failed_and_what_serves(world, job, result, changes, expected):
    with world.github() as api:
        outcome = world.run(JOB, NEEDS=failed_at(world, job, result=result, **changes))
        own, before = ([status["state"] for status in api.statuses_of(number)] for number in (1000, 7))
    assert outcome.code == 0
    assert (own, before[1:]) == expected
    assert api.deployments[0]["payload"]["deployment_id"] == build.DEPLOYMENT_ID
    assert outcome.evidence["github_deployment"]["number"] == 1000
    assert (world.slack.refusals, len(world.slack.texts())) == ([], 1)


def test_what_fails_after_the_record_leaves_a_success_on_github_and_an_early_failure_nothing(world):
    needs = failed_at(world, "validate-release", evidence={})
    with world.github() as api:
        outcome = world.run(JOB, NEEDS=needs, DEPLOYMENT_ID=None, VERSION=None, GIT_SHA=None)
        assert (api.deployments, outcome.code) == ([], 0)


def test_no_secret_reaches_githubs_page_or_slack(world):
    secret = world.environ["AWS_SECRET_ACCESS_KEY"]
    back = {**TAKEN_BACK, "to": f"v1.2.2 of {secret}"}
    needs = failed_at(world, "smoke-tests", rollback=back)
    with world.github() as api:
        world.run(JOB, NEEDS=needs)
        (status,) = api.statuses_of(1000)
    assert "***" in status["description"] and secret not in str(api.deployments) + str(status)
    assert secret not in world.slack.messages.read_text()


def test_what_a_watch_found_is_told_on_slack(world):
    world.run(JOB, NEEDS=failed_at(world, "gradual-rollout", evidence={}))
    payload = json.loads(world.slack.messages.read_text().splitlines()[0])["payload"]
    assert "exit code 7 after 3 of 5" in json.dumps(payload["blocks"]) and "exit code 7" not in payload["text"]
