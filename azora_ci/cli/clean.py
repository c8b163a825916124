"""The command ``clean``: stop earlier versions that nobody can go back to any more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from azora_ci.cli.common import config_option, context_for, open_target, owner_of, reported_errors

if TYPE_CHECKING:
    from azora_ci.targets.base import Target, TargetContext


@click.command(short_help="Remove instances that nobody can go back to any more.")
@click.option(
    "--window-minutes", type=click.FloatRange(0), envvar="ROLLBACK_WINDOW_MINUTES", show_envvar=True, default=60, show_default=True,
    help="Minutes after a promotion in which going back is supported.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and change nothing.")
@config_option
def clean(window_minutes: float, *, dry_run: bool, config_path: Path) -> None:
    """Drain and remove instances of releases whose rollback window has closed, never the rollback target."""
    with reported_errors():
        context = context_for(config_path, window_minutes)
        target = open_target(context)
        with target.connected():
            removable = _list_removable(context, target)
            _print_kept(target, {name for name, _ in removable})
        if not removable:
            click.echo("Nothing is to be removed.")
            return
        if dry_run:
            click.echo("\n".join(f"would remove {text}" for _, text in removable))
            return
        with target.locked(owner_of("clean")):
            for name, text in _list_removable(context, target):
                target.remove(name)
                click.echo(f"✓ removed {text}")


def _list_removable(context: TargetContext, target: Target) -> list[tuple[str, str]]:
    """Return (deployment id, text for people) of each release whose rollback window has closed."""
    releases = target.current().superseded(context.clock.now(), context.rollback_window_minutes)
    counts = [(release, len(target.instances(release.id))) for release in releases]
    return [(release.id, f"{release.version} ({release.id}): {number or 'stopped'} instances") for release, number in counts]


def _print_kept(target: Target, removable: set[str]) -> None:
    from azora_ci.cli.edge import report

    history = target.current()
    previous = history.before(history.serving) if history.serving else None
    for release in history.releases.values():
        instances = target.instances(release.id)
        if instances and release.id not in removable:
            role = "is the rollback target" if previous and release.id == previous.id else "is kept"
            role = "serves" if release.id == history.serving else role
            click.echo(f"{release.version} ({release.id}) {role}: {report.counted(instances)}")
