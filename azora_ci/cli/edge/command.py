"""The commands ``edge status``, ``edge log`` and ``edge install``."""

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
    from azora_ci.cli.edge import report

    with reported_errors():
        target = open_target(read_only_context(config_path))
        with target.connected():
            history, observation = target.current(), target.observe()
            instances = {release.id: target.instances(release.id) for release in history.releases.values()}
            lines = target.edges()
        click.echo("\n".join([report.text(history, observation, instances), *lines]))
        require_every_host(target)


@edge.command("log")
@click.option("--since", default="1h", show_default=True, metavar="TIME", help="15m, 2h or 1d ago, or 2026-11-24T11:03 (UTC).")
@click.option("--host", metavar="NAME", help="Of this host alone, as the table names it.")
@click.option("--release", "--version", "release", metavar="NAME", help="Of this version or deployment id alone.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each request, one in a line.")
@config_option
def edge_log(since: str, host: str | None, release: str | None, as_json: bool, config_path: Path) -> None:
    """Show the requests that failed, were given up, refused or slow, by the edge's log."""
    from azora_ci.cli.edge import log
    from azora_ci.core.clock import rfc3339

    with reported_errors():
        context = read_only_context(config_path)
        try:
            moment = rfc3339(log.moment(since, context.clock.now()))
        except (ValueError, OverflowError) as error:
            raise click.BadParameter(str(error), param_hint="--since") from error
        target = open_target(context)
        with target.connected():
            history, failures = target.current(), target.edge_log(moment)
            instances = {release.id: target.instances(release.id) for release in history.releases.values()}
        failures = log.chosen(failures, history, host=host, release=release)
        click.echo(log.lines_of_json(failures, history) if as_json else log.text(failures, history, instances, moment))
        require_every_host(target)


@edge.command("install")
@click.option("--listen", metavar="HOST:PORT", help="Where local_processes' edge listens. [default: that of the public health URLs]")
@config_option
def edge_install(listen: str | None, config_path: Path) -> None:
    """Prepare the edge where there is none, replace one that is configured anew; releases and weights stay."""
    with reported_errors():
        click.echo(open_target(context_for(config_path)).install_edge(owner_of("edge-install"), listen))
