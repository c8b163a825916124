"""The commands ``edge status`` and ``edge install``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from azora_ci.cli.common import config_option, context_for, open_target, owner_of, read_only_context, reported_errors, require_every_host
from azora_ci.core.errors import BadInputError

if TYPE_CHECKING:
    from azora_ci.targets.base import TargetContext


@click.group()
def edge() -> None:
    """Prepare the edge, or look at its weights, versions and counters."""


@edge.command("status")
@config_option
def edge_status(config_path: Path) -> None:
    """Show what the edge really has: weights, versions and counters of each route."""
    from azora_ci.cli import edge_report
    from azora_ci.targets.base import edges, reached

    with reported_errors():
        target = open_target(read_only_context(config_path))
        with reached(target):
            history, observation = target.current(), target.observe()
            instances = {release.id: target.instances(release.id) for release in history.releases.values()}
            lines = edges(target)
        click.echo("\n".join([edge_report.text(history, observation, instances), *lines]))
        require_every_host(target)


@edge.command("install")
@click.option("--listen", metavar="HOST:PORT", help="Where local_processes' edge listens. [default: that of the public health URLs]")
@config_option
def edge_install(listen: str | None, config_path: Path) -> None:
    """Prepare the edge where there is none, replace one that is configured anew; releases and weights stay."""
    with reported_errors():
        context = context_for(config_path)
        if context.config.target.kind == "local_processes":
            click.echo(_install_local(context, listen))
            return
        with open_target(context).locked(owner_of("edge-install")):
            click.echo("✓ guard and edge run on every host")


def _install_local(context: TargetContext, listen: str | None) -> str:
    from urllib.parse import urlsplit

    from azora_ci.targets.envoy import state as envoy
    from azora_ci.targets.local_processes.target import install_edge

    config = context.config
    open_target(context)  # refuses what is not on loopback
    addresses = {"--listen": listen or urlsplit(config.services[0].public_health_url).netloc, "edge.admin_url": config.edge.admin_url or ""}
    ports = {}
    for name, address in addresses.items():
        port = urlsplit(address if "//" in address else f"//{address}").port
        if port is None:
            raise BadInputError("No port to listen on", what=f"{address!r} names no port", where=name, next_step="name host and port")
        ports[name] = port
    assert config.edge.config_dir is not None  # noqa: S101 - the configuration's own check
    bootstrap = install_edge(config, config.edge.config_dir, *ports.values())
    return f"✓ {bootstrap} is written; start the edge with:\n{' '.join(envoy.command(bootstrap))}"
