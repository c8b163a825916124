"""GitHub's deployments over real HTTP, against a stand-in that refuses what GitHub refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from azora_ci.clients.deployments import FAILURE, INACTIVE, SUCCESS, Deployments, Release, Status
from azora_ci.clients.github import GitHub
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.variables import Secret
from azora_ci.rehearsal.standins.github import GitHubApi

SHA = "0123456789abcdef0123456789abcdef01234567"
RELEASE = Release("1764000000-abc123", "v1.2.3", SHA, {"record_location": "s3://b/records/1.json", "record_sha256": None})
BASE = "/repos/azora/azora/deployments"
LINKS = {"log_url": "https://github.com/azora/azora/actions/runs/7#artifacts", "environment_url": "https://azora.example"}
ANSWERED = {"path": "/deployments", "times": 1}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[GitHubApi]:
    with GitHubApi(tmp_path / "github.json", "the-token") as server:
        server.write(check_runs=[{"name": "this run", "status": "in_progress"}])
        yield server


@pytest.fixture
def deployments(api: GitHubApi) -> Deployments:
    return Deployments(GitHub(api.url, "azora/azora", Secret("the-token"), clock=Clock(), pause=0.01), "production")


def ask(api: GitHubApi, path: str, **query: str) -> Any:
    return requests.get(f"{api.url}{path}", query, headers={"Authorization": "Bearer the-token"}, timeout=30).json()


def states(api: GitHubApi, number: int) -> list[str]:
    return [status["state"] for status in ask(api, f"{BASE}/{number}/statuses")]


def test_a_release_is_one_deployment_to_which_statuses_are_added(api, deployments):
    number = deployments.find_or_create(RELEASE)
    assert deployments.find_or_create(RELEASE) == deployments.find(RELEASE.deployment_id) == number
    deployments.add(number, Status(FAILURE, "rolled back: v1.2.2 serves", LINKS))
    deployments.add(number, Status(SUCCESS, "v1.2.3 serves " + "x" * 300, LINKS))
    (created,) = ask(api, BASE, environment="production")
    assert (created["sha"], created["payload"]["deployment_id"], created["production_environment"]) == (SHA, RELEASE.deployment_id, True)
    assert created["payload"]["record_location"] == "s3://b/records/1.json"
    newest = ask(api, f"{BASE}/{number}/statuses")[0]
    assert states(api, number) == [SUCCESS, FAILURE]
    assert newest["auto_inactive"] is False and len(newest["description"]) == 140 and newest.items() >= LINKS.items()


def test_other_environments_and_deployments_of_others_are_not_ours(api, deployments):
    others = [
        {"id": 1, "environment": "staging", "sha": SHA, "payload": {"deployment_id": RELEASE.deployment_id}},
        {"id": 2, "environment": "production", "sha": SHA, "payload": ""},
        {"id": 3, "environment": "production", "sha": SHA, "payload": "[" * 1000},
        {"id": 4, "environment": "production", "sha": SHA, "payload": {"deployment_id": 5}},
        {"id": 5, "environment": "production", "sha": SHA, "payload": json.dumps({"deployment_id": RELEASE.deployment_id})},
    ]
    api.write(deployments=others[:4])
    assert deployments.find(RELEASE.deployment_id) is None
    api.write(deployments=others)
    assert deployments.find(RELEASE.deployment_id) == 5
    deployments.add(5, Status(INACTIVE, "v1.2.4 serves", {}))
    assert states(api, 5) == [INACTIVE]


def test_a_lost_answer_makes_no_second_deployment(api, deployments, monkeypatch):
    create = GitHub.create_deployment

    def lose(client: GitHub, document: dict[str, Any]) -> int:
        create(client, document)
        raise UnreachableError("GitHub does not answer", what="lost", where="x", next_step="x")

    monkeypatch.setattr(GitHub, "create_deployment", lose)
    assert deployments.find_or_create(RELEASE) == 1000
    assert len(api.deployments) == 1


@pytest.mark.parametrize("status", [500, 502])
def test_what_github_does_not_take_is_sent_once(api, deployments, status):
    api.write(answers=[{"path": "/statuses", "times": 9, "status": status, "body": {}}])
    number = deployments.find_or_create(RELEASE)
    with pytest.raises(UnreachableError, match="1 attempt, the last one: HTTP 50"):
        deployments.add(number, Status(SUCCESS, "x", {}))
    assert api.requests.count(f"{BASE}/{number}/statuses") == 1


def test_a_token_that_may_only_read_is_named(api, deployments):
    api.write(read_only=True)
    with pytest.raises(BadInputError) as caught:
        deployments.find_or_create(RELEASE)
    assert "deployments: write" in caught.value.next_step and "Resource not accessible" in caught.value.what


def test_a_merge_instead_of_a_deployment_is_no_deployment(api, deployments):
    api.write(
        answers=[
            {"path": "/nothing"},
            {**ANSWERED, "status": 200, "body": []},
            {**ANSWERED, "status": 202, "body": {"message": "Auto-merged"}},
        ]
    )
    with pytest.raises(BadInputError, match="HTTP 202: Auto-merged"):
        deployments.find_or_create(RELEASE)


REQUEST = {"ref": SHA, "auto_merge": False, "required_contexts": []}


@pytest.mark.parametrize(
    ("path", "document", "status"),
    [
        (BASE, {}, 422),
        (BASE, {**REQUEST, "ref": "v0.0.0"}, 422),
        (BASE, {**REQUEST, "transient_environment": "no"}, 422),
        (BASE, {"ref": SHA, "required_contexts": []}, 202),
        (BASE, {"ref": SHA, "auto_merge": False}, 409),
        (BASE, REQUEST, 201),
        (f"{BASE}/1/statuses", {"state": "success"}, 404),
        (f"{BASE}/1000/statuses", {"state": "rolled_back"}, 422),
        (f"{BASE}/1000/statuses", {"state": "success", "log_url": "s3://bucket/record.json"}, 422),
        (f"{BASE}/1000/statuses", {"state": "success", "description": "x" * 141}, 422),
        (f"{BASE}/1000/statuses", {"state": "success", "description": "x" * 140}, 201),
    ],
)
def test_the_stand_in_refuses_what_github_refuses(api, deployments, path, document, status):
    deployments.find_or_create(RELEASE)
    headers = {"Authorization": "Bearer the-token"}
    assert requests.post(f"{api.url}{path}", json=document, headers=headers, timeout=30).status_code == status
