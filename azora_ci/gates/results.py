"""Which checks a release commit needs, and the results of it that count. Reads GitHub through the API; ``checks`` judges."""

from __future__ import annotations

from collections.abc import Callable

from azora_ci.clients.github import GitHub
from azora_ci.core.config import GateSettings
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.gates import checks
from azora_ci.gates.checks import FAILED, PENDING, ChecksVerdict, Observed, Required


def find_required(github: GitHub, gates: GateSettings, where: str) -> list[Required]:
    """Return the checks that the configuration and the default branch's rules require. Raises BadInputError when there are none."""
    required = checks.required_by_configuration(gates.required)
    sources = where
    if gates.rulesets:
        default = github.default_branch()
        required += checks.required_by_rules(github.branch_rules(default))
        required += checks.required_by_protection(github.branch(default))
        sources += f" and the rules of {default}"
    if not required:
        raise BadInputError(
            "No required checks",
            what="an empty list of checks is no gate: 0 names in checks.required, 0 from rulesets and branch protection",
            where=sources,
            next_step="name the checks that a release needs in checks.required",
        )
    return required


def current(
    github: GitHub,
    commit: str,
    required: list[Required],
    own_suite: int | None,
    attempts_of: Callable[[int, frozenset[int]], dict[int, int]],
) -> list[Observed]:
    """Return the results of a commit that count. Asks GitHub for attempts and workflow runs only where they can change the verdict."""
    names = {check.name for check in required}
    check_runs = [run for run in github.check_runs(commit) if run["name"] in names]
    attempts: dict[int, int] = {}
    for suite, runs in checks.repeated_suites(check_runs).items():
        attempts |= attempts_of(suite, runs)
    workflow_runs = github.workflow_runs(commit) if any(check.workflow for check in required) else []
    return checks.observed(check_runs, github.statuses(commit), own_suite, attempts=attempts, workflow_runs=workflow_runs)


def gate_error(verdict: ChecksVerdict, commit: str, wait_minutes: float) -> NotTrueError:
    """Return the error that names every check that has not passed."""
    failed, pending = verdict.having(FAILED), verdict.having(PENDING)
    lines = [f"failed: {finding}, required by {finding.required.source}{_append_url(finding.url)}" for finding in failed]
    lines += [f"pending: {finding}, required by {finding.required.source}{_append_url(finding.url)}" for finding in pending]
    waited = "" if failed else f" after waiting {wait_minutes:g} minutes"
    absent = any(finding.kind == "missing" and finding.required.workflow for finding in pending)
    hint = "; a workflow that a ruleset demands must also run for pushes to the default branch" if absent else ""
    return NotTrueError(
        "Required checks have not passed",
        what=f"{len(lines)} of {len(verdict.findings)} are not passed{waited}\n" + "\n".join(lines),
        where=f"commit {commit}",
        next_step="repair or re-run the named checks, each in its own run (one of the same name elsewhere does not replace it), then "
        f"re-run this job; a skipped check counts only when checks.allow_skipped names it{hint}",
    )


def _append_url(url: str | None) -> str:
    return f" {url}" if url else ""
