"""GitHub's deployments: what its pages, and whoever reads its API, learn of a release in an environment.

A deployment of ours is one deployment there, found again by the id in its payload, so that a re-run adds a status to it. Statuses are
added, never changed. https://docs.github.com/rest/deployments
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.clients.github import GitHub
from azora_ci.core.documents import UnreadableError, read_json
from azora_ci.core.errors import UnreachableError

SUCCESS, FAILURE, ERROR, INACTIVE = "success", "failure", "error", "inactive"
LONGEST = 140  # characters of a description


@dataclass(frozen=True)
class Release:
    """What was deployed. ``facts``: further text that readers of GitHub's API find in the payload."""

    deployment_id: str
    version: str
    git_sha: str
    facts: Mapping[str, str | None]


@dataclass(frozen=True)
class Status:
    """A state (one of the four above) and in a sentence why; ``links``: GitHub's log_url and environment_url."""

    state: str
    description: str
    links: Mapping[str, str]


class Deployments:
    """GitHub's deployments to one environment. Methods raise the errors of ``GitHub``."""

    def __init__(self, github: GitHub, environment: str) -> None:
        self._github = github
        self._environment = environment

    def find(self, deployment_id: str) -> int | None:
        """Return the number of the newest deployment with our id, among the newest hundred."""
        found = self._github.deployments(self._environment)
        numbers = [number for number, payload in found if _payload(payload).get("deployment_id") == deployment_id]
        return max(numbers, default=None)

    def find_or_create(self, release: Release) -> int:
        """Return the number of a release's deployment. An answer that is lost does not make a second one: it is looked for again."""
        number = self.find(release.deployment_id)
        try:
            return number if number is not None else self._github.create_deployment(self.request(release))
        except UnreachableError:
            number = self.find(release.deployment_id)
            if number is None:
                raise
            return number

    def request(self, release: Release) -> dict[str, Any]:
        """Return what GitHub is asked to note of a release: the commit, for a tag may have moved, and nothing that it would do itself."""
        return {
            "ref": release.git_sha,
            "task": "deploy",
            "auto_merge": False,  # otherwise it merges the default branch into a ref that lacks some of it
            "required_contexts": [],  # the gates have judged the checks; GitHub would ask for all of them
            "payload": {"deployment_id": release.deployment_id, "version": release.version, **release.facts},
            "environment": self._environment,
            "description": _short(f"{release.version} ({release.deployment_id})"),
            "transient_environment": False,
            "production_environment": self._environment == "production",
        }

    def add(self, number: int, status: Status) -> None:
        """Add a status. Other deployments keep theirs: GitHub's own rule would leave those to ``production`` active for ever."""
        document = {"state": status.state, "description": _short(status.description), "auto_inactive": False, **status.links}
        self._github.create_deployment_status(number, document)


def _payload(payload: object) -> dict[str, Any]:
    """Return the payload of a deployment, which GitHub gives as an object or as its text; {} for others'."""
    try:
        document = read_json(payload) if isinstance(payload, str) else payload
    except UnreadableError:
        return {}
    return document if isinstance(document, dict) else {}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
