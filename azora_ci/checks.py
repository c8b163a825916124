"""Required checks of a commit: what GitHub answered -> a verdict. Pure.

GitHub's own rule ("skipped counts as passed") is not used: a job that was skipped because its dependency failed is no evidence.
Shapes of the answers: docs.github.com/rest, "List check runs for a Git reference", "List commit statuses for a reference",
"Get rules for a branch", "Get a branch".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

PASSED, PENDING, FAILED = "passed", "pending", "failed"
SKIPS = frozenset({"skipped", "neutral"})
ANY_APP = -1  # GitHub's id for "any source may set this check"


@dataclass(frozen=True)
class Required:
    """A check that must have passed: its name, who demands it, and the only app whose result counts (None: any)."""

    name: str
    source: str  # configuration | ruleset | branch protection
    app_id: int | None = None


@dataclass(frozen=True)
class Observed:
    """The newest result of one check: ``conclusion`` is GitHub's word, or its status where there is no conclusion yet."""

    name: str
    kind: str  # check_run | commit_status
    state: str  # passed | pending | failed | skipped
    conclusion: str
    app_id: int | None
    url: str | None


@dataclass(frozen=True)
class Finding:
    """How one required check stands."""

    required: Required
    kind: str  # check_run | commit_status | missing
    state: str  # passed | pending | failed
    conclusion: str
    url: str | None

    def document(self) -> dict[str, Any]:
        """Return the finding as evidence."""
        return {
            "name": self.required.name,
            "source": self.required.source,
            "kind": self.kind,
            "conclusion": self.conclusion,
            "passed": self.state == PASSED,
            "url": self.url,
        }

    def __str__(self) -> str:
        return f"{self.required.name} ({self.conclusion})"


@dataclass(frozen=True)
class Verdict:
    """How all required checks stand. An empty verdict is neither passed nor anything else: it must not be made."""

    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        if not self.findings:
            raise ValueError("no required check: nothing can be concluded")

    def having(self, state: str) -> tuple[Finding, ...]:
        """Return the findings in a state."""
        return tuple(one for one in self.findings if one.state == state)

    @property
    def state(self) -> str:
        """Return ``failed`` as soon as one failed, else ``pending`` while one is, else ``passed``."""
        return FAILED if self.having(FAILED) else PENDING if self.having(PENDING) else PASSED


def required_by_configuration(names: Iterable[str]) -> list[Required]:
    """Return the checks that the configuration names."""
    return [Required(name, "configuration") for name in names]


def required_by_rules(rules: Iterable[dict[str, Any]]) -> list[Required]:
    """Return the checks that a branch's rulesets require (answer of ``/rules/branches/{branch}``)."""
    found = [
        Required(one["context"], "ruleset", _app(one.get("integration_id")))
        for rule in rules
        if rule.get("type") == "required_status_checks"
        for one in rule.get("parameters", {}).get("required_status_checks", [])
    ]
    return list(dict.fromkeys(found))


def required_by_protection(branch: dict[str, Any]) -> list[Required]:
    """Return the checks that classic branch protection requires (answer of ``/branches/{branch}``)."""
    demanded = (branch.get("protection") or {}).get("required_status_checks") or {}
    checks = [Required(one["context"], "branch protection", _app(one.get("app_id"))) for one in demanded.get("checks") or []]
    named = {one.name for one in checks}
    return checks + [Required(name, "branch protection") for name in demanded.get("contexts") or [] if name not in named]


def _app(identifier: int | None) -> int | None:
    return None if identifier in {None, ANY_APP} else identifier


def observed(check_runs: Iterable[dict[str, Any]], statuses: Iterable[dict[str, Any]], own_check_suite: int | None) -> list[Observed]:
    """Return the newest check run per name and app and the newest status per context, without the run's own check suite.

    Newest is the highest id: GitHub counts up, and a queued check run has no start time yet.
    """
    runs: dict[tuple[str, int | None], dict[str, Any]] = {}
    for one in sorted(check_runs, key=lambda one: int(one["id"])):
        if own_check_suite is None or (one.get("check_suite") or {}).get("id") != own_check_suite:
            runs[one["name"], (one.get("app") or {}).get("id")] = one
    contexts = {one["context"]: one for one in sorted(statuses, key=lambda one: int(one["id"]))}
    return [_of_check_run(one) for one in runs.values()] + [_of_status(one) for one in contexts.values()]


def _of_check_run(one: dict[str, Any]) -> Observed:
    conclusion = one.get("conclusion") if one.get("status") == "completed" else None
    state = PENDING if one.get("status") != "completed" else FAILED
    if conclusion == "success":
        state = PASSED
    elif conclusion in SKIPS:
        state = "skipped"
    app = (one.get("app") or {}).get("id")
    return Observed(one["name"], "check_run", state, conclusion or one.get("status") or "unknown", app, one.get("html_url"))


def _of_status(one: dict[str, Any]) -> Observed:
    state = {"success": PASSED, "pending": PENDING}.get(one["state"], FAILED)
    return Observed(one["context"], "commit_status", state, one["state"], None, one.get("target_url"))


def judge(required: Collection[Required], seen: Collection[Observed], allow_skipped: Collection[str]) -> Verdict:
    """Return how the required checks stand; every result of a required name counts. Raises ValueError when none is required."""
    return Verdict(tuple(finding for one in required for finding in _findings(one, seen, allow_skipped)))


def _findings(required: Required, seen: Collection[Observed], allow_skipped: Collection[str]) -> list[Finding]:
    named = [one for one in seen if one.name == required.name]
    matching = [one for one in named if required.app_id is None or one.app_id == required.app_id]
    if not matching:
        # A commit status does not tell which app set it, so it cannot satisfy a check that is bound to one.
        conclusion = f"missing from app {required.app_id}" if named else "missing"
        return [Finding(required, "missing", PENDING, conclusion, None)]
    skip_passes = required.name in allow_skipped
    return [Finding(required, one.kind, _state(one, skip_passes=skip_passes), one.conclusion, one.url) for one in matching]


def _state(one: Observed, *, skip_passes: bool) -> str:
    if one.state == "skipped":
        return PASSED if skip_passes else FAILED
    return one.state
