"""Required checks of a commit: turns GitHub's answers into a verdict. Pure.

GitHub's own rule ("skipped counts as passed") is not used: a job that was skipped because its dependency failed is no evidence.
Every check run that has a required name counts, whichever workflow it belongs to; only a later attempt of the same workflow run
replaces one. Shapes of the answers: docs.github.com/rest, "List check runs for a Git reference", "List commit statuses for a
reference", "List workflow runs for a repository", "Get rules for a branch", "Get a branch".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.core.config.tables import RequiredCheck

PASSED, PENDING, FAILED = "passed", "pending", "failed"
SKIPS = frozenset({"skipped", "neutral"})
CHECK_RUN, COMMIT_STATUS, WORKFLOW_RUN = "check_run", "commit_status", "workflow_run"
ANY_APP = -1  # GitHub's id for "any source may set this check"


@dataclass(frozen=True)
class Required:
    """A check that must have passed: its name, who demands it, and the only app whose result counts, by id or slug (None: any).

    Where a ruleset demands a whole workflow (``workflow``), the name is the path of the workflow's file in the repository
    ``repository_id``.
    """

    name: str
    source: str  # configuration | ruleset | branch protection
    app_id: int | None = None
    workflow: bool = False
    repository_id: int | None = None
    app: str | None = None

    def accepts(self, check: Observed) -> bool:
        """Say whether a result is of the app that must have set it."""
        return self.app_id in {None, check.app_id} and self.app in {None, check.app}

    def concerns(self, check: Observed) -> bool:
        """Say whether a check of the commit has the name that is required."""
        if self.workflow != (check.kind == WORKFLOW_RUN):
            return False
        if self.workflow and self.repository_id not in {None, check.repository_id}:
            # GitHub shows a workflow of another repository as owner/name/.github/workflows/file.yml.
            return check.name.endswith(f"/{self.name}")
        return check.name == self.name


@dataclass(frozen=True)
class Observed:
    """A result that counts of one check: ``conclusion`` is GitHub's word, or its status where there is no conclusion yet."""

    name: str
    kind: str  # check_run | commit_status | workflow_run
    state: str  # passed | pending | failed | skipped
    conclusion: str
    app_id: int | None
    url: str | None
    repository_id: int | None = None  # of a workflow run: the repository in which it ran
    app: str | None = None  # slug


@dataclass(frozen=True)
class CheckState:
    """The state of one required check."""

    required: Required
    kind: str  # check_run | commit_status | workflow_run | missing
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
class ChecksVerdict:
    """The states of all required checks. An empty verdict has no state, so creating it raises ValueError."""

    findings: tuple[CheckState, ...]

    def __post_init__(self) -> None:
        if not self.findings:
            raise ValueError("no required check: nothing can be concluded")

    def having(self, state: str) -> tuple[CheckState, ...]:
        """Return the findings in a state."""
        return tuple(finding for finding in self.findings if finding.state == state)

    @property
    def state(self) -> str:
        """Return ``failed`` if a check failed, else ``pending`` if a check is pending, else ``passed``."""
        return FAILED if self.having(FAILED) else PENDING if self.having(PENDING) else PASSED


def required_by_configuration(required: Iterable[RequiredCheck]) -> list[Required]:
    """Return the checks that the configuration names."""
    return [Required(check.name, "configuration", app=check.app) for check in required]


def required_by_rules(rules: Iterable[dict[str, Any]]) -> list[Required]:
    """Return the checks and the whole workflows that a branch's rulesets require (answer of ``/rules/branches/{branch}``)."""
    required = []
    for rule in rules:
        parameters = rule.get("parameters") or {}
        if rule.get("type") == "required_status_checks":
            checks = parameters.get("required_status_checks", [])
            required += [Required(check["context"], "ruleset", _app(check.get("integration_id"))) for check in checks]
        elif rule.get("type") == "workflows":
            required += [
                Required(workflow["path"], "ruleset", workflow=True, repository_id=workflow.get("repository_id"))
                for workflow in parameters.get("workflows", [])
            ]
    return list(dict.fromkeys(required))


def required_by_protection(branch: dict[str, Any]) -> list[Required]:
    """Return the checks that classic branch protection requires (answer of ``/branches/{branch}``)."""
    protection = (branch.get("protection") or {}).get("required_status_checks") or {}
    checks = [Required(check["context"], "branch protection", _app(check.get("app_id"))) for check in protection.get("checks") or []]
    names = {check.name for check in checks}
    return checks + [Required(name, "branch protection") for name in protection.get("contexts") or [] if name not in names]


def _app(identifier: int | None) -> int | None:
    return None if identifier in {None, ANY_APP} else identifier


