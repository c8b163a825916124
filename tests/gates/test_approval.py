"""Who agreed to a release: approvals that count, and everything that looks like one and is none."""

from __future__ import annotations

from typing import Any

import pytest

from azora_ci.gates import approval

ONE, TWO, MERGE, HEAD, OLD = ("1" * 40, "2" * 40, "3" * 40, "a" * 40, "b" * 40)
MAIN = frozenset({"main"})


def commit(sha: str, author: str = "ada", parents: int = 1) -> dict[str, Any]:
    return {"sha": sha, "author": {"login": author}, "committer": {"login": "web-flow"}, "parents": [{}] * parents}


def pull(number: int = 7, author: str = "ada", **changes: Any) -> dict[str, Any]:
    merged = {"number": number, "user": {"login": author}, "merged_at": "2026-11-24T11:00:00Z", "base": {"ref": "main"}}
    return merged | {"head": {"sha": HEAD}} | changes


def review(user: str = "grace", state: str = "APPROVED", **changes: Any) -> dict[str, Any]:
    person = {"login": user, "type": "User"}
    return {"user": person, "state": state, "author_association": "COLLABORATOR", "commit_id": HEAD} | changes


def problems(commits: list[Any], pulls: dict[str, Any], reviews: dict[int, Any]) -> tuple[str, ...]:
    return approval.consent(commits, pulls, reviews, MAIN).problems


def test_another_person_approved_the_merged_commit() -> None:
    verdict = approval.consent([commit(ONE), commit(TWO)], {ONE: [pull()], TWO: [pull()]}, {7: [review()]}, MAIN)
    assert verdict.problems == ()
    assert verdict.pull_requests == ({"number": 7, "author": "ada", "approved_by": ["grace"]},)


def test_the_reviewer_may_be_who_merged() -> None:
    commits = [commit(ONE), commit(MERGE, "grace", parents=2)]
    assert problems(commits, {ONE: [pull()], MERGE: [pull()]}, {7: [review()]}) == ()


def test_an_empty_release_needs_nobody() -> None:
    assert problems([], {}, {}) == ()


@pytest.mark.parametrize(
    "reviews",
    [
        [],
        [review("ada")],
        [review(state="COMMENTED")],
        [review(), review(state="CHANGES_REQUESTED")],
        [review(), review(state="DISMISSED")],
        [review(author_association="CONTRIBUTOR")],
        [review(author_association="NONE")],
        [review() | {"user": {"login": "bot", "type": "Bot"}}],
        [review() | {"user": None}],
    ],
)
def test_what_is_no_approval_of_another_person(reviews: list[dict[str, Any]]) -> None:
    assert problems([commit(ONE)], {ONE: [pull()]}, {7: reviews}) == ("#7 of ada was approved by nobody else",)


def test_who_wrote_a_commit_of_a_bots_pull_request_is_not_another_person() -> None:
    assert problems([commit(ONE, "grace")], {ONE: [pull(author="renovate")]}, {7: [review("grace")]})


def test_an_approval_of_an_older_commit_is_named_and_does_not_count() -> None:
    (problem,) = problems([commit(ONE)], {ONE: [pull()]}, {7: [review(commit_id=OLD)]})
    assert "grace approved an older commit" in problem


def test_a_comment_after_an_approval_takes_nothing_back() -> None:
    assert problems([commit(ONE)], {ONE: [pull()]}, {7: [review(), review(state="COMMENTED")]}) == ()


@pytest.mark.parametrize("other", [[], [pull(merged_at=None)], [pull(base={"ref": "feature"})]])
def test_a_commit_without_a_merged_pull_request_is_named(other: list[Any]) -> None:
    (problem,) = problems([commit(ONE), commit(TWO)], {ONE: [pull()], TWO: other}, {7: [review()]})
    assert problem.startswith(TWO[:12])


def test_every_pull_request_needs_its_own_approval() -> None:
    (problem,) = problems([commit(ONE), commit(TWO)], {ONE: [pull()], TWO: [pull(8)]}, {7: [review()], 8: []})
    assert problem.startswith("#8")


def test_a_release_of_too_many_commits_is_refused() -> None:
    commits = [commit(f"{number:040x}") for number in range(approval.MOST_COMMITS + 1)]
    assert "251 commits" in problems(commits, {entry["sha"]: [pull()] for entry in commits}, {7: [review()]})[0]
