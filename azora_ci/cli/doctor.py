"""The command ``doctor``: say what production lacks."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from azora_ci.cli.common import config_option, context_for, reported_errors


@click.command(short_help="Say what production needs and lacks; change nothing.")
@config_option
def doctor(config_path: Path) -> None:
    """Say what production needs and lacks, with the next step for each missing thing. Changes nothing."""
    from azora_ci.gates import production as consultation

    with reported_errors():
        findings = consultation.examine(context_for(config_path))
    for finding in findings:
        click.echo(f"{'✓' if finding.passed else '✗'} {finding.name}: {finding.detail}")
        if not finding.passed:
            click.echo(f"    next: {finding.next_step}")
    missing = sum(not finding.passed for finding in findings)
    click.echo(f"{len(findings) - missing} of {len(findings)} are as they should be.")
    sys.exit(1 if missing else 0)
