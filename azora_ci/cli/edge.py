"""The commands ``edge status`` and ``edge install``."""

from __future__ import annotations

from pathlib import Path

import click

from azora_ci.cli.common import config_option, context_for, open_target, owner_of, read_only_context, reported_errors, require_every_host


@click.group()
def edge() -> None:
    """Prepare the edge, or look at its weights, versions and counters."""


@edge.command("status")
@config_option
def edge_status(config_path: Path) -> None:
    """Show what the edge really has: weights, versions and counters of each route."""
    from azora_ci.cli import edge_report

    with reported_errors():
        target = open_target(read_only_context(config_path))
        with target.connected():
            history, observation = target.current(), target.observe()
            instances = {release.id: target.instances(release.id) for release in history.releases.values()}
            lines = target.edges()
        click.echo("\n".join([edge_report.text(history, observation, instances), *lines]))
        require_every_host(target)


@edge.command("install")
@click.option("--listen", metavar="HOST:PORT", help="Where local_processes' edge listens. [default: that of the public health URLs]")
@config_option
def edge_install(listen: str | None, config_path: Path) -> None:
    """Prepare the edge where there is none, replace one that is configured anew; releases and weights stay."""
    with reported_errors():
        click.echo(open_target(context_for(config_path)).install_edge(owner_of("edge-install"), listen))
