"""Right before migrations GitHub is asked whether the build of this run has failed meanwhile."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from azora_ci.clients.github import GitHub
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.variables import Secret
from azora_ci.gates.later.build_jobs import NAMES, BuildJobs
from azora_ci.rehearsal.standins.github import GitHubApi
from tests.workflow.test_contract import DOCUMENT

Ask = Callable[..., tuple[dict[str, Any], str]]


def test_the_names_are_those_of_the_workflow() -> None:
    assert tuple(DOCUMENT["jobs"][job]["name"] for job in ("build", "images", "build-and-push")) == NAMES


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    with GitHubApi(tmp_path / "github.json", "a-token") as api:
        stream = io.StringIO()

        def asked(*, token: str = "a-token", attempt: int = 1, **state: Any) -> tuple[dict[str, Any], str]:
            api.write(**state)
            github = GitHub(api.url, "azora/azora", Secret(token), clock=Clock(), pause=0.0)
            evidence: dict[str, Any] = {}
            jobs = BuildJobs(github, "77", attempt, Actions(stream=stream), lambda line: print(line, file=stream))
            try:
                jobs.require(evidence)
            except NotTrueError as error:
                print(error.title, error.what, file=stream)
            assert f"/repos/azora/azora/actions/runs/77/attempts/{attempt}/jobs" in api.requests
            return evidence["build_checked"], stream.getvalue()

        yield asked


@pytest.mark.parametrize("state", ["failure", "cancelled", "timed_out", "startup_failure"])
@pytest.mark.parametrize("prefix", ["", "production / "])
def test_a_build_that_failed_meanwhile(ask: Ask, state: str, prefix: str) -> None:
    jobs = [{"name": f"{prefix}{name}", "status": "completed", "conclusion": "success"} for name in NAMES[:2]]
    jobs += [{"name": f"{prefix}Build and push", "status": "completed", "conclusion": state}]
    evidence, said = ask(run_jobs=jobs, page_size=2)
    assert evidence == {"checked": True, "jobs": {**dict.fromkeys(NAMES[:2], "success"), NAMES[2]: state}, "reason": None}
    assert f"The build has failed meanwhile Build and push: {state}\nnothing was applied" in said


def test_what_is_still_at_work_or_skipped_and_other_jobs_do_not_matter(ask: Ask) -> None:
    jobs = [{"name": "Audit", "status": "completed", "conclusion": "failure"}, {"name": "Application images", "status": "in_progress"}]
    evidence, said = ask(run_jobs=jobs, attempt=2)
    assert evidence == {"checked": True, "jobs": {"Application images": "in_progress"}, "reason": None}
    assert "✓ the build has not failed meanwhile: Application images in_progress" in said


@pytest.mark.parametrize(
    ("state", "token", "reason"),
    [
        ({"answers": [{"path": "/jobs", "status": 502, "times": 99}]}, "a-token", "502"),
        ({"answers": [{"path": "/jobs", "status": 429, "headers": {"retry-after": "3600"}, "times": 99}]}, "a-token", "rate limit"),
        ({"answers": [{"path": "/jobs", "status": 404}]}, "a-token", "actions: read"),
        ({"answers": [{"path": "/jobs", "status": 200, "body": "<html>"}]}, "a-token", "is not read"),
        ({"run_jobs": [{"name": "Audit", "status": "queued"}]}, "a-token", "lists none of Application build"),
        ({}, "another", "refuses the token"),
    ],
)
def test_where_github_does_not_say_it_the_migrations_go_on_with_a_warning(ask: Ask, state: dict[str, Any], token: str, reason: str) -> None:
    evidence, said = ask(token=token, **state)
    assert (evidence["checked"], evidence["jobs"]) == (False, {})
    assert reason in evidence["reason"] + said
    assert "Whether the build has failed meanwhile is not known" in said
    assert "The build has failed" not in said


def test_without_a_token() -> None:
    evidence: dict[str, Any] = {}
    said: list[str] = []
    BuildJobs(None, "0", 1, Actions(stream=io.StringIO()), said.append).require(evidence)
    assert evidence["build_checked"]["checked"] is False
    assert said[0].startswith("- whether the build has failed meanwhile is not asked: there is no GITHUB_TOKEN")
