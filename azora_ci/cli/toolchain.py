"""The command ``toolchain``: what the action of that name sets up."""

from __future__ import annotations

from pathlib import Path

import click

from azora_ci.cli.common import config_option, reported_errors


@click.command(short_help="Say which Node.js and package manager a runner gets.")
@config_option
def toolchain(config_path: Path) -> None:
    """Say which Node.js and package manager [toolchain] names. Inside GitHub Actions they become outputs of the step."""
    from azora_ci.core import config, environment, settings, variables
    from azora_ci.core.actions import Actions

    with reported_errors():
        common = variables.load(settings.Common, environment.process_environment())
        chosen = config.load(config_path).toolchain
    actions = Actions(output_file=common.output_file, github=common.on_github)
    for name in ("node", "manager", "version", "package"):
        actions.output(name, getattr(chosen, name) or "")
    click.echo(f"Node.js: {chosen.node or 'the one of the runner'}; package manager: {chosen.package_manager or 'that of the runner'}")