def repeated_suites(check_runs: Iterable[dict[str, Any]]) -> dict[int, frozenset[int]]:
    """Return the check suites that hold several check runs of one name: id of the suite -> ids of these check runs.

    They are attempts of one job, or two jobs of one name.
    """
    runs = list(check_runs)
    numbers = Counter(_check(run) for run in runs)
    repeated: dict[int, set[int]] = defaultdict(set)
    for run in runs:
        suite = _check(run)[0]
        if suite is not None and numbers[_check(run)] > 1:
            repeated[suite].add(int(run["id"]))
    return {suite: frozenset(ids) for suite, ids in repeated.items()}


def observed(
    check_runs: Iterable[dict[str, Any]],
    statuses: Iterable[dict[str, Any]],
    own_check_suite: int | None,
    *,
    attempts: Mapping[int, int] | None = None,
    workflow_runs: Iterable[dict[str, Any]] = (),
) -> list[Observed]:
    """Return every result of a commit that no later attempt replaced, without those of this run's own check suite.

    ``check_runs`` of all attempts; ``attempts``: id of a check run -> the attempt of its workflow run that made it. Of check runs of one
    suite, app and name whose attempts are not told, the highest id counts: GitHub counts up, and a queued check run has no start time.
    Of commit statuses the newest of each context counts.
    """
    suites: dict[tuple[int | None, int | None, str], list[dict[str, Any]]] = defaultdict(list)
    for run in check_runs:
        if own_check_suite is None or _check(run)[0] != own_check_suite:
            suites[_check(run)].append(run)
    current = [run for runs in suites.values() for run in _not_replaced(runs, attempts or {})]
    contexts = {status["context"]: status for status in sorted(statuses, key=lambda status: int(status["id"]))}
    results = [_of_check_run(run) for run in current] + [_of_status(status) for status in contexts.values()]
    return results + [_of_workflow_run(run) for run in workflow_runs if run.get("check_suite_id") != own_check_suite]


def _check(run: dict[str, Any]) -> tuple[int | None, int | None, str]:
    """Return (check suite, app, name) of a check run. Each run of a workflow has a check suite of its own, which its attempts share."""
    return (run.get("check_suite") or {}).get("id"), (run.get("app") or {}).get("id"), run["name"]


def _not_replaced(runs: list[dict[str, Any]], attempts: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return which of the check runs of one suite, app and name count.

    A later attempt that has fewer jobs of that name than an earlier one cannot have replaced all of them: then both count.
    """
    if any(run["id"] not in attempts for run in runs):
        return [max(runs, key=lambda run: int(run["id"]))]
    by_attempt: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_attempt[attempts[run["id"]]].append(run)
    newest = by_attempt[max(by_attempt)]
    return newest + [run for jobs in by_attempt.values() if len(jobs) > len(newest) for run in jobs]


def _of_check_run(run: dict[str, Any]) -> Observed:
    return Observed(run["name"], CHECK_RUN, *_outcome(run), _check(run)[1], run.get("html_url"), app=(run.get("app") or {}).get("slug"))


def _of_workflow_run(run: dict[str, Any]) -> Observed:
    path = str(run["path"]).partition("@")[0]  # owner/name/.github/workflows/file.yml@ref
    return Observed(path, WORKFLOW_RUN, *_outcome(run), None, run.get("html_url"), (run.get("repository") or {}).get("id"))


def _outcome(run: dict[str, Any]) -> tuple[str, str]:
    """Return (our state, GitHub's word) of a check run or a workflow run."""
    status, conclusion = run.get("status") or "unknown", run.get("conclusion")
    if status != "completed":
        return PENDING, status
    if conclusion in SKIPS:
        return "skipped", str(conclusion)
    return PASSED if conclusion == "success" else FAILED, conclusion or status


def _of_status(status: dict[str, Any]) -> Observed:
    state = {"success": PASSED, "pending": PENDING}.get(status["state"], FAILED)
    return Observed(status["context"], COMMIT_STATUS, state, status["state"], None, status.get("target_url"))


def judge(required: Collection[Required], results: Collection[Observed], allow_skipped: Collection[str]) -> ChecksVerdict:
    """Return the verdict on the required checks; every result of a required name counts. Raises ValueError when none is required."""
    return ChecksVerdict(tuple(finding for check in required for finding in _findings(check, results, allow_skipped)))


def _findings(required: Required, results: Collection[Observed], allow_skipped: Collection[str]) -> list[CheckState]:
    same_name = [result for result in results if required.concerns(result)]
    matching = [result for result in same_name if required.accepts(result)]
    if not matching:
        # A commit status does not name the app that set it, so it cannot satisfy a check that is bound to an app.
        conclusion = f"missing from app {required.app or required.app_id}" if same_name else "missing"
        return [CheckState(required, "missing", PENDING, conclusion, None)]
    skip_passes = required.name in allow_skipped
    return [
        CheckState(required, result.kind, _state(result, skip_passes=skip_passes), result.conclusion, result.url) for result in matching
    ]


def _state(result: Observed, *, skip_passes: bool) -> str:
    if result.state == "skipped":
        return PASSED if skip_passes else FAILED
    return result.state
