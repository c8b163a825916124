"""The command ``doctor``: say what production lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from azora_ci.cli.common import config_option, context_for, reported_errors, repository_problems

if TYPE_CHECKING:
    from datetime import datetime

    from azora_ci.core.config import CalendarSettings
    from azora_ci.targets.base import TargetContext
    from azora_ci.targets.findings import Finding


def _repository(config_path: Path) -> Iterator[Finding]:
    """Yield what the checkout in the working folder lacks, as ``adopt --check`` and the validation of a release say it."""
    from azora_ci.targets.findings import Finding

    problems = repository_problems(Path(), config_path)
    for problem in problems:
        yield Finding(problem.where, False, problem.what, problem.next_step)
    if not problems:
        yield Finding("repository", True, f"nothing is missing of what {config_path} names, and nothing in it is a guess")


def _production(context: TargetContext) -> Iterator[Finding]:
    """Yield what production answers, as the validation of a release asks it."""
    from azora_ci.core import environment
    from azora_ci.core.settings import Aws, DatabaseTransport
    from azora_ci.core.variables import Secret, load
    from azora_ci.gates import production
    from azora_ci.targets.findings import UNKNOWN, Finding

    environ = environment.process_environment()
    secrets = {
        name: Secret(environ[name]) if environ.get(name) else None for name in ("PROD_DATABASE_URL", "DOCKER_USERNAME", "DOCKER_PASSWORD")
    }
    login = secrets["DOCKER_USERNAME"], secrets["DOCKER_PASSWORD"]
    means = production.Means(load(Aws, environ), load(DatabaseTransport, environ), secrets["PROD_DATABASE_URL"], login)
    yield from production.configuration(context)
    consultation = production.consult(context, means)
    for found in consultation.findings:
        accepted = found.kind == "endpoint" and consultation.first
        detail = f"{found.conclusion}{' (nothing was deployed yet)' * (accepted and not found.passed)}"
        yield Finding(found.name, found.passed or accepted, detail, found.next_step)
    for name, reason in consultation.not_asked.items():
        yield Finding(name, True, f"{UNKNOWN}{reason} here, so it was not asked")


def _approval(context: TargetContext) -> Finding:
    """Say whether GitHub waits for a reviewer, where this machine has a token to ask it."""
    from azora_ci.clients.github import GitHub
    from azora_ci.core import environment
    from azora_ci.core.errors import AzoraError
    from azora_ci.core.variables import Secret
    from azora_ci.gates.branch import read_enforcement
    from azora_ci.targets.findings import UNKNOWN, Finding

    environ = environment.process_environment()
    repository, token = environ.get("GITHUB_REPOSITORY"), environ.get("GITHUB_TOKEN")
    if not repository or not token:
        return Finding("approval", True, f"{UNKNOWN}GITHUB_REPOSITORY and GITHUB_TOKEN are not set here, so GitHub was not asked")
    github = GitHub(environ.get("GITHUB_API_URL") or "https://api.github.com", repository, Secret(token), clock=context.clock)
    try:
        facts = read_enforcement(github, environ.get("DEPLOY_ENVIRONMENT") or "production")
    except AzoraError as error:
        facts = {"enforced": "unknown", "reason": f"{error.title}: {error.what}"}
    detail = f"enforced: {str(facts['enforced']).lower()}, {facts['reason']}"
    return Finding("approval", facts["enforced"] is True, detail, "name reviewers there, or set [approval] distinct_person = true")


def _calendar(calendar: CalendarSettings, now: datetime) -> Finding:
    """Say whether a deployment may begin now, and when the next one may. A freeze is nothing that is missing; one without an end is."""
    from azora_ci.gates.entry.calendar import HORIZON, closed_by, in_both, next_open
    from azora_ci.targets.findings import Finding

    closed, opens = closed_by(calendar, now), next_open(calendar, now)
    if opens is None:
        return Finding("calendar", False, f"{closed}; it does not open within {HORIZON.days} days", "correct the windows of [calendar]")
    detail = f"closed now: {closed}; open from {in_both(calendar.timezone, opens)} on" if closed else "a deployment may begin now"
    return Finding("calendar", True, detail)


def _findings(config_path: Path) -> Iterator[Finding]:
    from azora_ci.core import config
    from azora_ci.core.clock import Clock
    from azora_ci.core.errors import AzoraError
    from azora_ci.targets.findings import failed

    if not config_path.is_file():
        config.load(config_path)  # says what to do
    yield from _repository(config_path)
    try:
        calendar = config.load(config_path).calendar
    except AzoraError:  # is among the findings
        return
    if calendar is not None:
        yield _calendar(calendar, Clock().now())
    try:
        context = context_for(config_path)
    except AzoraError as error:
        yield failed("settings of this machine", error)
        return
    yield from _production(context)
    yield _approval(context)


@click.command(short_help="Say what production needs and lacks; change nothing.")
@config_option
def doctor(config_path: Path) -> None:
    """Say what production needs and lacks, with the next step for each missing thing. Changes nothing."""
    with reported_errors():
        findings = list(_findings(config_path))
    for finding in findings:
        click.echo(f"{'✗' if not finding.passed else '-' if finding.unknown else '✓'} {finding.name}: {finding.detail}")
        if not finding.passed:
            click.echo(f"    next: {finding.next_step}")
    missing, unknown = sum(not finding.passed for finding in findings), sum(finding.unknown for finding in findings)
    asked = f"{len(findings) - missing - unknown} of {len(findings)} are as they should be"
    click.echo(f"{asked}{f', {unknown} could not be asked here' if unknown else ''}.")
    sys.exit(1 if missing else 0)
