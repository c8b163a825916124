"""Commands that a person runs against a target: ``rollback``, ``lock``, ``clean``, ``edge``, ``doctor``."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError

if TYPE_CHECKING:
    from azora_ci.core.config import DeployConfig
    from azora_ci.core.process import Processes
    from azora_ci.core.settings import ProductionHosts
    from azora_ci.targets.base import Held, Owner, Target, Tended, Wiring

_Command = Callable[..., Any]


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print an AzoraError on standard error and end with its exit code."""
    try:
        yield
    except AzoraError as error:
        click.echo(f"{error.title}\n{error.message()}", err=True)
        sys.exit(error.exit_code)


def _config_option(command: _Command) -> _Command:
    return click.option(
        "--config", "config_path", type=click.Path(path_type=Path), envvar="DEPLOY_CONFIG", show_envvar=True,
        default=".github/deploy-production.toml", show_default=True, help="What is deployed where.",
    )(command)  # fmt: skip


def _reason_option(command: _Command) -> _Command:
    return click.option("--reason", required=True, metavar="TEXT", help="Why; is kept with the lock's history.")(command)


def add_to(group: click.Group) -> None:
    """Add these commands to the command line's group."""
    for command in (rollback, lock, clean, edge, doctor):
        group.add_command(command)


# --- what every command needs ---------------------------------------------------------------------------------------------


def _wiring(config_path: Path, window_minutes: float = 60.0) -> Wiring:
    from azora_ci.core import config, environment, settings, variables
    from azora_ci.core.actions import Actions
    from azora_ci.core.clock import Clock
    from azora_ci.core.process import Processes
    from azora_ci.targets.base import Wiring

    access = variables.load(settings.ProductionHosts, environment.process_environment())
    clock = Clock()
    processes = Processes(actions=Actions(), clock=clock, secrets=_secrets(access))
    deploy_config = config.load(config_path)
    return Wiring(
        deploy_config, processes, clock, Path("deployment-logs"), 30.0, rollback_window_minutes=window_minutes, access=access,
        recorded_host_keys=recorded_host_keys(access, deploy_config, processes),
    )  # fmt: skip


def _read_only_wiring(config_path: Path) -> Wiring:
    """Return the wiring of a command that changes nothing: it skips unreachable hosts and shows the state of the others."""
    from dataclasses import replace

    return replace(_wiring(config_path), spare_lost_hosts=True)


def _require_every_host(target: Target) -> None:
    """Raise UnreachableError that names the hosts that were skipped, and so are missing from the output above."""
    from azora_ci.targets.base import left_out

    missing = left_out(target)
    if missing:
        raise UnreachableError(
            "Not every production host was reached",
            what="\n".join(f"{host}: {why}" for host, why in missing.items()),
            where="PROD_HOST",
            next_step="what is shown above is what the other hosts say; python -m azora_ci doctor says what a host lacks",
        )


def recorded_host_keys(access: ProductionHosts, deploy_config: DeployConfig, processes: Processes) -> str:
    """Return the host keys that the last deployment recorded; empty when keys are pinned or AWS keys for the archive are not set."""
    from azora_ci.clients.s3.bucket import open_bucket
    from azora_ci.core import environment, settings, variables
    from azora_ci.record import host_keys
    from azora_ci.record.archive import Archive

    environ = environment.process_environment()
    aws = variables.load(settings.Aws, environ)
    if not host_keys.are_needed(access, deploy_config) or aws.aws_access_key_id is None:
        return ""
    for secret in _secrets(aws):
        processes.add_secret(secret)
    bucket = open_bucket(aws, deploy_config.backup.bucket)
    return host_keys.of_archive(access, deploy_config, Archive(bucket, environ.get("DEPLOY_ENVIRONMENT") or "production"))


def _secrets(section: Any) -> list[str]:
    from azora_ci.core.variables import Secret

    return [value.reveal() for value in vars(section).values() if isinstance(value, Secret)]


def _target(wiring: Wiring) -> Target:
    from azora_ci.targets.registry import target_of

    return target_of(wiring.config.target.kind, wiring)


def _require_tended(target: Target) -> Tended:
    """Return the target typed as ``Tended``. Raises BadInputError when it offers no lock and no releases to the command line."""
    from azora_ci.targets.base import Tended

    if not isinstance(target, Tended):
        raise BadInputError(
            "This target cannot do that",
            what=f"{type(target).__name__} offers neither its lock nor its releases to the command line",
            where="target.kind in the deployment configuration",
            next_step="look at the target itself",
        )
    return target


