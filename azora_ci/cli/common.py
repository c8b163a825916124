"""What the commands of a person share: options, errors, and the target that the configuration names."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from azora_ci.core.errors import AzoraError, UnreachableError

if TYPE_CHECKING:
    from azora_ci.core.config import DeployConfig
    from azora_ci.core.process import Processes
    from azora_ci.core.settings import ProductionHosts
    from azora_ci.gates.readiness import Problem
    from azora_ci.record.archive import Archive
    from azora_ci.targets.base import Owner, Target, TargetContext

_Command = Callable[..., Any]


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print an AzoraError on standard error and end with its exit code."""
    try:
        yield
    except AzoraError as error:
        click.echo(f"{error.title}\n{error.message()}", err=True)
        sys.exit(error.exit_code)


def config_option(command: _Command) -> _Command:
    """Add the option ``--config`` to a command."""
    return click.option(
        "--config", "config_path", type=click.Path(path_type=Path), envvar="DEPLOY_CONFIG", show_envvar=True,
        default=".github/deploy-production.toml", show_default=True, help="What is deployed where.",
    )(command)  # fmt: skip


def reason_option(command: _Command) -> _Command:
    """Add the required option ``--reason`` to a command."""
    return click.option("--reason", required=True, metavar="TEXT", help="Why; is kept with the lock's history.")(command)


def environment_option(command: _Command) -> _Command:
    """Add the option ``--environment`` to a command that reads the archive."""
    return click.option(
        "--environment", metavar="NAME", envvar="DEPLOY_ENVIRONMENT", show_envvar=True, default="production", show_default=True,
        help="Whose records are read.",
    )(command)  # fmt: skip


def context_for(config_path: Path, window_minutes: float = 60.0) -> TargetContext:
    """Return what a target is given, from this process's environment and the configuration. Raises BadInputError."""
    from azora_ci.core import config, environment, settings, variables
    from azora_ci.core.clock import Clock
    from azora_ci.targets.base import TargetContext

    access = variables.load(settings.ProductionHosts, environment.process_environment())
    clock = Clock()
    processes = own_processes(secrets_in(access))
    deploy_config = config.load(config_path)
    return TargetContext(
        deploy_config, processes, clock, Path("deployment-logs"), 30.0, rollback_window_minutes=window_minutes, access=access,
        recorded_host_keys=recorded_host_keys(access, deploy_config, processes),
    )  # fmt: skip


def own_processes(secrets: Iterable[str] = ()) -> Processes:
    """Return what starts processes for a command of a person; their output is masked."""
    from azora_ci.core.actions import Actions
    from azora_ci.core.clock import Clock
    from azora_ci.core.job_log import JobLog
    from azora_ci.core.process import Processes

    return Processes(JobLog(Actions(), Clock(), secrets=list(secrets)))


def repository_problems(folder: Path, config_path: Path) -> list[Problem]:
    """Return what a checkout lacks before it can be deployed. ``config_path`` is relative to ``folder``."""
    from azora_ci.clients.git import Git
    from azora_ci.gates import readiness
    from azora_ci.steps.job import own_variables

    return readiness.of_repository(folder, config_path, own_variables(), Git(own_processes(), folder).ignores)


def read_only_context(config_path: Path) -> TargetContext:
    """Return the context of a command that changes nothing: it skips unreachable hosts and shows the state of the others."""
    from dataclasses import replace

    return replace(context_for(config_path), spare_lost_hosts=True)


def require_every_host(target: Target) -> None:
    """Raise UnreachableError that names the hosts that were skipped, and so are missing from the output above."""
    if target.left_out:
        raise UnreachableError(
            "Not every production host was reached",
            what="\n".join(f"{host}: {why}" for host, why in target.left_out.items()),
            where="PROD_HOST",
            next_step="what is shown above is what the other hosts say; python -m azora_ci doctor says what a host lacks",
        )


def recorded_host_keys(access: ProductionHosts, deploy_config: DeployConfig, processes: Processes) -> str:
    """Return the host keys that the last deployment recorded; empty when keys are pinned or AWS keys for the archive are not set."""
    from azora_ci.core import environment, settings, variables
    from azora_ci.record import host_keys
    from azora_ci.record.archive import Archive
    from azora_ci.targets.registry import kind_of

    environ = environment.process_environment()
    aws = variables.load(settings.Aws, environ)
    by_target = kind_of(deploy_config).needs_host_keys
    if not host_keys.are_needed(access, deploy_config, by_target=by_target) or aws.aws_access_key_id is None:
        return ""
    for secret in secrets_in(aws):
        processes.log.add_secret(secret)
    archive = Archive.of(aws, environ.get("DEPLOY_ENVIRONMENT") or "production", deploy_config.backup)
    return host_keys.of_archive(archive)


def open_archive(config_path: Path, environment_name: str) -> Archive:
    """Return the archive of records of an environment; no request is sent yet. Raises BadInputError."""
    from azora_ci.core import config, environment, settings, variables
    from azora_ci.record.archive import Archive

    aws = variables.load(settings.Aws, environment.process_environment())
    return Archive.of(aws, environment_name, config.load(config_path).backup)


def secrets_in(section: Any) -> list[str]:
    """Return the texts of the secrets in a settings object."""
    from azora_ci.core.variables import Secret

    return [value.reveal() for value in vars(section).values() if isinstance(value, Secret)]


def open_target(context: TargetContext) -> Target:
    """Return the target that the configuration names."""
    from azora_ci.targets.registry import target_of

    return target_of(context)


def actor_name() -> str:
    """Return who runs this command: GITHUB_ACTOR, else the name of the user, else ``unknown``."""
    from azora_ci.core.environment import process_environment

    actor = process_environment().get("GITHUB_ACTOR")
    try:
        return actor or getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def owner_of(command: str) -> Owner:
    """Return the owner of the lock while this command runs."""
    from azora_ci.targets.base import Owner

    return Owner(command, f"python -m azora_ci {command} on {socket.gethostname()}", actor_name())
