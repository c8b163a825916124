"""The REST edge against the API stand-in, over real HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azora_ci.clients.github import GitHub
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.variables import Secret
from azora_ci.rehearsal.standins.github import GitHubApi

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[GitHubApi]:
    with GitHubApi(tmp_path / "github.json", "the-token") as server:
        server.write()
        yield server


class Edge(GitHub):
    """The REST edge, and the messages that it wrote."""

    messages: list[str]


def edge(api: GitHubApi, *, token: str = "the-token", repository: str = "azora/azora", url: str | None = None) -> Edge:
    messages: list[str] = []
    client = Edge(url or api.url, repository, Secret(token), clock=Clock(), say=messages.append, pause=0.01)
    client.messages = messages
    return client


def scripted_answer(path: str, status: int, times: int = 1, **headers: str) -> dict[str, Any]:
    return {"path": path, "status": status, "times": times, "headers": headers}


def test_all_pages_are_read(api: GitHubApi) -> None:
    api.write(
        page_size=2, check_runs=[{"name": f"c{n}"} for n in range(5)], statuses=[{"context": f"s{n}", "state": "success"} for n in range(3)]
    )
    assert sorted(check_run["name"] for check_run in edge(api).check_runs(SHA)) == ["c0", "c1", "c2", "c3", "c4"]
    assert sorted(status["context"] for status in edge(api).statuses(SHA)) == ["s0", "s1", "s2"]
    assert len([path for path in api.requests if path.endswith("check-runs")]) == 3


def test_what_the_gates_read(api: GitHubApi) -> None:
    rule = {"type": "required_status_checks", "parameters": {"required_status_checks": [{"context": "lint"}]}}
    api.write(default_branch="release/next", rules=[rule], protection={"contexts": ["test"], "checks": []}, runs={"77": 5})
    github = edge(api)
    assert github.default_branch() == "release/next"
    assert github.branch_rules("release/next") == [rule]
    assert github.branch("release/next")["protection"]["required_status_checks"]["contexts"] == ["test"]
    assert github.check_suite_of_run("77") == 5


def test_attempts_of_jobs_are_read_by_their_suite(api: GitHubApi) -> None:
    jobs = [{"name": "test", "suite": 7, "attempt": n} for n in (1, 2, 2)] + [{"name": "test", "suite": 8, "app_id": 3}]
    api.write(page_size=2, check_runs=jobs)
    assert edge(api).job_attempts(7) == {1: 1, 2: 2, 3: 2}
    assert edge(api).job_attempts(8) == {}  # of another app


def test_retry_after_is_honoured(api: GitHubApi) -> None:
    api.write(answers=[scripted_answer("check-runs", 429, **{"retry-after": "1"})], check_runs=[{"name": "a"}])
    github, started = edge(api), time.monotonic()
    assert [check_run["name"] for check_run in github.check_runs(SHA)] == ["a"]
    assert time.monotonic() - started >= 1
    assert github.messages == ["GitHub's rate limit: waiting 1 s"]


def test_rate_limit_reset_is_honoured(api: GitHubApi) -> None:
    reset = str(int(time.time()) + 1)
    api.write(answers=[scripted_answer("statuses", 403, **{"x-ratelimit-remaining": "0", "x-ratelimit-reset": reset})])
    github = edge(api)
    assert github.statuses(SHA) == []
    assert time.time() >= int(reset)
    assert len(github.messages) == 1


@pytest.mark.parametrize(
    "headers", [{"retry-after": "3600"}, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 3600)}]
)
def test_a_limit_beyond_patience_is_not_waited_for(api: GitHubApi, headers: dict[str, str]) -> None:
    api.write(answers=[scripted_answer("statuses", 403, **headers)])
    with pytest.raises(UnreachableError, match="rate limit is used up") as caught:
        edge(api).statuses(SHA)
    assert "900 s" in caught.value.what


def test_server_errors_are_repeated_a_bounded_number_of_times(api: GitHubApi) -> None:
    api.write(answers=[scripted_answer("statuses", 502, times=3)])
    github = edge(api)
    assert github.statuses(SHA) == []
    assert github.messages[-1] == "GitHub: HTTP 502; attempt 3 of 4"
    api.write(answers=[scripted_answer("statuses", 500, times=9)])
    with pytest.raises(UnreachableError) as caught:
        edge(api).statuses(SHA)
    assert caught.value.what == "4 attempts, the last one: HTTP 500"


def test_nobody_answers() -> None:
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        github = GitHub(f"http://127.0.0.1:{taken.getsockname()[1]}", "azora/azora", Secret("t"), clock=Clock(), pause=0.01)
        with pytest.raises(UnreachableError, match="ConnectionError"):
            github.default_branch()


@pytest.mark.parametrize(
    ("token", "repository", "title", "next_step"),
    [
        ("wrong", "azora/azora", "GitHub refuses the token: HTTP 401: Bad credentials", "GITHUB_TOKEN"),
        ("the-token", "azora/other", "GitHub does not know this: HTTP 404: Not Found", "GITHUB_REPOSITORY"),
    ],
)
def test_refusals_say_what_to_do(api: GitHubApi, token: str, repository: str, title: str, next_step: str) -> None:
    api.write(repository="azora/azora")
    with pytest.raises(BadInputError) as caught:
        edge(api, token=token, repository=repository).default_branch()
    assert str(caught.value) == title
    assert next_step in caught.value.next_step
    assert token not in caught.value.message()


def test_missing_permission_names_the_permissions(api: GitHubApi) -> None:
    api.write(answers=[scripted_answer("check-runs", 403)])
    with pytest.raises(BadInputError) as caught:
        edge(api).check_runs(SHA)
    assert "checks: read" in caught.value.next_step


def test_the_token_goes_to_no_other_server(api: GitHubApi) -> None:
    api.write(page_size=1, check_runs=[{"name": "a"}, {"name": "b"}], link_base="http://elsewhere.example")
    with pytest.raises(UnreachableError, match="leads elsewhere"):
        edge(api).check_runs(SHA)


@pytest.mark.parametrize("body", ["<html>proxy</html>", ""])
def test_an_answer_that_is_no_json(api: GitHubApi, body: str) -> None:
    api.write(answers=[{"path": "statuses", "status": 200, "body": body}])
    with pytest.raises(AzoraError, match="no JSON"):
        edge(api).statuses(SHA)


@pytest.mark.parametrize("body", [{"message": "hello"}, {"check_runs": None}, "null"])
def test_an_answer_of_another_shape(api: GitHubApi, body: Any) -> None:
    api.write(answers=[{"path": path, "status": 200, "body": body} for path in ("check-runs", "statuses")])
    with pytest.raises(UnreachableError, match="another shape"):
        edge(api).check_runs(SHA)
    with pytest.raises(UnreachableError, match="another shape"):
        edge(api).statuses(SHA)


def test_the_stand_in_runs_as_a_program_and_reads_its_file_at_each_request(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"default_branch": "main"}')
    argv = [sys.executable, "-m", "azora_ci.rehearsal.standins.github", str(state)]
    with subprocess.Popen(argv, env={**os.environ, "GITHUB_TOKEN": "its-token"}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            github = GitHub(process.stdout.readline().strip(), "azora/azora", Secret("its-token"), clock=Clock())
            assert github.default_branch() == "main"
            state.write_text('{"default_branch": "trunk"}')
            assert github.default_branch() == "trunk"
        finally:
            process.terminate()
