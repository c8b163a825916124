"""Names of a release: its version, deployment id and artifact suffix. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

# semver.org 2.0.0 with a leading v, without build metadata: an image tag cannot hold "+".
_VERSION = re.compile(
    r"v(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
)
LONGEST = 128  # characters of an image tag, https://docs.docker.com/reference/cli/docker/image/tag/


@total_ordering
@dataclass(frozen=True, eq=True)
class Version:
    """A release version such as ``v1.2.3`` or ``v2.0.0-rc1``."""

    text: str

    @staticmethod
    def parse(text: str) -> Version:
        """Return the version in a text. Raises ValueError with the reason why it is none."""
        if not _VERSION.fullmatch(text):
            raise ValueError(_reason(text))
        if len(text) > LONGEST:
            raise ValueError(f"is longer than the {LONGEST} characters of an image tag")
        return Version(text)

    @property
    def is_prerelease(self) -> bool:
        """Say whether the version is a pre-release (``-rc1``)."""
        return "-" in self.text

    @property
    def bare(self) -> str:
        """Return the version without ``v``, the form in which health endpoints report it."""
        return self.text[1:]

    @property
    def tag_ref(self) -> str:
        """Return ``refs/tags/v1.2.3``."""
        return f"refs/tags/{self.text}"

    def __str__(self) -> str:
        return self.text

    def __lt__(self, other: Version) -> bool:
        import semver

        return semver.Version.parse(self.bare) < semver.Version.parse(other.bare)


def _reason(text: str) -> str:
    if text != text.strip():
        return "has white space or a newline around it"
    foreign = sorted(set(re.findall(r"[^0-9A-Za-z.+-]", text)))
    if foreign:
        return f"holds characters that no version has: {' '.join(map(repr, foreign))}"
    if "+" in text:
        return "holds build metadata (+), which an image tag cannot hold"
    if re.match(r"[0-9]+\.[0-9]+\.[0-9]+", text):
        return "lacks the leading v"
    if re.match(r"v(?:[0-9]+\.){0,2}0[0-9]", text):
        return "has a number with a leading zero"
    if re.fullmatch(r"v?[0-9]+(?:\.[0-9]+)?(?:-.*)?", text):
        return "has fewer than three numbers"
    return "is not v<major>.<minor>.<patch> with an optional pre-release, such as v1.2.3 or v2.0.0-rc1"


def highest_release(names: Iterable[str]) -> Version | None:
    """Return the highest version without pre-release among tag names, or None. Names that are no versions are skipped."""
    versions = [Version(name) for name in names if len(name) <= LONGEST and _VERSION.fullmatch(name)]
    releases = [version for version in versions if not version.is_prerelease]
    return max(releases, default=None)


def new_deployment_id(unix_seconds: int, git_sha: str) -> str:
    """Return ``<unix seconds>-<first 6 hex of the commit>``."""
    return f"{unix_seconds}-{git_sha[:6]}"


def artifact_suffix(deployment_id: str | None, run_id: str, run_attempt: int) -> str:
    """Return what follows the prefix in artifact names: ``<id>`` or ``run-<run id>``, ``-attempt-N`` from the second attempt."""
    name = deployment_id or f"run-{run_id}"
    return name if run_attempt <= 1 else f"{name}-attempt-{run_attempt}"
