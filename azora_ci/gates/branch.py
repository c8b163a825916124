"""What the default branch says about gates, and what GitHub knows of a release's approval. Reads through the API; judges nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.clients.github import GitHub
from azora_ci.core.config import GateSettings, gates
from azora_ci.core.errors import BadInputError
from azora_ci.core.release import Version, highest_release
from azora_ci.gates import approval
from azora_ci.gates.approval import Consent


@dataclass(frozen=True)
class BranchGates:
    """The gates as a commit of the default branch has them, and the keys in which the tagged commit differs."""

    branch: str
    commit: str
    settings: GateSettings
    differences: list[dict[str, str | None]]

    @property
    def branches(self) -> frozenset[str]:
        """Return the branches that may hold releases."""
        return frozenset(self.settings.branches or (self.branch,))

    def document(self) -> dict[str, Any]:
        """Return the facts as evidence."""
        return {"branch": self.branch, "commit": self.commit, "differences": self.differences}


def read_gates(github: GitHub, path: Path) -> BranchGates:
    """Return the gates at the tip of the default branch, compared with the file ``path`` of the checkout. Raises BadInputError."""
    branch = github.default_branch()
    commit = str(github.branch(branch)["commit"]["sha"])
    where = f"{path} on {branch}"
    relative = path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    try:
        text = github.file(relative.as_posix(), commit)
    except BadInputError as error:
        raise BadInputError(
            "The default branch's configuration cannot be read",
            what=f"{error.what}: gates count as the default branch has them",
            where=where,
            next_step="commit the deployment configuration to the default branch; the token needs contents: read",
        ) from error
    settings, on_branch = gates.parse(text, where)
    in_tag = gates.parse(path.read_text(encoding="utf-8"), str(path))[1]
    return BranchGates(branch, commit, settings, gates.differences(on_branch, in_tag))


def read_enforcement(github: GitHub, deploy_environment: str) -> dict[str, Any]:
    """Return ``enforced`` (true, false, unknown) and ``reason``: whether GitHub waits for a reviewer. Needs actions: read."""
    name = approval.environment_of(deploy_environment)
    try:
        enforced, reason = approval.enforcement(github.environment(name), name)
    except BadInputError as error:
        return {"enforced": approval.UNKNOWN, "reason": f"{name}: {error.what}"[:300]}
    return {"enforced": enforced, "reason": reason}


def read_consent(github: GitHub, version: str, commit: str, branches: frozenset[str]) -> tuple[str | None, int, Consent]:
    """Return the previous release's tag (None: there is none), the number of commits since then, and who approved them.

    The previous release is the highest one below ``version``. Needs contents: read and pull-requests: read.
    """
    earlier = [name for name in github.release_tags() if (parsed := _parsed(name)) is not None and parsed < Version.parse(version)]
    previous = highest_release(earlier)
    since = str(previous) if previous is not None else None
    commits = github.commits_since(since, commit)
    if len(commits) > approval.MOST_COMMITS:
        return since, len(commits), approval.consent(commits, {}, {}, branches)
    pulls_of = {entry["sha"]: github.pulls_of(entry["sha"]) for entry in commits}
    numbers = {pull["number"] for pulls in pulls_of.values() for pull in approval.merged_pulls(pulls, branches)}
    reviews_of = {number: github.reviews(number) for number in sorted(numbers)}
    return since, len(commits), approval.consent(commits, pulls_of, reviews_of, branches)


def _parsed(name: str) -> Version | None:
    try:
        return Version.parse(name)
    except ValueError:
        return None
