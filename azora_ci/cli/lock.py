"""The commands ``lock status`` and ``lock release``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from azora_ci.cli.common import (
    actor_name,
    config_option,
    context_for,
    open_target,
    read_only_context,
    reason_option,
    reported_errors,
    require_every_host,
)
from azora_ci.core.errors import NotTrueError

if TYPE_CHECKING:
    from azora_ci.targets.base import LockHolder


@click.group(short_help="Look at the target's lock, or take it away from a dead owner.")
def lock() -> None:
    """Look at the target's lock, or take it away from an owner that will not come back."""


@lock.command("status")
@config_option
def lock_status(config_path: Path) -> None:
    """Say who holds the lock, for how long, and whether its owner still runs or renews it; of several hosts, for each."""
    with reported_errors():
        target = open_target(read_only_context(config_path))
        holders_by_host = target.holders()
        if len({held and (held.owner, held.alive) for held in holders_by_host.values()}) == 1:
            click.echo(_lock_text(next(iter(holders_by_host.values()))))
        else:  # the hosts do not agree
            click.echo("\n\n".join(f"{host}\n{_lock_text(held)}" for host, held in holders_by_host.items()))
        require_every_host(target)


@lock.command("release")
@reason_option
@click.option("--force", is_flag=True, help="Also when its owner still runs: it can change nothing from then on, not even go back.")
@config_option
def lock_release(reason: str, *, force: bool, config_path: Path) -> None:
    """Take the lock away from its owner."""
    with reported_errors():
        target = open_target(context_for(config_path))
        held = target.holder()
        if held is None:
            click.echo("The lock is free.")
            return
        if held.alive and not force:
            raise NotTrueError(
                "The lock's owner is alive",
                what=_held_text(held),
                where="the target's lock",
                next_step="cancel its run, which takes traffic back first; or insist with --force",
            )
        target.unlock(reason, actor_name())
        click.echo(f"Released: {reason}\n{_held_text(held)}")
        click.echo("What it left half done goes back when the next deployment or rollback begins.")


def _lock_text(held: LockHolder | None) -> str:
    return _held_text(held) if held else "The lock is free."


def _held_text(held: LockHolder) -> str:
    kind = f"a rollback ({held.owner.fence})" if held.owner.fence else "a deployment"
    state = "runs" if held.alive else "does not run any more, or has not renewed it: the next one takes the lock over"
    if held.silent is not None:
        state = f"has renewed it {held.silent:.0f} s ago" if held.alive else f"has been silent for {held.silent:.0f} s"
    lines = {
        "held by": f"{held.owner.deployment_id}, {kind}, started by {held.owner.actor}",
        "run": held.owner.run_url,
        "renewed": held.renewed_at,
        "expires": held.expires_at,
        "its owner": state,
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())
