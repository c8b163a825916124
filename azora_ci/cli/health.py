"""The command ``health``: say what an address lacks to be judged healthy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from azora_ci.cli.common import config_option, reported_errors

if TYPE_CHECKING:
    from azora_ci.core.config import HealthSettings

ADDRESS = re.compile(r"https?://[^\s/@]+(/\S*)?")  # as public_health_url
ASK_SECONDS = 15.0  # longer than any probe waits, so that a slow answer is seen
SLOW_MILLISECONDS = 2000.0  # an instance that has not answered by then is not healthy yet


@click.command(short_help="Say what a health endpoint lacks.")
@click.argument("url", metavar="URL")
@click.option("--version", metavar="VERSION", help="The version that it must answer, with or without v. [default: any]")
@click.option("--service", metavar="ID", help="Judge by the health settings of this service of the configuration. [default: the contract]")
@config_option
def health(url: str, version: str | None, service: str | None, config_path: Path) -> None:
    """Ask URL once, as a rollout does, and say everything that its answer lacks."""
    with reported_errors():
        _examine(url, version, _settings(config_path, service) if service else None)


def _settings(config_path: Path, service: str) -> HealthSettings:
    from azora_ci.core import config
    from azora_ci.core.errors import BadInputError

    services = {known.id: known for known in config.load(config_path).services}
    if service not in services:
        raise BadInputError(
            "No such service", what=f"{service} is not one of {', '.join(services)}", where=str(config_path), next_step="name one of them"
        )
    return services[service].health


def _examine(url: str, version: str | None, settings: HealthSettings | None) -> None:
    """Print what was answered. Raises BadInputError, UnreachableError, and NotTrueError that names everything that is lacking."""
    from azora_ci.core.clock import Clock
    from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
    from azora_ci.health.answers import CONTRACT, PUBLIC, Endpoint, bare, contract, examine
    from azora_ci.health.probes import fetch, request_of

    try:
        if not ADDRESS.fullmatch(url) or urlsplit(url).port == 0:
            raise ValueError("no http:// or https:// address")
    except ValueError as error:
        next_step = "give one such as http://localhost:3000/health"
        raise BadInputError("Not an address", what=f"{url}: {error}", where="URL", next_step=next_step) from error
    endpoint = Endpoint(url, "", PUBLIC, url, frozenset({bare(version)} if version else ()), health=settings or CONTRACT)
    answer = fetch(request_of(endpoint), ASK_SECONDS, Clock())
    problems, answered, proof = examine(endpoint, answer)
    if answer.failure is not None:
        raise UnreachableError("No answer", what=answer.detail, where=url, next_step="start the service, or correct host and port")
    click.echo(f"{url} answers HTTP {answer.status} in {answer.milliseconds:.0f} ms, {answer.content_type or 'without a content type'}")
    lacks = [detail for _, detail in problems]
    if answer.milliseconds > SLOW_MILLISECONDS:
        lacks.append(f"took {answer.milliseconds:.0f} ms: while an instance starts, a probe waits for {SLOW_MILLISECONDS:.0f} ms")
    if lacks:
        next_step = f"have it answer {contract(endpoint.health)}; python -m azora_ci adopt shows how in your framework"
        raise NotTrueError("Not healthy", what="\n".join(f"✗ {lack}" for lack in lacks), where=url, next_step=next_step)
    if not problems and answer.body and "json" not in answer.content_type:
        click.echo("- its content type is not application/json")
    click.echo(f"✓ healthy, {f'version {answered} (from: {proof})' if answered else 'its version is proved in deployments only'}")
