"""The command ``doctor``: say what production lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from azora_ci.cli.common import config_option, context_for, reported_errors

if TYPE_CHECKING:
    from azora_ci.targets.base import TargetContext
    from azora_ci.targets.findings import Finding


def _of_this_environment(context: TargetContext) -> Iterator[Finding]:
    """Yield what this machine's variables allow to find out about approvals, the database's transport, and names of services' secrets."""
    from azora_ci.clients.github import GitHub
    from azora_ci.core import config, environment
    from azora_ci.core.errors import AzoraError
    from azora_ci.core.settings import DatabaseTransport
    from azora_ci.core.variables import Secret, load
    from azora_ci.database.postgres import DatabaseUrl
    from azora_ci.gates.branch import read_enforcement
    from azora_ci.steps.job import own_variables
    from azora_ci.targets.findings import Finding, check

    environ = environment.process_environment()
    try:
        config.names.check(context.config.services, own_variables())
    except ValueError as error:
        yield Finding("names of secrets", False, str(error), "give the service's secret a name of its own")
    repository, token = environ.get("GITHUB_REPOSITORY"), environ.get("GITHUB_TOKEN")
    if repository and token:
        github = GitHub(environ.get("GITHUB_API_URL") or "https://api.github.com", repository, Secret(token), clock=context.clock)
        try:
            facts = read_enforcement(github)
        except AzoraError as error:
            facts = {"enforced": "unknown", "reason": f"{error.title}: {error.what}"}
        detail = f"enforced: {str(facts['enforced']).lower()}, {facts['reason']}"
        yield Finding("approval", facts["enforced"] is True, detail, "name reviewers there, or set [approval] distinct_person = true")
    else:
        yield Finding("approval", True, "unknown: GITHUB_REPOSITORY and GITHUB_TOKEN are not set here, so GitHub was not asked")
    if environ.get("PROD_DATABASE_URL") and not context.config.database.via_ssh:

        def transport() -> str:
            settings = load(DatabaseTransport, environ)
            url = DatabaseUrl.parse(environ["PROD_DATABASE_URL"])
            level = url.with_transport(settings.database_ca, plain_accepted=settings.database_plain).protection.level
            return f"{level}{', without a CA: PROD_DATABASE_CA' if level == 'require' else ''}"

        yield check("transport to the database", transport)


@click.command(short_help="Say what production needs and lacks; change nothing.")
@config_option
def doctor(config_path: Path) -> None:
    """Say what production needs and lacks, with the next step for each missing thing. Changes nothing."""
    from azora_ci.gates import production as consultation

    with reported_errors():
        context = context_for(config_path)
        findings = [*consultation.examine(context), *_of_this_environment(context)]
    for finding in findings:
        click.echo(f"{'✓' if finding.passed else '✗'} {finding.name}: {finding.detail}")
        if not finding.passed:
            click.echo(f"    next: {finding.next_step}")
    missing = sum(not finding.passed for finding in findings)
    click.echo(f"{len(findings) - missing} of {len(findings)} are as they should be.")
    sys.exit(1 if missing else 0)