def _actor() -> str:
    from azora_ci.core.environment import process_environment

    actor = process_environment().get("GITHUB_ACTOR")
    try:
        return actor or getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _owner(command: str) -> Owner:
    from azora_ci.targets.base import Owner

    return Owner(command, f"python -m azora_ci {command} on {socket.gethostname()}", _actor())


# --- rollback ---------------------------------------------------------------------------------------------------------------


ROLLBACK_EXAMPLE = 'python -m azora_ci rollback --reason "checkout fails for every user"'


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=f"""
    \b
    {ROLLBACK_EXAMPLE}

    Run it in the application's folder, with production's secrets in the environment: PROD_DATABASE_URL; AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) for the archive of records; PROD_HOST, PROD_USER, PROD_KEY and the variable
    PROD_KNOWN_HOSTS for production hosts; SLACK_WEBHOOK if people are to be told. The button "Roll production back" on GitHub has
    them all. Every other variable: python scripts/rollback.py --help.

    Exit codes: 0 it is back, proved and tested; 1 it was refused, or is not proved: read the last lines; 2 something is missing or
    mistyped; 3 production or the archive cannot be reached.
    """,
)
@click.option("--reason", metavar="TEXT", envvar="ROLLBACK_REASON", help="Why. Lands in the record and in the message to Slack. Required.")
@click.option(
    "--deployment-id", metavar="ID", envvar="DEPLOYMENT_ID",
    help="The deployment to take back, such as 1764000000-abc123. [default: the newest one that reached production]",
)  # fmt: skip
@click.option("--after-deadline", is_flag=True, help="Go back although the rollback window has closed.")
@_config_option
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="")
def rollback(*, reason: str | None, deployment_id: str | None, after_deadline: bool, config_path: Path, more: tuple[str, ...]) -> None:
    """Take a deployment back to the version before it.

    Nothing is changed before it is known that the deployment's record is genuine, that its window is open, and that every instance of
    the version before is there and healthy. Then all traffic goes back by one rename a host, within seconds; it is proved that no
    request reaches the new version any more; the smoke tests run; a record is written. A rollout that is under way is stopped first.
    The database is left as it is. It may be run again at any time: what is done is recognised.
    """
    from azora_ci.steps import runner

    with reported_errors():
        if not (reason or "").strip():
            raise BadInputError(
                "No reason is given",
                what="a rollback's record says why, for whoever reads it later",
                where="--reason",
                next_step=ROLLBACK_EXAMPLE,
            )
    arguments = ["--reason", str(reason), "--config", str(config_path), *(["--after-deadline"] if after_deadline else [])]
    arguments += ["--deployment-id", deployment_id] if deployment_id else []
    runner.command("rollback").main(args=[*arguments, *more], prog_name="python -m azora_ci rollback")


# --- lock -------------------------------------------------------------------------------------------------------------------


@click.group(short_help="Look at the target's lock, or take it away from a dead owner.")
def lock() -> None:
    """Look at the target's lock, or take it away from an owner that will not come back."""


@lock.command("status")
@_config_option
def lock_status(config_path: Path) -> None:
    """Say who holds the lock, for how long, and whether its owner still runs or renews it; of several hosts, for each."""
    from azora_ci.targets.base import holders

    with reported_errors():
        target = _target(_read_only_wiring(config_path))
        holders_by_host = holders(_require_tended(target))
        if len({held and (held.owner, held.alive) for held in holders_by_host.values()}) == 1:
            click.echo(_lock_text(next(iter(holders_by_host.values()))))
        else:  # the hosts do not agree
            click.echo("\n\n".join(f"{host}\n{_lock_text(held)}" for host, held in holders_by_host.items()))
        _require_every_host(target)


@lock.command("release")
@_reason_option
@click.option("--force", is_flag=True, help="Also when its owner still runs: it can change nothing from then on, not even go back.")
@_config_option
def lock_release(reason: str, *, force: bool, config_path: Path) -> None:
    """Take the lock away from its owner."""
    with reported_errors():
        target = _require_tended(_target(_wiring(config_path)))
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
        target.unlock(reason, _actor())
        click.echo(f"Released: {reason}\n{_held_text(held)}")
        click.echo("What it left half done goes back when the next deployment or rollback begins.")


def _lock_text(held: Held | None) -> str:
    return _held_text(held) if held else "The lock is free."


def _held_text(held: Held) -> str:
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


