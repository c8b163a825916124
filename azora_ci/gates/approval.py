"""Who agreed to a release: whether GitHub enforces an approval, and whether a second person approved what is in it. Pure.

Shapes: docs.github.com/rest, "Get an environment", "List pull requests associated with a commit", "List reviews for a pull request".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_COMMITS = 250  # of one release; two requests each
WRITERS = frozenset({"OWNER", "MEMBER", "COLLABORATOR"})  # author_association; anybody may approve on a public repository
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Consent:
    """Whether every pull request of a release was approved: sentences about what is missing, and the approvals that count."""

    problems: tuple[str, ...]
    pull_requests: tuple[dict[str, Any], ...] = field(default=())


def environment_of(deploy_environment: str) -> str:
    """Return the environment on GitHub for whose reviewers validate-release waits."""
    return f"{deploy_environment}-approval"


def enforcement(environment: Mapping[str, Any], name: str = "production-approval") -> tuple[bool, str]:
    """Return whether GitHub waits for a reviewer before validate-release, and why, from its answer about the environment of this name."""
    for rule in environment.get("protection_rules") or []:
        if rule.get("type") == "required_reviewers" and rule.get("reviewers"):
            own = "not by who started the run" if rule.get("prevent_self_review") else "also by who started the run"
            bypass = "; administrators may pass it by" if environment.get("can_admins_bypass") else ""
            return True, f"{name} demands one of {len(rule['reviewers'])} reviewers, {own}{bypass}"
    return False, f"{name} demands no reviewer; on private repositories that needs GitHub Enterprise"


def consent(
    commits: Sequence[Mapping[str, Any]],
    pulls_of: Mapping[str, Sequence[Mapping[str, Any]]],
    reviews_of: Mapping[int, Sequence[Mapping[str, Any]]],
    branches: Collection[str],
) -> Consent:
    """Judge a release's commits. ``pulls_of``: commit -> its pull requests; ``reviews_of``: number of a merged one -> its reviews.

    An approval counts when it is a person's last word, who may write to the repository, who neither opened the pull request nor made a
    commit of it that is in the release, and when it is about the commit that was merged: what was pushed after it, nobody has seen.
    """
    problems = [] if len(commits) <= MOST_COMMITS else [f"the release holds {len(commits)} commits, more than {MOST_COMMITS}"]
    makers: dict[int, set[str]] = {}
    merged: dict[int, Mapping[str, Any]] = {}
    for commit in commits:
        pulls = merged_pulls(pulls_of.get(commit["sha"], ()), branches)
        if not pulls:
            problems.append(f"{commit['sha'][:12]} came without a pull request that was merged into {' or '.join(sorted(branches))}")
        for pull in pulls:
            merged[pull["number"]] = pull
            makers.setdefault(pull["number"], {_login(pull, "user")})
            if len(commit.get("parents") or ()) < 2:  # the author of GitHub's merge commit is who merged, and that may be the reviewer
                makers[pull["number"]].add(_login(commit, "author"))
    entries = []
    for number, pull in sorted(merged.items()):
        approved, stale = _approvers(reviews_of.get(number, ()), makers[number], pull["head"]["sha"])
        entries.append({"number": number, "author": _login(pull, "user"), "approved_by": approved})
        if not approved:
            hint = f"; {', '.join(stale)} approved an older commit than the one that was merged" if stale else ""
            problems.append(f"#{number} of {_login(pull, 'user')} was approved by nobody else{hint}")
    return Consent(tuple(problems), tuple(entries))


def merged_pulls(pulls: Sequence[Mapping[str, Any]], branches: Collection[str]) -> list[Mapping[str, Any]]:
    """Return those pull requests that were merged into one of the branches that may hold releases."""
    return [pull for pull in pulls if pull.get("merged_at") and pull["base"]["ref"] in branches]


def _approvers(reviews: Sequence[Mapping[str, Any]], makers: Collection[str], head: str) -> tuple[list[str], list[str]]:
    """Return who approved the merged commit, and who approved an older one only. GitHub lists reviews in the order of time."""
    last: dict[str, Mapping[str, Any]] = {}
    for review in reviews:
        person = review.get("user") or {}
        if review.get("state") != "COMMENTED" and person.get("type") == "User" and review.get("author_association") in WRITERS:
            last[person["login"]] = review
    approvals = {name: review for name, review in last.items() if review["state"] == "APPROVED" and name not in makers}
    current = sorted(name for name, review in approvals.items() if review.get("commit_id") == head)
    return current, sorted(approvals.keys() - set(current))


def _login(document: Mapping[str, Any], key: str) -> str:
    return str((document.get(key) or {}).get("login") or "an unknown author")