# --- clean ------------------------------------------------------------------------------------------------------------------


@click.command(short_help="Remove instances that nobody can go back to any more.")
@click.option(
    "--window-minutes", type=click.FloatRange(0), envvar="ROLLBACK_WINDOW_MINUTES", show_envvar=True, default=60, show_default=True,
    help="Minutes after a promotion in which going back is supported.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and change nothing.")
@_config_option
def clean(window_minutes: float, *, dry_run: bool, config_path: Path) -> None:
    """Drain and remove instances of releases whose rollback window has closed, never the rollback target."""
    from azora_ci.targets.base import reached

    with reported_errors():
        wiring = _wiring(config_path, window_minutes)
        target = _target(wiring)
        tended = _require_tended(target)
        with reached(target):
            removable = _list_removable(wiring, target)
            _print_kept(target, {name for name, _ in removable})
        if not removable:
            click.echo("Nothing is to be removed.")
            return
        if dry_run:
            click.echo("\n".join(f"would remove {text}" for _, text in removable))
            return
        with target.locked(_owner("clean")):
            for name, text in _list_removable(wiring, target):
                tended.remove(name)
                click.echo(f"✓ removed {text}")


def _list_removable(wiring: Wiring, target: Target) -> list[tuple[str, str]]:
    """Return (deployment id, text for people) of each release whose rollback window has closed."""
    releases = target.current().superseded(wiring.clock.now(), wiring.rollback_window_minutes)
    counts = [(release, len(target.instances(release.id))) for release in releases]
    return [(release.id, f"{release.version} ({release.id}): {number or 'stopped'} instances") for release, number in counts]


def _print_kept(target: Target, removable: set[str]) -> None:
    from azora_ci import edge_report

    history = target.current()
    previous = history.before(history.serving) if history.serving else None
    for release in history.releases.values():
        instances = target.instances(release.id)
        if instances and release.id not in removable:
            role = "is the rollback target" if previous and release.id == previous.id else "is kept"
            role = "serves" if release.id == history.serving else role
            click.echo(f"{release.version} ({release.id}) {role}: {edge_report.counted(instances)}")


# --- edge -------------------------------------------------------------------------------------------------------------------


@click.group()
def edge() -> None:
    """Prepare the edge, or look at its weights, versions and counters."""


@edge.command("status")
@_config_option
def edge_status(config_path: Path) -> None:
    """Show what the edge really has: weights, versions and counters of each route."""
    from azora_ci import edge_report
    from azora_ci.targets.base import edges, reached

    with reported_errors():
        target = _target(_read_only_wiring(config_path))
        with reached(target):
            history, observation = target.current(), target.observe()
            instances = {release.id: target.instances(release.id) for release in history.releases.values()}
            lines = edges(target)
        click.echo("\n".join([edge_report.text(history, observation, instances), *lines]))
        _require_every_host(target)


@edge.command("install")
@click.option("--listen", metavar="HOST:PORT", help="Where local_processes' edge listens. [default: that of the public health URLs]")
@_config_option
def edge_install(listen: str | None, config_path: Path) -> None:
    """Prepare the edge where there is none, replace one that is configured anew; releases and weights stay."""
    with reported_errors():
        wiring = _wiring(config_path)
        if wiring.config.target.kind == "local_processes":
            click.echo(_install_local(wiring, listen))
            return
        with _target(wiring).locked(_owner("edge-install")):
            click.echo("✓ guard and edge run on every host")


def _install_local(wiring: Wiring, listen: str | None) -> str:
    from urllib.parse import urlsplit

    from azora_ci.targets.envoy import state as envoy
    from azora_ci.targets.local_processes.target import install_edge

    config = wiring.config
    _target(wiring)  # refuses what is not on loopback
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


# --- doctor -----------------------------------------------------------------------------------------------------------------


@click.command(short_help="Say what production needs and lacks; change nothing.")
@_config_option
def doctor(config_path: Path) -> None:
    """Say what production needs and lacks, with the next step for each missing thing. Changes nothing."""
    from azora_ci.gates import production as consultation

    with reported_errors():
        findings = consultation.examine(_wiring(config_path))
    for finding in findings:
        click.echo(f"{'✓' if finding.passed else '✗'} {finding.name}: {finding.detail}")
        if not finding.passed:
            click.echo(f"    next: {finding.next_step}")
    missing = sum(not finding.passed for finding in findings)
    click.echo(f"{len(findings) - missing} of {len(findings)} are as they should be.")
    sys.exit(1 if missing else 0)
